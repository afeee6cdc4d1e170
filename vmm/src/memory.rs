//! The guest's RAM: one sealed memfd, mapped here and handed to the functions that do DMA.
//!
//! RAM that does not fit below the PCI window goes on at 4 GiB:
//!
//! ```text
//! memfd    0 ............ 3 GiB ............ size
//! guest    0 ............ WINDOW | PCI, APICs | 4 GiB ............
//! ```

mod dirty;
mod fill;
mod node;
mod pages;

pub(crate) use dirty::DirtyLog;
pub use dirty::{DirtyError, PAGE, WrittenPages};
pub use fill::Filled;
pub use pages::{available, host};

use crate::Gpa;
use crate::config::{HugePages, Memory, Node};
use crate::pci::layout;
use rustix::fs::{MemfdFlags, SealFlags};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use vm_memory::mmap::MmapRegionError;
use vm_memory::{FileOffset, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

/// Where the RAM goes on that does not fit below the PCI window.
pub const HIGH_START: u64 = 1 << 32;

/// Why there is no RAM.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The memfd could not be made, sized or sealed.
    #[error("cannot make a sealed memfd of {size:#x} bytes for the guest's RAM")]
    Memfd {
        /// Bytes.
        size: u64,
        /// Why.
        source: std::io::Error,
    },
    /// It could not be mapped.
    #[error(
        "cannot map {size:#x} bytes of guest RAM: is so much address space allowed (ulimit -v)?"
    )]
    Map {
        /// Bytes.
        size: u64,
        /// Why.
        source: MmapRegionError,
    },
    /// There are too few huge pages.
    #[error(
        "{size:#x} bytes of guest RAM take {pages} pages of {kib} KiB, and {free}: reserve more by writing their \
         number to {pool}, which takes root, or leave `memory.hugepages` out"
    )]
    HugePages {
        /// Bytes.
        size: u64,
        /// How many pages.
        pages: u64,
        /// Of this size, KiB.
        kib: u64,
        /// How many there are, for people.
        free: String,
        /// Where the kernel is told how many to have.
        pool: String,
    },
    /// The kernel makes no huge pages of memory that is shared.
    #[error(
        "this kernel makes no huge pages of shared memory by itself: write `advise` to {setting}, which takes root, or \
         leave `memory.hugepages` out"
    )]
    Transparent {
        /// What decides it.
        setting: &'static str,
    },
    /// The host is smaller than the guest.
    #[error(
        "the guest's RAM is {size} bytes and the host has {has}, swap included: give a smaller `memory.size`"
    )]
    Host {
        /// Bytes of the guest.
        size: u64,
        /// Bytes of the host.
        has: u64,
    },
    /// The host has too little left.
    #[error(
        "the guest's RAM is {size} bytes, and {has} are available to fill it with: give a smaller `memory.size`, end \
         other programs, or leave `memory.prefault` out"
    )]
    Available {
        /// Bytes of the guest.
        size: u64,
        /// Bytes that are available.
        has: u64,
    },
    /// The RAM could not be filled.
    #[error(
        "cannot fill {size:#x} bytes of guest RAM: do the host's nodes that it comes from (`host_nodes`) and the \
         control group have so much?"
    )]
    Fill {
        /// Bytes.
        size: u64,
        /// Why.
        source: std::io::Error,
    },
    /// Whoever was told how far it is has had enough.
    #[error("filling the guest's RAM was stopped")]
    Interrupted,
    /// A NUMA node is not there.
    #[error(
        "the guest's RAM cannot come from the host's NUMA nodes {nodes:?}: those with memory are {online}; correct \
         `{key}`"
    )]
    Node {
        /// What names them in the guest's file.
        key: String,
        /// The nodes.
        nodes: Vec<u32>,
        /// Those that are there, as the kernel writes it.
        online: String,
        /// Why.
        source: std::io::Error,
    },
    /// The mapping is not a valid guest memory.
    #[error("{size:#x} bytes are not a valid size of guest RAM")]
    Layout {
        /// Bytes.
        size: u64,
    },
}

