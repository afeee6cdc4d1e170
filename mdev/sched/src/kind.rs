//! Stage 4, schedule: the policies by name.

use crate::baselines::{
    BestEffort, DrmFair, Edf, EqualShare, FifoLate, FixedShare, GimFair, GvtgWeighted, Ranked,
    RoundRobin, XeQuantum,
};
use crate::beamline::Beamline;
use crate::fifo::Fifo;
use crate::passthrough::Passthrough;
use crate::policy::{GpuCaps, Policy};
use alloc::boxed::Box;
use core::fmt;
use core::str::FromStr;

/// Which policy schedules a GPU. All but the first are there to compare with; every one can run live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PolicyKind {
    /// Frame contracts: [`Beamline`].
    #[default]
    Beamline,
    /// Order of arrival: [`Fifo`].
    Fifo,
    /// No mediation: [`Passthrough`].
    None,
    /// Order of arrival, late latches first: [`FifoLate`].
    FifoLate,
    /// Earliest deadline first: [`Edf`].
    Edf,
    /// NVIDIA vGPU's default: [`BestEffort`].
    BestEffort,
    /// NVIDIA vGPU's strict round robin: [`EqualShare`].
    EqualShare,
    /// NVIDIA vGPU's fixed slots: [`FixedShare`].
    FixedShare,
    /// Intel GVT-g's weights: [`GvtgWeighted`].
    GvtgWeighted,
    /// Intel Xe's profile for 30 frames per second: [`XeQuantum::profile_30fps`].
    XeQuantum,
    /// Intel Xe as the kernel sets it up: [`XeQuantum::unlimited`].
    XeUnlimited,
    /// AMD GIM's world switch: [`GimFair`].
    GimFair,
    /// The Linux DRM scheduler: [`DrmFair`].
    DrmFair,
}

/// No policy has this name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownPolicy;

impl fmt::Display for UnknownPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("there is no such scheduling policy; use one of: ")?;
        for (i, kind) in PolicyKind::ALL.into_iter().enumerate() {
            write!(f, "{}{kind}", if i == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

impl core::error::Error for UnknownPolicy {}

impl PolicyKind {
    /// Every policy.
    pub const ALL: [Self; 13] = [
        Self::Beamline,
        Self::Fifo,
        Self::None,
        Self::FifoLate,
        Self::Edf,
        Self::BestEffort,
        Self::EqualShare,
        Self::FixedShare,
        Self::GvtgWeighted,
        Self::XeQuantum,
        Self::XeUnlimited,
        Self::GimFair,
        Self::DrmFair,
    ];

    /// The name in configuration and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Beamline => "beamline",
            Self::Fifo => "fifo",
            Self::None => "none",
            Self::FifoLate => "fifo_late",
            Self::Edf => "edf",
            Self::BestEffort => "best_effort",
            Self::EqualShare => "equal_share",
            Self::FixedShare => "fixed_share",
            Self::GvtgWeighted => "gvtg_weighted",
            Self::XeQuantum => "xe_quantum",
            Self::XeUnlimited => "xe_unlimited",
            Self::GimFair => "gim_fair",
            Self::DrmFair => "drm_fair",
        }
    }

    /// What it is, in one line.
    pub const fn about(self) -> &'static str {
        match self {
            Self::Beamline => "frame contracts: earliest deadline first within budgets and guards",
            Self::Fifo => "one queue in order of arrival, as in a bare driver",
            Self::None => "no mediation: every released job goes to the GPU",
            Self::FifoLate => "order of arrival, late latches first, as VR stacks do",
            Self::Edf => "earliest deadline first, without budgets or guards",
            Self::BestEffort => {
                "NVIDIA vGPU best effort, a model: round robin, 2.08 or 1.04 ms slices"
            }
            Self::EqualShare => {
                "NVIDIA vGPU equal share, a model: overshoots repaid over 33 slices"
            }
            Self::FixedShare => "NVIDIA vGPU fixed share, a model: idle tenants' slots stay empty",
            Self::GvtgWeighted => "Intel GVT-g, a model: weighted time per 100 ms, 1 ms tick",
            Self::XeQuantum => "Intel Xe SR-IOV, 30 fps profile, a model: quantum of 32 ms / N",
            Self::XeUnlimited => "Intel Xe SR-IOV, kernel default, a model: no end of the quantum",
            Self::GimFair => "AMD GIM, a model: 6 ms slices, overshoots punished",
            Self::DrmFair => "Linux DRM scheduler, a model: least virtual GPU time first",
        }
    }

    /// Whether it is a model of what a product's documents say.
    pub const fn is_model(self) -> bool {
        !matches!(self, Self::Beamline | Self::Fifo | Self::None | Self::FifoLate | Self::Edf)
    }

    /// The policy, for at most `max_tenants` tenants and `max_jobs` jobs queued or running.
    pub fn build(self, caps: GpuCaps, max_tenants: usize, max_jobs: usize) -> Box<dyn Policy> {
        let (n, m) = (max_tenants, max_jobs);
        match self {
            Self::Beamline => Box::new(Beamline::new(caps, n, m)),
            Self::Fifo => Box::new(Fifo::new(caps, n, m)),
            Self::None => Box::new(Passthrough::new(n, m)),
            Self::FifoLate => Box::new(Ranked::with(FifoLate, caps, n, m)),
            Self::Edf => Box::new(Ranked::with(Edf, caps, n, m)),
            Self::BestEffort => Box::new(RoundRobin::with(BestEffort, caps, n, m)),
            Self::EqualShare => Box::new(RoundRobin::with(EqualShare::default(), caps, n, m)),
            Self::FixedShare => Box::new(FixedShare::new(caps, n, m)),
            Self::GvtgWeighted => Box::new(GvtgWeighted::new(caps, n, m)),
            Self::XeQuantum => Box::new(RoundRobin::with(XeQuantum::profile_30fps(), caps, n, m)),
            Self::XeUnlimited => Box::new(RoundRobin::with(XeQuantum::unlimited(), caps, n, m)),
            Self::GimFair => Box::new(RoundRobin::with(GimFair::default(), caps, n, m)),
            Self::DrmFair => Box::new(DrmFair::new(caps, n, m)),
        }
    }
}

impl FromStr for PolicyKind {
    type Err = UnknownPolicy;
    fn from_str(name: &str) -> Result<Self, UnknownPolicy> {
        Self::ALL.into_iter().find(|k| k.name() == name).ok_or(UnknownPolicy)
    }
}

impl fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
