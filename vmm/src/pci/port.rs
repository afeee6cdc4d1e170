//! A root port (PCI Express base 6.0, sections 7.5.1.3, 7.5.3 and 6.7.3): a bridge on bus 0 with one slot, into which a
//! function is plugged, and out of which it is taken, while the guest runs.
//!
//! ```text
//!            insert                         press: the guest is asked
//!  ┌───────┐ ────────────────► ┌─────────┐ ───────────────────────────► ┌───────┐
//!  │ empty │                   │ plugged │ ◄─────────────────────────── │ asked │
//!  └───────┘                   └─────────┘   indicator on: it stays     └───────┘
//!      ▲ remove: by force           │                                       │ indicator off: it is let go
//!      └────────────────────────────┴───────────────────────────────────────┘
//! ```
//!
//! The slot has an attention button, which asks the guest, and a power indicator, which is its answer: off means that
//! the function may be taken out (section 6.7.1.1.3). It has no power controller: what is in it has power.
//! There is a window for memory, and none for I/O and for prefetchable memory: those go to the same window.

mod registers;

#[cfg(test)]
mod tests;

use super::bar::{BARS, BarShape, BarShapes};
use super::function::Header;
use super::msix::{Capability, Msix, Place, Signaller};
use super::wiring::Wiring;
use super::{ConfigEffect, PciFunction, nothing};
use crate::Gpa;
use beamline_abi::pci::{command, config, msix};
use registers::{Space, bridge, express, link, slot, slot_status};
use std::convert::Infallible;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Bytes of the only BAR.
const BAR_SIZE: u64 = 0x1000;
/// The MSI-X table and pending bits in it.
const TABLE: u64 = 0;
const PBA: u64 = 0x800;

/// What is in the slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing.
    Empty,
    /// A function.
    Plugged,
    /// A function that the guest was asked to let go.
    Asked,
}

/// What a write has the bus do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Orders {
    /// Look again at which BARs are decoded.
    pub decode: bool,
    /// Reset the function in the slot.
    pub reset: bool,
    /// Take the function out of the slot.
    pub remove: bool,
}

/// What a press of the attention button did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Pressed {
    /// The guest is asked, or was before.
    Asked,
    /// Nobody needs to be asked: the power indicator is off.
    Free,
    /// The guest is still busy with what was put in: it was not asked.
    Busy,
}

/// A root port.
pub struct RootPort {
    label: String,
    space: Space,
    bars: BarShapes,
    msix: Msix,
    vector: Vector,
    /// The guest lets the port send interrupts.
    master: bool,
    /// An event that interrupts is there: only the first of several sends one (section 6.7.3.4).
    raised: bool,
    state: State,
    orders: Orders,
}

impl RootPort {
    /// An empty port: `number` is its slot's for people, from 1 on. The bus behind it is `secondary` and its window
    /// `window`, of whole MiB, before the guest chooses others.
    pub fn new(label: String, number: u16, secondary: u8, window: RangeInclusive<u64>) -> Self {
        let mut bars = [None; BARS];
        bars[0] = Some(BarShape { size: BAR_SIZE, wide: false, prefetch: false });
        let place = |at, bytes| Place { bar: 0, range: at..at + bytes };
        let capability = Capability {
            at: registers::MSIX,
            vectors: 1,
            table: place(TABLE, u64::from(msix::ENTRY_SIZE)),
            pba: place(PBA, 8),
        };
        Self {
            label,
            space: Space::new(number, secondary, window, TABLE as u32, PBA as u32),
            bars,
            msix: Msix::new(capability),
            vector: Vector(None),
            master: false,
            raised: false,
            state: State::Empty,
            orders: Orders::default(),
        }
    }

    /// What is in the slot.
    pub fn state(&self) -> State {
        self.state
    }

    /// The bus behind it, by the guest's word.
    pub fn secondary(&self) -> u8 {
        self.space.byte(bridge::SECONDARY)
    }

    /// Whether what is in the slot can be reached.
    pub fn link(&self) -> bool {
        self.state != State::Empty
            && self.space.word(express::LINK_CONTROL) & link::DISABLE == 0
            && self.space.word(bridge::CONTROL) & bridge::SECONDARY_RESET == 0
    }

    /// The addresses that it passes on to what is in the slot, where its own memory decode is on.
    pub fn window(&self) -> RangeInclusive<u64> {
        let mib = |at| u64::from(self.space.word(at) & bridge::MEMORY_BITS) << 16;
        // A base above the limit is an empty range, and passes on nothing.
        mib(bridge::MEMORY_BASE)..=mib(bridge::MEMORY_LIMIT) | 0xf_ffff
    }

    /// A function is in the slot already when the guest starts.
    pub fn start_with_one(&mut self) {
        self.state = State::Plugged;
        self.space.set(express::SLOT_CONTROL, slot::INDICATOR, slot::INDICATOR_ON);
        self.update_link();
        // Nobody has looked yet.
        self.space.set(express::SLOT_STATUS, slot_status::EVENTS, 0);
    }

    /// A function was put into the slot.
    pub fn insert(&mut self) {
        self.state = State::Plugged;
        self.happened(slot_status::PRESENCE_CHANGED);
        self.update_link();
    }

    /// The function was taken out of the slot.
    pub fn remove(&mut self) {
        self.state = State::Empty;
        self.happened(slot_status::PRESENCE_CHANGED);
        self.update_link();
    }

