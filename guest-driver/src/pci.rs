//! PCI as the driver needs it: find a function, learn its base addresses, switch it on, route its MSI-X.
//!
//! Base addresses were assigned before the guest started. Their sizes are not probed: that would move the
//! BARs under running mappings. What is used of a BAR is checked against [`Transport::reaches`] instead.

use crate::transport::{Gpa, Slot, Transport, Width};
use beamline_abi::pci::{capability, command, config, msix, status};

/// Slots of bus 0.
const SLOTS: u8 = 32;
/// Capabilities are 4-byte aligned in 192 bytes: a longer list is a loop.
const MAX_CAPABILITIES: usize = 48;
/// Where the first capability may lie.
const FIRST_CAPABILITY: u8 = 0x40;

/// What is wrong with a PCI function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PciError {
    /// No such function.
    #[error("no PCI function {vendor:04x}:{device:04x} on bus 0; attach one to this guest")]
    Missing {
        /// Vendor ID.
        vendor: u16,
        /// Device ID.
        device: u16,
    },
    /// A BAR that is needed has no address.
    #[error(
        "slot {slot}: BAR{bar} is not a memory BAR with an address below the reach of this guest"
    )]
    Bar {
        /// The function's slot.
        slot: u8,
        /// The BAR.
        bar: u8,
    },
    /// The capability list is broken.
    #[error(
        "slot {slot}: the capability at {offset:#x} is not a capability, or the list has a loop"
    )]
    Capability {
        /// The function's slot.
        slot: u8,
        /// Offset in configuration space.
        offset: u8,
    },
    /// MSI-X is absent or too small.
    #[error("slot {slot}: MSI-X vector {vector} is needed, but the function has {vectors} vectors")]
    Vector {
        /// The function's slot.
        slot: u8,
        /// The vector that is needed.
        vector: u16,
        /// How many there are; 0 without MSI-X.
        vectors: u16,
    },
}

/// Where an MSI goes and what it says, as the interrupt controller defines them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiTarget {
    /// Message address.
    pub address: u64,
    /// Message data.
    pub data: u32,
}

/// A function that was found, with what it says of itself.
#[derive(Clone, Copy, Debug)]
pub struct Function {
    slot: Slot,
    bars: [Option<Gpa>; 6],
    msix: Option<Msix>,
}

#[derive(Clone, Copy, Debug)]
struct Msix {
    capability: u16,
    table_bar: u8,
    table_offset: u32,
    vectors: u16,
}

/// The first function of this kind at or behind slot `from`.
pub fn find<T: Transport>(
    t: &mut T,
    vendor: u16,
    device: u16,
    from: Slot,
) -> Result<Function, PciError> {
    let wanted = u32::from(device) << 16 | u32::from(vendor);
    (from.0..SLOTS)
        .map(Slot)
        .find(|&slot| t.config_read(slot, config::VENDOR_ID, Width::Dword) == wanted)
        .ok_or(PciError::Missing { vendor, device })
        .and_then(|slot| Function::probe(t, slot))
}

impl Function {
    fn probe<T: Transport>(t: &mut T, slot: Slot) -> Result<Self, PciError> {
        let mut function = Self { slot, bars: read_bars(t, slot), msix: None };
        function.msix = function
            .capabilities(t, |_, id, offset| (id == capability::MSIX).then_some(offset))?
            .map(|capability| {
                let control = t.config_read(slot, capability + msix::CONTROL, Width::Word);
                let table = t.config_read(slot, capability + msix::TABLE, Width::Dword);
                Msix {
                    capability,
                    table_bar: (table & 7) as u8,
                    table_offset: table & !7,
                    vectors: (control & 0x7ff) as u16 + 1,
                }
            });
        Ok(function)
    }

    /// The function's slot.
    pub const fn slot(&self) -> Slot {
        self.slot
    }

