//! The slots of bus 0, the buses behind its root ports, and who answers at an address.

use super::bar::BARS;
use super::chipset::{Chipset, Kind};
use super::config_port::{ADDRESS, ConfigPort, DATA, DATA_END};
use super::function::{Effect, Function, PciFunction};
use super::layout::{self, Decoded, Full, Seat, Wanted, Windows};
use super::port::RootPort;
use super::slot::{Leaving, Slot, SlotError};
use super::wiring::Wiring;
use super::{ecam, nothing};
use crate::Gpa;

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
    /// A root port's slot.
    #[error(transparent)]
    Slot(#[from] SlotError),
}

/// What is in a slot of bus 0.
enum Occupant {
    Function(Function),
    Port(Box<Slot>),
}

/// Bus 0, and those behind its root ports.
#[derive(Default)]
pub struct Bus {
    port: ConfigPort,
    chipset: Chipset,
    /// Slot 0 is the host bridge; occupant `n` is in slot `n + 1`.
    occupants: Vec<Occupant>,
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
        self.occupy(Occupant::Function(Function::new(function)))
    }

    /// Puts a root port into the next slot and returns that slot.
    pub fn add_port(&mut self, port: RootPort) -> Result<usize, BusError> {
        self.occupy(Occupant::Port(Box::new(Slot::new(port))))
    }

    fn occupy(&mut self, occupant: Occupant) -> Result<usize, BusError> {
        let end = self.chipset.end();
        if self.occupants.len() + 1 >= end {
            return Err(BusError::Full { room: end - 1 });
        }
        self.occupants.push(occupant);
        Ok(self.occupants.len())
    }

    /// Gives every BAR on bus 0 an address. Memory decode stays off until the guest turns it on. What is behind a root
    /// port the guest places itself, as it does with what comes later.
    pub fn place_bars(&mut self) -> Result<(), BusError> {
        let mut wanted = Vec::new();
        for (slot, occupant) in (1..).zip(&mut self.occupants) {
            let bars = match occupant {
                Occupant::Function(f) => f.bars(),
                Occupant::Port(slot) => slot.root().bars(),
            };
            for (bar, shape) in bars.shapes().iter().enumerate() {
                let seat = Seat::Slot(slot);
                wanted.extend(shape.map(|shape| Wanted { seat, bar, shape }));
            }
        }
        for (seat, bar, at) in layout::place(self.windows, wanted)? {
            let Seat::Slot(slot) = seat else { continue };
            match slot.checked_sub(1).and_then(|i| self.occupants.get_mut(i)) {
                Some(Occupant::Function(f)) => f.bars().place(bar, at),
                Some(Occupant::Port(slot)) => slot.root().bars().place(bar, at),
                None => {}
            }
        }
        Ok(())
    }

    /// The root port in `slot`.
    pub fn root_port(&mut self, slot: usize) -> Result<&mut Slot, SlotError> {
        match slot.checked_sub(1).and_then(|i| self.occupants.get_mut(i)) {
            Some(Occupant::Port(slot)) => Ok(slot),
            _ => Err(SlotError::NoPort),
        }
    }

    /// Has the function behind the root port in `slot` taken out: by the guest, when it has let it go, or at once where
    /// that is `forced`.
    pub fn unplug(
        &mut self,
        wiring: &mut dyn Wiring,
        slot: usize,
        forced: bool,
    ) -> Result<Leaving, SlotError> {
        let port = self.root_port(slot)?;
        if forced {
            port.inside().ok_or(SlotError::Empty)?;
        } else if port.ask()? == Leaving::Asked {
            return Ok(Leaving::Asked);
        }
        self.take_out(wiring, slot);
        Ok(Leaving::Gone)
    }

    fn take_out(&mut self, wiring: &mut dyn Wiring, slot: usize) {
        let seat = Seat::Behind(slot);
        for d in self.decoded.extract_if(.., |d| d.seat == seat).collect::<Vec<_>>() {
            self.with(seat, |f| f.unmap(wiring, d.bar));
        }
        if let Ok(port) = self.root_port(slot) {
            port.take_out(wiring);
        }
        self.decode(wiring);
    }

    /// What `what` makes of the function at `seat`, if one is there.
    fn with<T>(&mut self, seat: Seat, what: impl FnOnce(&mut dyn PciFunction) -> T) -> Option<T> {
        let (Seat::Slot(slot) | Seat::Behind(slot)) = seat;
        match (seat, self.occupants.get_mut(slot.checked_sub(1)?)?) {
            (Seat::Slot(_), Occupant::Function(f)) => Some(what(f.inner())),
            (Seat::Slot(_), Occupant::Port(slot)) => Some(what(slot.root().inner())),
            (Seat::Behind(_), Occupant::Port(slot)) => Some(what(slot.inside()?.inner())),
            (Seat::Behind(_), Occupant::Function(_)) => None,
        }
    }

    /// The function that slot `slot` of bus `bus` is: behind a root port there is one, by the bus number that the guest
    /// gave the port. Of two ports with the same number the first one has it.
    fn seat(&self, bus: u8, slot: usize) -> Option<Seat> {
        if bus == 0 {
            return Some(Seat::Slot(slot));
        }
        if slot != 0 {
            return None;
        }
        let found = (1..).zip(&self.occupants).find_map(|(at, occupant)| {
            let Occupant::Port(port) = occupant else { return None };
            let root = port.look().look();
            (root.secondary() == bus).then_some((at, root.link()))
        });
        found.and_then(|(at, link)| link.then_some(Seat::Behind(at)))
    }

    /// A read of `port`; true if it is one of the bus's.
    pub fn io_read(&mut self, port: u16, data: &mut [u8]) -> bool {
        match port {
            ADDRESS => self.port.read_address(data),
            DATA..=DATA_END => match self.port.target(port, data.len()) {
                Some(t) => self.bus_read(t.bus, t.slot, t.offset, data),
                None => nothing(data),
            },
            _ => return false,
        }
        true
    }

    /// A write of `port`; true if it is one of the bus's.
    pub fn io_write(&mut self, wiring: &mut dyn Wiring, port: u16, data: &[u8]) -> bool {
        match port {
            ADDRESS => self.port.write_address(data),
            DATA..=DATA_END => {
                if let Some(t) = self.port.target(port, data.len()) {
                    self.bus_write(wiring, t.bus, t.slot, t.offset, data);
                }
            }
            _ => return false,
        }
        true
    }

    /// A read of configuration space on bus 0, within one register.
    pub fn config_read(&mut self, slot: usize, offset: u16, data: &mut [u8]) {
        self.bus_read(0, slot, offset, data);
    }

    /// A write of configuration space on bus 0, within one register.
    pub fn config_write(&mut self, wiring: &mut dyn Wiring, slot: usize, offset: u16, data: &[u8]) {
        self.bus_write(wiring, 0, slot, offset, data);
    }

    fn bus_read(&mut self, bus: u8, slot: usize, offset: u16, data: &mut [u8]) {
        if bus == 0 && self.chipset.has(slot) {
            return self.chipset.read(slot, offset, data);
        }
        match self.seat(bus, slot) {
            Some(Seat::Slot(slot)) => {
                match slot.checked_sub(1).and_then(|i| self.occupants.get_mut(i)) {
                    Some(Occupant::Function(f)) => f.config_read(offset, data),
                    Some(Occupant::Port(slot)) => slot.root().config_read(offset, data),
                    None => nothing(data),
                }
            }
            Some(Seat::Behind(slot)) => match self.root_port(slot).ok().and_then(Slot::inside) {
                Some(f) => f.config_read(offset, data),
                None => nothing(data),
            },
            None => nothing(data),
        }
    }

    fn bus_write(
        &mut self,
        wiring: &mut dyn Wiring,
        bus: u8,
        slot: usize,
        offset: u16,
        data: &[u8],
    ) {
        if bus == 0 && self.chipset.has(slot) {
            return self.chipset.write(slot, offset, data);
        }
        let effect = match self.seat(bus, slot) {
            Some(Seat::Slot(at)) => match at.checked_sub(1).and_then(|i| self.occupants.get_mut(i))
            {
                Some(Occupant::Function(f)) => f.config_write(wiring, offset, data),
                Some(Occupant::Port(port)) => {
                    let effect = port.root().config_write(wiring, offset, data);
                    return self.obey(wiring, at, effect);
                }
                None => return,
            },
            Some(Seat::Behind(slot)) => match self.root_port(slot).ok().and_then(Slot::inside) {
                Some(f) => f.config_write(wiring, offset, data),
                None => return,
            },
            None => return,
        };
        if effect == Effect::Decode {
            self.decode(wiring);
        }
    }

    /// Does what a write to the root port in `slot` asks for.
    fn obey(&mut self, wiring: &mut dyn Wiring, slot: usize, effect: Effect) {
        let Ok(port) = self.root_port(slot) else { return };
        let orders = port.root().inner().take_orders();
        port.tell();
        if orders.remove {
            return self.take_out(wiring, slot);
        }
        if orders.decode || effect == Effect::Decode {
            self.decode(wiring);
        }
        // The link is down while it is reset, so that no BAR is decoded.
        if orders.reset
            && let Ok(port) = self.root_port(slot)
            && let Some(inside) = port.inside()
        {
            inside.reset(wiring);
        }
    }

    /// A read of guest-physical memory that is not RAM; all-ones where nothing answers.
    pub fn mmio_read(&mut self, at: u64, data: &mut [u8]) {
        match ecam::target(self.windows, at, data.len()) {
            None => {}
            Some(ecam::Target::Function { bus, slot, offset }) => {
                return self.bus_read(bus, slot, offset, data);
            }
            Some(ecam::Target::Nothing) => return nothing(data),
        }
        let read = self
            .find(at, data.len())
            .and_then(|(seat, bar, offset)| self.with(seat, |f| f.bar_read(bar, offset, data)));
        if read.is_none() {
            nothing(data);
        }
    }

    /// A write of guest-physical memory that is not RAM; dropped where nothing answers.
    pub fn mmio_write(&mut self, wiring: &mut dyn Wiring, at: u64, data: &[u8]) {
        match ecam::target(self.windows, at, data.len()) {
            None => {}
            Some(ecam::Target::Function { bus, slot, offset }) => {
                return self.bus_write(wiring, bus, slot, offset, data);
            }
            Some(ecam::Target::Nothing) => return,
        }
        if let Some((seat, bar, offset)) = self.find(at, data.len()) {
            self.with(seat, |f| f.bar_write(wiring, bar, offset, data));
        }
    }

    fn find(&self, at: u64, length: usize) -> Option<(Seat, usize, u64)> {
        self.decoded.iter().find_map(|d| {
            let offset = at.checked_sub(d.at.0)?;
            let end = offset.checked_add(length as u64)?;
            (end <= d.size).then_some((d.seat, d.bar, offset))
        })
    }

    /// Brings what is decoded in line with the registers: first takes away, then maps.
    fn decode(&mut self, wiring: &mut dyn Wiring) {
        let mut ask = Vec::new();
        for (slot, occupant) in (1..).zip(&self.occupants) {
            let mut add = |seat, all: &mut dyn Iterator<Item = (usize, Gpa, u64)>| {
                ask.extend(all.map(|(bar, at, size)| Decoded { seat, bar, at, size }));
            };
            match occupant {
                Occupant::Function(f) => add(Seat::Slot(slot), &mut f.decoded()),
                Occupant::Port(port) => {
                    add(Seat::Slot(slot), &mut port.look().decoded());
                    add(Seat::Behind(slot), &mut port.decoded());
                }
            }
        }
        let next = layout::decode(self.windows, &self.decoded, &ask);
        let now = std::mem::take(&mut self.decoded);
        for d in now.iter().filter(|d| !next.contains(d)) {
            self.with(d.seat, |f| f.unmap(wiring, d.bar));
        }
        for d in next.iter().filter(|d| !now.contains(d)) {
            self.with(d.seat, |f| f.map(wiring, d.bar, d.at));
        }
        debug_assert!(next.iter().all(|d| d.bar < BARS), "bars come from BarRegisters");
        self.decoded = next;
    }
}

#[cfg(test)]
mod tests;
