//! What the VMM costs beside QEMU's, by counted instructions: `make bench-bed`. Both run the same kernel on the same
//! processor in software, one after the other in one outer guest.
//!
//! QEMU executes the outer guest by `-icount`: time passes there as instructions are executed, and an idle processor
//! skips to the next event. So the time in which the outer guest's only CPU was not idle, divided by the time per
//! instruction, is how many instructions everything took: VMM, KVM, both kernels and the guest's programs. The outer
//! kernel tells both times in steps of 10 ms.

use crate::bed::Bed;
use crate::guest::{COUNTED_NS, COUNTED_TIME, Guest, Hardware, Iommu, Machine};
use crate::linux::{INNER, OUTER, hardware, put, share};
use crate::{turn, words};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

/// Counting makes both guests slow.
const PATIENCE: Duration = Duration::from_mins(20);
/// The disk that is read and written, and the file that goes over the network, each way: bytes.
const DISK: u64 = 128 << 20;
const FILE: u64 = 64 << 20;

/// The inner guest's first process: it says when it runs, does what the command line asks for, and ends. The same for
/// both VMMs.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
echo "@up"
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
job=$(sed 's/.*job=//' /proc/cmdline)
case $job in
disk)
    modprobe virtio_blk
    echo "@read"
    dd if=/dev/vda of=/dev/null bs=256k iflag=direct 2>/dev/null
    echo "@write"
    dd if=/dev/zero of=/dev/vda bs=256k count=BLOCKS oflag=direct 2>/dev/null
    echo "@done"
    ;;
net)
    modprobe virtio_net
    mkdir -p /tmp/web
    dd if=/dev/zero of=/tmp/web/inner bs=64k count=PIECES 2>/dev/null
    net=$(basename /sys/class/net/e*)
    ip addr add 10.9.0.2/24 dev $net
    ip link set $net up
    httpd -p 10.9.0.2:80 -h /tmp/web
    until ping -c 1 -W 1 10.9.0.1 >/dev/null; do sleep 0.1; done
    echo "@fetch"
    wget -q -O /dev/null http://10.9.0.1/outer
    echo "@serve"
    # Until the outer guest has it, and says so.
    until [ -e /tmp/web/end ]; do
        wget -q -O /tmp/web/end http://10.9.0.1/end 2>/dev/null || { rm -f /tmp/web/end; sleep 0.1; }
    done
    echo "@done"
    ;;
esac
poweroff -f
"#;

