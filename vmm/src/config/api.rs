//! Section `[api]`: where the running guest is looked at and steered.

use super::Wrong;
use schemars::JsonSchema;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Longest path of a Unix socket address: bytes.
pub(super) const MAX_SOCKET: usize = 107;

/// Where the running guest is looked at and steered.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "api")]
pub(super) struct Raw {
    /// A Unix socket that is made while the guest runs; `beamline guest --api` takes it.
    socket: PathBuf,
}

/// Where the running guest is looked at and steered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Api {
    /// The socket that whoever runs the guest listens on. The library leaves it to its caller.
    pub socket: PathBuf,
}

impl Raw {
    pub(super) fn check(self, base: &Path) -> Result<Api, Wrong> {
        if self.socket.as_os_str().is_empty() {
            return Err(Wrong::new(
                "api.socket",
                "is empty: give the path of a socket, or leave [api] out",
            ));
        }
        let socket = base.join(self.socket);
        if socket.as_os_str().len() > MAX_SOCKET {
            return Err(Wrong::new(
                "api.socket",
                format!(
                    "{} is longer than the {MAX_SOCKET} bytes that a socket address holds",
                    socket.display()
                ),
            ));
        }
        Ok(Api { socket })
    }
}
