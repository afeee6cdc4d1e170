//! Whether a target was met: met, missed or inconclusive.

use crate::dist::Quantile;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What was aimed at: `required` of all frames within `tolerance_ns`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Target {
    /// Its name in reports.
    pub name: String,
    /// How far off a frame may be in ns: its deadline after release, or an error's bound.
    pub tolerance_ns: u64,
    /// The share of frames, from 0 to 1. 1 means: not one miss, seen over as many frames as 0.999 needs.
    pub required: f64,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "verdict", content = "reason")]
pub enum Verdict {
    /// The target was met.
    Met,
    /// The target was missed.
    Missed,
    /// The measurement cannot tell, for this reason.
    Inconclusive(Reason),
}

/// Why a measurement cannot tell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The clocks' error exceeds 10% of the tolerance.
    ClockError {
        /// In ns.
        clock_err_ns: u64,
        /// In ns.
        tolerance_ns: u64,
    },
    /// Too few frames were seen for the share asked.
    TooFewFrames {
        /// How many were due.
        seen: u64,
        /// How many it takes.
        needed: u64,
    },
    /// The run was void.
    Void(String),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Met => f.pad("met"),
            Self::Missed => f.pad("missed"),
            Self::Inconclusive(Reason::ClockError { clock_err_ns, tolerance_ns }) => write!(
                f,
                "inconclusive: clock error {clock_err_ns} ns is above 10% of {tolerance_ns} ns"
            ),
            Self::Inconclusive(Reason::TooFewFrames { seen, needed }) => {
                write!(f, "inconclusive: {seen} frames due, {needed} needed")
            }
            Self::Inconclusive(Reason::Void(why)) => write!(f, "inconclusive: {why}"),
        }
    }
}

impl Target {
    fn quantile(&self) -> Quantile {
        Quantile::new(self.required).min(Quantile::new(0.999_999))
    }

    /// How many frames it takes to tell.
    pub fn needed(&self) -> u64 {
        let q = if self.required >= 1.0 { Quantile::P999 } else { self.quantile() };
        q.needed().unwrap_or(u64::MAX)
    }

    /// Judges `hits` of `due` frames, measured with `clock_err_ns`.
    pub fn judge(&self, hits: u64, due: u64, clock_err_ns: u64) -> Verdict {
        let Self { tolerance_ns, required, .. } = *self;
        if u128::from(clock_err_ns) * 10 > u128::from(tolerance_ns) {
            return Verdict::Inconclusive(Reason::ClockError { clock_err_ns, tolerance_ns });
        }
        let needed = self.needed();
        if due < needed {
            return Verdict::Inconclusive(Reason::TooFewFrames { seen: due, needed });
        }
        let met = if required >= 1.0 {
            hits >= due
        } else {
            // In millionths, like the quantile: a share is not a float to compare for equality.
            u128::from(hits) * 1_000_000 >= u128::from(due) * ((required * 1e6).round() as u128)
        };
        if met { Verdict::Met } else { Verdict::Missed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(required: f64) -> Target {
        Target { name: "in budget".into(), tolerance_ns: 1_000_000, required }
    }

    #[test]
    fn the_edge_of_the_share() {
        let t = target(0.99);
        assert_eq!(t.judge(990, 1000, 0), Verdict::Met);
        assert_eq!(t.judge(989, 1000, 0), Verdict::Missed);
        assert_eq!(target(1.0).judge(10_000, 10_000, 0), Verdict::Met);
        assert_eq!(target(1.0).judge(9_999, 10_000, 0), Verdict::Missed);
    }

    #[test]
    fn too_few_frames() {
        let few = |seen, needed| Verdict::Inconclusive(Reason::TooFewFrames { seen, needed });
        assert_eq!(target(0.99).judge(999, 999, 0), few(999, 1000));
        assert_eq!(target(0.99).judge(0, 0, 0), few(0, 1000));
        assert_eq!(target(1.0).judge(9_999, 9_999, 0), few(9_999, 10_000));
        assert_eq!(target(0.0).needed(), 10);
        assert_eq!(target(f64::NAN).judge(1, 1, 0), few(1, target(f64::NAN).needed()));
    }

    #[test]
    fn the_edge_of_the_clock() {
        let t = target(0.5);
        assert_eq!(t.judge(100, 100, 100_000), Verdict::Met);
        let verdict = t.judge(100, 100, 100_001);
        assert!(matches!(verdict, Verdict::Inconclusive(Reason::ClockError { .. })));
        assert!(verdict.to_string().contains("100001"), "{verdict}");
    }
}
