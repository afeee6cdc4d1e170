//! How much of the machine other programs took while a run went on. A run beside a compiler says little
//! about a scheduler.

use anyhow::Context;
use serde::Serialize;
use std::time::{Duration, Instant};

/// CPU time so far, in clock ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ticks {
    /// Of every program on the machine.
    all: u64,
    /// Of this process and its children that have ended, and theirs.
    ours: u64,
}

impl Ticks {
    fn now() -> anyhow::Result<Self> {
        let read =
            |path| std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"));
        let all = busy(&read("/proc/stat")?).context("/proc/stat has no line `cpu`")?;
        let ours = own(&read("/proc/self/stat")?).context("/proc/self/stat is too short")?;
        Ok(Self { all, ours })
    }
}

/// The first line of /proc/stat: user, nice and system time of all CPUs (proc(5)).
fn busy(stat: &str) -> Option<u64> {
    let mut words = stat.lines().next()?.strip_prefix("cpu ")?.split_ascii_whitespace();
    (0..3).map(|_| words.next()?.parse::<u64>().ok()).sum()
}

/// Fields 14 to 17 of /proc/self/stat: user and system time, and those of children (proc(5)).
fn own(stat: &str) -> Option<u64> {
    // Field 2 is a name that may hold anything, in brackets.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut words = rest.split_ascii_whitespace().skip(11);
    (0..4).map(|_| words.next()?.parse::<u64>().ok()).sum()
}

/// Watches from before a run's processes start.
pub(crate) struct Watch {
    began: Instant,
    ticks: Ticks,
}

impl Watch {
    /// Begins.
    pub(crate) fn begin() -> anyhow::Result<Self> {
        Ok(Self { began: Instant::now(), ticks: Ticks::now()? })
    }

    /// Ends, once every process of the run has ended.
    pub(crate) fn end(self) -> anyhow::Result<Others> {
        let now = Ticks::now()?;
        Ok(Others::between(self.ticks, now, self.began.elapsed()))
    }
}

/// What other programs took.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Others {
    /// In percent of one CPU.
    pub(crate) percent: f64,
}

impl Others {
    fn between(before: Ticks, after: Ticks, time: Duration) -> Self {
        // A clock tick is 10 ms in both files, whatever the kernel's own (USER_HZ, time(7)).
        let all = after.all.saturating_sub(before.all);
        let others = all.saturating_sub(after.ours.saturating_sub(before.ours));
        Self { percent: others as f64 / time.as_secs_f64().max(0.01) }
    }

    /// Why the run is void, if it is.
    pub(crate) fn void_reason(self, most_percent: f64) -> Option<String> {
        (self.percent > most_percent).then(|| {
            format!(
                "other programs took {:.0}% of a CPU, at most {most_percent:.0}% allowed",
                self.percent
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_files_are_read_by_field() {
        assert_eq!(busy("cpu  10 20 30 999 9 9 9 9 9 9\ncpu0 1 1 1"), Some(60));
        assert_eq!(busy("cpu  10 x"), None);
        assert_eq!(busy("intr 5"), None);
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 100 20 3 4 20 0 1";
        assert_eq!(own(stat), Some(127));
        assert_eq!(own("7 (a) S 1"), None);
    }

    #[test]
    fn what_is_ours_is_taken_off() {
        let at = |all, ours| Ticks { all, ours };
        let others = Others::between(at(1000, 100), at(3000, 1900), Duration::from_secs(10));
        assert!((others.percent - 20.0).abs() < 1e-9, "{others:?}");
        assert!(others.void_reason(20.0).is_none());
        assert!(others.void_reason(19.0).unwrap().contains("20% of a CPU"));
        // Children that ended in between may count more than the machine's coarser sum.
        let others = Others::between(at(1000, 100), at(1001, 200), Duration::from_secs(1));
        assert!(others.percent.abs() < 1e-9);
    }

    #[test]
    fn this_machine_can_be_watched() {
        assert!(Watch::begin().unwrap().end().unwrap().percent >= 0.0);
    }
}
