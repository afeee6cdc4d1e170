//! Devices whose queues somebody else serves: the host's kernel, or another process by vhost-user.
//!
//! Whoever serves takes kicks from the queues' own eventfds and signals the vectors' own: no thread of this process
//! is on the path. What is the same for both is here; [`user`] speaks vhost-user.
#![allow(unsafe_code)] // The crate vhost wants eventfds in a type that is made of a raw number only.

pub mod user;

use super::{Activation, DeviceError, VirtQueue};
use crate::Gpa;
use rustix::event::{EventfdFlags, eventfd};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MemoryRegionAddress};
use vmm_sys_util::eventfd::EventFd;

/// Why whoever is to serve does not.
#[derive(Debug, thiserror::Error)]
pub enum VhostError {
    /// A request failed.
    #[error("{server} refused {what}")]
    Refused {
        /// Who.
        server: String,
        /// What.
        what: &'static str,
        /// Why.
        source: vhost::Error,
    },
    /// A descriptor.
    #[error("an eventfd cannot be made")]
    Event(#[source] io::Error),
    /// Guest memory.
    #[error("a region of guest memory has no address in this process, or no file")]
    Memory,
}

/// A queue as its server needs it.
pub struct Ring<'a> {
    /// Size and addresses: all of each area is in one region.
    pub queue: &'a Queue,
    /// What the driver's kicks signal.
    pub kick: &'a OwnedFd,
    /// What is signalled for used buffers; `None`: the driver only looks.
    pub call: Option<Arc<OwnedFd>>,
}

/// Who serves a device's queues.
pub trait Server: Send {
    /// The feature bits that it has.
    fn features(&self) -> u64;
    /// Serves the queues from now on.
    fn start(
        &mut self,
        memory: &GuestMemoryMmap,
        features: u64,
        rings: &[Ring<'_>],
    ) -> Result<(), VhostError>;
    /// Serves them no more: when this returns it touches no guest memory, if it keeps to the protocol.
    fn stop(&mut self);
}

/// The queues for their server. A server is told where a ring starts in this process, or in a file: all of it must be
/// in one region.
pub(super) fn rings<'a>(
    start: &Activation,
    queues: &'a [VirtQueue],
) -> Result<Vec<Ring<'a>>, DeviceError> {
    let ring = |queue: &'a VirtQueue| {
        if !areas(queue.ring()).iter().all(|(at, len)| in_one_region(&start.memory, *at, *len)) {
            return Err(DeviceError::Kernel {
                what: "a queue for its server",
                why: "it is in two regions of RAM".into(),
            });
        }
        let call = start.shared.queue_event(queue.index());
        Ok(Ring { queue: queue.ring(), kick: queue.kick_fd(), call })
    };
    queues.iter().map(ring).collect()
}

/// The three areas of a ring: where, and how many bytes.
fn areas(ring: &Queue) -> [(Gpa, u64); 3] {
    let size = u64::from(ring.size());
    [
        (Gpa(ring.desc_table()), 16 * size),
        (Gpa(ring.avail_ring()), 6 + 2 * size),
        (Gpa(ring.used_ring()), 6 + 8 * size),
    ]
}

/// Whether these bytes are in the same region.
pub(super) fn in_one_region(memory: &GuestMemoryMmap, at: Gpa, len: u64) -> bool {
    memory.find_region(at).is_some_and(|region| {
        (at.0 - region.start_addr().0).checked_add(len).is_some_and(|end| end <= region.len())
    })
}

/// The regions of guest memory: by their address in this process, and by their file, where they have one.
pub(super) fn regions(
    memory: &GuestMemoryMmap,
) -> Result<Vec<VhostUserMemoryRegionInfo>, VhostError> {
    let info = |region: &vm_memory::GuestRegionMmap| {
        let address = region.get_host_address(MemoryRegionAddress(0));
        let (handle, offset) =
            region.file_offset().map_or((-1, 0), |file| (file.file().as_raw_fd(), file.start()));
        Ok(VhostUserMemoryRegionInfo {
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: address.map_err(|_| VhostError::Memory)? as u64,
            mmap_offset: offset,
            mmap_handle: handle,
        })
    };
    memory.iter().map(info).collect()
}

/// Tells `backend` of a queue. `addresses`: what its three areas' addresses mean to the backend, from a guest-physical
/// address.
pub(super) fn set_ring(
    backend: &impl VhostBackend,
    server: &str,
    index: usize,
    ring: &Ring<'_>,
    address: impl Fn(u64) -> Option<u64>,
) -> Result<(), VhostError> {
    let refused =
        |what| move |source| VhostError::Refused { server: server.to_owned(), what, source };
    let at = |gpa| address(gpa).ok_or(VhostError::Memory);
    let queue = ring.queue;
    backend.set_vring_num(index, queue.size()).map_err(refused("a queue's size"))?;
    backend.set_vring_base(index, 0).map_err(refused("a queue's start"))?;
    let config = VringConfigData {
        queue_max_size: queue.max_size(),
        queue_size: queue.size(),
        flags: 0,
        desc_table_addr: at(queue.desc_table())?,
        used_ring_addr: at(queue.used_ring())?,
        avail_ring_addr: at(queue.avail_ring())?,
        log_addr: None,
    };
    backend.set_vring_addr(index, &config).map_err(refused("a queue's addresses"))?;
    let call = match &ring.call {
        Some(event) => event.try_clone().map_err(VhostError::Event)?,
        // It has to have one; nobody looks at this one.
        None => eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| VhostError::Event(e.into()))?,
    };
    backend.set_vring_call(index, &event(call)).map_err(refused("a queue's vector"))?;
    let kick = ring.kick.try_clone().map_err(VhostError::Event)?;
    backend.set_vring_kick(index, &event(kick)).map_err(refused("a queue's kicks"))
}

/// The crate's type for an eventfd.
fn event(fd: OwnedFd) -> EventFd {
    // SAFETY: the number is an eventfd's that nobody else owns any more.
    unsafe { EventFd::from_raw_fd(fd.into_raw_fd()) }
}

/// An error with its causes, in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
