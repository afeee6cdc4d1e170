//! A network card in front of a server: a driver that starts and stops it, whatever the server says.

use super::server::Server;
use crate::input::Input;
use crate::peer::Place;
use crate::virtio_devices::Counting;
use beamline_abi::pci::{command, config};
use beamline_abi::virtio_pci::{common, status};
use beamline_vmm::devices::virtio::Transport;
use beamline_vmm::devices::virtio::net::Mac;
use beamline_vmm::devices::virtio::net::user::UserNet;
use beamline_vmm::devices::virtio::vhost::user::VhostUser;
use beamline_vmm::memory::GuestRam;
use beamline_vmm::pci::PciFunction;
use std::path::Path;
use std::sync::Arc;

const RAM: u64 = 2 << 20;
/// Where the rings of the first queue are, and how far from those the next one's.
const RINGS: u64 = 0x1000;
const STRIDE: u64 = 0x4000;
const NOTIFY: u64 = 0x2000;
const DEVICE_CONFIG: u64 = 0x1000;
/// Most steps: each may wait for the server many times.
const STEPS: usize = 12;
/// Features of the device that a driver may agree on: its address, and the link's state.
const KNOWN: u64 = 1 << 5 | 1 << 16;

/// Runs one life of a card.
pub(super) fn run(input: &mut Input<'_>) {
    let server = Server::new(input);
    let threads = input.flag();
    let place = Place::new();
    place.meet(|| live(&place.path, threads, input), |stream| server.run(stream));
}

fn live(path: &Path, threads: bool, input: &mut Input<'_>) {
    let server = match VhostUser::connect(path, UserNet::QUEUES) {
        Ok(server) => server,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let ram = GuestRam::new(RAM).expect("RAM can be mapped");
    let memory = Arc::new(ram.memory().clone());
    let card = UserNet::new(server, Mac::derived("fuzz", 0));
    let function = Transport::new("fuzz".to_owned(), Box::new(card), Arc::clone(&memory));
    let function = function.expect("eventfds can be made");
    let function = if threads { function } else { function.inline() };
    let mut driver = Driver { function, wiring: Counting::default() };
    let master = command::MEMORY | command::BUS_MASTER;
    let _ =
        driver.function.config_write(&mut driver.wiring, config::COMMAND, &master.to_le_bytes());
    driver.offered();
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        driver.step(input);
    }
    drop(driver);
    let shared = Arc::downgrade(&memory);
    drop(memory);
    assert!(shared.upgrade().is_none(), "nobody has the guest's memory any more");
}

struct Driver {
    function: Transport,
    wiring: Counting,
}

impl Driver {
    fn read(&mut self, offset: u64, len: usize) -> u64 {
        let mut bytes = [0; 8];
        self.function.bar_read(0, offset, &mut bytes[..len]);
        u64::from_le_bytes(bytes)
    }

    fn write(&mut self, offset: u64, len: usize, value: u64) {
        self.function.bar_write(&mut self.wiring, 0, offset, &value.to_le_bytes()[..len]);
    }

    fn status(&mut self) -> u8 {
        self.read(common::DEVICE_STATUS.into(), 1) as u8
    }

    /// The features, which are those that this VMM knows of a network card and of a ring.
    fn offered(&mut self) -> u64 {
        let mut offered = 0;
        for half in [0, 1] {
            self.write(common::DEVICE_FEATURE_SELECT.into(), 4, half);
            offered |= self.read(common::DEVICE_FEATURE.into(), 4) << (32 * half);
        }
        assert_eq!(offered & (KNOWN | 1 << 32), KNOWN | 1 << 32, "{offered:#x}");
        // Bit 30 is the protocol's own, and no guest's.
        assert_eq!(offered & 1 << 30, 0, "{offered:#x}");
        offered
    }

    /// Brings the card up with `features`, and its queues at `at`.
    fn start(&mut self, features: u64, at: u64, size: u64) {
        self.stop();
        self.write(common::DEVICE_STATUS.into(), 1, 3);
        for half in [0, 1] {
            self.write(common::DRIVER_FEATURE_SELECT.into(), 4, half);
            self.write(common::DRIVER_FEATURE.into(), 4, features >> (32 * half) & 0xffff_ffff);
        }
        let ok = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        self.write(common::DEVICE_STATUS.into(), 1, ok.into());
        for queue in 0..UserNet::QUEUES {
            let at = at.wrapping_add(queue * STRIDE);
            self.write(common::QUEUE_SELECT.into(), 2, queue);
            self.write(common::QUEUE_SIZE.into(), 2, size);
            self.write(common::QUEUE_DESC.into(), 8, at);
            self.write(common::QUEUE_DRIVER.into(), 8, at.wrapping_add(0x1000));
            self.write(common::QUEUE_DEVICE.into(), 8, at.wrapping_add(0x2000));
            self.write(common::QUEUE_ENABLE.into(), 2, 1);
        }
        self.write(common::DEVICE_STATUS.into(), 1, (ok | status::DRIVER_OK).into());
    }

    fn stop(&mut self) {
        self.write(common::DEVICE_STATUS.into(), 1, 0);
        assert_eq!(self.status(), 0, "a reset resets, also where the server does not stop");
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.below(6) {
            0 | 1 => {
                let offered = self.offered();
                self.start(offered & (input.u64() | 1 << 32), RINGS, 16);
            }
            2 => {
                // Rings that are nowhere, or half outside.
                let at = [RAM, RAM - STRIDE, 0][input.below(3)].wrapping_add(input.number());
                let features = input.u64();
                self.start(features, at, input.number() & 0xffff);
            }
            3 => self.stop(),
            4 => self.write(NOTIFY + 4 * u64::from(input.u8() % 4), 2, 0),
            _ => {
                // Address and link.
                let mac = self.read(DEVICE_CONFIG, 8) & 0xffff_ffff_ffff;
                assert_ne!(mac, 0);
                let link = self.read(DEVICE_CONFIG + 6, 2);
                assert!(link <= 1, "{link:#x}");
            }
        }
    }
}
