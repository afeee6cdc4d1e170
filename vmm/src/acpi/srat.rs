//! SRAT (ACPI 6.5, section 5.2.16): which CPUs and which memory are in which NUMA node.

use super::{Domain, empty};
use acpi_tables::sdt::Sdt;

/// Structure types (table 5.57).
const TYPE_LOCAL_APIC: u8 = 0;
const TYPE_MEMORY: u8 = 1;
/// Both kinds count only with this flag.
const ENABLED: u32 = 1;

/// The table. APIC IDs have 8 bits, as in the MADT. The crate's own knows memory and no local APICs.
pub(super) fn table(domains: &[Domain]) -> Sdt {
    let mut srat = empty(*b"SRAT", 3);
    let mut body = Vec::new();
    // Reserved: 1, then 0.
    body.extend_from_slice(&1u32.to_le_bytes());
    body.extend_from_slice(&0u64.to_le_bytes());
    for (number, domain) in (0u32..).zip(domains) {
        let [low, high @ ..] = number.to_le_bytes();
        for id in &domain.apic_ids {
            body.extend_from_slice(&[TYPE_LOCAL_APIC, 16, low, *id]);
            body.extend_from_slice(&ENABLED.to_le_bytes());
            body.push(0); // of an Itanium's
            body.extend_from_slice(&high);
            body.extend_from_slice(&0u32.to_le_bytes()); // clock domain
        }
        for part in &domain.memory {
            body.extend_from_slice(&[TYPE_MEMORY, 40]);
            body.extend_from_slice(&number.to_le_bytes());
            body.extend_from_slice(&[0; 2]);
            body.extend_from_slice(&part.at.0.to_le_bytes());
            body.extend_from_slice(&part.size.to_le_bytes());
            body.extend_from_slice(&[0; 4]);
            body.extend_from_slice(&ENABLED.to_le_bytes());
            body.extend_from_slice(&[0; 8]);
        }
    }
    srat.append_slice(&body);
    srat
}
