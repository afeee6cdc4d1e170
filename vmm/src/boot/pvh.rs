//! The PVH boot protocol (Xen's "x86/HVM direct boot ABI"): an ELF image with a 32-bit entry, entered in
//! protected mode without paging, `ebx` pointing at `hvm_start_info`.

use crate::Gpa;
use crate::memory::GuestRam;
use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use linux_loader::loader::{Error as LoaderError, KernelLoader};
use std::fs::File;
use std::path::{Path, PathBuf};
use vm_memory::{Bytes, GuestMemoryError};

/// Where `hvm_start_info` lies.
const START_INFO: u64 = 0x6000;
/// Where the memory map lies.
const MEMMAP: u64 = 0x7000;
/// Where the command line lies; it may take up to 64 KiB.
const CMDLINE: u64 = 0x2_0000;
/// End of conventional memory; the rest up to 1 MiB is the PC's.
const LOW_END: u64 = 0x9_fc00;
/// Where an image may start.
const HIGH_START: u64 = 0x10_0000;

/// `XEN_HVM_START_MAGIC_VALUE`.
const MAGIC: u32 = 0x336e_c578;
/// `XEN_HVM_MEMMAP_TYPE_RAM`.
const TYPE_RAM: u32 = 1;
/// `XEN_HVM_MEMMAP_TYPE_RESERVED`.
const TYPE_RESERVED: u32 = 2;

/// Why an image cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The file cannot be opened.
    #[error("guest image {}: cannot be opened", path.display())]
    Open {
        /// The image.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not a 64-bit ELF image that fits.
    #[error("guest image {}: cannot be loaded as a 64-bit little-endian ELF into {ram:#x} bytes of RAM", path.display())]
    Load {
        /// The image.
        path: PathBuf,
        /// The guest's RAM: bytes.
        ram: u64,
        /// Why.
        source: LoaderError,
    },
    /// It has no PVH entry.
    #[error("guest image {}: has no PVH entry; it needs an ELF note of type 18 named \"Xen\"", path.display())]
    NoPvh {
        /// The image.
        path: PathBuf,
    },
    /// Its entry is outside the RAM.
    #[error("guest image {}: its entry {entry:#x} is outside {HIGH_START:#x}..{ram:#x}", path.display())]
    Entry {
        /// The image.
        path: PathBuf,
        /// The entry.
        entry: u64,
        /// The guest's RAM: bytes.
        ram: u64,
    },
    /// It lies where the boot information has to be.
    #[error("guest image {}: a segment lies below {HIGH_START:#x}, where the boot information is; link it higher", path.display())]
    Overlap {
        /// The image.
        path: PathBuf,
    },
    /// The boot information does not fit.
    #[error("the boot information does not fit into the guest's RAM")]
    Memory(#[from] GuestMemoryError),
}

/// Where a loaded guest starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The first instruction.
    pub entry: Gpa,
    /// `hvm_start_info`.
    pub start_info: Gpa,
}

/// Loads the image at `path` and lays out what it is told.
pub fn load(ram: &GuestRam, path: &Path, cmdline: &str) -> Result<Entry, BootError> {
    let mut file =
        File::open(path).map_err(|source| BootError::Open { path: path.to_owned(), source })?;
    let info = start_info(ram.size(), cmdline);
    for (at, bytes) in &info {
        ram.memory().write_slice(bytes, *at)?;
    }
    let loaded = Elf::load(ram.memory(), None, &mut file, None)
        .map_err(|source| BootError::Load { path: path.to_owned(), ram: ram.size(), source })?;
    // The loader does not say where segments begin; what it overwrote shows it.
    for (at, bytes) in &info {
        let mut now = vec![0; bytes.len()];
        ram.memory().read_slice(&mut now, *at)?;
        if now != *bytes {
            return Err(BootError::Overlap { path: path.to_owned() });
        }
    }
    let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
        return Err(BootError::NoPvh { path: path.to_owned() });
    };
    if entry.0 < HIGH_START || entry.0 >= ram.size() {
        return Err(BootError::Entry { path: path.to_owned(), entry: entry.0, ram: ram.size() });
    }
    Ok(Entry { entry, start_info: Gpa(START_INFO) })
}

