//! `type = "vfio-user"`: a function served by another process.

use super::{Device, Entry, Wrong};
use schemars::JsonSchema;
use serde::Deserialize;
use std::path::PathBuf;
use std::time::Duration;

/// How long a function's server may take to appear.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// A function that another process serves.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "vfio-user")]
pub(in crate::config) struct Raw {
    /// The server's socket, such as run/NAME-gpu.sock of a host.
    socket: PathBuf,
    /// How long to wait for the server: at most 600000; without it 5000.
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

impl VfioUserDevice {
    pub(super) fn same_socket(a: &Device, b: &Device) -> bool {
        matches!((a, b), (Device::VfioUser(a), Device::VfioUser(b)) if a.socket == b.socket)
    }
}
