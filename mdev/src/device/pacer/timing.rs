//! The timing page (BAR2): a seqlock that the host writes and guests map read-only, and the arithmetic of
//! its TSC map.

use crate::device::pci::PciError;
use crate::memory::{Mapping, MemoryError, sealed_memfd};
use beamline_abi::Nanos;
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

/// The host's TSC against `CLOCK_MONOTONIC`: `ns = ns_ref + ((tsc - tsc_ref) * mult >> 32)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostTsc {
    /// A TSC value.
    pub tsc_ref: u64,
    /// The time at that value.
    pub ns_ref: Nanos,
    /// Nanoseconds per tick, with 32 fractional bits.
    pub mult: u64,
    /// Bound on the error of this map, in ns.
    pub error: u32,
}

/// How a guest's TSC follows the host's, as KVM defines it:
/// `guest = (host * scale >> 48) + offset`, modulo 2^64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestTsc {
    /// Ticks, wrapping.
    pub offset: u64,
    /// Guest ticks per host tick, with 48 fractional bits. 0 means 1.
    pub scale: u64,
}

/// The map of the timing page, for the guest's TSC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageTsc {
    /// A guest TSC value.
    pub tsc_ref: u64,
    /// The host's time at that value.
    pub ns_ref: Nanos,
    /// Nanoseconds per guest tick, with 32 fractional bits.
    pub tsc_mult: u64,
    /// Bound on the error, in ns.
    pub error: u32,
}

const ONE: u64 = 1 << 48;

impl HostTsc {
    /// The same map for a guest's TSC; `None` where the scale is so small or the host's map so empty that
    /// no 32.32 number holds the result.
    pub fn for_guest(&self, guest: GuestTsc) -> Option<PageTsc> {
        let scale = if guest.scale == 0 { ONE } else { guest.scale };
        let scaled = (u128::from(self.tsc_ref) * u128::from(scale)) >> 48;
        let mult = (u128::from(self.mult) << 48) / u128::from(scale);
        let tsc_mult = u64::try_from(mult).ok().filter(|mult| *mult != 0)?;
        // `scaled` was rounded down by up to one guest tick.
        let rounding = u32::try_from((tsc_mult >> 32) + 1).unwrap_or(u32::MAX);
        let error = if scale == ONE { self.error } else { self.error.saturating_add(rounding) };
        Some(PageTsc {
            tsc_ref: (scaled as u64).wrapping_add(guest.offset),
            ns_ref: self.ns_ref,
            tsc_mult,
            error,
        })
    }
}
