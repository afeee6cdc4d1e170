//! The `[[device]]` entries: functions on the guest's PCI bus.

use super::Wrong;
use crate::pci::SLOTS;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a function's server may take to appear.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest path that a Unix socket address holds: bytes.
const MAX_SOCKET: usize = 107;
/// Slot 0 is the host bridge.
const MAX_DEVICES: usize = SLOTS - 1;

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
pub(super) enum Raw {
    VfioUser { socket: PathBuf, timeout_ms: Option<u64> },
}

/// A function on the guest's PCI bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Device {
    /// Served by another process.
    VfioUser(VfioUserDevice),
}

/// A function served over vfio-user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VfioUserDevice {
    /// The server's socket.
    pub socket: PathBuf,
    /// How long to wait for the server.
    pub timeout: Duration,
}

pub(super) fn check(raw: Vec<Raw>, base: &Path) -> Result<Vec<Device>, Wrong> {
    if raw.len() > MAX_DEVICES {
        return Err(Wrong::new(
            "device",
            format!("has {} entries: the bus has room for {MAX_DEVICES}", raw.len()),
        ));
    }
    raw.into_iter().enumerate().map(|(i, raw)| raw.check(i, base)).collect()
}

impl Raw {
    fn check(self, index: usize, base: &Path) -> Result<Device, Wrong> {
        let Self::VfioUser { socket, timeout_ms } = self;
        let key = |name: &str| format!("device[{index}].{name}");
        if socket.as_os_str().is_empty() {
            return Err(Wrong::new(
                key("socket"),
                "is empty: give the path of the server's socket",
            ));
        }
        let socket = base.join(socket);
        if socket.as_os_str().len() > MAX_SOCKET {
            return Err(Wrong::new(
                key("socket"),
                format!(
                    "{} is longer than the {MAX_SOCKET} bytes that a socket address holds",
                    socket.display()
                ),
            ));
        }
        let timeout = timeout_ms.map_or(DEFAULT_TIMEOUT, Duration::from_millis);
        if timeout > Duration::from_mins(10) {
            return Err(Wrong::new(key("timeout_ms"), "is over 10 minutes: use 0 to 600000"));
        }
        Ok(Device::VfioUser(VfioUserDevice { socket, timeout }))
    }
}