/// The outer guest's part: each VMM from memory, so that none is read over 9p while it is measured.
fn outer(job: &str) -> String {
    let pieces = FILE >> 16;
    format!(
        r#"{OUTER}
for module in tun virtio_net; do modprobe $module || exit; done
mkdir -p /tmp/vmm /tmp/web
cp -r /share/* /tmp/vmm || exit
export LD_LIBRARY_PATH=/tmp/vmm
truncate -s {DISK} /tmp/disk.img
dd if=/dev/zero of=/tmp/disk.img bs=64k count={} 2>/dev/null
dd if=/dev/zero of=/tmp/web/outer bs=64k count={pieces} 2>/dev/null
tunctl -t fig0 >/dev/null
ip addr add 10.9.0.1/24 dev fig0
ip link set fig0 up
httpd -p 10.9.0.1:80 -h /tmp/web
now() {{ read up idle </proc/uptime; echo "figure: vmm=$vmm at=$1 up=$up idle=$idle"; }}
ours() {{ /tmp/vmm/beamline run /tmp/vmm/$1.toml; }}
qemu() {{
    machine=$1
    shift
    /tmp/vmm/qemu/ld-linux-x86-64.so.2 --library-path /tmp/vmm/qemu /tmp/vmm/qemu/qemu-system-x86_64 \
        -L /tmp/vmm/qemu -nodefaults -no-user-config -display none -no-reboot -serial stdio -accel kvm -cpu host \
        -smp 1 -m 256 -M $machine -kernel /tmp/vmm/vmlinuz -initrd /tmp/vmm/initrd \
        -append "{CMDLINE}{job}" $*
}}
follow() {{
    while read -r line; do
        line=${{line#{INNER}}}
        case $line in
        @serve*)
            now serve
            wget -q -O /dev/null http://10.9.0.2/inner
            now served
            touch /tmp/web/end
            ;;
        @*) now $(echo "${{line#@}}" | tr -d '\r') ;;
        *) echo "$vmm: $line" ;;
        esac
    done
}}
for vmm in ours qemu; do
    rm -f /tmp/web/end
    now start
    case $vmm in
    ours) ours {job} ;;
    qemu) qemu {} ;;
    esac </dev/null 2>&1 | follow
done
"#,
        DISK >> 16,
        qemu(job),
    )
}

/// QEMU, what loads it, and what its machines start with.
const QEMU_FILES: [&str; 7] = [
    "usr/bin/qemu-system-x86_64",
    "lib64/ld-linux-x86-64.so.2",
    "usr/share/seabios/bios-microvm.bin",
    "usr/share/seabios/bios-256k.bin",
    "usr/share/qemu/kvmvapic.bin",
    "usr/share/qemu/linuxboot_dma.bin",
    "usr/share/qemu/pvh.bin",
];

/// The kernel's command line, up to the job.
const CMDLINE: &str = "console=ttyS0 panic=-1 quiet rdinit=/inner job=";

/// QEMU's machine for a job, and its devices. What starts fastest is its `microvm`; disks and networks of ours are PCI
/// functions, and so are those that they are compared with.
fn qemu(job: &str) -> &'static str {
    match job {
        "boot" => "microvm",
        "disk" => {
            "q35 -drive file=/tmp/disk.img,format=raw,if=none,id=disk -device virtio-blk-pci,drive=disk"
        }
        "net" => {
            "q35 -netdev tap,ifname=fig0,script=no,downscript=no,id=net -device virtio-net-pci,netdev=net,romfile="
        }
        other => unreachable!("{other}"),
    }
}

/// Our own guest's devices for a job.
fn device(job: &str) -> &'static str {
    match job {
        "disk" => "[[device]]\ntype = \"virtio-blk\"\npath = \"/tmp/disk.img\"\nformat = \"raw\"\n",
        "net" => "[[device]]\ntype = \"virtio-net\"\ntap = \"fig0\"\n",
        _ => "",
    }
}

/// QEMU with all that it loads, in the folder `to`.
fn put_qemu(bed: &Bed, to: &Path) {
    std::fs::create_dir(to).unwrap();
    let mut list = bed.debian_program("usr/bin/qemu-system-x86_64");
    let said = list.env("LD_TRACE_LOADED_OBJECTS", "1").output().unwrap();
    assert!(said.status.success(), "{said:?}");
    let text = String::from_utf8(said.stdout).unwrap();
    // Lines of the form `NAME => PATH (ADDRESS)`. What loads them is not among those.
    let libraries = text.lines().filter_map(|line| line.trim().split_once(" => ")).map(|l| l.0);
    let libraries: BTreeSet<String> = libraries
        .filter(|name| !name.contains('/'))
        .map(|name| format!("usr/lib/x86_64-linux-gnu/{name}"))
        .collect();
    for path in libraries.iter().map(String::as_str).chain(QEMU_FILES) {
        let from = bed.debian(path);
        put(&from, &to.join(from.file_name().expect("a file has a name")));
    }
}

/// Everything that is said of a job by both.
fn run(bed: &Bed, job: &str) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let shared = folder.path().join("share");
    let init = INIT
        .replace("BLOCKS", &(DISK >> 18).to_string())
        .replace("PIECES", &(FILE >> 16).to_string());
    let config = format!(
        "[guest]\nname = \"inner\"\nimage = \"vmlinuz\"\ninitrd = \"initrd\"\ncmdline = \"{CMDLINE}{job}\"\n\
         [memory]\nsize = \"256M\"\n[vcpus]\ncount = 1\n{}",
        device(job)
    );
    share(bed, &shared, &init, &[], &[(&format!("{job}.toml"), &config)]);
    put_qemu(bed, &shared.join("qemu"));
    let script = outer(job);
    let hardware =
        Hardware { engine: &COUNTED_TIME, memory: "2G", patience: PATIENCE, ..hardware(&shared) };
    let words = "mitigations=off";
    let machine =
        Machine { script: &script, programs: &[], devices: vec![], iommu: Iommu::None, words };
    Guest::start_on(bed, folder.path(), &machine, &hardware).finish()
}

/// Instructions between two events of a VMM.
fn instructions(said: &[String], vmm: &str, from: &str, to: &str) -> f64 {
    let busy = |at: &str| -> f64 {
        let lines = said.iter().filter_map(|line| line.strip_prefix("figure: ")).map(words);
        let found: Vec<_> = lines.filter(|e| e["vmm"] == vmm && e["at"] == at).collect();
        assert_eq!(found.len(), 1, "{vmm} says {at} once: {said:#?}");
        let seconds = |key: &str| -> f64 { found[0][key].parse().unwrap() };
        seconds("up") - seconds("idle")
    };
    (busy(to) - busy(from)) * 1e9 / COUNTED_NS
}

/// Prints both VMMs' instructions and their ratio; whether that is at most `limit`.
fn compare(said: &[String], what: &str, from: &str, to: &str, bytes: Option<u64>, limit: f64) {
    let [ours, theirs] = ["ours", "qemu"].map(|vmm| instructions(said, vmm, from, to));
    let ratio = ours / theirs;
    let shown = |count: f64| match bytes {
        Some(bytes) => format!("{:.2} instructions per byte", count / bytes as f64),
        None => format!("{:.1} million instructions", count / 1e6),
    };
    let verdict = if ratio <= limit { "met" } else { "missed" };
    println!(
        "{what}: {} over QEMU's {}: {ratio:.2}× (counted), ≤ {limit}×: {verdict}",
        shown(ours),
        shown(theirs)
    );
}

#[test]
#[ignore = "a benchmark: make bench-bed"]
fn instructions_to_user_space() {
    let Some(bed) = Bed::ready("instructions_to_user_space") else { return };
    let _turn = turn();
    let said = run(&bed, "boot");
    compare(
        &said,
        "start of the VMM to the guest's user space (QEMU: microvm)",
        "start",
        "up",
        None,
        1.0,
    );
}

#[test]
#[ignore = "a benchmark: make bench-bed"]
fn instructions_per_byte_of_a_disk() {
    let Some(bed) = Bed::ready("instructions_per_byte_of_a_disk") else { return };
    let _turn = turn();
    let said = run(&bed, "disk");
    compare(&said, "virtio-blk, read", "read", "write", Some(DISK), 1.1);
    compare(&said, "virtio-blk, written", "write", "done", Some(DISK), 1.1);
}

#[test]
#[ignore = "a benchmark: make bench-bed"]
fn instructions_per_byte_of_a_network() {
    let Some(bed) = Bed::ready("instructions_per_byte_of_a_network") else { return };
    let _turn = turn();
    let said = run(&bed, "net");
    compare(&said, "virtio-net, to the guest", "fetch", "serve", Some(FILE), 1.1);
    compare(&said, "virtio-net, from the guest", "serve", "served", Some(FILE), 1.1);
}
