//! A root port's configuration space: what each register is at first, and which bits of it hold what is written.

use beamline_abi::pacer::VENDOR_ID;
use beamline_abi::pci::{capability, config, msix, status};
use std::ops::RangeInclusive;

/// Device ID of our own root port.
const DEVICE_ID: u16 = 0x00fe;
/// Class code of a PCI-to-PCI bridge.
const CLASS: u32 = 0x06_04_00;
/// Header type 1.
const TYPE: u8 = 1;

/// Where the capabilities are.
const EXPRESS: u16 = 0x40;
pub(super) const MSIX: u16 = 0x80;

/// The header of a bridge (section 7.5.1.3).
pub(super) mod bridge {
    /// Secondary bus number, 8 bits; the primary one is before it, the subordinate one after.
    pub(crate) const SECONDARY: u16 = 0x19;
    pub(super) const SUBORDINATE: u16 = 0x1a;
    /// Memory base and limit, 16 bits each: bits 4 to 15 are bits 20 to 31 of an address.
    pub(crate) const MEMORY_BASE: u16 = 0x20;
    pub(crate) const MEMORY_LIMIT: u16 = 0x22;
    pub(crate) const MEMORY_BITS: u16 = 0xfff0;
    /// Bridge control, 16 bits.
    pub(crate) const CONTROL: u16 = 0x3e;
    /// Its bit that resets what is behind the bridge.
    pub(crate) const SECONDARY_RESET: u16 = 1 << 6;
    /// Parity error response, SERR# enable, and that.
    pub(super) const CONTROL_BITS: u16 = 0b11 | SECONDARY_RESET;
}

/// The PCI Express capability (section 7.5.3), by offset in configuration space.
pub(super) mod express {
    use super::EXPRESS;

    pub(super) const CAPABILITIES: u16 = EXPRESS + 0x02;
    pub(super) const DEVICE: u16 = EXPRESS + 0x04;
    pub(super) const DEVICE_CONTROL: u16 = EXPRESS + 0x08;
    pub(super) const LINK: u16 = EXPRESS + 0x0c;
    pub(crate) const LINK_CONTROL: u16 = EXPRESS + 0x10;
    pub(crate) const LINK_STATUS: u16 = EXPRESS + 0x12;
    pub(super) const SLOT: u16 = EXPRESS + 0x14;
    pub(crate) const SLOT_CONTROL: u16 = EXPRESS + 0x18;
    pub(crate) const SLOT_STATUS: u16 = EXPRESS + 0x1a;
    pub(super) const ROOT_CONTROL: u16 = EXPRESS + 0x1c;
    pub(super) const LINK_2: u16 = EXPRESS + 0x2c;
    pub(super) const LINK_CONTROL_2: u16 = EXPRESS + 0x30;
}

/// PCI Express capabilities: version 2, a root port, with a slot.
const CAPABILITIES: u16 = 2 | 4 << 4 | 1 << 8;
/// Device capabilities: 128 bytes at most in a packet, errors by role.
const DEVICE: u32 = 1 << 15;
/// Device control: which errors are reported, sizes of packets, relaxed ordering and no snoop.
const DEVICE_CONTROL_BITS: u16 = 0x78ff;
/// Root control: which errors and power events are told.
const ROOT_CONTROL_BITS: u16 = 0xf;
/// Target link speed.
const SPEED_BITS: u16 = 0xf;

/// Registers of the link.
pub(super) mod link {
    /// One lane of 2.5 GT/s.
    pub(super) const SPEED: u16 = 1 | 1 << 4;
    /// Capability: it tells whether it is active.
    pub(super) const TELLS_ACTIVE: u32 = 1 << 20;
    /// The speeds that there are, as a set.
    pub(super) const SPEEDS: u32 = 1 << 1;
    /// Control: disabled.
    pub(crate) const DISABLE: u16 = 1 << 4;
    /// Read completion boundary, common clock, extended sync, and that.
    pub(super) const CONTROL_BITS: u16 = 1 << 3 | DISABLE | 1 << 6 | 1 << 7;
    /// Status: active.
    pub(crate) const ACTIVE: u16 = 1 << 13;
}

/// Slot capabilities and control.
pub(super) mod slot {
    use super::slot_status as status;

    /// Attention button, power indicator, may be taken out at any time, hot-plug, no notice of completed commands.
    pub(super) const CAPABILITIES: u32 = 1 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 18;
    /// Where the slot's number starts.
    pub(super) const NUMBER: u32 = 19;
    const ATTENTION: u16 = 1 << 0;
    const PRESENCE: u16 = 1 << 3;
    /// Events interrupt.
    pub(crate) const INTERRUPT: u16 = 1 << 5;
    const LINK: u16 = 1 << 12;
    /// The power indicator.
    pub(crate) const INDICATOR: u16 = 0b11 << 8;
    pub(crate) const INDICATOR_ON: u16 = 0b01 << 8;
    pub(crate) const INDICATOR_BLINKS: u16 = 0b10 << 8;
    pub(crate) const INDICATOR_OFF: u16 = 0b11 << 8;
    pub(super) const CONTROL_BITS: u16 = ATTENTION | PRESENCE | INTERRUPT | INDICATOR | LINK;

    /// The events that `control` lets interrupt.
    pub(crate) fn enabled(control: u16) -> u16 {
        [
            (ATTENTION, status::ATTENTION),
            (PRESENCE, status::PRESENCE_CHANGED),
            (LINK, status::LINK_CHANGED),
        ]
        .into_iter()
        .filter(|(enable, _)| control & enable != 0)
        .fold(0, |events, (_, event)| events | event)
    }
}

