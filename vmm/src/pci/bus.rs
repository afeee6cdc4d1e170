//! The slots of bus 0, and who answers at an address.

use super::bar::BARS;
use super::chipset::{Chipset, Kind};
use super::config_port::{ADDRESS, ConfigPort, DATA, DATA_END};
use super::function::{Effect, Function, PciFunction};
use super::layout::{self, Decoded, Full, Wanted, Windows};
use super::{ecam, nothing};
use crate::platform::Platform;

/// Why a function cannot be on the bus.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// No slot is free.
    #[error("the PCI bus is full: it has room for {room} functions")]
    Full {
        /// How many it can have.
        room: usize,
    },
    /// The windows are too small for all BARs.
    #[error(transparent)]
    Layout(#[from] Full),
}

/// Bus 0.
#[derive(Default)]
pub struct Bus {
    port: ConfigPort,
    chipset: Chipset,
    /// Slot 0 is the host bridge; function `n` is in slot `n + 1`.
    functions: Vec<Function>,
    decoded: Vec<Decoded>,
    windows: Windows,
}

impl Bus {
    /// An empty bus of a machine of this kind, whose BARs go to `windows`.
    pub fn new(kind: Kind, windows: Windows) -> Self {
        Self { windows, chipset: Chipset::new(kind), ..Self::default() }
    }

    /// Puts `function` into the next slot and returns that slot.
    pub fn add(&mut self, function: Box<dyn PciFunction>) -> Result<usize, BusError> {
        let end = self.chipset.end();
        if self.functions.len() + 1 >= end {
            return Err(BusError::Full { room: end - 1 });
        }
        self.functions.push(Function::new(function));
        Ok(self.functions.len())
    }

    /// Gives every BAR an address. Memory decode stays off until the guest turns it on.
    pub fn place_bars(&mut self) -> Result<(), BusError> {
        let mut wanted = Vec::new();
        for (slot, function) in (1..).zip(&mut self.functions) {
            for (bar, shape) in function.bars().shapes().iter().enumerate() {
                wanted.extend(shape.map(|shape| Wanted { slot, bar, shape }));
            }
        }
        for (slot, bar, at) in layout::place(self.windows, wanted)? {
            if let Some(function) = self.function(slot) {
                function.bars().place(bar, at);
            }
        }
        Ok(())
    }

    /// The function in `slot`.
    pub fn function(&mut self, slot: usize) -> Option<&mut Function> {
        self.functions.get_mut(slot.checked_sub(1)?)
    }

    /// A read of `port`; true if it is one of the bus's.
    pub fn io_read(&mut self, port: u16, data: &mut [u8]) -> bool {
        match port {
            ADDRESS => self.port.read_address(data),
            DATA..=DATA_END => match self.port.target(port, data.len()) {
                Some(t) => self.config_read(t.slot, t.offset, data),
                None => nothing(data),
            },
            _ => return false,
        }
        true
    }

    /// A write of `port`; true if it is one of the bus's.
    pub fn io_write(&mut self, platform: &mut Platform, port: u16, data: &[u8]) -> bool {
        match port {
            ADDRESS => self.port.write_address(data),
            DATA..=DATA_END => {
                if let Some(t) = self.port.target(port, data.len()) {
                    self.config_write(platform, t.slot, t.offset, data);
                }
            }
            _ => return false,
        }
        true
    }

    /// A read of configuration space, within one register.
    pub fn config_read(&mut self, slot: usize, offset: u16, data: &mut [u8]) {
        if self.chipset.has(slot) {
            return self.chipset.read(slot, offset, data);
        }
        match self.function(slot) {
            Some(f) => f.config_read(offset, data),
            None => nothing(data),
        }
    }

    /// A write of configuration space, within one register.
    pub fn config_write(&mut self, platform: &mut Platform, slot: usize, offset: u16, data: &[u8]) {
        if self.chipset.has(slot) {
            return self.chipset.write(slot, offset, data);
        }
        let Some(function) = self.function(slot) else { return };
        if function.config_write(platform, offset, data) == Effect::Decode {
            self.decode(platform);
        }
    }

    /// A read of guest-physical memory that is not RAM; all-ones where nothing answers.
    pub fn mmio_read(&mut self, at: u64, data: &mut [u8]) {
        match ecam::target(self.windows.ecam(), at, data.len()) {
            None => {}
            Some(ecam::Target::Function { slot, offset }) => {
                return self.config_read(slot, offset, data);
            }
            Some(ecam::Target::Nothing) => return nothing(data),
        }
        match self.find(at, data.len()) {
            Some((slot, bar, offset)) => {
                if let Some(f) = self.function(slot) {
                    f.inner().bar_read(bar, offset, data);
                }
            }
            None => nothing(data),
        }
    }

    /// A write of guest-physical memory that is not RAM; dropped where nothing answers.
    pub fn mmio_write(&mut self, platform: &mut Platform, at: u64, data: &[u8]) {
        match ecam::target(self.windows.ecam(), at, data.len()) {
            None => {}
            Some(ecam::Target::Function { slot, offset }) => {
                return self.config_write(platform, slot, offset, data);
            }
            Some(ecam::Target::Nothing) => return,
        }
        if let Some((slot, bar, offset)) = self.find(at, data.len())
            && let Some(f) = self.function(slot)
        {
            f.inner().bar_write(platform, bar, offset, data);
        }
    }

    fn find(&self, at: u64, length: usize) -> Option<(usize, usize, u64)> {
        self.decoded.iter().find_map(|d| {
            let offset = at.checked_sub(d.at.0)?;
            let end = offset.checked_add(length as u64)?;
            (end <= d.size).then_some((d.slot, d.bar, offset))
        })
    }

    /// Brings what is decoded in line with the registers: first takes away, then maps.
    fn decode(&mut self, platform: &mut Platform) {
        let ask: Vec<Decoded> = (1..)
            .zip(&self.functions)
            .flat_map(|(slot, f)| {
                f.decoded().map(move |(bar, at, size)| Decoded { slot, bar, at, size })
            })
            .collect();
        let next = layout::decode(self.windows, &self.decoded, &ask);
        let now = std::mem::take(&mut self.decoded);
        for d in now.iter().filter(|d| !next.contains(d)) {
            if let Some(f) = self.function(d.slot) {
                f.inner().unmap(platform, d.bar);
            }
        }
        for d in next.iter().filter(|d| !now.contains(d)) {
            if let Some(f) = self.function(d.slot) {
                f.inner().map(platform, d.bar, d.at);
            }
        }
        debug_assert!(next.iter().all(|d| d.bar < BARS), "bars come from BarRegisters");
        self.decoded = next;
    }
}
