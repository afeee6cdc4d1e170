//! A stock Linux kernel on Beamline's own VMM, which runs on `/dev/kvm` in the bed's guest: QEMU's processor in
//! software has SVM, and `kvm_amd` uses it. So there are two kernels: the outer one, QEMU's guest, and the
//! inner one, Beamline's.

use crate::bed::Bed;
use crate::guest::{Guest, Hardware, Iommu, Machine};
use crate::{turn, words};
use beamline_abi::pacer;
use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;
use std::process::Command;

/// A processor that QEMU models with SVM and nested paging.
const CPU: &str = "EPYC-v4";
/// What the inner guest's lines start with: its name in `beamline run`.
pub(crate) const INNER: &str = "inner: ";
/// The inner guest's CPUs.
pub(crate) const CPUS: usize = 2;

/// What the outer guest does first. Its own terminal is the test's line, and not the inner guest's.
pub(crate) const OUTER: &str = r"
set -e
modprobe kvm_amd
modprobe 9pnet_virtio
modprobe 9p
mkdir /share
mount -t 9p -o trans=virtio,version=9p2000.L,cache=loose,msize=262144 share /share
# It needs its libraries, and what loads them where the command says that it is.
mkdir -p /lib64
ln -s /share/ld-linux-x86-64.so.2 /lib64
export LD_LIBRARY_PATH=/share
beamline() {
    /share/beamline $* </dev/null
}
set +e
";

