//! Sockets between host and guest (virtio 1.3, section 5.10), served by the host's kernel (vhost-vsock).
//!
//! The kernel takes kicks from the queues' own eventfds and signals the vectors' own: no thread of this
//! process is on the path. Only the event queue, which the kernel leaves alone, is served here: nothing
//! happens on it before a guest can be moved to another host.

mod kernel;
mod queue;
mod registers;
#[cfg(test)]
mod tests;

pub use kernel::{Kernel, KernelQueue, VhostVsock, VsockError};

use super::{Activation, DeviceError, DeviceModel, Kind, Serve, read_space};
use std::sync::{Arc, Mutex, PoisonError};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

/// Receive, transmit, events.
const QUEUES: [u16; 3] = [128, 128, 16];
/// VIRTIO_VSOCK_F_SEQPACKET.
const SEQPACKET: u64 = 1 << 1;

/// The smallest context ID that a guest can have; 0 to 2 have a meaning of their own (5.10.4).
pub const MIN_CID: u32 = 3;

/// The kernel's part, shared with what stops it.
type Shared = Arc<Mutex<Box<dyn Kernel>>>;

/// A virtio socket device.
pub struct Vsock {
    cid: u32,
    kernel: Shared,
    features: u64,
}

impl Vsock {
    /// The guest with context ID `cid`, which `kernel` knows already.
    pub fn new(cid: u32, kernel: Box<dyn Kernel>) -> Self {
        let features = kernel.features();
        Self { cid, features, kernel: Arc::new(Mutex::new(kernel)) }
    }
}

impl DeviceModel for Vsock {
    fn kind(&self) -> Kind {
        Kind::Vsock
    }

    fn features(&self) -> u64 {
        self.features & SEQPACKET
    }

    fn accepts(&self, features: u64) -> bool {
        // The transport offers its own, all of which every kernel has. One that has not must not lie.
        features & !self.features == 0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUES
    }

    fn config_len(&self) -> u32 {
        registers::SIZE as u32
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_space(&registers::registers(self.cid), offset, data);
    }

    fn activate(&mut self, mut start: Activation) -> Result<Box<dyn Serve>, DeviceError> {
        let queues = [start.need(0)?, start.need(1)?];
        let events = start.take(2);
        let mut for_kernel = Vec::with_capacity(queues.len());
        for queue in &queues {
            let ring = kernel::areas(queue.ring());
            if !ring.iter().all(|(at, len)| in_one_region(&start.memory, *at, *len)) {
                return Err(DeviceError::Kernel {
                    what: "a queue for the kernel",
                    why: "it is in two regions of RAM".into(),
                });
            }
            for_kernel.push(KernelQueue {
                ring: queue.ring(),
                kick: queue.kick_fd(),
                call: start.shared.queue_event(queue.index()),
            });
        }
        let mut kernel = self.kernel.lock().unwrap_or_else(PoisonError::into_inner);
        kernel
            .start(&start.memory, start.features, &for_kernel)
            .map_err(|e| DeviceError::Kernel { what: "vhost-vsock", why: e.to_string() })?;
        drop(kernel);
        Ok(Box::new(queue::Running::new(Arc::clone(&self.kernel), events)))
    }
}

/// The kernel is told where a ring starts in this process: all of it must be in the same mapping.
fn in_one_region(memory: &GuestMemoryMmap, at: crate::Gpa, len: u64) -> bool {
    memory.find_region(at).is_some_and(|region| {
        (at.0 - region.start_addr().0).checked_add(len).is_some_and(|end| end <= region.len())
    })
}
