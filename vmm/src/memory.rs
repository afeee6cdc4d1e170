//! The guest's RAM: one sealed memfd, mapped here and handed to the functions that do DMA.

use crate::Gpa;
use rustix::fs::{MemfdFlags, SealFlags};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use vm_memory::mmap::MmapRegionError;
use vm_memory::{FileOffset, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

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

/// RAM from guest-physical address 0.
#[derive(Debug)]
pub struct GuestRam {
    file: Arc<File>,
    size: u64,
    region: Arc<MmapRegion>,
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
        let length = usize::try_from(size).map_err(|_| MemoryError::Layout { size })?;
        let region = MmapRegion::from_file(FileOffset::from_arc(Arc::clone(&file), 0), length)
            .map_err(|source| MemoryError::Map { size, source })?;
        let region = Arc::new(region);
        let guest_region = GuestRegionMmap::with_arc(Arc::clone(&region), Gpa(0))
            .ok_or(MemoryError::Layout { size })?;
        let memory = GuestMemoryMmap::from_regions(vec![guest_region])
            .map_err(|_| MemoryError::Layout { size })?;
        Ok(Self { file, size, region, memory })
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The memfd.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The mapping, for a KVM memory slot.
    pub fn region(&self) -> Arc<MmapRegion> {
        Arc::clone(&self.region)
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
}
