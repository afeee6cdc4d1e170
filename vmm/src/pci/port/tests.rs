use super::registers::{express, link, slot, slot_status};
use super::*;
use crate::devices::virtio::testing::TestWiring;
use crate::pci::function::Function;
use crate::testing::take;
use proptest::prelude::*;

const SLOT: u16 = express::SLOT_CONTROL;
const STATUS: u16 = express::SLOT_STATUS;
/// All that `pciehp` of Linux turns on for a port without a power controller.
const WATCH: u16 = slot::INTERRUPT | 1 << 0 | 1 << 12;

struct Rig {
    port: Function<RootPort>,
    wiring: TestWiring,
}

impl Rig {
    fn new() -> Self {
        let port = RootPort::new("port".into(), 3, 1, 0xc000_0000..=0xc1ff_ffff);
        Self { port: Function::new(Box::new(port)), wiring: TestWiring::default() }
    }

    /// One that interrupts, with its events watched.
    fn watched() -> Self {
        let mut rig = Self::new();
        rig.write(config::COMMAND, 2, command::MEMORY | command::BUS_MASTER);
        rig.write(registers::MSIX + msix::CONTROL, 2, msix::CONTROL_ENABLE);
        for (at, word) in [(0, 0xfee0_0000u32), (8, 0x41), (12, 0)] {
            rig.port.inner().bar_write(&mut rig.wiring, 0, at, &word.to_le_bytes());
        }
        rig.write(SLOT, 2, WATCH | slot::INDICATOR_OFF);
        rig
    }

    fn read(&mut self, at: u16, length: usize) -> u32 {
        let mut word = [0; 4];
        self.port.config_read(at, &mut word[..length]);
        u32::from_le_bytes(word)
    }

    fn write(&mut self, at: u16, length: usize, value: u16) {
        let bytes = u32::from(value).to_le_bytes();
        let _ = self.port.config_write(&mut self.wiring, at, &bytes[..length]);
    }

    fn indicator(&mut self, indicator: u16) {
        self.write(SLOT, 2, WATCH | indicator);
    }

    fn interrupts(&self) -> u64 {
        self.wiring.vector(0x41).map_or(0, take)
    }

    fn state(&self) -> State {
        self.port.look().state()
    }
}

#[test]
fn it_is_a_bridge_with_a_slot() {
    let mut rig = Rig::new();
    assert_eq!(rig.read(0, 4), 0x00fe_bea3);
    assert_eq!(rig.read(8, 4) >> 8, 0x06_04_00);
    assert_eq!(rig.read(config::HEADER_TYPE, 1), 1);
    assert_eq!(rig.read(0x18, 4), 0x0001_0100, "buses 0, 1, 1");
    assert_eq!(rig.read(0x20, 4), 0xc1f0_c000);
    assert_eq!(rig.port.look().window(), 0xc000_0000..=0xc1ff_ffff);
    // The list: PCI Express, then MSI-X.
    let at = rig.read(config::CAPABILITIES, 1) as u16;
    assert_eq!(rig.read(at, 4) & 0xff, u32::from(beamline_abi::pci::capability::EXPRESS));
    assert_eq!(rig.read(at + 2, 2) >> 4 & 0xf, 4, "a root port");
    let next = rig.read(at + 1, 1) as u16;
    assert_eq!(rig.read(next, 2), u32::from(beamline_abi::pci::capability::MSIX));
    assert_eq!(rig.read(0x54, 4) >> 19, 3, "its number");
    assert_eq!(rig.read(0x100, 4), 0, "nothing is beyond");
    assert_eq!((rig.state(), rig.port.look().link()), (State::Empty, false));
}

#[test]
fn hostile_writes_change_only_what_holds_them() {
    let mut rig = Rig::new();
    for at in (0..0x1000).step_by(4) {
        let _ = rig.port.config_write(&mut rig.wiring, at, &[0xff; 4]);
    }
    assert_eq!(rig.read(0, 4), 0x00fe_bea3);
    assert_eq!(rig.read(config::BAR0, 4), 0xffff_f000);
    assert_eq!(rig.read(0x14, 4), 0, "one BAR");
    assert_eq!(rig.read(0x18, 4), 0x00ff_ffff);
    assert_eq!(rig.read(0x1c, 4), 0, "no I/O");
    assert_eq!(rig.read(0x20, 4), 0xfff0_fff0);
    for at in (0x24..0x34).step_by(4) {
        assert_eq!(rig.read(at, 4), 0, "{at:#x}: no prefetchable window");
    }
    assert_eq!((rig.read(0x38, 4), rig.read(0x3c, 4)), (0, 0x43 << 16), "no ROM, no INTx");
    assert_eq!(rig.read(express::LINK_STATUS, 2), 0x11, "down");
    assert_eq!(rig.read(STATUS, 2), 0);
    assert_eq!((rig.state(), rig.port.look().link()), (State::Empty, false));
}

#[test]
fn what_is_put_in_interrupts_once_until_it_is_seen() {
    let mut rig = Rig::watched();
    rig.port.inner().insert();
    assert_eq!(rig.interrupts(), 1, "for both events");
    let both = slot_status::PRESENCE_CHANGED | slot_status::LINK_CHANGED;
    assert_eq!(rig.read(STATUS, 2), u32::from(both | slot_status::PRESENT));
    assert!(rig.port.look().link());
    assert_ne!(rig.read(express::LINK_STATUS, 2) & u32::from(link::ACTIVE), 0);
    // Events go by writing 1, and what tells of a state stays.
    rig.write(STATUS, 2, u16::MAX);
    assert_eq!(rig.read(STATUS, 2), u32::from(slot_status::PRESENT));
    rig.port.inner().remove();
    assert_eq!((rig.interrupts(), rig.port.look().link()), (1, false));
    rig.port.inner().insert();
    assert_eq!(rig.interrupts(), 0, "the one before was not seen yet");
    rig.write(STATUS, 2, u16::MAX);
    // Nobody listens.
    rig.write(SLOT, 2, 0);
    rig.port.inner().remove();
    assert_eq!(rig.interrupts(), 0);
    // Whoever listens again is told of what is there.
    rig.indicator(0);
    assert_eq!(rig.interrupts(), 1);
    rig.write(STATUS, 2, u16::MAX);
    rig.write(config::COMMAND, 2, command::MEMORY);
    rig.port.inner().insert();
    assert_eq!(rig.interrupts(), 0, "an interrupt is a write to memory");
}

