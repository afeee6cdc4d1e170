//! VIOT (ACPI 6.5, section 5.2.32): the virtio IOMMU, and which functions are behind it.

use super::{OEM, OEM_REVISION, OEM_TABLE, Translation};
use acpi_tables::viot::{PciDevice, PciRange, VIOT, VirtIoPciIommu};

/// A range for each run of slots that follow each other. Endpoints have the numbers that the functions have
/// on the bus.
pub(super) fn table(iommu: &Translation) -> VIOT {
    let mut viot = VIOT::new(OEM, OEM_TABLE, OEM_REVISION);
    let unit = viot.add_virtio_pci_iommu(VirtIoPciIommu::new(at(iommu.slot)));
    for run in iommu.behind.chunk_by(|a, b| a.checked_add(1) == Some(*b)) {
        if let [first, ..] = run
            && let [.., last] = run
        {
            viot.add_pci_range(PciRange::new(at(*first), at(*last), &unit));
        }
    }
    viot
}

/// The function in `slot` of bus 0. Slots are below 32.
fn at(slot: u8) -> PciDevice {
    PciDevice::new(0, 0, slot, 0)
}
