//! Base address registers, as configuration space shows them (PCI 3.0, section 6.2.5).

use super::PciError;

/// What kind of memory a BAR asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// Below 4 GiB; one register.
    Memory32,
    /// Anywhere; two registers.
    Memory64,
}

/// One BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Its (first) register, 0 to 5.
    pub index: u8,
    /// Bytes: a power of two, at least 4096.
    pub size: u64,
    /// Where it may lie.
    pub kind: BarKind,
    /// Reads have no side effects.
    pub prefetchable: bool,
}

impl Bar {
    /// A 64-bit BAR for registers.
    pub const fn registers(index: u8, size: u64) -> Self {
        Self { index, size, kind: BarKind::Memory64, prefetchable: false }
    }
    /// A 64-bit prefetchable BAR.
    pub const fn memory(index: u8, size: u64) -> Self {
        Self { index, size, kind: BarKind::Memory64, prefetchable: true }
    }

    /// How many registers it takes.
    pub const fn registers_taken(&self) -> u8 {
        match self.kind {
            BarKind::Memory32 => 1,
            BarKind::Memory64 => 2,
        }
    }

    /// The read-only type bits and the writable address bits of its register pair. Writing all ones and
    /// reading back then yields the size.
    pub(super) fn bits(&self) -> Result<(u64, u64), PciError> {
        let bad = PciError::BadBar { index: self.index, size: self.size };
        let room = match self.kind {
            BarKind::Memory32 => self.index <= 5 && self.size <= 1 << 31,
            BarKind::Memory64 => self.index <= 4,
        };
        if !room || !self.size.is_power_of_two() || self.size < 4096 {
            return Err(bad);
        }
        let kind = match self.kind {
            BarKind::Memory32 => 0b000,
            BarKind::Memory64 => 0b100,
        };
        let prefetchable = if self.prefetchable { 0b1000 } else { 0 };
        Ok((kind | prefetchable, !(self.size - 1)))
    }
}
