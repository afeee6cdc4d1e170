//! Stage 4, schedule: m-in-k: which frames of a contract that allows misses are to be in time, and whether
//! they were.
//!
//! Of any k frames at most m may miss, so k − m of any k are *mandatory*; the others are *optional* and run in
//! what is left. Which are which is fixed by the slot number and spread evenly (Ramanathan, "Overload
//! management in real-time control applications using (m,k)-firm guarantee", 1999; Quan and Hu, "Enhanced
//! fixed-priority scheduling with (m,k)-firm guarantee", 2000; their m counts the frames in time, this one the
//! misses): with q = k − m, slot s is mandatory where a multiple of k lies in [s·q, (s + 1)·q). Then n slots in
//! a row hold at most ⌈n·q/k⌉ mandatory ones, as those from slot 0 on do; at least ⌊n·q/k⌋; and k slots just q.

use crate::contract::{MissAllowance, gcd};

/// Which slots are mandatory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pattern {
    keep: u32,
    of: u32,
}

impl Pattern {
    /// Every frame is mandatory.
    pub const ALL: Self = Self { keep: 1, of: 1 };

    /// The pattern that keeps `miss`. Every frame is mandatory where no miss is allowed, and where the
    /// allowance makes no sense (as many misses as frames).
    pub const fn new(miss: MissAllowance) -> Self {
        if miss.misses == 0 || miss.misses >= miss.frames {
            return Self::ALL;
        }
        let keep = miss.frames - miss.misses;
        // Both are at most u32::MAX and not 0, so their divisor is too.
        let g = gcd(keep as u64, miss.frames as u64) as u32;
        Self { keep: keep / g, of: miss.frames / g }
    }

    /// Whether every slot is mandatory.
    pub const fn is_all(self) -> bool {
        self.keep == self.of
    }

    /// Whether the frame of this slot is to be in time.
    pub const fn is_mandatory(self, slot: u64) -> bool {
        let of = self.of as u64;
        // Both factors are below 2^32.
        let begins = (slot % of) * self.keep as u64 % of;
        begins == 0 || of - begins < self.keep as u64
    }

    /// The most mandatory slots among `n` in a row.
    pub const fn most(self, n: u64) -> u128 {
        (n as u128 * self.keep as u128).div_ceil(self.of as u128)
    }

    /// What of `amount` per slot the mandatory ones take on average, rounded up.
    pub const fn share(self, amount: u64) -> u64 {
        // At most `amount`.
        self.most(amount) as u64
    }
}

/// The most misses among any `frames` results in a row; of all, where there are fewer. `kept`: whether each
/// frame was in time, in order of their slots.
pub fn most_missed(kept: &[bool], frames: u32) -> u32 {
    let window = usize::try_from(frames).unwrap_or(usize::MAX);
    let (mut missed, mut most) = (0u32, 0);
    for (i, &in_time) in kept.iter().enumerate() {
        missed += u32::from(!in_time);
        if i >= window {
            missed -= u32::from(!kept[i - window]);
        }
        most = most.max(missed);
    }
    most
}

/// Whether the results keep the allowance: at most `misses` among any `frames` in a row.
pub fn is_kept(miss: MissAllowance, kept: &[bool]) -> bool {
    most_missed(kept, miss.frames) <= miss.misses
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn allow(misses: u32, frames: u32) -> MissAllowance {
        MissAllowance { misses, frames }
    }

    #[test]
    fn mandatory_frames_are_spread_evenly() {
        let show = |m, k| -> Vec<u64> {
            (0..u64::from(k)).filter(|&s| Pattern::new(allow(m, k)).is_mandatory(s)).collect()
        };
        assert_eq!(show(1, 2), [0]);
        assert_eq!(show(1, 3), [0, 1]);
        assert_eq!(show(4, 7), [0, 2, 4]);
        assert_eq!(show(9, 10), [0]);
        assert_eq!(show(1, 10), [0, 1, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn no_misses_and_nonsense_make_every_frame_mandatory() {
        for (m, k) in [(0, 1), (0, 100), (0, u32::MAX), (1, 1), (7, 3), (0, 0), (1, 0)] {
            assert_eq!(Pattern::new(allow(m, k)), Pattern::ALL, "{m} in {k}");
        }
        assert!(Pattern::ALL.is_mandatory(0) && Pattern::ALL.is_mandatory(u64::MAX));
        assert_eq!(Pattern::ALL.most(u64::MAX), u128::from(u64::MAX));
    }

    #[test]
    fn results_are_judged_over_every_window() {
        let (x, o) = (false, true);
        assert_eq!(most_missed(&[o, x, o, o, x, o, x, x], 3), 2);
        assert_eq!(most_missed(&[x, o, o, o, x], 4), 1);
        assert_eq!(most_missed(&[x, x], 10), 2, "fewer than a window");
        assert_eq!(most_missed(&[], 1), 0);
        assert_eq!(most_missed(&[x, x, x], 0), 0);
        assert!(is_kept(allow(1, 4), &[x, o, o, o, x]));
        assert!(!is_kept(allow(1, 5), &[x, o, o, o, x]));
        assert!(is_kept(allow(0, 1), &[o, o]) && !is_kept(allow(0, 1), &[o, x]));
    }

    proptest! {
        #[test]
        fn any_k_slots_hold_k_minus_m(k in 1u32..200, m in 0u32..200, from: u32) {
            let m = m % k;
            let p = Pattern::new(allow(m, k));
            let from = u64::from(from);
            let count = |n: u32| {
                (0..u64::from(n)).filter(|i| p.is_mandatory(from + i)).count() as u128
            };
            prop_assert_eq!(count(k), u128::from(k - m));
            for n in 0..2 * k {
                let least = u128::from(n) * u128::from(k - m) / u128::from(k);
                prop_assert!((least..=p.most(u64::from(n))).contains(&count(n)));
            }
            let first = (0..u64::from(k)).scan(0u128, |n, s| {
                *n += u128::from(p.is_mandatory(s));
                Some(*n)
            });
            for (n, seen) in first.enumerate() {
                prop_assert_eq!(seen, p.most(n as u64 + 1), "the slots from 0 on are the fullest");
            }
        }

        /// Missing every optional frame, and no other, keeps the allowance and uses all of it.
        #[test]
        fn missing_what_is_optional_is_allowed(k in 2u32..100, m in 1u32..100, from: u32) {
            let m = m % k;
            let p = Pattern::new(allow(m, k));
            let kept: Vec<bool> =
                (0..3 * u64::from(k)).map(|s| p.is_mandatory(u64::from(from) + s)).collect();
            prop_assert_eq!(most_missed(&kept, k), m);
        }

        #[test]
        fn extremes_do_not_overflow(m: u32, k: u32, slot: u64, n: u64) {
            let p = Pattern::new(allow(m, k));
            let exact = |s: u64| {
                let (q, of) = (u128::from(p.keep), u128::from(p.of));
                // A multiple of `of` lies in [s·q, (s + 1)·q).
                (u128::from(s) * q).div_ceil(of) * of < (u128::from(s) + 1) * q
            };
            prop_assert_eq!(p.is_mandatory(slot), exact(slot));
            prop_assert!(p.most(n) <= u128::from(n));
            prop_assert_eq!(u128::from(p.share(n)), p.most(n));
        }
    }
}
