//! Stage 4, schedule: the time slices of NVIDIA vGPU, as its *Virtual GPU Software User Guide* ("Changing
//! Scheduling Behavior for Time-Sliced vGPUs") documents them. A model of documented behaviour.
//!
//! * Slices are as long as the scheduling frequency says: by default 480 Hz (2.08 ms) for up to 8 vGPUs and
//!   960 Hz (1.04 ms) for more. 63 to 960 Hz can be set.
//! * *Best effort*, the default: round robin over the vGPUs with work.
//! * *Equal share*: each active vGPU gets the same. In strict round robin an overshoot is repaid over an
//!   averaging factor of 1 to 60 slices, by default 33. Whether the turn of a running vGPU without work stays
//!   empty is left open: the model passes it by, which is kinder to the product.
//! * *Fixed share* is in [`FixedShare`](super::FixedShare).

use super::round_robin::Slicing;
use beamline_abi::Nanos;

/// vGPUs up to which the lower frequency is the default.
const FEW: usize = 8;
const FEW_HZ: u64 = 480;
const MANY_HZ: u64 = 960;
/// Slices over which an overshoot is repaid by default.
pub(super) const AVERAGING: u64 = 33;

/// The default slice with so many vGPUs.
pub(super) fn default_slice(vgpus: usize) -> Nanos {
    Nanos(1_000_000_000 / if vgpus <= FEW { FEW_HZ } else { MANY_HZ })
}

/// NVIDIA vGPU's best-effort scheduler.
#[derive(Clone, Copy, Debug, Default)]
pub struct BestEffort;

impl Slicing for BestEffort {
    fn name(&self) -> &'static str {
        "best_effort"
    }
    fn slice(&self, tenants: usize) -> Option<Nanos> {
        Some(default_slice(tenants))
    }
}

/// NVIDIA vGPU's equal-share scheduler in strict round robin.
#[derive(Clone, Copy, Debug)]
pub struct EqualShare {
    averaging: u64,
}

impl EqualShare {
    /// Repays overshoots over so many slices; what is out of 1 to 60 is brought into it, as the driver does.
    pub fn new(averaging: u64) -> Self {
        Self { averaging: averaging.clamp(1, 60) }
    }
}

impl Default for EqualShare {
    fn default() -> Self {
        Self::new(AVERAGING)
    }
}

impl Slicing for EqualShare {
    fn name(&self) -> &'static str {
        "equal_share"
    }
    fn slice(&self, tenants: usize) -> Option<Nanos> {
        Some(default_slice(tenants))
    }
    fn averaging(&self) -> Option<u64> {
        Some(self.averaging)
    }
}
