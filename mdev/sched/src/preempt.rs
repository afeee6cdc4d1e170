//! Stage 4, schedule: what it costs to make room on the GPU, and who is charged.
//!
//! * [`Preemption::None`]: a job holds the GPU to its end.
//! * [`Preemption::Levels`]: reserved jobs run above all others, one at a time. Each may find a lower job on
//!   the GPU, which takes `grain` to leave: that is charged to every reserved job, as a switch is. Among
//!   themselves reserved jobs run to their end.
//! * [`Preemption::Full`]: one job is on the GPU, and is asked back for one that is due earlier. A release does
//!   that at most once, so each is charged once what it can cost others: the job leaves (`cost`), and
//!   later goes on (`cost`, and a switch back to its tenant).

use crate::contract::Contract;
use crate::mk::Pattern;
use crate::policy::{GpuCaps, Preemption};

/// Shortest stretch of a job that is begun before a guarded release, under [`Preemption::Full`], ns.
const LEAST_PART: u64 = 50_000;

impl Preemption {
    /// What the policy can make use of: a single level is none.
    pub(crate) const fn usable(self) -> Self {
        match self {
            Self::Levels { levels, .. } if levels < 2 => Self::None,
            other => other,
        }
    }
}

/// Which frames of a contract are mandatory. All, where a GPU can be preempted: an optional frame that others
/// interrupt would hold up its own tenant's next one, which keeps its place behind it.
pub(crate) fn pattern(c: &Contract, caps: &GpuCaps) -> Pattern {
    match caps.preemption.usable() {
        Preemption::None => c.pattern(),
        Preemption::Levels { .. } | Preemption::Full { .. } => Pattern::ALL,
    }
}

/// What every reserved job is charged beside its own time, ns.
pub(crate) const fn per_job(caps: &GpuCaps) -> u64 {
    match caps.preemption.usable() {
        Preemption::Levels { grain, .. } => caps.switch_cost.0.saturating_add(grain.0),
        Preemption::None | Preemption::Full { .. } => caps.switch_cost.0,
    }
}

/// What every release of reserved work is charged for the job it may ask back, ns.
pub(crate) const fn per_release(caps: &GpuCaps) -> u64 {
    match caps.preemption.usable() {
        Preemption::Full { cost } => {
            cost.0.saturating_add(cost.0).saturating_add(caps.switch_cost.0)
        }
        Preemption::None | Preemption::Levels { .. } => 0,
    }
}

/// How long a reserved job of at most `max_job` ns holds up another one that is due earlier, ns.
pub(crate) fn chunk(max_job: u64, caps: &GpuCaps) -> u64 {
    match caps.preemption.usable() {
        Preemption::Full { cost } => max_job.min(cost.0),
        Preemption::None | Preemption::Levels { .. } => max_job,
    }
}

/// The same for a job of elastic or background work. Under levels nothing: reserved jobs are charged for it.
pub(crate) fn foreign_chunk(max_job: u64, caps: &GpuCaps) -> u64 {
    match caps.preemption.usable() {
        Preemption::Levels { .. } => 0,
        Preemption::None | Preemption::Full { .. } => chunk(max_job, caps),
    }
}

/// Blocking by jobs of `chunk` ns that are on the GPU already, with what was charged to their start, ns.
pub(crate) fn block(chunk: u64, caps: &GpuCaps) -> u64 {
    let depth = match caps.preemption.usable() {
        Preemption::None => u64::from(caps.in_flight.max(1)),
        // One reserved job at a time.
        Preemption::Levels { .. } | Preemption::Full { .. } => 1,
    };
    chunk.saturating_add(per_job(caps)).saturating_mul(depth)
}

/// The clear time before a guarded release that is worth beginning a job for, however long it is, ns. Under
/// full preemption half of it at least goes into the job; under levels the GPU itself makes room.
pub(crate) fn part(caps: &GpuCaps) -> u64 {
    match caps.preemption.usable() {
        Preemption::None => u64::MAX,
        Preemption::Levels { grain, .. } => grain.0,
        Preemption::Full { cost } => {
            cost.0.saturating_add(caps.switch_cost.0).saturating_mul(4).max(LEAST_PART)
        }
    }
}
