//! A contract as configuration files write it: every file that holds one holds it so. Unknown keys are refused;
//! times are milliseconds.

use crate::contract::{Class, Contract, Guard, LateLatch, MissAllowance, Period, Sink};
use alloc::format;
use alloc::string::String;
use beamline_abi::Nanos;
use serde::Deserialize;

/// The longest time that can be written, ms.
const MAX_MS: f64 = 10_000.0;

/// A contract as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Written {
    refresh_hz: String,
    class: WrittenClass,
    budget_ms: f64,
    max_job_ms: f64,
    deadline_ms: Option<f64>,
    #[serde(default)]
    gap_ms: f64,
    jitter_ms: Option<f64>,
    #[serde(default)]
    sink: WrittenSink,
    #[serde(default)]
    guard: WrittenGuard,
    miss: Option<String>,
    late_latch: Option<WrittenLateLatch>,
    #[serde(default = "two")]
    depth: u8,
    #[serde(default = "hundred")]
    weight: u16,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenLateLatch {
    window_ms: f64,
    budget_ms: f64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum WrittenClass {
    Reserved,
    Elastic,
    Background,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum WrittenSink {
    #[default]
    Virtual,
    External,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum WrittenGuard {
    Deadline,
    #[default]
    Release,
}

const fn two() -> u8 {
    2
}
const fn hundred() -> u16 {
    100
}

/// A value that means nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {problem}")]
pub struct Wrong {
    /// The contract's key: `late_latch.window_ms`.
    pub key: &'static str,
    /// What it is, and what would be right.
    pub problem: String,
}

impl Written {
    /// What is meant. `jitter_ms`: where none is written. Whether the contract contradicts itself is for
    /// [`crate::validate`] to say.
    ///
    /// # Errors
    /// The first value that means nothing.
    pub fn read(self, jitter_ms: f64) -> Result<Contract, Wrong> {
        let period = hz(&self.refresh_hz).ok_or_else(|| Wrong {
            key: "refresh_hz",
            problem: format!(
                "`{}` is no rate from 0.1 to 1000 Hz; write \"90\" or \"60000/1001\"",
                self.refresh_hz
            ),
        })?;
        let late_latch = match self.late_latch {
            None => None,
            Some(l) => Some(LateLatch {
                window: time("late_latch.window_ms", l.window_ms)?,
                budget: time("late_latch.budget_ms", l.budget_ms)?,
            }),
        };
        let miss = match &self.miss {
            None => MissAllowance { misses: 0, frames: 1 },
            Some(text) => allowance(text).ok_or_else(|| Wrong {
                key: "miss",
                problem: format!(
                    "`{text}` is no m-in-k; write \"1/100\" for one miss in 100 frames"
                ),
            })?,
        };
        Ok(Contract {
            period,
            deadline: match self.deadline_ms {
                Some(ms) => time("deadline_ms", ms)?,
                None => period.floor(),
            },
            budget: time("budget_ms", self.budget_ms)?,
            max_job: time("max_job_ms", self.max_job_ms)?,
            gap: time("gap_ms", self.gap_ms)?,
            jitter: time("jitter_ms", self.jitter_ms.unwrap_or(jitter_ms))?,
            sink: match self.sink {
                WrittenSink::Virtual => Sink::Virtual,
                WrittenSink::External => Sink::External,
            },
            class: match self.class {
                WrittenClass::Reserved => Class::Reserved,
                WrittenClass::Elastic => Class::Elastic,
                WrittenClass::Background => Class::Background,
            },
            miss,
            late_latch,
            guard: match self.guard {
                WrittenGuard::Deadline => Guard::Deadline,
                WrittenGuard::Release => Guard::Release,
            },
            depth: self.depth,
            weight: self.weight,
        })
    }
}

/// Milliseconds as written, to the nearest ns.
///
/// # Errors
/// What is wrong with a value that is not 0 to 10,000 ms.
pub fn millis(ms: f64) -> Result<Nanos, String> {
    if (0.0..=MAX_MS).contains(&ms) {
        Ok(Nanos((ms * 1e6 + 0.5) as u64))
    } else {
        Err(format!("{ms} is out of range; use 0 to {MAX_MS} milliseconds"))
    }
}

fn time(key: &'static str, ms: f64) -> Result<Nanos, Wrong> {
    millis(ms).map_err(|problem| Wrong { key, problem })
}

/// The period of a rate as it is written, `90` or `60000/1001`; `None` where it is no rate from 0.1 to 1000 Hz.
pub fn hz(text: &str) -> Option<Period> {
    let (num, den) = text.split_once('/').unwrap_or((text, "1"));
    Period::from_hz(num.trim().parse().ok().filter(|&n| n > 0)?, den.trim().parse().ok()?)
}

/// `1/100`.
fn allowance(text: &str) -> Option<MissAllowance> {
    let (misses, frames) = text.split_once('/')?;
    let (misses, frames) = (misses.trim().parse().ok()?, frames.trim().parse().ok()?);
    (misses < frames).then_some(MissAllowance { misses, frames })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_to_the_nanosecond() {
        assert_eq!(millis(0.3), Ok(Nanos(300_000)));
        assert_eq!(millis(0.000_000_6), Ok(Nanos(1)));
        assert_eq!(millis(10_000.0), Ok(Nanos(10_000_000_000)));
        for bad in [-0.1, 10_000.1, f64::NAN, f64::INFINITY] {
            assert!(millis(bad).is_err_and(|why| why.contains("use 0 to 10000")), "{bad}");
        }
    }

    #[test]
    fn rates_and_allowances_are_ratios() {
        assert_eq!(hz("60000/1001"), Period::from_hz(60_000, 1_001));
        assert!(["0", "1/0", "-1", "", "1/2/3", "2000"].iter().all(|t| hz(t).is_none()));
        assert_eq!(allowance(" 1 / 100"), Some(MissAllowance { misses: 1, frames: 100 }));
        assert!(["1", "0/0", "2/2", "x/3"].iter().all(|t| allowance(t).is_none()));
    }
}
