//! `type = "vfio-user"`: a function served by another process.

use super::{Entry, Wrong};
use serde::Deserialize;
use std::path::PathBuf;
use std::time::Duration;

/// How long a function's server may take to appear.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Raw {
    socket: PathBuf,
    timeout_ms: Option<u64>,
}

/// A function served over vfio-user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VfioUserDevice {
    /// The server's socket.
    pub socket: PathBuf,
    /// How long to wait for the server.
    pub timeout: Duration,
}

impl Raw {
    pub(super) fn check(self, entry: &Entry<'_>) -> Result<VfioUserDevice, Wrong> {
        let socket = entry.socket("socket", self.socket, "the server's socket")?;
        let timeout = self.timeout_ms.map_or(DEFAULT_TIMEOUT, Duration::from_millis);
        if timeout > Duration::from_mins(10) {
            return Err(entry.wrong("timeout_ms", "is over 10 minutes: use 0 to 600000"));
        }
        Ok(VfioUserDevice { socket, timeout })
    }
}
