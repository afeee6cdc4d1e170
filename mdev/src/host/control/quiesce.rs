//! Guests that are asked to stop submitting, and to go on. Nothing holds a guest to it.

use super::{ControlError, Controller, Entry, SliceView};
use crate::mediate::dispatcher::SliceCounters;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long a host that drains waits for the work under way, at most.
pub const DRAIN_PATIENCE: Duration = Duration::from_secs(1);
/// Between two looks at whether it is over.
const LOOK: Duration = Duration::from_millis(1);

/// Whether a slice's guest is asked to stop submitting, and whether it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Quiesce {
    /// It is not asked.
    #[default]
    No,
    /// It is, and work of it is queued or running.
    Asked,
    /// It is, and no work that the host has taken from it is left.
    Quiesced,
}

impl Entry {
    /// How far its guest has stopped.
    pub(super) fn quiesce(&self) -> Quiesce {
        match &self.server {
            Some(server) if server.pacer().is_quiesced() => {
                if is_busy(&self.counters) {
                    Quiesce::Asked
                } else {
                    Quiesce::Quiesced
                }
            }
            _ => Quiesce::No,
        }
    }
}

fn is_busy(counters: &SliceCounters) -> bool {
    counters.queued.load(Ordering::Acquire) > 0
}

impl Controller {
    /// Asks a slice's guest to stop submitting, or to go on. That holds until the other is asked for, whatever
    /// guest comes.
    ///
    /// # Errors
    /// Where there is no such slice, it is being removed, or the host is ending.
    pub fn quiesce(&self, name: &str, quiesce: bool) -> Result<SliceView, ControlError> {
        let state = self.open()?;
        let (_, entry) = state.find(name)?;
        let server = entry.server.as_ref().ok_or_else(|| ControlError::Leaving(name.into()))?;
        server.pacer().set_quiesce(quiesce);
        Ok(self.view(entry))
    }

    /// Asks every guest to stop submitting, and waits until no work is queued or running, for `patience` at
    /// most; whether none is left. No slice comes or goes meanwhile.
    pub(in crate::host) fn quiesce_all(&self, patience: Duration) -> bool {
        let slices: Vec<Arc<SliceCounters>> = {
            let state = self.lock();
            let servers = state.slices.iter().flatten();
            servers
                .filter_map(|entry| {
                    entry.server.as_ref()?.pacer().set_quiesce(true);
                    Some(Arc::clone(&entry.counters))
                })
                .collect()
        };
        let deadline = Instant::now() + patience;
        while slices.iter().any(|counters| is_busy(counters)) {
            if Instant::now() >= deadline {
                return false;
            }
            // The frame's path is not to signal somebody at each fence for this.
            std::thread::sleep(LOOK);
        }
        true
    }
}
