//! How noisy the machine is: time stolen by a hypervisor, and how late timers wake a thread.
//!
//! On a shared machine a scheduler can be judged only while the processors are there. A run with too much
//! steal is void: repeated, and counted.

use crate::clock::{Clock, MonotonicClock};
use crate::dist::{Quantile, Samples};
use beamline_abi::Nanos;
use rustix::io::Errno;
use rustix::thread::{ClockId, Timespec, clock_nanosleep_absolute};
use serde::{Deserialize, Serialize};
use std::{fmt, io};

/// Steal per 30 s, in jiffies over all processors, above which a run is void unless told otherwise.
pub const DEFAULT_MAX_STEAL: u64 = 10;

/// Why the machine's noise could not be sampled.
#[derive(Debug, thiserror::Error)]
pub enum NoiseError {
    /// `/proc/stat` could not be read.
    #[error("/proc/stat could not be read; is /proc mounted?")]
    Stat(#[source] io::Error),
    /// `/proc/stat` does not have the lines `cpuN` with at least eight numbers (proc(5)).
    #[error("/proc/stat has no line \"cpuN\" with a number for steal")]
    Format,
    /// The kernel refused to sleep.
    #[error("clock_nanosleep was refused")]
    Sleep(#[source] Errno),
}

/// Steal of each processor since boot, in jiffies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Steal(Vec<u64>);

impl Steal {
    /// Reads it now.
    pub fn read() -> Result<Self, NoiseError> {
        Self::parse(&std::fs::read_to_string("/proc/stat").map_err(NoiseError::Stat)?)
    }

    fn parse(stat: &str) -> Result<Self, NoiseError> {
        let per_cpu: Option<Vec<u64>> = stat
            .lines()
            .filter(|line| {
                let id = line.strip_prefix("cpu");
                id.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
            })
            // name user nice system idle iowait irq softirq steal
            .map(|line| line.split_ascii_whitespace().nth(8)?.parse().ok())
            .collect();
        per_cpu.filter(|list| !list.is_empty()).map(Self).ok_or(NoiseError::Format)
    }

    fn since(&self, before: &Self) -> Vec<u64> {
        let zero = std::iter::repeat(&0);
        let old = before.0.iter().chain(zero);
        self.0.iter().zip(old).map(|(now, then)| now.saturating_sub(*then)).collect()
    }
}

/// How late a thread's timer woke it, in ns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WakeUps {
    /// How many.
    pub n: u64,
    /// Median; `None` below 20.
    pub p50_ns: Option<u64>,
    /// 99%; `None` below 1,000.
    pub p99_ns: Option<u64>,
    /// Largest.
    pub max_ns: Option<u64>,
}

impl WakeUps {
    /// Sleeps to absolute times 1 ms apart for `duration`, on the calling thread.
    pub fn sample(duration: Nanos) -> Result<Self, NoiseError> {
        const STEP: u64 = 1_000_000;
        let first = MonotonicClock.now().0;
        let mut late = Vec::with_capacity((duration.0 / STEP) as usize);
        let mut at = first;
        while at - first < duration.0 {
            at += STEP;
            sleep_until(at)?;
            late.push(MonotonicClock.now().0.saturating_sub(at));
        }
        let samples: Samples = late.into_iter().collect();
        Ok(Self {
            n: samples.len(),
            p50_ns: samples.quantile(Quantile::P50),
            p99_ns: samples.quantile(Quantile::P99),
            max_ns: samples.max(),
        })
    }
}

fn sleep_until(at: u64) -> Result<(), NoiseError> {
    let at = Timespec { tv_sec: (at / 1_000_000_000) as i64, tv_nsec: (at % 1_000_000_000) as i64 };
    loop {
        match clock_nanosleep_absolute(ClockId::Monotonic, &at) {
            Ok(()) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(e) => return Err(NoiseError::Sleep(e)),
        }
    }
}

/// What a run's noise was.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Noise {
    /// How long it was watched, in ns.
    pub duration_ns: u64,
    /// Steal of each processor meanwhile, in jiffies.
    pub steal_jiffies: Vec<u64>,
    /// Void above this many jiffies per 30 s, over all processors.
    pub max_steal: u64,
    /// Timer wake-ups, where they were sampled.
    pub wake_ups: Option<WakeUps>,
}

