//! Functions behind root ports: which configuration accesses and addresses reach them, and what is left of one that was
//! taken out.

use super::*;
use crate::devices::virtio::Transport;
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::testing::{TestWiring, memory};
use crate::pci::port::State;
use beamline_abi::pci::{command, config, msix};

/// Where the bus has its root ports.
const PORT: usize = 2;
const OTHER: usize = 3;
const ENTROPY: u32 = 0x1044_1af4;
/// The MSI-X capability of an entropy source: behind common, notify, ISR and window.
const MSIX: u16 = 0x40 + 16 + 20 + 16 + 20;
const ON: u32 = (command::MEMORY | command::BUS_MASTER) as u32;

struct Rig {
    bus: Bus,
    wiring: TestWiring,
    windows: Windows,
}

fn entropy(label: &str) -> Box<dyn PciFunction> {
    Box::new(Transport::new(label.into(), Box::new(Rng), memory()).unwrap())
}

impl Rig {
    /// An entropy source in slot 1, and two empty ports, of which each has one that waits.
    fn new() -> Self {
        let windows = Windows::beside(0).with_ports(2);
        let mut bus = Bus::new(Kind::Plain, windows);
        assert_eq!(bus.add(entropy("0")).unwrap(), 1);
        for (index, slot) in [PORT, OTHER].into_iter().enumerate() {
            let number = index as u8 + 1;
            let root = RootPort::new("port".into(), number.into(), number, windows.of_port(index));
            assert_eq!(bus.add_port(root).unwrap(), slot);
            bus.root_port(slot).unwrap().stock(entropy("1")).unwrap();
        }
        bus.place_bars().unwrap();
        Self { bus, wiring: TestWiring::default(), windows }
    }

    /// With a function in the first port, whose BAR is at the start of the port's window, with its interrupt on.
    fn in_use() -> (Self, u64) {
        let mut rig = Self::new();
        rig.plug(PORT).unwrap();
        rig.set(0, PORT, config::COMMAND, ON);
        let bar = *rig.windows.of_port(0).start();
        rig.use_it(bar);
        (rig, bar)
    }

    fn use_it(&mut self, bar: u64) {
        self.set(1, 0, config::BAR0, bar as u32);
        self.set(1, 0, config::COMMAND, ON);
        self.set(1, 0, MSIX, u32::from(msix::CONTROL_ENABLE) << 16);
        for (at, word) in [(0u64, 0xfee0_0000u32), (8, 0x55), (12, 0)] {
            self.bus.mmio_write(&mut self.wiring, bar + 0x3000 + at, &word.to_le_bytes());
        }
    }

    fn ecam(&self, bus: u8, slot: usize, at: u16) -> u64 {
        self.windows.ecam() + (u64::from(bus) << 20 | (slot as u64) << 15 | u64::from(at))
    }

    /// By memory and by ports, which have to agree.
    fn get(&mut self, bus: u8, slot: usize, at: u16) -> u32 {
        let (mut word, mut by_port) = ([0; 4], [0; 4]);
        self.bus.mmio_read(self.ecam(bus, slot, at), &mut word);
        let address = 1 << 31 | u32::from(bus) << 16 | (slot as u32) << 11 | u32::from(at);
        self.bus.io_write(&mut self.wiring, ADDRESS, &address.to_le_bytes());
        self.bus.io_read(DATA, &mut by_port);
        assert_eq!(word, by_port);
        u32::from_le_bytes(word)
    }

    fn set(&mut self, bus: u8, slot: usize, at: u16, value: u32) {
        let to = self.ecam(bus, slot, at);
        self.bus.mmio_write(&mut self.wiring, to, &value.to_le_bytes());
    }

    fn plug(&mut self, slot: usize) -> Result<(), SlotError> {
        self.bus.root_port(slot)?.plug(None)
    }

    fn mmio(&mut self, at: u64) -> u32 {
        let mut word = [0; 4];
        self.bus.mmio_read(at, &mut word);
        u32::from_le_bytes(word)
    }

    fn state(&mut self, slot: usize) -> State {
        self.bus.root_port(slot).unwrap().watch().state()
    }
}

#[test]
fn a_function_is_found_on_the_bus_behind_its_port() {
    let mut rig = Rig::new();
    assert_eq!(rig.get(0, 1, 0), ENTROPY);
    assert_eq!((rig.get(1, 0, 0), rig.get(2, 0, 0)), (u32::MAX, u32::MAX), "nothing is plugged");
    rig.plug(PORT).unwrap();
    assert_eq!((rig.get(1, 0, 0), rig.get(2, 0, 0)), (ENTROPY, u32::MAX));
    assert_eq!(rig.get(1, 1, 0), u32::MAX, "a link has one device");
    // The guest gives other numbers.
    rig.set(0, PORT, 0x18, 0x0002_0200);
    assert_eq!((rig.get(1, 0, 0), rig.get(2, 0, 0)), (u32::MAX, ENTROPY));
    // The same number twice: the first port has it.
    rig.plug(OTHER).unwrap();
    rig.set(2, 0, config::BAR0, 0xffff_ffff);
    rig.set(0, PORT, 0x18, 0x0001_0100);
    assert_eq!(rig.get(1, 0, config::BAR0), 0xffff_c000);
    assert_eq!(rig.get(2, 0, config::BAR0), 0);
    // Bus 0 stays what it is, whatever a port says.
    rig.set(0, PORT, 0x18, 0);
    assert_eq!((rig.get(0, 0, 0) & 0xffff, rig.get(0, 1, 0)), (0xbea3, ENTROPY));
    assert_eq!(rig.get(1, 0, 0), u32::MAX);
}

