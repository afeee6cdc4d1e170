//! Linux' 64-bit boot protocol (linux: Documentation/arch/x86/boot.rst, "64-bit BOOT PROTOCOL"): a bzImage,
//! entered in long mode with an identity map, `rsi` pointing at the zero page.

use super::map::{self, IMAGE_START};
use super::{BootError, CMDLINE, Told, initrd};
use crate::Gpa;
use crate::config::Image;
use crate::memory::GuestRam;
use initrd::Initrd;
use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use std::fs::File;
use std::io::{Seek, SeekFrom};
use vm_memory::{Bytes, GuestMemoryError};

/// Where the descriptor table lies.
const GDT: u64 = 0x500;
/// Where the zero page lies (`struct boot_params`).
pub(super) const ZERO_PAGE: u64 = 0x7000;
/// Where the page tables lie: one of level 4, one of level 3, four of level 2.
const PAGE_TABLES: u64 = 0x9000;
/// Selectors that the protocol asks for: `__BOOT_CS` and `__BOOT_DS`.
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
/// The 64-bit entry's distance from where the image is loaded.
const ENTRY_64: u64 = 0x200;

/// Offsets of the setup header's fields, both in the file and in the zero page.
pub(super) mod field {
    pub(crate) const SETUP_SECTORS: usize = 0x1f1;
    pub(crate) const SYSTEM_SIZE: usize = 0x1f4;
    pub(crate) const BOOT_FLAG: usize = 0x1fe;
    /// Second byte of a jump over the header: where that ends.
    pub(crate) const JUMP: usize = 0x201;
    pub(crate) const MAGIC: usize = 0x202;
    pub(crate) const VERSION: usize = 0x206;
    pub(crate) const LOADER: usize = 0x210;
    pub(crate) const LOAD_FLAGS: usize = 0x211;
    pub(crate) const CODE32_START: usize = 0x214;
    pub(crate) const RAMDISK: usize = 0x218;
    pub(crate) const RAMDISK_SIZE: usize = 0x21c;
    pub(crate) const CMDLINE: usize = 0x228;
    pub(crate) const INITRD_MAX: usize = 0x22c;
    pub(crate) const XLOAD_FLAGS: usize = 0x236;
    pub(crate) const CMDLINE_SIZE: usize = 0x238;
    /// First of a list of what else a loader has to say.
    pub(crate) const SETUP_DATA: usize = 0x250;
    pub(crate) const PREFERRED: usize = 0x258;
    pub(crate) const INIT_SIZE: usize = 0x260;
    /// Where version 2.12's header ends.
    pub(crate) const END: usize = 0x268;
}

/// Offsets of the zero page's own fields (linux: Documentation/arch/x86/zero-page.rst).
pub(super) mod zero {
    pub(crate) const RSDP: usize = 0x70;
    pub(crate) const E820_ENTRIES: usize = 0x1e8;
    /// Not 0: the loader did not clear the page.
    pub(crate) const SENTINEL: usize = 0x1ef;
    pub(crate) const E820: usize = 0x2d0;
    pub(crate) const SIZE: usize = 4096;
}

/// `HdrS`.
pub(super) const MAGIC: u32 = 0x5372_6448;
const BOOT_FLAG: u16 = 0xaa55;
/// Oldest version whose header tells of a 64-bit entry.
const VERSION: u16 = 0x020c;
/// `LOADED_HIGH`: the kernel belongs at 1 MiB or higher.
const LOADED_HIGH: u8 = 1;
/// `XLF_KERNEL_64`: it has a 64-bit entry.
const KERNEL_64: u16 = 1;
/// A loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
/// A header may not reach into the zero page's next field, `edd_mbr_sig_buffer`.
const HEADER_END: usize = 0x290;
const SECTOR: u64 = 512;

/// Why a setup header is no good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The file ends in it.
    #[error("the file ends within its setup header")]
    Short,
    /// Too old.
    #[error("it speaks version {}.{} of the boot protocol; 2.12 or newer is needed", version >> 8, version & 0xff)]
    Version {
        /// Its version: major in the high byte.
        version: u16,
    },
    /// No 64-bit entry.
    #[error("it has no 64-bit entry; use a kernel for x86-64")]
    NotWide,
    /// A zImage.
    #[error("it is to be loaded below 1 MiB; use a bzImage")]
    Low,
    /// Its size or address is none.
    #[error("its {what} is {value:#x}, which makes no sense")]
    Value {
        /// Which field.
        what: &'static str,
        /// What it holds.
        value: u64,
    },
    /// The file ends early.
    #[error("the file has {has:#x} bytes and should have {wants:#x}; it is truncated")]
    Truncated {
        /// Its bytes.
        has: u64,
        /// What its header says.
        wants: u64,
    },
}

