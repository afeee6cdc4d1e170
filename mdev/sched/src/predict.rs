//! Stage 4, schedule: what a job is expected to cost, from what its place in the frame cost before.
//!
//! A decaying high estimate per place: it rises by half of what it was short by, at most by a quarter of
//! itself, and sinks by a 32nd of what it was too high by. Near the high end of the recent costs, quick to
//! follow a rise, slow to forget one; and one job that a hiccup of the machine made long does not pass for
//! the new rule. Before the first measurement it is the contract's budget.

use crate::contract::Contract;
use beamline_abi::Nanos;

/// Places of a frame that are told apart; later jobs share the last.
pub const PLACES: usize = 16;

/// Fraction bits of an estimate, so that small steps are not lost to rounding.
const FRACTION: u32 = 8;
/// What an estimate may rise by however small it is: 10 µs, scaled.
const LEAST_RISE: u64 = 10_000 << FRACTION;

/// Estimates of one tenant.
#[derive(Clone, Debug)]
pub struct Predictor {
    /// `None` until measured; ns, scaled by 2^[`FRACTION`].
    places: [Option<u64>; PLACES],
    late_latch: Option<u64>,
    budget: u64,
    late_latch_budget: u64,
    max_job: u64,
}

impl Predictor {
    /// Knows nothing yet but the contract.
    pub fn new(contract: &Contract) -> Self {
        let max_job = contract.max_job.0.min(Self::CEILING);
        Self {
            places: [None; PLACES],
            late_latch: None,
            budget: contract.budget.0,
            late_latch_budget: contract.late_latch.map_or(contract.budget.0, |l| l.budget.0),
            max_job,
        }
    }

    /// Longest cost that is told apart: about 26 days, so that the scaled value fits.
    const CEILING: u64 = 1 << 51;

    /// What the job at `place` of a frame of `jobs` jobs is expected to cost: never above `max_job`.
    pub fn expected(&self, place: u16, jobs: u16, late_latch: bool) -> Nanos {
        let known = if late_latch {
            self.late_latch
        } else {
            self.places[usize::from(place).min(PLACES - 1)]
        };
        let cost = match known {
            Some(scaled) => scaled.div_ceil(1 << FRACTION),
            None if late_latch => self.late_latch_budget,
            None if self.budget == 0 => self.max_job,
            None => self.budget.div_ceil(u64::from(jobs.max(1))),
        };
        Nanos(cost.min(self.max_job))
    }

    /// A job at `place` has cost `cost`.
    pub fn measured(&mut self, place: u16, late_latch: bool, cost: Nanos) {
        let estimate = if late_latch {
            &mut self.late_latch
        } else {
            &mut self.places[usize::from(place).min(PLACES - 1)]
        };
        let cost = cost.0.min(Self::CEILING) << FRACTION;
        *estimate = Some(match *estimate {
            None => cost,
            Some(old) if cost > old => {
                old + (cost - old).div_ceil(2).min((old / 4).max(LEAST_RISE))
            }
            Some(old) => old - (old - cost) / 32,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::contract;
    use proptest::prelude::*;

    #[test]
    fn cold_start_is_the_contract() {
        let mut c = contract(60, 3_000, 2_000);
        let p = Predictor::new(&c);
        assert_eq!(p.expected(0, 3, false), Nanos::from_millis(1));
        assert_eq!(p.expected(0, 1, false), Nanos::from_millis(2), "clamped to max_job");
        assert_eq!(p.expected(0, 0, false), Nanos::from_millis(2));
        c.budget = Nanos::ZERO;
        assert_eq!(Predictor::new(&c).expected(7, 3, false), Nanos::from_millis(2));
    }

    #[test]
    fn follows_a_rise_at_once_and_forgets_slowly() {
        let mut p = Predictor::new(&contract(60, 3_000, 2_000));
        p.measured(0, false, Nanos(100_000));
        for _ in 0..16 {
            p.measured(0, false, Nanos(1_000_000));
        }
        assert!(p.expected(0, 1, false) > Nanos(990_000));
        p.measured(0, false, Nanos(100_000));
        assert!(p.expected(0, 1, false) > Nanos(950_000));
        for _ in 0..200 {
            p.measured(0, false, Nanos(100_000));
        }
        p.measured(0, false, Nanos(1_900_000));
        assert!(p.expected(0, 1, false) < Nanos(130_000), "one hiccup is not the rule");
        for _ in 0..1_000 {
            p.measured(0, false, Nanos(100_000));
        }
        assert!(p.expected(0, 1, false) < Nanos(101_000));
    }

    #[test]
    fn places_and_late_latch_are_apart() {
        let mut p = Predictor::new(&contract(60, 3_000, 2_000));
        p.measured(0, false, Nanos(10));
        p.measured(0, true, Nanos(20));
        p.measured(900, false, Nanos(30));
        assert_eq!(p.expected(0, 1, false), Nanos(10));
        assert_eq!(p.expected(5, 1, true), Nanos(20));
        assert_eq!(p.expected(15, 1, false), Nanos(30));
    }

    proptest! {
        #[test]
        fn stays_within_what_was_measured(costs in prop::collection::vec(any::<u64>(), 1..200)) {
            let mut p = Predictor::new(&contract(60, 3_000, 2_000));
            let top = *costs.iter().max().unwrap();
            for c in costs {
                p.measured(3, false, Nanos(c));
                prop_assert!(p.expected(3, 1, false) <= Nanos(top.min(2_000_000)));
            }
        }
    }
}
