//! UEFI firmware (OVMF of edk2): its flash, and what it is told by the firmware configuration device.
//!
//! The first vCPU starts as a real one does, in real mode at the reset vector, 16 bytes below 4 GiB: in the flash.

use super::map;
use crate::acpi::{self, Board};
use crate::config::Firmware as Files;
use crate::devices::flash::{Flash, FlashError};
use crate::devices::fw_cfg::FwCfg;
use crate::memory::GuestRam;
use kvm_bindings::{kvm_regs, kvm_sregs};

/// Size of the window above 4 GiB that OVMF shall use: MiB, in decimal. It starts at a multiple of its size above
/// the RAM, and so stays below the end of our own.
const HIGH_WINDOW: (&str, &str) = ("opt/ovmf/X-PciMmio64Mb", "131072");

/// What firmware uses of the machine beyond what every guest has.
#[derive(Debug)]
pub struct Firmware {
    /// Its code and variables.
    pub flash: Flash,
    /// What it is told.
    pub config: FwCfg,
}

/// Looks whether the firmware's files make a flash, and lets them go again.
pub fn check(files: &Files) -> Result<(), FlashError> {
    Flash::look(&files.code, &files.variables)
}

/// Opens the firmware in `files` and puts together what it is told about `board`.
pub fn load(ram: &GuestRam, files: &Files, board: &Board) -> Result<Firmware, FlashError> {
    let flash = Flash::open(&files.code, &files.variables)?;
    let tables = acpi::for_firmware(board);
    let (window, size) = HIGH_WINDOW;
    let told = vec![
        ("etc/e820", e820(ram)),
        (acpi::TABLES_FILE, tables.tables),
        (acpi::RSDP_FILE, tables.rsdp),
        (acpi::LOADER_FILE, tables.loader),
        (window, size.into()),
    ];
    // At most 64.
    Ok(Firmware { flash, config: FwCfg::new(board.apic_ids.len() as u16, told) })
}

/// The RAM as e820 entries (ACPI 6.5, section 15.1). The first one starts at 0 and has all RAM below 4 GiB:
/// firmware itself keeps what a PC has below 1 MiB.
fn e820(ram: &GuestRam) -> Vec<u8> {
    let entry = |part: crate::memory::Part| {
        let range = map::Range { at: part.at.0, size: part.size, ram: true };
        let (at, size) = (range.at.to_le_bytes(), range.size.to_le_bytes());
        [&at[..], &size, &range.kind().to_le_bytes()].concat()
    };
    ram.parts().flat_map(entry).collect()
}

/// The registers at reset (Intel SDM, volume 3A, "Processor management and initialization"); segments and control
/// registers have KVM's own values, which are these.
pub fn registers(sregs: kvm_sregs) -> (kvm_regs, kvm_sregs) {
    let regs = kvm_regs { rip: 0xfff0, rflags: 2, ..Default::default() };
    (regs, sregs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_ram_is_told() {
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b));
        let seen = |size: u64| -> Vec<[u64; 3]> {
            let bytes = e820(&GuestRam::new(size).unwrap());
            let entries = bytes.chunks_exact(20);
            entries.map(|e| [number(&e[..8]), number(&e[8..16]), number(&e[16..])]).collect()
        };
        assert_eq!(seen(64 << 20), [[0, 64 << 20, 1]]);
        assert_eq!(seen(4 << 30), [[0, 3 << 30, 1], [4 << 30, 1 << 30, 1]]);
    }
}
