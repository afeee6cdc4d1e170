//! vhost-vsock of the kernel, by the crate vhost.
#![allow(unsafe_code)] // The crate wants eventfds in a type that is made of a raw number only.

use crate::Gpa;
use rustix::event::{EventfdFlags, eventfd};
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;
use vhost::vhost_kern::vsock::Vsock;
use vhost::vsock::VhostVsock as _;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MemoryRegionAddress};
use vmm_sys_util::eventfd::EventFd;

/// Why the kernel does not serve sockets.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// It cannot be opened.
    #[error(
        "/dev/vhost-vsock cannot be opened: load the kernel's module (modprobe vhost_vsock), and let this \
         user use the device"
    )]
    Open(#[source] vhost::Error),
    /// The context ID.
    #[error("context ID {cid} is refused: another guest may have it")]
    Cid {
        /// The ID.
        cid: u32,
        /// Why.
        source: vhost::Error,
    },
    /// A request failed.
    #[error("vhost-vsock refused {what}")]
    Refused {
        /// What.
        what: &'static str,
        /// Why.
        source: vhost::Error,
    },
    /// A descriptor.
    #[error("an eventfd cannot be made")]
    Event(#[source] io::Error),
    /// Guest memory.
    #[error("a region of guest memory has no address in this process")]
    Memory,
}

/// A queue as the kernel needs it.
pub struct KernelQueue<'a> {
    /// Size and addresses: all of each area is in one region.
    pub ring: &'a Queue,
    /// What the driver's kicks signal.
    pub kick: &'a OwnedFd,
    /// What is signalled for used buffers; `None`: the driver only looks.
    pub call: Option<Arc<OwnedFd>>,
}

/// The kernel's side of a socket device.
pub trait Kernel: Send {
    /// The feature bits that it has.
    fn features(&self) -> u64;
    /// Serves receive and transmit queue from now on.
    fn start(
        &mut self,
        memory: &GuestMemoryMmap,
        features: u64,
        queues: &[KernelQueue<'_>],
    ) -> Result<(), VsockError>;
    /// Serves them no more: when this returns the kernel touches no guest memory.
    fn stop(&mut self);
}

/// The three areas of a ring: where, and how many bytes.
pub(super) fn areas(ring: &Queue) -> [(Gpa, u64); 3] {
    let size = u64::from(ring.size());
    [
        (Gpa(ring.desc_table()), 16 * size),
        (Gpa(ring.avail_ring()), 6 + 2 * size),
        (Gpa(ring.used_ring()), 6 + 8 * size),
    ]
}

/// `/dev/vhost-vsock`.
pub struct VhostVsock {
    vhost: Vsock<Arc<GuestMemoryMmap>>,
    features: u64,
}

impl VhostVsock {
    /// Takes `cid` for the guest whose memory this is.
    pub fn open(cid: u32, memory: Arc<GuestMemoryMmap>) -> Result<Self, VsockError> {
        let vhost = Vsock::new(memory).map_err(VsockError::Open)?;
        let refused = |what| move |source| VsockError::Refused { what, source };
        vhost.set_owner().map_err(refused("an owner"))?;
        let features = vhost.get_features().map_err(refused("to name its features"))?;
        vhost.set_guest_cid(cid.into()).map_err(|source| VsockError::Cid { cid, source })?;
        Ok(Self { vhost, features })
    }

    fn set_queue(&self, index: usize, queue: &KernelQueue<'_>) -> Result<(), VsockError> {
        let refused = |what| move |source| VsockError::Refused { what, source };
        let v = &self.vhost;
        v.set_vring_num(index, queue.ring.size()).map_err(refused("a queue's size"))?;
        v.set_vring_base(index, 0).map_err(refused("a queue's start"))?;
        let config = VringConfigData {
            queue_max_size: queue.ring.max_size(),
            queue_size: queue.ring.size(),
            flags: 0,
            desc_table_addr: queue.ring.desc_table(),
            used_ring_addr: queue.ring.used_ring(),
            avail_ring_addr: queue.ring.avail_ring(),
            log_addr: None,
        };
        v.set_vring_addr(index, &config).map_err(refused("a queue's addresses"))?;
        let call = match &queue.call {
            Some(event) => event.try_clone().map_err(VsockError::Event)?,
            // It has to have one; nobody looks at this one.
            None => eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
                .map_err(|e| VsockError::Event(e.into()))?,
        };
        v.set_vring_call(index, &event(call)).map_err(refused("a queue's vector"))?;
        let kick = queue.kick.try_clone().map_err(VsockError::Event)?;
        v.set_vring_kick(index, &event(kick)).map_err(refused("a queue's kicks"))
    }
}

/// The crate's type for an eventfd.
fn event(fd: OwnedFd) -> EventFd {
    // SAFETY: the number is an eventfd's that nobody else owns any more.
    unsafe { EventFd::from_raw_fd(fd.into_raw_fd()) }
}

impl Kernel for VhostVsock {
    fn features(&self) -> u64 {
        self.features
    }

    fn start(
        &mut self,
        memory: &GuestMemoryMmap,
        features: u64,
        queues: &[KernelQueue<'_>],
    ) -> Result<(), VsockError> {
        let refused = |what| move |source| VsockError::Refused { what, source };
        let mut regions = Vec::new();
        for region in memory.iter() {
            let address =
                region.get_host_address(MemoryRegionAddress(0)).map_err(|_| VsockError::Memory)?;
            regions.push(VhostUserMemoryRegionInfo {
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: address as u64,
                mmap_offset: 0,
                mmap_handle: -1,
            });
        }
        self.vhost.set_features(features).map_err(refused("the features"))?;
        self.vhost.set_mem_table(&regions).map_err(refused("the guest's memory"))?;
        for (index, queue) in queues.iter().enumerate() {
            self.set_queue(index, queue)?;
        }
        self.vhost.start().map_err(refused("to start"))
    }

    fn stop(&mut self) {
        if let Err(e) = self.vhost.stop() {
            tracing::warn!("vhost-vsock does not stop: {e}");
        }
    }
}
