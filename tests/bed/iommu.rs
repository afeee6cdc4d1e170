//! The pacer and the vGPU, driven from the user space of a stock Linux kernel on Beamline's own VMM, behind its
//! own IOMMU. Both kernels and the host run on one processor in software.

use crate::bed::Bed;
use crate::nested::{INIT, config, inner, run, share};
use crate::witness::Witness;
use crate::{turn, words};
use beamline_latency::stamp::{Stamp, flag};
use std::path::Path;
use zerocopy::FromBytes;

/// For how long vblanks are watched, and how often a run is repeated where the machine did not let the guest keep
/// up.
const SECONDS: u32 = 3;
const TRIES: u32 = 10;

/// Where the inner guest's functions are: pacer and vGPU, then what is not behind the IOMMU, then the IOMMU.
const PACER: &str = "0000:00:01.0";
const VGPU: &str = "0000:00:02.0";
const ENTROPY: &str = "0000:00:03.0";

/// Has the kernel drive the IOMMU, and hands both functions to user space. A function whose IOMMU is not driven yet is bound later, by the kernel itself.
fn bind() -> String {
    format!(
        "modprobe virtio_pci\nmodprobe virtio_iommu\n\
         echo without: $(/beamline-guest pace 2>&1 | tr '\\n' ' ')\n\
         modprobe vfio-pci\nmodprobe vfio_iommu_type1\n\
         for at in {PACER} {VGPU}; do\n\
             driver=/sys/bus/pci/devices/$at/driver\n\
             [ -e $driver ] && echo $at >$driver/unbind\n\
             echo vfio-pci >/sys/bus/pci/devices/$at/driver_override\n\
             echo $at >/sys/bus/pci/drivers_probe\n\
         done\n\
         for at in {PACER} {VGPU}; do\n\
             try=0\n\
             while [ ! -e /sys/bus/pci/devices/$at/driver ] && [ $try -lt 100 ]; do\n\
                 sleep 0.1\n\
                 try=$((try + 1))\n\
             done\n\
         done\n\
         {}",
        groups()
    )
}

/// Says what is in a group.
fn groups() -> String {
    format!(
        "for at in {PACER} {VGPU} {ENTROPY}; do\n\
             [ -e /sys/bus/pci/devices/$at/iommu_group ] && echo behind: $at\n\
         done\n"
    )
}

/// The slice's host, in the outer guest.
fn host(hz: u32) -> String {
    format!(
        "run_dir = \"/run\"\n[gpu]\nbackend = \"model\"\n\
         [[slice]]\nname = \"one\"\nwidth = 640\nheight = 480\nprofile = \"render\"\n\
         guest_contract = \"within\"\nguest_hz = {{ min = \"30\", max = \"90\" }}\n\
         [slice.contract]\nrefresh_hz = \"{hz}\"\nclass = \"elastic\"\nbudget_ms = 2.0\nmax_job_ms = 2.0\n"
    )
}

/// Ticks that the guest's counter is ahead of its host's: many minutes.
const TSC_OFFSET: i64 = 1 << 40;

/// What the inner guest says that does `script` behind an IOMMU, on a slice of the host that `host` describes; then what
/// guests have marked, where that host writes a log of stamps.
fn behind_our_iommu(bed: &Bed, folder: &Path, host: &str, script: &str) -> Vec<String> {
    let device = |function: &str| {
        format!(
            "[[device]]\ntype = \"vfio-user\"\nsocket = \"/run/one-{function}.sock\"\n\
             timeout_ms = 60000\n"
        )
    };
    let more = [
        &device("pacer"),
        &device("gpu"),
        "[[device]]\ntype = \"virtio-rng\"\n[iommu]\nenabled = true\n",
    ];
    // One CPU: the processor in software has one, too.
    let config = config("256M", &more.concat())
        .replace("quiet", "quiet vfio_iommu_type1.allow_unsafe_interrupts=1")
        .replace("count = 2", &format!("count = 1\ntsc_offset = {TSC_OFFSET}"));
    let init = format!("{INIT}{script}poweroff -f\n");
    let programs = [
        ("beamline-guest", bed.program("beamline-guest")),
        ("beamline-frames-probe", bed.program("beamline-frames-probe")),
        ("pace_loop", bed.program("examples/pace_loop")),
    ];
    let files = [("host.toml", host), ("linux.toml", &*config)];
    share(bed, &folder.join("share"), &init, &programs, &files);
    let said = run(
        bed,
        folder,
        "mkdir -p /run\n\
         beamline host /share/host.toml >/host.txt &\n\
         BEAMLINE_LOG=beamline_vmm=info beamline run /share/linux.toml\n\
         echo ended: status=$?\n\
         killall beamline\n\
         wait\n\
         if [ -e /stamps ]; then\n\
             hexdump -v -s 16 -e '48/1 \"%02x\" \"\\n\"' /stamps | grep '^....01' | sed 's/^/stamp: /'\n\
         fi\n",
    );
    assert!(said.iter().any(|line| line == "ended: status=0"), "{said:#?}");
    said
}

