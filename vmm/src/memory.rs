//! The guest's RAM: one sealed memfd, mapped here and handed to the functions that do DMA.
//!
//! RAM that does not fit below the PCI window goes on at 4 GiB:
//!
//! ```text
//! memfd    0 ............ 3 GiB ............ size
//! guest    0 ............ WINDOW | PCI, APICs | 4 GiB ............
//! ```

use crate::Gpa;
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
}

impl RamFile {
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

/// RAM from guest-physical address 0 on.
#[derive(Debug)]
pub struct GuestRam {
    file: Arc<File>,
    size: u64,
    parts: Vec<(Part, Arc<MmapRegion>)>,
    memory: GuestMemoryMmap,
}

impl GuestRam {
    /// Makes `size` bytes of zeroed RAM. The memfd can neither shrink nor grow: whoever maps it is safe
    /// from `SIGBUS`.
    pub fn new(size: u64) -> Result<Self, MemoryError> {
        let memfd = |source| MemoryError::Memfd { size, source };
        let fd =
            rustix::fs::memfd_create("guest-ram", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
                .map_err(|e| memfd(e.into()))?;
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
            let region = MmapRegion::from_file(offset, length)
                .map_err(|source| MemoryError::Map { size: part.size, source })?;
            let region = Arc::new(region);
            let guest_region = GuestRegionMmap::with_arc(Arc::clone(&region), part.at)
                .ok_or(MemoryError::Layout { size })?;
            regions.push(guest_region);
            mapped.push((part, region));
        }
        let memory =
            GuestMemoryMmap::from_regions(regions).map_err(|_| MemoryError::Layout { size })?;
        Ok(Self { file, size, parts: mapped, memory })
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

    /// The file and its layout, to be kept by those who hand pieces of it on.
    pub fn share(&self) -> RamFile {
        RamFile { file: Arc::clone(&self.file), parts: self.parts().collect() }
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
}
