//! Section `[tpm]`: the guest's TPM, which another process emulates.

use super::Wrong;
use super::api::MAX_SOCKET;
use schemars::JsonSchema;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// The guest's TPM 2.0, which swtpm emulates.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "tpm")]
pub(super) struct Raw {
    /// The control socket of a `swtpm socket --tpm2 --ctrl type=unixio,path=SOCKET` of this guest's own.
    socket: PathBuf,
}

/// The guest's TPM 2.0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tpm {
    /// The control socket of its swtpm, which listens before the guest is built.
    pub socket: PathBuf,
}

impl Raw {
    pub(super) fn check(self, base: &Path) -> Result<Tpm, Wrong> {
        if self.socket.as_os_str().is_empty() {
            return Err(Wrong::new(
                "tpm.socket",
                "is empty: give the path of swtpm's control socket, or leave [tpm] out",
            ));
        }
        let socket = base.join(self.socket);
        if socket.as_os_str().len() > MAX_SOCKET {
            return Err(Wrong::new(
                "tpm.socket",
                format!(
                    "{} is longer than the {MAX_SOCKET} bytes that a socket address holds",
                    socket.display()
                ),
            ));
        }
        Ok(Tpm { socket })
    }
}
