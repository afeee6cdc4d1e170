//! `type = "virtio-net"`: a network card.

use super::{Device, Entry, Wrong};
use crate::devices::virtio::net::{Mac, MacError, tap};
use schemars::JsonSchema;
use serde::Deserialize;

/// A network card.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "virtio-net")]
pub(in crate::config) struct Raw {
    /// The name of a tap; without it one is made.
    tap: Option<String>,
    /// The card's address; without it one that is derived from the guest's name.
    mac: Option<String>,
}

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetDevice {
    /// The tap's name; `None`: one is made and the kernel names it.
    pub tap: Option<String>,
    /// The card's address; `None`: derived from the guest's name.
    pub mac: Option<Mac>,
}

impl Raw {
    pub(super) fn check(self, entry: &Entry<'_>) -> Result<NetDevice, Wrong> {
        if let Some(name) = &self.tap {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
            let reserved = name == "." || name == "..";
            if name.is_empty() || name.len() > tap::MAX_NAME || !name.bytes().all(plain) || reserved
            {
                return Err(entry.wrong(
                    "tap",
                    format!(
                        "{name:?} is not an interface's name: use 1 to {} letters, digits, `_`, `.` or `-`",
                        tap::MAX_NAME
                    ),
                ));
            }
        }
        let mac = self
            .mac
            .map(|text| {
                text.parse().map_err(|e: MacError| entry.wrong("mac", format!("{text:?} {e}")))
            })
            .transpose()?;
        Ok(NetDevice { tap: self.tap, mac })
    }
}

impl NetDevice {
    pub(super) fn same_tap(a: &Device, b: &Device) -> bool {
        matches!((a, b), (Device::Net(a), Device::Net(b)) if a.tap.is_some() && a.tap == b.tap)
    }
}
