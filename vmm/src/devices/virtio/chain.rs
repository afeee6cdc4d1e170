//! A descriptor chain, copied out of the guest's tables once and checked (virtio 1.3, sections 2.7.5 and
//! 2.7.5.3).

use crate::Gpa;
use std::sync::Arc;
use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestMemoryMmap};

/// A part of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where; not checked to be RAM.
    pub at: Gpa,
    /// Bytes, not 0.
    pub len: u32,
}

/// A buffer cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Too short.
    #[error("the buffer is too short")]
    Short,
    /// Not RAM.
    #[error("a part of the buffer is not RAM")]
    Memory,
}

/// What the driver made available: first what the device reads, then what it writes. A chain that is
/// malformed has no parts at all.
#[derive(Debug, Default)]
pub struct Chain {
    head: u16,
    readable: Vec<Segment>,
    writable: Vec<Segment>,
    readable_len: u64,
    writable_len: u64,
}

impl Chain {
    /// Takes over `chain`, of at most `most` descriptors.
    pub(super) fn fill(&mut self, chain: DescriptorChain<Arc<GuestMemoryMmap>>, most: u16) {
        self.clear(chain.head_index());
        if !self.gather(chain, most) {
            self.clear(self.head);
        }
    }

    fn clear(&mut self, head: u16) {
        self.head = head;
        self.readable.clear();
        self.writable.clear();
        (self.readable_len, self.writable_len) = (0, 0);
    }

    fn gather(&mut self, chain: DescriptorChain<Arc<GuestMemoryMmap>>, most: u16) -> bool {
        let mut count = 0u16;
        // The iterator ends without a word where a descriptor cannot be had: then the last one that it
        // gave says that there is another.
        let mut more = true;
        for descriptor in chain {
            count += 1;
            let out_of_order = !descriptor.is_write_only() && self.writable_len > 0;
            if count > most || out_of_order {
                return false;
            }
            more = descriptor.has_next();
            let segment = Segment { at: descriptor.addr(), len: descriptor.len() };
            if segment.len == 0 {
                continue;
            }
            if descriptor.is_write_only() {
                self.writable_len += u64::from(segment.len);
                self.writable.push(segment);
            } else {
                self.readable_len += u64::from(segment.len);
                self.readable.push(segment);
            }
        }
        !more
    }

    /// The index of the first descriptor.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Bytes that the device may read.
    pub fn readable(&self) -> u64 {
        self.readable_len
    }

    /// Bytes that the device may write.
    pub fn writable(&self) -> u64 {
        self.writable_len
    }

    /// The parts that the device may write.
    pub fn writable_segments(&self) -> &[Segment] {
        &self.writable
    }

    /// The parts that the device may read.
    pub fn readable_segments(&self) -> &[Segment] {
        &self.readable
    }

    /// Copies from the readable part, from `offset` of it on.
    pub fn read(&self, memory: &GuestMemoryMmap, offset: u64, to: &mut [u8]) -> Result<(), Fault> {
        let mut rest = to;
        for (at, len) in pieces(&self.readable, self.readable_len, offset, rest.len() as u64)? {
            let (now, later) = rest.split_at_mut(len);
            memory.read_slice(now, at).map_err(|_| Fault::Memory)?;
            rest = later;
        }
        Ok(())
    }

    /// Copies to the writable part, from `offset` of it on.
    pub fn write(&self, memory: &GuestMemoryMmap, offset: u64, from: &[u8]) -> Result<(), Fault> {
        let mut rest = from;
        for (at, len) in pieces(&self.writable, self.writable_len, offset, rest.len() as u64)? {
            let (now, later) = rest.split_at(len);
            memory.write_slice(now, at).map_err(|_| Fault::Memory)?;
            rest = later;
        }
        Ok(())
    }

    /// The first `N` bytes of the readable part from `offset` on.
    pub fn array<const N: usize>(
        &self,
        memory: &GuestMemoryMmap,
        offset: u64,
    ) -> Result<[u8; N], Fault> {
        let mut bytes = [0; N];
        self.read(memory, offset, &mut bytes)?;
        Ok(bytes)
    }
}

/// Where `len` bytes from `offset` on lie in segments of `total` bytes; their lengths add up to `len`.
fn pieces(
    segments: &[Segment],
    total: u64,
    offset: u64,
    len: u64,
) -> Result<impl Iterator<Item = (Gpa, usize)> + '_, Fault> {
    if offset.checked_add(len).is_none_or(|end| end > total) {
        return Err(Fault::Short);
    }
    let (mut skip, mut left) = (offset, len);
    Ok(segments.iter().filter_map(move |segment| {
        let size = u64::from(segment.len);
        if left == 0 {
            return None;
        }
        if skip >= size {
            skip -= size;
            return None;
        }
        let now = (size - skip).min(left);
        // A segment's end may be beyond 2^64: such an address is no RAM, and its start is tried first.
        let at = Gpa(segment.at.0.wrapping_add(skip));
        skip = 0;
        left -= now;
        Some((at, now as usize))
    }))
}
