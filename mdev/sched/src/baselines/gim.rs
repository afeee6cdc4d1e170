//! Stage 4, schedule: the world switch of AMD's GIM driver for SR-IOV, as its source documents it
//! (`amdgv_sched.h`). A model of documented behaviour.
//!
//! Functions take turns of 6 ms by default (1 to 500 ms can be set); one without work is passed by. A function
//! that overshoots its slice is punished: all of it is taken from its next slices.

use super::round_robin::Slicing;
use beamline_abi::Nanos;

/// AMD GIM's fair world switch.
#[derive(Clone, Copy, Debug)]
pub struct GimFair {
    slice: Nanos,
}

impl GimFair {
    /// Slices of so many ms; what is out of 1 to 500 is brought into it.
    pub fn new(slice_ms: u64) -> Self {
        Self { slice: Nanos::from_millis(slice_ms.clamp(1, 500)) }
    }
}

impl Default for GimFair {
    fn default() -> Self {
        Self::new(6)
    }
}

impl Slicing for GimFair {
    fn name(&self) -> &'static str {
        "gim_fair"
    }
    fn slice(&self, _: usize) -> Option<Nanos> {
        Some(self.slice)
    }
    fn averaging(&self) -> Option<u64> {
        Some(1)
    }
}