#[test]
fn a_guest_lets_go_or_changes_its_mind() {
    let mut rig = Rig::watched();
    assert_eq!(rig.port.inner().press(), Pressed::Free, "nothing is in it");
    rig.port.inner().insert();
    rig.indicator(slot::INDICATOR_BLINKS);
    assert_eq!(rig.port.inner().press(), Pressed::Busy);
    rig.indicator(slot::INDICATOR_ON);
    rig.write(STATUS, 2, u16::MAX);
    rig.interrupts();
    assert_eq!(rig.port.inner().press(), Pressed::Asked);
    assert_eq!((rig.interrupts(), rig.state()), (1, State::Asked));
    assert_ne!(rig.read(STATUS, 2) & u32::from(slot_status::ATTENTION), 0);
    // The second press would take the first one back.
    assert_eq!(rig.port.inner().press(), Pressed::Asked);
    rig.write(STATUS, 2, u16::MAX);
    rig.indicator(slot::INDICATOR_BLINKS);
    assert_eq!(rig.port.inner().press(), Pressed::Asked);
    assert_eq!((rig.interrupts(), rig.read(STATUS, 2) & 1), (0, 0));
    rig.indicator(slot::INDICATOR_ON);
    assert_eq!(rig.state(), State::Plugged, "it keeps it");
    assert!(!rig.port.inner().take_orders().remove);
    assert_eq!(rig.port.inner().press(), Pressed::Asked);
    rig.write(STATUS, 2, u16::MAX);
    rig.indicator(slot::INDICATOR_BLINKS);
    rig.indicator(slot::INDICATOR_OFF);
    assert!(rig.port.inner().take_orders().remove);
    assert_eq!(rig.port.inner().take_orders(), Orders::default(), "once");
}

#[test]
fn a_guest_that_was_not_asked_lets_nothing_go() {
    let mut rig = Rig::watched();
    rig.port.inner().insert();
    for indicator in [slot::INDICATOR_BLINKS, slot::INDICATOR_ON, slot::INDICATOR_OFF] {
        rig.indicator(indicator);
        assert!(!rig.port.inner().take_orders().remove);
    }
    assert_eq!(rig.state(), State::Plugged);
    assert_eq!(rig.port.inner().press(), Pressed::Free, "off: it may be taken out");
}

#[test]
fn a_reset_and_a_disabled_link_hide_what_is_behind() {
    let mut rig = Rig::new();
    rig.port.inner().start_with_one();
    assert_eq!(rig.read(STATUS, 2), u32::from(slot_status::PRESENT), "no event");
    let _ = rig.port.inner().take_orders();
    rig.write(bridge::CONTROL, 2, bridge::SECONDARY_RESET);
    let orders = rig.port.inner().take_orders();
    assert!(orders.reset && orders.decode && !rig.port.look().link());
    rig.write(bridge::CONTROL, 2, bridge::SECONDARY_RESET);
    assert!(!rig.port.inner().take_orders().reset, "it is reset already");
    rig.write(bridge::CONTROL, 2, 0);
    assert!(rig.port.look().link() && !rig.port.inner().take_orders().reset);
    rig.write(express::LINK_CONTROL, 2, link::DISABLE);
    assert!(!rig.port.look().link());
    rig.write(express::LINK_CONTROL, 2, 0);
    assert!(rig.port.look().link());
}

#[derive(Clone, Debug)]
enum Act {
    Write(u16, usize, u32),
    Insert,
    Remove,
    Press,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let write = (0u16..0x100, 0usize..3, any::<u32>()).prop_map(|(at, width, value)| {
        let length = 1 << width;
        Act::Write(at & !(length as u16 - 1), length, value)
    });
    let act = prop_oneof![8 => write, 1 => Just(Act::Insert), 1 => Just(Act::Remove), 1 => Just(Act::Press)];
    prop::collection::vec(act, 0..64)
}

proptest! {
    /// Whatever is written: presence and link tell what is in the slot, and only a guest that was asked lets go.
    #[test]
    fn status_follows_what_is_in_the_slot(acts in acts()) {
        let mut rig = Rig::watched();
        for act in acts {
            let before = rig.state();
            match act {
                Act::Write(at, length, value) => {
                    let _ = rig.port.config_write(&mut rig.wiring, at, &value.to_le_bytes()[..length]);
                }
                Act::Insert if before == State::Empty => rig.port.inner().insert(),
                Act::Remove if before != State::Empty => rig.port.inner().remove(),
                Act::Press => _ = rig.port.inner().press(),
                _ => {}
            }
            let orders = rig.port.inner().take_orders();
            prop_assert!(!orders.remove || before == State::Asked);
            let present = rig.state() != State::Empty;
            let status = rig.read(STATUS, 2) & u32::from(slot_status::PRESENT) != 0;
            prop_assert_eq!(status, present);
            let active = rig.read(express::LINK_STATUS, 2) & u32::from(link::ACTIVE) != 0;
            prop_assert_eq!(active, rig.port.look().link());
            prop_assert!(present || !active);
        }
    }
}
