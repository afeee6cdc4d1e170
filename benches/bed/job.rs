//! What both VMMs do, and how much was executed when they said where they are.

use crate::bed::Bed;
use crate::guest::{Guest, Hardware, Iommu, Machine};
use crate::nested::{INNER, OUTER, hardware, put, share};
use crate::process::words;
use anyhow::{Context, ensure};
use std::collections::BTreeSet;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Counting makes both guests slow.
const PATIENCE: Duration = Duration::from_mins(20);
/// The disk that is read and written, bytes.
pub(crate) const DISK: u64 = 128 << 20;
/// The file that goes over the network, each way, bytes.
pub(crate) const FILE: u64 = 64 << 20;
/// The inner kernel's command line, up to the job's name.
const CMDLINE: &str = "console=ttyS0 panic=-1 quiet rdinit=/inner job=";
/// What the outer guest's lines with an event start with.
const EVENT: &str = "event: ";

/// What the inner guest does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Job {
    /// It boots, and switches off.
    Boot,
    /// It reads a disk and writes it.
    Disk,
    /// It fetches a file and serves one.
    Network,
}

impl Job {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Boot => "boot",
            Self::Disk => "disk",
            Self::Network => "net",
        }
    }

    /// Our own guest's device.
    fn device(self) -> &'static str {
        match self {
            Self::Boot => "",
            Self::Disk => {
                "[[device]]\ntype = \"virtio-blk\"\npath = \"/tmp/disk.img\"\nformat = \"raw\"\n"
            }
            Self::Network => "[[device]]\ntype = \"virtio-net\"\ntap = \"fig0\"\n",
        }
    }

    /// QEMU's machine, and its device. What starts fastest is its `microvm`. Our disks and networks are PCI
    /// functions, and so are those that they are compared with.
    fn qemu(self) -> &'static str {
        match self {
            Self::Boot => "microvm",
            Self::Disk => {
                "q35 -drive file=/tmp/disk.img,format=raw,if=none,id=disk -device virtio-blk-pci,drive=disk"
            }
            Self::Network => {
                "q35 -netdev tap,ifname=fig0,script=no,downscript=no,id=net -device virtio-net-pci,netdev=net,romfile="
            }
        }
    }
}

/// The inner guest's first process, the same for both VMMs: it says when it runs, does its job, and ends.
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
    until wget -q -O /dev/null http://10.9.0.1/end 2>/dev/null; do sleep 0.1; done
    ;;
esac
poweroff -f
"#;

