//! `beamline run --check`: what a guest's file makes, and what stands in its way on this machine.

use crate::api::json::DeviceJson;
use crate::device;
use crate::failure::refused;
use crate::output;
use beamline_vmm::Config;
use beamline_vmm::config::{Device, InputDevice, NetPort, OnReset};
use beamline_vmm::devices::virtio::blk;
use beamline_vmm::devices::virtio::console::Output;
use beamline_vmm::probe::{self, KvmKind};
use rustix::fs::{Access, access};
use serde::Serialize;
use std::fs::File;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// Something that is wrong, or may be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// The key of the file, or what of the machine.
    #[serde(rename = "where")]
    pub(crate) place: String,
    /// What is wrong, and how to mend it.
    pub(crate) what: String,
}

fn finding(place: impl Into<String>, what: impl Into<String>) -> Finding {
    Finding { place: place.into(), what: what.into() }
}

/// The report.
#[derive(Debug, Serialize)]
struct Report {
    file: PathBuf,
    ok: bool,
    name: String,
    memory: Memory,
    vcpus: Vcpus,
    boot: Boot,
    devices: Vec<DeviceJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    api: Option<PathBuf>,
    kvm: String,
    errors: Vec<Finding>,
    warnings: Vec<Finding>,
}

#[derive(Debug, Serialize)]
struct Memory {
    bytes: u64,
    /// What the host has in all, and could give now.
    host_bytes: u64,
    available_bytes: u64,
}

#[derive(Debug, Serialize)]
struct Vcpus {
    count: u32,
    /// Host CPUs; empty: any.
    cpus: Vec<usize>,
    nice: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    slice_us: Option<u32>,
}

#[derive(Debug, Serialize)]
struct Boot {
    image: PathBuf,
    /// `bzImage`, `ELF`, or nothing that is known.
    kind: Option<&'static str>,
    initrd: Option<PathBuf>,
    cmdline: String,
    on_reset: &'static str,
}

/// What keeps the guest of `config` from running whatever the machine does: the first of it.
pub(crate) fn before(config: &Config, path: &Path) -> anyhow::Result<()> {
    let (found, _) = boot(config);
    let found = found.into_iter().chain(memory(config.memory.size, host_memory()).0).next();
    match found {
        Some(found) => Err(refused(format!("{}: {}: {}", path.display(), found.place, found.what))),
        None => Ok(()),
    }
}

/// Says what `config` makes and what is wrong with it. Starts nothing.
pub(crate) fn check(config: &Config, path: &Path, json: bool) -> anyhow::Result<()> {
    let report = look(config, path);
    if json {
        output::json(&report)?;
    } else {
        output::line(text(&report).trim_end());
    }
    if report.ok {
        return Ok(());
    }
    let lines: Vec<String> =
        report.errors.iter().map(|e| format!("{}: {}", e.place, e.what)).collect();
    Err(refused(format!("{}: {}", path.display(), lines.join("\n  "))))
}

fn look(config: &Config, path: &Path) -> Report {
    let (mut errors, kind) = boot(config);
    let mut warnings = Vec::new();
    if kind.is_none() && errors.is_empty() {
        let what = "is neither a bzImage nor an ELF file: a guest of it will be refused";
        warnings.push(finding("guest.image", what));
    }
    let host = host_memory();
    let (too_much, scarce) = memory(config.memory.size, host);
    errors.extend(too_much);
    warnings.extend(scarce);
    cpus(config, &mut errors, &mut warnings);
    let kvm = probe::kvm();
    match kvm {
        KvmKind::Pvm if kind == Some("bzImage") => warnings.push(finding(
            "/dev/kvm",
            "is KVM-PVM, which does not boot a Linux kernel: use a machine with hardware virtualisation",
        )),
        ref kvm if !kvm.usable() => errors.push(finding("/dev/kvm", kvm.to_string())),
        _ => {}
    }
    for (index, one) in config.devices.iter().enumerate() {
        device_of(index, one, &mut errors, &mut warnings);
    }
    same_file(&config.devices, &mut errors);
    if let Some(api) = &config.api {
        errors.extend(socket("api.socket", &api.socket));
    }
    let Config { guest, vcpus, .. } = config;
    Report {
        file: path.to_owned(),
        ok: errors.is_empty(),
        name: guest.name.clone(),
        memory: Memory {
            bytes: config.memory.size,
            host_bytes: host.total,
            available_bytes: host.available,
        },
        vcpus: Vcpus {
            count: vcpus.count,
            cpus: vcpus.cpus.clone(),
            nice: vcpus.nice,
            slice_us: vcpus.slice_us,
        },
        boot: Boot {
            image: guest.image.clone(),
            kind,
            initrd: guest.initrd.clone(),
            cmdline: guest.cmdline.clone(),
            on_reset: match guest.on_reset {
                OnReset::End => "end",
                OnReset::Reboot => "reboot",
            },
        },
        devices: device::list(&config.devices),
        api: config.api.as_ref().map(|api| api.socket.clone()),
        kvm: kvm.to_string(),
        errors,
        warnings,
    }
}

