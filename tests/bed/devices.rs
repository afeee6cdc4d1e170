//! The VMM's own devices, driven by a stock Linux kernel: disks, a network card, sockets, a keyboard, entropy and a
//! console. Each is used from user space, and what went through it is compared on the other side.

use crate::bed::Bed;
use crate::guest::{Guest, Hardware, Iommu, Machine};
use crate::nested::{CPUS, INIT, INNER, OUTER, config, inner, share};
use crate::sockets::press;
use crate::{turn, words};
use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

/// The guest's devices in slot order: type, keys, driver, whether an interrupt must have come.
const DEVICES: [(&str, &str, &str, bool); 11] = [
    ("virtio-blk", "path = \"/tmp/from.img\"\nreadonly = true", "virtio_blk", true),
    ("virtio-blk", "path = \"/tmp/to.img\"\nformat = \"raw\"", "virtio_blk", true),
    ("virtio-blk", "path = \"/tmp/disk.qcow2\"\nformat = \"qcow2\"", "virtio_blk", true),
    ("virtio-net", "tap = \"vr0\"", "virtio_net", true),
    ("virtio-rng", "", "virtio_rng", true),
    ("virtio-console", "output = \"/tmp/console\"", "virtio_console", true),
    ("virtio-vsock", "cid = 7", "vmw_vsock_virtio_transport", true),
    ("virtio-input", "evdev = \"KEYBOARD\"", "virtio_input", true),
    // It has nothing to say while nobody asks for memory.
    ("virtio-balloon", "", "virtio_balloon", false),
    ("virtio-input", "kind = \"mouse\"", "virtio_input", true),
    ("virtio-input", "kind = \"gamepad\"", "virtio_input", true),
];

