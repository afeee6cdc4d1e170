//! What `beamline host` and `beamline run` say on stdout: one JSON object per line. A guest's own lines begin with
//! its name, so that none of them passes for one of these.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// One line.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub(crate) enum HostEvent {
    /// Clients may attach.
    Ready {
        /// How results come about: measured or modelled.
        label: String,
        /// Who executes the GPU work.
        gpu: String,
        slices: Vec<ReadySlice>,
    },
    /// Every 500 ms.
    Stats { slices: Vec<SliceStats> },
    /// Every slice is done and every file is written.
    Drained,
}

/// Where a slice is served.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct ReadySlice {
    pub(crate) name: String,
    /// Socket of its pacer.
    pub(crate) pacer: PathBuf,
    /// Socket of its vGPU.
    pub(crate) gpu: PathBuf,
    /// Where its vblanks lie on the common grid.
    pub(crate) phase_ns: u64,
}

/// How a slice is doing since the host started.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct SliceStats {
    pub(crate) name: String,
    /// Frames presented (background: jobs done).
    pub(crate) frames: u64,
    /// Frames that missed their vblank.
    pub(crate) late: u64,
    /// How often the guest rang a doorbell.
    #[serde(default)]
    pub(crate) doorbells: u64,
}

/// One line of `beamline run`, where its stdout is no terminal.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub(crate) enum GuestEvent {
    /// At the guest's end.
    Interrupts(InterruptsEvent),
}

/// How a guest's interrupts were delivered, and what they have cost.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub(crate) struct InterruptsEvent {
    /// How the numbers came about.
    pub(crate) label: String,
    /// The guest's functions.
    pub(crate) devices: Vec<DeviceDelivery>,
    /// Over the guest's whole life.
    pub(crate) all: Costs,
    /// While vblanks came.
    pub(crate) paced: Option<Costs>,
    /// Exits that the VMM's own process served, over the guest's whole life: port accesses.
    pub(crate) to_vmm_io: u64,
    /// Memory accesses.
    pub(crate) to_vmm_mmio: u64,
    /// Signals and others.
    pub(crate) to_vmm_other: u64,
    /// Why KVM's counters are not there.
    pub(crate) missing: Option<String>,
}

/// How one function's interrupts were delivered.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct DeviceDelivery {
    pub(crate) device: String,
    pub(crate) mode: String,
    /// How that was found out.
    pub(crate) found: String,
}

/// What KVM counted in a while, of all vCPUs.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub(crate) struct Costs {
    pub(crate) seconds: f64,
    /// Vblanks that the pacers' timing pages count.
    pub(crate) vblanks: u64,
    /// All exits, whatever their cause, over the vblanks.
    pub(crate) exits_per_vblank: Option<f64>,
    /// By KVM's own names.
    pub(crate) counters: BTreeMap<String, u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_what_the_documentation_says() {
        let stats = HostEvent::Stats {
            slices: vec![SliceStats { name: "vr".into(), frames: 9, late: 1, doorbells: 2 }],
        };
        let line = serde_json::to_string(&stats).unwrap();
        assert_eq!(
            line,
            r#"{"event":"stats","slices":[{"name":"vr","frames":9,"late":1,"doorbells":2}]}"#
        );
        assert_eq!(serde_json::from_str::<HostEvent>(&line).unwrap(), stats);
        assert_eq!(serde_json::to_string(&HostEvent::Drained).unwrap(), r#"{"event":"drained"}"#);
    }
}
