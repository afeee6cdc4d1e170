//! A stock Linux guest on Beamline's own VMM, over its API: paused and resumed, typed to and pointed at, reset, switched
//! off by its power button, and stopped. The guest says what it notices, and the VMM what happened.

use crate::bed::Bed;
use crate::nested::{CPUS, INIT, OUTER, config, inner, share, start_with};
use crate::{turn, words};

/// For how long nothing happens, s.
const PAUSED: u32 = 12;
/// The kernel's `watchdog_thresh`, s: a CPU that does nothing for twice as long hangs, it says.
const THRESHOLD: u32 = 5;

/// What is typed, and the keys that a US keyboard has for it.
const TYPED: &str = "aB 1!";
const KEYS: [(&str, u32); 18] = [
    ("KEY_A", 1),
    ("KEY_A", 0),
    ("KEY_LEFTSHIFT", 1),
    ("KEY_B", 1),
    ("KEY_B", 0),
    ("KEY_LEFTSHIFT", 0),
    ("KEY_SPACE", 1),
    ("KEY_SPACE", 0),
    ("KEY_1", 1),
    ("KEY_1", 0),
    ("KEY_LEFTSHIFT", 1),
    ("KEY_1", 1),
    ("KEY_1", 0),
    ("KEY_LEFTSHIFT", 0),
    // Ctrl+X.
    ("KEY_LEFTCTRL", 1),
    ("KEY_X", 1),
    ("KEY_X", 0),
    ("KEY_LEFTCTRL", 0),
];
/// A quarter and a half of what the tablet has, and a click.
const POINTED: [(&str, u32); 4] =
    [("ABS_X", 8192), ("ABS_Y", 16384), ("BTN_LEFT", 1), ("BTN_LEFT", 0)];
const BUTTON: [(&str, u32); 2] = [("KEY_POWER", 1), ("KEY_POWER", 0)];

const DEVICES: &str = "[[device]]\ntype = \"virtio-input\"\nkind = \"keyboard\"\n\
    [[device]]\ntype = \"virtio-input\"\nkind = \"tablet\"\n";

/// The inner guest does what is typed on its serial port. A shell on each CPU counts.
fn init() -> String {
    format!(
        r#"{INIT}
for module in virtio_pci virtio_input evdev; do modprobe $module; done
insmod /button.ko
count() {{
    n=0
    while true; do
        n=$((n + 1))
        echo "tick: cpu=$1 n=$n up=$(cut -d ' ' -f 1 /proc/uptime)"
        sleep 0.2
    done
}}
device() {{
    for event in /sys/class/input/event*; do
        [ "$(cat $event/device/name)" = "$1" ] && echo /dev/input/$(basename $event)
    done
}}
watch() {{ /ld.so --library-path / /evtest $(device "$1") >/dev/console 2>&1 & }}
echo "ready: clock=$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
while read -r word; do
    case $word in
    count)
        counters=
        echo {THRESHOLD} >/proc/sys/kernel/watchdog_thresh
        for cpu in $(seq 0 $(($(nproc) - 1))); do
            count $cpu &
            taskset -p -c $cpu $! >/dev/null
            counters="$counters $!"
        done ;;
    enough)
        kill $counters
        # The machine may hold the guest up for as long by itself.
        echo 0 >/proc/sys/kernel/watchdog_thresh
        dmesg | grep -ciE 'soft lockup|rcu.*stall|blocked for' | sed 's/^/barked: /' ;;
    keyboard) watch "Beamline keyboard" ;;
    tablet) watch "Beamline tablet" ;;
    seen) killall ld.so ;;
    listen)
        # What acpid does: a report for the key and one for its end, each with its own end.
        exec 3<$(device "Power Button")
        watch "Power Button"
        dd of=/dev/null bs=24 count=4 <&3 2>/dev/null
        echo "button: pressed"
        sleep 1
        poweroff -f ;;
    esac
done
"#
    )
}

