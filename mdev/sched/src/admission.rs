//! Stage 4, schedule: admission: whether one more contract can be kept, and if not, what is short.
//!
//! 1. The contract is checked field by field.
//! 2. All reserved contracts pass the processor-demand test, whatever the alignment of their vblanks; or,
//!    where every reserved display is virtual and on one grid, with the phases the host gives them.
//! 3. Background minima fit into what the guards leave: a declared minimum is a rate that is reached over
//!    several periods, since single periods depend on where releases fall.
//!
//! Elastic contracts are promised nothing, so only their longest job matters, and only to reserved
//! contracts with [`Guard::Deadline`](crate::Guard::Deadline).

use crate::contract::{Class, Contract, Period};
use crate::demand::{self, Shortage, Task};
use crate::phase::{self, Phased};
use crate::policy::{GpuCaps, TenantId};
use crate::preempt;
use crate::validate::{self, ContractError};
use alloc::vec::Vec;
use beamline_abi::Nanos;
use core::fmt;

/// Refresh rates that a refusal may suggest, Hz.
const COMMON_RATES: [u64; 9] = [120, 90, 72, 60, 50, 45, 40, 36, 30];

/// A tenant that is admitted already: number, contract, phase.
pub type Current = (TenantId, Contract, Nanos);

/// Which test a set of contracts passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Proof {
    /// Every alignment of vblanks is in time.
    OffsetFree,
    /// The phases given are in time: they must be kept.
    Phased,
}

/// A contract that can be kept beside the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// Offset of the tenant's vblanks from the host's grid; zero where its clock is its own.
    pub phase: Nanos,
    /// What it rests on.
    pub proof: Proof,
    /// GPU use that is now promised, in parts per million.
    pub promised_ppm: u64,
}

/// The nearest contracts that would have been admitted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Nearest {
    /// The same contract with this budget.
    pub budget: Option<Nanos>,
    /// The same budget at this refresh rate, Hz.
    pub hz: Option<u64>,
}

/// Why a contract is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The contract contradicts itself or leaves its bounds.
    #[error("the contract cannot be read: {0}")]
    Invalid(ContractError),
    /// Every place is taken.
    #[error("all {max_tenants} places of this GPU are taken; remove a tenant first")]
    Full {
        /// Tenants that the host was set up for.
        max_tenants: usize,
    },
    /// A promise could be broken.
    #[error(
        "in {} up to {} of GPU work may be due, {} too much{nearest}",
        Nanos(shortage.interval), Nanos(shortage.demand), Nanos(shortage.demand.saturating_sub(shortage.interval))
    )]
    Demand {
        /// The interval that is overfull.
        shortage: Shortage,
        /// What would fit.
        nearest: Nearest,
    },
    /// The background minima do not fit beside the reserved contracts.
    #[error(
        "the reserved contracts leave {}.{}% of the GPU for background minima, {}.{}% are asked for{nearest}",
        free_ppm / 10_000, free_ppm / 1_000 % 10, asked_ppm / 10_000, asked_ppm / 1_000 % 10
    )]
    Minimum {
        /// What is left when every release is guarded, in parts per million.
        free_ppm: u64,
        /// Sum of the minima, in parts per million.
        asked_ppm: u64,
        /// What would fit.
        nearest: Nearest,
    },
}

impl fmt::Display for Nearest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.budget, self.hz) {
            (Some(b), Some(hz)) => write!(f, "; a budget of {b} fits, or {hz} Hz"),
            (Some(b), None) => write!(f, "; a budget of {b} fits"),
            (None, Some(hz)) => write!(f, "; {hz} Hz fits"),
            (None, None) => f.write_str("; no smaller budget or common lower rate fits"),
        }
    }
}

/// The admission test of one GPU.
#[derive(Clone, Copy, Debug)]
pub struct Admission {
    caps: GpuCaps,
    max_tenants: usize,
}

impl Admission {
    /// The test for a GPU with `caps` that serves at most `max_tenants`.
    pub const fn new(caps: GpuCaps, max_tenants: usize) -> Self {
        Self { caps, max_tenants }
    }

    /// Whether `candidate` can be kept beside `current`. Takes milliseconds: not for the frame's path.
    pub fn try_admit(
        &self,
        current: &[Current],
        candidate: &Contract,
    ) -> Result<Admitted, Refusal> {
        validate::contract(candidate).map_err(Refusal::Invalid)?;
        if current.len() >= self.max_tenants {
            return Err(Refusal::Full { max_tenants: self.max_tenants });
        }
        match self.check(current, candidate) {
            Err(Refusal::Demand { shortage, .. }) => {
                Err(Refusal::Demand { shortage, nearest: self.nearest(current, candidate) })
            }
            Err(Refusal::Minimum { free_ppm, asked_ppm, .. }) => Err(Refusal::Minimum {
                free_ppm,
                asked_ppm,
                nearest: self.nearest(current, candidate),
            }),
            other => other,
        }
    }

    /// The tests proper, on a valid contract.
    fn check(&self, current: &[Current], candidate: &Contract) -> Result<Admitted, Refusal> {
        let id = free_id(current);
        let placed: Vec<(Contract, Nanos)> = current.iter().map(|&(_, c, p)| (c, p)).collect();
        let phase = phase::place(&placed, candidate, &self.caps);
        let mut all: Vec<Current> = current.to_vec();
        all.push((id, *candidate, phase));
        let tasks: Vec<Task> =
            all.iter().flat_map(|(id, c, _)| demand::tasks(*id, c, &self.caps)).collect();
        let proof = self.proof(&all)?;
        self.minima(&all, &tasks)?;
        let minima: u64 = all.iter().map(|(_, c, _)| minimum_ppm(c)).sum();
        Ok(Admitted {
            phase,
            proof,
            promised_ppm: demand::utilisation_ppm(&tasks).saturating_add(minima),
        })
    }

