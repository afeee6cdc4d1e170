//! Devices that are plugged into a running guest, and taken out of it: a stock Linux kernel on Beamline's own VMM, whose
//! `pciehp` drives the root ports.

use crate::bed::Bed;
use crate::nested::{INIT, OUTER, config, inner, share};
use crate::{turn, words};
use beamline_abi::pacer;

/// How often each device is plugged in.
const ROUNDS: usize = 2;

/// What the inner guest does: it uses each device that comes, and says when it is gone. The disk's contents are other
/// ones each time.
fn init() -> String {
    format!(
        r#"{INIT}
modprobe virtio_pci
modprobe virtio_blk
said() {{ echo "$@"; }}
wait_for() {{ while ! eval "$1"; do sleep 0.2; done; }}
said "ports: slots=$(ls /sys/bus/pci/slots | tr '\n' ,) drivers=$(ls -d /sys/bus/pci/drivers/pcieport/0000* | wc -l)"
said "ready: devices=$(ls /sys/bus/pci/devices | wc -l)"
for round in 1 2; do
    wait_for "[ -e /sys/block/vda ]"
    at=$(basename $(dirname $(dirname $(dirname $(readlink -f /sys/block/vda)))))
    said "disk: round=$round at=$at hash=$(sha256sum /dev/vda | cut -d ' ' -f 1) interrupts=$(grep -c virtio /proc/interrupts)"
    wait_for "[ ! -e /sys/bus/pci/devices/$at ]"
    said "gone: round=$round block=$(ls /sys/block | grep -c vda) interrupts=$(grep -c virtio /proc/interrupts)"
done
for round in 1 2; do
    wait_for "[ -e /sys/bus/pci/devices/0000:02:00.0 ]"
    function=/sys/bus/pci/devices/0000:02:00.0
    said "pacer: round=$round vendor=$(cat $function/vendor) device=$(cat $function/device) bars=$(grep -vc '^0x0* 0x0* ' $function/resource)"
    wait_for "[ ! -e $function ]"
    said "left: round=$round devices=$(ls /sys/bus/pci/devices | wc -l)"
done
dmesg -r | grep -E '^<[0-3]>' | sed 's/^/error: /'
dmesg -r | grep -E 'pciehp|_OSC|pci 0000:0[0-2]|pci_bus' | sed 's/^/kernel: /'
said "forced: now"
wait_for "[ -e /sys/bus/pci/devices/0000:02:00.0 ]"
said "there: now"
wait_for "[ ! -e /sys/bus/pci/devices/0000:02:00.0 ]"
said "survived: devices=$(ls /sys/bus/pci/devices | wc -l)"
poweroff -f
"#
    )
}

/// What the outer guest does: it runs the host, the VMM, and asks over the VMM's API.
fn outer() -> String {
    format!(
        r#"{OUTER}
hash() {{ sha256sum "$1" | cut -d ' ' -f 1; }}
mkdir -p /run
dd if=/dev/urandom of=/tmp/scratch.img bs=64k count=32 2>/dev/null
beamline host /share/host.toml >/tmp/host 2>&1 &
beamline run --json --api /tmp/api/sock /share/linux.toml >/tmp/events 2>/tmp/console &
vmm=$!
wait_for() {{ until eval "$1"; do kill -0 $vmm 2>/dev/null || {{ cat /tmp/events /tmp/console /tmp/host; exit 1; }}; sleep 0.3; done; }}
heard() {{ wait_for "grep -q '$1' /tmp/console"; }}
guest() {{ verb=$1; shift; beamline guest $verb --api /tmp/api/sock "$@" 2>&1; }}
state() {{ guest show | grep -q "port $1: $2"; }}
heard 'ready: '
guest show | sed 's/^/show: /'
echo "refused: $(guest unplug scratch)"
for round in 1 2; do
    echo "outer: disk$round=$(hash /tmp/scratch.img)"
    echo "plug: $(guest plug scratch)"
    heard "disk: round=$round"
    echo "unplug: $(guest unplug scratch)"
    wait_for "state scratch empty"
    heard "gone: round=$round"
    # The VMM has it open still: it is written in place.
    dd if=/dev/urandom of=/tmp/scratch.img bs=64k count=32 conv=notrunc 2>/dev/null
done
for round in 1 2; do
    echo "plug: $(guest plug pacer)"
    heard "pacer: round=$round"
    echo "unplug: $(guest unplug pacer)"
    wait_for "state pacer empty"
    heard "left: round=$round"
done
heard 'forced: '
echo "plug: $(guest plug pacer)"
heard 'there: '
echo "force: $(guest unplug --force pacer)"
wait $vmm
echo "ended: status=$?"
sed 's/^/event: /' /tmp/events
cat /tmp/console
echo "fds: $(ls /proc/$(pidof beamline)/fd | wc -l)"
killall beamline
wait
true
"#
    )
}

