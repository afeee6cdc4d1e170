//! Stage 2, doorbell: from a kick to the chain it announces, and from an answer to the used ring.
//!
//! A split virtqueue (virtio 1.3, section 2.7), device side, in two halves on two threads: the worker's
//! [`AvailReader`] and the poster's [`UsedWriter`]. Both pass the queue's gate for each step, so a reset
//! knows when neither touches guest memory any more; after that they fail with [`QueueError::Closed`].
//!
//! Descriptors are copied once, then checked, then used. Indirect descriptors are not offered and so are
//! refused. Any [`QueueError`] but `Closed` and `Paused` is the driver's fault and ends the queue.

use crate::device::gate::{Gate, Pass, Refused};
use crate::device::pci::msix::{IrqError, IrqTable};
use crate::memory::{Gpa, GuestMemory, MemoryError};
use beamline_abi::virtio_pci::{NO_VECTOR, ring};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering, fence};

/// Most descriptors of a queue.
pub const MAX_QUEUE_SIZE: u16 = 256;
/// Most descriptors of a chain: a header, the longest payload in pages that are not contiguous, an answer.
/// The longest is the list of a resource's 16,384 pieces of guest memory, in 64 pages and a part.
pub const MAX_CHAIN: usize = 68;
/// Most bytes of a chain's buffers: the longest requests have some 256 KiB. Checking a buffer takes time for each
/// mapping that it lies in.
pub const MAX_BYTES: u64 = 4 << 20;
/// Most buffers of a chain that an answer uses; room beyond them is left alone.
pub const MAX_REPLY_BUFFERS: usize = 4;

/// Why a queue gave no chain or took no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// The device was reset: the half is of no use any more.
    #[error("the queue was reset")]
    Closed,
    /// The guest turned bus mastering off; a kick follows when it is on again.
    #[error("the guest has bus mastering off")]
    Paused,
    /// The size is no power of two up to [`MAX_QUEUE_SIZE`].
    #[error("a queue of {0} descriptors: it must be a power of two, at most {MAX_QUEUE_SIZE}")]
    BadSize(u16),
    /// A ring is not aligned, or passes the end of the address space.
    #[error(
        "{what} at {at} is not aligned to {align} bytes, or passes the end of the address space"
    )]
    BadRing {
        /// Which ring.
        what: &'static str,
        /// Where it was said to be.
        at: Gpa,
        /// The alignment it needs.
        align: u64,
    },
    /// The driver's index is further ahead than the queue is long.
    #[error("the available index is {index}, {ahead} ahead in a queue of {size}")]
    IndexJump {
        /// The driver's index.
        index: u16,
        /// How far it is ahead.
        ahead: u16,
        /// Descriptors of the queue.
        size: u16,
    },
    /// A descriptor's number is outside the table.
    #[error("descriptor {index} in a queue of {size}")]
    BadDescriptor {
        /// The number.
        index: u16,
        /// Descriptors of the queue.
        size: u16,
    },
    /// The chain loops or is too long.
    #[error("the chain from descriptor {head} has more than {MAX_CHAIN} descriptors, or loops")]
    TooLong {
        /// The chain.
        head: u16,
    },
    /// The buffers of a chain are longer together than any request.
    #[error("the chain from descriptor {head} has more than {MAX_BYTES} bytes")]
    TooLarge {
        /// The chain.
        head: u16,
    },
    /// A descriptor points to a table, which was not offered.
    #[error("descriptor {index} is indirect, which this device does not offer")]
    Indirect {
        /// The descriptor.
        index: u16,
    },
    /// A buffer is empty.
    #[error("descriptor {index} has no bytes")]
    Empty {
        /// The descriptor.
        index: u16,
    },
    /// A buffer that the device reads comes after one that it writes.
    #[error("descriptor {index} is readable and follows a writable one")]
    Order {
        /// The descriptor.
        index: u16,
    },
    /// A read goes past the chain's readable bytes.
    #[error("{len} bytes from {offset} of a request that has {have}")]
    ShortRequest {
        /// Where the read starts.
        offset: u64,
        /// Its bytes.
        len: u64,
        /// The readable bytes.
        have: u64,
    },
    /// A ring or a buffer is out of reach.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

