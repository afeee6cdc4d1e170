//! Requests (virtio 1.3, section 5.13.6), served one after the other.

use super::registers::{LONGEST, PROBE_SIZE, Request, Status, TAIL, properties};
use super::{Guard, Handle};
use crate::devices::virtio::{Chain, Serve, VirtQueue};
use std::sync::Arc;
use vm_memory::GuestMemoryMmap;

/// The request queue.
pub(super) const REQUESTS: usize = 0;

/// Serves the queues.
pub(super) struct Requests {
    queue: VirtQueue,
    memory: Arc<GuestMemoryMmap>,
    chain: Chain,
    space: Handle,
    bypass: bool,
}

impl Requests {
    /// `bypass` says whether domains that translate nothing were agreed on.
    pub(super) fn new(
        queue: VirtQueue,
        memory: Arc<GuestMemoryMmap>,
        space: Handle,
        bypass: bool,
    ) -> Self {
        Self { queue, memory, chain: Chain::default(), space, bypass }
    }
}

impl Serve for Requests {
    fn kick(&mut self, queue: usize) {
        if queue != REQUESTS {
            return;
        }
        let Self { queue, memory, chain, space, bypass } = self;
        queue.serve(chain, |chain| answer(chain, memory, &mut space.lock(), *bypass));
    }
}

/// Does what `chain` asks for; how many bytes were written, from the first on.
fn answer(chain: &Chain, memory: &GuestMemoryMmap, space: &mut Guard<'_>, bypass: bool) -> u32 {
    let mut bytes = [0; LONGEST];
    let len = chain.readable().min(LONGEST as u64) as usize;
    let room = chain.writable();
    // Without room for the status nothing is done that the driver could not be told of.
    let Some(end) = room.checked_sub(TAIL as u64) else { return 0 };
    let read = chain.read(memory, 0, &mut bytes[..len]).map_err(|_| Status::Invalid);
    let request = read.and_then(|()| Request::parse(&bytes[..len], bypass));
    let (at, result) = match request {
        Ok(Request::Probe { endpoint }) if room >= (PROBE_SIZE + TAIL) as u64 => {
            let known = if space.has(endpoint) { Ok(()) } else { Err(Status::Missing) };
            let told = chain.write(memory, 0, &properties()).map_err(|_| Status::Invalid);
            (PROBE_SIZE as u64, known.and(told))
        }
        Ok(Request::Probe { .. }) => (end, Err(Status::Invalid)),
        Ok(request) => (0, space.apply(request)),
        // The status is last in what is not known.
        Err(status) => (end, Err(status)),
    };
    let tail = [result.err().unwrap_or(Status::Ok) as u8, 0, 0, 0];
    match chain.write(memory, at, &tail) {
        Ok(()) if at == 0 || at == PROBE_SIZE as u64 => (at + TAIL as u64) as u32,
        _ => 0,
    }
}
