//! What jobs take on the modelled GPU.

use beamline_abi::Nanos;
use beamline_abi::frame::SubmitHeader;
use beamline_mdev::backend::SliceKey;
use beamline_mdev::backend::model::CostModel;
use std::collections::BTreeMap;

/// A generator of numbers that are the same in every run: PCG-XSH-RR (O'Neill 2014).
#[derive(Clone, Debug)]
pub struct Seeded(u64);

impl Seeded {
    /// A generator for `seed`.
    pub fn new(seed: u64) -> Self {
        let mut new = Self(seed.wrapping_add(0xda3e_39cb_94b9_5bdb));
        new.bits();
        new
    }

    /// The next 32 bits.
    pub fn bits(&mut self) -> u32 {
        let old = self.0;
        self.0 = old.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        let mixed = (((old >> 18) ^ old) >> 27) as u32;
        mixed.rotate_right((old >> 59) as u32)
    }

    /// A number below `end`, which is above 0.
    pub fn below(&mut self, end: u64) -> u64 {
        let wide = u64::from(self.bits()) << 32 | u64::from(self.bits());
        wide % end
    }
}

/// A time per slice and place in the frame, lengthened by a seeded jitter; from a chosen frame on, a
/// slice's jobs may never end.
#[derive(Clone, Debug)]
pub struct Costs {
    base: BTreeMap<(u16, u16), Nanos>,
    other: Nanos,
    jitter_permille: u64,
    numbers: Vec<Seeded>,
    hang: Option<(u16, u64)>,
}

impl Costs {
    /// Every job takes `other`, and up to `jitter_permille` thousandths more. Each slice has a sequence of
    /// its own, so that a neighbour's jobs do not change it.
    pub fn new(other: Nanos, jitter_permille: u64, seed: u64) -> Self {
        let numbers = (0..64).map(|slice| Seeded::new(seed ^ slice << 32)).collect();
        Self { base: BTreeMap::new(), other, jitter_permille, numbers, hang: None }
    }

    /// Job `job` of the frames of slice `slice` takes `cost`.
    #[must_use]
    pub fn with(mut self, slice: u16, job: u16, cost: Nanos) -> Self {
        self.base.insert((slice, job), cost);
        self
    }

    /// The first job of frame `frame` in the first life of slice `slice` never ends.
    #[must_use]
    pub fn hang(mut self, slice: u16, frame: u64) -> Self {
        self.hang = Some((slice, frame));
        self
    }
}

impl CostModel for Costs {
    fn cost(&mut self, slice: SliceKey, job: &SubmitHeader) -> Nanos {
        if self.hang == Some((slice.index, job.frame.0)) && slice.generation.0 == 0 {
            return Nanos::MAX;
        }
        let base = self.base.get(&(slice.index, job.job.0)).copied().unwrap_or(self.other);
        let Some(numbers) = self.numbers.get_mut(usize::from(slice.index)) else { return base };
        let most = base.0.saturating_mul(self.jitter_permille) / 1000;
        base.saturating_add(Nanos(numbers.below(most + 1)))
    }
}
