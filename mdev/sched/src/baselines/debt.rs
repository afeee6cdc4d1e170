//! Stage 4, schedule: time slices that were overrun, and how they are repaid.

use beamline_abi::Nanos;

/// What one tenant owes for having run beyond the ends of its slices.
///
/// An overshoot is repaid in equal parts over the next slices, as many as the averaging factor says; where a
/// part is longer than a slice, by whole slices, for as long as it takes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Debt {
    owed: u64,
    part: u64,
}

impl Debt {
    pub(super) fn owed(self) -> Nanos {
        Nanos(self.owed)
    }

    /// Adds an overshoot, ns. What was owed before is spread anew with it.
    pub(super) fn add(&mut self, over: u64, averaging: u64) {
        if over > 0 {
            self.owed = self.owed.saturating_add(over);
            self.part = self.owed.div_ceil(averaging.max(1));
        }
    }

    /// Takes from a slice what is due with it; answers what is left of the slice.
    pub(super) fn repay(&mut self, slice: u64) -> u64 {
        let due = self.part.min(self.owed).min(slice);
        self.owed -= due;
        slice - due
    }
}
