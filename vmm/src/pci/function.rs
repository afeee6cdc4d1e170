//! Configuration space as the guest sees it: the function's own, except for the registers that the VMM
//! owns (BARs, the enables in the command register, expansion ROM, INTx).

use super::bar::{BARS, BarRegisters};
use crate::passthrough::{Assigned, ConfigEffect};
use crate::platform::Platform;
use beamline_abi::pci::{command, config};

/// Bits of the command register that the VMM answers for.
const COMMAND_OWNED: u16 =
    command::IO | command::MEMORY | command::BUS_MASTER | command::INTX_DISABLE;
/// Expansion ROM base address (PCI 3.0, section 6.1).
const ROM: u16 = 0x30;

/// A function in its slot.
pub struct Function {
    assigned: Box<dyn Assigned>,
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
    pub fn new(assigned: Box<dyn Assigned>) -> Self {
        let bars = BarRegisters::new(*assigned.bars());
        Self { assigned, bars, command: 0 }
    }

    /// What is behind it.
    pub fn assigned(&mut self) -> &mut dyn Assigned {
        &mut *self.assigned
    }

    /// The base address registers.
    pub fn bars(&mut self) -> &mut BarRegisters {
        &mut self.bars
    }

    /// The BARs' addresses where memory decode is on.
    pub fn decoded(&self) -> impl Iterator<Item = (usize, crate::Gpa, u64)> + '_ {
        let on = self.command & command::MEMORY != 0;
        (0..BARS)
            .filter(move |_| on)
            .filter_map(|bar| self.bars.address(bar).map(|(at, size)| (bar, at, size)))
    }

    /// Reads within one register.
    pub fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        self.assigned.config_read(offset, data);
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
    pub fn config_write(&mut self, platform: &mut Platform, offset: u16, data: &[u8]) -> Effect {
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
        match self.assigned.config_write(platform, offset, data) {
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
