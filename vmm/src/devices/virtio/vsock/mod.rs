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

pub use kernel::{VhostVsock, VsockError};

use super::vhost::{self, Server};
use super::{Activation, DeviceError, DeviceModel, Kind, Serve, read_space};
use std::sync::{Arc, Mutex, PoisonError};

/// Receive, transmit, events.
const QUEUES: [u16; 3] = [128, 128, 16];
/// VIRTIO_VSOCK_F_SEQPACKET.
const SEQPACKET: u64 = 1 << 1;

/// The smallest context ID that a guest can have; 0 to 2 have a meaning of their own (5.10.4).
pub const MIN_CID: u32 = 3;

/// The kernel's part, shared with what stops it.
type Shared = Arc<Mutex<Box<dyn Server>>>;

/// A virtio socket device.
pub struct Vsock {
    cid: u32,
    kernel: Shared,
    features: u64,
}

impl Vsock {
    /// The guest with context ID `cid`, which `kernel` knows already.
    pub fn new(cid: u32, kernel: Box<dyn Server>) -> Self {
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

    fn ring_features(&self) -> u64 {
        self.features
    }

    fn accepts(&self, features: u64) -> bool {
        // A kernel without VERSION_1 must not seem to have it.
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
        let rings = vhost::rings(&start, &queues)?;
        let mut kernel = self.kernel.lock().unwrap_or_else(PoisonError::into_inner);
        kernel
            .start(&start.memory, start.features, &rings)
            .map_err(|e| DeviceError::Kernel { what: "vhost-vsock", why: vhost::chain(&e) })?;
        drop(kernel);
        Ok(Box::new(queue::Running::new(Arc::clone(&self.kernel), events)))
    }
}
