//! The `[[port]]` entries: root ports of the guest's PCI bus, each with the device that can be plugged into it.

use super::devices::{self, Device, MAX_DEVICES};
use super::{Boot, Wrong};
use crate::pci::layout::MAX_PORTS;
use schemars::JsonSchema;
use serde::Deserialize;
use std::path::Path;

/// Longest name of a port: bytes.
const MAX_NAME: usize = 32;

/// A root port, with the device that can be plugged into it while the guest runs.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "port")]
pub(super) struct Raw {
    /// What `beamline guest plug` and `unplug` call it: lower-case letters, digits and dashes.
    name: String,
    /// The device is there from the start; without it true.
    plugged: Option<bool>,
    /// The device: vfio-user, virtio-blk, virtio-net, virtio-rng or virtio-console.
    device: devices::Raw,
}

/// A root port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// No other port of the guest has it.
    pub name: String,
    /// The device is there from the start.
    pub plugged: bool,
    /// What can be plugged into it.
    pub device: Device,
}

/// The ports of a guest that boots `boot`, beside `devices` on the bus and, if there is `iommu`, that.
pub(super) fn check(
    raw: Vec<Raw>,
    base: &Path,
    boot: &Boot,
    devices: &[Device],
    iommu: bool,
) -> Result<Vec<Port>, Wrong> {
    if raw.is_empty() {
        return Ok(Vec::new());
    }
    if matches!(boot, Boot::Firmware(_)) {
        return Err(Wrong::new(
            "port",
            "is not there for guests with firmware yet: boot an image, or make it a [[device]]",
        ));
    }
    let beside = devices.len() + usize::from(iommu);
    if raw.len() > MAX_PORTS || raw.len() + beside > MAX_DEVICES {
        return Err(Wrong::new(
            "port",
            format!(
                "has {} entries: a guest has {MAX_PORTS} at most, and its bus room for {MAX_DEVICES} with the \
                 {beside} devices beside them",
                raw.len()
            ),
        ));
    }
    let mut ports: Vec<Port> = Vec::new();
    for (index, Raw { name, plugged, device }) in raw.into_iter().enumerate() {
        let wrong =
            |key: &str, message: String| Wrong::new(format!("port[{index}].{key}"), message);
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(plain) {
            return Err(wrong(
                "name",
                format!(
                    "{name:?} is not a name: use 1 to {MAX_NAME} lower-case letters, digits and dashes"
                ),
            ));
        }
        if ports.iter().any(|port| port.name == name) {
            return Err(wrong("name", format!("{name:?} is another port's: each has its own")));
        }
        let device = device.check(&devices::Entry::of_port(index, base))?;
        match device {
            Device::VfioUser(_) if iommu => {
                return Err(wrong(
                    "device.type",
                    "is vfio-user, and what is behind a root port is not behind the IOMMU: make it a [[device]], \
                     or leave out iommu.enabled"
                        .into(),
                ));
            }
            Device::VfioUser(_)
            | Device::Blk(_)
            | Device::Net(_)
            | Device::Rng
            | Device::Console(_) => {}
            Device::Vsock(_) | Device::Input(_) | Device::Balloon => {
                return Err(wrong(
                    "device.type",
                    "cannot be plugged: use vfio-user, virtio-blk, virtio-net, virtio-rng or virtio-console"
                        .into(),
                ));
            }
        }
        ports.push(Port { name, plugged: plugged.unwrap_or(true), device });
    }
    let ports_devices: Vec<Device> = ports.iter().map(|port| port.device.clone()).collect();
    devices::one_each(devices, &ports_devices, base)?;
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use crate::Config;
    use std::path::Path;

    fn parse(more: &str) -> Result<Config, String> {
        let text = format!("[guest]\nname = \"a\"\nimage = \"b\"\n[memory]\nsize = \"2M\"\n{more}");
        Config::parse(&text, Path::new("/etc/a.toml")).map_err(|e| e.to_string())
    }

    fn port(name: &str, more: &str, device: &str) -> String {
        format!("[[port]]\nname = \"{name}\"\n{more}\ndevice = {{ {device} }}\n")
    }

    const RNG: &str = "type = \"virtio-rng\"";
    const DISK: &str = "type = \"virtio-blk\", path = \"disk.img\"";

    #[test]
    fn ports_have_names_and_devices() {
        let text = port("disk-2", "plugged = false", DISK) + &port("r", "", RNG);
        let config = parse(&text).unwrap();
        let seen: Vec<_> = config.ports.iter().map(|p| (p.name.as_str(), p.plugged)).collect();
        assert_eq!(seen, [("disk-2", false), ("r", true)]);
        assert_eq!(config.functions().count(), 2);
        assert!(parse("").unwrap().ports.is_empty());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let disk = format!("[[device]]\n{}\n", DISK.replace(", ", "\n"));
        let many = |n: usize| (0..n).map(|i| port(&format!("p{i}"), "", RNG)).collect::<String>();
        let vfio = port("g", "", "type = \"vfio-user\", socket = \"s\"");
        let devices = |n: usize| format!("[[device]]\n{RNG}\n").repeat(n);
        for (text, key, word) in [
            (port("", "", RNG), "port[0].name", "not a name"),
            (port("A", "", RNG), "port[0].name", "lower-case"),
            (port(&"a".repeat(33), "", RNG), "port[0].name", "32"),
            (port("a", "", RNG) + &port("a", "", RNG), "port[1].name", "another port's"),
            (port("a", "", "type = \"virtio-balloon\""), "port[0].device.type", "virtio-blk"),
            (disk + &port("a", "", DISK), "port[0].device.path", "another disk's"),
            (many(9), "port", "8 at most"),
            (devices(24) + &many(8), "port", "room for 31"),
            (vfio + "[iommu]\nenabled = true\n", "port[0].device.type", "IOMMU"),
            (port("a", "", "type = \"virtio-blk\", path = \"\""), "port[0].device.path", "empty"),
        ] {
            let e = parse(&text).unwrap_err();
            assert!(e.contains(&format!("{key}: ")) && e.contains(word), "{text}: {e}");
        }
        let firmware = "[guest]\nname = \"a\"\nfirmware = \"c\"\nvariables = \"v\"\n[memory]\nsize = \"64M\"\n";
        let text = firmware.to_owned() + &port("a", "", RNG);
        let e = Config::parse(&text, Path::new("a.toml")).unwrap_err().to_string();
        assert!(e.contains("port: ") && e.contains("firmware"), "{e}");
        parse(&(devices(23) + &many(8))).unwrap();
        let e = parse(&port("a", "hot = true", RNG)).unwrap_err();
        assert!(e.contains("hot"), "{e}");
    }
}