#[test]
fn a_port_passes_on_its_window_alone() {
    let (mut rig, bar) = Rig::in_use();
    assert_eq!(rig.wiring.bells.len(), 1);
    assert_ne!(rig.mmio(bar + 0x18), u32::MAX);
    // Outside of the window, which is in reach of functions on bus 0.
    let outside = bar - 0x4000;
    rig.set(1, 0, config::BAR0, outside as u32);
    assert_eq!((rig.wiring.bells.len(), rig.mmio(outside), rig.mmio(bar)), (0, u32::MAX, u32::MAX));
    // The guest moves the window there.
    let mib = (outside >> 20) as u32;
    rig.set(0, PORT, 0x20, mib << 20 | mib << 4);
    assert_eq!((rig.wiring.bells.len(), rig.mmio(outside + 0x3008)), (1, 0x55));
    // An empty window, and one with no end.
    rig.set(0, PORT, 0x20, (mib - 1) << 20 | mib << 4);
    assert_eq!(rig.mmio(outside), u32::MAX);
    rig.set(0, PORT, 0x20, 0xfff0_0000);
    assert_eq!(rig.mmio(outside + 0x3008), 0x55);
    // No memory decode.
    rig.set(0, PORT, config::COMMAND, command::BUS_MASTER.into());
    assert_eq!((rig.wiring.bells.len(), rig.mmio(outside)), (0, u32::MAX));
    rig.set(0, PORT, config::COMMAND, ON);
    // Where configuration space is, a BAR is not, whatever the window.
    rig.set(1, 0, config::BAR0, rig.windows.ecam() as u32);
    assert_eq!((rig.wiring.bells.len(), rig.get(0, 1, 0)), (0, ENTROPY));
}

#[test]
fn nothing_of_a_function_is_left_when_it_is_out() {
    let (mut rig, bar) = Rig::in_use();
    for round in 0..3 {
        assert_eq!(rig.wiring.bells.len(), 1);
        assert!(rig.wiring.vector(0x55).is_some());
        let mut kick = |at| rig.bus.mmio_write(&mut rig.wiring, bar + at, &[0, 0]);
        kick(0x2000);
        assert_eq!(rig.bus.unplug(&mut rig.wiring, PORT, true), Ok(Leaving::Gone));
        assert_eq!(rig.wiring.bells.len(), 0, "round {round}");
        assert!(rig.wiring.vector(0x55).is_none());
        assert_eq!(
            (rig.state(PORT), rig.mmio(bar), rig.get(1, 0, 0)),
            (State::Empty, u32::MAX, u32::MAX)
        );
        let again = rig.bus.unplug(&mut rig.wiring, PORT, true);
        assert_eq!(again, Err(SlotError::Empty));
        // The same one comes back as it was at first.
        rig.plug(PORT).unwrap();
        assert_eq!(rig.plug(PORT), Err(SlotError::Occupied));
        assert_eq!((rig.get(1, 0, 0), rig.get(1, 0, config::BAR0)), (ENTROPY, 0));
        assert_eq!(rig.get(1, 0, config::COMMAND) & 0xffff, 0);
        assert_eq!(rig.get(1, 0, MSIX) >> 31, 0);
        rig.use_it(bar);
    }
}

#[test]
fn a_guest_that_is_asked_lets_go() {
    let (mut rig, _) = Rig::in_use();
    // The power indicator, in the PCI Express capability at 0x40: on.
    rig.set(0, PORT, 0x58, 0b01 << 8);
    assert_eq!(rig.bus.unplug(&mut rig.wiring, PORT, false), Ok(Leaving::Asked));
    assert_eq!((rig.state(PORT), rig.get(1, 0, 0)), (State::Asked, ENTROPY));
    rig.set(0, PORT, 0x58, 0b10 << 8);
    assert_eq!(rig.get(1, 0, 0), ENTROPY);
    rig.set(0, PORT, 0x58, 0b11 << 8);
    assert_eq!((rig.state(PORT), rig.get(1, 0, 0)), (State::Empty, u32::MAX));
    assert_eq!(rig.wiring.bells.len(), 0);
    assert_eq!(rig.bus.root_port(PORT).unwrap().watch().changes(), 2);
    // What is no port has nothing to let go.
    assert_eq!(rig.bus.unplug(&mut rig.wiring, 1, false), Err(SlotError::NoPort));
    assert_eq!(rig.bus.unplug(&mut rig.wiring, 99, true), Err(SlotError::NoPort));
    assert_eq!(rig.bus.unplug(&mut rig.wiring, OTHER, false), Err(SlotError::Empty));
}

#[test]
fn a_reset_of_the_bus_resets_what_is_on_it() {
    let (mut rig, bar) = Rig::in_use();
    rig.set(0, PORT, 0x3c, 1 << 22);
    assert_eq!((rig.get(1, 0, 0), rig.wiring.bells.len()), (u32::MAX, 0));
    assert!(rig.wiring.vector(0x55).is_none());
    rig.set(0, PORT, 0x3c, 0);
    assert_eq!((rig.get(1, 0, 0), rig.get(1, 0, config::BAR0)), (ENTROPY, 0));
    rig.use_it(bar);
    assert_eq!(rig.wiring.bells.len(), 1);
    assert_eq!(rig.state(PORT), State::Plugged);
}
