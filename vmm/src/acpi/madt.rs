//! MADT (ACPI 6.5, section 5.2.12): interrupt controllers and, by their local APICs, the CPUs.

use super::empty;
use crate::devices::power;
use acpi_tables::sdt::Sdt;

/// Where KVM's local APICs and its I/O APIC are.
const LOCAL_APIC: u32 = 0xfee0_0000;
const IO_APIC: u32 = 0xfec0_0000;
/// `PCAT_COMPAT`: there are also two 8259s.
const PC_COMPATIBLE: u32 = 1;

/// Structure types (table 5.21).
const TYPE_LOCAL_APIC: u8 = 0;
const TYPE_IO_APIC: u8 = 1;
const TYPE_OVERRIDE: u8 = 2;
const TYPE_LOCAL_NMI: u8 = 4;

/// MPS INTI flags (table 5.26): as the bus says; active high and level-triggered.
const CONFORMS: u16 = 0;
const HIGH_LEVEL: u16 = 0b1101;

/// The table of a machine whose CPUs have these APIC IDs.
pub(super) fn table(apic_ids: &[u8]) -> Sdt {
    let mut madt = empty(*b"APIC", 5);
    let mut body = Vec::new();
    body.extend_from_slice(&LOCAL_APIC.to_le_bytes());
    body.extend_from_slice(&PC_COMPATIBLE.to_le_bytes());
    for (processor, id) in (0..=u8::MAX).zip(apic_ids) {
        // Processor and APIC ID, then: enabled.
        body.extend_from_slice(&[TYPE_LOCAL_APIC, 8, processor, *id, 1, 0, 0, 0]);
    }
    body.extend_from_slice(&[TYPE_IO_APIC, 12, 0, 0]);
    body.extend_from_slice(&IO_APIC.to_le_bytes());
    body.extend_from_slice(&u32::to_le_bytes(0)); // its first interrupt
    // The timer's ISA interrupt is wired to pin 2, and the SCI is level-triggered.
    for (source, pin, flags) in [(0, 2, CONFORMS), (power::SCI as u8, power::SCI, HIGH_LEVEL)] {
        body.extend_from_slice(&[TYPE_OVERRIDE, 10, 0, source]);
        body.extend_from_slice(&pin.to_le_bytes());
        body.extend_from_slice(&flags.to_le_bytes());
    }
    // Of all processors: LINT1.
    body.extend_from_slice(&[TYPE_LOCAL_NMI, 6, 0xff, 0, 0, 1]);
    madt.append_slice(&body);
    madt
}
