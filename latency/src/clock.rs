//! Clocks: host time, a settable time for tests, and the map from a time-stamp counter to host time.

use beamline_abi::Nanos;
use rustix::thread::{ClockId, NanosleepRelativeResult, clock_nanosleep_relative};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Where a thread gets its time from.
pub trait Clock: Send + Sync {
    /// Host `CLOCK_MONOTONIC`, or what stands for it.
    fn now(&self) -> Nanos;
}

impl<C: Clock + ?Sized> Clock for &C {
    fn now(&self) -> Nanos {
        (**self).now()
    }
}

/// A moment, for a step that takes no time.
impl Clock for Nanos {
    fn now(&self) -> Nanos {
        *self
    }
}

/// The real `CLOCK_MONOTONIC`.
#[derive(Clone, Copy, Debug, Default)]
pub struct MonotonicClock;

impl Clock for MonotonicClock {
    fn now(&self) -> Nanos {
        let t = rustix::time::clock_gettime(ClockId::Monotonic);
        // CLOCK_MONOTONIC is never negative; 584 years fit.
        Nanos(t.tv_sec.unsigned_abs() * 1_000_000_000 + t.tv_nsec.unsigned_abs())
    }
}

/// A clock that stands still until it is set. Clones share the time.
#[derive(Clone, Debug, Default)]
pub struct FakeClock(Arc<AtomicU64>);

impl FakeClock {
    /// A clock that shows `now`.
    pub fn new(now: Nanos) -> Self {
        Self(Arc::new(AtomicU64::new(now.0)))
    }
    /// Shows `now` from here on.
    pub fn set(&self, now: Nanos) {
        self.0.store(now.0, Ordering::SeqCst);
    }
    /// Moves the time on and returns it.
    pub fn advance(&self, by: Nanos) -> Nanos {
        Nanos(self.0.fetch_add(by.0, Ordering::SeqCst) + by.0)
    }
}

impl Clock for FakeClock {
    fn now(&self) -> Nanos {
        Nanos(self.0.load(Ordering::SeqCst))
    }
}

/// Why a time-stamp counter could not be mapped.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ClockError {
    /// The processor has no time-stamp counter that can be read.
    #[error("this processor has no time-stamp counter; guest times cannot be placed on host time")]
    NoTsc,
    /// The counter and the clock did not both move on.
    #[error(
        "the time-stamp counter moved {ticks} ticks in {ns} ns of CLOCK_MONOTONIC; both must rise: \
         check that the host's clock source is `tsc`"
    )]
    Stuck {
        /// Ticks of the counter.
        ticks: u64,
        /// Nanoseconds of the clock.
        ns: u64,
    },
    /// The guest's scaling leaves no usable rate.
    #[error("a guest TSC scale of {0:#x} (48 fractional bits) gives no usable rate")]
    Scale(u64),
}

/// How a guest's counter follows the host's: `guest = (host × scale) + offset`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestTsc {
    /// Ticks added, modulo 2⁶⁴.
    pub offset: u64,
    /// Guest ticks per host tick with 48 fractional bits; 0 means 1.
    pub scale: u64,
}

impl GuestTsc {
    const ONE: u64 = 1 << 48;

    fn ratio(self) -> u64 {
        if self.scale == 0 { Self::ONE } else { self.scale }
    }

    /// What the guest's counter shows when the host's shows `host`.
    pub fn from_host(self, host: u64) -> u64 {
        let scaled = (u128::from(host) * u128::from(self.ratio())) >> 48;
        (scaled as u64).wrapping_add(self.offset)
    }
}

/// A line from counter ticks to host ns, and how far off it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TscMap {
    /// The counter at the reference.
    pub tsc_ref: u64,
    /// Host ns at the reference.
    pub ns_ref: u64,
    /// ns per tick with 32 fractional bits.
    pub mult: u64,
    /// Error bound at the reference, in ns.
    pub err_ns: u64,
    /// Error bound of the rate, in ns per second of distance from the reference.
    pub rate_err_ns_per_s: u64,
}

/// One simultaneous reading of both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pair {
    tsc: u64,
    ns: u64,
    /// Ticks between the reads before and after: the reading lies within.
    width: u64,
}