/// Whether image and initrd are there, and what the image is.
fn boot(config: &Config) -> (Vec<Finding>, Option<&'static str>) {
    let mut errors = Vec::new();
    let image = &config.guest.image;
    let mut kind = None;
    if image.is_file() {
        match File::open(image) {
            Ok(file) => kind = image_kind(&file),
            Err(e) => {
                errors.push(finding("guest.image", format!("{}: {e}", image.display())));
            }
        }
    } else {
        errors.push(finding(
            "guest.image",
            format!(
                "there is no file {}; `make guest` builds the image that comes with beamline, and docs/guest.md \
                 tells how to take a kernel out of a disk image",
                image.display()
            ),
        ));
    }
    if let Some(initrd) = &config.guest.initrd {
        if !initrd.is_file() {
            let what = format!("there is no file {}", initrd.display());
            errors.push(finding("guest.initrd", what));
        } else if let Err(e) = File::open(initrd) {
            errors.push(finding("guest.initrd", format!("{}: {e}", initrd.display())));
        }
    }
    (errors, kind)
}

/// By what it starts with (Linux, Documentation/arch/x86/boot.rst: the header's magic).
fn image_kind(file: &File) -> Option<&'static str> {
    let has = |at, magic: &[u8; 4]| {
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, at).is_ok() && bytes == *magic
    };
    if has(0, b"\x7fELF") {
        Some("ELF")
    } else if has(0x202, b"HdrS") {
        Some("bzImage")
    } else {
        None
    }
}

/// The host's memory in bytes; as much as there can be where the kernel does not say.
#[derive(Clone, Copy, Debug)]
struct HostMemory {
    total: u64,
    available: u64,
}

fn host_memory() -> HostMemory {
    read_memory(&std::fs::read_to_string("/proc/meminfo").unwrap_or_default())
}

fn read_memory(text: &str) -> HostMemory {
    let line = |key: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
        let kib: u64 = rest.trim().strip_suffix("kB")?.trim().parse().ok()?;
        kib.checked_mul(1024)
    };
    // With what can be swapped out: the VMM itself refuses no less.
    let swap = line("SwapTotal:").unwrap_or(0);
    let total = line("MemTotal:").unwrap_or(u64::MAX).saturating_add(swap);
    HostMemory { total, available: line("MemAvailable:").unwrap_or(total) }
}

