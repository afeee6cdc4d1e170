//! Stage 4, schedule: the policies by name.

use crate::beamline::Beamline;
use crate::fifo::Fifo;
use crate::passthrough::Passthrough;
use crate::policy::{GpuCaps, Policy};
use alloc::boxed::Box;
use core::fmt;
use core::str::FromStr;

/// Which policy schedules a GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PolicyKind {
    /// Frame contracts: [`Beamline`].
    #[default]
    Beamline,
    /// Order of arrival: [`Fifo`].
    Fifo,
    /// No mediation: [`Passthrough`].
    None,
}

/// No policy has this name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no such scheduling policy; use one of: beamline, fifo, none")]
pub struct UnknownPolicy;

impl PolicyKind {
    /// Every policy.
    pub const ALL: [Self; 3] = [Self::Beamline, Self::Fifo, Self::None];

    /// The name in configuration and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Beamline => "beamline",
            Self::Fifo => "fifo",
            Self::None => "none",
        }
    }

    /// The policy, for at most `max_tenants` tenants and `max_jobs` jobs queued or running.
    pub fn build(self, caps: GpuCaps, max_tenants: usize, max_jobs: usize) -> Box<dyn Policy> {
        match self {
            Self::Beamline => Box::new(Beamline::new(caps, max_tenants, max_jobs)),
            Self::Fifo => Box::new(Fifo::new(caps, max_tenants, max_jobs)),
            Self::None => Box::new(Passthrough::new(max_tenants, max_jobs)),
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
