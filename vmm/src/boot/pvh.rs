//! The PVH boot protocol (Xen's "x86/HVM direct boot ABI"): an ELF image with a 32-bit entry, entered in
//! protected mode without paging, `ebx` pointing at `hvm_start_info`.

use super::map::{self, IMAGE_START};
use super::{BootError, CMDLINE, Told, elf, initrd};
use crate::Gpa;
use crate::config::Image;
use crate::memory::GuestRam;
use initrd::Initrd;
use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use linux_loader::loader::KernelLoader;
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use std::fs::File;
use vm_memory::Bytes;

/// Where `hvm_start_info` lies.
pub(super) const START_INFO: u64 = 0x6000;
/// Where the list of modules lies.
const MODULES: u64 = 0x6800;
/// Where the memory map lies.
const MEMMAP: u64 = 0x7000;

/// `XEN_HVM_START_MAGIC_VALUE`.
pub(super) const MAGIC: u32 = 0x336e_c578;

/// Where a loaded guest starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The first instruction.
    pub entry: Gpa,
    /// `hvm_start_info`.
    pub start_info: Gpa,
}

/// Loads the ELF image in `file` and lays out what it is told.
pub(super) fn load(
    ram: &GuestRam,
    image: &Image,
    mut file: File,
    told: Told,
) -> Result<Entry, BootError> {
    let path = &image.path;
    let low_end = ram.low_end();
    let extent = elf::look(&file, low_end)
        .map_err(|source| BootError::Read { what: "guest image", path: path.clone(), source })?
        .map_err(|source| BootError::ProgramHeaders { path: path.clone(), source })?;
    // The boot information is below.
    if extent.start < IMAGE_START {
        return Err(BootError::Overlap { path: path.clone() });
    }
    if extent.end > low_end {
        return Err(BootError::Small {
            path: path.clone(),
            at: IMAGE_START,
            needs: extent.end - IMAGE_START,
            ram: low_end,
        });
    }
    let loaded = Elf::load(ram.memory(), None, &mut file, None)
        .map_err(|source| BootError::Load { path: path.clone(), ram: low_end, source })?;
    let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
        return Err(BootError::NoPvh { path: path.clone() });
    };
    if entry.0 < IMAGE_START || entry.0 >= low_end {
        return Err(BootError::Entry { path: path.clone(), entry: entry.0, ram: low_end });
    }
    let initrd = match &image.initrd {
        Some(path) => Some(initrd::load(ram, path, extent.end, low_end)?),
        None => None,
    };
    for (at, bytes) in start_info(ram, initrd, told) {
        ram.memory().write_slice(&bytes, at)?;
    }
    super::write_cmdline(ram, &image.cmdline)?;
    Ok(Entry { entry, start_info: Gpa(START_INFO) })
}

/// The start information, its modules and the memory map, with their places.
fn start_info(ram: &GuestRam, initrd: Option<Initrd>, told: Told) -> [(Gpa, Vec<u8>); 3] {
    let ranges = map::ranges(ram, told.windows);
    let mut memmap = Vec::new();
    for range in &ranges {
        memmap.extend_from_slice(&range.at.to_le_bytes());
        memmap.extend_from_slice(&range.size.to_le_bytes());
        memmap.extend_from_slice(&range.kind().to_le_bytes());
        memmap.extend_from_slice(&u32::to_le_bytes(0));
    }
    let mut modules = Vec::new();
    if let Some(Initrd { at, size }) = initrd {
        for long in [at.0, size, 0, 0] {
            modules.extend_from_slice(&long.to_le_bytes()); // address, size, command line, reserved
        }
    }
    let module_count = u32::from(initrd.is_some());
    let module_list = if initrd.is_some() { MODULES } else { 0 };
    let mut info = Vec::new();
    for word in [MAGIC, 1, 0, module_count] {
        info.extend_from_slice(&word.to_le_bytes()); // magic, version, flags, modules
    }
    for long in [module_list, CMDLINE, told.rsdp.map_or(0, |r| r.0), MEMMAP] {
        info.extend_from_slice(&long.to_le_bytes()); // modules, command line, RSDP, memory map
    }
    for word in [ranges.len() as u32, 0] {
        info.extend_from_slice(&word.to_le_bytes()); // entries, reserved
    }
    [(Gpa(START_INFO), info), (Gpa(MODULES), modules), (Gpa(MEMMAP), memmap)]
}

/// A flat 32-bit segment; `kind` is its type in the descriptor.
fn flat(selector: u16, kind: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_: kind,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    }
}

/// The registers at entry; what the protocol leaves open keeps its value in `sregs`.
pub fn registers(entry: Entry, mut sregs: kvm_sregs) -> (kvm_regs, kvm_sregs) {
    const CODE: u8 = 0xb; // execute, read, accessed
    const DATA: u8 = 0x3; // read, write, accessed
    sregs.cs = flat(0x8, CODE);
    for s in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *s = flat(0x10, DATA);
    }
    // A busy 32-bit TSS with limit 0x67.
    sregs.tr =
        kvm_segment { limit: 0x67, selector: 0x18, type_: 0xb, present: 1, ..Default::default() };
    sregs.cr0 = 0x11; // protected mode; extension type is fixed
    sregs.cr3 = 0;
    sregs.cr4 = 0;
    sregs.efer = 0;
    let regs =
        kvm_regs { rip: entry.entry.0, rbx: entry.start_info.0, rflags: 2, ..Default::default() };
    (regs, sregs)
}
