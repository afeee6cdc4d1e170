//! Configuration space as the guest sees it: the function's own, except for the registers that the VMM
//! owns (BARs, the enables in the command register, expansion ROM, INTx).

use super::bar::{BARS, BarRegisters, BarShapes};
use super::wiring::Wiring;
use crate::Gpa;
use beamline_abi::pci::{command, config};

/// Bits of the command register that the VMM answers for.
const COMMAND_OWNED: u16 =
    command::IO | command::MEMORY | command::BUS_MASTER | command::INTX_DISABLE;
/// Expansion ROM base address (PCI 3.0, section 6.1), and that of a bridge.
const ROM: u16 = 0x30;
const BRIDGE_ROM: u16 = 0x38;
/// End of the base address registers, and that of a bridge's.
const BARS_END: u16 = 0x28;
const BRIDGE_BARS_END: u16 = 0x18;

/// What a write to configuration space did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum ConfigEffect {
    /// Nothing that the bus must know.
    None,
    /// The function was reset: its configuration space is back to its defaults.
    Reset,
}

/// The layout of a function's first 64 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// Type 0: six base address registers.
    Endpoint,
    /// Type 1: two of them, then the registers of a bridge.
    Bridge,
}

/// What a PCI slot needs of a function. Calls come from one thread. Offsets and lengths are within
/// configuration space or the BAR; configuration accesses are within one 32-bit register.
pub trait PciFunction: Send {
    /// The function's name in messages.
    fn label(&self) -> &str;
    /// The layout of its configuration space.
    fn header(&self) -> Header {
        Header::Endpoint
    }
    /// Its BARs; they do not change.
    fn bars(&self) -> &BarShapes;
    /// Reads configuration space. What the slot owns (BARs, enables) is put over it by the caller.
    fn config_read(&mut self, offset: u16, data: &mut [u8]);
    /// Writes configuration space, except what the slot owns.
    fn config_write(&mut self, wiring: &mut dyn Wiring, offset: u16, data: &[u8]) -> ConfigEffect;
    /// A read of BAR `bar` that trapped.
    fn bar_read(&mut self, bar: usize, offset: u64, data: &mut [u8]);
    /// A write to BAR `bar` that trapped.
    fn bar_write(&mut self, wiring: &mut dyn Wiring, bar: usize, offset: u64, data: &[u8]);
    /// BAR `bar` is decoded at `at` from now on: what can be mapped there is mapped.
    fn map(&mut self, wiring: &mut dyn Wiring, bar: usize, at: Gpa);
    /// BAR `bar` is decoded no more.
    fn unmap(&mut self, wiring: &mut dyn Wiring, bar: usize);
    /// A reset of the bus that it is on. No BAR is decoded.
    fn reset(&mut self, wiring: &mut dyn Wiring);
    /// It leaves its slot: nothing of it is wired when this returns. No BAR is decoded. It comes back as it was at first,
    /// to be put into a slot again, or not at all.
    fn detach(self: Box<Self>, wiring: &mut dyn Wiring) -> Option<Box<dyn PciFunction>>;
}

/// A function in its slot.
pub struct Function<F: PciFunction + ?Sized = dyn PciFunction> {
    inner: Box<F>,
    bars: BarRegisters,
    command: u16,
}

/// What a write to configuration space asks the bus to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Effect {
    /// Nothing.
    None,
    /// Look again at which BARs are decoded.
    Decode,
}

impl<F: PciFunction + ?Sized> Function<F> {
    /// Puts a function behind configuration space; memory decode is off.
    pub fn new(inner: Box<F>) -> Self {
        let bars = BarRegisters::new(*inner.bars());
        Self { inner, bars, command: 0 }
    }

    /// What is behind it.
    pub fn inner(&mut self) -> &mut F {
        &mut self.inner
    }

    /// What is behind it, to look at.
    pub fn look(&self) -> &F {
        &self.inner
    }

    /// What was behind it.
    pub fn into_inner(self) -> Box<F> {
        self.inner
    }

    /// The bus that it is on is reset.
    pub fn reset(&mut self, wiring: &mut dyn Wiring) {
        self.inner.reset(wiring);
        self.command = 0;
        self.bars.reset();
    }

    /// Whether memory decode is on.
    pub fn decodes(&self) -> bool {
        self.command & command::MEMORY != 0
    }

    /// Where its base address registers end, and where its expansion ROM's is.
    fn header(&self) -> (u16, u16) {
        match self.inner.header() {
            Header::Endpoint => (BARS_END, ROM),
            Header::Bridge => (BRIDGE_BARS_END, BRIDGE_ROM),
        }
    }

    /// The base address registers.
    pub fn bars(&mut self) -> &mut BarRegisters {
        &mut self.bars
    }

    /// The BARs' addresses where memory decode is on.
    pub fn decoded(&self) -> impl Iterator<Item = (usize, Gpa, u64)> + '_ {
        let on = self.decodes();
        (0..BARS)
            .filter(move |_| on)
            .filter_map(|bar| self.bars.address(bar).map(|(at, size)| (bar, at, size)))
    }

    /// Reads within one register.
    pub fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        let (bars_end, rom) = self.header();
        self.inner.config_read(offset, data);
        for (byte, at) in data.iter_mut().zip(offset..) {
            let shift = 8 * (at & 3);
            match at & !3 {
                config::COMMAND if at < config::STATUS => {
                    let owned = COMMAND_OWNED.to_le_bytes()[usize::from(at & 1)];
                    let ours = self.command.to_le_bytes()[usize::from(at & 1)];
                    *byte = (*byte & !owned) | (ours & owned);
                }
                word @ config::BAR0.. if word < bars_end => {
                    let index = usize::from(word - config::BAR0) / 4;
                    *byte = (self.bars.read(index) >> shift) as u8;
                }
                word if word == rom => *byte = 0,
                config::INTERRUPT_LINE if at <= config::INTERRUPT_PIN => *byte = 0,
                _ => {}
            }
        }
    }

    /// Writes within one register.
    pub fn config_write(&mut self, wiring: &mut dyn Wiring, offset: u16, data: &[u8]) -> Effect {
        let (bars_end, rom) = self.header();
        match offset & !3 {
            word @ config::BAR0.. if word < bars_end => {
                let index = usize::from(word - config::BAR0) / 4;
                let mut value = self.bars.read(index).to_le_bytes();
                merge(&mut value, offset & 3, data);
                self.bars.write(index, u32::from_le_bytes(value));
                return Effect::Decode;
            }
            word if word == rom => return Effect::None,
            // Behind the line and the pin a bridge has registers of its own.
            config::INTERRUPT_LINE if self.inner.header() == Header::Endpoint => {
                return Effect::None;
            }
            config::COMMAND => {
                let mut value = [0; 4];
                value[..2].copy_from_slice(&self.command.to_le_bytes());
                merge(&mut value, offset & 3, data);
                self.command = u16::from_le_bytes([value[0], value[1]]) & COMMAND_OWNED;
            }
            _ => {}
        }
        match self.inner.config_write(wiring, offset, data) {
            ConfigEffect::Reset => {
                self.command = 0;
                self.bars.reset();
                Effect::Decode
            }
            ConfigEffect::None if offset & !3 == config::COMMAND => Effect::Decode,
            ConfigEffect::None => Effect::None,
        }
    }
}

/// Puts `data` over `value` from byte `at` on, as far as it reaches.
fn merge(value: &mut [u8; 4], at: u16, data: &[u8]) {
    for (to, from) in value.iter_mut().skip(usize::from(at)).zip(data) {
        *to = *from;
    }
}
