//! What becomes of a guest's request for another contract: policy, as functions of what was asked and of the
//! set of contracts. [`super::asks`] carries it out.
//!
//! The operator's contract is a ceiling. Within it a guest chooses its rate and how its GPU time is cut:
//!
//! * its rate lies between the bounds that the operator states;
//! * budget and late latch together are no larger part of a period than the ceiling's;
//! * neither is more urgent than the ceiling's: the budget no larger part of the time that it has, the late
//!   latch no larger part of its window. There is a late latch only where the operator gives one;
//! * all else is the operator's: class, longest job, gap, jitter, sink, guard, depth, weight, misses.
//!
//! What is more becomes less, by the budget. Then admission judges it like any other change. A reduced
//! contract never gives a guest whose GPU time was cut a smaller part of the GPU than it has: that is a
//! refusal, which names what would fit.

use super::admit::{Ledger, NotNow};
use crate::config::GuestContract;
use crate::device::pacer::{Answer, Ask};
use crate::mediate::dispatcher::Change;
use beamline_abi::{Nanos, Reason};
use beamline_sched::{Contract, LateLatch, Period, Refusal};

/// How often admission's own suggestion is tried, where that is refused as well: it may assume shorter jobs.
const TRIES: usize = 3;

/// What a request leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "there is one at a time, and it is looked at at once"
)]
pub enum Decision {
    /// The guest gets this answer; the contract changes so, where it does.
    Answered(Answer, Option<Change>),
    /// A change before is not over: decide again at this host time.
    Later(Nanos),
}

/// What a slice's guest may ask for, and what it has.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// What the operator allows.
    pub policy: GuestContract,
    /// What the operator gave.
    pub ceiling: Contract,
    /// What the slice has.
    pub current: Contract,
}

/// Decides on what the guest at `index` asks for. Takes the milliseconds that admission takes.
pub fn decide(ledger: &mut Ledger, index: u16, terms: &Terms, ask: &Ask, now: Nanos) -> Decision {
    let refused = |reason, budget| Decision::Answered(Answer::Refused { reason, budget }, None);
    let Wanted { contract: mut wanted, mut less, mut cut } = match read(terms, ask) {
        Ok(wanted) => wanted,
        Err(reason) => return refused(reason, Nanos::ZERO),
    };
    for _ in 0..TRIES {
        if let Some(reason) = less.filter(|_| cut)
            && (wanted.budget == Nanos::ZERO || is_less(&wanted, &terms.current))
        {
            return refused(reason, wanted.budget);
        }
        let change = if wanted == terms.current {
            None
        } else {
            match ledger.change(index, &wanted, now) {
                Ok(change) => Some(change),
                Err(NotNow::Busy(until)) => return Decision::Later(until),
                Err(NotNow::Refused(Refusal::Invalid(_))) => {
                    return refused(Reason::Malformed, Nanos::ZERO);
                }
                Err(NotNow::Refused(refusal)) => {
                    let Some(budget) = fits(&refusal).filter(|b| *b < wanted.budget) else {
                        return refused(Reason::NoRoom, Nanos::ZERO);
                    };
                    wanted.budget = budget;
                    (less, cut) = (Some(Reason::NoRoom), true);
                    continue;
                }
            }
        };
        let budget = wanted.budget;
        let answer = less.map_or(Answer::Granted, |reason| Answer::Reduced { reason, budget });
        return Decision::Answered(answer, change);
    }
    refused(Reason::NoRoom, Nanos::ZERO)
}

/// What is meant, within the ceiling.
struct Wanted {
    contract: Contract,
    /// Why it is not what was asked for, where it is not.
    less: Option<Reason>,
    /// It is so in GPU time, not only in its rate.
    cut: bool,
}

