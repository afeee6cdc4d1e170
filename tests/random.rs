//! Random choices that can be repeated: `BEAMLINE_CHAOS_SEED`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// SplitMix64 (Steele, Lea, Flood 2014).
pub(crate) struct Random(u64);

impl Random {
    /// From the environment or the clock; printed, so that a run can be repeated.
    pub(crate) fn seeded() -> Self {
        let given = std::env::var("BEAMLINE_CHAOS_SEED").ok().and_then(|s| s.parse().ok());
        let seed = given.unwrap_or_else(|| {
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |t| t.as_nanos() as u64)
        });
        println!("seed: BEAMLINE_CHAOS_SEED={seed}");
        Self(seed)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u64 + 1) as usize);
        }
    }

    /// Lets a random time below `most` pass. Nothing waits for this; it chooses when the kill comes.
    pub(crate) fn moment(&mut self, most: Duration) {
        let time = Duration::from_micros(self.below(most.as_micros() as u64));
        println!("  after {time:?}");
        std::thread::sleep(time);
    }
}
