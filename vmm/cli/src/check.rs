//! `beamline run --check`: what a guest's file makes, and what stands in its way on this machine.

use crate::api::json::DeviceJson;
use crate::device;
use crate::failure::refused;
use crate::output;
use beamline_vmm::boot::{self, BootError, INITRD, Kind};
use beamline_vmm::config::{self, Boot, Device, Image, InputDevice, NetPort, OnReset};
use beamline_vmm::devices::virtio::blk;
use beamline_vmm::devices::virtio::console::Output;
use beamline_vmm::probe::{self, KvmKind};
use beamline_vmm::{Config, hyperv, memory, turn};
use rustix::fs::{Access, access};
use serde::Serialize;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
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
    #[serde(skip_serializing_if = "Vec::is_empty")]
    nodes: Vec<Node>,
    boot: BootReport,
    devices: Vec<DeviceJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    api: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tpm: Option<PathBuf>,
    kvm: String,
    errors: Vec<Finding>,
    warnings: Vec<Finding>,
}

#[derive(Debug, Serialize)]
struct Memory {
    bytes: u64,
    /// What the host has in all, swap included, and could give now.
    host_bytes: u64,
    available_bytes: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Vcpus {
    count: u32,
    /// Host CPUs; empty: any.
    cpus: Vec<usize>,
    nice: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    slice_us: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    realtime: Option<u32>,
    /// It finds Microsoft's hypervisor.
    hyperv: bool,
}

/// A NUMA node of the guest.
#[derive(Debug, Serialize)]
struct Node {
    bytes: u64,
    vcpus: Vec<u32>,
    /// Nodes of the host; empty: any.
    host_nodes: Vec<u32>,
    distances: Vec<u8>,
}

impl Node {
    fn of(node: &config::Node) -> Self {
        let config::Node { memory, vcpus, host_nodes, distances } = node.clone();
        Self { bytes: memory, vcpus, host_nodes, distances }
    }

