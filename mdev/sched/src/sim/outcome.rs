//! What came of one simulated run. Counts cover the time after warm-up; every figure here is *simulated*.

use super::scenario::Options;
use crate::contract::{Class, Contract};
use beamline_abi::Nanos;
use core::fmt;
use hdrhistogram::Histogram;
use std::string::String;
use std::vec::Vec;

/// Completion times are kept to three significant digits, up to this, ns; longer ones are cut to it.
const HISTOGRAM_MAX: u64 = 60_000_000_000;

/// One run.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// How it was run.
    pub options: Options,
    /// Virtual time that counts, ns.
    pub span: Nanos,
    /// By tenant, as in the scenario; those that admission refused say so.
    pub tenants: Vec<TenantOutcome>,
    /// What the GPU did.
    pub gpu: GpuUse,
    /// Who had the GPU when, in order, from the start of the run (warm-up included); empty unless asked for, and
    /// at most [`MAX_SPANS`](super::outcome::MAX_SPANS).
    pub timeline: Vec<Span>,
}

/// Most entries of a timeline.
pub const MAX_SPANS: usize = 1_000_000;

/// What the GPU did in the time that counts, ns. The rest it was idle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GpuUse {
    /// Ran jobs.
    pub busy: Nanos,
    /// Changed from one tenant to another.
    pub switching: Nanos,
    /// Took jobs off and put them on again.
    pub preempting: Nanos,
}

/// How many were due, and how many of them in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Due.
    pub due: u64,
    /// Done by the deadline.
    pub in_time: u64,
}

impl Tally {
    /// One more.
    pub fn count(&mut self, in_time: bool) {
        self.due += 1;
        self.in_time += u64::from(in_time);
    }

    /// Due and not in time.
    pub const fn missed(&self) -> u64 {
        self.due - self.in_time
    }

    /// The share in time, 0 to 1; `None` where none was due.
    pub fn share(&self) -> Option<f64> {
        (self.due > 0).then(|| self.in_time as f64 / self.due as f64)
    }

    /// The sum of both.
    pub fn add(&mut self, other: Self) {
        self.due += other.due;
        self.in_time += other.in_time;
    }
}

/// How a frame of a reserved contract left its contract by its own doing. The first that applies counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OwnCause {
    /// A job was longer than `max_job`.
    MaxJob,
    /// Its jobs, with the debt of earlier frames, needed more than the budget; or its late latch did.
    Budget,
    /// Its first job came later after the vblank than `jitter`.
    Jitter,
    /// It paused longer than `gap`, or more often than the contract has jobs.
    Gap,
    /// A frame before it left the contract, and was still under way at its vblank.
    Aftermath,
}

impl OwnCause {
    /// Each of them, in the order of [`TenantOutcome::own`].
    pub const ALL: [Self; 5] =
        [Self::MaxJob, Self::Budget, Self::Jitter, Self::Gap, Self::Aftermath];

    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::MaxJob => "max_job",
            Self::Budget => "budget",
            Self::Jitter => "jitter",
            Self::Gap => "gap",
            Self::Aftermath => "aftermath",
        }
    }
}

/// A histogram of completion times, ns.
#[derive(Clone, PartialEq)]
pub struct Completion(Histogram<u64>);

impl Default for Completion {
    fn default() -> Self {
        let histogram = Histogram::new_with_bounds(1_000, HISTOGRAM_MAX, 3);
        Self(histogram.expect("the bounds are constants in range"))
    }
}

impl core::ops::Deref for Completion {
    type Target = Histogram<u64>;
    fn deref(&self) -> &Histogram<u64> {
        &self.0
    }
}

impl fmt::Debug for Completion {
    /// What was counted, by value.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = self.iter_recorded().map(|v| (v.value_iterated_to(), v.count_at_value()));
        f.debug_map().entries(counts).finish()
    }
}

/// One tenant's part.
#[derive(Clone, Debug, PartialEq)]
pub struct TenantOutcome {
    /// Its name.
    pub name: String,
    /// Its contract.
    pub contract: Contract,
    /// Why admission refused it: then nothing else was counted.
    pub refused: Option<String>,
    /// Where its vblanks lay.
    pub phase: Nanos,
    /// All frames that were due. A frame is in time when all its jobs, its late latch included, have ended by
    /// its deadline; one that was not begun because the guest had no room for it is missed.
    pub frames: Tally,
    /// Those that kept the contract in what they asked for: what the scheduler answers for. All
    /// frames of contracts that are not reserved.
    pub kept: Tally,
    /// Missed frames among those that kept the contract, but that it allows: with each, at most m of the last k
    /// were missed.
    pub excused: u64,
    /// The others, by [`OwnCause::ALL`].
    pub own: [Tally; OwnCause::ALL.len()],
    /// Frames that were not begun: the guest had as many under way as its depth.
    pub stale: u64,
    /// Late-latch jobs of all frames, with those that were never posted since the frame was late.
    pub late_latch: Tally,
    /// Longest run of missed frames among those that kept the contract.
    pub miss_run: u64,
    /// From vblank to end of the frame, of those that kept the contract, ns. A frame that was not begun counts
    /// with the time until the next one's end, since that is how long its image stood.
    pub completion: Completion,
    /// The longest of them, ns.
    pub worst: Nanos,
    /// GPU time, ns.
    pub gpu: Nanos,
    /// Jobs that have left the GPU.
    pub jobs: u64,
    /// Jobs that were killed, being longer than `max_job` and the grace.
    pub killed: u64,
}

