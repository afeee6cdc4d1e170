//! What `beamline host` says on stdout: one JSON object per line.

use serde::{Deserialize, Serialize};
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_what_the_documentation_says() {
        let stats =
            HostEvent::Stats { slices: vec![SliceStats { name: "vr".into(), frames: 9, late: 1 }] };
        let line = serde_json::to_string(&stats).unwrap();
        assert_eq!(line, r#"{"event":"stats","slices":[{"name":"vr","frames":9,"late":1}]}"#);
        assert_eq!(serde_json::from_str::<HostEvent>(&line).unwrap(), stats);
        assert_eq!(serde_json::to_string(&HostEvent::Drained).unwrap(), r#"{"event":"drained"}"#);
    }
}
