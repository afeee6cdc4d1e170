//! The memory map that a guest is told, in the words of ACPI 6.5, table 15.2 (e820).

use crate::memory::GuestRam;
use crate::pci::layout::Windows;

/// End of conventional memory; the rest up to 1 MiB is the PC's.
pub(super) const LOW_END: u64 = 0x9_fc00;
/// Where an image may start.
pub(super) const IMAGE_START: u64 = 0x10_0000;

/// A range of guest-physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    /// First address.
    pub(super) at: u64,
    /// Bytes.
    pub(super) size: u64,
    /// Whether the guest may use it as it likes. Else it is reserved.
    pub(super) ram: bool,
}

impl Range {
    /// `AddressRangeMemory` or `AddressRangeReserved`; PVH and the zero page share the numbers.
    pub(super) fn kind(self) -> u32 {
        if self.ram { 1 } else { 2 }
    }
}

/// The map, by address, without overlaps.
pub(super) fn ranges(ram: &GuestRam, windows: Windows) -> Vec<Range> {
    let mut map = vec![
        Range { at: 0, size: LOW_END, ram: true },
        // The ACPI tables are here.
        Range { at: LOW_END, size: IMAGE_START - LOW_END, ram: false },
        Range { at: IMAGE_START, size: ram.low_end().saturating_sub(IMAGE_START), ram: true },
        // Linux uses the window only where it is reserved.
        Range { at: windows.ecam(), size: windows.ecam_size(), ram: false },
    ];
    let high = ram.parts().skip(1);
    map.extend(high.map(|part| Range { at: part.at.0, size: part.size, ram: true }));
    map
}