impl TenantOutcome {
    /// Nothing counted yet.
    pub fn new(name: &str, contract: &Contract) -> Self {
        Self {
            name: name.into(),
            contract: *contract,
            refused: None,
            phase: Nanos::ZERO,
            frames: Tally::default(),
            kept: Tally::default(),
            excused: 0,
            own: [Tally::default(); OwnCause::ALL.len()],
            stale: 0,
            late_latch: Tally::default(),
            miss_run: 0,
            completion: Completion::default(),
            worst: Nanos::ZERO,
            gpu: Nanos::ZERO,
            jobs: 0,
            killed: 0,
        }
    }

    /// The frames that kept the contract, with those in time whose miss it allows: whether the promise held.
    pub const fn promised(&self) -> Tally {
        Tally { due: self.kept.due, in_time: self.kept.in_time + self.excused }
    }

    /// The nearest-rank quantile `p` of the completion time; `None` where fewer than 10/(1 − p) frames were
    /// counted.
    pub fn quantile(&self, p: f64) -> Option<Nanos> {
        let enough = self.completion.len() as f64 * (1.0 - p) >= 10.0 - 1e-6;
        enough.then(|| Nanos(self.completion.value_at_quantile(p)))
    }

    /// A completion time as a share of the deadline.
    pub fn response(&self, completion: Nanos) -> f64 {
        completion.0 as f64 / self.contract.deadline.0 as f64
    }

    /// Counts a completion time.
    pub fn completed(&mut self, after: u64) {
        self.worst = self.worst.max(Nanos(after));
        // Cannot fail: the value is within the histogram's range.
        let _ = self.completion.0.record(after.min(HISTOGRAM_MAX));
    }

    /// Adds another run's counts.
    pub fn add(&mut self, other: &Self) {
        self.frames.add(other.frames);
        self.kept.add(other.kept);
        self.excused += other.excused;
        for (own, more) in self.own.iter_mut().zip(other.own) {
            own.add(more);
        }
        self.stale += other.stale;
        self.late_latch.add(other.late_latch);
        self.miss_run = self.miss_run.max(other.miss_run);
        // Cannot fail: both have the same bounds.
        let _ = self.completion.0.add(&other.completion.0);
        self.worst = self.worst.max(other.worst);
        self.gpu += other.gpu;
        self.jobs += other.jobs;
        self.killed += other.killed;
        if self.refused.is_none() {
            self.refused.clone_from(&other.refused);
        }
    }
}

impl Outcome {
    /// The share of the time in which the GPU ran jobs, 0 to 1.
    pub fn utilisation(&self) -> f64 {
        self.gpu.busy.0 as f64 / self.span.0 as f64
    }

    /// The share of the time in which the GPU ran jobs of background contracts, 0 to 1.
    pub fn background(&self) -> f64 {
        let background = self.tenants.iter().filter(|t| t.contract.class == Class::Background);
        background.map(|t| t.gpu.0).sum::<u64>() as f64 / self.span.0 as f64
    }

    /// The frames of all reserved tenants that kept their contracts, as promised.
    pub fn kept(&self) -> Tally {
        let mut sum = Tally::default();
        self.reserved().for_each(|t| sum.add(t.promised()));
        sum
    }

    /// The reserved tenants.
    pub fn reserved(&self) -> impl Iterator<Item = &TenantOutcome> {
        self.tenants.iter().filter(|t| t.contract.class == Class::Reserved)
    }

    /// How many tenants admission refused.
    pub fn refused(&self) -> usize {
        self.tenants.iter().filter(|t| t.refused.is_some()).count()
    }

    /// Whether every tenant that was admitted has at least this share of its kept frames in time.
    pub fn all_in_budget(&self, share: f64) -> bool {
        let enough = |t: &TenantOutcome| {
            let kept = t.promised();
            kept.in_time as f64 >= share * kept.due as f64
        };
        self.reserved().all(enough)
    }
}

/// What the GPU was doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Doing {
    /// A job ran.
    Work,
    /// It changed to this job's tenant.
    Switch,
    /// It took this job off, or put it on again.
    Preempt,
}

/// A stretch of the GPU's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Whose job: index in the scenario.
    pub tenant: u16,
    /// The vblank of its frame; for a flood, the period it was submitted in.
    pub slot: u64,
    /// Place in the frame.
    pub job: u16,
    /// It is a late latch.
    pub late_latch: bool,
    /// What.
    pub doing: Doing,
    /// From, ns after the run's start.
    pub from: Nanos,
    /// Until.
    pub to: Nanos,
}