impl From<Refused> for QueueError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Closed => Self::Closed,
            Refused::Paused => Self::Paused,
        }
    }
}

/// Where a queue is. Checked: sizes, alignment, and that the rings lie in the address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLayout {
    size: u16,
    descriptors: Gpa,
    driver: Gpa,
    device: Gpa,
}

impl QueueLayout {
    /// A queue of `size` descriptors with its table, driver area and device area.
    pub fn new(size: u16, descriptors: Gpa, driver: Gpa, device: Gpa) -> Result<Self, QueueError> {
        if !size.is_power_of_two() || size > MAX_QUEUE_SIZE {
            return Err(QueueError::BadSize(size));
        }
        let n = u64::from(size);
        for (what, at, align, bytes) in [
            ("the descriptor table", descriptors, 16, ring::DESC_SIZE * n),
            ("the driver area", driver, 2, 4 + 2 * n),
            ("the device area", device, 4, 4 + 8 * n),
        ] {
            if !at.0.is_multiple_of(align) || at.checked_add(bytes).is_none() {
                return Err(QueueError::BadRing { what, at, align });
            }
        }
        Ok(Self { size, descriptors, driver, device })
    }

    /// `index` modulo the size, as an offset in an array of `stride` bytes per entry.
    fn slot(&self, index: u16, stride: u64) -> u64 {
        u64::from(index & (self.size - 1)) * stride
    }
}

/// One buffer of a chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Buffer {
    /// Where it is.
    pub at: Gpa,
    /// Its bytes, above 0.
    pub len: u32,
}

/// A request: buffers that the device reads, then buffers that it writes. All are in reach when the chain
/// is popped; each access checks again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The number of its first descriptor, by which it is given back.
    pub head: u16,
    readable: u8,
    total: u8,
    buffers: [Buffer; MAX_CHAIN],
}

impl Chain {
    /// What the device reads.
    pub fn readable(&self) -> &[Buffer] {
        &self.buffers[..usize::from(self.readable)]
    }
    /// What the device writes.
    pub fn writable(&self) -> &[Buffer] {
        &self.buffers[usize::from(self.readable)..usize::from(self.total)]
    }
    /// Bytes that the device reads.
    pub fn readable_len(&self) -> u64 {
        self.readable().iter().map(|b| u64::from(b.len)).sum()
    }
    /// Bytes that the device may write.
    pub fn writable_len(&self) -> u64 {
        self.writable().iter().map(|b| u64::from(b.len)).sum()
    }
    /// Where the answer goes: all that is needed of a chain once its request is copied.
    pub fn reply(&self) -> Reply {
        let mut reply = Reply { head: self.head, count: 0, buffers: Default::default() };
        for (to, from) in reply.buffers.iter_mut().zip(self.writable()) {
            *to = *from;
            reply.count += 1;
        }
        reply
    }
}

/// Where the answer to a request goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// The chain.
    pub head: u16,
    count: u8,
    buffers: [Buffer; MAX_REPLY_BUFFERS],
}

/// What both halves hold.
#[derive(Clone)]
struct Shared {
    layout: QueueLayout,
    memory: Arc<GuestMemory>,
    gate: Arc<Gate>,
}

impl Shared {
    fn enter(&self) -> Result<Pass<'_>, QueueError> {
        Ok(self.gate.enter()?)
    }
}

/// How a queue interrupts: the vector that the driver chose, and the ISR register for drivers without one.
#[derive(Clone)]
pub(super) struct Signal {
    pub(super) irqs: Arc<IrqTable>,
    pub(super) vectors: Arc<[AtomicU16]>,
    pub(super) queue: usize,
    pub(super) isr: Arc<AtomicU8>,
}

