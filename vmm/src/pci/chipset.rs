//! What is on the bus of the machine itself: a host bridge, and for firmware that knows Intel's Q35 the parts of
//! it that such firmware looks at.
//!
//! Addresses that a chipset lets firmware choose are fixed here at the values that OVMF chooses, and cannot be
//! changed: the registers tell that it was done already.

use super::SLOTS;
use super::layout::FIRMWARE_ECAM;
use crate::devices::power;
use beamline_abi::pacer::VENDOR_ID;
use beamline_abi::pci::{command, config};

/// Device ID of our own host bridge.
pub const HOST_BRIDGE: u16 = 0x00ff;
/// Intel's vendor ID, the host bridge of Q35 and the ISA bridge of ICH9 (Intel's data sheets of the 3 Series Express
/// Chipset Family and of the I/O Controller Hub 9).
const INTEL: u16 = 0x8086;
const Q35_HOST: u16 = 0x29c0;
const ICH9_ISA: u16 = 0x2918;
/// Slot of the ISA bridge.
const ISA_SLOT: usize = 31;

/// Class codes (PCI code and ID assignment, 06 00 00 and 06 01 00), above a revision.
const HOST_CLASS: u32 = 0x06_00_00 << 8;
const ISA_CLASS: u32 = 0x06_01_00 << 8;
const CLASS: u16 = 8;

/// PCIEXBAR of the host bridge: where configuration space is, 256 buses, enabled.
const PCIEXBAR: u16 = 0x60;
const PCIEXBAR_ENABLE: u32 = 1;
/// PMBASE and ACPI_CNTL of the ISA bridge: where power management is; enabled, with IRQ 9.
const PMBASE: u16 = 0x40;
const PMBASE_IO: u32 = 1;
const ACPI_CNTL: u16 = 0x44;
const ACPI_CNTL_ENABLE: u32 = 1 << 7;

/// Bits of the command register that hold what is written: firmware looks whether they do.
const COMMAND: u16 = command::IO | command::MEMORY | command::BUS_MASTER;

/// Which machine it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// A host bridge of our own, for kernels that are booted without firmware.
    #[default]
    Plain,
    /// What firmware for Q35 insists on.
    Q35,
}

/// The machine's own functions.
#[derive(Debug, Default)]
pub struct Chipset {
    kind: Kind,
    /// Command registers of the host bridge and the ISA bridge.
    commands: [u16; 2],
}

impl Chipset {
    /// The chipset of a machine of this kind.
    pub fn new(kind: Kind) -> Self {
        Self { kind, commands: [0; 2] }
    }

    /// The slot behind the last one that is free for functions.
    pub fn end(&self) -> usize {
        match self.kind {
            Kind::Plain => SLOTS,
            Kind::Q35 => ISA_SLOT,
        }
    }

    /// Whether a function of the machine itself is in `slot`.
    pub fn has(&self, slot: usize) -> bool {
        slot == 0 || (self.kind == Kind::Q35 && slot == ISA_SLOT)
    }

    /// A read of configuration space, within one register of a function that is here.
    pub fn read(&self, slot: usize, offset: u16, data: &mut [u8]) {
        let bytes = self.word(slot, offset & !3).to_le_bytes();
        for (to, from) in data.iter_mut().zip(bytes.iter().skip(usize::from(offset & 3))) {
            *to = *from;
        }
    }

    /// A write of configuration space, within one register of a function that is here.
    pub fn write(&mut self, slot: usize, offset: u16, data: &[u8]) {
        if self.kind == Kind::Plain {
            return;
        }
        let Some(command) = self.commands.get_mut(usize::from(slot != 0)) else { return };
        for (at, byte) in (offset..).zip(data) {
            if let Some(shift) = at.checked_sub(config::COMMAND).filter(|b| *b < 2).map(|b| 8 * b) {
                let kept = *command & !(0xff << shift);
                *command = (kept | u16::from(*byte) << shift) & COMMAND;
            }
        }
    }

    fn word(&self, slot: usize, at: u16) -> u32 {
        let identity = |device: u16, vendor: u16| u32::from(device) << 16 | u32::from(vendor);
        let [host, isa] = self.commands.map(u32::from);
        match (self.kind, slot, at) {
            (Kind::Plain, _, 0) => identity(HOST_BRIDGE, VENDOR_ID),
            (Kind::Q35, 0, 0) => identity(Q35_HOST, INTEL),
            (Kind::Q35, 0, config::COMMAND) => host,
            // Below 4 GiB; the upper half is 0.
            (Kind::Q35, 0, PCIEXBAR) => FIRMWARE_ECAM as u32 | PCIEXBAR_ENABLE,
            (_, 0, CLASS) => HOST_CLASS,
            (Kind::Q35, ISA_SLOT, 0) => identity(ICH9_ISA, INTEL),
            (Kind::Q35, ISA_SLOT, config::COMMAND) => isa,
            (Kind::Q35, ISA_SLOT, CLASS) => ISA_CLASS,
            (Kind::Q35, ISA_SLOT, PMBASE) => u32::from(power::EVENT) | PMBASE_IO,
            (Kind::Q35, ISA_SLOT, ACPI_CNTL) => ACPI_CNTL_ENABLE,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(chipset: &Chipset, slot: usize, at: u16) -> u32 {
        let mut bytes = [0; 4];
        chipset.read(slot, at, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    #[test]
    fn each_kind_has_its_own_bridges() {
        let plain = Chipset::default();
        assert_eq!(word(&plain, 0, 0), 0x00ff << 16 | u32::from(VENDOR_ID));
        assert_eq!(word(&plain, 0, 8), HOST_CLASS);
        assert!(plain.has(0) && !plain.has(31) && plain.end() == 32);
        let q35 = Chipset::new(Kind::Q35);
        assert_eq!((word(&q35, 0, 0), word(&q35, 31, 0)), (0x29c0_8086, 0x2918_8086));
        assert_eq!((word(&q35, 0, 8), word(&q35, 31, 8)), (HOST_CLASS, ISA_CLASS));
        assert_eq!((word(&q35, 0, 0x60), word(&q35, 0, 0x64)), (0xe000_0001, 0));
        assert_eq!((word(&q35, 31, 0x40), word(&q35, 31, 0x44)), (0x601, 0x80));
        assert!(q35.has(0) && q35.has(31) && !q35.has(1) && q35.end() == 31);
        let mut byte = [0];
        q35.read(31, 3, &mut byte);
        assert_eq!(byte, [0x29]);
    }

    #[test]
    fn only_command_bits_hold_what_is_written() {
        let mut q35 = Chipset::new(Kind::Q35);
        for slot in [0, 31] {
            for at in (0..0x1000).step_by(4) {
                let before = word(&q35, slot, at);
                q35.write(slot, at, &[0xff; 4]);
                let after = if at == config::COMMAND { 7 } else { before };
                assert_eq!(word(&q35, slot, at), after, "{slot} {at:#x}");
            }
            q35.write(slot, config::COMMAND, &[1]);
            q35.write(slot, config::COMMAND + 1, &[0xff]);
            assert_eq!(word(&q35, slot, config::COMMAND), 1);
        }
        let mut plain = Chipset::default();
        plain.write(0, config::COMMAND, &[7]);
        assert_eq!(word(&plain, 0, config::COMMAND), 0);
    }
}