    /// The address of `len` bytes at `offset` of a memory BAR.
    pub fn bar<T: Transport>(
        &self,
        t: &T,
        bar: u8,
        offset: u64,
        len: u64,
    ) -> Result<Gpa, PciError> {
        self.bars
            .get(usize::from(bar))
            .copied()
            .flatten()
            .and_then(|base| base.0.checked_add(offset))
            .filter(|start| start.checked_add(len).is_some() && t.reaches(Gpa(*start), len))
            .map(Gpa)
            .ok_or(PciError::Bar { slot: self.slot.0, bar })
    }

    /// Switches on memory decoding and DMA, and switches off legacy interrupts.
    pub fn enable<T: Transport>(&self, t: &mut T) {
        let old = t.config_read(self.slot, config::COMMAND, Width::Word);
        let on = command::MEMORY | command::BUS_MASTER | command::INTX_DISABLE;
        t.config_write(self.slot, config::COMMAND, Width::Word, old | u32::from(on));
    }

    /// Walks the capability list until `take` answers; it gets the ID and the offset.
    pub fn capabilities<T: Transport, R>(
        &self,
        t: &mut T,
        mut take: impl FnMut(&mut T, u8, u16) -> Option<R>,
    ) -> Result<Option<R>, PciError> {
        let slot = self.slot;
        if t.config_read(slot, config::STATUS, Width::Word) & u32::from(status::CAPABILITIES) == 0 {
            return Ok(None);
        }
        let mut offset = t.config_read(slot, config::CAPABILITIES, Width::Byte) as u8 & !3;
        for _ in 0..MAX_CAPABILITIES {
            if offset == 0 {
                return Ok(None);
            }
            if offset < FIRST_CAPABILITY {
                break;
            }
            let head = t.config_read(slot, u16::from(offset), Width::Word);
            if let Some(found) = take(t, head as u8, u16::from(offset)) {
                return Ok(Some(found));
            }
            offset = (head >> 8) as u8 & !3;
        }
        Err(PciError::Capability { slot: slot.0, offset })
    }

    /// Programs and unmasks MSI-X vectors 0 and up, then enables MSI-X.
    pub fn enable_msix<T: Transport>(
        &self,
        t: &mut T,
        targets: &[MsiTarget],
    ) -> Result<(), PciError> {
        let slot = self.slot.0;
        let needed = targets.len() as u16;
        let Some(msix) = self.msix.filter(|m| needed <= m.vectors) else {
            let vectors = self.msix.map_or(0, |m| m.vectors);
            return Err(PciError::Vector { slot, vector: needed.saturating_sub(1), vectors });
        };
        let bytes = u64::from(msix::ENTRY_SIZE) * u64::from(needed);
        let table = self.bar(t, msix.table_bar, u64::from(msix.table_offset), bytes)?;
        for (i, target) in targets.iter().enumerate() {
            let entry = table.at(u64::from(msix::ENTRY_SIZE) * i as u64);
            t.mmio_write(entry, Width::Dword, target.address & 0xffff_ffff);
            t.mmio_write(entry.at(4), Width::Dword, target.address >> 32);
            t.mmio_write(entry.at(8), Width::Dword, u64::from(target.data));
            t.mmio_write(entry.at(12), Width::Dword, 0);
        }
        let control = msix.capability + msix::CONTROL;
        let old = t.config_read(self.slot, control, Width::Word);
        let new = old & !u32::from(msix::CONTROL_MASK_ALL) | u32::from(msix::CONTROL_ENABLE);
        t.config_write(self.slot, control, Width::Word, new);
        Ok(())
    }
}

/// The addresses of the memory BARs; `None` for I/O BARs, upper halves and BARs without an address.
fn read_bars<T: Transport>(t: &mut T, slot: Slot) -> [Option<Gpa>; 6] {
    let mut bars = [None; 6];
    let mut index = 0;
    while index < 6 {
        let register = config::BAR0 + 4 * index as u16;
        let low = t.config_read(slot, register, Width::Dword);
        let wide = low & 0b111 == 0b100 && index < 5;
        let high = if wide { t.config_read(slot, register + 4, Width::Dword) } else { 0 };
        let address = u64::from(high) << 32 | u64::from(low & !0xf);
        if low & 1 == 0 && address != 0 {
            bars[index] = Some(Gpa(address));
        }
        index += if wide { 2 } else { 1 };
    }
    bars
}