fn read(terms: &Terms, ask: &Ask) -> Result<Wanted, Reason> {
    let (ceiling, current) = (&terms.ceiling, &terms.current);
    let GuestContract::Within { fastest, slowest } = terms.policy else {
        return Err(Reason::Fixed);
    };
    let asked = match (ask.period_num, ask.period_den) {
        (0, 0) => current.period,
        (num, den) => Period::new(num, den).ok_or(Reason::Malformed)?,
    };
    let period = match asked {
        p if p == current.period => p,
        p if is_shorter(p, fastest) => fastest,
        p if is_shorter(slowest, p) => slowest,
        p => p,
    };
    let mut deadline = if ask.deadline == Nanos::ZERO { period.floor() } else { ask.deadline };
    if period != asked {
        deadline = deadline.min(period.floor());
    }
    if ask.late_latch >= deadline {
        return Err(Reason::Malformed);
    }
    let (late_latch, asked_latch) = latch(ceiling, current, ask)?;
    let budget = if ask.budget == Nanos::ZERO { current.budget } else { ask.budget };
    let contract = Contract { period, deadline, late_latch, ..*ceiling };
    let most = most(ceiling, &contract)?;
    let contract = Contract { budget: budget.min(most), ..contract };
    let cut = late_latch != asked_latch || contract.budget != budget;
    let less = (cut || period != asked).then_some(Reason::Ceiling);
    Ok(Wanted { contract, less, cut })
}

/// The late latch that there will be, and the one that was asked for.
fn latch(
    ceiling: &Contract,
    current: &Contract,
    ask: &Ask,
) -> Result<(Option<LateLatch>, Option<LateLatch>), Reason> {
    let window = ask.late_latch;
    if window == Nanos::ZERO {
        return Ok((None, None));
    }
    let top = ceiling.late_latch.ok_or(Reason::Ceiling)?;
    let budget = match ask.latch_budget {
        Nanos::ZERO => current.late_latch.unwrap_or(top).budget,
        budget => budget,
    };
    let most = scaled(top.budget, window.0.into(), top.window.0.into()).min(ceiling.max_job);
    let of = |budget| Some(LateLatch { window, budget });
    Ok((of(budget.min(most)), of(budget)))
}

/// The largest budget that is no larger part of the GPU, and no more urgent, than the ceiling's.
fn most(ceiling: &Contract, contract: &Contract) -> Result<Nanos, Reason> {
    let latch = |c: &Contract| c.late_latch.map_or(Nanos::ZERO, |l| l.budget);
    let (p, top) = (contract.period, ceiling.period);
    // Both fit: a period's numerator is at most 10^16, its denominator 10^6.
    let up = u128::from(p.num()) * u128::from(top.den());
    let down = u128::from(p.den()) * u128::from(top.num());
    let together = scaled(ceiling.budget.saturating_add(latch(ceiling)), up, down);
    // A late latch alone that is more than all.
    let share = together.0.checked_sub(latch(contract).0).ok_or(Reason::Ceiling)?;
    let time = |c: &Contract| u128::from(c.main_deadline().min(c.period.floor()).0);
    let urgent = scaled(ceiling.budget, time(contract), time(ceiling));
    Ok(Nanos(share).min(urgent))
}

/// `time × up / down`, rounded down; what does not fit is the most there is.
fn scaled(time: Nanos, up: u128, down: u128) -> Nanos {
    let product = u128::from(time.0).checked_mul(up).map(|p| p / down.max(1));
    Nanos(product.and_then(|p| u64::try_from(p).ok()).unwrap_or(u64::MAX))
}

/// Whether period `a` is shorter than `b`, exactly.
fn is_shorter(a: Period, b: Period) -> bool {
    let cross = |x: Period, y: Period| u128::from(x.num()) * u128::from(y.den());
    cross(a, b) < cross(b, a)
}

/// Whether `a` is a smaller part of the GPU than `b`, by more than what rounding to whole ns takes.
fn is_less(a: &Contract, b: &Contract) -> bool {
    let work =
        |c: &Contract| u128::from(c.budget.0) + u128::from(c.late_latch.map_or(0, |l| l.budget.0));
    let cross = |x: &Contract, y: &Contract, more: u128| {
        (work(x) + more) * u128::from(x.period.den()) * u128::from(y.period.num())
    };
    cross(a, b, 2) < cross(b, a, 0)
}

/// The budget that admission says would fit.
const fn fits(refusal: &Refusal) -> Option<Nanos> {
    match refusal {
        Refusal::Demand { nearest, .. } | Refusal::Minimum { nearest, .. } => nearest.budget,
        Refusal::Invalid(_) | Refusal::Full { .. } => None,
    }
}

#[cfg(test)]
#[path = "ask_tests.rs"]
mod tests;
