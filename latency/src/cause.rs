//! Why a frame was missed: exactly one cause for each.
//!
//! A frame's way from its release to its completion is cut into shares, each the time that one cause added
//! beyond what the contract allows; the largest share is the cause. A pure function of the frame, its
//! contract, its vblank and the GPU's timeline.

use crate::frames::{Frame, Job, sum};
use crate::meta::ContractMeta;
use crate::stamp::SliceIndex;
use crate::timeline::Timeline;
use beamline_abi::{Nanos, Reason};
use serde::{Deserialize, Serialize};

/// Why a frame was missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// The guest submitted too late, or not at all, though its vblank came in time.
    GuestCpu,
    /// The guest's jobs used more GPU time than its contract grants, or one of them failed.
    GuestGpu,
    /// The host held the job back, started another first, or handled it late.
    SchedulerWait,
    /// Another slice's job had the GPU when this one was ready.
    Neighbour,
    /// The vblank was emitted or delivered late.
    IrqLate,
    /// Complete in time, but not shown at its vblank.
    Present,
    /// The scheduler went by a cost that proved too low.
    Prediction,
    /// The guest had too many frames of its own under way.
    Stuffing,
    /// None of these: above 1% of misses this is a defect of the harness.
    Unknown,
}

impl Cause {
    /// All causes, in the order they are listed.
    pub const ALL: [Self; 9] = [
        Self::GuestCpu,
        Self::GuestGpu,
        Self::SchedulerWait,
        Self::Neighbour,
        Self::IrqLate,
        Self::Present,
        Self::Prediction,
        Self::Stuffing,
        Self::Unknown,
    ];

    /// Its name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::GuestCpu => "guest-cpu",
            Self::GuestGpu => "guest-gpu",
            Self::SchedulerWait => "scheduler-wait",
            Self::Neighbour => "neighbour",
            Self::IrqLate => "irq-late",
            Self::Present => "present",
            Self::Prediction => "prediction",
            Self::Stuffing => "stuffing",
            Self::Unknown => "unknown",
        }
    }

    /// Whether the guest itself broke its contract.
    pub const fn is_the_guests(self) -> bool {
        matches!(self, Self::GuestCpu | Self::GuestGpu | Self::Stuffing)
    }
}

/// Delivery of a vblank up to this is part of the jitter a contract allows.
pub const IRQ_ALLOWANCE: Nanos = Nanos::from_micros(200);

/// The frame of the same slice before this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Earlier {
    /// When the host had handled its last job; [`Nanos::MAX`] if it never did.
    pub handled: Nanos,
    /// Why it was missed, if it was.
    pub cause: Option<Cause>,
}

impl Earlier {
    /// What blocking by this frame counts as: its own cause, or stuffing if it was well.
    fn blame(self) -> Cause {
        self.cause.unwrap_or(Cause::Stuffing)
    }
}

/// A frame's vblank and what came before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// The vblank's place on the grid.
    pub release: Nanos,
    /// When the frame is due.
    pub deadline: Nanos,
    /// When the vblank was emitted; `None` if it never was.
    pub emitted: Option<Nanos>,
    /// When the guest's handler saw it or one after it; `None` if that is not known.
    pub handled: Option<Nanos>,
    /// The frame before.
    pub earlier: Option<Earlier>,
}

impl Start {
    /// How long after its place on the grid the vblank reached the guest, as far as is known.
    fn irq_delay(&self) -> Nanos {
        let seen = self.handled.or(self.emitted).unwrap_or(self.release);
        seen.saturating_sub(self.release)
    }

    /// How far the first submission at `at` is behind the contract, and what excuses the guest: each
    /// excuse is at most the lateness.
    pub fn lateness(&self, contract: &ContractMeta, at: Nanos) -> Lateness {
        let allowed = self.release.saturating_add(Nanos(contract.jitter_ns));
        let late = at.saturating_sub(allowed);
        let irq = self.irq_delay().saturating_sub(IRQ_ALLOWANCE).min(late);
        let earlier = self.earlier.filter(|e| e.handled <= at);
        let behind = earlier.map_or(Nanos::ZERO, |e| e.handled.saturating_sub(self.release));
        let behind = behind.min(late);
        Lateness { late, irq, behind, own: late.saturating_sub(irq.max(behind)) }
    }
}

