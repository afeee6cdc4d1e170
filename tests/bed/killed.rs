//! A QEMU killed at random moments beside guests that are promised their frames: they lose none, and nothing of it
//! stays with the host. And a host killed under a QEMU.
//!
//! `BEAMLINE_CHAOS_SEED` repeats a run's choices. Frames that were lost while the machine itself held threads up
//! that do nothing are printed, and the round is repeated; else they are a failure.

use crate::bed::Bed;
use crate::guest::{Guest, Iommu, Machine};
use crate::held::{self, Held};
use crate::host::Host;
use crate::neighbour::Neighbour;
use crate::pacer::{BIND, ENDLESS, on_grid};
use crate::random::Random;
use crate::witness::Witness;
use crate::{turn, words};
use rustix::process::{Signal, kill_process};
use std::path::Path;
use std::time::{Duration, Instant};

/// A slice with a promise.
struct Promised {
    name: &'static str,
    /// What its guest draws.
    scene: &'static str,
    /// More of its contract.
    contract: &'static str,
}

const NEIGHBOURS: [Promised; 2] = [
    Promised {
        name: "left",
        scene: "scene=vr",
        contract: "late_latch = { window_ms = 8.0, budget_ms = 1.0 }\n",
    },
    Promised { name: "right", scene: "scene=game", contract: "" },
];
/// The neighbours' rate: slow, since their guests are threads of a busy machine.
const HZ: u32 = 30;
/// Frames that each shows after a kill.
const GOES_ON: u64 = 20;
/// How often QEMU is killed at each stage.
const TIMES: usize = 2;
/// How often a round is repeated that the machine disturbed.
const TRIES: u32 = 6;
/// A thread that is held up for longer is no fault of the host's, and two of them can cost a frame with a late latch.
const DISTURBED: Duration = Duration::from_nanos(1_000_000_000 / HZ as u64 / 10);
/// Bounds each wait for others.
const PATIENCE: Duration = Duration::from_mins(2);
/// Between two looks at what has no event.
const LOOK: Duration = Duration::from_millis(20);

/// The stock driver flips without end.
const FLIP: &str = r"
modprobe virtio_gpu || exit
at=0000:00:04.0
echo 1 >/sys/bus/pci/devices/$at/enable
/beamline-flip-probe /dev/dri/card0 $at 1000000
";

/// When a guest is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Firmware, kernel, drivers.
    Boot,
    /// A program drives the pacer.
    Vblanks,
    /// The stock driver flips pages.
    Flips,
}

impl Stage {
    fn machine(self, host: &Host) -> Machine<'static> {
        let (script, iommu) = match self {
            Self::Boot | Self::Flips => (FLIP, Iommu::None),
            Self::Vblanks => (ENDLESS, Iommu::Intel),
        };
        let programs = &["beamline-pacer-probe", "beamline-flip-probe"];
        Machine { script, programs, devices: host.devices(), iommu, words: "" }
    }

    /// Waits until it is reached; how long it lasts at least.
    fn reach(self, guest: &mut Guest) -> Duration {
        match self {
            Self::Boot => return Duration::from_secs(5),
            Self::Vblanks => guest.until("probe: paced from "),
            Self::Flips => guest.until("flips: begin"),
        };
        Duration::from_millis(500)
    }
}

/// What a slice has done, by its host and by its guest.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    frames: u64,
    late: u64,
    failed: u64,
    /// Vblanks that the host passed over.
    passed: u64,
    /// Vblanks that the guest did not see.
    missed: u64,
    /// Vblanks that the guest saw and had no room for a frame at.
    idle: u64,
    /// Vblanks that showed another frame than the one after that of the vblank before.
    uneven: u64,
}

impl Tally {
    fn of(host: &Host, slice: &str, neighbour: &Neighbour) -> Self {
        let guest = neighbour.seen();
        let body = host.ask(&format!("/slices/{slice}"));
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let number = |name: &str| body["stats"][name].as_u64().expect("a number");
        Self {
            frames: number("frames"),
            late: number("late"),
            failed: number("failed"),
            passed: number("skipped_vblanks"),
            missed: guest.stats.missed_vblanks,
            idle: guest.stats.skipped,
            uneven: guest.screen.uneven,
        }
    }

    fn since(self, before: Self) -> Self {
        Self {
            frames: self.frames - before.frames,
            late: self.late - before.late,
            failed: self.failed - before.failed,
            passed: self.passed - before.passed,
            missed: self.missed - before.missed,
            idle: self.idle - before.idle,
            uneven: self.uneven - before.uneven,
        }
    }

