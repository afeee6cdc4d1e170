//! Stage 7, vblank: from mediate/fence to mediate/poster. Each slice's vblanks on an absolute grid.
//!
//! A grid is an origin and a rational period: the time of vblank `k` is computed from `k`, never from the
//! vblank before, so nothing adds up. 11.1 ms in place of 1/90 s would be a millisecond off every second.

use beamline_abi::Nanos;
use beamline_sched::{Period, Vblank};

/// The vblanks of one slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    origin: Nanos,
    period: Period,
    next: u64,
}

impl Grid {
    /// A grid whose vblank 0 is at `origin`; the first to be emitted is the first one after `now`.
    pub fn new(origin: Nanos, period: Period, now: Nanos) -> Self {
        let mut grid = Self { origin, period, next: 0 };
        grid.skip_to(now);
        grid
    }

    /// The time of vblank `seq`.
    pub fn time(&self, seq: u64) -> Nanos {
        self.origin.saturating_add(self.period.times(seq))
    }

    /// The next vblank that is to be emitted.
    pub fn next_time(&self) -> Nanos {
        self.time(self.next)
    }

    /// The refresh period.
    pub fn period(&self) -> Period {
        self.period
    }

    /// The vblank that is due at `now`, if one is, and how many before it were missed. A host that was
    /// held up emits only the latest: a guest cannot use a vblank that is already over.
    pub fn due(&mut self, now: Nanos) -> Option<Due> {
        if self.next_time() > now {
            return None;
        }
        let first = self.next;
        self.skip_to(now);
        let seq = self.next - 1;
        Some(Due {
            vblank: Vblank { seq, time: self.time(seq), next: self.time(seq + 1) },
            skipped: seq - first,
        })
    }

    /// Makes the first vblank strictly after `now` the next one.
    fn skip_to(&mut self, now: Nanos) {
        let elapsed = now.saturating_sub(self.origin);
        // The estimate rounds down, so it is never past the answer by more than the loop corrects.
        let whole =
            u128::from(elapsed.0) * u128::from(self.period.den()) / u128::from(self.period.num());
        let mut seq = self.next.max(u64::try_from(whole).unwrap_or(u64::MAX));
        while self.time(seq) <= now && seq < u64::MAX {
            seq += 1;
        }
        self.next = seq;
    }
}

/// A vblank whose time has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// Which one.
    pub vblank: Vblank,
    /// Vblanks that were passed over because the host was late.
    pub skipped: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_drifts() {
        let hz = Period::from_hz(60_000, 1001).unwrap();
        let mut grid = Grid::new(Nanos(5), hz, Nanos(5));
        let mut last = 0;
        for k in 1..=100_000u64 {
            let due = grid.due(grid.next_time()).unwrap();
            assert_eq!((due.vblank.seq, due.skipped), (k, 0));
            assert!(due.vblank.time.0 > last);
            last = due.vblank.time.0;
        }
        // 100,000 periods of 1001/60000 s, exactly, rounded down once.
        assert_eq!(last, 5 + 100_000 * 1001 * 1_000_000_000 / 60_000);
    }

    #[test]
    fn a_late_host_emits_only_the_latest() {
        let mut grid = Grid::new(Nanos(0), Period::from_hz(100, 1).unwrap(), Nanos(0));
        assert_eq!(grid.due(Nanos(9_999_999)), None);
        let due = grid.due(Nanos(35_000_000)).unwrap();
        assert_eq!((due.vblank.seq, due.skipped), (3, 2));
        assert_eq!(due.vblank.next, Nanos(40_000_000));
        assert_eq!(grid.due(Nanos(35_000_000)), None);
    }
}