#[test]
fn devices_are_plugged_into_a_stock_kernel_and_taken_out() {
    let Some(bed) = Bed::ready("devices_are_plugged_into_a_stock_kernel_and_taken_out") else {
        return;
    };
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let host = "run_dir = \"/run\"\n[gpu]\nbackend = \"model\"\n\
        [[slice]]\nname = \"one\"\nwidth = 640\nheight = 480\nprofile = \"display\"\n\
        [slice.contract]\nrefresh_hz = \"60\"\nclass = \"elastic\"\n\
        budget_ms = 2.0\nmax_job_ms = 2.0\n";
    let ports = "[[device]]\ntype = \"virtio-rng\"\n\
        [[port]]\nname = \"scratch\"\nplugged = false\n\
        device = { type = \"virtio-blk\", path = \"/tmp/scratch.img\", format = \"raw\" }\n\
        [[port]]\nname = \"pacer\"\nplugged = false\n\
        device = { type = \"vfio-user\", socket = \"/run/one-pacer.sock\" }\n";
    let files = [("host.toml", host), ("linux.toml", &config("256M", ports))];
    share(&bed, &folder.path().join("share"), &init(), &[], &files);
    let said = crate::nested::start_with(&bed, folder.path(), &outer(), vec![]).finish();

    // pciehp drives both.
    assert_eq!(inner(&said, "ports: "), ["slots=1,2, drivers=2"], "{said:#?}");
    let lines = |start: &str| -> Vec<&str> {
        said.iter().filter_map(|line| line.strip_prefix(start)).collect()
    };
    assert!(lines("refused: ")[0].contains("the slot is empty"), "{said:#?}");
    let plugs: Vec<String> = ["scratch", "scratch", "pacer", "pacer", "pacer"]
        .iter()
        .map(|port| format!("plug: port {port} is plugged"))
        .collect();
    assert_eq!(lines("plug: "), plugs);
    let asked: Vec<String> = ["scratch", "scratch", "pacer", "pacer"]
        .iter()
        .map(|port| format!("unplug: port {port} is asked"))
        .collect();
    assert_eq!(lines("unplug: "), asked);
    assert_eq!(lines("force: "), ["unplug: port pacer is empty"]);

    // The disk was read, each time what was on it then.
    let disks = inner(&said, "disk: ");
    assert_eq!(disks.len(), ROUNDS);
    let outer: std::collections::HashMap<&str, &str> =
        lines("outer: ").into_iter().flat_map(words).collect();
    for (round, line) in (1..).zip(&disks) {
        let disk = words(line);
        assert_eq!((disk["round"], disk["at"]), (&*round.to_string(), "0000:01:00.0"));
        assert_ne!(disk["interrupts"], "0");
        assert_eq!(disk["hash"], outer[&*format!("disk{round}")]);
    }
    assert_ne!(outer["disk1"], outer["disk2"]);
    for line in inner(&said, "gone: ") {
        let gone = words(line);
        assert_eq!((gone["block"], gone["interrupts"]), ("0", "0"));
    }

    // A function that another process serves, each time over a connection of its own.
    let pacers = inner(&said, "pacer: ");
    assert_eq!(pacers.len(), ROUNDS);
    for line in pacers {
        let function = words(line);
        let id = |key: &str| u16::from_str_radix(function[key].trim_start_matches("0x"), 16);
        assert_eq!(id("vendor"), Ok(pacer::VENDOR_ID));
        assert_eq!(id("device"), Ok(pacer::DEVICE_ID));
        assert_eq!(function["bars"], "3", "each BAR has its place: {line}");
    }
    let devices = words(inner(&said, "ready: ")[0])["devices"];
    for line in inner(&said, "left: ") {
        assert_eq!(words(line)["devices"], devices);
    }
    assert_eq!(inner(&said, "error: "), [""; 0], "the kernel's log has no error");

    // What is forced out leaves a guest that goes on.
    assert_eq!(words(inner(&said, "survived: ")[0])["devices"], devices);
    let event = |name: &str| {
        let is = |line: &&&str| line.contains(&format!("\"event\":\"{name}\""));
        lines("event: ").iter().filter(is).count()
    };
    assert_eq!((event("plugged"), event("unplug-asked"), event("unplugged")), (5, 4, 5));
    assert!(said.iter().any(|line| line == "ended: status=0"), "{said:#?}");
}