    /// Whether each vblank had its frame, in time.
    fn whole(&self) -> bool {
        self.late + self.failed + self.passed + self.missed + self.idle + self.uneven == 0
    }
}

/// The neighbours, and what watches the machine.
struct Watched {
    neighbours: Vec<(&'static str, Neighbour)>,
    witness: Witness,
}

impl Watched {
    fn attach(host: &Host) -> Self {
        let attach = |Promised { name, scene, .. }| {
            let (pacer, gpu) = (host.socket(name, "pacer"), host.socket(name, "gpu"));
            (name, Neighbour::draw(&pacer, &gpu, scene))
        };
        let watched = Self { neighbours: NEIGHBOURS.map(attach).into(), witness: Witness::start() };
        watched.progress(host);
        watched
    }

    fn tallies(&self, host: &Host) -> Vec<Tally> {
        self.neighbours.iter().map(|(slice, guest)| Tally::of(host, slice, guest)).collect()
    }

    /// Waits until each neighbour has shown some more frames.
    fn progress(&self, host: &Host) {
        let before = self.tallies(host);
        let end = Instant::now() + PATIENCE;
        loop {
            let now = self.tallies(host);
            let mut shown = now.iter().zip(&before);
            if shown.all(|(now, before)| now.frames >= before.frames + GOES_ON) {
                return;
            }

            assert!(Instant::now() < end, "neighbours do not go on: {before:?}, then {now:?}");
            std::thread::sleep(LOOK);
        }
    }

    /// Whether no neighbour lost a frame while `happens`.
    ///
    /// # Panics
    /// Where one did, and the machine held nobody up.
    fn undisturbed(&self, host: &Host, happens: impl FnOnce()) -> bool {
        let before = self.tallies(host);
        self.witness.worst();
        happens();
        self.progress(host);
        let since = self.tallies(host).into_iter().zip(before).map(|(now, then)| now.since(then));
        let since: Vec<Tally> = since.collect();
        let worst = self.witness.worst();
        for ((slice, _), tally) in self.neighbours.iter().zip(&since) {
            println!("  {slice}: {tally:?}");
        }
        println!("  idle threads were held up for {worst:?} at most");
        let whole = since.iter().all(Tally::whole);
        assert!(whole || worst > DISTURBED, "frames were lost on a machine that held nobody up");
        whole
    }