/// One queue: its two halves.
pub struct Queue {
    /// The worker's half.
    pub avail: AvailReader,
    /// The poster's half.
    pub used: UsedWriter,
}

impl Queue {
    pub(super) fn new(
        layout: QueueLayout,
        memory: Arc<GuestMemory>,
        gate: Arc<Gate>,
        signal: Signal,
    ) -> Self {
        let shared = Shared { layout, memory, gate };
        Self {
            avail: AvailReader { shared: shared.clone(), next: 0 },
            used: UsedWriter { shared, next: 0, signal },
        }
    }
}

/// Takes chains from a queue.
pub struct AvailReader {
    shared: Shared,
    next: u16,
}

/// One entry of the descriptor table, copied.
struct Descriptor {
    buffer: Buffer,
    flags: u16,
    next: u16,
}

impl AvailReader {
    /// The next chain, or `None` where the driver has put no more.
    pub fn pop(&mut self) -> Result<Option<Chain>, QueueError> {
        let Shared { layout, memory, .. } = &self.shared;
        let _pass = self.shared.enter()?;
        let index = memory.read_u16(Gpa(layout.driver.0 + 2))?;
        let ahead = index.wrapping_sub(self.next);
        if ahead == 0 {
            return Ok(None);
        }
        let size = layout.size;
        if ahead > size {
            return Err(QueueError::IndexJump { index, ahead, size });
        }
        let head = memory.read_u16(Gpa(layout.driver.0 + 4 + layout.slot(self.next, 2)))?;
        let chain = self.shared.walk(head)?;
        self.next = self.next.wrapping_add(1);
        Ok(Some(chain))
    }

    /// Copies `out.len()` bytes of the request, from `offset` of all its readable bytes together.
    pub fn read(&self, chain: &Chain, offset: u64, out: &mut [u8]) -> Result<(), QueueError> {
        let (have, len) = (chain.readable_len(), out.len() as u64);
        if offset.checked_add(len).is_none_or(|end| end > have) {
            return Err(QueueError::ShortRequest { offset, len, have });
        }
        let _pass = self.shared.enter()?;
        let mut skip = offset;
        let mut rest = out;
        for buffer in chain.readable() {
            let len = u64::from(buffer.len);
            if skip >= len {
                skip -= len;
                continue;
            }
            let part = ((len - skip) as usize).min(rest.len());
            let (now, later) = rest.split_at_mut(part);
            // The buffer was checked not to wrap, so neither does a place in it.
            self.shared.memory.read(Gpa(buffer.at.0 + skip), now)?;
            rest = later;
            skip = 0;
        }
        Ok(())
    }

    /// Copies guest memory that a request names. To be called for one bounded piece at a time: a reset
    /// waits for it.
    pub fn read_memory(&self, at: Gpa, out: &mut [u8]) -> Result<(), QueueError> {
        let _pass = self.shared.enter()?;
        Ok(self.shared.memory.read(at, out)?)
    }

    /// Whether the device may read guest memory that a request names.
    pub fn check_memory(&self, at: Gpa, len: u64) -> Result<(), QueueError> {
        let _pass = self.shared.enter()?;
        Ok(self.shared.memory.check(at, len, false)?)
    }

    /// Whether the device was reset.
    pub fn is_closed(&self) -> bool {
        self.shared.gate.is_closed()
    }
}

