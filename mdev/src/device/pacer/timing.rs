//! The timing page (BAR2): a seqlock that the host writes and guests map read-only.

use crate::device::pci::PciError;
use crate::memory::{Mapping, MemoryError, sealed_memfd};
use beamline_abi::pacer::{BAR2_SIZE, TimingPage, VERSION};
use rustix::fs::SealFlags;
use std::mem::offset_of;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use zerocopy::IntoBytes;

/// The page as the device model holds it: to give away and to answer trapped reads.
pub(super) struct TimingArea {
    fd: OwnedFd,
    mapping: Arc<Mapping>,
}

impl TimingArea {
    pub(super) fn new() -> Result<(Self, TimingWriter), PciError> {
        let fd = sealed_memfd("beamline-timing", BAR2_SIZE, SealFlags::empty())?;
        let mapping = Mapping::new(fd.as_fd(), 0, BAR2_SIZE as usize, true)
            .map_err(|errno| MemoryError::System { call: "mmap", errno })?;
        // Ours is the only writable mapping there will ever be: the peer gets this descriptor.
        rustix::fs::fcntl_add_seals(&fd, SealFlags::FUTURE_WRITE | SealFlags::SEAL)
            .map_err(|errno| PciError::System { call: "fcntl(F_ADD_SEALS)", errno })?;
        let mapping = Arc::new(mapping);
        let mut writer = TimingWriter { mapping: Arc::clone(&mapping), lock: 0 };
        writer.publish(&TimingPage::default());
        Ok((Self { fd, mapping }, writer))
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        read_shared(&self.mapping, offset, data);
    }
}

/// Reads a register-sized value in one access, anything else as bytes.
pub(super) fn read_shared(mapping: &Mapping, offset: u64, data: &mut [u8]) {
    data.fill(0);
    let Ok(at) = usize::try_from(offset) else { return };
    match <&mut [u8; 4]>::try_from(&mut *data) {
        Ok(word) if at.is_multiple_of(4) => {
            *word = mapping.load_u32(at).unwrap_or(0).to_ne_bytes();
        }
        _ => mapping.read(at, data),
    }
}

/// The one writer of a timing page.
pub struct TimingWriter {
    mapping: Arc<Mapping>,
    lock: u32,
}

impl TimingWriter {
    /// Reads the page's first word: to have it at hand when it is written.
    pub(super) fn warm(&self) -> u32 {
        self.mapping.load_u32(offset_of!(TimingPage, lock)).unwrap_or(0)
    }

    /// Publishes `page`; `lock` and `version` are filled in.
    pub fn publish(&mut self, page: &TimingPage) {
        const BODY: usize = offset_of!(TimingPage, vblank_seq);
        let lock = offset_of!(TimingPage, lock);
        self.mapping.store_u32_relaxed(lock, self.lock.wrapping_add(1).to_le());
        // A reader that sees any of the new fields also sees the odd lock.
        fence(Ordering::Release);
        self.mapping.store_u32_relaxed(offset_of!(TimingPage, version), VERSION.to_le());
        let (words, _) = page.as_bytes()[BODY..].as_chunks::<8>();
        for (word, at) in words.iter().zip((BODY..).step_by(8)) {
            self.mapping.store_u64_relaxed(at, u64::from_ne_bytes(*word));
        }
        self.lock = self.lock.wrapping_add(2);
        self.mapping.store_u32(lock, self.lock.to_le());
    }
}
