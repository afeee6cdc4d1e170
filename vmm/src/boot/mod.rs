//! How a guest starts: which kind of image it has, and where it and all that it is told lie.
//!
//! | address | what |
//! |---|---|
//! | 0x500 | descriptor table ([`linux`]) |
//! | 0x6000 | start information and modules ([`pvh`]) |
//! | 0x7000 | memory map ([`pvh`]) or zero page ([`linux`]) |
//! | 0x9000 | page tables ([`linux`]) |
//! | 0x2_0000 | command line |
//! | 0xe_0000 | ACPI tables ([`crate::acpi`]) |
//! | 1 MiB or higher | image |
//! | end of low RAM | initrd ([`initrd`]) |
//!
//! With [`firmware`] nothing is loaded: it starts in its flash.

mod elf;
pub mod firmware;
pub mod initrd;
pub mod linux;
mod map;
pub mod pvh;

use crate::Gpa;
use crate::config::Image;
use crate::memory::GuestRam;
use crate::pci::layout::Windows;
use kvm_bindings::{kvm_regs, kvm_sregs};
use linux_loader::loader::Error as LoaderError;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use vm_memory::{Bytes, GuestMemoryError};

pub use elf::HeadersError;
use map::IMAGE_START;

/// Where the command line lies; it may take up to 64 KiB.
const CMDLINE: u64 = 0x2_0000;
/// The initrd, in errors.
pub const INITRD: &str = "guest.initrd";
/// Bytes at a file's start that tell its kind and hold a Linux setup header.
const HEAD: usize = 0x400;

/// Why an image cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file cannot be opened.
    #[error("{what} {}: cannot be opened", path.display())]
    Open {
        /// Image or initrd.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file cannot be read.
    #[error("{what} {}: cannot be read", path.display())]
    Read {
        /// Image or initrd.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no kernel.
    #[error("guest image {}: is neither a Linux bzImage (`vmlinuz`) nor an ELF image with a PVH entry", path.display())]
    Kind {
        /// The image.
        path: PathBuf,
    },
    /// It is not a 64-bit ELF image that fits.
    #[error("guest image {}: cannot be loaded as a 64-bit little-endian ELF into {ram:#x} bytes of RAM", path.display())]
    Load {
        /// The image.
        path: PathBuf,
        /// RAM below the PCI window: bytes.
        ram: u64,
        /// Why.
        source: LoaderError,
    },
    /// Its program headers are no kernel's.
    #[error("guest image {}: this ELF image cannot be booted", path.display())]
    ProgramHeaders {
        /// The image.
        path: PathBuf,
        /// Why.
        source: HeadersError,
    },
    /// It has no PVH entry.
    #[error("guest image {}: has no PVH entry; it needs an ELF note of type 18 named \"Xen\"", path.display())]
    NoPvh {
        /// The image.
        path: PathBuf,
    },
    /// Its entry is outside the RAM.
    #[error("guest image {}: its entry {entry:#x} is outside {IMAGE_START:#x}..{ram:#x}", path.display())]
    Entry {
        /// The image.
        path: PathBuf,
        /// The entry.
        entry: u64,
        /// RAM below the PCI window: bytes.
        ram: u64,
    },
    /// It lies where the boot information has to be.
    #[error("guest image {}: a segment lies below {IMAGE_START:#x}, where the boot information is; link it higher", path.display())]
    Overlap {
        /// The image.
        path: PathBuf,
    },
    /// Its setup header is no good.
    #[error("guest image {}: this bzImage cannot be booted", path.display())]
    Header {
        /// The image.
        path: PathBuf,
        /// Why.
        source: linux::HeaderError,
    },
    /// It needs more RAM.
    #[error("guest image {}: the kernel needs {needs:#x} bytes of RAM from {at:#x} on, and there are {ram:#x} bytes in all; raise memory.size", path.display())]
    Small {
        /// The image.
        path: PathBuf,
        /// Where it has to be.
        at: u64,
        /// Bytes.
        needs: u64,
        /// RAM below the PCI window: bytes.
        ram: u64,
    },
    /// The command line is longer than the kernel takes.
    #[error("guest.cmdline: has {length} bytes; the kernel {} takes {most}", path.display())]
    CommandLine {
        /// The image.
        path: PathBuf,
        /// Its bytes.
        length: usize,
        /// What the kernel takes: bytes.
        most: u32,
    },
    /// The initrd has no bytes, or cannot have.
    #[error("guest.initrd {}: is no file with contents", path.display())]
    EmptyInitrd {
        /// The file.
        path: PathBuf,
    },
    /// The initrd does not fit.
    #[error("guest.initrd {}: its {size:#x} bytes do not fit between the kernel's end at {after:#x} and {end:#x}; raise memory.size", path.display())]
    LargeInitrd {
        /// The file.
        path: PathBuf,
        /// Its bytes.
        size: u64,
        /// Where the kernel ends.
        after: u64,
        /// Where the initrd has to end.
        end: u64,
    },
    /// The boot information does not fit.
    #[error("the boot information does not fit into the guest's RAM")]
    Memory(#[from] GuestMemoryError),
}

/// Where and how a loaded guest starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// By the PVH protocol.
    Pvh(pvh::Entry),
    /// By Linux' 64-bit protocol.
    Linux(linux::Entry),
    /// As after a reset, in firmware.
    Reset,
}

impl Start {
    /// The first vCPU's registers; what the protocol leaves open keeps its value in `sregs`.
    pub fn registers(self, sregs: kvm_sregs) -> (kvm_regs, kvm_sregs) {
        match self {
            Self::Pvh(entry) => pvh::registers(entry, sregs),
            Self::Linux(entry) => linux::registers(entry, sregs),
            Self::Reset => firmware::registers(sregs),
        }
    }
}

/// What a guest is told beside its image's own.
#[derive(Clone, Copy, Debug, Default)]
pub struct Told {
    /// Where the ACPI tables start, if there are any.
    pub rsdp: Option<Gpa>,
    /// Where configuration space is.
    pub windows: Windows,
}

/// Loads the guest's image and initrd, and lays out what it is told.
pub fn load(ram: &GuestRam, image: &Image, told: Told) -> Result<Start, BootError> {
    let mut head = [0; HEAD];
    let (file, kind, length) = look(&image.path, &mut head)?;
    match kind {
        Kind::Elf => Ok(Start::Pvh(pvh::load(ram, image, file, told)?)),
        Kind::BzImage => Ok(Start::Linux(linux::load(ram, image, file, &head[..length], told)?)),
    }
}

/// What a guest's image is, by its contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An ELF image, started by the PVH protocol.
    Elf,
    /// A Linux kernel.
    BzImage,
}

