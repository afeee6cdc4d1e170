//! How much of its memory the guest writes in a while, by KVM's dirty log.

use super::json::{WritesForJson, WritesJson};
use super::routes::{Guest, conflict, ended, unprocessable};
use beamline_mdev::host::api::answers::Refused;
use beamline_vmm::memory::{DirtyError, PAGE};
use std::time::{Duration, Instant};

/// How long it may be looked at, in ms: the request has one of the API's few threads meanwhile.
const FOR_MS: std::ops::RangeInclusive<u64> = 1..=10_000;

impl Guest {
    /// Counts the pages that are written from now on, for so long or until the guest ends.
    pub(super) fn writes(&self, asked: WritesForJson) -> Result<WritesJson, Refused> {
        if !FOR_MS.contains(&asked.for_ms) {
            return Err(unprocessable(
                format!("{} ms is no time to look for", asked.for_ms),
                "for_ms",
                format!("use {} to {}", FOR_MS.start(), FOR_MS.end()),
            ));
        }
        self.alive()?;
        self.control.start_dirty_log().map_err(refused)?;
        let from = Instant::now();
        self.control.wait_timeout(Duration::from_millis(asked.for_ms));
        let written = self.control.written_pages();
        let ms = u64::try_from(from.elapsed().as_millis()).unwrap_or(u64::MAX);
        let stopped = self.control.stop_dirty_log();
        let pages = written.map_err(refused)?.count();
        stopped.map_err(refused)?;
        Ok(WritesJson { ms, pages, bytes: pages.saturating_mul(PAGE) })
    }
}

fn refused(error: DirtyError) -> Refused {
    let mend = match &error {
        DirtyError::Ended => return ended(),
        DirtyError::Started | DirtyError::Off => "somebody else looks: ask again in a moment",
        DirtyError::Refused { .. } => "look at the host's kernel",
    };
    conflict(error, "guest", mend)
}
