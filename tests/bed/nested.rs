//! A virtual machine in a virtual machine: Beamline's own VMM on `/dev/kvm` in the bed's guest. QEMU's processor in
//! software has SVM, and `kvm_amd` uses it. So there are two kernels: the outer one, QEMU's guest, and the inner one,
//! Beamline's.

use crate::bed::Bed;
use crate::guest::{Guest, Hardware, Iommu, Machine};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

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

/// For the outer guest: runs a command, and says what it said and how it ended.
const TRY: &str = r#"
try() {
    name=$1
    shift
    "$@" >/tmp/said 2>&1 </dev/null
    status=$?
    sed "s/^/$name: /" /tmp/said
    echo "$name: status=$status"
}
# Waits for a line of a file, for as long as the process lives whose file that is.
heard() {
    until grep -q "$2" $3; do
        kill -0 $1 2>/dev/null || { cat $3; exit 1; }
        sleep 0.3
    done
}
"#;

/// For several guests of a guest, one after the other, on a busy machine.
const PATIENCE: Duration = Duration::from_mins(12);

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
pub(crate) fn start(bed: &Bed, folder: &Path, script: &str) -> Guest {
    start_with(bed, folder, script, vec![])
}

/// The outer guest's, which sees the folder `share`.
pub(crate) fn hardware(share: &Path) -> Hardware<'_> {
    Hardware { cpu: CPU, memory: "5G", share: Some(share), ..Hardware::default() }
}

/// Starts an outer guest that does `script`, which may use `TRY`, and waits for longer than others do.
pub(crate) fn patiently(bed: &Bed, folder: &Path, script: &str) -> Guest {
    let script = &[OUTER, TRY, script].concat();
    let (programs, devices, words) = (&[][..], vec![], "mitigations=off");
    let machine = Machine { script, programs, devices, iommu: Iommu::None, words };
    let share = folder.join("share");
    let hardware = Hardware { patience: PATIENCE, ..hardware(&share) };
    Guest::start_on(bed, folder, &machine, &hardware)
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

/// The lines that start so, without that.
pub(crate) fn outer<'a>(said: &'a [String], start: &str) -> Vec<&'a str> {
    said.iter().filter_map(|line| line.strip_prefix(start)).collect()
}

/// What a command of `try` said, which ended with `status`.
pub(crate) fn tried(said: &[String], name: &str, status: &str) -> String {
    let lines = outer(said, &format!("{name}: "));
    assert_eq!(lines.last(), Some(&&*format!("status={status}")), "{name}: {said:#?}");
    lines.join("\n")
}