impl Kind {
    /// The field's name for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Elf => "ELF",
            Self::BzImage => "bzImage",
        }
    }
}

/// Looks whether image and initrd are there to be loaded, and what the image is. Whether it fits into the guest is
/// found when it is loaded.
pub fn check(image: &Image) -> Result<Kind, BootError> {
    let (_, kind, _) = look(&image.path, &mut [0; HEAD])?;
    if let Some(path) = &image.initrd {
        initrd::look(path)?;
    }
    Ok(kind)
}

/// The image, its kind, and how many bytes of its start are in `head`.
fn look(path: &Path, head: &mut [u8; HEAD]) -> Result<(File, Kind, usize), BootError> {
    let file = open("guest image", path)?;
    let length = read_head(&file, head).map_err(|source| BootError::Read {
        what: "guest image",
        path: path.to_owned(),
        source,
    })?;
    let start = &head[..length];
    let kind = if start.starts_with(b"\x7fELF") {
        Kind::Elf
    } else if linux::is_bzimage(start) {
        Kind::BzImage
    } else {
        return Err(BootError::Kind { path: path.to_owned() });
    };
    Ok((file, kind, length))
}

fn open(what: &'static str, path: &Path) -> Result<File, BootError> {
    File::open(path).map_err(|source| BootError::Open { what, path: path.to_owned(), source })
}

/// Reads as much of the start as there is.
fn read_head(file: &File, head: &mut [u8]) -> std::io::Result<usize> {
    let mut done = 0;
    while done < head.len() {
        match file.read_at(&mut head[done..], done as u64)? {
            0 => break,
            n => done += n,
        }
    }
    Ok(done)
}

/// Writes the command line with its end.
fn write_cmdline(ram: &GuestRam, cmdline: &str) -> Result<(), GuestMemoryError> {
    let mut line = cmdline.as_bytes().to_vec();
    line.push(0);
    ram.memory().write_slice(&line, Gpa(CMDLINE))
}

#[cfg(test)]
mod tests;
