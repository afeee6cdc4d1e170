//! What a guest reaches without its devices' queues: configuration space by port and as memory, root ports with what is
//! plugged in and taken out behind them, and the firmware configuration device.

use crate::fds::Open;
use crate::function::Counting;
use crate::input::Input;
use beamline_vmm::Gpa;
use beamline_vmm::devices::fw_cfg::{self, FwCfg};
use beamline_vmm::devices::virtio::Transport;
use beamline_vmm::devices::virtio::rng::Rng;
use beamline_vmm::pci::bus::Bus;
use beamline_vmm::pci::chipset::Kind;
use beamline_vmm::pci::layout::Windows;
use beamline_vmm::pci::port::{RootPort, State};
use beamline_vmm::pci::slot::Leaving;
use std::sync::Arc;
use vm_memory::GuestMemoryMmap;

/// Root ports; the first has its function from the start.
const PORTS: usize = 2;
/// The slot of the first: a function is before it.
const FIRST: usize = 2;
const RAM: usize = 64 << 10;
/// Most steps of an input.
const STEPS: usize = 300;
/// The I/O ports of configuration space.
const CONFIG: u16 = 0xcf8;

struct Board {
    bus: Bus,
    windows: Windows,
    firmware: FwCfg,
    memory: Arc<GuestMemoryMmap>,
    wiring: Counting,
}

/// Runs one life of a bus.
pub(crate) fn run(bytes: &[u8]) {
    let open = Open::now();
    let mut input = Input::new(bytes);
    let mut board = Board::new(input.flag());
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        board.step(&mut input);
    }
    board.finish();
    open.check();
}

impl Board {
    fn new(q35: bool) -> Self {
        let memory =
            Arc::new(GuestMemoryMmap::from_ranges(&[(Gpa(0), RAM)]).expect("RAM can be mapped"));
        let (kind, windows) = if q35 {
            (Kind::Q35, Windows::of_firmware(RAM as u64, RAM as u64))
        } else {
            (Kind::Plain, Windows::beside(RAM as u64).with_ports(PORTS))
        };
        let function = || {
            let made = Transport::new("fuzz".to_owned(), Box::new(Rng), Arc::clone(&memory));
            Box::new(made.expect("eventfds can be made").inline())
        };
        let mut bus = Bus::new(kind, windows);
        bus.add(function()).expect("the bus has room");
        // A guest with firmware has no ports.
        for index in (0..PORTS).filter(|_| !q35) {
            let (number, window) = (index as u8 + 1, windows.of_port(index));
            let port = RootPort::new(format!("port {number}"), number.into(), number, window);
            assert_eq!(bus.add_port(port).expect("the bus has room"), FIRST + index);
            let slot = bus.root_port(FIRST + index).expect("it was put there");
            slot.stock(function()).expect("it fits");
            if index == 0 {
                slot.start_with_it().expect("it waits");
            }
        }
        bus.place_bars().expect("the windows have room");
        let files = vec![("etc/one", vec![1; 100]), ("etc/two", vec![2; 5000])];
        let firmware = FwCfg::new(2, files);
        Self { bus, windows, firmware, memory, wiring: Counting::default() }
    }

    /// An address that may mean something: configuration space, a window, or any.
    fn address(&self, input: &mut Input<'_>) -> u64 {
        let base = match input.below(5) {
            0 | 1 => self.windows.ecam() + (u64::from(input.u16()) << 8 & 0xff_ff00),
            2 => self.windows.low().0,
            3 => *self.windows.of_port(input.below(PORTS)).start(),
            _ => return input.number(),
        };
        base.wrapping_add(u64::from(input.u16()))
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let mut data = [0; 8];
        let len = [1, 2, 4, 8][input.below(4)];
        match input.below(9) {
            0 => {
                let port = CONFIG + input.u16() % 8;
                let value = input.u32().to_le_bytes();
                self.bus.io_write(&mut self.wiring, port, &value[..len.min(4)]);
            }
            1 => {
                self.bus.io_read(CONFIG + input.u16() % 8, &mut data[..len.min(4)]);
            }
            2 | 3 => {
                let at = self.address(input);
                let value = input.u64().to_le_bytes();
                self.bus.mmio_write(&mut self.wiring, at, &value[..len]);
            }
            4 => {
                let at = self.address(input);
                self.bus.mmio_read(at, &mut data[..len]);
            }
            5 => {
                let slot = FIRST + input.below(PORTS);
                if let Ok(port) = self.bus.root_port(slot) {
                    let was = port.root().look().state();
                    let plugged = port.plug(None);
                    assert_eq!(plugged.is_ok(), was == State::Empty, "{plugged:?}");
                }
            }
            6 => {
                let (slot, forced) = (FIRST + input.below(PORTS), input.flag());
                let left = self.bus.unplug(&mut self.wiring, slot, forced);
                if let Ok(port) = self.bus.root_port(slot) {
                    let state = port.root().look().state();
                    assert_eq!(left == Ok(Leaving::Asked), state == State::Asked, "{left:?}");
                    assert!(!forced || state == State::Empty, "by force");
                }
            }
            7 => {
                let port = *fw_cfg::PORTS.start() + input.u16() % 16;
                if fw_cfg::PORTS.contains(&port) {
                    self.firmware.read(port, &mut data[..len]);
                }
            }
            _ => {
                let port = *fw_cfg::PORTS.start() + input.u16() % 16;
                let value = input.u32().to_le_bytes();
                if fw_cfg::PORTS.contains(&port) {
                    self.firmware.write(port, &value[..len.min(4)], &self.memory);
                }
            }
        }
    }

    /// Takes out what is behind the ports: nothing of it may stay attached.
    fn finish(mut self) {
        for slot in FIRST..FIRST + PORTS {
            // Fails where it is empty.
            let _ = self.bus.unplug(&mut self.wiring, slot, true);
        }
        // What is left belongs to functions of bus 0: no more than its vectors and queues.
        assert!(self.wiring.attached() <= MOST_OF_BUS_0, "{} are left", self.wiring.attached());
    }
}

/// The vectors and doorbells of the function on bus 0 and of the ports themselves.
const MOST_OF_BUS_0: usize = 8;
