//! The tables for firmware, which places them itself and corrects the addresses in them (QEMU's table loader:
//! hw/acpi/bios-linker-loader.c, and edk2's QemuLoader.h).
//!
//! The tables are made for address 0, so that each address in them is an offset in their file. The commands say
//! which those are, and which sums change with them.

use super::{ALIGN, Board, Tables};

/// Name of the file of the tables.
pub const TABLES_FILE: &str = "etc/acpi/tables";
/// Name of the RSDP's file.
pub const RSDP_FILE: &str = "etc/acpi/rsdp";
/// Name of the file of the commands.
pub const LOADER_FILE: &str = "etc/table-loader";

/// Bytes of a command, and of a file's name in it.
const COMMAND: usize = 128;
const NAME: usize = 56;
/// Commands.
const ALLOCATE: u32 = 1;
const ADD_POINTER: u32 = 2;
const ADD_CHECKSUM: u32 = 3;
/// Zones: anywhere below 4 GiB; where a kernel looks for an RSDP.
const ZONE_HIGH: u8 = 1;
const ZONE_FSEG: u8 = 2;

/// Offsets in tables (ACPI 6.5, tables 5.3, 5.4 and 5.9).
const HEADER: u32 = 36;
const HEADER_SUM: u32 = 9;
const FADT_FACS: u32 = 36;
const FADT_DSDT: u32 = 40;
const RSDP_SUM: u32 = 8;
const RSDP_XSDT: u32 = 24;
const RSDP_LONG_SUM: u32 = 32;
/// Bytes of an RSDP that its first sum is about: revision 0's.
const RSDP_SHORT: u32 = 20;
/// RSDPs are looked for at multiples of this.
const RSDP_ALIGN: u32 = 16;

/// Files of the firmware configuration device.
#[derive(Debug)]
pub struct Files {
    /// All tables but the RSDP.
    pub tables: Vec<u8>,
    /// The RSDP.
    pub rsdp: Vec<u8>,
    /// The commands.
    pub loader: Vec<u8>,
}

/// The tables of `board`, for firmware that places them.
pub fn for_firmware(board: &Board) -> Files {
    let laid = Tables::new(board, 0);
    // Far below 4 GiB: there are 64 vCPUs at most.
    let (fadt, xsdt) = (laid.fadt.0 as u32, laid.xsdt.0 as u32);
    let mut rsdp = laid.rsdp();
    let mut tables = vec![0; laid.next as usize];
    for (at, table) in &laid.done {
        let from = at.0 as usize;
        tables[from..from + table.len()].copy_from_slice(table);
    }
    let mut loader = Vec::new();
    loader.extend(allocate(TABLES_FILE, ALIGN as u32, ZONE_HIGH));
    loader.extend(allocate(RSDP_FILE, RSDP_ALIGN, ZONE_FSEG));
    for at in [fadt + FADT_FACS, fadt + FADT_DSDT] {
        loader.extend(pointer(TABLES_FILE, at, 4));
    }
    for entry in 0..laid.listed as u32 {
        loader.extend(pointer(TABLES_FILE, xsdt + HEADER + 8 * entry, 8));
    }
    loader.extend(pointer(RSDP_FILE, RSDP_XSDT, 8));
    for table in [fadt, xsdt] {
        let length = length(&tables, table as usize);
        // A sum is taken with the field being 0.
        tables[(table + HEADER_SUM) as usize] = 0;
        loader.extend(checksum(TABLES_FILE, table + HEADER_SUM, table, length));
    }
    for (at, length) in [(RSDP_SUM, RSDP_SHORT), (RSDP_LONG_SUM, rsdp.len() as u32)] {
        rsdp[at as usize] = 0;
        loader.extend(checksum(RSDP_FILE, at, 0, length));
    }
    Files { tables, rsdp, loader }
}

/// The length that a table says it has.
fn length(tables: &[u8], at: usize) -> u32 {
    tables[at + 4..at + 8].iter().rev().fold(0, |n, byte| n << 8 | u32::from(*byte))
}

fn command(kind: u32, parts: &[&[u8]]) -> [u8; COMMAND] {
    let mut command = [0; COMMAND];
    let bytes = kind.to_le_bytes().into_iter().chain(parts.concat());
    command.iter_mut().zip(bytes).for_each(|(to, byte)| *to = byte);
    command
}

fn name(file: &str) -> [u8; NAME] {
    let mut field = [0; NAME];
    field.iter_mut().zip(file.bytes()).for_each(|(to, byte)| *to = byte);
    field
}

fn allocate(file: &str, align: u32, zone: u8) -> [u8; COMMAND] {
    command(ALLOCATE, &[&name(file), &align.to_le_bytes(), &[zone]])
}