fn every_vblank_is_seen_at(test: &str, hz: u32) {
    let Some(bed) = Bed::ready(test) else { return };
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let count = SECONDS * hz;
    // The serial port is slow: what is said goes there at the end, and without what is not looked at.
    let script = format!(
        "try=0\n\
         while [ $try -lt {TRIES} ]; do\n\
             /beamline-guest pace --json --count {count} --seconds 60 >/pace.txt || echo failed\n\
             echo run: $(tail -n 1 /pace.txt)\n\
             tail -n 1 /pace.txt | grep -q '\"missed\":0,' && break\n\
             try=$((try + 1))\n\
         done\n\
         sed -n '/contract/s/^/contract: /p' /pace.txt\n\
         sed -n 's/.*seen_after_ns\":\\([0-9]*\\),.*time_ns\":\\([0-9]*\\),.*vblank\":\\([0-9]*\\)}}/vblank: seq=\\3 \
         at=\\2 after=\\1/p' /pace.txt\n\
         echo clock: $(/beamline-guest clock --json)\n"
    );
    let witness = Witness::start();
    let said = behind_our_iommu(&bed, folder.path(), &host(hz), &(bind() + &script));
    println!("  idle threads were held up for {:?} at most", witness.worst());
    let without = inner(&said, "without: ");
    assert!(
        without.iter().any(|line| line.contains("bound to no driver") && line.contains("vfio-pci")),
        "it is said how to bind the pacer: {without:?}"
    );
    assert_eq!(inner(&said, "behind: "), [PACER, VGPU], "the table names no other");
    consecutive(&said, hz, count);
    clocks_agree(&said);
}

/// That the last run saw each vblank, by an interrupt of its own and on the grid of the refresh rate.
fn consecutive(said: &[String], hz: u32, count: u32) {
    let json = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap();
    let runs = inner(said, "run: ");
    let run = json(runs.last().expect("the program says what it saw"));
    assert_eq!(run["missed"], 0, "vblanks were lost in each of {} runs: {runs:#?}", runs.len());
    assert_eq!(run["seen"], count);
    assert!(run["interrupts"].as_u64().unwrap() >= count.into(), "interrupts are missing: {run}");
    let contracts = inner(said, "contract: ");
    let contract = json(contracts[0]);
    assert_eq!((contracts.len(), &contract["contract"]["budget_ns"]), (1, &2_000_000.into()));
    let period = &contract["contract"]["period_ns"];
    let (num, den) = (period[0].as_u64().unwrap(), period[1].as_u64().unwrap());
    assert_eq!(num * u64::from(hz), den * 1_000_000_000);

    let vblanks: Vec<[u64; 3]> = inner(said, "vblank: ")
        .into_iter()
        .map(|line| ["seq", "at", "after"].map(|name| words(line)[name].parse().unwrap()))
        .collect();
    assert_eq!(vblanks.len(), count as usize);
    assert!(vblanks.windows(2).all(|pair| pair[0][0] + 1 == pair[1][0]), "{vblanks:?}");
    let on_grid = |seq: u64| (u128::from(seq) * u128::from(num) / u128::from(den)) as u64;
    let [first, start, _] = vblanks[0];
    for [seq, at, _] in &vblanks {
        assert_eq!(at - start, on_grid(*seq) - on_grid(first), "vblank {seq}");
    }
    let mut after: Vec<u64> = vblanks.iter().map(|vblank| vblank[2] / 1000).collect();
    after.sort_unstable();
    let [median, p99, most] =
        [after[after.len() / 2], after[after.len() * 99 / 100], after[after.len() - 1]];
    println!("  seen after {median} µs (median), {p99} µs (p99), {most} µs (most); runs: {runs:?}");
}

/// That the guest's counter, which is not its host's, maps to the host's time within the error that is stated.
fn clocks_agree(said: &[String]) {
    let offset =
        said.iter().find_map(|line| line.split("the guest's TSC is the host's plus ").nth(1));
    let offset: i64 = offset.expect("the VMM says how the counters differ").trim().parse().unwrap();
    assert_eq!(offset, TSC_OFFSET);
    let clock = inner(said, "clock: ");
    let clock: serde_json::Value = serde_json::from_str(clock[0]).unwrap();
    let number = |name: &str| clock[name].as_u64().unwrap();
    assert!(number("outside_ns") <= number("error_ns"), "{clock}");
    // Had the offset been left out, it would be far beyond what the brackets can hide.
    let hidden = number("bracket_ns") + number("error_ns");
    let by_offset = (u128::from(offset.unsigned_abs()) * u128::from(number("tsc_mult"))) >> 32;
    assert!(by_offset > 10 * u128::from(hidden), "{offset} ticks: {clock}");
}

#[test]
fn no_vblank_is_lost_behind_our_own_iommu_at_60_hz() {
    every_vblank_is_seen_at("no_vblank_is_lost_behind_our_own_iommu_at_60_hz", 60);
}

