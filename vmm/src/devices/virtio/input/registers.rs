//! The device's configuration space (virtio 1.3, section 5.8.4): a selector and what it selects.

use std::collections::BTreeMap;

/// Bytes: select, subsel, size, five reserved, 128 of data.
pub(super) const SIZE: usize = 8 + DATA;
const DATA: usize = 128;

/// Event types (linux/input-event-codes.h).
const EV_KEY: u16 = 1;
const EV_REL: u16 = 2;
const EV_ABS: u16 = 3;
const EV_REP: u16 = 0x14;

/// Selectors.
mod cfg {
    pub(super) const ID_NAME: u8 = 1;
    pub(super) const ID_DEVIDS: u8 = 3;
    pub(super) const PROP_BITS: u8 = 0x10;
    pub(super) const EV_BITS: u8 = 0x11;
    pub(super) const ABS_INFO: u8 = 0x12;
}

/// An absolute axis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AbsInfo {
    /// Smallest value.
    pub min: i32,
    /// Largest value.
    pub max: i32,
    /// Noise.
    pub fuzz: i32,
    /// Values around the middle that mean the middle.
    pub flat: i32,
    /// Units per millimetre.
    pub resolution: i32,
}

/// What a device is and can send.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Description {
    /// Its name; the first 128 bytes count.
    pub name: String,
    /// Bus, vendor, product, version.
    pub ids: [u16; 4],
    /// Properties, as a bitmap from bit 0 on.
    pub properties: Vec<u8>,
    /// For each event type, the codes as a bitmap from bit 0 on.
    pub events: BTreeMap<u16, Vec<u8>>,
    /// The absolute axes.
    pub axes: BTreeMap<u16, AbsInfo>,
}

impl Description {
    fn named(name: &str, product: u16) -> Self {
        // A virtual bus; the vendor is virtio's.
        Self { name: name.to_owned(), ids: [6, 0x1af4, product, 1], ..Self::default() }
    }

    fn with(mut self, kind: u16, codes: impl IntoIterator<Item = u16>) -> Self {
        let bits = self.events.entry(kind).or_default();
        for code in codes {
            set(bits, code);
        }
        self
    }

    fn axis(mut self, code: u16, min: i32, max: i32, flat: i32) -> Self {
        self.axes.insert(code, AbsInfo { min, max, flat, ..AbsInfo::default() });
        self.with(EV_ABS, [code])
    }

    /// The data that a selector selects.
    fn data(&self, select: u8, subsel: u8) -> Vec<u8> {
        let subsel = u16::from(subsel);
        match select {
            cfg::ID_NAME => self.name.clone().into_bytes(),
            cfg::ID_DEVIDS => self.ids.iter().flat_map(|id| id.to_le_bytes()).collect(),
            cfg::PROP_BITS => self.properties.clone(),
            cfg::EV_BITS => self.events.get(&subsel).cloned().unwrap_or_default(),
            cfg::ABS_INFO => self.axes.get(&subsel).map_or_else(Vec::new, |a| {
                [a.min, a.max, a.fuzz, a.flat, a.resolution]
                    .iter()
                    .flat_map(|v| v.to_le_bytes())
                    .collect()
            }),
            // Also the serial: there is none.
            _ => Vec::new(),
        }
    }
}

/// Sets a bit of a bitmap, which grows.
pub(super) fn set(bits: &mut Vec<u8>, bit: u16) {
    let byte = usize::from(bit / 8);
    if bits.len() <= byte {
        bits.resize(byte + 1, 0);
    }
    bits[byte] |= 1 << (bit % 8);
}

/// Devices that this process can speak for (codes of linux/input-event-codes.h).
pub mod kind {
    use super::{Description, EV_KEY, EV_REL, EV_REP};

    /// A keyboard with every key of a PC's.
    pub fn keyboard() -> Description {
        // Delay and period of its repeats are the guest's to set.
        Description::named("Beamline keyboard", 1).with(EV_KEY, 1..=248).with(EV_REP, 0..=1)
    }

    /// A mouse with five buttons and two wheels.
    pub fn mouse() -> Description {
        Description::named("Beamline mouse", 2)
            .with(EV_KEY, 0x110..=0x114)
            .with(EV_REL, [0, 1, 6, 8])
    }

    /// A pointer with absolute positions from 0 to 32767.
    pub fn tablet() -> Description {
        Description::named("Beamline tablet", 3)
            .with(EV_KEY, 0x110..=0x112)
            .with(EV_REL, [8])
            .axis(0, 0, 0x7fff, 0)
            .axis(1, 0, 0x7fff, 0)
    }

    /// A gamepad: two sticks, two triggers, a cross, eleven buttons.
    pub fn gamepad() -> Description {
        let buttons = [0x130, 0x131, 0x133, 0x134, 0x136, 0x137, 0x13a, 0x13b, 0x13c, 0x13d, 0x13e];
        let mut pad = Description::named("Beamline gamepad", 4).with(EV_KEY, buttons);
        for stick in [0, 1, 3, 4] {
            pad = pad.axis(stick, -0x8000, 0x7fff, 128);
        }
        for trigger in [2, 5] {
            pad = pad.axis(trigger, 0, 255, 0);
        }
        for cross in [0x10, 0x11] {
            pad = pad.axis(cross, -1, 1, 0);
        }
        pad
    }
}

/// The selector, which the driver writes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Select {
    select: u8,
    subsel: u8,
}

impl Select {
    pub(super) fn registers(self, description: &Description) -> [u8; SIZE] {
        let mut r = [0; SIZE];
        let data = description.data(self.select, self.subsel);
        let len = data.len().min(DATA);
        (r[0], r[1], r[2]) = (self.select, self.subsel, len as u8);
        r[8..8 + len].copy_from_slice(&data[..len]);
        r
    }

    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        for (at, byte) in (offset..).zip(data) {
            match at {
                0 => self.select = *byte,
                1 => self.subsel = *byte,
                _ => {}
            }
        }
    }
}
