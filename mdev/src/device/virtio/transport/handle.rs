//! What a virtio device shares with its slice's threads.

use super::{CONFIG_SLOT, QUEUES};
use crate::device::eventfd::EventFd;
use crate::device::pci::msix::{IrqError, IrqTable};
use crate::device::virtio::queue::Queue;
use crate::memory::GuestMemory;
use beamline_abi::virtio_pci::NO_VECTOR;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The queues of a driver that is ready.
pub struct QueueSet {
    /// Which life of the device they belong to, see [`VirtioHandle::epoch`].
    pub epoch: u64,
    /// The features agreed on.
    pub features: u64,
    pub(super) queues: [Option<Queue>; QUEUES],
}

impl QueueSet {
    /// Takes queue `index`, once, if the driver enabled it.
    pub fn take(&mut self, index: u16) -> Option<Queue> {
        self.queues.get_mut(usize::from(index))?.take()
    }
}

/// What the device model and the slice's threads share.
pub(super) struct Shared {
    pub(super) memory: Arc<GuestMemory>,
    pub(super) irqs: Arc<IrqTable>,
    pub(super) kicks: [EventFd; QUEUES],
    pub(super) wake: EventFd,
    /// Vectors of the queues, then of configuration changes.
    pub(super) vectors: Arc<[AtomicU16]>,
    pub(super) isr: Arc<AtomicU8>,
    pub(super) needs_reset: AtomicBool,
    /// Raised at every DRIVER_OK and at every reset of a device that was ready.
    pub(super) epoch: AtomicU64,
    /// Queues that nobody has taken yet.
    pub(super) ready: Mutex<Option<QueueSet>>,
}

impl Shared {
    /// Sets DEVICE_NEEDS_RESET and tells the driver.
    pub(super) fn fail(&self) -> Result<bool, IrqError> {
        self.needs_reset.store(true, Ordering::Release);
        match self.vectors[CONFIG_SLOT].load(Ordering::Acquire) {
            NO_VECTOR => {
                self.isr.fetch_or(2, Ordering::Release);
                Ok(false)
            }
            vector => self.irqs.signal(vector),
        }
    }

    pub(super) fn ready(&self) -> MutexGuard<'_, Option<QueueSet>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The slice's side of a virtio device. A clone is the same device.
#[derive(Clone)]
pub struct VirtioHandle(pub(super) Arc<Shared>);

impl VirtioHandle {
    /// The guest's memory.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.0.memory
    }

    /// The doorbell of a queue; `None` where there is no such queue. The queue is to be looked at
    /// after each signal.
    pub fn kick(&self, queue: u16) -> Option<&EventFd> {
        self.0.kicks.get(usize::from(queue))
    }

    /// Signalled when the driver became ready or the device was reset: [`VirtioHandle::take_queues`] comes
    /// after.
    pub fn wake(&self) -> &EventFd {
        &self.0.wake
    }

    /// Which life of the device this is: work that began in another one is stale.
    pub fn epoch(&self) -> u64 {
        self.0.epoch.load(Ordering::Acquire)
    }

    /// The queues of a driver that became ready since the last call. Queues taken earlier are dead then.
    pub fn take_queues(&self) -> Option<QueueSet> {
        self.0.ready().take()
    }

    /// Tells the driver that the device needs a reset: after a [`QueueError`](crate::device::virtio::queue::QueueError).
    pub fn fail(&self) -> Result<bool, IrqError> {
        self.0.fail()
    }
}