/// What of a setup header matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The header itself, from [`field::SETUP_SECTORS`] on.
    bytes: Vec<u8>,
    /// Where the kernel proper starts in the file, and its bytes.
    start: u64,
    size: u64,
    /// Where it goes.
    at: u64,
    /// What it needs there until it runs: bytes.
    needs: u64,
    /// Highest address of an initrd's last byte.
    initrd_max: u64,
    /// Longest command line: bytes.
    cmdline: u32,
}

fn bytes_at<const N: usize>(head: &[u8], at: usize) -> Result<[u8; N], HeaderError> {
    head.get(at..at + N).and_then(|b| b.try_into().ok()).ok_or(HeaderError::Short)
}

/// Whether a file that starts with `head` is a Linux kernel image.
pub(super) fn is_bzimage(head: &[u8]) -> bool {
    bytes_at(head, field::MAGIC).map(u32::from_le_bytes) == Ok(MAGIC)
        && bytes_at(head, field::BOOT_FLAG).map(u16::from_le_bytes) == Ok(BOOT_FLAG)
}

impl Header {
    /// Reads the header of a file with `length` bytes that starts with `head`.
    pub fn parse(head: &[u8], length: u64) -> Result<Self, HeaderError> {
        let byte = |at| bytes_at(head, at).map(u8::from_le_bytes);
        let half = |at| bytes_at(head, at).map(u16::from_le_bytes);
        let word = |at| bytes_at(head, at).map(u32::from_le_bytes);
        let long = |at| bytes_at(head, at).map(u64::from_le_bytes);
        let version = half(field::VERSION)?;
        if version < VERSION {
            return Err(HeaderError::Version { version });
        }
        let end = field::MAGIC + usize::from(byte(field::JUMP)?);
        if !(field::END..=HEADER_END).contains(&end) {
            return Err(HeaderError::Value { what: "header's end", value: end as u64 });
        }
        let bytes = head.get(field::SETUP_SECTORS..end).ok_or(HeaderError::Short)?.to_vec();
        if half(field::XLOAD_FLAGS)? & KERNEL_64 == 0 {
            return Err(HeaderError::NotWide);
        }
        if byte(field::LOAD_FLAGS)? & LOADED_HIGH == 0 {
            return Err(HeaderError::Low);
        }
        // 0 stands for 4, as it did on floppy disks; the boot sector comes before.
        let sectors = match byte(field::SETUP_SECTORS)? {
            0 => 4,
            n => u64::from(n),
        };
        let start = (sectors + 1) * SECTOR;
        let size = u64::from(word(field::SYSTEM_SIZE)?) * 16;
        if size <= ENTRY_64 {
            return Err(HeaderError::Value { what: "size", value: size });
        }
        let wants = start + size;
        if length < wants {
            return Err(HeaderError::Truncated { has: length, wants });
        }
        let at = long(field::PREFERRED)?;
        let needs = u64::from(word(field::INIT_SIZE)?).max(size);
        if at < IMAGE_START || !at.is_multiple_of(4096) || at.checked_add(needs).is_none() {
            return Err(HeaderError::Value { what: "preferred address", value: at });
        }
        let initrd_max = u64::from(word(field::INITRD_MAX)?);
        Ok(Self { bytes, start, size, at, needs, initrd_max, cmdline: word(field::CMDLINE_SIZE)? })
    }
}

/// Where a loaded guest starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The first instruction.
    pub entry: Gpa,
    /// The zero page.
    pub zero_page: Gpa,
}

/// Loads the bzImage in `file`, which starts with `head`, and lays out what it is told.
pub(super) fn load(
    ram: &GuestRam,
    image: &Image,
    mut file: File,
    head: &[u8],
    told: Told,
) -> Result<Entry, BootError> {
    let path = &image.path;
    let read = |source| BootError::Read { what: "guest image", path: path.clone(), source };
    let length = file.metadata().map_err(read)?.len();
    let header = Header::parse(head, length)
        .map_err(|source| BootError::Header { path: path.clone(), source })?;
    // The header's sum does not overflow.
    let after = header.at + header.needs;
    if after > ram.low_end() {
        return Err(BootError::Small {
            path: path.clone(),
            at: header.at,
            needs: header.needs,
            ram: ram.low_end(),
        });
    }
    if image.cmdline.len() > header.cmdline as usize {
        return Err(BootError::CommandLine {
            path: path.clone(),
            length: image.cmdline.len(),
            most: header.cmdline,
        });
    }
    file.seek(SeekFrom::Start(header.start)).map_err(read)?;
    ram.memory()
        .read_exact_volatile_from(Gpa(header.at), &mut file, header.size as usize)
        .map_err(|e| match e {
            GuestMemoryError::IOError(e) => read(e),
            // It became shorter while it was read.
            e => read(std::io::Error::other(e)),
        })?;
    let initrd = match &image.initrd {
        Some(path) => Some(initrd::load(ram, path, after, header.initrd_max.saturating_add(1))?),
        None => None,
    };
    ram.memory().write_slice(&zero_page(ram, &header, initrd, told), Gpa(ZERO_PAGE))?;
    super::write_cmdline(ram, &image.cmdline)?;
    for (at, bytes) in [(GDT, descriptors()), (PAGE_TABLES, page_tables())] {
        ram.memory().write_slice(&bytes, Gpa(at))?;
    }
    Ok(Entry { entry: Gpa(header.at + ENTRY_64), zero_page: Gpa(ZERO_PAGE) })
}

