//! What became of a run.

use beamline_abi::Nanos;
use beamline_latency::frames::{Health, Window};
use beamline_latency::{Analysis, Log, Options, RunReport, Stage, Stamp};
use std::collections::BTreeMap;

/// The log of a run.
pub struct Outcome {
    bytes: Vec<u8>,
    log: Log,
}

/// The frames of one slice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Frames that were due.
    pub due: u64,
    /// Of those, how many were not complete in time.
    pub missed: u64,
    /// How many late latches were not in their window and in time.
    pub latch_missed: u64,
}

impl Outcome {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        let log = Log::parse(&bytes).expect("the log was written a moment ago, in memory");
        Self { bytes, log }
    }

    /// The file.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What the file says.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// The frames of slice `index` that were due between `from` and `to`.
    pub fn tally(&self, index: usize, from: Nanos, to: Nanos) -> Tally {
        let options = within(from, to);
        let analysis = Analysis::new(&self.log, options);
        let mut tally = Tally::default();
        for slot in analysis.slots.get(index).iter().flat_map(|s| &s.slots) {
            tally.due += 1;
            tally.missed += u64::from(!slot.in_budget);
            tally.latch_missed += u64::from(slot.latch == Some(false));
        }
        tally
    }

    /// The report on what was due between `from` and `to`.
    pub fn report(&self, from: Nanos, to: Nanos) -> RunReport {
        RunReport::new(&Analysis::new(&self.log, within(from, to)), None, Some(1.0))
    }

    /// What is wrong with the stamps of these slices.
    pub fn health(&self, slices: &[usize], from: Nanos, to: Nanos) -> Health {
        let stamps = self.log.stamps.iter();
        let theirs = stamps.filter(|s| slices.contains(&usize::from(s.slice.0))).copied();
        let log = Log { stamps: theirs.collect(), ..self.log.clone() };
        Analysis::new(&log, within(from, to)).joined.health
    }

    /// Jobs and shown frames of slice `index` that do not have exactly one stamp per stage: stages 1 to 6
    /// per job, 7 to 9 per frame shown. What is still under way at `until` is not looked at, nor are jobs
    /// that failed.
    pub fn incomplete(&self, index: usize, until: Nanos) -> Vec<String> {
        let of_slice = |s: &&Stamp| usize::from(s.slice.0) == index;
        let mut jobs: BTreeMap<_, Passed> = BTreeMap::new();
        let mut vblanks: BTreeMap<_, [u32; 3]> = BTreeMap::new();
        for stamp in self.log.stamps.iter().filter(of_slice) {
            match stamp.stage() {
                Some(stage @ (Stage::Vblank | Stage::Posted | Stage::Guest)) => {
                    let seen = vblanks.entry((stamp.generation, stamp.a)).or_default();
                    seen[stage as usize - Stage::Vblank as usize] += 1;
                }
                Some(Stage::Tick) | None => {}
                Some(stage) => {
                    let key = (stamp.generation, stamp.frame, stamp.job);
                    jobs.entry(key).or_default().add(stage, stamp);
                }
            }
        }
        let last = vblanks.keys().next_back().copied();
        let shown = vblanks.iter().filter(|(key, seen)| seen[0] > 0 && Some(**key) != last);
        let bad = shown.filter(|(_, seen)| **seen != [1; 3]);
        let frames = bad.map(|(key, seen)| format!("vblank {key:?}: stages 7 to 9 {seen:?}"));
        let jobs = jobs.iter().filter(|(_, job)| !job.failed && job.before(until));
        let bad = jobs.filter(|(_, job)| job.seen != [1; 6]);
        bad.map(|(key, job)| format!("job {key:?}: stages 1 to 6 {:?}", job.seen))
            .chain(frames)
            .collect()
    }
}

fn within(from: Nanos, to: Nanos) -> Options {
    let window = Some(Window { from_ns: from.0, to_ns: to.0 });
    Options { warm_up: Nanos::ZERO, window }
}

/// The stamps of one job.
#[derive(Default)]
struct Passed {
    seen: [u32; 6],
    doorbell: Option<u64>,
    failed: bool,
}

impl Passed {
    fn add(&mut self, stage: Stage, stamp: &Stamp) {
        self.seen[stage as usize - Stage::Submit as usize] += 1;
        match stage {
            Stage::Doorbell => self.doorbell = Some(stamp.time),
            Stage::Fence => self.failed |= stamp.has(beamline_latency::stamp::flag::FAILED),
            _ => {}
        }
    }

    /// Whether the host had it before `until`.
    fn before(&self, until: Nanos) -> bool {
        self.doorbell.is_some_and(|at| at < until.0)
    }
}
