//! A guest's devices in words: for its API and for the check of its file.

use crate::api::json::{DeviceJson, DisplayJson};
use beamline_vmm::config::{Device, InputDevice, NetPort};
use beamline_vmm::devices::virtio::console::Output;
use std::path::Path;

/// What the name of a slice's vGPU socket ends with.
const GPU: &str = "-gpu.sock";

/// Where device number `index` of the file is: slot 0 is the host bridge.
pub(crate) fn pci(index: usize) -> String {
    format!("00:{:02x}.0", index + 1)
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

/// All of them.
pub(crate) fn list(devices: &[Device]) -> Vec<DeviceJson> {
    let one = |(index, device)| DeviceJson {
        pci: pci(index),
        kind: kind(device).into(),
        opens: opens(device),
    };
    devices.iter().enumerate().map(one).collect()
}

/// The slice whose vGPU the guest has, by the names that a host gives its sockets.
pub(crate) fn display(devices: &[Device]) -> Option<DisplayJson> {
    devices.iter().find_map(|device| {
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
    use beamline_vmm::Config;

    #[test]
    fn the_slice_is_told_by_the_name_of_the_vgpus_socket() {
        let display = |socket: &str| {
            let text = format!(
                "[guest]\nname = \"a\"\nimage = \"b\"\n[memory]\nsize = \"2M\"\n[[device]]\n\
                 type = \"virtio-rng\"\n[[device]]\ntype = \"vfio-user\"\nsocket = \"{socket}\"\n"
            );
            display(&Config::parse(&text, Path::new("/etc/a.toml")).unwrap().devices)
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