    /// Whether the reserved contracts of the set hold, and what that rests on.
    pub(crate) fn proof(&self, all: &[Current]) -> Result<Proof, Refusal> {
        let tasks: Vec<Task> =
            all.iter().flat_map(|(id, c, _)| demand::tasks(*id, c, &self.caps)).collect();
        let foreign = all
            .iter()
            .filter(|(_, c, _)| c.class != Class::Reserved)
            .map(|(_, c, _)| preempt::foreign_chunk(c.max_job.0, &self.caps))
            .max()
            .unwrap_or(0);
        match demand::test(&tasks, foreign, 0, &self.caps) {
            Ok(_) => Ok(Proof::OffsetFree),
            Err(aligned) => match phase::test(all, foreign, &self.caps) {
                Ok(()) => Ok(Proof::Phased),
                Err(Phased::Short(shortage)) => Err(short(shortage)),
                Err(Phased::NotApplicable) => Err(short(aligned)),
            },
        }
    }

    /// Whether the background minima fit between the guarded releases.
    ///
    /// Each release costs its work, the time it may be awaited, and before it the gap that a job of
    /// the longest kind, or the part of it that is worth beginning, no longer fits into.
    fn minima(&self, all: &[Current], tasks: &[Task]) -> Result<(), Refusal> {
        let asked_ppm: u64 = all.iter().map(|(_, c, _)| minimum_ppm(c)).sum();
        if asked_ppm == 0 {
            return Ok(());
        }
        let part = preempt::part(&self.caps);
        let longest = all
            .iter()
            .filter(|(_, c, _)| minimum_ppm(c) > 0)
            .map(|(_, c, _)| c.max_job.0.min(part).saturating_add(self.caps.switch_cost.0))
            .max()
            .unwrap_or(0);
        // Slack leaves once before each release, and goes on after it.
        let leaving = preempt::per_release(&self.caps);
        // The same tolerances that the policy goes by: without foreign blocking.
        let tolerance = demand::tolerances(tasks, &self.caps);
        let taken: u64 = tasks
            .iter()
            .enumerate()
            .map(|(i, t)| {
                let edge = longest.saturating_sub(tolerance[i]);
                let awaited = match (edge, t.late_latch) {
                    (0, _) => 0,
                    (_, true) => t.deadline.saturating_sub(t.cost),
                    (_, false) => t.jitter,
                };
                // Every release is guarded, also of frames that are not demands.
                let each = t.pattern.share(t.cost).saturating_add(awaited);
                let each = each.saturating_add(edge).saturating_add(leaving);
                ppm(each, t.period)
            })
            .fold(0, u64::saturating_add);
        let free_ppm = 1_000_000u64.saturating_sub(taken);
        if asked_ppm > free_ppm {
            return Err(Refusal::Minimum { free_ppm, asked_ppm, nearest: Nearest::default() });
        }
        Ok(())
    }

    /// The largest budget and the highest lower rate that pass.
    fn nearest(&self, current: &[Current], candidate: &Contract) -> Nearest {
        let passes = |c: &Contract| validate::contract(c).is_ok() && self.check(current, c).is_ok();
        let with = |budget: u64| Contract {
            budget: Nanos(budget),
            // A frame's job is no longer than its budget where it was not before.
            max_job: if candidate.max_job <= candidate.budget {
                candidate.max_job.min(Nanos(budget))
            } else {
                candidate.max_job
            },
            ..*candidate
        };
        let (mut good, mut bad) = (0, candidate.budget.0);
        // To a thousandth of the budget, which is finer than a GPU keeps its time.
        while bad - good > (candidate.budget.0 / 1_000).max(1) {
            let middle = good + (bad - good) / 2;
            if passes(&with(middle)) {
                good = middle;
            } else {
                bad = middle;
            }
        }
        let hz = COMMON_RATES
            .into_iter()
            .filter_map(|hz| Some((hz, Period::from_hz(hz, 1)?)))
            .filter(|(_, p)| p.floor() > candidate.period.ceil())
            .find(|&(_, period)| {
                passes(&Contract { period, deadline: slower(candidate, period), ..*candidate })
            })
            .map(|(hz, _)| hz);
        Nearest { budget: (good > 0).then_some(Nanos(good)), hz }
    }
}

fn short(shortage: Shortage) -> Refusal {
    Refusal::Demand { shortage, nearest: Nearest::default() }
}

/// The candidate's deadline at a longer period: what was due at a vblank still is.
fn slower(c: &Contract, period: Period) -> Nanos {
    c.deadline.saturating_add(period.floor().saturating_sub(c.period.ceil()))
}

/// A number that no current tenant has: one of the first n + 1 is free.
fn free_id(current: &[Current]) -> TenantId {
    (0..=u16::MAX)
        .map(TenantId)
        .find(|id| current.iter().all(|(c, _, _)| c != id))
        .unwrap_or(TenantId(u16::MAX))
}

fn ppm(part: u64, whole: u64) -> u64 {
    let v = (u128::from(part) * 1_000_000).div_ceil(u128::from(whole.max(1)));
    u64::try_from(v).unwrap_or(u64::MAX)
}

/// What a background contract is promised.
fn minimum_ppm(c: &Contract) -> u64 {
    if c.class == Class::Background { ppm(c.budget.0, c.period.floor().0) } else { 0 }
}

#[cfg(test)]
#[path = "admission_tests.rs"]
mod tests;