/// A piece of the RAM, without a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// First guest-physical address.
    pub at: Gpa,
    /// Bytes.
    pub size: u64,
    /// Where it starts in the memfd: bytes.
    pub offset: u64,
}

/// How `size` bytes of RAM lie around the PCI window.
fn parts(size: u64) -> Vec<Part> {
    let low = size.min(layout::WINDOW);
    let mut parts = vec![Part { at: Gpa(0), size: low, offset: 0 }];
    if size > low {
        parts.push(Part { at: Gpa(HIGH_START), size: size - low, offset: low });
    }
    parts
}

/// The RAM's file and where its parts lie, for whoever hands pieces of it on.
#[derive(Clone, Debug)]
pub struct RamFile {
    file: Arc<File>,
    parts: Arc<[Part]>,
    pooled: bool,
}

impl RamFile {
    /// Whether it is of huge pages out of the host's pools.
    pub fn is_of_huge_pages(&self) -> bool {
        self.pooled
    }

    /// The memfd.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// What of `at..=last` is RAM, from the lowest address on.
    pub fn within(&self, at: Gpa, last: Gpa) -> impl Iterator<Item = Part> + '_ {
        self.parts.iter().filter_map(move |part| {
            // Parts are not empty, and end far below 2^64.
            let from = at.0.max(part.at.0);
            let to = last.0.min(part.at.0 + part.size - 1);
            let size = to.checked_sub(from)? + 1;
            Some(Part { at: Gpa(from), size, offset: part.offset + (from - part.at.0) })
        })
    }
}

/// Looks whether the host has what `memory` and the guest's `nodes` ask for, as far as that can be told without taking
/// it.
pub fn check(memory: &Memory, nodes: &[Node]) -> Result<(), MemoryError> {
    let Memory { size, hugepages, transparent, prefault, .. } = memory;
    pages::fits_host(*size)?;
    for bound in node::bounds(memory, nodes) {
        bound.check()?;
    }
    if *transparent {
        pages::may_be_huge()?;
    }
    match hugepages {
        Some(pages) => pages::are_free(*pages, *size),
        None if *prefault => pages::can_be_filled(*size),
        None => Ok(()),
    }
}

/// RAM from guest-physical address 0 on.
#[derive(Debug)]
pub struct GuestRam {
    file: Arc<File>,
    size: u64,
    pooled: bool,
    parts: Vec<(Part, Arc<MmapRegion>)>,
    memory: GuestMemoryMmap,
}

impl GuestRam {
    /// Makes `size` bytes of zeroed RAM of ordinary pages, which come when they are touched. The memfd can neither
    /// shrink nor grow: whoever maps it is safe from `SIGBUS`.
    pub fn new(size: u64) -> Result<Self, MemoryError> {
        Self::of(size, None)
    }

    /// Makes the RAM that `memory` and the guest's `nodes` ask for. Where it is filled, `go_on` is told ten times a
    /// second how far that is, and ends it by `false`.
    pub fn build(
        memory: &Memory,
        nodes: &[Node],
        go_on: &mut dyn FnMut(Filled) -> bool,
    ) -> Result<Self, MemoryError> {
        let Memory { size, hugepages, transparent, prefault, .. } = memory;
        check(memory, nodes)?;
        let ram = Self::of(*size, *hugepages)?;
        for bound in node::bounds(memory, nodes) {
            for (part, (region, at)) in ram.cut(bound.from, bound.size) {
                bound.bind(region, at, part.size as usize)?;
            }
        }
        if *transparent {
            for (_, region) in &ram.parts {
                pages::make_huge(region)?;
            }
        }
        if *prefault {
            let regions: Vec<_> = ram.parts.iter().map(|(_, region)| Arc::clone(region)).collect();
            fill::fill(&regions, hugepages.map_or(4096, HugePages::bytes), go_on)?;
        }
        Ok(ram)
    }

