//! Stage 4, schedule: whether a contract makes sense by itself.

use crate::contract::{Class, Contract};
use crate::demand;
use beamline_abi::Nanos;

/// Shortest longest job: below it, the scheduler itself would cost more.
const MIN_MAX_JOB: Nanos = Nanos::from_micros(10);
/// Longest job that a contract may allow.
const MAX_MAX_JOB: Nanos = Nanos::from_secs(10);

/// A field that is out of range: which, what it is, what would be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContractError {
    /// `deadline`.
    #[error("deadline is {deadline}; it must be above 0 and at most {most} (period × depth)")]
    Deadline {
        /// As given.
        deadline: Nanos,
        /// Largest allowed.
        most: Nanos,
    },
    /// `budget` of a reserved contract.
    #[error(
        "budget is {budget}; a reserved frame needs more than 0 and at most {most}: no more than its period, and before its deadline or late-latch window"
    )]
    Budget {
        /// As given.
        budget: Nanos,
        /// Largest allowed.
        most: Nanos,
    },
    /// `budget` of any other contract.
    #[error("budget is {budget}; it must be at most the period, {period}")]
    Minimum {
        /// As given.
        budget: Nanos,
        /// Largest allowed.
        period: Nanos,
    },
    /// `max_job`.
    #[error("max_job is {max_job}; it must be {MIN_MAX_JOB} to {MAX_MAX_JOB}")]
    MaxJob {
        /// As given.
        max_job: Nanos,
    },
    /// `max_job` beside a late latch.
    #[error("max_job is {max_job}; the late latch is one job, so it must be at least {budget}")]
    LateLatchJob {
        /// As given.
        max_job: Nanos,
        /// The late latch's budget.
        budget: Nanos,
    },
    /// `gap`.
    #[error("gap is {gap}; it must be at most the period, {period}")]
    Gap {
        /// As given.
        gap: Nanos,
        /// Largest allowed.
        period: Nanos,
    },
    /// `gap` of a reserved contract.
    #[error(
        "gap is {gap}; the {pauses} pauses between a frame's jobs must fit beside its budget before its deadline or late-latch window, so at most {most} each (a longer max_job makes fewer)"
    )]
    Pauses {
        /// As given.
        gap: Nanos,
        /// Pauses of a frame: jobs of `max_job` that the budget holds, less one.
        pauses: u64,
        /// Largest allowed.
        most: Nanos,
    },
    /// `jitter`.
    #[error(
        "jitter is {jitter}; with budget and gaps it must end by the main deadline, so at most {most}"
    )]
    Jitter {
        /// As given.
        jitter: Nanos,
        /// Largest allowed.
        most: Nanos,
    },
    /// `late_latch.window`.
    #[error("late_latch.window is {window}; it must be above 0 and below the deadline, {deadline}")]
    Window {
        /// As given.
        window: Nanos,
        /// The contract's deadline.
        deadline: Nanos,
    },
    /// `late_latch.budget`.
    #[error("late_latch.budget is {budget}; it must be above 0 and at most its window, {window}")]
    LateLatchBudget {
        /// As given.
        budget: Nanos,
        /// The window.
        window: Nanos,
    },
    /// `deadline` beside a late latch.
    #[error("deadline is {deadline}; with a late latch it must be at most one period, {period}")]
    LateLatchDeadline {
        /// As given.
        deadline: Nanos,
        /// Largest allowed.
        period: Nanos,
    },
    /// `miss`.
    #[error("miss allows {misses} in {frames} frames; misses must be fewer than frames")]
    Miss {
        /// As given.
        misses: u32,
        /// As given.
        frames: u32,
    },
    /// `deadline` beside allowed misses.
    #[error(
        "deadline is {deadline}; where misses are allowed it must be at most one period, {period}: a miss is known by the next vblank"
    )]
    MissDeadline {
        /// As given.
        deadline: Nanos,
        /// Largest allowed.
        period: Nanos,
    },
    /// `depth`.
    #[error("depth is {depth}; it must be 1 to 4")]
    Depth {
        /// As given.
        depth: u8,
    },
    /// `weight`.
    #[error("weight is {weight}; it must be 1 to 1000")]
    Weight {
        /// As given.
        weight: u16,
    },
}

/// Checks every field, in the order in which they are declared.
pub fn contract(c: &Contract) -> Result<(), ContractError> {
    if !(1..=4).contains(&c.depth) {
        return Err(ContractError::Depth { depth: c.depth });
    }
    let most = c.period.times(u64::from(c.depth));
    if c.deadline == Nanos::ZERO || c.deadline > most {
        return Err(ContractError::Deadline { deadline: c.deadline, most });
    }
    late_latch(c)?;
    let main = c.main_deadline();
    let period = c.period.floor();
    let budget = c.budget;
    let most = main.min(period);
    if c.class == Class::Reserved && (budget == Nanos::ZERO || budget > most) {
        return Err(ContractError::Budget { budget, most });
    }
    if c.class != Class::Reserved && budget > period {
        return Err(ContractError::Minimum { budget, period });
    }
    if !(MIN_MAX_JOB..=MAX_MAX_JOB).contains(&c.max_job) {
        return Err(ContractError::MaxJob { max_job: c.max_job });
    }
    if c.gap > period {
        return Err(ContractError::Gap { gap: c.gap, period });
    }
    let pauses = demand::jobs_per_frame(c) - 1;
    let spare = main.saturating_sub(budget);
    if c.class == Class::Reserved && c.gap.0.saturating_mul(pauses) > spare.0 {
        let most = Nanos(spare.0 / pauses.max(1));
        return Err(ContractError::Pauses { gap: c.gap, pauses, most });
    }
    let most = match c.class {
        // No overflow: the pauses were just found to fit.
        Class::Reserved => spare.saturating_sub(Nanos(c.gap.0.saturating_mul(pauses))).min(period),
        Class::Elastic | Class::Background => period,
    };
    if c.jitter > most {
        return Err(ContractError::Jitter { jitter: c.jitter, most });
    }
    if c.miss.misses >= c.miss.frames {
        return Err(ContractError::Miss { misses: c.miss.misses, frames: c.miss.frames });
    }
    if !c.pattern().is_all() && c.deadline > c.period.ceil() {
        let (deadline, period) = (c.deadline, c.period.ceil());
        return Err(ContractError::MissDeadline { deadline, period });
    }
    if !(1..=1_000).contains(&c.weight) {
        return Err(ContractError::Weight { weight: c.weight });
    }
    Ok(())
}

fn late_latch(c: &Contract) -> Result<(), ContractError> {
    let Some(l) = c.late_latch else {
        return Ok(());
    };
    if l.window == Nanos::ZERO || l.window >= c.deadline {
        return Err(ContractError::Window { window: l.window, deadline: c.deadline });
    }
    if l.budget == Nanos::ZERO || l.budget > l.window {
        return Err(ContractError::LateLatchBudget { budget: l.budget, window: l.window });
    }
    if l.budget > c.max_job {
        return Err(ContractError::LateLatchJob { max_job: c.max_job, budget: l.budget });
    }
    // A later frame's jobs would have to wait behind the late latch: its tenant's jobs keep their order.
    if c.deadline > c.period.ceil() {
        return Err(ContractError::LateLatchDeadline {
            deadline: c.deadline,
            period: c.period.ceil(),
        });
    }
    Ok(())
}

#[cfg(test)]
#[path = "validate_tests.rs"]
mod tests;
