//! Stage 7, vblank: from mediate/fence to mediate/poster. Each slice's vblanks on an absolute grid.
//!
//! A grid is an origin and a rational period: the time of vblank `k` is computed from `k`, never from the
//! vblank before, so nothing adds up. 11.1 ms in place of 1/90 s would be a millisecond off every second.
//!
//! A contract that changes moves the vblanks: to another phase by slightly longer periods
//! ([`Grid::slew`]), or to another grid, after one period that is longer ([`Grid::restart`]). Numbers go on
//! by one, and no period is ever shortened: to admission that is a release that comes later than it might.

use beamline_abi::Nanos;
use beamline_sched::slew::{NoPhase, Slew};
use beamline_sched::{Period, Vblank};

/// The vblanks of one slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Vblank 0 of the host's grid.
    origin: Nanos,
    line: Line,
    /// The line of the vblanks before `since`: frames that began there are still under way.
    before: Option<Line>,
    since: u64,
    next: u64,
}

/// Where vblanks lie while their period stays the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Line {
    phase: Nanos,
    period: Period,
    /// Vblank `k` of the slice is grid point `k + lead`.
    lead: i64,
    slew: Option<Slew>,
}

impl Line {
    fn point(&self, seq: u64) -> u64 {
        seq.saturating_add_signed(self.lead)
    }

    /// ns after the origin.
    fn time(&self, seq: u64) -> Nanos {
        let point = self.point(seq);
        match self.slew {
            Some(slew) => slew.time(point),
            None => self.phase.saturating_add(self.period.times(point)),
        }
    }

    /// A grid point that is not after `elapsed` ns, and no more than three before the last such one.
    fn near(&self, elapsed: Nanos) -> u64 {
        let elapsed = elapsed.saturating_sub(self.phase);
        let whole =
            u128::from(elapsed.0) * u128::from(self.period.den()) / u128::from(self.period.num());
        // Slewed vblanks lie up to a period behind the grid they come from.
        u64::try_from(whole).unwrap_or(u64::MAX).saturating_sub(2)
    }
}

impl Grid {
    /// A grid whose vblank 0 is `phase` after `origin`, the host's own vblank 0; the first to be emitted is
    /// the first one after `now`.
    pub fn new(origin: Nanos, phase: Nanos, period: Period, now: Nanos) -> Self {
        let line = Line { phase, period, lead: 0, slew: None };
        let mut grid = Self { origin, line, before: None, since: 0, next: 0 };
        grid.skip_to(now);
        grid
    }

    /// The time of vblank `seq`.
    pub fn time(&self, seq: u64) -> Nanos {
        let line = match &self.before {
            Some(before) if seq < self.since => before,
            _ => &self.line,
        };
        self.origin.saturating_add(line.time(seq))
    }

    /// The next vblank that is to be emitted.
    pub fn next_time(&self) -> Nanos {
        self.time(self.next)
    }

    /// The refresh period.
    pub fn period(&self) -> Period {
        self.line.period
    }

    /// The offset from the host's grid: where the vblanks are, or where they are on their way to.
    pub fn phase(&self) -> Nanos {
        self.line.phase
    }

    /// Whether periods are still lengthened.
    pub fn is_slewing(&self) -> bool {
        self.line.slew.is_some_and(|slew| self.line.point(self.next) < slew.last())
    }

    /// Moves the vblanks after the next one to the phase `to` by lengthened periods. A way that was begun
    /// has to be at its end.
    pub fn slew(&mut self, to: Nanos) -> Result<(), NoPhase> {
        let Line { period, .. } = self.line;
        let mut line = self.line;
        if let Some(slew) = line.slew.take() {
            line.lead = line.lead.saturating_add_unsigned(slew.turns());
        }
        let slew = Slew::plan(period, line.phase, to, line.point(self.next))?;
        if self.line.slew.is_some() {
            (self.before, self.since) = (Some(self.line), self.next);
        }
        self.line = Line { phase: to, slew: Some(slew), ..line };
        Ok(())
    }

    /// Goes over to another period and phase: the next vblank is the new grid's first one that is not
    /// before it.
    pub fn restart(&mut self, phase: Nanos, period: Period) {
        let earliest = self.next_time().saturating_sub(self.origin);
        let mut line = Line { phase, period, lead: 0, slew: None };
        let mut point = line.near(earliest);
        while line.time(point) < earliest && point < u64::MAX {
            point += 1;
        }
        // Both are counts of vblanks since the host began: far below 2^63.
        line.lead = point.cast_signed().saturating_sub(self.next.cast_signed());
        (self.before, self.since) = (Some(self.line), self.next);
        self.line = line;
    }

