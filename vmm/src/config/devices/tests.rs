use super::*;
use crate::Config;
use crate::devices::virtio::blk::{Format, Source};
use crate::devices::virtio::console::Output;

fn parse(devices: &str) -> Result<Vec<Device>, String> {
    let text =
        format!("[guest]\nname = \"vr\"\nimage = \"image\"\n[memory]\nsize = \"32M\"\n{devices}");
    Config::parse(&text, Path::new("etc/vr.toml")).map(|c| c.devices).map_err(|e| e.to_string())
}

fn one(device: &str) -> Result<Device, String> {
    parse(&format!("[[device]]\n{device}\n")).map(|mut d| d.remove(0))
}

#[test]
fn every_type_is_read() {
    let disk = |path: &str, readonly, format, serial: &str| {
        Device::Blk(BlkDevice {
            source: Source { path: path.into(), readonly, format },
            serial: serial.into(),
        })
    };
    let console = |output| Device::Console(ConsoleDevice { output });
    for (text, device) in [
        ("type = \"virtio-blk\"\npath = \"a.img\"", disk("etc/a.img", false, None, "")),
        (
            "type = \"virtio-blk\"\npath = \"/dev/x\"\nreadonly = true\nformat = \"raw\"\nserial = \"s 1\"",
            disk("/dev/x", true, Some(Format::Raw), "s 1"),
        ),
        (
            "type = \"virtio-blk\"\npath = \"/a\"\nformat = \"qcow2\"",
            disk("/a", false, Some(Format::Qcow2), ""),
        ),
        ("type = \"virtio-net\"", Device::Net(NetDevice { port: NetPort::Tap(None), mac: None })),
        (
            "type = \"virtio-net\"\ntap = \"vr0\"\nmac = \"02:00:00:00:00:0A\"",
            Device::Net(NetDevice {
                port: NetPort::Tap(Some("vr0".into())),
                mac: Some("02:00:00:00:00:0a".parse().unwrap()),
            }),
        ),
        (
            "type = \"virtio-net\"\nvhost_user = \"net.sock\"",
            Device::Net(NetDevice { port: NetPort::VhostUser("etc/net.sock".into()), mac: None }),
        ),
        ("type = \"virtio-rng\"", Device::Rng),
        ("type = \"virtio-balloon\"", Device::Balloon),
        ("type = \"virtio-console\"\noutput = \"terminal\"", console(Output::Terminal)),
        ("type = \"virtio-console\"\noutput = \"log\"", console(Output::File("etc/log".into()))),
        (
            "type = \"virtio-console\"\noutput = \"unix:/run/c\"",
            console(Output::Socket("/run/c".into())),
        ),
        ("type = \"virtio-vsock\"\ncid = 3", Device::Vsock(VsockDevice { cid: 3 })),
        (
            "type = \"virtio-input\"\nkind = \"gamepad\"",
            Device::Input(InputDevice::Kind(InputKind::Gamepad)),
        ),
        (
            "type = \"virtio-input\"\nevdev = \"/dev/input/event3\"",
            Device::Input(InputDevice::Evdev("/dev/input/event3".into())),
        ),
    ] {
        assert_eq!(one(text), Ok(device), "{text}");
    }
}

#[test]
fn wrong_values_are_named_with_a_remedy() {
    for (text, key, remedy) in [
        ("type = \"virtio-blk\"\npath = \"\"", "path", "disk image"),
        ("type = \"virtio-blk\"\npath = \"a\"\nformat = \"vmdk\"", "format", "\"raw\" or"),
        ("type = \"virtio-blk\"\npath = \"a\"\nserial = \"é\"", "serial", "20 printable"),
        (
            "type = \"virtio-blk\"\npath = \"a\"\nserial = \"123456789012345678901\"",
            "serial",
            "20 printable",
        ),
        ("type = \"virtio-net\"\ntap = \"a/b\"", "tap", "letters"),
        ("type = \"virtio-net\"\ntap = \"..\"", "tap", "letters"),
        ("type = \"virtio-net\"\ntap = \"a\"\nvhost_user = \"s\"", "vhost_user", "one of them"),
        ("type = \"virtio-net\"\ntap = \"1234567890123456\"", "tap", "1 to 15"),
        ("type = \"virtio-net\"\nmac = \"ff:ff:ff:ff:ff:ff\"", "mac", "multicast"),
        ("type = \"virtio-console\"\noutput = \"\"", "output", "terminal"),
        ("type = \"virtio-console\"\noutput = \"unix:\"", "output", "terminal"),
        ("type = \"virtio-vsock\"\ncid = 2", "cid", "use 3"),
        ("type = \"virtio-vsock\"\ncid = 4294967295", "cid", "use 3"),
        ("type = \"virtio-input\"", "kind", "evdev"),
        ("type = \"virtio-input\"\nkind = \"wheel\"", "kind", "gamepad"),
        ("type = \"virtio-input\"\nkind = \"mouse\"\nevdev = \"/e\"", "kind", "one of them"),
        ("type = \"virtio-input\"\nevdev = \"\"", "evdev", "event0"),
    ] {
        let message = one(text).expect_err(text);
        assert!(message.starts_with(&format!("etc/vr.toml: device[0].{key}: ")), "{message}");
        assert!(message.contains(remedy), "{message}");
    }
}

#[test]
fn unknown_keys_are_refused_for_every_type() {
    for (kind, keys) in [
        ("vfio-user", "socket = \"s\""),
        ("virtio-blk", "path = \"a\""),
        ("virtio-net", ""),
        ("virtio-rng", ""),
        ("virtio-balloon", ""),
        ("virtio-console", "output = \"a\""),
        ("virtio-vsock", "cid = 3"),
        ("virtio-input", "kind = \"mouse\""),
    ] {
        let good = format!("type = \"{kind}\"\n{keys}");
        assert!(one(&good).is_ok(), "{good}");
        let message = one(&format!("{good}\nspeling = 1")).expect_err(kind);
        assert!(message.contains("speling") && message.contains("line "), "{message}");
    }
    assert!(one("type = \"virtio-vsock\"\ncid = \"x\"").unwrap_err().contains("line "));
}

#[test]
fn what_there_can_be_one_of_is_there_once() {
    for (device, key) in [
        ("type = \"virtio-vsock\"\ncid = 3", "type"),
        ("type = \"virtio-balloon\"", "type"),
        ("type = \"virtio-console\"\noutput = \"terminal\"", "output"),
        ("type = \"virtio-net\"\ntap = \"vr0\"", "tap"),
        ("type = \"virtio-net\"\nvhost_user = \"s\"", "vhost_user"),
        ("type = \"virtio-blk\"\npath = \"a\"", "path"),
        ("type = \"vfio-user\"\nsocket = \"vr-gpu.sock\"", "socket"),
    ] {
        let message = parse(&format!("[[device]]\n{device}\n").repeat(2)).expect_err(device);
        assert!(message.contains(&format!("device[1].{key}: ")), "{message}");
    }
    for device in [
        "type = \"virtio-net\"",
        "type = \"virtio-rng\"",
        "type = \"virtio-blk\"\npath = \"a\"\nreadonly = true",
    ] {
        assert!(parse(&format!("[[device]]\n{device}\n").repeat(2)).is_ok(), "{device}");
    }
}
