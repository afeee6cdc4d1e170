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

/// One line of `beamline run --json`. A call that the sandbox forbids is told by its own handler:
/// `{"event":"sandbox-violation","call":NAME,"number":NUMBER}`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub(crate) enum GuestEvent {
    /// Its vCPUs run. After a reset it comes again.
    Started {
        guest: String,
        pid: u32,
        /// The socket of its API.
        #[serde(skip_serializing_if = "Option::is_none")]
        api: Option<PathBuf>,
    },
    /// No vCPU runs.
    Paused,
    /// They run again.
    Resumed,
    /// Someone pressed its power button over the API.
    PowerButton,
    /// A device was put into a root port.
    Plugged { port: String },
    /// The guest was asked to let it go.
    UnplugAsked { port: String },
    /// It was taken out: the guest let it go, or it was forced.
    Unplugged { port: String },
    /// It was reset, by itself or over the API.
    Reset,
    /// It resets within a second of its start, again and again: it starts after pauses from now on, until it lives
    /// longer. Once for each row of such lives.
    ResetsAtOnce { longest_pause_ms: u64 },
    /// It switched itself off.
    PoweredOff,
    /// It wrote this code to the exit port.
    Exited { code: u32 },
    /// It was stopped: by a signal, by a key, or over the API.
    Stopped,
    /// It could not start, or failed.
    Failed {
        error: String,
        /// The command's.
        exit_code: u8,
    },
    /// At the end of one of its lives; also without `--json`, where stdout is no terminal.
    Interrupts(InterruptsEvent),
}

/// Where a guest's events go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Events {
    stdout: bool,
}

impl Events {
    /// To stdout, or nowhere.
    pub(crate) fn new(stdout: bool) -> Self {
        Self { stdout }
    }

    /// Says one. A reader that has gone away ends no guest.
    pub(crate) fn say(self, event: &GuestEvent) {
        if self.stdout {
            let _ = crate::output::json_line(event);
        }
    }
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

    #[test]
    fn a_guests_events_have_the_names_of_the_documentation() {
        let started = GuestEvent::Started { guest: "vr".into(), pid: 7, api: None };
        for (event, line) in [
            (started, r#"{"event":"started","guest":"vr","pid":7}"#),
            (
                GuestEvent::UnplugAsked { port: "a".into() },
                r#"{"event":"unplug-asked","port":"a"}"#,
            ),
            (
                GuestEvent::ResetsAtOnce { longest_pause_ms: 5000 },
                r#"{"event":"resets-at-once","longest_pause_ms":5000}"#,
            ),
            (GuestEvent::PoweredOff, r#"{"event":"powered-off"}"#),
            (GuestEvent::Exited { code: 3 }, r#"{"event":"exited","code":3}"#),
        ] {
            assert_eq!(serde_json::to_string(&event).unwrap(), line);
            assert_eq!(serde_json::from_str::<GuestEvent>(line).unwrap(), event);
        }
    }
}