/// Loads what the devices ask for, as a distribution does, and says what was found.
const LIST: &str = r#"
for alias in /sys/bus/virtio/devices/*/modalias; do modprobe "$(cat $alias)" 2>/dev/null; done
modprobe evdev
for device in /sys/bus/virtio/devices/*; do
    pci=$(dirname $(readlink -f $device))
    echo "virtio: name=$(basename $device) driver=$(basename $(readlink $device/driver))" \
        "at=$(basename $pci) vendor=$(cat $pci/vendor) device=$(cat $pci/device) class=$(cut -c 1-4 $pci/class)"
done
"#;

/// What happens on the input devices of the VMM's own, by its API.
const MOUSE: &str = r#"[{"move": [5, -3]}, {"wheel": -1}, {"tap": "left"}]"#;
const GAMEPAD: &str = r#"[{"axis": {"name": "x", "value": 0.5}}, {"tap": "south"}]"#;

/// Bytes that go through the sockets, each way.
const SOCKET_BYTES: usize = 300_000;

/// What the outer guest does: the other side of each device.
fn outer() -> String {
    format!(
        r#"{OUTER}
for module in tun vhost_vsock virtio_input evdev; do modprobe $module || exit; done
hash() {{ sha256sum "$1" | cut -d ' ' -f 1; }}
mkdir -p /tmp/web
dd if=/dev/urandom of=/tmp/from.img bs=64k count=64 2>/dev/null
dd if=/dev/zero of=/tmp/to.img bs=64k count=64 2>/dev/null
dd if=/dev/urandom of=/tmp/web/outer bs=64k count=24 2>/dev/null
cp /share/disk.qcow2 /tmp/disk.qcow2
for event in /sys/class/input/event*; do
    [ "$(cat $event/device/name)" = "QEMU Virtio Keyboard" ] && keyboard=/dev/input/$(basename $event)
done
sed "s|KEYBOARD|$keyboard|" /share/devices.toml >/tmp/devices.toml
/share/beamline-vsock-probe serve 7000 &
beamline run /tmp/devices.toml --api /tmp/api/socket &
vmm=$!
runs() {{ kill -0 $vmm 2>/dev/null || exit 1; sleep 0.2; }}
until ip addr add 10.9.0.1/24 dev vr0 2>/dev/null; do runs; done
ip link set vr0 up
httpd -p 10.9.0.1:80 -h /tmp/web
until wget -q -O /tmp/inner http://10.9.0.2/inner 2>/dev/null; do runs; done
echo "outer: from=$(hash /tmp/from.img) web=$(hash /tmp/web/outer) fetched=$(hash /tmp/inner)"
/share/beamline-vsock-probe call 7 7001 {SOCKET_BYTES}
# Until somebody reads what the input devices say.
read -r _
acts() {{ /share/beamline guest --api /tmp/api/socket do "$@" </dev/null; }}
acts mouse '{MOUSE}'
acts gamepad '{GAMEPAD}'
wait $vmm
echo "ended: status=$?"
echo "outer: to=$(hash /tmp/to.img)"
sed 's/^/console: /' /tmp/console
# The tap went with its guest.
[ -e /sys/class/net/vr0 ] && echo "outer: the tap is still there"
true
"#
    )
}

/// What the inner guest does.
fn init() -> String {
    format!(
        r#"{INIT}
hash() {{ sha256sum "$1" | cut -d ' ' -f 1; }}
{LIST}
echo "disks: from=$(hash /dev/vda) qcow2=$(hash /dev/vdc)" \
    "readonly=$(cat /sys/block/vda/ro) sectors=$(cat /sys/block/vda/size)"
dd if=/dev/vda of=/dev/vdb bs=64k conv=fsync 2>/dev/null
dd if=/dev/vda of=/dev/vdc bs=64k conv=fsync 2>/dev/null
echo 3 >/proc/sys/vm/drop_caches
echo "written: to=$(hash /dev/vdb) qcow2=$(hash /dev/vdc)"

mkdir -p /tmp/web
dd if=/dev/urandom of=/tmp/web/inner bs=64k count=24 2>/dev/null
net=$(basename /sys/class/net/e*)
ip addr add 10.9.0.2/24 dev $net
ip link set $net up
httpd -p 10.9.0.2:80 -h /tmp/web
until wget -q -O /tmp/outer http://10.9.0.1/outer 2>/dev/null; do sleep 0.2; done
echo "net: web=$(hash /tmp/web/inner) fetched=$(hash /tmp/outer)" \
    "pings=$(ping -c 3 -i 0.2 10.9.0.1 | grep -c 'bytes from')"

echo "rng: current=$(cat /sys/class/misc/hw_random/rng_current)" \
    "one=$(dd if=/dev/hwrng bs=32 count=1 2>/dev/null | hexdump -v -e '1/1 "%02x"')" \
    "two=$(dd if=/dev/hwrng bs=32 count=1 2>/dev/null | hexdump -v -e '1/1 "%02x"')"
echo "said on hvc0" >/dev/hvc0

/beamline-vsock-probe serve 7001 &
served=$!
/beamline-vsock-probe call 2 7000 {SOCKET_BYTES}
wait $served

# From here on their events wait.
exec 3</dev/input/event0 4</dev/input/event1 5</dev/input/event2
for event in 0 1 2; do
    /ld.so --library-path / /evtest /dev/input/event$event >/dev/console 2>&1 &
done
# What they have seen, seen once more, with each report's end: two keys, pressed and let go; a mouse that moves, its
# wheel and its button; an axis and a button.
dd of=/dev/null bs=24 count=8 <&3 2>/dev/null
dd of=/dev/null bs=24 count=9 <&4 2>/dev/null
dd of=/dev/null bs=24 count=6 <&5 2>/dev/null
sleep 1
killall ld.so

sed 's/^/after: /' /proc/interrupts
poweroff -f
"#
    )
}

/// What `sha256sum` says of a file.
pub(crate) fn hash(file: &Path) -> String {
    let said = Command::new("sha256sum").arg(file).output().unwrap();
    assert!(said.status.success());
    let text = String::from_utf8(said.stdout).unwrap();
    text.split_whitespace().next().expect("a hash").to_owned()
}

/// A qcow2 image that qemu-img made; the hash of what a guest is to read from it.
fn image(bed: &Bed, folder: &Path) -> String {
    let raw = folder.join("disk.raw");
    let mut random = crate::random::Random::seeded();
    let bytes: Vec<u8> = (0..1 << 19).flat_map(|_| random.below(u64::MAX).to_le_bytes()).collect();
    std::fs::write(&raw, bytes).unwrap();
    let mut convert = bed.debian_program("usr/bin/qemu-img");
    let status = convert.args(["convert", "-O", "qcow2"]).arg(&raw).arg(folder.join("disk.qcow2"));
    assert!(status.status().unwrap().success(), "qemu-img");
    hash(&raw)
}

/// The only line of the inner guest that starts so.
fn one<'a>(said: &'a [String], start: &str) -> HashMap<&'a str, &'a str> {
    let lines = inner(said, start);
    assert_eq!(lines.len(), 1, "{start}: {said:#?}");
    words(lines[0])
}

/// The words of the outer guest's lines that start so.
fn all<'a>(said: &'a [String], start: &str) -> HashMap<&'a str, &'a str> {
    said.iter().filter_map(|line| line.strip_prefix(start)).flat_map(words).collect()
}

/// What both guests said, and the hash of the qcow2 image.
struct Run {
    said: Vec<String>,
    of_image: String,
}

/// The one run of the outer and the inner guest.
fn ours(bed: &Bed) -> &'static Run {
    static RUN: OnceLock<Run> = OnceLock::new();
    RUN.get_or_init(|| run(bed))
}

fn run(bed: &Bed) -> Run {
    let folder = tempfile::tempdir().unwrap();
    let shared = folder.path().join("share");
    let entry = |(kind, keys, ..): &(&str, &str, &str, bool)| {
        format!("[[device]]\ntype = \"{kind}\"\n{keys}\n")
    };
    let entries = DEVICES.iter().map(entry).collect::<Vec<_>>().concat();
    let config = config("256M", &entries)
        .replace("\"vmlinuz\"", "\"/share/vmlinuz\"")
        .replace("\"initrd\"", "\"/share/initrd\"");
    let probe = bed.program("beamline-vsock-probe");
    let library = |name: &str| std::fs::read(bed.debian(name)).unwrap();
    let programs = [
        ("beamline-vsock-probe", probe.clone()),
        ("evtest", library("usr/bin/evtest")),
        ("ld.so", library("lib64/ld-linux-x86-64.so.2")),
        ("libc.so.6", library("usr/lib/x86_64-linux-gnu/libc.so.6")),
    ];
    share(bed, &shared, &init(), &programs, &[("devices.toml", &config)]);
    let of_image = image(bed, &shared);
    let outer_probe = shared.join("beamline-vsock-probe");
    std::fs::write(&outer_probe, probe).unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&outer_probe, executable).unwrap();

    let mut guest = crate::nested::start_with(
        bed,
        folder.path(),
        &outer(),
        vec!["virtio-keyboard-pci,bus=pcie.0,addr=5".into()],
    );
    for _ in 0..3 {
        guest.until(&format!("{INNER}Testing ... "));
    }
    press(&guest.qmp(), &["a", "b"]);
    guest.say("go");
    Run { said: guest.finish(), of_image }
}

#[test]
fn a_stock_kernel_uses_the_vmms_own_devices() {
    let Some(bed) = Bed::ready("a_stock_kernel_uses_the_vmms_own_devices") else { return };
    let _turn = turn();
    let Run { said, of_image } = ours(&bed);
    let outer = all(said, "outer: ");

    // Disks: read as they are, written as they were sent, and the image's own.
    let disks = one(said, "disks: ");
    assert_eq!(disks["from"], outer["from"]);
    assert_eq!(disks["qcow2"], *of_image);
    assert_eq!((disks["readonly"], disks["sectors"]), ("1", "8192"));
    let written = one(said, "written: ");
    assert_eq!((written["to"], written["qcow2"]), (outer["from"], outer["from"]));
    assert_eq!(outer["to"], outer["from"], "the outer guest's own file");

    // The network, both ways.
    let net = one(said, "net: ");
    assert_eq!(net["fetched"], outer["web"]);
    assert_eq!(outer["fetched"], net["web"]);
    assert_eq!(net["pings"], "3");

    // Entropy.
    let rng = one(said, "rng: ");
    assert_eq!(rng["current"], "virtio_rng.0");
    assert_eq!((rng["one"].len(), rng["two"].len()), (64, 64));
    assert_ne!(rng["one"], rng["two"]);

    // The console.
    assert!(said.iter().any(|line| line == "console: said on hvc0"), "{said:#?}");

    // Sockets, both ways, by each side's word.
    let bytes = SOCKET_BYTES.to_string();
    let (inside, outside) = (inner(said, "vsock: "), all(said, "vsock: "));
    let inside: HashMap<&str, &str> = inside.into_iter().flat_map(words).collect();
    assert_eq!((inside["called"], inside["served"]), (bytes.as_str(), bytes.as_str()));
    assert_eq!((outside["called"], outside["served"]), (bytes.as_str(), bytes.as_str()));

    // Keys, as evtest prints them.
    let keys: Vec<(bool, bool)> = inner(said, "Event: ")
        .iter()
        .filter(|line| line.contains("(KEY_"))
        .map(|line| (line.contains("(KEY_A)"), line.ends_with("value 1")))
        .collect();
    assert_eq!(keys, [(true, true), (true, false), (false, true), (false, false)], "{said:#?}");

    for event in [
        "(EV_REL), code 0 (REL_X), value 5",
        "(EV_REL), code 1 (REL_Y), value -3",
        "(EV_REL), code 8 (REL_WHEEL), value -1",
        "(EV_KEY), code 272 (BTN_LEFT), value 1",
        "(EV_KEY), code 272 (BTN_LEFT), value 0",
        "(EV_ABS), code 0 (ABS_X), value 16384",
        "(EV_KEY), code 304 (BTN_SOUTH), value 1",
        "(EV_KEY), code 304 (BTN_SOUTH), value 0",
    ] {
        let events = inner(said, "Event: ");
        let seen = events.iter().filter(|line| line.ends_with(event)).count();
        assert_eq!(seen, 1, "{event}: {events:#?}");
    }

    interrupts(said);
    assert!(said.iter().any(|line| line == "ended: status=0"), "{said:#?}");
    assert!(!said.iter().any(|line| line.contains("still there")), "the tap has stayed");
}

/// Each device has its driver, and each that has work has had interrupts.
fn interrupts(said: &[String]) {
    let bound: Vec<_> = inner(said, "virtio: ").into_iter().map(words).collect();
    assert_eq!(bound.len(), DEVICES.len(), "{bound:?}");
    let lines = inner(said, "after: ");
    for (slot, (kind, _, driver, interrupted)) in DEVICES.iter().enumerate() {
        let at = format!("0000:00:{:02x}.0", slot + 1);
        let device = bound.iter().find(|w| w["at"] == at).expect("a device in each slot");
        assert_eq!(device["driver"], *driver, "{kind} at {at}");
        let count = count(&lines, device["name"], CPUS);
        assert!(count > 0 || !interrupted, "{kind} at {at} never interrupted: {lines:#?}");
    }
}

/// How many interrupts a virtio device has had, by `/proc/interrupts`.
fn count(lines: &[&str], device: &str, cpus: usize) -> u64 {
    let own = format!("{device}-");
    let lines = lines.iter().filter(|line| line.contains(&own));
    lines
        .flat_map(|line| line.split_whitespace().skip(1).take(cpus))
        .map(|n| n.parse::<u64>().unwrap())
        .sum()
}

/// What a guest sees of a virtio device: IDs, base class, driver. What kind of a disk or an input device it is,
/// PCI's class codes say of real hardware only.
type Face = (String, String, String, String);

fn face(said: &HashMap<&str, &str>) -> Face {
    let of = |key: &str| said[key].to_owned();
    (of("vendor"), of("device"), of("class"), of("driver"))
}

/// What a guest of QEMU does with the same devices.
const THEIRS: &str = r#"
ip addr add 10.0.2.15/24 dev eth0
ip link set eth0 up
echo "used: disk=$(sha256sum /dev/vda | cut -d ' ' -f 1) pings=$(ping -c 3 10.0.2.2 | grep -c 'bytes from')" \
    "random=$(dd if=/dev/hwrng bs=32 count=1 2>/dev/null | wc -c)"
echo said >/dev/hvc0
for event in /sys/class/input/event*; do
    [ "$(cat $event/device/name)" = "QEMU Virtio Keyboard" ] && keyboard=/dev/input/$(basename $event)
done
# From here on its events wait.
exec 3<$keyboard
echo "keys: at=$keyboard"
dd of=/dev/null bs=24 count=4 <&3 2>/dev/null
sed 's/^/after: /' /proc/interrupts
"#;

/// The same kernel with QEMU's devices: those of ours that QEMU has too look as they do there, and are used over the
/// same kinds of interrupts. Its sockets need a module of this machine's kernel.
#[test]
fn the_same_devices_of_qemu_look_and_work_the_same() {
    let Some(bed) = Bed::ready("the_same_devices_of_qemu_look_and_work_the_same") else { return };
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let of_disk = image(&bed, folder.path());
    let disk = folder.path().join("disk.qcow2");
    let device = |what: &str| format!("virtio-{what},bus=pcie.0,disable-legacy=on");
    let machine = Machine {
        script: &format!("{LIST}{THEIRS}"),
        programs: &[],
        devices: vec![
            device("blk-pci,drive=disk"),
            device("net-pci,netdev=net"),
            device("rng-pci"),
            device("serial-pci"),
            "virtconsole,chardev=none".into(),
            device("keyboard-pci"),
            device("balloon-pci,free-page-reporting=on"),
        ],
        iommu: Iommu::None,
        words: "net.ifnames=0",
    };
    let file =
        format!("driver=qcow2,node-name=disk,file.driver=file,file.filename={}", disk.display());
    let arguments = ["-blockdev", &file, "-netdev", "user,id=net", "-chardev", "null,id=none"];
    let hardware =
        Hardware { arguments: arguments.map(str::to_owned).into(), ..Hardware::default() };
    let mut guest = Guest::start_on(&bed, folder.path(), &machine, &hardware);
    guest.until("keys: ");
    press(&guest.qmp(), &["a"]);
    let theirs = guest.finish();
    let used = all(&theirs, "used: ");
    assert_eq!((used["disk"], used["pings"], used["random"]), (&*of_disk, "3", "32"));

    let found: Vec<_> =
        theirs.iter().filter_map(|line| line.strip_prefix("virtio: ")).map(words).collect();
    let lines: Vec<&str> = theirs.iter().filter_map(|line| line.strip_prefix("after: ")).collect();
    let works = |device: &HashMap<&str, &str>| count(&lines, device["name"], 1) > 0;
    let their_faces: BTreeSet<Face> = found.iter().map(face).collect();
    let our_faces: BTreeSet<Face> = inner(&ours(&bed).said, "virtio: ")
        .into_iter()
        .map(|line| face(&words(line)))
        .filter(|(.., driver)| !driver.contains("vsock"))
        .collect();
    assert_eq!(our_faces, their_faces);
    let idle: Vec<_> = found.iter().filter(|d| !works(d)).map(|d| d["driver"]).collect();
    // As with ours: nobody asks for memory.
    assert!(idle.iter().all(|driver| *driver == "virtio_balloon"), "{idle:?} never interrupted");
}