/// `struct boot_params`: the header as it came, with what the loader fills in, and the memory map.
fn zero_page(ram: &GuestRam, header: &Header, initrd: Option<Initrd>, told: Told) -> Vec<u8> {
    let mut page = vec![0; zero::SIZE];
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    put(field::SETUP_SECTORS, &header.bytes);
    put(field::LOADER, &[LOADER_UNDEFINED]);
    put(field::CODE32_START, &(header.at as u32).to_le_bytes());
    put(field::CMDLINE, &(CMDLINE as u32).to_le_bytes());
    // The loader's own fields, whatever the file has there. Both are below 4 GiB, as the RAM is that it lies in.
    let (at, size) = initrd.map_or((0, 0), |Initrd { at, size }| (at.0, size));
    put(field::RAMDISK, &(at as u32).to_le_bytes());
    put(field::RAMDISK_SIZE, &(size as u32).to_le_bytes());
    put(field::SETUP_DATA, &[0; 8]);
    put(zero::RSDP, &told.rsdp.map_or(0, |r| r.0).to_le_bytes());
    put(zero::SENTINEL, &[0]);
    let ranges = map::ranges(ram, told.windows);
    put(zero::E820_ENTRIES, &[ranges.len() as u8]);
    for (range, at) in ranges.iter().zip((zero::E820..).step_by(20)) {
        put(at, &range.at.to_le_bytes());
        put(at + 8, &range.size.to_le_bytes());
        put(at + 16, &range.kind().to_le_bytes());
    }
    page
}

/// Two empty descriptors, flat 64-bit code, flat data.
fn descriptors() -> Vec<u8> {
    [0, 0, 0x00af_9b00_0000_ffff_u64, 0x00cf_9300_0000_ffff]
        .iter()
        .flat_map(|d| d.to_le_bytes())
        .collect()
}

/// The first 4 GiB, each at its own address, in pages of 2 MiB.
fn page_tables() -> Vec<u8> {
    const TABLE: u64 = 4096;
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    const GIB: u64 = 4;
    let mut tables = vec![0; ((2 + GIB) * TABLE) as usize];
    let mut put = |at: u64, entry: u64| {
        tables[at as usize..at as usize + 8].copy_from_slice(&entry.to_le_bytes());
    };
    put(0, (PAGE_TABLES + TABLE) | PRESENT_WRITABLE);
    for gib in 0..GIB {
        put(TABLE + 8 * gib, (PAGE_TABLES + (2 + gib) * TABLE) | PRESENT_WRITABLE);
    }
    for page in 0..GIB * 512 {
        put(2 * TABLE + 8 * page, page << 21 | LARGE | PRESENT_WRITABLE);
    }
    tables
}

/// The registers at entry; what the protocol leaves open keeps its value in `sregs`.
pub fn registers(entry: Entry, mut sregs: kvm_sregs) -> (kvm_regs, kvm_sregs) {
    let code = kvm_segment {
        limit: u32::MAX,
        selector: CODE,
        type_: 0xb, // execute, read, accessed
        present: 1,
        s: 1,
        l: 1,
        g: 1,
        ..Default::default()
    };
    let data = kvm_segment { selector: DATA, type_: 0x3, l: 0, db: 1, ..code };
    sregs.cs = code;
    for s in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *s = data;
    }
    // A busy 64-bit TSS; the kernel loads its own before it needs one.
    sregs.tr =
        kvm_segment { limit: 0x67, selector: 0x20, type_: 0xb, present: 1, ..Default::default() };
    sregs.gdt.base = GDT;
    sregs.gdt.limit = 4 * 8 - 1;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cr0 = 0x8000_0011; // paging, protected mode; extension type is fixed
    sregs.cr3 = PAGE_TABLES;
    sregs.cr4 = 0x20; // physical address extension
    sregs.efer = 0x500; // long mode, enabled and active
    let regs =
        kvm_regs { rip: entry.entry.0, rsi: entry.zero_page.0, rflags: 2, ..Default::default() };
    (regs, sregs)
}