impl Noise {
    /// Steal over all processors, scaled to 30 s. Runs below 1 s count as 1 s.
    pub fn steal_per_30s(&self) -> u64 {
        let steal: u128 = self.steal_jiffies.iter().map(|&s| u128::from(s)).sum();
        let duration = u128::from(self.duration_ns.max(1_000_000_000));
        u64::try_from((steal * 30_000_000_000).div_ceil(duration)).unwrap_or(u64::MAX)
    }

    /// Why the run is void, if it is.
    pub fn void_reason(&self) -> Option<String> {
        let steal = self.steal_per_30s();
        (steal > self.max_steal).then(|| {
            format!(
                "the machine was noisy: {steal} jiffies of steal per 30 s, at most {} allowed",
                self.max_steal
            )
        })
    }
}

impl fmt::Display for Noise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "steal {} jiffies per 30 s", self.steal_per_30s())?;
        let Some(wake) = &self.wake_ups else { return Ok(()) };
        let show = |ns: Option<u64>| ns.map_or("NA".into(), |ns| Nanos(ns).to_string());
        let (p50, p99, max) = (show(wake.p50_ns), show(wake.p99_ns), show(wake.max_ns));
        write!(f, "; timer wake-ups late by p50 {p50}, p99 {p99}, max {max}")
    }
}

/// Watches the machine while a run goes on.
#[derive(Clone, Debug)]
pub struct Watch {
    began: Nanos,
    steal: Steal,
}

impl Watch {
    /// Begins.
    pub fn begin() -> Result<Self, NoiseError> {
        Ok(Self { began: MonotonicClock.now(), steal: Steal::read()? })
    }

    /// Ends, with what a thread of the caller's sampled meanwhile.
    pub fn end(self, max_steal: u64, wake_ups: Option<WakeUps>) -> Result<Noise, NoiseError> {
        let steal_jiffies = Steal::read()?.since(&self.steal);
        let duration_ns = MonotonicClock.now().saturating_sub(self.began).0;
        Ok(Noise { duration_ns, steal_jiffies, max_steal, wake_ups })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steal_is_the_eighth_number_of_each_processor() {
        let stat = "cpu  9 9 9 9 9 9 9 99 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\ncpu1 1 2 3 4 5 6 7 30 0 0\n\
                    intr 5\n";
        let before = Steal::parse(stat).unwrap();
        assert_eq!(before.0, [8, 30]);
        let after =
            Steal::parse("cpu0 1 2 3 4 5 6 7 12\ncpu1 1 2 3 4 5 6 7 29\ncpu2 0 0 0 0 0 0 0 3")
                .unwrap();
        assert_eq!(after.since(&before), [4, 0, 3]);
        assert!(matches!(Steal::parse("cpu0 1 2 3\n"), Err(NoiseError::Format)));
        assert!(matches!(Steal::parse(""), Err(NoiseError::Format)));
    }

    #[test]
    fn a_run_is_void_above_the_threshold_only() {
        let noise = |steal: u64, seconds: u64| Noise {
            duration_ns: seconds * 1_000_000_000,
            steal_jiffies: vec![steal / 2, steal - steal / 2],
            max_steal: DEFAULT_MAX_STEAL,
            wake_ups: None,
        };
        assert_eq!(noise(10, 30).void_reason(), None);
        assert!(noise(11, 30).void_reason().is_some_and(|r| r.contains("11 jiffies")));
        assert_eq!(noise(20, 60).void_reason(), None);
        assert!(noise(4, 10).void_reason().is_some());
    }

    #[test]
    fn this_machine_can_be_watched() {
        let watch = Watch::begin().unwrap();
        let wake = WakeUps::sample(Nanos::from_millis(25)).unwrap();
        assert_eq!(wake.n, 25);
        assert!(wake.p50_ns.is_some() && wake.p99_ns.is_none());
        let noise = watch.end(u64::MAX, Some(wake)).unwrap();
        assert_eq!(noise.void_reason(), None);
        assert!(noise.to_string().contains("p99 NA"), "{noise}");
    }
}
