//! A guest's TOML file: read raw, then checked into types that cannot be wrong.

mod api;
mod devices;
mod guest;
mod iommu;
mod memory;
mod node;
mod ports;
mod tpm;
mod vcpus;

pub use api::Api;
pub use devices::{
    BlkDevice, ConsoleDevice, Device, InputDevice, InputKind, NetDevice, NetPort, VfioUserDevice,
    VsockDevice,
};
pub use guest::{Boot, Firmware, Guest, Image, OnReset};
pub use iommu::Iommu;
pub use memory::{HugePages, MAX_NODE, Memory};
pub use node::Node;
pub use ports::Port;
pub use tpm::Tpm;
#[cfg(test)]
pub(crate) use vcpus::MAX_COUNT as MAX_VCPUS;
pub use vcpus::{REALTIME, Vcpus};

use schemars::JsonSchema;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// What is wrong with a configuration file.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is not TOML, or has a key that is unknown, missing or of the wrong type.
    #[error("{}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and what.
        message: String,
    },
    /// A value is wrong.
    #[error("{}: {key}: {message}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The key, such as `memory.size`.
        key: String,
        /// What is wrong and what would be right.
        message: String,
    },
}

/// A wrong value, before the file's name is known.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Wrong {
    key: String,
    message: String,
}

impl Wrong {
    fn new(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self { key: key.into(), message: message.into() }
    }
}

/// A guest, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Section `[guest]`.
    pub guest: Guest,
    /// Section `[memory]`.
    pub memory: Memory,
    /// Section `[vcpus]`.
    pub vcpus: Vcpus,
    /// The `[[node]]` entries, in their memory's order; empty: the guest is not told of nodes.
    pub nodes: Vec<Node>,
    /// The `[[device]]` entries, in slot order.
    pub devices: Vec<Device>,
    /// The `[[port]]` entries, in slot order behind those.
    pub ports: Vec<Port>,
    /// Section `[api]`, if it is there.
    pub api: Option<Api>,
    /// Section `[iommu]`.
    pub iommu: Iommu,
    /// Section `[tpm]`, if it is there.
    pub tpm: Option<Tpm>,
}

/// A guest of `beamline run`: what it boots, its memory, its CPUs and its devices.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "guest.toml")]
struct Raw {
    guest: guest::Raw,
    memory: memory::Raw,
    #[serde(default)]
    vcpus: vcpus::Raw,
    /// The guest's NUMA nodes, whose memory follows in this order.
    #[serde(default)]
    node: Vec<node::Raw>,
    /// The functions on the guest's PCI bus, in slot order from 00:01.0 on.
    #[serde(default)]
    device: Vec<devices::Raw>,
    /// Root ports, in slot order behind the devices: what is plugged in and out while the guest runs.
    #[serde(default)]
    port: Vec<ports::Raw>,
    api: Option<api::Raw>,
    #[serde(default)]
    iommu: iommu::Raw,
    tpm: Option<tpm::Raw>,
}

impl Config {
    /// Checks `text` as the contents of `path`, which is not read. Relative paths in it are relative to its folder.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let raw: Raw = toml::from_str(text).map_err(|e| ConfigError::Syntax {
            path: path.to_owned(),
            message: e.to_string().trim_end().to_owned(),
        })?;
        let base = path.parent().unwrap_or(Path::new(""));
        Self::check(raw, base).map_err(|w| ConfigError::Value {
            path: path.to_owned(),
            key: w.key,
            message: w.message,
        })
    }

    fn check(raw: Raw, base: &Path) -> Result<Self, Wrong> {
        let devices = devices::check(raw.device, base)?;
        let memory = raw.memory.check(raw.node.iter().any(node::Raw::is_bound))?;
        let vcpus = raw.vcpus.check()?;
        let nodes = node::check(raw.node, &memory, vcpus.count)?;
        if memory.hugepages.is_some()
            && let Some(index) = devices.iter().position(|d| matches!(d, Device::Balloon))
        {
            return Err(Wrong::new(
                format!("device[{index}].type"),
                "is a balloon, which gives pages back, and `memory.hugepages` takes some from the host's pools for as \
                 long as the guest runs: leave out one of them, or use \"transparent\"",
            ));
        }
        let guest = raw.guest.check(base)?;
        let iommu = raw.iommu.check(&devices)?;
        let ports = ports::check(raw.port, base, &guest.boot, &devices, iommu.enabled)?;
        Ok(Self {
            guest,
            memory,
            vcpus,
            nodes,
            iommu,
            devices,
            ports,
            api: raw.api.map(|api| api.check(base)).transpose()?,
            tpm: raw.tpm.map(|tpm| tpm.check(base)).transpose()?,
        })
    }

    /// Every device of the file, those of the ports behind the others: a device's number is its place here.
    pub fn functions(&self) -> impl Iterator<Item = &Device> {
        self.devices.iter().chain(self.ports.iter().map(|port| &port.device))
    }

    /// The JSON schema of a guest's file: its sections, their keys, and the values that those take.
    pub fn schema() -> impl serde::Serialize {
        schemars::schema_for!(Raw)
    }
}

#[cfg(test)]
mod tests;