/// What the outer guest does.
fn outer() -> String {
    format!(
        r#"{OUTER}
guest() {{ verb=$1; shift; /share/beamline guest $verb --api /tmp/api/sock "$@" 2>&1 </dev/null; }}
start() {{
    beamline run --json --api /tmp/api/sock /share/linux.toml >>/tmp/events 2>>/tmp/console &
    vmm=$!
}}
wait_for() {{
    until eval "$1"; do
        kill -0 $vmm 2>/dev/null || {{ cat /tmp/events /tmp/console; exit 1; }}
        sleep 0.2
    done
}}
heard() {{ wait_for "[ \$(grep -c '$1' /tmp/console) -ge ${{2:-1}} ]"; }}
command() {{ guest type --serial --enter $1 >/dev/null; }}
asked() {{ echo "asked: $(guest "$@")"; }}
up() {{ cut -d ' ' -f 1 /proc/uptime; }}
ticks() {{ grep -c 'tick: ' /tmp/console; }}
look() {{ echo "look: ticks=$(ticks) exits=$(guest stats --json | tr -d ' \n' | sed 's/.*"vcpus":\[\([^]]*\)\].*/\1/')"; }}

start
heard 'ready: '
command count
for cpu in 0 1; do heard "tick: cpu=$cpu n=5 "; done
look
asked pause
from=$(up)
guest show | sed -n '1s/^/show: /p'
# What the guest said before is written by then.
sleep 2
look
sleep {PAUSED}
look
echo "paused: from=$from to=$(up)"
asked resume
before=$(ticks)
wait_for "[ \$(ticks) -gt $((before + 10)) ]"
look
command enough
heard 'barked: '

command keyboard
heard 'Testing '
asked type '{TYPED}'
asked key ctrl+x
heard 'KEY_LEFTCTRL), value 0'
command seen
command tablet
heard 'Testing ' 2
asked point 0.25 0.5 --click left
heard 'BTN_LEFT), value 0'
command seen

asked reset
heard 'ready: ' 2
command listen
heard 'Testing ' 3
asked pause
asked power-button
sleep 2
echo "early: $(grep -c 'KEY_POWER), value' /tmp/console)"
asked resume
wait $vmm
echo "off: status=$?"

start
wait_for "[ -S /tmp/api/sock ]"
asked pause
asked stop
wait $vmm
echo "stopped: status=$?"
echo "left: $(ls /tmp/api | tr '\n' ' ')"
sed 's/^/event: /' /tmp/events
cat /tmp/console
"#
    )
}

/// A module of the bed's kernel that its initramfs has not.
fn module(bed: &Bed, path: &str) -> Vec<u8> {
    let mut releases = std::fs::read_dir(bed.debian("kernel/usr/lib/modules")).unwrap();
    let release = releases.next().expect("the kernel has modules").unwrap().path();
    let unpacked =
        bed.debian_program("usr/bin/xz").arg("-dc").arg(release.join(path)).output().unwrap();
    assert!(unpacked.status.success(), "xz: {}", String::from_utf8_lossy(&unpacked.stderr));
    unpacked.stdout
}

/// Keys, buttons and positions as `evtest` prints them, without what a key that is held says again.
fn events(said: &[String]) -> Vec<(String, u32)> {
    let event = |line: &&str| {
        let (_, code) = line.split_once(", code ")?;
        let (_, name) = code.split_once('(')?;
        let (name, value) = name.split_once("), value ")?;
        Some((name.to_owned(), value.trim().parse().ok()?))
    };
    let all = inner(said, "Event: ");
    let all = all.iter().filter_map(event);
    all.filter(|(name, value)| !(name.starts_with("KEY") && *value == 2)).collect()
}

/// What one CPU's shell said: its numbers, and its clock in hundredths of a second.
fn ticks(said: &[String], cpu: usize) -> Vec<(u64, u64)> {
    let lines = inner(said, "tick: ").into_iter().map(words);
    let mine = lines.filter(|tick| tick["cpu"] == cpu.to_string());
    mine.map(|tick| (tick["n"].parse().unwrap(), hundredths(tick["up"]))).collect()
}

fn hundredths(seconds: &str) -> u64 {
    let (whole, part) = seconds.split_once('.').expect("/proc/uptime has two decimals");
    whole.parse::<u64>().unwrap() * 100 + part.parse::<u64>().unwrap()
}