impl Pair {
    /// The narrowest of some bracketed readings: an interruption makes a bracket wide, never wrong.
    fn read(clock: &dyn Clock) -> Result<Self, ClockError> {
        let mut best: Option<Self> = None;
        for _ in 0..64 {
            let before = crate::tsc::read().ok_or(ClockError::NoTsc)?;
            let ns = clock.now().0;
            let after = crate::tsc::read().ok_or(ClockError::NoTsc)?;
            let width = after.wrapping_sub(before);
            if best.is_none_or(|b| width < b.width) {
                best = Some(Self { tsc: before.wrapping_add(width / 2), ns, width });
            }
        }
        best.ok_or(ClockError::NoTsc)
    }
}

impl TscMap {
    /// Maps this host's counter from bracketed readings `interval` apart (50 ms is plenty to begin with).
    /// Blocks for that long. Call [`TscMap::extend`] at the end of a run: a longer base narrows the rate.
    pub fn calibrate(interval: Nanos) -> Result<Self, ClockError> {
        let first = Pair::read(&MonotonicClock)?;
        let until = first.ns.saturating_add(interval.0);
        loop {
            let left = until.saturating_sub(MonotonicClock.now().0);
            if left == 0 {
                break;
            }
            let sleep = rustix::thread::Timespec {
                tv_sec: (left / 1_000_000_000) as i64,
                tv_nsec: (left % 1_000_000_000) as i64,
            };
            match clock_nanosleep_relative(ClockId::Monotonic, &sleep) {
                NanosleepRelativeResult::Ok | NanosleepRelativeResult::Interrupted(_) => {}
                // Both arguments are valid; should the kernel refuse all the same, calibrate on less.
                NanosleepRelativeResult::Err(_) => break,
            }
        }
        Self::through(first, Pair::read(&MonotonicClock)?)
    }

    /// The same map with its rate taken over the whole time since its reference.
    pub fn extend(&self) -> Result<Self, ClockError> {
        let width = (u128::from(self.err_ns) << 33) / u128::from(self.mult.max(1));
        let first = Pair { tsc: self.tsc_ref, ns: self.ns_ref, width: width as u64 };
        Self::through(first, Pair::read(&MonotonicClock)?)
    }

    fn through(first: Pair, last: Pair) -> Result<Self, ClockError> {
        let ticks = last.tsc.wrapping_sub(first.tsc);
        let ns = last.ns.saturating_sub(first.ns);
        let stuck = ClockError::Stuck { ticks, ns };
        if ticks == 0 || ns == 0 || ticks > i64::MAX as u64 {
            return Err(stuck);
        }
        let mult = u64::try_from((u128::from(ns) << 32) / u128::from(ticks)).map_err(|_| stuck)?;
        // Half a bracket, and the nanosecond the clock was rounded to.
        let err = |width: u64| ((u128::from(width) * u128::from(mult)) >> 33) as u64 + 1;
        let (e0, e1) = (err(first.width), err(last.width));
        let rate = (u128::from(e0 + e1) * 1_000_000_000).div_ceil(u128::from(ns));
        Ok(Self {
            tsc_ref: first.tsc,
            ns_ref: first.ns,
            mult,
            err_ns: e0,
            rate_err_ns_per_s: u64::try_from(rate).unwrap_or(u64::MAX),
        })
    }

    /// Host time at counter value `tsc`. Times before the clock's origin become 0.
    pub fn to_ns(&self, tsc: u64) -> Nanos {
        let ticks = i128::from(tsc.wrapping_sub(self.tsc_ref) as i64);
        let ns = i128::from(self.ns_ref) + ((ticks * i128::from(self.mult)) >> 32);
        Nanos(u64::try_from(ns.max(0)).unwrap_or(u64::MAX))
    }

    /// Error bound of [`TscMap::to_ns`] at host time `at`.
    pub fn err_at(&self, at: Nanos) -> Nanos {
        let distance = u128::from(at.0.abs_diff(self.ns_ref));
        let drift = distance * u128::from(self.rate_err_ns_per_s) / 1_000_000_000;
        Nanos(u64::try_from(drift).unwrap_or(u64::MAX).saturating_add(self.err_ns))
    }

