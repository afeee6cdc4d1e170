//! The devices that the VMM itself offers its guest: virtio 1.3, over modern PCI only.
//!
//! ```text
//!  vCPU thread                                device's own thread
//!  Transport ──── activate ─► DeviceModel ──► Serve ◄── kicks (ioeventfd), its own descriptors
//!   registers, MSI-X, status                    │
//!        ▲                                      └─► Shared ──► vector's eventfd (irqfd) ─► guest
//!        └────────────── reset: stops and joins the thread
//! ```
//!
//! A device model ([`DeviceModel`]) says what it is and keeps its configuration space; what serves its
//! queues ([`Serve`]) exists from `DRIVER_OK` to the next reset, on a thread of its own.

mod build;
mod chain;
mod queue;
mod shared;
mod worker;

pub mod balloon;
pub mod blk;
pub mod console;
pub mod input;
pub mod iommu;
pub mod net;
pub mod rng;
pub mod transport;
pub mod vhost;
pub mod vsock;

#[cfg(test)]
mod guest_tests;
#[cfg(test)]
pub(crate) mod testing;

pub use build::{Activity, BuildError, Built, Control, Hold, build};
pub use chain::{Chain, Fault, Segment};
pub use queue::VirtQueue;
pub use shared::Shared;
pub use transport::Transport;

use rustix::event::PollFlags;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use vm_memory::GuestMemoryMmap;

/// The largest queue of any device.
pub const MAX_QUEUE: u16 = 256;

/// Device types (virtio 1.3, section 5) that there are here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Network card.
    Net,
    /// Block device.
    Block,
    /// Console.
    Console,
    /// Entropy source.
    Rng,
    /// Memory balloon.
    Balloon,
    /// Input device.
    Input,
    /// Socket device.
    Vsock,
    /// IOMMU.
    Iommu,
}

impl Kind {
    /// The device ID of the specification.
    pub const fn id(self) -> u16 {
        match self {
            Self::Net => 1,
            Self::Block => 2,
            Self::Console => 3,
            Self::Rng => 4,
            Self::Balloon => 5,
            Self::Input => 18,
            Self::Vsock => 19,
            Self::Iommu => 23,
        }
    }

    /// The PCI class code: class, subclass, programming interface.
    pub const fn class(self) -> u32 {
        match self {
            Self::Net => 0x02_00_00,
            Self::Block => 0x01_80_00,
            Self::Console => 0x07_80_00,
            Self::Rng | Self::Balloon => 0x00_ff_00,
            Self::Input => 0x09_80_00,
            Self::Vsock => 0x02_80_00,
            Self::Iommu => 0x08_06_00,
        }
    }
}

/// Why a device cannot start to serve its guest.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The driver left out a queue.
    #[error("the driver did not enable queue {0}, which the device needs")]
    Queue(usize),
    /// The operating system.
    #[error("{what}: {source}")]
    Os {
        /// What.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// The kernel's part of the device.
    #[error("{what}: {why}")]
    Kernel {
        /// What was asked.
        what: &'static str,
        /// Why it failed.
        why: String,
    },
}

/// A device behind the transport. Calls come from one thread.
pub trait DeviceModel: Send {
    /// What it is.
    fn kind(&self) -> Kind;
    /// Feature bits that it offers; the transport adds its own.
    fn features(&self) -> u64;
    /// Which of the rings' feature bits (virtio 1.3, section 6) it can do, of those that the transport offers.
    fn ring_features(&self) -> u64 {
        u64::MAX
    }
    /// Whether it works with this subset of its features.
    fn accepts(&self, features: u64) -> bool {
        let _ = features;
        true
    }
    /// The largest size of each queue: powers of two, at most [`MAX_QUEUE`].
    fn queue_sizes(&self) -> &[u16];
    /// Bytes of its configuration space; 0: none.
    fn config_len(&self) -> u32 {
        0
    }
    /// Reads its configuration space; bytes beyond its end are left as they are.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let _ = (offset, data);
    }
    /// Writes its configuration space.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }
    /// The driver is ready: makes what serves the queues.
    fn activate(&mut self, start: Activation) -> Result<Box<dyn Serve>, DeviceError>;
    /// The driver reset the device. What served the queues is gone.
    fn reset(&mut self) {}
}

/// Serves a device's queues, on the device's own thread. Dropped on that thread.
pub trait Serve: Send {
    /// Whether it serves queue `queue` itself; the kernel serves the others.
    fn has(&self, queue: usize) -> bool {
        let _ = queue;
        true
    }
    /// Queue `queue` was kicked.
    fn kick(&mut self, queue: usize);
    /// Descriptors to wait for, besides kicks: each with the number that [`Self::ready`] gets.
    fn sources<'a>(&'a self, add: &mut dyn FnMut(u32, BorrowedFd<'a>, PollFlags)) {
        let _ = add;
    }
    /// The source is ready; `flags` may say that it has an error or an end.
    fn ready(&mut self, source: u32, flags: PollFlags) {
        let _ = (source, flags);
    }
}

/// What a device needs to start.
pub struct Activation {
    /// The features that driver and device agreed on.
    pub features: u64,
    /// The guest's memory.
    pub memory: Arc<GuestMemoryMmap>,
    /// Interrupts, and the end of a device that is broken.
    pub shared: Arc<Shared>,
    pub(crate) queues: Vec<Option<VirtQueue>>,
}

impl Activation {
    /// Takes queue `index`, if the driver enabled it.
    pub fn take(&mut self, index: usize) -> Option<VirtQueue> {
        self.queues.get_mut(index).and_then(Option::take)
    }

    /// Takes queue `index`, which the device cannot do without.
    pub fn need(&mut self, index: usize) -> Result<VirtQueue, DeviceError> {
        self.take(index).ok_or(DeviceError::Queue(index))
    }

    /// Whether this feature bit was agreed on.
    pub fn has(&self, bit: u32) -> bool {
        self.features & 1 << bit != 0
    }
}

/// Copies the part of `space` from `offset` on to `data`, as far as it reaches.
pub(crate) fn read_space(space: &[u8], offset: u64, data: &mut [u8]) {
    let from = usize::try_from(offset).ok().and_then(|at| space.get(at..)).unwrap_or(&[]);
    for (to, byte) in data.iter_mut().zip(from) {
        *to = *byte;
    }
}