impl Shared {
    /// Copies and checks the chain that starts at `head`.
    fn walk(&self, head: u16) -> Result<Chain, QueueError> {
        let mut chain =
            Chain { head, readable: 0, total: 0, buffers: [Buffer::default(); MAX_CHAIN] };
        let mut index = head;
        let mut bytes = 0;
        for place in &mut chain.buffers {
            let descriptor = self.descriptor(index)?;
            let writable = descriptor.flags & ring::DESC_WRITE != 0;
            if !writable && chain.readable != chain.total {
                return Err(QueueError::Order { index });
            }
            let Buffer { at, len } = descriptor.buffer;
            // At most MAX_CHAIN lengths of 32 bits.
            bytes += u64::from(len);
            if bytes > MAX_BYTES {
                return Err(QueueError::TooLarge { head });
            }
            self.memory.check(at, len.into(), writable)?;
            *place = descriptor.buffer;
            chain.total += 1;
            chain.readable += u8::from(!writable);
            if descriptor.flags & ring::DESC_NEXT == 0 {
                return Ok(chain);
            }
            index = descriptor.next;
        }
        Err(QueueError::TooLong { head })
    }

    fn descriptor(&self, index: u16) -> Result<Descriptor, QueueError> {
        let size = self.layout.size;
        if index >= size {
            return Err(QueueError::BadDescriptor { index, size });
        }
        let mut entry = [0; ring::DESC_SIZE as usize];
        let at = self.layout.descriptors.0 + self.layout.slot(index, ring::DESC_SIZE);
        self.memory.read(Gpa(at), &mut entry)?;
        let word = u128::from_le_bytes(entry);
        let flags = (word >> 96) as u16;
        let buffer = Buffer { at: Gpa(word as u64), len: (word >> 64) as u32 };
        if flags & ring::DESC_INDIRECT != 0 {
            return Err(QueueError::Indirect { index });
        }
        if buffer.len == 0 {
            return Err(QueueError::Empty { index });
        }
        Ok(Descriptor { buffer, flags, next: (word >> 112) as u16 })
    }
}

/// Gives chains back.
pub struct UsedWriter {
    shared: Shared,
    next: u16,
    signal: Signal,
}

impl UsedWriter {
    /// Writes as much of `answer` as the chain has room for and gives the chain back. Whether the driver
    /// wants an interrupt: [`UsedWriter::interrupt`] sends it, once for several answers if you like.
    #[must_use = "a driver that wants an interrupt waits for it"]
    pub fn complete(&mut self, reply: &Reply, answer: &[u8]) -> Result<bool, QueueError> {
        let Shared { layout, memory, .. } = &self.shared;
        let _pass = self.shared.enter()?;
        let mut rest = answer;
        for buffer in &reply.buffers[..usize::from(reply.count)] {
            let (now, later) = rest.split_at((buffer.len as usize).min(rest.len()));
            memory.write(buffer.at, now)?;
            rest = later;
        }
        let written = (answer.len() - rest.len()) as u64;
        let element = u64::from(reply.head) | written << 32;
        let at = Gpa(layout.device.0 + 4 + layout.slot(self.next, 8));
        memory.write(at, &element.to_le_bytes())?;
        self.next = self.next.wrapping_add(1);
        memory.write_u16_release(Gpa(layout.device.0 + 2), self.next)?;
        // The driver clears its flag and then looks at the index; we do it the other way round.
        fence(Ordering::SeqCst);
        Ok(memory.read_u16(layout.driver)? & ring::AVAIL_NO_INTERRUPT == 0)
    }

    /// Interrupts the driver. `false`: it gave the queue no vector, or nobody listens.
    ///
    /// To be called outside anything that a reset waits for: the peer's eventfd is written here.
    pub fn interrupt(&self) -> Result<bool, IrqError> {
        self.signal.send()
    }

    /// Whether the device was reset.
    pub fn is_closed(&self) -> bool {
        self.shared.gate.is_closed()
    }
}

impl Signal {
    fn send(&self) -> Result<bool, IrqError> {
        let vector = self.vectors.get(self.queue).map_or(NO_VECTOR, |v| v.load(Ordering::Acquire));
        if vector == NO_VECTOR {
            self.isr.fetch_or(1, Ordering::Release);
            return Ok(false);
        }
        self.irqs.signal(vector)
    }
}
