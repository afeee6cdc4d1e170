//! ACPI tables (ACPI 6.5): what a stock kernel needs to find CPUs, interrupts, PCI and the power switch.
//!
//! They lie from [`TABLES`] on, in what the memory map calls reserved: RSDP first, the rest in the order in
//! which they refer to each other. SRAT and SLIT are there where the guest has NUMA nodes.

mod dsdt;
mod fadt;
mod loader;
mod madt;
mod mcfg;
mod slit;
mod srat;
mod tpm2;
mod viot;

pub use loader::{Files, LOADER_FILE, RSDP_FILE, TABLES_FILE, for_firmware};

use crate::Gpa;
use crate::memory::{GuestRam, Part};
use crate::pci::layout::Windows;
use acpi_tables::facs::FACS;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, sdt::Sdt};
use vm_memory::{Bytes, GuestMemoryError};

/// Where the tables start: where kernels also look for them by themselves.
pub const TABLES: u64 = 0xe_0000;
/// Where they have to end.
const END: u64 = 0x10_0000;
/// The firmware control structure wants so much; the others do not mind.
const ALIGN: u64 = 64;

/// OEM ID, OEM table ID and OEM revision of all tables.
const OEM: [u8; 6] = *b"BEAMLN";
const OEM_TABLE: [u8; 8] = *b"BEAMLINE";
const OEM_REVISION: u32 = 1;

/// The tables cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    /// They need more room.
    #[error("the ACPI tables need {need:#x} bytes, and there are {:#x}", END - TABLES)]
    Full {
        /// Bytes.
        need: u64,
    },
    /// The RAM does not reach so far.
    #[error("the ACPI tables do not fit into the guest's RAM")]
    Memory(#[from] GuestMemoryError),
}

/// What the tables tell of the machine.
#[derive(Clone, Debug)]
pub struct Board {
    /// The APIC ID of each vCPU, of which there are 1 to 64.
    pub apic_ids: Vec<u8>,
    /// Where BARs may be.
    pub windows: Windows,
    /// The IOMMU, if there is one.
    pub iommu: Option<Translation>,
    /// There is a TPM.
    pub tpm: bool,
    /// Its NUMA nodes; none: nothing is said of nodes.
    pub domains: Vec<Domain>,
}

/// A NUMA node, which ACPI calls a proximity domain. Its number is its place in the list.
#[derive(Clone, Debug)]
pub struct Domain {
    /// The APIC IDs of its vCPUs.
    pub apic_ids: Vec<u8>,
    /// Its memory.
    pub memory: Vec<Part>,
    /// The distance to each node: 10 to itself.
    pub distances: Vec<u8>,
}

/// An IOMMU and what is behind it: slots of bus 0.
#[derive(Clone, Debug)]
pub struct Translation {
    /// Its own slot: 1 to 31.
    pub slot: u8,
    /// The functions that it translates for: each 1 to 31.
    pub behind: Vec<u8>,
}

impl Translation {
    /// The endpoints behind it.
    pub fn endpoints(&self) -> Vec<u32> {
        self.behind.iter().map(|slot| endpoint(*slot)).collect()
    }
}

/// The endpoint that the function in `slot` of bus 0 is.
pub fn endpoint(slot: u8) -> u32 {
    u32::from(slot) << 3
}

/// Writes the tables and returns where the RSDP is.
pub fn write(ram: &GuestRam, board: &Board) -> Result<Gpa, AcpiError> {
    let rsdp = Gpa(TABLES);
    let tables = Tables::new(board, TABLES + (Rsdp::len() as u64).next_multiple_of(ALIGN));
    if tables.next > END {
        return Err(AcpiError::Full { need: tables.next - TABLES });
    }
    ram.memory().write_slice(&tables.rsdp(), rsdp)?;
    for (at, table) in &tables.done {
        ram.memory().write_slice(table, *at)?;
    }
    Ok(rsdp)
}

/// All tables but the RSDP, with their places.
struct Tables {
    next: u64,
    done: Vec<(Gpa, Vec<u8>)>,
    /// Two that hold addresses: the FADT of FACS and DSDT, the XSDT of so many tables.
    fadt: Gpa,
    xsdt: Gpa,
    listed: usize,
}

impl Tables {
    /// The tables of `board`, from the address `from` on.
    fn new(board: &Board, from: u64) -> Self {
        let (fadt, xsdt) = (Gpa(0), Gpa(0));
        let mut tables = Self { next: from, done: Vec::new(), fadt, xsdt, listed: 0 };
        let facs = tables.add(bytes(&FACS::new()));
        let dsdt = tables.add(dsdt::table(board).as_slice().to_vec());
        tables.fadt = tables.add(bytes(&fadt::table(facs, dsdt)));
        let mut listed = vec![
            tables.fadt,
            tables.add(madt::table(&board.apic_ids).as_slice().to_vec()),
            tables.add(bytes(&mcfg::table(board.windows))),
        ];
        if let Some(iommu) = &board.iommu {
            listed.push(tables.add(bytes(&viot::table(iommu))));
        }
        if board.tpm {
            listed.push(tables.add(tpm2::table().as_slice().to_vec()));
        }
        if !board.domains.is_empty() {
            for table in [srat::table(&board.domains), slit::table(&board.domains)] {
                listed.push(tables.add(table.as_slice().to_vec()));
            }
        }
        tables.listed = listed.len();
        let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
        for table in listed {
            xsdt.add_entry(table.0);
        }
        tables.xsdt = tables.add(bytes(&xsdt));
        tables
    }

    fn rsdp(&self) -> Vec<u8> {
        bytes(&Rsdp::new(OEM, self.xsdt.0))
    }

    fn add(&mut self, table: Vec<u8>) -> Gpa {
        let at = Gpa(self.next);
        self.next = (self.next + table.len() as u64).next_multiple_of(ALIGN);
        self.done.push((at, table));
        at
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// A table with the common header and nothing else yet.
fn empty(signature: [u8; 4], revision: u8) -> Sdt {
    /// ACPI 6.5, table 5.4.
    const HEADER: u32 = 36;
    Sdt::new(signature, HEADER, revision, OEM, OEM_TABLE, OEM_REVISION)
}

#[cfg(test)]
mod tests;