/// An error where the host has less in all, a warning where it has less now.
fn memory(size: u64, host: HostMemory) -> (Option<Finding>, Option<Finding>) {
    let than = |what: &str, bytes: u64| format!("is {}, and {what} {}", mib(size), mib(bytes));
    if size > host.total {
        let what = than("this host has", host.total);
        return (Some(finding("memory.size", format!("{what}: give the guest less"))), None);
    }
    let scarce = (size > host.available).then(|| {
        let what = than("only", host.available);
        finding(
            "memory.size",
            format!("{what} of the host's is free: end something first, or give the guest less"),
        )
    });
    (None, scarce)
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

fn cpus(config: &Config, errors: &mut Vec<Finding>, warnings: &mut Vec<Finding>) {
    let vcpus = &config.vcpus;
    let Ok(allowed) = rustix::thread::sched_getaffinity(None) else { return };
    if let Some(cpu) = vcpus.cpus.iter().find(|cpu| !allowed.is_set(**cpu)) {
        let what =
            format!("names host CPU {cpu}, which is not online or not this process's to use");
        errors.push(finding("vcpus.cpus", what));
    }
    if vcpus.count > allowed.count() {
        let what = format!(
            "is {}, and this process may use {} CPUs: vCPUs will wait for each other",
            vcpus.count,
            allowed.count()
        );
        warnings.push(finding("vcpus.count", what));
    }
}

/// A socket that somebody has to serve first.
fn served(at: String, path: &Path, start: &str) -> Option<Finding> {
    let is_socket = path.metadata().is_ok_and(|m| m.file_type().is_socket());
    let what = || format!("there is no socket {} yet: start {start} first", path.display());
    (!is_socket).then(|| finding(at, what()))
}

/// What device number `index` opens, tried as it is opened, and let go again.
fn device_of(
    index: usize,
    device: &Device,
    errors: &mut Vec<Finding>,
    warnings: &mut Vec<Finding>,
) {
    let at = |key: &str| format!("device[{index}].{key}");
    let driver = |path: &str, key: &str, mend: &str| {
        access(path, Access::READ_OK | Access::WRITE_OK)
            .err()
            .map(|e| finding(at(key), format!("{path}: {e}: {mend}")))
    };
    match device {
        Device::Blk(disk) => {
            if let Err(e) = blk::look(&disk.source) {
                let what = format!("{:#}", anyhow::Error::new(e));
                errors.push(finding(at("path"), what));
            }
        }
        Device::Net(net) => match &net.port {
            NetPort::Tap(name) => {
                let mend = "load the module (`sudo modprobe tun`), or leave the card out";
                errors.extend(driver("/dev/net/tun", "tap", mend));
                let there =
                    name.as_ref().is_some_and(|t| Path::new("/sys/class/net").join(t).exists());
                if !there {
                    let what = "is a tap that is made, which takes CAP_NET_ADMIN: as another user, make it before \
                                (`sudo ip tuntap add NAME mode tap vnet_hdr user $USER`)";
                    warnings.push(finding(at("tap"), what));
                }
            }
            NetPort::VhostUser(path) => {
                let start = "its server (`passt --vhost-user --socket PATH`)";
                warnings.extend(served(at("vhost_user"), path, start));
            }
        },
        Device::Vsock(_) => errors.extend(driver(
            "/dev/vhost-vsock",
            "type",
            "load the module (`sudo modprobe vhost_vsock`), or leave the device out",
        )),
        Device::Input(InputDevice::Evdev(path)) => {
            let mend = "name one of /dev/input/event*, and join its group (`sudo usermod -aG input $USER`)";
            errors.extend(driver(&path.to_string_lossy(), "evdev", mend));
        }
        Device::Console(console) => {
            if let Output::Socket(path) = &console.output {
                errors.extend(socket(&at("output"), path));
            }
        }
        Device::VfioUser(vfio) => {
            warnings.extend(served(at("socket"), &vfio.socket, "`beamline host`"));
        }
        Device::Rng | Device::Balloon | Device::Input(InputDevice::Kind(_)) => {}
    }
}

/// Two names of one disk, of which one writes. The same name twice is refused when the file is read.
fn same_file(devices: &[Device], errors: &mut Vec<Finding>) {
    let disks: Vec<_> = devices
        .iter()
        .enumerate()
        .filter_map(|(index, device)| {
            let Device::Blk(disk) = device else { return None };
            let file = disk.source.path.metadata().ok()?;
            Some((index, (file.dev(), file.ino()), disk.source.readonly))
        })
        .collect();
    for (place, (index, file, readonly)) in disks.iter().enumerate() {
        let twin = disks[..place].iter().find(|(_, f, ro)| f == file && !(*ro && *readonly));
        if let Some((twin, ..)) = twin {
            let what = format!(
                "is the file of device[{twin}], by another name: it can be there twice only if both are readonly"
            );
            errors.push(finding(format!("device[{index}].path"), what));
        }
    }
}

/// What keeps a socket from being made at `path`.
fn socket(place: &str, path: &Path) -> Option<Finding> {
    let at = path.display();
    match path.symlink_metadata() {
        Ok(m) if !m.file_type().is_socket() => {
            Some(finding(place, format!("{at} exists and is not a socket: choose another path")))
        }
        Ok(_) => UnixStream::connect(path).is_ok().then(|| {
            finding(place, format!("{at}: somebody listens there already: choose another path"))
        }),
        Err(_) => None,
    }
}

/// The report for people.
fn text(report: &Report) -> String {
    let Report { memory, vcpus, boot, .. } = report;
    let mut text = format!("guest {}\n", report.name);
    let mut line = |key: &str, value: String| text.push_str(&format!("  {key:<9} {value}\n"));
    line(
        "memory",
        format!(
            "{} of the host's {}, of which {} are free",
            mib(memory.bytes),
            mib(memory.host_bytes),
            mib(memory.available_bytes)
        ),
    );
    let mut cpus = match vcpus.cpus.as_slice() {
        [] => format!("{} on any CPU", vcpus.count),
        cpus => format!("{} on CPUs {cpus:?}", vcpus.count),
    };
    if vcpus.nice != 0 {
        cpus.push_str(&format!(", nice {}", vcpus.nice));
    }
    if let Some(slice) = vcpus.slice_us {
        cpus.push_str(&format!(", slices of {slice} µs"));
    }
    line("vCPUs", cpus);
    let kind = boot.kind.map(|kind| format!(" ({kind})")).unwrap_or_default();
    line("image", format!("{}{kind}", boot.image.display()));
    if let Some(initrd) = &boot.initrd {
        line("initrd", initrd.display().to_string());
    }
    line("cmdline", boot.cmdline.clone());
    line("on reset", boot.on_reset.into());
    for device in &report.devices {
        let opens = device.opens.as_deref().unwrap_or("");
        line(&device.pci, format!("{:<15} {opens}", device.kind).trim_end().to_owned());
    }
    if let Some(api) = &report.api {
        line("API", api.display().to_string());
    }
    line("KVM", report.kvm.clone());
    for warning in &report.warnings {
        text.push_str(&format!("warning: {}: {}\n", warning.place, warning.what));
    }
    if report.ok {
        text.push_str(&format!("{}: no mistakes found\n", report.file.display()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_compared_with_what_the_host_has() {
        let host = read_memory("MemTotal:  2048 kB\nMemFree: 5 kB\nMemAvailable:   1024 kB\n");
        assert_eq!((host.total, host.available), (2 << 20, 1 << 20));
        assert_eq!(memory(1 << 20, host), (None, None));
        let (error, warning) = memory((1 << 20) + 1, host);
        assert!(error.is_none() && warning.unwrap().what.contains("free"));
        let (error, warning) = memory((2 << 20) + 1, host);
        assert!(error.unwrap().what.contains("less") && warning.is_none());
        let unknown = read_memory("MemTotal: x kB");
        assert_eq!(memory(1 << 60, unknown), (None, None));
    }

    #[test]
    fn images_are_known_by_their_magic() {
        let folder = tempfile::tempdir().unwrap();
        let kind = |bytes: &[u8]| {
            let path = folder.path().join("image");
            std::fs::write(&path, bytes).unwrap();
            image_kind(&File::open(path).unwrap())
        };
        let mut kernel = vec![0; 0x206];
        kernel[0x202..].copy_from_slice(b"HdrS");
        assert_eq!(kind(&kernel), Some("bzImage"));
        assert_eq!(kind(b"\x7fELF"), Some("ELF"));
        assert_eq!((kind(b""), kind(&kernel[..0x205])), (None, None));
    }

    #[test]
    fn sockets_that_are_in_use_or_none_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        assert_eq!(socket("api.socket", &path), None);
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(socket("api.socket", &path).unwrap().what.contains("already"));
        drop(listener);
        assert_eq!(socket("api.socket", &path), None, "a dead one is replaced");
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "").unwrap();
        assert!(socket("api.socket", &path).unwrap().what.contains("not a socket"));
    }
}
