//! Buffers to be filled (virtio 1.3, section 5.4.6).

use crate::devices::virtio::{Chain, Serve, VirtQueue};
use rustix::rand::{GetRandomFlags, getrandom};
use std::sync::Arc;
use vm_memory::GuestMemoryMmap;

/// Most bytes of an answer: a device may fill less than the whole buffer.
const MOST: usize = 4096;

/// Serves the queue.
pub(super) struct Requests {
    queue: VirtQueue,
    memory: Arc<GuestMemoryMmap>,
    chain: Chain,
}

impl Requests {
    pub(super) fn new(queue: VirtQueue, memory: Arc<GuestMemoryMmap>) -> Self {
        Self { queue, memory, chain: Chain::default() }
    }
}

impl Serve for Requests {
    fn kick(&mut self, _: usize) {
        let memory = &self.memory;
        self.queue.serve(&mut self.chain, |chain| {
            let mut bytes = [0; MOST];
            let len = chain.writable().min(MOST as u64) as usize;
            // The kernel's source blocks only in the first moments after the host's boot.
            let Ok(len) = getrandom(&mut bytes[..len], GetRandomFlags::empty()) else { return 0 };
            chain.write(memory, 0, &bytes[..len]).map_or(0, |()| len as u32)
        });
    }
}