/// The inner guest's first process. What it says goes to the serial port.
pub(crate) const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
echo "up: release=$(uname -r) cpus=$(nproc) clock=$(date +%s) memory=$(awk '/MemTotal/ { print $2 }' /proc/meminfo)"
awk '/^apicid/ { print "cpu: apicid=" $3 }' /proc/cpuinfo
sed 's/^/interrupt: /' /proc/interrupts
for function in /sys/bus/pci/devices/*; do
    echo "pci: at=$(basename $function) vendor=$(cat $function/vendor) device=$(cat $function/device)" \
        "bytes=$(stat -c %s $function/config)"
done
"#;

/// The folder that the outer guest sees: the command with its libraries, the kernel, the inner guest's
/// initrd, with `programs` in its root, and configurations.
pub(crate) fn share(
    bed: &Bed,
    folder: &Path,
    init: &str,
    programs: &[(&str, Vec<u8>)],
    files: &[(&str, &str)],
) {
    std::fs::create_dir(folder).unwrap();
    put(&bed.beamline, &folder.join("beamline"));
    put(&bed.kernel, &folder.join("vmlinuz"));
    for library in libraries(&bed.beamline) {
        put(&library, &folder.join(library.file_name().expect("a library has a name")));
    }
    let mut initrd = crate::archive::Initramfs::on(&bed.initramfs).file("inner", init.as_bytes());
    for (name, bytes) in programs {
        initrd = initrd.file(name, bytes);
    }
    std::fs::write(folder.join("initrd"), initrd.finish()).unwrap();
    for (name, text) in files {
        std::fs::write(folder.join(name), text).unwrap();
    }
}

/// A second name where that can be had, else a copy.
///
/// # Panics
/// Where `to` is there: it may be another name of `from`, which a copy would empty.
pub(crate) fn put(from: &Path, to: &Path) {
    assert!(!to.exists(), "{} is there already", to.display());
    let from = std::fs::canonicalize(from).unwrap();
    if std::fs::hard_link(&from, to).is_err() {
        std::fs::copy(&from, to).unwrap();
    }
}

/// The libraries of a program, and what loads them: the paths in what `ldd` says.
fn libraries(program: &Path) -> Vec<std::path::PathBuf> {
    let said = Command::new("ldd").arg(program).output().unwrap();
    assert!(said.status.success(), "ldd {}: {}", program.display(), said.status);
    let text = String::from_utf8(said.stdout).unwrap();
    text.split_whitespace().filter(|word| word.starts_with('/')).map(Into::into).collect()
}

/// The inner guest's configuration: `init` is its first process, `memory` its RAM.
pub(crate) fn config(memory: &str, more: &str) -> String {
    format!(
        "[guest]\nname = \"inner\"\nimage = \"vmlinuz\"\ninitrd = \"initrd\"\n\
         cmdline = \"console=ttyS0 panic=-1 quiet rdinit=/inner\"\n\
         [memory]\nsize = \"{memory}\"\n[vcpus]\ncount = {CPUS}\n{more}"
    )
}

/// Runs `script` in the outer guest; everything that both have said.
pub(crate) fn run(bed: &Bed, folder: &Path, script: &str) -> Vec<String> {
    start(bed, folder, &format!("{OUTER}{script}")).finish()
}

/// Starts the outer guest.
fn start(bed: &Bed, folder: &Path, script: &str) -> Guest {
    start_with(bed, folder, script, vec![])
}

/// The outer guest's, which sees the folder `share`.
pub(crate) fn hardware(share: &Path) -> Hardware<'_> {
    Hardware { cpu: CPU, memory: "5G", share: Some(share), ..Hardware::default() }
}

/// Starts an outer guest that has further devices of QEMU.
pub(crate) fn start_with(bed: &Bed, folder: &Path, script: &str, devices: Vec<String>) -> Guest {
    let machine =
        Machine { script, programs: &[], devices, iommu: Iommu::None, words: "mitigations=off" };
    let share = folder.join("share");
    let hardware = hardware(&share);
    Guest::start_on(bed, folder, &machine, &hardware)
}

/// The lines of the inner guest that start with `start`, without that.
pub(crate) fn inner<'a>(said: &'a [String], start: &str) -> Vec<&'a str> {
    said.iter().filter_map(|line| line.strip_prefix(INNER)?.strip_prefix(start)).collect()
}

fn hex(text: &str) -> u64 {
    u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap()
}

/// How often each CPU had the interrupt whose line has all of `names`.
fn counts(said: &[String], names: &[&str]) -> Vec<u64> {
    let lines = inner(said, "interrupt: ");
    let line = lines.iter().find(|line| names.iter().all(|name| line.contains(name)));
    let line = line.unwrap_or_else(|| panic!("no interrupt has {names:?}: {lines:#?}"));
    line.split_whitespace().skip(1).take(CPUS).map(|n| n.parse().unwrap()).collect()
}

#[test]
fn a_stock_kernel_boots_on_two_cpus_and_switches_off() {
    let Some(bed) = Bed::ready("a_stock_kernel_boots_on_two_cpus_and_switches_off") else { return };
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    // More RAM than there is room below the PCI window; pages that nobody touches cost nothing.
    let init = format!("{INIT}poweroff -f\n");
    share(&bed, &folder.path().join("share"), &init, &[], &[("linux.toml", &config("4G", ""))]);
    let said = run(
        &bed,
        folder.path(),
        "echo before: clock=$(date +%s)\n\
         beamline run /share/linux.toml\n\
         echo ended: status=$?\n\
         echo after: clock=$(date +%s)\n",
    );

    let up = inner(&said, "up: ");
    let up = words(up.first().expect("the inner guest's user space says that it is up"));
    assert_eq!(up["cpus"], "2");
    let memory: u64 = up["memory"].parse().unwrap();
    assert!(memory > 3 << 20, "RAM above 4 GiB is missing: {memory} KiB");
    let ids: BTreeSet<&str> = inner(&said, "cpu: ").iter().map(|l| words(l)["apicid"]).collect();
    assert_eq!(ids, ["0", "1"].into());

    // Both CPUs run, and wake each other; the serial port and power management have their interrupts.
    let timers = counts(&said, &["LOC:"]);
    assert!(timers.iter().all(|n| *n > 0), "{timers:?}");
    assert!(counts(&said, &["RES:"]).iter().sum::<u64>() > 0);
    assert!(counts(&said, &["IO-APIC", "4-edge", "ttyS0"]).iter().sum::<u64>() > 0);
    counts(&said, &["IO-APIC", "9-fasteoi", "acpi"]);

    // The clock was right: it is the outer guest's.
    let outer = |start: &str| {
        let line = said.iter().find(|line| line.starts_with(start)).expect("it is said");
        words(line)["clock"].parse::<u64>().unwrap()
    };
    let clock = up["clock"].parse().unwrap();
    // Each is cut to whole seconds.
    assert!((outer("before: ") - 1..=outer("after: ") + 1).contains(&clock), "{clock}");

    // The host bridge, by the window for configuration space: else it has 256 bytes.
    let bridge = inner(&said, "pci: ");
    let bridge = words(bridge.first().expect("the bus has a host bridge"));
    assert_eq!((bridge["at"], bridge["bytes"]), ("0000:00:00.0", "4096"));
    assert_eq!(hex(bridge["vendor"]), u64::from(pacer::VENDOR_ID));

    // ACPI's S5 ended it.
    assert!(said.iter().any(|line| line == "ended: status=0"), "{:?}", said.last());
}

/// The ELF image in a bzImage (linux: Documentation/arch/x86/boot.rst, `payload_offset`), which Debian packs
/// with zstd.
fn vmlinux(bzimage: &[u8]) -> Vec<u8> {
    let word = |at: usize| u32::from_le_bytes(bzimage[at..at + 4].try_into().unwrap()) as usize;
    let sectors = usize::from(bzimage[0x1f1]);
    let payload = (sectors + 1) * 512 + word(0x248);
    // Its last 4 bytes are the unpacked size.
    let packed = &bzimage[payload..payload + word(0x24c) - 4];
    let mut elf = Vec::new();
    let mut unpacker = ruzstd::decoding::StreamingDecoder::new(packed).unwrap();
    unpacker.read_to_end(&mut elf).unwrap();
    elf
}

#[test]
fn a_stock_kernel_boots_by_the_pvh_protocol() {
    let Some(bed) = Bed::ready("a_stock_kernel_boots_by_the_pvh_protocol") else { return };
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let config = config("256M", "").replace("vmlinuz", "vmlinux");
    let init = format!("{INIT}poweroff -f\n");
    share(&bed, &folder.path().join("share"), &init, &[], &[("linux.toml", &config)]);
    let elf = vmlinux(&std::fs::read(&bed.kernel).unwrap());
    std::fs::write(folder.path().join("share/vmlinux"), elf).unwrap();
    let said = run(&bed, folder.path(), "beamline run /share/linux.toml\necho ended: status=$?\n");
    let up = inner(&said, "up: ");
    let up = words(up.first().expect("the inner guest's user space says that it is up"));
    assert_eq!(up["cpus"], "2");
    counts(&said, &["IO-APIC", "9-fasteoi", "acpi"]);
    assert!(said.iter().any(|line| line == "ended: status=0"), "{said:#?}");
}

#[test]
fn a_guest_is_typed_to_and_boots_again_after_its_reset() {
    let test = "a_guest_is_typed_to_and_boots_again_after_its_reset";
    let Some(bed) = Bed::ready(test) else { return };
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let init = "#!/bin/busybox sh\n\
        /bin/busybox echo up\n\
        read -r word\n\
        /bin/busybox echo typed: $word\n\
        [ $word = again ] && /bin/busybox reboot -f\n\
        /bin/busybox poweroff -f\n";
    let config = config("128M", "").replace("[memory]", "on_reset = \"reboot\"\n[memory]");
    share(&bed, &folder.path().join("share"), init, &[], &[("linux.toml", &config)]);
    // The outer guest's terminal is the inner one's console: there are no lines with its name then.
    let script = format!(
        "{OUTER}/share/beamline run /share/linux.toml\n\
         echo ended: status=$?\n"
    );
    let mut guest = start(&bed, folder.path(), &script);
    for word in ["again", "enough"] {
        guest.until("up");
        guest.say(word);
        guest.until(&format!("typed: {word}"));
    }
    let said = guest.finish();
    assert!(said.iter().any(|line| line == "ended: status=0"), "{said:#?}");
}

#[test]
fn a_slices_functions_work_behind_our_own_vmm() {
    let Some(bed) = Bed::ready("a_slices_functions_work_behind_our_own_vmm") else { return };
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let host = "run_dir = \"/run\"\n[gpu]\nbackend = \"model\"\n\
        [[slice]]\nname = \"one\"\nwidth = 640\nheight = 480\nprofile = \"display\"\n\
        [slice.contract]\nrefresh_hz = \"60\"\nclass = \"elastic\"\n\
        budget_ms = 2.0\nmax_job_ms = 2.0\n";
    let devices = ["pacer", "gpu"].map(|function| {
        format!(
            "[[device]]\ntype = \"vfio-user\"\nsocket = \"/run/one-{function}.sock\"\n\
             timeout_ms = 60000\n"
        )
    });
    let init = format!(
        "{INIT}modprobe virtio_gpu\n\
         echo driver: name=$(basename $(readlink /sys/bus/pci/devices/0000:00:02.0/virtio*/driver))\n\
         echo card: status=$(cat /sys/class/drm/card0-Virtual-1/status) \
         mode=$(head -n 1 /sys/class/drm/card0-Virtual-1/modes)\n\
         sed 's/^/after: /' /proc/interrupts\n\
         poweroff -f\n"
    );
    let files = [("host.toml", host), ("linux.toml", &config("256M", &devices.concat()))];
    share(&bed, &folder.path().join("share"), &init, &[], &files);
    let said = run(
        &bed,
        folder.path(),
        "mkdir -p /run\n\
         beamline host /share/host.toml &\n\
         beamline run /share/linux.toml\n\
         echo ended: status=$?\n\
         killall beamline\n\
         wait\n",
    );

    let function = |at: &str| {
        let all: Vec<_> = inner(&said, "pci: ").into_iter().map(words).collect();
        let found = all.iter().find(|w| w["at"] == at).expect("the function is on the bus");
        (hex(found["vendor"]), hex(found["device"]))
    };
    let ids = (u64::from(pacer::VENDOR_ID), u64::from(pacer::DEVICE_ID));
    assert_eq!(function("0000:00:01.0"), ids);
    // virtio 1.3, section 4.1.2: device 0x1040 and the device type, 16 for a GPU.
    assert_eq!(function("0000:00:02.0"), (0x1af4, 0x1050));
    assert_eq!(inner(&said, "driver: "), ["name=virtio_gpu"]);
    assert_eq!(inner(&said, "card: "), ["status=connected mode=640x480"]);
    // The driver asked by a doorbell and had its answers by the function's interrupt.
    let lines = inner(&said, "after: ");
    let control = lines.iter().find(|l| l.contains("PCI-MSIX") && l.contains("virtio0-control"));
    let control = control.unwrap_or_else(|| panic!("no interrupt of the vGPU: {lines:#?}"));
    let counts = control.split_whitespace().skip(1).take(CPUS);
    assert!(counts.map(|n| n.parse::<u64>().unwrap()).sum::<u64>() > 0, "{control}");
    assert!(said.iter().any(|line| line == "ended: status=0"), "{said:#?}");
}
