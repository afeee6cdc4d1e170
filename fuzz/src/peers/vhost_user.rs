//! A network card in front of a server: a driver that starts and stops it, whatever the server says.

use super::server::Server;
use crate::function::{DEVICE_CONFIG, Function};
use crate::input::Input;
use crate::peer::Place;
use beamline_abi::virtio_pci::common;
use beamline_vmm::devices::virtio::Transport;
use beamline_vmm::devices::virtio::net::Mac;
use beamline_vmm::devices::virtio::net::user::UserNet;
use beamline_vmm::devices::virtio::vhost::user::VhostUser;
use beamline_vmm::memory::GuestRam;
use std::path::Path;
use std::sync::Arc;

const RAM: u64 = 2 << 20;
/// Where the rings of the first queue are, and how far from those the next one's.
const RINGS: u64 = 0x1000;
const STRIDE: u64 = 0x4000;
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
    let mut driver = Driver(Function::new(function));
    driver.0.enable();
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

struct Driver(Function);

impl Driver {
    /// The features, which are those that this VMM knows of a network card and of a ring.
    fn offered(&mut self) -> u64 {
        let mut offered = 0;
        for half in [0, 1] {
            self.0.write(common::DEVICE_FEATURE_SELECT.into(), 4, half);
            offered |= self.0.read(common::DEVICE_FEATURE.into(), 4) << (32 * half);
        }
        assert_eq!(offered & (KNOWN | 1 << 32), KNOWN | 1 << 32, "{offered:#x}");
        // Bit 30 is the protocol's own, and no guest's.
        assert_eq!(offered & 1 << 30, 0, "{offered:#x}");
        offered
    }

    /// Brings the card up with `features`, and its queues at `at`.
    fn start(&mut self, features: u64, at: u64, size: u64) {
        self.0.agree(features);
        for queue in 0..UserNet::QUEUES {
            let at = at.wrapping_add(queue * STRIDE);
            let rings = [0, 0x1000, 0x2000].map(|part| at.wrapping_add(part));
            self.0.set_queue(queue, size, rings);
        }
        self.0.go();
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
            3 => self.0.reset(),
            4 => self.0.kick(u64::from(input.u8() % 4)),
            _ => {
                // Address and link.
                let mac = self.0.read(DEVICE_CONFIG, 8) & 0xffff_ffff_ffff;
                assert_ne!(mac, 0);
                let link = self.0.read(DEVICE_CONFIG + 6, 2);
                assert!(link <= 1, "{link:#x}");
            }
        }
    }
}
