//! `type = "virtio-net"`: a network card.

use super::{Device, Entry, Wrong};
use crate::devices::virtio::net::{Mac, MacError, tap};
use schemars::JsonSchema;
use serde::Deserialize;
use std::path::PathBuf;

/// A network card.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "virtio-net")]
pub(in crate::config) struct Raw {
    /// The name of a tap; without it one is made.
    tap: Option<String>,
    /// The socket of a vhost-user server, such as passt, in place of a tap.
    vhost_user: Option<PathBuf>,
    /// The card's address; without it one that is derived from the guest's name.
    mac: Option<String>,
}

/// What carries a card's frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetPort {
    /// A tap of this name; `None`: one is made and the kernel names it.
    Tap(Option<String>),
    /// The vhost-user server at this socket.
    VhostUser(PathBuf),
}

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetDevice {
    /// What carries its frames.
    pub port: NetPort,
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
        let port = match (self.tap, self.vhost_user) {
            (tap, None) => NetPort::Tap(tap),
            (None, Some(path)) => {
                let what = "the socket of a vhost-user server such as passt";
                NetPort::VhostUser(entry.path("vhost_user", path, what)?)
            }
            (Some(_), Some(_)) => {
                return Err(
                    entry.wrong("vhost_user", "is there together with tap: use one of them")
                );
            }
        };
        Ok(NetDevice { port, mac })
    }
}

impl NetDevice {
    /// Whether two cards are on the same tap.
    pub(super) fn same_tap(a: &Device, b: &Device) -> bool {
        matches!(a, Device::Net(Self { port: NetPort::Tap(Some(_)), .. })) && Self::same_port(a, b)
    }

    /// Whether two cards have the same server.
    pub(super) fn same_server(a: &Device, b: &Device) -> bool {
        matches!(a, Device::Net(Self { port: NetPort::VhostUser(_), .. })) && Self::same_port(a, b)
    }

    fn same_port(a: &Device, b: &Device) -> bool {
        matches!((a, b), (Device::Net(a), Device::Net(b)) if a.port == b.port)
    }
}
