//! Stage 1, guest submits: the split virtqueue (virtio 1.3, section 2.7) in shared memory.

use crate::transport::{Arena, ArenaFull, Gpa, Transport, Width};
use beamline_abi::virtio_pci::ring;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Bit of the used ring's flags: the device needs no kick (2.7.10).
const USED_NO_NOTIFY: u16 = 1;
/// Bytes in front of the entries of the available and the used ring: flags and index.
const RING_HEAD: u64 = 4;
/// Bytes of a used element: ID and length.
const USED_SIZE: u64 = 8;

/// The device broke the queue's rules; the queue is of no more use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the device says that {ahead} chains are used, but at most {size} can be")]
pub struct QueueBroken {
    /// How far the device's index is ahead.
    pub ahead: u16,
    /// The queue's size.
    pub size: u16,
}

/// A descriptor, as it lies in memory.
#[derive(Clone, Copy, Debug, IntoBytes, Immutable)]
#[repr(C)]
pub struct Descriptor {
    /// Guest address of the buffer.
    pub addr: u64,
    /// Its bytes.
    pub len: u32,
    /// See [`ring`].
    pub flags: u16,
    /// The next descriptor of the chain.
    pub next: u16,
}

/// An element that the device gave back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes)]
#[repr(C)]
pub struct Used {
    /// The chain's first descriptor: as the device says, not checked.
    pub id: u32,
    /// Bytes that the device says it wrote.
    pub len: u32,
}

/// The driver's end of a split virtqueue. Which descriptors make a chain is the owner's business.
#[derive(Debug)]
pub struct SplitQueue {
    size: u16,
    desc: Gpa,
    avail: Gpa,
    used: Gpa,
    next_avail: u16,
    next_used: u16,
}

impl SplitQueue {
    /// A zeroed queue of `size` descriptors, a power of two.
    pub fn new<T: Transport>(t: &mut T, arena: &mut Arena, size: u16) -> Result<Self, ArenaFull> {
        let n = u64::from(size);
        Ok(Self {
            size,
            desc: arena.alloc(t, ring::DESC_SIZE * n, 16)?,
            avail: arena.alloc(t, RING_HEAD + 2 * n + 2, 2)?,
            used: arena.alloc(t, RING_HEAD + USED_SIZE * n + 2, 4)?,
            next_avail: 0,
            next_used: 0,
        })
    }

    /// Where the descriptors, the available ring and the used ring lie.
    pub const fn addresses(&self) -> (Gpa, Gpa, Gpa) {
        (self.desc, self.avail, self.used)
    }

    /// How many descriptors there are.
    pub const fn size(&self) -> u16 {
        self.size
    }

    /// Writes a descriptor. `index` is below the size.
    pub fn describe<T: Transport>(&self, t: &mut T, index: u16, descriptor: Descriptor) {
        let at = self.desc.at(ring::DESC_SIZE * u64::from(index % self.size));
        t.write(at, descriptor.as_bytes());
    }

    /// Makes a chain available to the device.
    pub fn publish<T: Transport>(&mut self, t: &mut T, head: u16) {
        let entry = RING_HEAD + 2 * u64::from(self.next_avail % self.size);
        t.store_u16(self.avail.at(entry), head);
        self.next_avail = self.next_avail.wrapping_add(1);
        // Release: the device that sees the index sees the chain.
        t.store_u16(self.avail.at(2), self.next_avail);
    }

    /// Tells the device, unless it said that it needs no telling.
    pub fn kick<T: Transport>(&self, t: &mut T, notify: Gpa, queue: u16) {
        // The index must be visible before the flag is read: a device clears the flag, then looks again.
        t.fence();
        if t.load_u16(self.used) & USED_NO_NOTIFY == 0 {
            t.mmio_write(notify, Width::Word, queue.into());
        }
    }

    /// Takes the next chain that the device gave back.
    pub fn take<T: Transport>(&mut self, t: &mut T) -> Result<Option<Used>, QueueBroken> {
        // Acquire: what the device wrote before the index is visible behind this.
        let ahead = t.load_u16(self.used.at(2)).wrapping_sub(self.next_used);
        if ahead == 0 {
            return Ok(None);
        }
        if ahead > self.size {
            return Err(QueueBroken { ahead, size: self.size });
        }
        let entry = RING_HEAD + USED_SIZE * u64::from(self.next_used % self.size);
        let mut bytes = [0; USED_SIZE as usize];
        t.read(self.used.at(entry), &mut bytes);
        self.next_used = self.next_used.wrapping_add(1);
        Ok(Used::read_from_bytes(&bytes).ok())
    }
}
