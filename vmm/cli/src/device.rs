//! A guest's devices in words: for its API and for the check of its file.

use crate::api::json::{DeviceJson, DisplayJson, PortJson};
use beamline_vmm::Config;
use beamline_vmm::config::{Device, InputDevice, NetPort};
use beamline_vmm::devices::virtio::console::Output;
use beamline_vmm::pci::port::State;
use std::path::Path;

/// What the name of a slice's vGPU socket ends with.
const GPU: &str = "-gpu.sock";

/// Where device number `index` of the file is: slot 0 is the host bridge, and each root port has a bus behind it, for
/// as long as the guest gives it no other number.
pub(crate) fn pci(config: &Config, index: usize) -> String {
    match index.checked_sub(config.devices.len()) {
        None => format!("00:{:02x}.0", index + 1),
        Some(port) => format!("{:02x}:00.0", port + 1),
    }
}

/// What is in a root port.
pub(crate) fn port_state(state: State) -> &'static str {
    match state {
        State::Empty => "empty",
        State::Plugged => "plugged",
        State::Asked => "asked",
    }
}

/// Its `type`.
pub(crate) fn kind(device: &Device) -> &'static str {
    match device {
        Device::VfioUser(_) => "vfio-user",
        Device::Blk(_) => "virtio-blk",
        Device::Net(_) => "virtio-net",
        Device::Rng => "virtio-rng",
        Device::Console(_) => "virtio-console",
        Device::Vsock(_) => "virtio-vsock",
        Device::Input(_) => "virtio-input",
        Device::Balloon => "virtio-balloon",
    }
}

/// What of the host is behind it.
pub(crate) fn opens(device: &Device) -> Option<String> {
    Some(match device {
        Device::VfioUser(vfio) => vfio.socket.display().to_string(),
        Device::Blk(disk) => {
            let how = if disk.source.readonly { ", read only" } else { "" };
            format!("{}{how}", disk.source.path.display())
        }
        Device::Net(net) => match &net.port {
            NetPort::Tap(Some(tap)) => format!("tap {tap}"),
            NetPort::Tap(None) => "a new tap".into(),
            NetPort::VhostUser(path) => format!("vhost-user {}", path.display()),
        },
        Device::Console(console) => match &console.output {
            Output::Terminal => "terminal".into(),
            Output::File(path) => path.display().to_string(),
            Output::Socket(path) => format!("unix:{}", path.display()),
        },
        Device::Vsock(vsock) => format!("/dev/vhost-vsock, cid {}", vsock.cid),
        Device::Input(InputDevice::Evdev(path)) => path.display().to_string(),
        Device::Input(InputDevice::Kind(kind)) => kind.name().into(),
        Device::Rng | Device::Balloon => return None,
    })
}

/// The same for people, behind what else is said of the device.
pub(crate) fn port_words(port: Option<&PortJson>) -> String {
    port.map_or_else(String::new, |port| format!("  port {}: {}", port.port, port.state))
}

/// All of them. `state` says what is in a root port; by the file alone it is what is there from the start.
pub(crate) fn list(config: &Config, state: impl Fn(usize) -> Option<State>) -> Vec<DeviceJson> {
    let one = |(index, device)| DeviceJson {
        pci: pci(config, index),
        kind: kind(device).into(),
        opens: opens(device),
        port: index.checked_sub(config.devices.len()).and_then(|number| {
            let port = config.ports.get(number)?;
            let from_start = if port.plugged { State::Plugged } else { State::Empty };
            let state = state(number).unwrap_or(from_start);
            Some(PortJson { port: port.name.clone(), state: port_state(state).into() })
        }),
    };
    config.functions().enumerate().map(one).collect()
}

/// The slice whose vGPU the guest has, by the names that a host gives its sockets.
pub(crate) fn display<'a>(mut devices: impl Iterator<Item = &'a Device>) -> Option<DisplayJson> {
    devices.find_map(|device| {
        let Device::VfioUser(vfio) = device else { return None };
        let slice = vfio.socket.file_name()?.to_str()?.strip_suffix(GPU)?;
        let folder = vfio.socket.parent().unwrap_or(Path::new(""));
        // Whoever asks may be in another folder.
        let host = std::path::absolute(folder.join("control.sock")).ok()?;
        Some(DisplayJson { slice: slice.to_owned(), host })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slice_is_told_by_the_name_of_the_vgpus_socket() {
        let display = |socket: &str| {
            let text = format!(
                "[guest]\nname = \"a\"\nimage = \"b\"\n[memory]\nsize = \"2M\"\n[[device]]\n\
                 type = \"virtio-rng\"\n[[device]]\ntype = \"vfio-user\"\nsocket = \"{socket}\"\n"
            );
            display(Config::parse(&text, Path::new("/etc/a.toml")).unwrap().functions())
        };
        let vr = display("run/vr-2-gpu.sock").unwrap();
        assert_eq!(
            (vr.slice.as_str(), vr.host.as_path()),
            ("vr-2", Path::new("/etc/run/control.sock"))
        );
        assert!(display("run/vr-2-pacer.sock").is_none());
        assert!(display("gpu.sock").is_none());
    }
}
