//! What a device's thread and its registers share: interrupts, and the word that the device is broken.

use crate::pci::msix::Signaller;
use arc_swap::ArcSwapOption;
use beamline_abi::virtio_pci::NO_VECTOR;
use rustix::io::ReadWriteFlags;
use std::convert::Infallible;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU64, Ordering};

/// ISR status: a queue's interrupt (virtio 1.3, section 4.1.4.5).
const ISR_QUEUE: u8 = 1;
/// ISR status: the configuration changed.
const ISR_CONFIG: u8 = 2;

/// See the module.
pub struct Shared {
    /// The eventfd of each MSI-X vector, while MSI-X is enabled.
    vectors: Box<[ArcSwapOption<OwnedFd>]>,
    queue_vectors: Box<[AtomicU16]>,
    config_vector: AtomicU16,
    isr: AtomicU8,
    generation: AtomicU8,
    needs_reset: AtomicBool,
    master: AtomicBool,
    /// Its thread is to take nothing more from the queues.
    ending: AtomicBool,
    /// How many interrupts were sent.
    interrupts: AtomicU64,
}

impl Shared {
    /// For a function with `queues` queues and `vectors` vectors.
    pub(crate) fn new(queues: usize, vectors: usize) -> Self {
        Self {
            vectors: (0..vectors).map(|_| ArcSwapOption::empty()).collect(),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            config_vector: AtomicU16::new(NO_VECTOR),
            isr: AtomicU8::new(0),
            generation: AtomicU8::new(0),
            needs_reset: AtomicBool::new(false),
            master: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            interrupts: AtomicU64::new(0),
        }
    }

    /// Queue `index` has used buffers.
    pub fn used(&self, index: usize) {
        self.isr.fetch_or(ISR_QUEUE, Ordering::AcqRel);
        if let Some(vector) = self.queue_vectors.get(index) {
            self.send(vector.load(Ordering::Acquire));
        }
    }

    /// The device's configuration space changed.
    pub fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.isr.fetch_or(ISR_CONFIG, Ordering::AcqRel);
        self.send(self.config_vector.load(Ordering::Acquire));
    }

    /// The device cannot go on before the driver resets it (section 2.1.2).
    pub fn needs_reset(&self) {
        if !self.needs_reset.swap(true, Ordering::AcqRel) {
            self.isr.fetch_or(ISR_CONFIG, Ordering::AcqRel);
            self.send(self.config_vector.load(Ordering::Acquire));
        }
    }

    /// Whether the guest lets the function access its memory (bus master enable).
    pub fn may_access_memory(&self) -> bool {
        self.master.load(Ordering::Acquire)
    }

    /// Whether the device's thread may take what is in the queues.
    pub(crate) fn may_serve(&self) -> bool {
        self.may_access_memory() && !self.ending.load(Ordering::Acquire)
    }

    /// Whether the thread is to end: it finishes the chain that it serves, and takes no other.
    pub(crate) fn set_ending(&self, ending: bool) {
        self.ending.store(ending, Ordering::Release);
    }

    /// A second handle to the eventfd behind queue `index`'s vector, if it has one now.
    pub(crate) fn queue_event(&self, index: usize) -> Option<Arc<OwnedFd>> {
        let vector = self.queue_vectors.get(index)?.load(Ordering::Acquire);
        self.vectors.get(usize::from(vector))?.load_full()
    }

    fn send(&self, vector: u16) {
        // An interrupt is a write to memory too.
        if !self.may_access_memory() {
            return;
        }
        if let Some(slot) = self.vectors.get(usize::from(vector))
            && let Some(event) = &*slot.load()
        {
            signal(event);
            self.interrupts.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many interrupts were sent since the guest was built. Those that the kernel sends are not known.
    pub(crate) fn interrupts(&self) -> u64 {
        self.interrupts.load(Ordering::Relaxed)
    }

    pub(crate) fn set_master(&self, on: bool) {
        self.master.store(on, Ordering::Release);
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire)
    }

    pub(crate) fn generation(&self) -> u8 {
        self.generation.load(Ordering::Acquire)
    }

    /// Reads the ISR status, which clears it.
    pub(crate) fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::AcqRel)
    }

    /// The vector of a queue, or of configuration changes for `None`; [`NO_VECTOR`]: none.
    pub(crate) fn vector(&self, queue: Option<usize>) -> u16 {
        self.vector_of(queue).map_or(NO_VECTOR, |v| v.load(Ordering::Acquire))
    }

    /// Sets it; one that does not exist becomes [`NO_VECTOR`], which tells the driver.
    pub(crate) fn set_vector(&self, queue: Option<usize>, vector: u16) {
        let exists = usize::from(vector) < self.vectors.len();
        if let Some(v) = self.vector_of(queue) {
            v.store(if exists { vector } else { NO_VECTOR }, Ordering::Release);
        }
    }

    fn vector_of(&self, queue: Option<usize>) -> Option<&AtomicU16> {
        match queue {
            None => Some(&self.config_vector),
            Some(index) => self.queue_vectors.get(index),
        }
    }

    /// Back to the state before the driver. Bus mastering is not virtio's and stays.
    pub(crate) fn reset(&self) {
        for vector in self.queue_vectors.iter().chain([&self.config_vector]) {
            vector.store(NO_VECTOR, Ordering::Release);
        }
        self.isr.store(0, Ordering::Release);
        self.needs_reset.store(false, Ordering::Release);
    }
}

/// Takes the eventfds of the vectors, as MSI-X hands them out.
pub(crate) struct Vectors<'a>(pub(crate) &'a Shared);

impl Signaller for Vectors<'_> {
    type Error = Infallible;

    fn set(&mut self, start: u32, fds: &[BorrowedFd<'_>]) -> Result<(), Infallible> {
        for (slot, fd) in self.0.vectors.iter().skip(start as usize).zip(fds) {
            match fd.as_fd().try_clone_to_owned() {
                Ok(fd) => slot.store(Some(Arc::new(fd))),
                Err(e) => tracing::warn!("an MSI-X vector stays silent: {e}"),
            }
        }
        Ok(())
    }

    fn clear(&mut self, count: u32) -> Result<(), Infallible> {
        for slot in self.0.vectors.iter().take(count as usize) {
            slot.store(None);
        }
        Ok(())
    }
}

/// Signals an eventfd.
pub(crate) fn signal(event: &OwnedFd) {
    // Fails only where the counter is full, and then the other side has not looked yet.
    let _ = rustix::io::write(event, &1u64.to_ne_bytes());
}

/// Empties an eventfd.
pub(crate) fn drain(event: &OwnedFd) {
    // Fails where it is empty, which is what is wanted. A server that has it too may have made it a blocking one.
    let mut count = [0; 8];
    let mut parts = [IoSliceMut::new(&mut count)];
    let _ = rustix::io::preadv2(event, &mut parts, u64::MAX, ReadWriteFlags::NOWAIT);
}