    fn leave(self) {
        for (_, neighbour) in self.neighbours {
            neighbour.leave();
        }
    }
}

/// Sections of the host's file.
fn neighbours() -> String {
    let section = |Promised { name, contract, .. }| {
        format!(
            "[[slice]]\nname = \"{name}\"\nwidth = 256\nheight = 144\n[slice.contract]\n\
             refresh_hz = \"{HZ}\"\nclass = \"reserved\"\nbudget_ms = 3.0\nmax_job_ms = 1.0\n\
             {contract}"
        )
    };
    NEIGHBOURS.map(section).concat()
}

#[test]
fn neighbours_lose_no_frame_where_qemu_is_killed() {
    const TEST: &str = "neighbours_lose_no_frame_where_qemu_is_killed";
    let Some(bed) = Bed::ready(TEST) else { return };
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let mut random = Random::seeded();
    let host = Host::start_beside(&bed, folder.path(), 60, "display", &neighbours());
    let watched = Watched::attach(&host);
    let before = held::at_rest(host.pid());
    println!("the host holds {before:?}");

    let mut stages = [Stage::Boot, Stage::Vblanks, Stage::Flips].repeat(TIMES);
    random.shuffle(&mut stages);
    for stage in stages {
        let whole = (0..TRIES).any(|_| {
            println!("kill QEMU: {stage:?}");
            watched.undisturbed(&host, || kill_at(stage, &bed, &host, folder.path(), &mut random))
                && returned(&before, &host)
        });
        assert!(whole, "{stage:?}: the machine disturbed each of {TRIES} rounds");
    }

    the_judge_sees_a_host_that_stops(&watched, &host);
    // And the slice is as good as new.
    paced(&bed, &host, folder.path());
    watched.leave();
    host.stop();
}

/// A QEMU comes, gets as far as `stage`, and is killed.
fn kill_at(stage: Stage, bed: &Bed, host: &Host, folder: &Path, random: &mut Random) {
    let mut guest = Guest::start(bed, folder, &stage.machine(host));
    let lasts = stage.reach(&mut guest);
    random.moment(lasts);
    // Kills it, and waits until it has ended.
    drop(guest);
}

/// Whether the host's descriptors and the memory it maps are back where they were; it waits for that.
fn returned(before: &Held, host: &Host) -> bool {
    let mut now = Held::by(host.pid());
    let end = Instant::now() + PATIENCE;
    while now != *before {
        assert!(Instant::now() < end, "the host keeps {now:?}, not {before:?}");
        std::thread::sleep(LOOK);
        now = Held::by(host.pid());
    }
    true
}

/// That the count of lost frames can rise: the host stands still for several periods.
fn the_judge_sees_a_host_that_stops(watched: &Watched, host: &Host) {
    let before = watched.tallies(host);
    kill_process(host.pid(), Signal::STOP).unwrap();
    std::thread::sleep(Duration::from_secs(5) / HZ);
    kill_process(host.pid(), Signal::CONT).unwrap();
    watched.progress(host);
    for (now, then) in watched.tallies(host).into_iter().zip(before) {
        let tally = now.since(then);
        assert!(
            !tally.whole() && tally.passed > 0,
            "nobody saw that the host stood still: {tally:?}"
        );
    }
}

/// Behind a script that drives the slice in the background: says what the guest's bus shows of the function at `at`
/// for each line that comes.
const SURVIVOR: &str = r"
while read -r _; do
    echo bus: id=$(od -An -tx4 -N4 /sys/bus/pci/devices/$at/config) up=$(cut -d ' ' -f 1 /proc/uptime)
done
";

/// QEMU and the guest's kernel outlive it, without the functions; the next host takes its place at once.
#[test]
fn a_killed_host_leaves_nothing_in_the_way() {
    const TEST: &str = "a_killed_host_leaves_nothing_in_the_way";
    let Some(bed) = Bed::ready(TEST) else { return };
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let mut random = Random::seeded();
    for stage in [Stage::Vblanks, Stage::Flips] {
        let mut tries = 1;
        while !outlived(&bed, folder.path(), stage, &mut random) {
            println!("QEMU has ended by a mistake of its own: {QEMU_FAULT}");
            tries += 1;
            assert!(tries <= TRIES, "QEMU never outlives its host");
        }
    }
}

/// QEMU's client, which loses its server while it waits for an answer, may set an error twice and end itself.
const QEMU_FAULT: &str = "error_setv: Assertion `*errp == NULL' failed";

/// Kills a host under a QEMU, and starts the next one; whether that QEMU went on meanwhile.
fn outlived(bed: &Bed, folder: &Path, stage: Stage, random: &mut Random) -> bool {
    println!("kill the host: {stage:?}");
    let host = Host::start_as(bed, folder, 60, "display");
    let machine = stage.machine(&host);
    let script = machine.script.trim_end().to_owned() + " &\n" + SURVIVOR;
    let mut guest = Guest::start(bed, folder, &Machine { script: &script, ..machine });
    let lasts = stage.reach(&mut guest);
    let all = held::naming(folder);
    assert_eq!(all.len(), 2, "not a host and a QEMU: {all:#?}");
    random.moment(lasts);
    host.kill();
    let mut went_on = true;
    for _ in 0..2 {
        guest.say("go on");
        let Some(bus) = guest.until_unless("bus: ", QEMU_FAULT) else {
            went_on = false;
            break;
        };
        assert!(bus.contains("ffffffff"), "a function answers whose server is gone: {bus}");
    }
    // Beside the QEMU that still runs.
    let next = Host::start_as(bed, folder, 60, "display");
    drop(guest);
    paced(bed, &next, folder);
    next.stop();
    assert_eq!(held::naming(folder), [""; 0], "processes are left");
    went_on
}

/// That a QEMU that comes now is paced. How evenly is judged elsewhere, without neighbours.
fn paced(bed: &Bed, host: &Host, folder: &Path) {
    let machine = Machine {
        script: &(BIND.to_owned() + "/beamline-pacer-probe $at 100 60\n"),
        programs: &["beamline-pacer-probe"],
        devices: host.devices(),
        iommu: Iommu::Intel,
        words: "",
    };
    let said = Guest::boot(bed, folder, &machine).finish();
    let run = said.iter().find(|line| line.starts_with("probe: slice=")).expect("a run");
    on_grid(&words(run), 100, 60);
}