    /// The vblank that is due at `now`, if one is, and how many before it were missed. A host that was
    /// held up emits only the latest: a guest cannot use a vblank that is already over.
    pub fn due(&mut self, now: Nanos) -> Option<Due> {
        let first = self.next;
        let time = self.time(first);
        if time > now {
            return None;
        }
        let next = self.time(first + 1);
        if next > now {
            // As it is nearly always.
            self.next = first + 1;
            return Some(Due { vblank: Vblank { seq: first, time, next }, skipped: 0 });
        }
        self.skip_to(now);
        let seq = self.next - 1;
        Some(Due {
            vblank: Vblank { seq, time: self.time(seq), next: self.time(seq + 1) },
            skipped: seq - first,
        })
    }

    /// Makes the first vblank strictly after `now` the next one.
    fn skip_to(&mut self, now: Nanos) {
        let near = self.line.near(now.saturating_sub(self.origin));
        let near = near.saturating_add_signed(self.line.lead.saturating_neg());
        let mut seq = self.next.max(near);
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
    use proptest::prelude::*;

    fn hz(hz: u64) -> Period {
        Period::from_hz(hz, 1).unwrap()
    }

    #[test]
    fn never_drifts() {
        let hz = Period::from_hz(60_000, 1001).unwrap();
        let mut grid = Grid::new(Nanos(5), Nanos(0), hz, Nanos(5));
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
        let mut grid = Grid::new(Nanos(0), Nanos(0), hz(100), Nanos(0));
        assert_eq!(grid.due(Nanos(9_999_999)), None);
        let due = grid.due(Nanos(35_000_000)).unwrap();
        assert_eq!((due.vblank.seq, due.skipped), (3, 2));
        assert_eq!(due.vblank.next, Nanos(40_000_000));
        assert_eq!(grid.due(Nanos(35_000_000)), None);
    }

    #[test]
    fn another_grid_begins_without_a_short_period() {
        let mut grid = Grid::new(Nanos(7), Nanos(1_000), hz(100), Nanos(7));
        let old = grid.due(grid.next_time()).unwrap().vblank;
        grid.restart(Nanos(2_000_000), hz(90));
        let new = grid.due(grid.next_time()).unwrap().vblank;
        assert_eq!((new.seq, grid.phase()), (old.seq + 1, Nanos(2_000_000)));
        // Point 1 of a grid of 90 Hz: the first one that is a whole old period after the last vblank.
        assert_eq!(new.time, Nanos(7 + 2_000_000 + 11_111_111));
        assert_eq!(grid.time(old.seq), old.time, "frames under way keep their times");
    }

    proptest! {
        /// Whatever moves and however late the host is: numbers go on, times rise, no period is shorter
        /// than the shortest one that was in force.
        #[test]
        fn moves_only_ever_lengthen_a_period(
            moves in prop::collection::vec((0u8..3, 0u64..8_000_000, 50u64..121, 1u64..300, 0u64..3), 1..8),
        ) {
            let mut grid = Grid::new(Nanos(11), Nanos(3), hz(90), Nanos(11));
            let (mut last, mut least): (Option<Vblank>, u64) = (None, grid.period().floor().0);
            for (kind, phase, rate, vblanks, late) in moves {
                if !grid.is_slewing() {
                    match kind {
                        0 => grid.restart(Nanos(phase), hz(rate)),
                        1 => grid.slew(Nanos(phase)).unwrap(),
                        _ => {}
                    }
                }
                for _ in 0..vblanks {
                    let late = Nanos(late * grid.period().floor().0);
                    let due = grid.due(grid.next_time().saturating_add(late)).unwrap();
                    prop_assert_eq!(grid.time(due.vblank.seq), due.vblank.time);
                    if let Some(before) = last {
                        prop_assert_eq!(due.vblank.seq, before.seq + 1 + due.skipped);
                        let span = due.vblank.time.saturating_sub(before.time).0;
                        let least = least + due.skipped * grid.period().floor().0;
                        prop_assert!(span + 1 >= least, "{} of {}", span, least);
                    }
                    least = grid.period().floor().0;
                    last = Some(due.vblank);
                }
            }
        }

        /// A slew ends on the new phase's own grid, and no period on the way is more than 1 % longer.
        #[test]
        fn a_slew_arrives(to in 0u64..11_000_000) {
            let mut grid = Grid::new(Nanos(0), Nanos(5_000_000), hz(90), Nanos(0));
            grid.slew(Nanos(to)).unwrap();
            let mut last = grid.due(grid.next_time()).unwrap().vblank.time;
            for _ in 0..102 {
                let time = grid.due(grid.next_time()).unwrap().vblank.time;
                prop_assert!(time.saturating_sub(last).0 <= 11_111_112 + 111_112);
                last = time;
            }
            prop_assert!(!grid.is_slewing());
            let mut points = (0..200).map(|k| Nanos(to).saturating_add(hz(90).times(k)));
            prop_assert!(points.any(|point| point == last));
        }
    }
}
