//! What a log says about itself: slices, contracts, clocks, and how its numbers came about.

use crate::clock::{ClockError, GuestTsc, TscMap};
use beamline_abi::Nanos;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How a result came about. Printed with every result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Label {
    /// Real time on real hardware or on a real software GPU.
    Measured,
    /// The live stack over the model of a GPU.
    Modelled,
    /// Virtual time.
    Simulated,
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Measured => "measured",
            Self::Modelled => "modelled",
            Self::Simulated => "simulated",
        })
    }
}

/// The contract a slice was promised, as far as judging its frames needs it. Durations in ns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContractMeta {
    /// Refresh period, numerator.
    pub period_num: u64,
    /// Refresh period, denominator.
    pub period_den: u64,
    /// A frame is due this long after its release.
    pub deadline_ns: u64,
    /// GPU time per period for the frame's jobs, without the late latch.
    pub budget_ns: u64,
    /// Longest single job.
    pub max_job_ns: u64,
    /// The guest may take this long between one job's fence and its next job.
    #[serde(default)]
    pub gap_ns: u64,
    /// A frame's first job is submitted at most this long after its vblank.
    pub jitter_ns: u64,
    /// The late-latch window opens this long before the vblank; 0 without late latch.
    #[serde(default)]
    pub late_latch_ns: u64,
    /// GPU time of the late latch.
    #[serde(default)]
    pub late_latch_budget_ns: u64,
    /// The guest makes one frame per vblank: each vblank makes a frame due. Otherwise only frames that
    /// were submitted are due.
    pub paced: bool,
    /// The contract's class, for display.
    #[serde(default)]
    pub class: String,
}

impl ContractMeta {
    /// The period in whole ns, at least 1. For comparisons, never for adding up.
    pub fn period(&self) -> Nanos {
        Nanos((self.period_num / self.period_den.max(1)).max(1))
    }
}

/// One slice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SliceMeta {
    /// Its name in reports.
    pub name: String,
    /// What it was promised; `None` for a slice without a contract.
    pub contract: Option<ContractMeta>,
    /// How its guest's counter follows the host's; `None` where nobody knows, which leaves stages 1 and 9
    /// unmeasured.
    #[serde(default)]
    pub guest_tsc: Option<GuestTsc>,
}

/// What a log says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// How the numbers came about.
    pub label: Label,
    /// A name for the run: the policy, usually.
    pub run: String,
    /// The slices, in the order of [`SliceIndex`](crate::SliceIndex).
    pub slices: Vec<SliceMeta>,
    /// The host's counter on host time.
    #[serde(default)]
    pub tsc: Option<TscMap>,
    /// Error bound of GPU times that were placed by bracketed reads, in ns.
    #[serde(default)]
    pub gpu_clock_err_ns: u64,
    /// Seed of the run's workload.
    #[serde(default)]
    pub seed: u64,
    /// A hash of the run's configuration, as text.
    #[serde(default)]
    pub config_hash: String,
}

impl Meta {
    /// The map from a slice's guest counter to host time.
    ///
    /// # Errors
    /// [`ClockError::NoTsc`] where the log has no map for it, [`ClockError::Scale`] for an absurd scale.
    pub fn guest_map(&self, slice: usize) -> Result<TscMap, ClockError> {
        let guest = self.slices.get(slice).and_then(|s| s.guest_tsc).ok_or(ClockError::NoTsc)?;
        self.tsc.ok_or(ClockError::NoTsc)?.for_guest(guest)
    }
}
