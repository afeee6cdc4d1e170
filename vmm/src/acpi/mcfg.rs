//! MCFG (PCI Firmware Specification 3.3, section 4.1.2): where configuration space is as memory.

use super::{OEM, OEM_REVISION, OEM_TABLE};
use crate::pci::layout::Windows;
use acpi_tables::mcfg::MCFG;

/// Segment 0, from bus 0 on.
pub(super) fn table(windows: Windows) -> MCFG {
    let mut mcfg = MCFG::new(OEM, OEM_TABLE, OEM_REVISION);
    mcfg.add_ecam(windows.ecam(), 0, 0, windows.last_bus());
    mcfg
}