#[test]
fn a_stock_kernel_is_driven_over_the_api() {
    let Some(bed) = Bed::ready("a_stock_kernel_is_driven_over_the_api") else { return };
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let config = config("256M", DEVICES).replace("[memory]", "on_reset = \"reboot\"\n[memory]");
    let library = |name: &str| std::fs::read(bed.debian(name)).unwrap();
    let programs = [
        ("evtest", library("usr/bin/evtest")),
        ("ld.so", library("lib64/ld-linux-x86-64.so.2")),
        ("libc.so.6", library("usr/lib/x86_64-linux-gnu/libc.so.6")),
        ("button.ko", module(&bed, "kernel/drivers/acpi/button.ko.xz")),
    ];
    share(&bed, &folder.path().join("share"), &init(), &programs, &[("linux.toml", &config)]);
    let said = start_with(&bed, folder.path(), &outer(), vec![]).finish();
    let lines = |start: &str| -> Vec<&str> {
        said.iter().filter_map(|line| line.strip_prefix(start)).collect()
    };

    let expected = [
        "pause: the guest is paused",
        "resume: the guest is running",
        "typed",
        "pressed",
        "done",
        // Whether it has ended by then is a matter of which thread comes first.
        "reset: the guest is",
        "pause: the guest is paused",
        "power-button: the guest is paused",
        "resume: the guest is running",
        "pause: the guest is paused",
        "stop: the guest is",
    ];
    let asked = lines("asked: ");
    let same = asked.iter().zip(expected).all(|(asked, expected)| asked.starts_with(expected));
    assert!(same && asked.len() == expected.len(), "{asked:#?}");

    paused(&said);
    let expected = [&KEYS[..], &POINTED, &BUTTON].concat();
    let expected: Vec<_> =
        expected.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
    assert_eq!(events(&said), expected);
    assert_eq!(lines("early: "), ["0"], "a paused guest notices no button");
    assert_eq!(inner(&said, "button: "), ["pressed"]);
    assert_eq!((lines("off: "), lines("stopped: ")), (vec!["status=0"], vec!["status=0"]));
    assert_eq!(lines("left: "), [""], "the API's socket has stayed");

    // A line of JSON for each, in order; each life's interrupts are told at its end.
    let told: Vec<serde_json::Value> =
        lines("event: ").into_iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told: Vec<&str> = told.iter().map(|event| event["event"].as_str().unwrap()).collect();
    let told: Vec<&str> = told.into_iter().filter(|name| *name != "interrupts").collect();
    assert_eq!(
        told,
        [
            "started",
            "paused",
            "resumed",
            "reset",
            "started",
            "paused",
            "power-button",
            "resumed",
            "powered-off",
            "started",
            "paused",
            "stopped"
        ]
    );
}

/// What a pause stops, and what it does not.
fn paused(said: &[String]) {
    let starting =
        |start: &'static str| said.iter().filter_map(move |line| line.strip_prefix(start));
    assert!(starting("show: ").any(|line| line.starts_with("inner: paused")), "{said:#?}");
    let looks: Vec<_> = starting("look: ").map(words).collect();
    let [running, still, later, resumed] = &looks[..] else { panic!("four looks: {looks:?}") };
    // Neither is anything said, nor does a vCPU come out of the guest.
    assert_eq!(still, later);
    assert_ne!(running["exits"], resumed["exits"]);
    let count =
        |look: &std::collections::HashMap<&str, &str>| look["ticks"].parse::<u64>().unwrap();
    assert!(count(resumed) > count(later), "{looks:?}");

    let pause = starting("paused: ").map(words).next().expect("a pause");
    let lasted = hundredths(pause["to"]) - hundredths(pause["from"]);
    for cpu in 0..CPUS {
        let ticks = ticks(said, cpu);
        // The counter stood still, and went on where it had been.
        let numbers: Vec<u64> = ticks.iter().map(|(n, _)| *n).collect();
        assert!(numbers.iter().copied().eq(1..=numbers.len() as u64), "CPU {cpu}: {numbers:?}");
        // Its clock went on. Both are cut to hundredths.
        let longest = ticks.windows(2).map(|pair| pair[1].1 - pair[0].1).max().expect("ticks");
        assert!(longest + 2 >= lasted, "CPU {cpu}: {longest} of {lasted} hundredths: {ticks:?}");
    }
    // The kernel was told of the pause: its watchdog would have taken it for a CPU that hangs.
    let ready: Vec<_> = inner(said, "ready: ").into_iter().map(words).collect();
    assert_eq!(ready.len(), 2, "it has booted twice");
    assert_eq!(ready[0]["clock"], "kvm-clock");
    assert_eq!(inner(said, "barked: "), ["0"], "{said:#?}");
}
