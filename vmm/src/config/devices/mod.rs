//! The `[[device]]` entries: functions on the guest's PCI bus. One file per type.

mod balloon;
mod blk;
mod console;
mod input;
mod net;
mod rng;
mod vfio_user;
mod vsock;

#[cfg(test)]
mod tests;

pub use blk::BlkDevice;
pub use console::ConsoleDevice;
pub use input::{InputDevice, InputKind};
pub use net::{NetDevice, NetPort};
pub use vfio_user::VfioUserDevice;
pub use vsock::VsockDevice;

use super::Wrong;
use super::api::MAX_SOCKET;
use crate::pci::SLOTS;
use schemars::JsonSchema;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Slot 0 is the host bridge.
pub(super) const MAX_DEVICES: usize = SLOTS - 1;

/// A function on the guest's PCI bus.
#[derive(Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "kebab-case")]
#[schemars(rename = "device")]
pub(super) enum Raw {
    VfioUser(vfio_user::Raw),
    VirtioBlk(blk::Raw),
    VirtioNet(net::Raw),
    VirtioRng(rng::Raw),
    VirtioConsole(console::Raw),
    VirtioVsock(vsock::Raw),
    VirtioInput(input::Raw),
    VirtioBalloon(balloon::Raw),
}

/// A function on the guest's PCI bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Device {
    /// Served by another process.
    VfioUser(VfioUserDevice),
    /// A disk.
    Blk(BlkDevice),
    /// A network card.
    Net(NetDevice),
    /// An entropy source.
    Rng,
    /// A console.
    Console(ConsoleDevice),
    /// Sockets between host and guest.
    Vsock(VsockDevice),
    /// A keyboard, mouse, tablet or gamepad.
    Input(InputDevice),
    /// A memory balloon.
    Balloon,
}

/// Where an entry is: its place in the file, and the folder that its paths are relative to.
pub(super) struct Entry<'a> {
    place: String,
    base: &'a Path,
}

impl<'a> Entry<'a> {
    fn of_device(index: usize, base: &'a Path) -> Self {
        Self { place: format!("device[{index}]"), base }
    }

    /// The device of a `[[port]]`.
    pub(super) fn of_port(index: usize, base: &'a Path) -> Self {
        Self { place: format!("port[{index}].device"), base }
    }
}

impl Entry<'_> {
    fn wrong(&self, key: &str, message: impl Into<String>) -> Wrong {
        Wrong::new(format!("{}.{key}", self.place), message)
    }

    /// A path that is there.
    fn path(&self, key: &str, path: PathBuf, what: &str) -> Result<PathBuf, Wrong> {
        if path.as_os_str().is_empty() {
            return Err(self.wrong(key, format!("is empty: give the path of {what}")));
        }
        Ok(self.base.join(path))
    }

    /// A path that a socket's address can hold.
    fn socket(&self, key: &str, path: PathBuf, what: &str) -> Result<PathBuf, Wrong> {
        const MAX: usize = MAX_SOCKET;
        let path = self.path(key, path, what)?;
        if path.as_os_str().len() > MAX {
            let path = path.display();
            return Err(self.wrong(
                key,
                format!("{path} is longer than the {MAX} bytes that a socket address holds"),
            ));
        }
        Ok(path)
    }
}

pub(super) fn check(raw: Vec<Raw>, base: &Path) -> Result<Vec<Device>, Wrong> {
    if raw.len() > MAX_DEVICES {
        return Err(Wrong::new(
            "device",
            format!("has {} entries: the bus has room for {MAX_DEVICES}", raw.len()),
        ));
    }
    let entries = raw.into_iter().enumerate();
    let devices: Vec<Device> = entries
        .map(|(index, raw)| raw.check(&Entry::of_device(index, base)))
        .collect::<Result<_, _>>()?;
    one_each(&devices, &[], base)?;
    Ok(devices)
}

/// What there can be only one of, or one user of, among devices and those of the ports.
pub(super) fn one_each(devices: &[Device], ports: &[Device], base: &Path) -> Result<(), Wrong> {
    for (index, device) in devices.iter().chain(ports).enumerate() {
        let entry = match index.checked_sub(devices.len()) {
            None => Entry::of_device(index, base),
            Some(port) => Entry::of_port(port, base),
        };
        let before = || devices.iter().chain(ports).take(index);
        let twice = |same: fn(&Device, &Device) -> bool| before().any(|d| same(d, device));
        if twice(|a, b| matches!((a, b), (Device::Vsock(_), Device::Vsock(_)))) {
            return Err(entry.wrong("type", "is a second virtio-vsock: a guest has one"));
        }
        if twice(|a, b| matches!((a, b), (Device::Balloon, Device::Balloon))) {
            return Err(entry.wrong("type", "is a second virtio-balloon: a guest has one"));
        }
        if twice(VfioUserDevice::same_socket) {
            return Err(entry.wrong(
                "socket",
                "is another device's: a slice has one guest, and its pacer and its vGPU a socket each",
            ));
        }
        if twice(ConsoleDevice::both_at_terminal) {
            return Err(entry.wrong(
                "output",
                "is the terminal, which another console has: name a file or a socket",
            ));
        }
        if twice(NetDevice::same_tap) {
            return Err(entry.wrong("tap", "is another card's: each needs a tap of its own"));
        }
        if twice(NetDevice::same_server) {
            return Err(entry.wrong("vhost_user", "is another card's: a server has one guest"));
        }
        if twice(BlkDevice::same_disk) {
            return Err(entry.wrong(
                "path",
                "is another disk's: it can be there twice only if both are readonly",
            ));
        }
    }
    Ok(())
}

impl Raw {
    pub(super) fn check(self, entry: &Entry<'_>) -> Result<Device, Wrong> {
        match self {
            Self::VfioUser(raw) => raw.check(entry).map(Device::VfioUser),
            Self::VirtioBlk(raw) => raw.check(entry).map(Device::Blk),
            Self::VirtioNet(raw) => raw.check(entry).map(Device::Net),
            Self::VirtioRng(rng::Raw {}) => Ok(Device::Rng),
            Self::VirtioConsole(raw) => raw.check(entry).map(Device::Console),
            Self::VirtioVsock(raw) => raw.check(entry).map(Device::Vsock),
            Self::VirtioInput(raw) => raw.check(entry).map(Device::Input),
            Self::VirtioBalloon(balloon::Raw {}) => Ok(Device::Balloon),
        }
    }
}
