//! SLIT (ACPI 6.5, section 5.2.17): how far NUMA nodes are from each other.

use super::{Domain, empty};
use acpi_tables::sdt::Sdt;

/// The table: a row for each node. The crate's own knows only distances that are the same both ways.
pub(super) fn table(domains: &[Domain]) -> Sdt {
    let mut slit = empty(*b"SLIT", 1);
    slit.append_slice(&(domains.len() as u64).to_le_bytes());
    for domain in domains {
        slit.append_slice(&domain.distances);
    }
    slit
}