/// The start information, the memory map and the command line, with their places.
fn start_info(ram: u64, cmdline: &str) -> [(Gpa, Vec<u8>); 3] {
    let ranges = [
        (0, LOW_END, TYPE_RAM),
        (LOW_END, HIGH_START - LOW_END, TYPE_RESERVED),
        (HIGH_START, ram - HIGH_START.min(ram), TYPE_RAM),
    ];
    let mut memmap = Vec::new();
    for (address, size, kind) in ranges {
        memmap.extend_from_slice(&u64::to_le_bytes(address));
        memmap.extend_from_slice(&u64::to_le_bytes(size));
        memmap.extend_from_slice(&u32::to_le_bytes(kind));
        memmap.extend_from_slice(&u32::to_le_bytes(0));
    }
    let mut info = Vec::new();
    for word in [MAGIC, 1, 0, 0] {
        info.extend_from_slice(&word.to_le_bytes()); // magic, version, flags, modules
    }
    for long in [0, CMDLINE, 0, MEMMAP] {
        info.extend_from_slice(&u64::to_le_bytes(long)); // modules, command line, RSDP, memory map
    }
    for word in [ranges.len() as u32, 0] {
        info.extend_from_slice(&word.to_le_bytes()); // entries, reserved
    }
    let mut line = cmdline.as_bytes().to_vec();
    line.push(0);
    [(Gpa(START_INFO), info), (Gpa(MEMMAP), memmap), (Gpa(CMDLINE), line)]
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn refused(image: &[u8]) -> BootError {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(image).unwrap();
        load(&GuestRam::new(2 << 20).unwrap(), file.path(), "").unwrap_err()
    }

    #[test]
    fn bad_images_are_refused() {
        assert!(matches!(refused(b""), BootError::Load { .. }));
        assert!(matches!(refused(&[0x7f; 4096]), BootError::Load { .. }));
        let code = [0xf4];
        let good = crate::testing::elf(HIGH_START, HIGH_START, &code);
        assert!(matches!(refused(&good[..good.len() - 1]), BootError::Load { .. }));
        let low = crate::testing::elf(START_INFO - 8, HIGH_START, &[0xcc; 64]);
        assert!(matches!(refused(&low), BootError::Overlap { .. }));
        let far = crate::testing::elf(HIGH_START, 2 << 20, &code);
        assert!(matches!(refused(&far), BootError::Entry { .. }));
        let outside = crate::testing::elf(u64::MAX - 2, HIGH_START, &code);
        assert!(matches!(refused(&outside), BootError::Load { .. }));
    }

    #[test]
    fn the_guest_is_told_its_memory_and_command_line() {
        let ram = GuestRam::new(4 << 20).unwrap();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&crate::testing::elf(HIGH_START, HIGH_START, &[0xf4])).unwrap();
        let entry = load(&ram, file.path(), "a=1").unwrap();
        assert_eq!(entry, Entry { entry: Gpa(HIGH_START), start_info: Gpa(START_INFO) });
        let m = ram.memory();
        assert_eq!(m.read_obj::<u32>(entry.start_info).unwrap(), MAGIC);
        let line: u64 = m.read_obj(Gpa(START_INFO + 24)).unwrap();
        assert_eq!(m.read_obj::<[u8; 4]>(Gpa(line)).unwrap(), *b"a=1\0");
        let map: u64 = m.read_obj(Gpa(START_INFO + 40)).unwrap();
        assert_eq!(m.read_obj::<u32>(Gpa(START_INFO + 48)).unwrap(), 3);
        let high: [u64; 2] =
            [m.read_obj(Gpa(map + 48)).unwrap(), m.read_obj(Gpa(map + 56)).unwrap()];
        assert_eq!(high, [HIGH_START, 3 << 20]);
    }
}
