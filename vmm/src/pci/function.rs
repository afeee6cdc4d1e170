//! Configuration space as the guest sees it: the function's own, except for the registers that the VMM
//! owns (BARs, the enables in the command register, expansion ROM, INTx).

use super::bar::{BARS, BarRegisters, BarShapes};
use super::wiring::Wiring;
use crate::Gpa;
use beamline_abi::pci::{command, config};

/// Bits of the command register that the VMM answers for.
const COMMAND_OWNED: u16 =
    command::IO | command::MEMORY | command::BUS_MASTER | command::INTX_DISABLE;
/// Expansion ROM base address (PCI 3.0, section 6.1).
const ROM: u16 = 0x30;

/// What a write to configuration space did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum ConfigEffect {
    /// Nothing that the bus must know.
    None,
    /// The function was reset: its configuration space is back to its defaults.
    Reset,
}

/// What a PCI slot needs of a function. Calls come from one thread. Offsets and lengths are within
/// configuration space or the BAR; configuration accesses are within one 32-bit register.
pub trait PciFunction: Send {
    /// The function's name in messages.
    fn label(&self) -> &str;
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
}

/// A function in its slot.
pub struct Function {
    inner: Box<dyn PciFunction>,
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

impl Function {
    /// Puts a function behind configuration space; memory decode is off.
    pub fn new(inner: Box<dyn PciFunction>) -> Self {
        let bars = BarRegisters::new(*inner.bars());
        Self { inner, bars, command: 0 }
    }

    /// What is behind it.
    pub fn inner(&mut self) -> &mut dyn PciFunction {
        &mut *self.inner
    }

    /// The base address registers.
    pub fn bars(&mut self) -> &mut BarRegisters {
        &mut self.bars
    }

    /// The BARs' addresses where memory decode is on.
    pub fn decoded(&self) -> impl Iterator<Item = (usize, Gpa, u64)> + '_ {
        let on = self.command & command::MEMORY != 0;
        (0..BARS)
            .filter(move |_| on)
            .filter_map(|bar| self.bars.address(bar).map(|(at, size)| (bar, at, size)))
    }

    /// Reads within one register.
    pub fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        self.inner.config_read(offset, data);
        for (byte, at) in data.iter_mut().zip(offset..) {
            let shift = 8 * (at & 3);
            match at & !3 {
                config::COMMAND if at < config::STATUS => {
                    let owned = COMMAND_OWNED.to_le_bytes()[usize::from(at & 1)];
                    let ours = self.command.to_le_bytes()[usize::from(at & 1)];
                    *byte = (*byte & !owned) | (ours & owned);
                }
                word @ config::BAR0..0x28 => {
                    let index = usize::from(word - config::BAR0) / 4;
                    *byte = (self.bars.read(index) >> shift) as u8;
                }
                ROM => *byte = 0,
                config::INTERRUPT_LINE if at <= config::INTERRUPT_PIN => *byte = 0,
                _ => {}
            }
        }
    }

    /// Writes within one register.
    pub fn config_write(&mut self, wiring: &mut dyn Wiring, offset: u16, data: &[u8]) -> Effect {
        match offset & !3 {
            word @ config::BAR0..0x28 => {
                let index = usize::from(word - config::BAR0) / 4;
                let mut value = self.bars.read(index).to_le_bytes();
                merge(&mut value, offset & 3, data);
                self.bars.write(index, u32::from_le_bytes(value));
                return Effect::Decode;
            }
            ROM | config::INTERRUPT_LINE => return Effect::None,
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