/// Slot status.
pub(super) mod slot_status {
    /// The attention button was pressed.
    pub(crate) const ATTENTION: u16 = 1 << 0;
    /// Something was put in or taken out.
    pub(crate) const PRESENCE_CHANGED: u16 = 1 << 3;
    /// Something is in the slot.
    pub(crate) const PRESENT: u16 = 1 << 6;
    /// The link came up or went down.
    pub(crate) const LINK_CHANGED: u16 = 1 << 8;
    /// Those that writing 1 clears.
    pub(crate) const EVENTS: u16 = ATTENTION | PRESENCE_CHANGED | LINK_CHANGED;
}

/// The registers. What is beyond the conventional ones reads as 0.
pub(super) struct Space {
    bytes: [u8; config::SIZE],
    /// Bits that hold what is written.
    writable: [u8; config::SIZE],
}

impl Space {
    pub(super) fn new(
        number: u16,
        secondary: u8,
        window: RangeInclusive<u64>,
        table: u32,
        pba: u32,
    ) -> Self {
        let mut this = Self { bytes: [0; config::SIZE], writable: [0; config::SIZE] };
        this.put(config::VENDOR_ID, &VENDOR_ID.to_le_bytes());
        this.put(config::DEVICE_ID, &DEVICE_ID.to_le_bytes());
        this.put(config::STATUS, &status::CAPABILITIES.to_le_bytes());
        this.put(config::CLASS, &CLASS.to_le_bytes()[..3]);
        this.put(config::HEADER_TYPE, &[TYPE]);
        this.put(bridge::SECONDARY, &[secondary]);
        this.put(bridge::SUBORDINATE, &[secondary]);
        for at in [bridge::SECONDARY - 1, bridge::SECONDARY, bridge::SUBORDINATE] {
            this.hold(at, &[0xff]);
        }
        let mib = |address: u64| ((address >> 16) as u16 & bridge::MEMORY_BITS).to_le_bytes();
        this.put(bridge::MEMORY_BASE, &mib(*window.start()));
        this.put(bridge::MEMORY_LIMIT, &mib(*window.end()));
        for at in [bridge::MEMORY_BASE, bridge::MEMORY_LIMIT] {
            this.hold(at, &bridge::MEMORY_BITS.to_le_bytes());
        }
        this.hold(bridge::CONTROL, &bridge::CONTROL_BITS.to_le_bytes());
        this.put(config::CAPABILITIES, &[EXPRESS as u8]);
        this.express(number);
        this.put(MSIX, &[capability::MSIX, 0]);
        this.put(MSIX + msix::TABLE, &table.to_le_bytes());
        this.put(MSIX + msix::PBA, &pba.to_le_bytes());
        this
    }

    fn express(&mut self, number: u16) {
        self.put(EXPRESS, &[capability::EXPRESS, MSIX as u8]);
        self.put(express::CAPABILITIES, &CAPABILITIES.to_le_bytes());
        self.put(express::DEVICE, &DEVICE.to_le_bytes());
        self.hold(express::DEVICE_CONTROL, &DEVICE_CONTROL_BITS.to_le_bytes());
        let link = u32::from(link::SPEED) | link::TELLS_ACTIVE | u32::from(number) << 24;
        self.put(express::LINK, &link.to_le_bytes());
        self.hold(express::LINK_CONTROL, &link::CONTROL_BITS.to_le_bytes());
        self.put(express::LINK_STATUS, &link::SPEED.to_le_bytes());
        let slot = slot::CAPABILITIES | u32::from(number) << slot::NUMBER;
        self.put(express::SLOT, &slot.to_le_bytes());
        self.put(express::SLOT_CONTROL, &slot::INDICATOR_OFF.to_le_bytes());
        self.hold(express::SLOT_CONTROL, &slot::CONTROL_BITS.to_le_bytes());
        self.hold(express::ROOT_CONTROL, &ROOT_CONTROL_BITS.to_le_bytes());
        self.put(express::LINK_2, &link::SPEEDS.to_le_bytes());
        self.put(express::LINK_CONTROL_2, &1u16.to_le_bytes());
        self.hold(express::LINK_CONTROL_2, &SPEED_BITS.to_le_bytes());
    }

    /// All places are constants within the space.
    fn put(&mut self, at: u16, bytes: &[u8]) {
        self.bytes[usize::from(at)..][..bytes.len()].copy_from_slice(bytes);
    }

    fn hold(&mut self, at: u16, bits: &[u8]) {
        self.writable[usize::from(at)..][..bits.len()].copy_from_slice(bits);
    }

    pub(super) fn byte(&self, at: u16) -> u8 {
        self.bytes.get(usize::from(at)).copied().unwrap_or(0)
    }

    pub(super) fn word(&self, at: u16) -> u16 {
        u16::from_le_bytes([self.byte(at), self.byte(at + 1)])
    }

    /// Makes the bits `which` of the word at `at` those of `value`.
    pub(super) fn set(&mut self, at: u16, which: u16, value: u16) {
        let word = (self.word(at) & !which) | (value & which);
        self.put(at, &word.to_le_bytes());
    }

    pub(super) fn read(&self, offset: u16, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(offset..) {
            *byte = self.byte(at);
        }
    }

    /// Writes what can be written; 1s clear the events of the slot.
    pub(super) fn write(&mut self, offset: u16, data: &[u8]) {
        let events = slot_status::EVENTS.to_le_bytes();
        for (at, new) in (usize::from(offset)..).zip(data) {
            let (Some(byte), Some(mask)) = (self.bytes.get_mut(at), self.writable.get(at)) else {
                return;
            };
            *byte = (*byte & !mask) | (new & mask);
            let cleared = at.checked_sub(usize::from(express::SLOT_STATUS));
            if let Some(event) = cleared.and_then(|i| events.get(i)) {
                *byte &= !(new & event);
            }
        }
    }
}
