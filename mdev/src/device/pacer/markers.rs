//! The marker ring (BAR4): what the guest saw, written by it without exits and drained by the poster.
//!
//! Everything in the page is an allegation. The consumer's index lives here and is only shown to the
//! guest; the producer's index is checked against it at every step.

use super::timing::read_shared;
use crate::device::gate::Gate;
use crate::device::pci::PciError;
use crate::memory::{Mapping, MemoryError, sealed_memfd};
use beamline_abi::pacer::{
    BAR4_SIZE, MARKER_CAPACITY, MARKER_DROPPED, MARKER_ENTRIES, MARKER_HEAD, MARKER_TAIL, Marker,
    MarkerKind,
};
use rustix::fs::SealFlags;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use zerocopy::{FromZeros, IntoBytes};

/// The ring's page, shared by the device model and the reader.
pub(super) struct MarkerRing {
    fd: OwnedFd,
    mapping: Mapping,
    /// Shut by a reset while it clears the page.
    gate: Gate,
    /// The consumer's index.
    tail: AtomicU32,
}

impl MarkerRing {
    pub(super) fn new() -> Result<Self, PciError> {
        let fd = sealed_memfd("beamline-markers", BAR4_SIZE, SealFlags::SEAL)?;
        let mapping = Mapping::new(fd.as_fd(), 0, BAR4_SIZE as usize, true)
            .map_err(|errno| MemoryError::System { call: "mmap", errno })?;
        Ok(Self { fd, mapping, gate: Gate::default(), tail: AtomicU32::new(0) })
    }

    /// An empty ring, without a trace of the last driver.
    pub(super) fn reset(&self) {
        self.gate.pause();
        for offset in (0..BAR4_SIZE as usize).step_by(8) {
            self.mapping.store_u64_relaxed(offset, 0);
        }
        self.tail.store(0, Ordering::Relaxed);
        self.gate.resume();
    }

    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        read_shared(&self.mapping, offset, data);
    }

    pub(super) fn write(&self, offset: u64, data: &[u8]) {
        let Ok(at) = usize::try_from(offset) else { return };
        match <[u8; 4]>::try_from(data) {
            // The producer's index must not be seen half-written.
            Ok(word) if at.is_multiple_of(4) => {
                self.mapping.store_u32(at, u32::from_ne_bytes(word));
            }
            _ => self.mapping.write(at, data),
        }
    }

    fn u32(&self, offset: u32) -> u32 {
        self.mapping.load_u32(offset as usize).map_or(0, u32::from_le)
    }
}

impl AsFd for MarkerRing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What one [`MarkerReader::drain`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Markers handed on.
    pub taken: u32,
    /// Markers of unknown kinds, dropped.
    pub unknown: u32,
    /// The producer's index made no sense: everything up to it was skipped.
    pub resynced: bool,
}

/// The consumer of a marker ring.
pub struct MarkerReader {
    ring: Arc<MarkerRing>,
    resyncs: u64,
}

enum Next {
    Marker(MarkerKind, Marker),
    Unknown,
    Resynced,
    Empty,
}

impl MarkerReader {
    pub(super) fn new(ring: Arc<MarkerRing>) -> Self {
        Self { ring, resyncs: 0 }
    }

    /// Hands on what the ring holds, at most [`MARKER_CAPACITY`] markers however fast the guest writes.
    pub fn drain(&mut self, mut f: impl FnMut(MarkerKind, Marker)) -> Drained {
        let mut drained = Drained::default();
        for _ in 0..MARKER_CAPACITY {
            match self.next() {
                Next::Marker(kind, marker) => {
                    drained.taken += 1;
                    f(kind, marker);
                }
                Next::Unknown => drained.unknown += 1,
                Next::Resynced => {
                    drained.resynced = true;
                    self.resyncs += 1;
                    break;
                }
                Next::Empty => break,
            }
        }
        drained
    }

    /// How many markers the guest says it could not write.
    pub fn dropped_by_guest(&self) -> u32 {
        self.ring.u32(MARKER_DROPPED)
    }

    /// How often the producer's index made no sense.
    pub fn resyncs(&self) -> u64 {
        self.resyncs
    }

    fn next(&self) -> Next {
        let ring = &*self.ring;
        let Ok(_pass) = ring.gate.enter() else { return Next::Empty };
        let tail = ring.tail.load(Ordering::Relaxed);
        let head = ring.u32(MARKER_HEAD);
        let (next, outcome) = match head.wrapping_sub(tail) {
            0 => return Next::Empty,
            pending if pending > MARKER_CAPACITY => (head, Next::Resynced),
            _ => (tail.wrapping_add(1), ring.entry(tail)),
        };
        ring.tail.store(next, Ordering::Relaxed);
        ring.mapping.store_u32(MARKER_TAIL as usize, next.to_le());
        outcome
    }
}

impl MarkerRing {
    fn entry(&self, index: u32) -> Next {
        let slot = (index % MARKER_CAPACITY) as usize * size_of::<Marker>();
        let mut marker = Marker::new_zeroed();
        self.mapping.read(MARKER_ENTRIES as usize + slot, marker.as_mut_bytes());
        match MarkerKind::from_raw(marker.kind) {
            Some(kind) => Next::Marker(kind, marker),
            None => Next::Unknown,
        }
    }
}