    /// For people.
    fn text(&self) -> String {
        let mut text = format!("{}, vCPUs {:?}", mib(self.bytes), self.vcpus);
        if !self.host_nodes.is_empty() {
            text.push_str(&format!(", of host nodes {:?}", self.host_nodes));
        }
        text + &format!(", distances {:?}", self.distances)
    }
}

#[derive(Debug, Serialize)]
struct BootReport {
    #[serde(flatten)]
    what: What,
    on_reset: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum What {
    Image {
        image: PathBuf,
        /// `bzImage` or `ELF`.
        kind: Option<&'static str>,
        initrd: Option<PathBuf>,
        cmdline: String,
    },
    Firmware {
        firmware: PathBuf,
        variables: PathBuf,
    },
}

/// What keeps the guest of `config` from running: the first of what is found out without making anything. Folders and
/// files are made next, and a guest that cannot run leaves none.
pub(crate) fn before(config: &Config, path: &Path) -> anyhow::Result<()> {
    let found =
        boot_of(&config.guest.boot).and_then(|_| memory_of(config)).and_then(|()| turn_of(config));
    found.map_err(|f| refused(format!("{}: {}: {}", path.display(), f.place, f.what)))?;
    probe::opens().map_err(|kvm| refused(format!("{}: {kvm}", path.display())))
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
    let (mut errors, mut warnings) = (Vec::new(), Vec::new());
    let kind = boot_of(&config.guest.boot).map_err(|e| errors.push(e)).ok().flatten();
    let firmware = matches!(config.guest.boot, Boot::Firmware(_));
    errors.extend(memory_of(config).err());
    let bytes = config.memory.size;
    let (host_bytes, available_bytes) = (memory::host(), memory::available());
    // The pools' pages are not among those.
    if let Some(free) = available_bytes
        && (free..host_bytes).contains(&bytes)
        && config.memory.hugepages.is_none()
    {
        let what = format!(
            "is {}, and only {} of the host's is free: end something first, or give the guest less",
            mib(bytes),
            mib(free)
        );
        warnings.push(finding("memory.size", what));
    }
    cpus(config, &mut errors, &mut warnings);
    let kvm = probe::kvm();
    match kvm {
        KvmKind::Pvm if firmware || kind == Some(Kind::BzImage) => warnings.push(finding(
            "/dev/kvm",
            "is KVM-PVM, which boots no Linux kernel and no firmware: use a machine with hardware virtualisation",
        )),
        ref kvm if !kvm.usable() => errors.push(finding("/dev/kvm", kvm.to_string())),
        _ => {}
    }
    if config.vcpus.hyperv
        && kvm.usable()
        && let Err(e) = hyperv::check()
    {
        errors.push(finding("vcpus.hyperv", format!("{:#}", anyhow::Error::new(e))));
    }
    for (index, one) in config.functions().enumerate() {
        device_of(&place(config, index), one, &mut errors, &mut warnings);
    }
    same_file(config, &mut errors);
    if let Some(api) = &config.api {
        errors.extend(socket("api.socket", &api.socket));
    }
    if let Some(tpm) = &config.tpm {
        let start = "`swtpm socket --tpm2`";
        warnings.extend(served("tpm.socket".to_owned(), &tpm.socket, start));
    }
    let Config { guest, vcpus, .. } = config;
    Report {
        file: path.to_owned(),
        ok: errors.is_empty(),
        name: guest.name.clone(),
        memory: Memory { bytes, host_bytes, available_bytes },
        vcpus: Vcpus {
            count: vcpus.count,
            cpus: vcpus.cpus.clone(),
            nice: vcpus.nice,
            slice_us: vcpus.slice_us,
            realtime: vcpus.realtime,
            hyperv: vcpus.hyperv,
        },
        nodes: config.nodes.iter().map(Node::of).collect(),
        boot: BootReport {
            what: match &guest.boot {
                Boot::Image(image) => What::Image {
                    image: image.path.clone(),
                    kind: kind.map(Kind::name),
                    initrd: image.initrd.clone(),
                    cmdline: image.cmdline.clone(),
                },
                Boot::Firmware(firmware) => What::Firmware {
                    firmware: firmware.code.clone(),
                    variables: firmware.variables.clone(),
                },
            },
            on_reset: match guest.on_reset {
                OnReset::End => "end",
                OnReset::Reboot => "reboot",
            },
        },
        devices: device::list(config, |_| None),
        api: config.api.as_ref().map(|api| api.socket.clone()),
        tpm: config.tpm.as_ref().map(|tpm| tpm.socket.clone()),
        kvm: kvm.to_string(),
        errors,
        warnings,
    }
}

/// What is said where an image is missing.
const IMAGES: &str = "`make guest` builds the image that comes with beamline, and docs/guest.md tells how to take a \
                      kernel out of a disk image";

/// What the image is, if there is one, or what is wrong with the files that the guest boots.
fn boot_of(boot: &Boot) -> Result<Option<Kind>, Finding> {
    match boot {
        Boot::Image(image) => image_of(image).map(Some),
        Boot::Firmware(files) => match boot::firmware::check(files) {
            Ok(()) => Ok(None),
            Err(e) => Err(finding(e.key(), format!("{:#}", anyhow::Error::new(e)))),
        },
    }
}

/// What the image is, or what is wrong with it or the initrd.
fn image_of(image: &Image) -> Result<Kind, Finding> {
    boot::check(image).map_err(|error| {
        let missing = matches!(
            &error,
            BootError::Open { source, .. } if source.kind() == ErrorKind::NotFound
        );
        let of_initrd = matches!(
            &error,
            BootError::EmptyInitrd { .. }
                | BootError::Open { what: INITRD, .. }
                | BootError::Read { what: INITRD, .. }
        );
        let what = format!("{:#}", anyhow::Error::new(error));
        let what = if missing && !of_initrd { format!("{what}; {IMAGES}") } else { what };
        finding(if of_initrd { "guest.initrd" } else { "guest.image" }, what)
    })
}

/// What of the memory, and of the host's nodes, the host has not.
fn memory_of(config: &Config) -> Result<(), Finding> {
    memory::check(&config.memory, &config.nodes)
        .map_err(|e| finding("memory", format!("{:#}", anyhow::Error::new(e))))
}

/// What keeps the vCPUs from the priority that they are to have.
fn turn_of(config: &Config) -> Result<(), Finding> {
    turn::check(&config.vcpus).map_err(|e| finding("vcpus", e.to_string()))
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

fn cpus(config: &Config, errors: &mut Vec<Finding>, warnings: &mut Vec<Finding>) {
    errors.extend(turn_of(config).err());
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

/// The key of device number `index`.
fn place(config: &Config, index: usize) -> String {
    match index.checked_sub(config.devices.len()) {
        None => format!("device[{index}]"),
        Some(port) => format!("port[{port}].device"),
    }
}

/// What a device opens, tried as it is opened, and let go again.
fn device_of(place: &str, device: &Device, errors: &mut Vec<Finding>, warnings: &mut Vec<Finding>) {
    let at = |key: &str| format!("{place}.{key}");
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
fn same_file(config: &Config, errors: &mut Vec<Finding>) {
    let disks: Vec<_> = config
        .functions()
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
                "is the file of {}, by another name: it can be there twice only if both are readonly",
                self::place(config, *twin)
            );
            errors.push(finding(format!("{}.path", self::place(config, *index)), what));
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
            memory.available_bytes.map_or("nobody knows how many".into(), mib)
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
    if let Some(priority) = vcpus.realtime {
        cpus.push_str(&format!(", real-time priority {priority}"));
    }
    if vcpus.hyperv {
        cpus.push_str(", which find Hyper-V");
    }
    line("vCPUs", cpus);
    for (number, node) in report.nodes.iter().enumerate() {
        line(&format!("node {number}"), node.text());
    }
    match &boot.what {
        What::Image { image, kind, initrd, cmdline } => {
            let kind = kind.map(|kind| format!(" ({kind})")).unwrap_or_default();
            line("image", format!("{}{kind}", image.display()));
            if let Some(initrd) = initrd {
                line("initrd", initrd.display().to_string());
            }
            line("cmdline", cmdline.clone());
        }
        What::Firmware { firmware, variables } => {
            line("firmware", firmware.display().to_string());
            line("variables", variables.display().to_string());
        }
    }
    line("on reset", boot.on_reset.into());
    for device in &report.devices {
        let opens = device.opens.as_deref().unwrap_or("");
        let port = device::port_words(device.port.as_ref());
        line(&device.pci, format!("{:<15} {opens}{port}", device.kind).trim_end().to_owned());
    }
    if let Some(api) = &report.api {
        line("API", api.display().to_string());
    }
    if let Some(tpm) = &report.tpm {
        line("TPM", tpm.display().to_string());
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