/// How far a submission was behind its contract.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lateness {
    /// After release plus jitter.
    pub late: Nanos,
    /// The part that a late interrupt explains.
    pub irq: Nanos,
    /// The part that an earlier frame of the same slice, still under way, explains.
    pub behind: Nanos,
    /// What is left: the guest's own.
    pub own: Nanos,
}

/// What each cause added to a frame's way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shares([Nanos; Cause::ALL.len()]);

impl Shares {
    /// The time that `cause` added.
    pub fn of(&self, cause: Cause) -> Nanos {
        self.0[cause as usize]
    }

    fn add(&mut self, cause: Cause, time: Nanos) {
        let share = &mut self.0[cause as usize];
        *share = share.saturating_add(time);
    }

    /// The largest share's cause: the first listed among equals, `Unknown` if all are zero.
    pub fn largest(&self) -> Cause {
        let mut best = Cause::Unknown;
        for cause in Cause::ALL {
            if self.of(cause) > self.of(best) {
                best = cause;
            }
        }
        best
    }
}

/// How much more GPU time `jobs` took than the contract grants.
pub fn gpu_excess<'a>(
    contract: &ContractMeta,
    budget_ns: u64,
    jobs: impl Iterator<Item = &'a Job> + Clone,
) -> Nanos {
    let busy = sum(jobs.clone().filter_map(|j| j.busy));
    let longest = Nanos(contract.max_job_ns);
    let long = sum(jobs.filter_map(|j| j.busy).map(|b| b.saturating_sub(longest)));
    busy.saturating_sub(Nanos(budget_ns)).max(long)
}

/// The cause of a failed job.
fn of_failure(reason: Reason) -> Cause {
    match reason {
        Reason::JobTooLong | Reason::DeviceLost | Reason::Shader => Cause::GuestGpu,
        Reason::Draining => Cause::SchedulerWait,
        Reason::None => Cause::Unknown,
        _ => Cause::GuestCpu,
    }
}

/// Why `frame` was late, and by which shares.
pub fn of_frame(
    slice: SliceIndex,
    frame: &Frame,
    start: &Start,
    contract: &ContractMeta,
    timeline: &Timeline,
) -> (Cause, Shares) {
    if let Some(reason) = frame.jobs.iter().find_map(|j| j.failed) {
        return (of_failure(reason), Shares::default());
    }
    let mut shares = Shares::default();
    // Main jobs that run into the late latch's window delay it.
    let opens = start.deadline.saturating_sub(Nanos(contract.late_latch_ns));
    if frame.jobs.len() < usize::from(frame.expected)
        || !frame.main_jobs().all(|j| j.in_time(opens))
    {
        main_shares(&mut shares, slice, frame, start, contract, timeline);
    }
    if let Some(latch) = frame.late_latch()
        && !latch.in_time(start.deadline)
    {
        latch_shares(&mut shares, slice, frame, latch, start, contract, timeline);
    }
    (shares.largest(), shares)
}

fn main_shares(
    shares: &mut Shares,
    slice: SliceIndex,
    frame: &Frame,
    start: &Start,
    contract: &ContractMeta,
    timeline: &Timeline,
) {
    let blame = start.earlier.map_or(Cause::Stuffing, Earlier::blame);
    let mut previous: Option<&Job> = None;
    for job in frame.main_jobs() {
        let Some(arrived) = job.arrived() else { continue };
        match previous {
            None => {
                let late = start.lateness(contract, arrived);
                shares.add(Cause::IrqLate, late.irq);
                shares.add(blame, late.behind);
                shares.add(Cause::GuestCpu, late.own);
            }
            Some(before) => between(shares, before, arrived, start, contract),
        }
        let mediated = job.mediated.unwrap_or(arrived);
        shares.add(Cause::SchedulerWait, mediated.saturating_sub(arrived));
        let ready = mediated
            .max(job.release.unwrap_or_default())
            .max(previous.and_then(|p| p.done).unwrap_or_default());
        add_wait(shares, slice, frame, job, ready, start, timeline);
        previous = Some(job);
    }
    if frame.jobs.len() < usize::from(frame.expected) {
        // A job never came: the guest had from the last fence on.
        let from = previous.and_then(|p| p.fence).unwrap_or(start.release);
        shares.add(Cause::GuestCpu, start.deadline.saturating_sub(from));
    }
    let excess = gpu_excess(contract, contract.budget_ns, frame.main_jobs());
    shares.add(Cause::GuestGpu, excess);
}

