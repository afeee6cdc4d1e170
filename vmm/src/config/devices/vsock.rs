//! `type = "virtio-vsock"`: sockets between host and guest.

use super::{Entry, Wrong};
use crate::devices::virtio::vsock::MIN_CID;
use schemars::JsonSchema;
use serde::Deserialize;

/// Sockets between host and guest.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "virtio-vsock")]
pub(in crate::config) struct Raw {
    /// The guest's context ID: 3 or more, and no other guest's.
    cid: u32,
}

/// Sockets between host and guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VsockDevice {
    /// The guest's context ID, which no other guest of the host has.
    pub cid: u32,
}

impl Raw {
    pub(super) fn check(self, entry: &Entry<'_>) -> Result<VsockDevice, Wrong> {
        // The largest one means "any".
        if self.cid < MIN_CID || self.cid == u32::MAX {
            return Err(entry.wrong(
                "cid",
                format!("{} is not a guest's: use {MIN_CID} to {}", self.cid, u32::MAX - 1),
            ));
        }
        Ok(VsockDevice { cid: self.cid })
    }
}