/// The `size` bytes at `at` in `file` are an offset in the file of the tables.
fn pointer(file: &str, at: u32, size: u8) -> [u8; COMMAND] {
    command(ADD_POINTER, &[&name(file), &name(TABLES_FILE), &at.to_le_bytes(), &[size]])
}

/// The byte at `at` in `file` makes `length` bytes from `start` on sum to 0.
fn checksum(file: &str, at: u32, start: u32, length: u32) -> [u8; COMMAND] {
    let numbers = [at, start, length].map(u32::to_le_bytes);
    command(ADD_CHECKSUM, &[&name(file), &numbers.concat()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acpi::{Domain, Translation};
    use crate::pci::layout::Windows;
    use std::collections::HashMap;

    fn number(bytes: &[u8]) -> u64 {
        bytes.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte))
    }

    fn text(field: &[u8]) -> String {
        field.iter().take_while(|b| **b != 0).map(|b| char::from(*b)).collect()
    }

    /// Does what the commands say, as firmware does; memory by file, and where each is.
    fn load(files: Files) -> HashMap<String, (u64, Vec<u8>)> {
        let mut offered = HashMap::from([(TABLES_FILE, files.tables), (RSDP_FILE, files.rsdp)]);
        let mut placed: HashMap<String, (u64, Vec<u8>)> = HashMap::new();
        let mut next = 0x7e00_0000;
        assert!(files.loader.len().is_multiple_of(COMMAND));
        for c in files.loader.chunks_exact(COMMAND) {
            let file = text(&c[4..60]);
            match number(&c[..4]) {
                1 => {
                    assert!(number(&c[60..64]).is_power_of_two());
                    let bytes = offered.remove(file.as_str()).expect("each is placed once");
                    placed.insert(file, (next, bytes));
                    next += 0x10_0000;
                }
                2 => {
                    let base = placed[&text(&c[60..116])].0;
                    let (at, size) = (number(&c[116..120]) as usize, usize::from(c[120]));
                    let field = &mut placed.get_mut(&file).unwrap().1[at..at + size];
                    let value = number(field) + base;
                    field.copy_from_slice(&value.to_le_bytes()[..size]);
                }
                3 => {
                    let [at, start, length] = [60, 64, 68].map(|i| number(&c[i..i + 4]) as usize);
                    let bytes = &mut placed.get_mut(&file).unwrap().1;
                    let sum = bytes[start..start + length]
                        .iter()
                        .fold(0u8, |sum, byte| sum.wrapping_add(*byte));
                    bytes[at] = sum.wrapping_neg();
                }
                other => panic!("command {other}"),
            }
        }
        assert!(offered.is_empty());
        placed
    }

    #[test]
    fn loaded_tables_are_found_and_sum_to_zero() {
        let windows = Windows::of_firmware(512 << 20, 512 << 20);
        let iommu = Some(Translation { slot: 2, behind: vec![1] });
        let domain = |id| Domain { apic_ids: vec![id], memory: vec![], distances: vec![10, 10] };
        let (apic_ids, domains) = (vec![0, 1], vec![domain(0), domain(1)]);
        let placed = load(for_firmware(&Board { apic_ids, windows, iommu, tpm: true, domains }));
        let (base, tables) = &placed[TABLES_FILE];
        let rsdp = &placed[RSDP_FILE].1;
        let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!((&rsdp[..8], sum(&rsdp[..20]), sum(rsdp)), (&b"RSD PTR "[..], 0, 0));
        let table = |address: u64| {
            let bytes = &tables[(address - base) as usize..];
            let bytes = &bytes[..number(&bytes[4..8]) as usize];
            assert_eq!(sum(bytes), 0, "{}", text(&bytes[..4]));
            bytes
        };
        let xsdt = table(number(&rsdp[24..32]));
        let listed: Vec<&[u8]> =
            xsdt[36..].chunks_exact(8).map(|entry| table(number(entry))).collect();
        let signatures: Vec<&[u8]> = listed.iter().map(|t| &t[..4]).collect();
        assert_eq!(signatures, [b"FACP", b"APIC", b"MCFG", b"VIOT", b"TPM2", b"SRAT", b"SLIT"]);
        let facs = number(&listed[0][36..40]);
        assert!(facs.is_multiple_of(64));
        assert_eq!(&tables[(facs - base) as usize..][..4], b"FACS");
        assert_eq!(&table(number(&listed[0][40..44]))[..4], b"DSDT");
        assert_eq!(number(&listed[2][44..52]), windows.ecam());
        assert_eq!(number(&listed[4][40..48]), 0xfed4_0040, "not an address in a file");
    }
}
