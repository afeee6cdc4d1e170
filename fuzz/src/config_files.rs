//! A guest's file and a host's: any text, and files that are put together of the keys that they have. What passes keeps
//! the limits that the rest of the program relies on; what does not is told in a message of bounded length.

mod lines;

use crate::input::Input;
use beamline_mdev::config::HostConfig;
use beamline_vmm::Config;
use beamline_vmm::config::{Boot, Device};
use std::collections::HashSet;
use std::path::Path;

const MIB: u64 = 1 << 20;
/// Where the file is said to be.
const PATH: &str = "/etc/beamline/a.toml";
/// Most bytes of a message for each byte of the file, which it may quote escaped, and beside that.
const QUOTED: usize = 12;
const WORDS: usize = 2048;

/// Checks one file.
pub(crate) fn run(bytes: &[u8]) {
    let Some((which, rest)) = bytes.split_first() else { return };
    let host = which & 1 != 0;
    // Even then not every file is text, of which the reader of files takes care.
    let text = if which & 2 != 0 {
        String::from_utf8_lossy(rest).into_owned()
    } else {
        lines::file(&mut Input::new(rest), host)
    };
    let path = Path::new(PATH);
    let most = QUOTED * text.len() + WORDS;
    if host {
        match HostConfig::parse(&text, path) {
            Ok(config) => check_host(&config),
            Err(error) => explained(&error.to_string(), most),
        }
    } else {
        match Config::parse(&text, path) {
            Ok(config) => {
                check_guest(&config);
                let again = Config::parse(&text, path).expect("it was right before");
                assert_eq!(again, config, "a file says one thing");
            }
            Err(error) => explained(&error.to_string(), most),
        }
    }
}

fn explained(message: &str, most: usize) {
    assert!(message.starts_with(PATH), "{message}");
    assert!(message.len() <= most, "{} bytes, and {most} are enough", message.len());
}

/// What the VMM takes for granted.
fn check_guest(config: &Config) {
    let Config { guest, memory, vcpus, nodes, devices, ports, api, iommu, tpm } = config;
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_-".contains(&b);
    assert!((1..=32).contains(&guest.name.len()) && guest.name.bytes().all(plain));
    if let Boot::Image(image) = &guest.boot {
        assert!(image.cmdline.len() <= 2048 && !image.cmdline.contains('\0'));
    }
    assert!((2 * MIB..=256 << 30).contains(&memory.size) && memory.size.is_multiple_of(2 * MIB));
    let whole = |size: u64| memory.hugepages.is_none_or(|pages| size.is_multiple_of(pages.bytes()));
    assert!(whole(memory.size) && nodes.iter().all(|node| whole(node.memory)));
    assert!((1..=64).contains(&vcpus.count) && (-20..=19).contains(&vcpus.nice));
    if !nodes.is_empty() {
        assert!(nodes.len() <= 8);
        assert_eq!(nodes.iter().map(|node| node.memory).sum::<u64>(), memory.size);
        assert!(nodes.iter().all(|node| node.memory > 0 && node.distances.len() == nodes.len()));
        let mut seats: Vec<u32> = nodes.iter().flat_map(|node| node.vcpus.clone()).collect();
        seats.sort_unstable();
        assert!(seats.into_iter().eq(0..vcpus.count), "each vCPU is in one node");
    }
    let beside = devices.len() + usize::from(iommu.enabled);
    assert!(beside + ports.len() <= 31 && ports.len() <= 8, "the bus has room");
    let names: HashSet<&str> = ports.iter().map(|port| port.name.as_str()).collect();
    assert_eq!(names.len(), ports.len(), "a port's name is its own");
    assert_eq!(config.functions().count(), devices.len() + ports.len());
    let one = |is: fn(&Device) -> bool| config.functions().filter(|d| is(d)).count() <= 1;
    assert!(one(|d| matches!(d, Device::Vsock(_))) && one(|d| matches!(d, Device::Balloon)));
    let mut sockets: Vec<&Path> = Vec::new();
    sockets.extend(api.iter().map(|api| api.socket.as_path()));
    sockets.extend(tpm.iter().map(|tpm| tpm.socket.as_path()));
    for device in config.functions() {
        match device {
            Device::VfioUser(device) => {
                sockets.push(&device.socket);
                assert!(device.timeout.as_secs() <= 600);
            }
            Device::Blk(disk) => assert!(disk.serial.len() <= 20),
            _ => {}
        }
    }
    assert!(sockets.iter().all(|path| path.as_os_str().len() <= 107), "addresses hold them");
}

/// What the host takes for granted.
fn check_host(config: &HostConfig) {
    assert!((1..=HostConfig::MAX_SLICES).contains(&config.max_slices));
    assert!(config.slices.len() <= config.max_slices && (1..=8).contains(&config.in_flight));
    let names: HashSet<&str> = config.slices.iter().map(|slice| slice.name.as_str()).collect();
    assert_eq!(names.len(), config.slices.len(), "a slice's name is its own");
    for slice in &config.slices {
        assert!(config.socket_too_long(slice).is_none());
        assert!(!slice.name.is_empty() && slice.width > 0 && slice.height > 0);
    }
    assert!(config.control_socket().as_os_str().len() <= HostConfig::MAX_SOCKET_PATH);
}