    fn of(size: u64, hugepages: Option<HugePages>) -> Result<Self, MemoryError> {
        let memfd = |source: std::io::Error| MemoryError::Memfd { size, source };
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let flags = hugepages.map_or(flags, |pages| flags | pages.flags());
        let fd = rustix::fs::memfd_create("guest-ram", flags).map_err(|e| match hugepages {
            Some(pages) if pages::are_unknown(e) => pages::too_few(pages, size),
            _ => memfd(e.into()),
        })?;
        let file = File::from(fd);
        file.set_len(size).map_err(memfd)?;
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
            .map_err(|e| memfd(e.into()))?;
        let file = Arc::new(file);
        let mut mapped = Vec::new();
        let mut regions = Vec::new();
        for part in parts(size) {
            let length = usize::try_from(part.size).map_err(|_| MemoryError::Layout { size })?;
            let offset = FileOffset::from_arc(Arc::clone(&file), part.offset);
            // Huge pages are reserved by this, so that none is missing later, when it would end the process.
            let reserve = if hugepages.is_some() { 0 } else { libc::MAP_NORESERVE };
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let region =
                MmapRegion::build(Some(offset), length, access, libc::MAP_SHARED | reserve);
            let region = region.map_err(|source| match hugepages {
                // Somebody else took some since `check`, and not the address space is too small.
                Some(pages) if pages::are_free(pages, part.size).is_err() => {
                    pages::too_few(pages, size)
                }
                _ => MemoryError::Map { size: part.size, source },
            })?;
            let region = Arc::new(region);
            let guest_region = GuestRegionMmap::with_arc(Arc::clone(&region), part.at)
                .ok_or(MemoryError::Layout { size })?;
            regions.push(guest_region);
            mapped.push((part, region));
        }
        let memory =
            GuestMemoryMmap::from_regions(regions).map_err(|_| MemoryError::Layout { size })?;
        Ok(Self { file, size, pooled: hugepages.is_some(), parts: mapped, memory })
    }

    /// Bytes, of all parts.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// End of the part from address 0 on.
    pub fn low_end(&self) -> u64 {
        self.size.min(layout::WINDOW)
    }

    /// The address after the last byte of RAM.
    pub fn end(&self) -> u64 {
        self.parts.last().map_or(0, |(part, _)| part.at.0 + part.size)
    }

    /// The memfd.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The parts, from the lowest on.
    pub fn parts(&self) -> impl Iterator<Item = Part> + '_ {
        self.parts.iter().map(|(part, _)| *part)
    }

    /// The pieces of the `size` bytes from `from` on in the memfd, from the lowest on: where each is for the guest,
    /// and in which mapping, so many bytes from its start.
    pub(crate) fn cut(
        &self,
        from: u64,
        size: u64,
    ) -> impl Iterator<Item = (Part, (&MmapRegion, usize))> + '_ {
        let end = from.saturating_add(size);
        self.parts.iter().filter_map(move |(part, region)| {
            let first = part.offset.max(from);
            let size = (part.offset + part.size).min(end).checked_sub(first).filter(|s| *s > 0)?;
            let skipped = first - part.offset;
            let piece = Part { at: Gpa(part.at.0 + skipped), size, offset: first };
            Some((piece, (&**region, skipped as usize)))
        })
    }

    /// The file and its layout, to be kept by those who hand pieces of it on.
    pub fn share(&self) -> RamFile {
        RamFile { file: Arc::clone(&self.file), parts: self.parts().collect(), pooled: self.pooled }
    }

    /// The parts' mappings, for KVM memory slots.
    pub fn regions(&self) -> impl Iterator<Item = (Gpa, Arc<MmapRegion>)> + '_ {
        self.parts.iter().map(|(part, region)| (part.at, Arc::clone(region)))
    }

    /// Access by guest-physical address.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }
}

#[cfg(test)]
mod tests;