/// The outer guest's part: each VMM from memory, so that none is read over 9p while it is counted.
fn outer(job: Job) -> String {
    let pieces = FILE >> 16;
    format!(
        r#"{OUTER}
for module in tun virtio_net; do modprobe $module || exit; done
mkdir -p /tmp/vmm /tmp/web
cp -r /share/* /tmp/vmm || exit
export LD_LIBRARY_PATH=/tmp/vmm
dd if=/dev/zero of=/tmp/disk.img bs=64k count={} 2>/dev/null
dd if=/dev/zero of=/tmp/web/outer bs=64k count={pieces} 2>/dev/null
tunctl -t fig0 >/dev/null
ip addr add 10.9.0.1/24 dev fig0
ip link set fig0 up
httpd -p 10.9.0.1:80 -h /tmp/web
now() {{ echo "{EVENT}vmm=$vmm at=$1"; }}
ours() {{ /tmp/vmm/beamline run /tmp/vmm/job.toml; }}
qemu() {{
    machine=$1
    shift
    /tmp/vmm/qemu/ld-linux-x86-64.so.2 --library-path /tmp/vmm/qemu /tmp/vmm/qemu/qemu-system-x86_64 \
        -L /tmp/vmm/qemu -nodefaults -no-user-config -display none -no-reboot -serial stdio -accel kvm -cpu host \
        -smp 1 -m 256 -M $machine -kernel /tmp/vmm/vmlinuz -initrd /tmp/vmm/initrd \
        -append "{CMDLINE}{}" $*
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
    sync
    now start
    case $vmm in
    ours) ours ;;
    qemu) qemu {} ;;
    esac </dev/null 2>&1 | follow
    now end
done
"#,
        DISK >> 16,
        job.name(),
        job.qemu(),
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

/// QEMU with all that it loads, in the folder `to`.
fn put_qemu(bed: &Bed, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir(to).context("QEMU's folder")?;
    let mut list = bed.debian_program("usr/bin/qemu-system-x86_64");
    let said = list.env("LD_TRACE_LOADED_OBJECTS", "1").output().context("QEMU's libraries")?;
    ensure!(said.status.success(), "QEMU's libraries: {said:?}");
    let text = String::from_utf8(said.stdout).context("QEMU's libraries")?;
    // Lines of the form `NAME => PATH (ADDRESS)`. What loads them is not among those.
    let libraries = text.lines().filter_map(|line| line.trim().split_once(" => ")).map(|l| l.0);
    let libraries: BTreeSet<String> = libraries
        .filter(|name| !name.contains('/'))
        .map(|name| format!("usr/lib/x86_64-linux-gnu/{name}"))
        .collect();
    for path in libraries.iter().map(String::as_str).chain(QEMU_FILES) {
        let from = bed.debian(path);
        put(&from, &to.join(from.file_name().context("a file has a name")?));
    }
    Ok(())
}

/// An event, and what the outer processor had executed when it was said.
struct Event {
    vmm: String,
    at: String,
    instructions: u64,
}

/// All that both VMMs said of a job.
pub(crate) struct Said(Vec<Event>);

impl Said {
    /// Instructions between two events of a VMM.
    pub(crate) fn between(&self, vmm: &str, from: &str, to: &str) -> anyhow::Result<u64> {
        let count = |at: &str| {
            let mut found = self.0.iter().filter(|event| event.vmm == vmm && event.at == at);
            let event = found.next().with_context(|| format!("{vmm} did not say {at}"))?;
            ensure!(found.next().is_none(), "{vmm} said {at} twice");
            Ok(event.instructions)
        };
        count(to)?.checked_sub(count(from)?).with_context(|| format!("{to} came before {from}"))
    }
}

/// Asks the counter.
fn executed(socket: &Path) -> anyhow::Result<u64> {
    let mut bytes = [0; 8];
    let mut stream = UnixStream::connect(socket).context("the counter's socket")?;
    stream.read_exact(&mut bytes).context("the counter's answer")?;
    Ok(u64::from_le_bytes(bytes))
}

/// Has both VMMs do a job. Their files are in `folder`.
pub(crate) fn run(bed: &Bed, folder: &Path, counter: &Path, job: Job) -> anyhow::Result<Said> {
    let shared = folder.join("share");
    let init = INIT
        .replace("BLOCKS", &(DISK >> 18).to_string())
        .replace("PIECES", &(FILE >> 16).to_string());
    let config = format!(
        "[guest]\nname = \"inner\"\nimage = \"vmlinuz\"\ninitrd = \"initrd\"\ncmdline = \"{CMDLINE}{}\"\n\
         [memory]\nsize = \"256M\"\n[vcpus]\ncount = 1\n{}",
        job.name(),
        job.device()
    );
    share(bed, &shared, &init, &[], &[("job.toml", &config)]);
    put_qemu(bed, &shared.join("qemu"))?;
    let script = outer(job);
    let socket = folder.join("counter.sock");
    let plugin = format!("{},socket={}", counter.display(), socket.display());
    let hardware = Hardware {
        // One thread, so that a guest's guest is counted as it runs alone.
        engine: &["-accel", "tcg,thread=single"],
        memory: "2G",
        arguments: vec!["-plugin".into(), plugin],
        patience: PATIENCE,
        ..hardware(&shared)
    };
    let words_of_kernel = "mitigations=off";
    let machine = Machine {
        script: &script,
        programs: &[],
        devices: vec![],
        iommu: Iommu::None,
        words: words_of_kernel,
    };
    let mut guest = Guest::start_on(bed, folder, &machine, &hardware);
    let mut events = Vec::new();
    loop {
        let line = guest.until(EVENT);
        let instructions = executed(&socket)?;
        let said = words(&line);
        let word = |key| said.get(key).map(|w| (*w).to_owned()).context("an event lacks a word");
        let event = Event { vmm: word("vmm")?, at: word("at")?, instructions };
        let last = event.vmm == "qemu" && event.at == "end";
        events.push(event);
        if last {
            break;
        }
    }
    guest.finish();
    Ok(Said(events))
}
