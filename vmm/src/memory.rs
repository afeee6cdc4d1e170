//! The guest's RAM: one sealed memfd, mapped here and handed to the functions that do DMA.
//!
//! RAM that does not fit below the PCI window goes on at 4 GiB:
//!
//! ```text
//! memfd    0 ............ 3 GiB ............ size
//! guest    0 ............ WINDOW | PCI, APICs | 4 GiB ............
//! ```

mod fill;
mod node;
mod pages;

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
        let memfd = |source: std::io::Error| match hugepages {
            // The kernel has no pages of this size.
            Some(pages) => pages::too_few(pages, size),
            None => MemoryError::Memfd { size, source },
        };
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let flags = hugepages.map_or(flags, |pages| flags | pages.flags());
        let fd = rustix::fs::memfd_create("guest-ram", flags).map_err(|e| memfd(e.into()))?;
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
                Some(pages) => pages::too_few(pages, size),
                None => MemoryError::Map { size: part.size, source },
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
mod tests {
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn ram_is_sealed_and_shared() {
        let ram = GuestRam::new(2 << 20).unwrap();
        let file = File::from(ram.fd().try_clone_to_owned().unwrap());
        assert!(file.set_len(4096).is_err(), "sealed against shrinking");
        assert!(file.set_len(4 << 20).is_err(), "sealed against growing");
        assert!(rustix::fs::fcntl_add_seals(&file, SealFlags::WRITE).is_err(), "sealed seals");
        ram.memory().write_obj(0x1234_5678u32, Gpa(0x1000)).unwrap();
        let mut back = [0; 4];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut back, 0x1000).unwrap();
        assert_eq!(u32::from_le_bytes(back), 0x1234_5678);
        assert!(ram.memory().write_obj(0u32, Gpa(2 << 20)).is_err());
    }

    #[test]
    fn large_ram_leaves_the_pci_window_free() {
        // Pages that nobody touches cost nothing.
        let ram = GuestRam::new(5 << 30).unwrap();
        let low = Part { at: Gpa(0), size: layout::WINDOW, offset: 0 };
        let high = Part { at: Gpa(HIGH_START), size: 2 << 30, offset: 3 << 30 };
        assert_eq!(ram.parts().collect::<Vec<_>>(), [low, high]);
        assert_eq!((ram.low_end(), ram.end()), (layout::WINDOW, HIGH_START + (2 << 30)));
        ram.memory().write_obj(7u32, Gpa(HIGH_START)).unwrap();
        assert!(ram.memory().write_obj(7u32, Gpa(layout::WINDOW)).is_err());
        let mut back = [0; 4];
        let file = File::from(ram.fd().try_clone_to_owned().unwrap());
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut back, 3 << 30).unwrap();
        assert_eq!(u32::from_le_bytes(back), 7);
    }

    #[test]
    fn a_range_has_what_is_ram_of_it() {
        let shared = GuestRam::new(5 << 30).unwrap().share();
        let within = |at, last| -> Vec<(u64, u64, u64)> {
            shared.within(Gpa(at), Gpa(last)).map(|p| (p.at.0, p.size, p.offset)).collect()
        };
        let high = HIGH_START;
        assert_eq!(within(0x1000, 0x1fff), [(0x1000, 0x1000, 0x1000)]);
        assert_eq!(within(high, high + 0xfff), [(high, 0x1000, 3 << 30)]);
        assert_eq!(within(0, u64::MAX), [(0, 3 << 30, 0), (high, 2 << 30, 3 << 30)]);
        let edge = layout::WINDOW - 0x1000;
        assert_eq!(within(edge, edge + 0x1fff), [(edge, 0x1000, edge)]);
        assert_eq!(within(layout::WINDOW, high - 1), []);
        assert_eq!(within(high + (2 << 30), u64::MAX), []);
    }

    fn memory(size: u64, hugepages: Option<HugePages>, prefault: bool) -> Memory {
        Memory { size, hugepages, transparent: false, prefault, host_nodes: Vec::new() }
    }

    /// Huge pages where the machine has them to spare, and the way to get them where it does not.
    #[test]
    fn huge_pages_are_used_or_asked_for() {
        for pages in [HugePages::TwoMib, HugePages::OneGib] {
            let size = pages.bytes();
            match GuestRam::build(&memory(size, Some(pages), true), &[], &mut |_| true) {
                Ok(ram) => {
                    let file = File::from(ram.fd().try_clone_to_owned().unwrap());
                    assert!(file.set_len(0).is_err(), "sealed against shrinking, as sharing needs");
                    ram.memory().write_obj(7u32, Gpa(size - 4)).unwrap();
                }
                Err(error) => {
                    println!("skip: huge_pages_are_used_or_asked_for: {error}");
                    let text = error.to_string();
                    assert!(
                        text.contains("nr_hugepages") && text.contains("take 1 pages"),
                        "{text}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_kernel_makes_huge_pages_or_says_what_forbids_it() {
        let memory = Memory { transparent: true, ..memory(4 << 20, None, true) };
        match GuestRam::build(&memory, &[], &mut |_| true) {
            Ok(ram) => {
                assert!(!ram.share().is_of_huge_pages(), "a host takes them");
                ram.memory().write_obj(7u32, Gpa(0)).unwrap();
            }
            Err(error) => {
                println!("skip: the_kernel_makes_huge_pages_or_says_what_forbids_it: {error}");
                assert!(matches!(error, MemoryError::Transparent { .. }), "{error}");
            }
        }
    }

    #[test]
    fn filling_can_be_stopped_and_leaves_nothing() {
        // Enough for a few ticks on any machine; refused where there is not so much.
        let mut told = 0;
        let result = GuestRam::build(&memory(2 << 30, None, true), &[], &mut |filled| {
            assert_eq!(filled.all, 2 << 30);
            told += 1;
            false
        });
        match result {
            // It was faster than the first tick.
            Ok(ram) => assert_eq!((told, ram.size()), (0, 2 << 30)),
            Err(MemoryError::Interrupted) => assert_eq!(told, 1),
            Err(error) => assert!(matches!(error, MemoryError::Available { .. }), "{error}"),
        }
    }

    #[test]
    fn ram_comes_from_the_nodes_that_are_asked_for() {
        let mut memory = memory(4 << 20, None, true);
        memory.host_nodes = vec![0];
        match GuestRam::build(&memory, &[], &mut |_| true) {
            Ok(ram) => ram.memory().write_obj(7u32, Gpa(0)).unwrap(),
            Err(error) => println!("skip: ram_comes_from_the_nodes_that_are_asked_for: {error}"),
        }
        memory.host_nodes = vec![crate::config::MAX_NODE];
        let error = GuestRam::build(&memory, &[], &mut |_| true).unwrap_err();
        assert!(matches!(error, MemoryError::Node { .. }), "{error}");
    }

    #[test]
    fn a_nodes_memory_lies_around_the_pci_window() {
        let ram = GuestRam::new(5 << 30).unwrap();
        let cut = |from, size| -> Vec<(u64, u64, usize)> {
            ram.cut(from, size).map(|(p, (_, at))| (p.at.0, p.size, at)).collect()
        };
        let (high, gib) = (HIGH_START, 1 << 30);
        assert_eq!(cut(0, gib), [(0, gib, 0)]);
        assert_eq!(cut(2 * gib, 2 * gib), [(2 * gib, gib, 2 << 30), (high, gib, 0)]);
        assert_eq!(cut(4 * gib, gib), [(high + gib, gib, 1 << 30)]);
        assert_eq!(cut(5 * gib, gib), []);
    }

    #[test]
    fn a_guests_node_names_the_hosts_nodes_for_its_part() {
        let node = |host_nodes: &[u32]| Node {
            memory: 2 << 20,
            vcpus: vec![],
            host_nodes: host_nodes.to_vec(),
            distances: vec![10, 20],
        };
        let memory = memory(4 << 20, None, true);
        let build = |nodes: &[Node]| GuestRam::build(&memory, nodes, &mut |_| true);
        match build(&[node(&[]), node(&[0])]) {
            Ok(ram) => ram.memory().write_obj(7u32, Gpa(2 << 20)).unwrap(),
            Err(error) => {
                println!("skip: a_guests_node_names_the_hosts_nodes_for_its_part: {error}");
            }
        }
        let error = build(&[node(&[]), node(&[crate::config::MAX_NODE])]).unwrap_err();
        assert!(error.to_string().contains("correct `node[1].host_nodes`"), "{error}");
    }
}