#[test]
fn no_vblank_is_lost_behind_our_own_iommu_at_90_hz() {
    every_vblank_is_seen_at("no_vblank_is_lost_behind_our_own_iommu_at_90_hz", 90);
}

/// A frame that the program which draws frames does not come to.
const MARKED: u64 = 700;

/// The jobs of a frame for which the host's log has a guest's mark, with the guest's own time.
fn stamps(said: &[String], frame: u64) -> Vec<u16> {
    let stamp = |line: &String| {
        let hex = line.strip_prefix("stamp: ")?;
        let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
        Some(Stamp::read_from_bytes(&bytes).unwrap())
    };
    let all: Vec<Stamp> = said.iter().filter_map(stamp).collect();
    // The one that drew has marked its own.
    assert!(all.iter().any(|stamp| stamp.frame.0 < frame), "{said:#?}");
    let own = all.iter().filter(|stamp| stamp.frame.0 == frame);
    own.map(|stamp| {
        assert!(stamp.flags & flag::RAW_TSC != 0 && stamp.time > 0, "{stamp:?}");
        stamp.job.0
    })
    .collect()
}

/// Rings, commands and answers are at addresses that only the IOMMU knows. Then the guest marks a frame, makes
/// some turns of a loop that is paced, and asks for contracts.
#[test]
fn frames_are_drawn_behind_our_own_iommu() {
    let Some(bed) = Bed::ready("frames_are_drawn_behind_our_own_iommu") else { return };
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let script = format!(
        "/beamline-frames-probe {PACER} {VGPU} 120 scene=game frames=60\n\
         echo marked: $(/beamline-guest mark --frame {MARKED} --job 2 2>&1)\n\
         echo looped: $(/pace_loop 2>&1 | tail -n 1)\n\
         for what in '--rate 45 --budget-ms 1' '--rate 45 --budget-ms 1.9'; do\n\
             echo asked: $(/beamline-guest contract $what 2>&1)\n\
         done\n\
         echo paced: $(/beamline-guest pace --count 1 | sed -n '/^contract/p')\n"
    );
    let host = host(30) + "[output]\nstamps = \"/stamps\"\n";
    let said = behind_our_iommu(&bed, folder.path(), &host, &(bind() + &script));
    assert_eq!(inner(&said, "behind: "), [PACER, VGPU], "the table names no other");
    let done = inner(&said, "frames: slice=");
    let done = words(done.first().unwrap_or_else(|| panic!("no frames: {said:#?}")));
    assert_eq!((done["submitted"], done["completed"], done["failed"]), ("60", "60", "0"));
    assert!(done["interrupts"].parse::<u64>().unwrap() > 0);
    assert_eq!(inner(&said, "marked: "), [format!("marked frame {MARKED} job 2")]);
    assert_eq!(stamps(&said, MARKED), [2], "the host's log has the mark: {said:#?}");
    // The example's last line: a turn for each vblank, and those that it slept through made up for.
    let looped = inner(&said, "looped: frame 60: world ");
    let world = looped.first().and_then(|line| line.split(',').next()?.parse::<u32>().ok());
    assert!(world > Some(60), "the example does not come to its end: {said:#?}");
    let answers = inner(&said, "asked: ");
    // The operator's contract is 2 ms of each thirtieth of a second: no larger part of the GPU is to be had.
    assert_eq!(answers, ["granted", "reduced: ceiling: 1.333 ms of GPU time per frame"]);
    let paced = inner(&said, "paced: ");
    assert!(paced[0].starts_with("contract: 45.000 Hz, 1.333 ms"), "{paced:?}");
}

/// The kernel's own driver asks the IOMMU for what the vGPU is to see.
#[test]
fn the_stock_driver_works_behind_our_own_iommu() {
    let Some(bed) = Bed::ready("the_stock_driver_works_behind_our_own_iommu") else { return };
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let script = format!(
        "modprobe virtio_pci\nmodprobe virtio_iommu\nmodprobe virtio_gpu\n{}\
         echo translated: $(cat /sys/bus/pci/devices/{VGPU}/iommu_group/type)\n\
         echo driver: $(basename $(readlink /sys/bus/pci/devices/{VGPU}/virtio*/driver))\n\
         echo card: $(cat /sys/class/drm/card0-Virtual-1/status) \
         $(head -n 1 /sys/class/drm/card0-Virtual-1/modes)\n\
         grep virtio.*-control /proc/interrupts | sed 's/^/control: /'\n",
        groups()
    );
    let said = behind_our_iommu(&bed, folder.path(), &host(60), &script);
    assert_eq!(inner(&said, "behind: "), [VGPU], "what no driver is bound to is in no group");
    assert!(inner(&said, "translated: ")[0].starts_with("DMA"), "{said:#?}");
    assert_eq!(inner(&said, "driver: "), ["virtio_gpu"]);
    assert_eq!(inner(&said, "card: "), ["connected 640x480"]);
    let control = inner(&said, "control: ");
    let control = control.first().unwrap_or_else(|| panic!("no interrupt of the vGPU: {said:#?}"));
    assert!(control.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() > 0, "{control}");
}