    /// Asks the guest to let the function go, by the attention button. A second press takes the first one back, so that
    /// there is none while the guest acts upon the first.
    pub fn press(&mut self) -> Pressed {
        let unseen = self.space.word(express::SLOT_STATUS) & slot_status::ATTENTION != 0;
        match (self.state, self.indicator()) {
            (State::Empty, _) | (_, slot::INDICATOR_OFF) => return Pressed::Free,
            (State::Plugged, slot::INDICATOR_BLINKS) => return Pressed::Busy,
            (State::Asked, slot::INDICATOR_BLINKS) => {}
            _ if unseen => self.state = State::Asked,
            _ => {
                self.state = State::Asked;
                self.happened(slot_status::ATTENTION);
            }
        }
        Pressed::Asked
    }

    /// What the writes since the last call have the bus do.
    pub fn take_orders(&mut self) -> Orders {
        std::mem::take(&mut self.orders)
    }

    fn indicator(&self) -> u16 {
        self.space.word(express::SLOT_CONTROL) & slot::INDICATOR
    }

    /// An event of the slot.
    fn happened(&mut self, event: u16) {
        self.space.set(express::SLOT_STATUS, event, event);
        let present = if self.state == State::Empty { 0 } else { slot_status::PRESENT };
        self.space.set(express::SLOT_STATUS, slot_status::PRESENT, present);
        self.update_interrupt();
    }

    /// Brings the link's registers in line with what is in the slot.
    fn update_link(&mut self) {
        let was = self.space.word(express::LINK_STATUS) & link::ACTIVE;
        let active = if self.link() { link::ACTIVE } else { 0 };
        if active != was {
            self.space.set(express::LINK_STATUS, link::ACTIVE, active);
            self.happened(slot_status::LINK_CHANGED);
            self.orders.decode = true;
        }
    }

    /// Sends an interrupt where an event is the first that interrupts.
    fn update_interrupt(&mut self) {
        let control = self.space.word(express::SLOT_CONTROL);
        let events = self.space.word(express::SLOT_STATUS);
        let raise = control & slot::INTERRUPT != 0 && slot::enabled(control) & events != 0;
        let was = std::mem::replace(&mut self.raised, raise);
        if raise
            && !was
            && self.master
            && let Some(event) = &self.vector.0
        {
            // Fails only where the counter is full, and then KVM has not looked yet.
            let _ = rustix::io::write(event, &1u64.to_ne_bytes());
        }
    }

    /// The guest wrote the power indicator; it was `before`.
    fn answered(&mut self, before: u16) {
        if self.state != State::Asked || self.indicator() == before {
            return;
        }
        match self.indicator() {
            slot::INDICATOR_OFF => self.orders.remove = true,
            // It has changed its mind, or its driver cannot let go.
            slot::INDICATOR_ON => self.state = State::Plugged,
            _ => {}
        }
    }
}

/// The hot-plug interrupt.
struct Vector(Option<OwnedFd>);

impl Signaller for Vector {
    type Error = Infallible;

    fn set(&mut self, start: u32, fds: &[BorrowedFd<'_>]) -> Result<(), Infallible> {
        if start == 0
            && let Some(fd) = fds.first()
        {
            match fd.as_fd().try_clone_to_owned() {
                Ok(fd) => self.0 = Some(fd),
                Err(e) => tracing::warn!("a root port's interrupt stays silent: {e}"),
            }
        }
        Ok(())
    }

    fn clear(&mut self, _: u32) -> Result<(), Infallible> {
        self.0 = None;
        Ok(())
    }
}

impl PciFunction for RootPort {
    fn label(&self) -> &str {
        &self.label
    }

    fn header(&self) -> Header {
        Header::Bridge
    }

    fn bars(&self) -> &BarShapes {
        &self.bars
    }

    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        self.space.read(offset, data);
        self.msix.overlay_control(offset, data);
    }

    fn config_write(&mut self, wiring: &mut dyn Wiring, offset: u16, data: &[u8]) -> ConfigEffect {
        let indicator = self.indicator();
        let reset = self.space.word(bridge::CONTROL) & bridge::SECONDARY_RESET;
        if offset == config::COMMAND
            && let Some(low) = data.first()
        {
            self.master = u16::from(*low) & command::BUS_MASTER != 0;
        }
        self.space.write(offset, data);
        match offset & !3 {
            bridge::MEMORY_BASE => self.orders.decode = true,
            express::LINK_CONTROL => self.update_link(),
            express::SLOT_CONTROL => {
                self.answered(indicator);
                self.update_interrupt();
            }
            _ if self.space.word(bridge::CONTROL) & bridge::SECONDARY_RESET != reset => {
                self.orders.reset |= reset == 0;
                self.update_link();
            }
            _ => {}
        }
        let Ok(()) = self.msix.write_control(wiring, &mut self.vector, offset, data);
        ConfigEffect::None
    }

    fn bar_read(&mut self, bar: usize, offset: u64, data: &mut [u8]) {
        let c = self.msix.capability();
        match bar {
            0 if c.table.range.contains(&offset) => self.msix.read_table(offset - TABLE, data),
            0 if c.pba.range.contains(&offset) => self.msix.read_pba(offset - PBA, data),
            0 => data.fill(0),
            _ => nothing(data),
        }
    }

    fn bar_write(&mut self, wiring: &mut dyn Wiring, bar: usize, offset: u64, data: &[u8]) {
        if bar == 0 && self.msix.capability().table.range.contains(&offset) {
            self.msix.write_table(wiring, offset - TABLE, data);
        }
    }

    fn map(&mut self, _: &mut dyn Wiring, _: usize, _: Gpa) {}

    fn unmap(&mut self, _: &mut dyn Wiring, _: usize) {}

    /// A root port is reset with its machine only.
    fn reset(&mut self, _: &mut dyn Wiring) {}

    fn detach(self: Box<Self>, _: &mut dyn Wiring) -> Option<Box<dyn PciFunction>> {
        None
    }
}
