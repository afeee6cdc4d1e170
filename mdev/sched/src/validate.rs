//! Stage 4, schedule: whether a contract makes sense by itself.

use crate::contract::{Class, Contract};
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
        "budget is {budget}; a reserved frame needs more than 0 and at most {most} before its deadline"
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
    /// `jitter`.
    #[error(
        "jitter is {jitter}; with the budget it must end by the main deadline, so at most {most}"
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
    let budget = c.budget;
    if c.class == Class::Reserved && (budget == Nanos::ZERO || budget > main) {
        return Err(ContractError::Budget { budget, most: main });
    }
    let period = c.period.floor();
    if c.class != Class::Reserved && budget > period {
        return Err(ContractError::Minimum { budget, period });
    }
    if !(MIN_MAX_JOB..=MAX_MAX_JOB).contains(&c.max_job) {
        return Err(ContractError::MaxJob { max_job: c.max_job });
    }
    if c.gap > period {
        return Err(ContractError::Gap { gap: c.gap, period });
    }
    let most = match c.class {
        Class::Reserved => main.saturating_sub(budget).min(period),
        Class::Elastic | Class::Background => period,
    };
    if c.jitter > most {
        return Err(ContractError::Jitter { jitter: c.jitter, most });
    }
    if c.miss.misses >= c.miss.frames {
        return Err(ContractError::Miss { misses: c.miss.misses, frames: c.miss.frames });
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