/// The time between a job and the next of the same frame.
fn between(
    shares: &mut Shares,
    before: &Job,
    arrived: Nanos,
    start: &Start,
    contract: &ContractMeta,
) {
    let fence = before.fence.or(before.done).unwrap_or_default();
    let allowed = fence
        .saturating_add(Nanos(contract.gap_ns))
        .max(start.release.saturating_add(Nanos(contract.jitter_ns)));
    shares.add(Cause::GuestCpu, arrived.saturating_sub(allowed));
    if arrived >= fence {
        // The guest waited for this fence: the host's handling of it delayed the next job.
        let handling = before.done.map_or(Nanos::ZERO, |done| fence.saturating_sub(done));
        shares.add(Cause::SchedulerWait, handling);
    }
}

fn latch_shares(
    shares: &mut Shares,
    slice: SliceIndex,
    frame: &Frame,
    latch: &Job,
    start: &Start,
    contract: &ContractMeta,
    timeline: &Timeline,
) {
    let opens = start.deadline.saturating_sub(Nanos(contract.late_latch_ns));
    let Some(arrived) = latch.arrived() else { return };
    shares.add(Cause::GuestCpu, arrived.saturating_sub(opens));
    let mediated = latch.mediated.unwrap_or(arrived);
    let ready = mediated.max(opens);
    shares.add(Cause::SchedulerWait, ready.saturating_sub(arrived.max(opens)));
    add_wait(shares, slice, frame, latch, ready, start, timeline);
    let budget = match contract.late_latch_budget_ns {
        0 => contract.max_job_ns,
        n => n,
    };
    shares.add(Cause::GuestGpu, gpu_excess(contract, budget, std::iter::once(latch)));
}

/// From `ready` to the job's first run, and what held it up while it ran.
fn add_wait(
    shares: &mut Shares,
    slice: SliceIndex,
    frame: &Frame,
    job: &Job,
    ready: Nanos,
    start: &Start,
    timeline: &Timeline,
) {
    // A job that never ran waited past its deadline at least.
    let until = job.first_run.unwrap_or(start.deadline.max(ready));
    let wait = timeline.wait(slice, frame.id, ready, until);
    let busy = job.busy.unwrap_or_default();
    let under = job.predicted.map_or(Nanos::ZERO, |p| busy.saturating_sub(p)).min(wait.idle);
    shares.add(Cause::Neighbour, wait.blocked);
    shares.add(Cause::Prediction, wait.beyond_prediction.saturating_add(under));
    shares.add(Cause::SchedulerWait, wait.overtaken);
    shares.add(Cause::SchedulerWait, wait.idle.saturating_sub(under));
    shares.add(start.earlier.map_or(Cause::Stuffing, Earlier::blame), wait.own);
    if let (Some(first), Some(done)) = (job.first_run, job.done) {
        // Off the GPU after it had begun: others ran in between or beside it.
        let off = done.saturating_sub(first).saturating_sub(busy);
        let beside = timeline.wait(slice, frame.id, first, done);
        let others = beside.blocked.saturating_add(beside.overtaken);
        let others = others.saturating_add(beside.beyond_prediction).min(off);
        shares.add(Cause::Neighbour, others);
    }
}

/// Why the guest made no frame for its vblank.
pub fn of_skipped(start: &Start, contract: &ContractMeta) -> Cause {
    let allowed = start.release.saturating_add(Nanos(contract.jitter_ns));
    let late = |at: Nanos| at > allowed && at.saturating_sub(start.release) > IRQ_ALLOWANCE;
    match start {
        Start { emitted: None, .. } => Cause::IrqLate,
        Start { emitted: Some(at), .. } if late(*at) => Cause::IrqLate,
        Start { earlier: Some(earlier), .. } if earlier.handled > allowed => earlier.blame(),
        Start { handled: Some(at), .. } if late(*at) => Cause::IrqLate,
        _ => Cause::GuestCpu,
    }
}

#[cfg(test)]
#[path = "cause_tests.rs"]
mod tests;