    /// The map for a guest whose counter follows this host's by `guest`; what a timing page publishes.
    pub fn for_guest(&self, guest: GuestTsc) -> Result<Self, ClockError> {
        let mult = (u128::from(self.mult) << 48) / u128::from(guest.ratio());
        match u64::try_from(mult) {
            Ok(mult) if mult > 0 => {
                Ok(Self { tsc_ref: guest.from_host(self.tsc_ref), mult, ..*self })
            }
            _ => Err(ClockError::Scale(guest.scale)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2.5 GHz.
    const MAP: TscMap = TscMap {
        tsc_ref: 1_000_000,
        ns_ref: 5_000_000,
        mult: (2u64 << 32) / 5,
        err_ns: 40,
        rate_err_ns_per_s: 1_000,
    };

    #[test]
    fn maps_before_and_after_the_reference() {
        assert_eq!(MAP.to_ns(1_000_000), Nanos(5_000_000));
        let later = MAP.to_ns(1_000_000 + 2_500_000_000).0;
        assert!(later.abs_diff(1_005_000_000) <= 1, "{later}");
        let earlier = MAP.to_ns(1_000_000 - 2_500).0;
        assert!(earlier.abs_diff(4_999_000) <= 1, "{earlier}");
        assert_eq!(MAP.err_at(Nanos(5_000_000 + 2_000_000_000)), Nanos(2_040));
    }

    #[test]
    fn a_guest_with_offset_and_scale_maps_to_the_same_host_time() {
        let guests = [
            GuestTsc { offset: 0, scale: 0 },
            GuestTsc { offset: 0u64.wrapping_sub(77_000_000_000), scale: 1 << 48 },
            GuestTsc { offset: 123_456_789, scale: (1 << 48) * 3 / 5 },
            GuestTsc { offset: u64::MAX - 5, scale: (1 << 48) * 7 / 4 },
        ];
        for guest in guests {
            let map = MAP.for_guest(guest).unwrap();
            for host_tsc in [1_000_000u64, 2_500_001_000_000, 7_777_777_777] {
                let seen = map.to_ns(guest.from_host(host_tsc)).0;
                let want = MAP.to_ns(host_tsc).0;
                // The rate keeps 32 fractional bits: about 1 ns in a second.
                let allowed = 2 + want / 500_000_000;
                assert!(seen.abs_diff(want) <= allowed, "{guest:?} {host_tsc}: {seen} {want}");
            }
        }
        assert!(MAP.for_guest(GuestTsc { offset: 0, scale: 1 << 60 }).is_ok());
        let dead = TscMap { mult: 1, ..MAP };
        assert_eq!(
            dead.for_guest(GuestTsc { offset: 0, scale: u64::MAX }),
            Err(ClockError::Scale(u64::MAX))
        );
    }

    #[test]
    fn a_clock_that_stands_still_is_refused() {
        let pair = Pair { tsc: 5, ns: 7, width: 1 };
        assert_eq!(TscMap::through(pair, pair), Err(ClockError::Stuck { ticks: 0, ns: 0 }));
    }

    #[test]
    fn this_host_calibrates_within_its_own_error() {
        let map = match TscMap::calibrate(Nanos::from_millis(5)) {
            Ok(map) => map,
            Err(ClockError::NoTsc) => {
                eprintln!("skipped: no time-stamp counter");
                return;
            }
            Err(e) => panic!("{e}"),
        };
        let map = map.extend().unwrap();
        let pair = Pair::read(&MonotonicClock).unwrap();
        let bracket = (u128::from(pair.width) * u128::from(map.mult)) >> 32;
        let off = map.to_ns(pair.tsc).0.abs_diff(pair.ns);
        // Twice, since a virtual machine's counter may be stepped between the readings.
        let allowed = 2 * (map.err_at(Nanos(pair.ns)).0 + bracket as u64 + 1);
        assert!(off <= allowed, "off by {off} ns, allowed {allowed} ns");
    }

    #[test]
    fn a_fake_clock_is_shared_by_its_clones() {
        let clock = FakeClock::new(Nanos(5));
        let other = clock.clone();
        assert_eq!(clock.advance(Nanos(3)), Nanos(8));
        assert_eq!(other.now(), Nanos(8));
        other.set(Nanos(1));
        assert_eq!(clock.now(), Nanos(1));
    }
}
