//! An IOMMU (virtio 1.3, section 5.13): the guest chooses what of its memory other functions see.
//!
//! ```text
//!  guest ── requests ─► queue ─► space: domains ─► View: one function's ─► its server: DMA_MAP, DMA_UNMAP
//! ```
//!
//! What a function may not see its server never has: there is nothing to look up when it reads or writes.
//! Interrupts are not remapped.

mod queue;
mod registers;
#[cfg(test)]
mod slow_tests;
mod space;
#[cfg(test)]
mod tests;

use super::{Activation, DeviceError, DeviceModel, Kind, Serve, read_space};
use crate::Gpa;
use registers::{Request, Status, feature};
use space::Space;
use std::cell::Cell;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Requests, then events.
const QUEUES: [u16; 2] = [128, 16];

/// A piece of guest memory, as an endpoint sees it: whole pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First address that the endpoint uses.
    pub at: u64,
    /// Last one.
    pub last: u64,
    /// What is at the first one. None of the mapping's bytes is beyond 2^64.
    pub to: Gpa,
    /// The endpoint may read.
    pub read: bool,
    /// The endpoint may write.
    pub write: bool,
}

impl Mapping {
    /// What is at the last address.
    pub fn to_last(&self) -> Gpa {
        Gpa(self.to.0 + (self.last - self.at))
    }
}

/// Why a view did not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ViewError {
    /// Nothing more can be shown.
    #[error("the function takes no more mappings: unmap some first")]
    Full,
    /// Something stays shown.
    #[error("the function's server does not give a mapping back")]
    Stuck,
}

/// What one function sees of the guest's memory. When a call returns, what it took away is used no more.
pub trait View: Send {
    /// A request of the guest's begins, which may take several of the calls below: a view whose server takes too
    /// long over all of them gives the server up.
    fn begin(&mut self) {}
    /// Shows all RAM at its own addresses, where nothing is shown.
    fn show_all(&mut self) -> Result<(), ViewError>;
    /// Shows what is RAM of `mapping`: all of it, or, with an error, nothing. It overlaps nothing that is
    /// shown.
    fn show(&mut self, mapping: &Mapping) -> Result<(), ViewError>;
    /// Takes back what [`Self::show`] showed of `mapping`.
    fn hide(&mut self, mapping: &Mapping) -> Result<(), ViewError>;
    /// Takes everything back.
    fn hide_all(&mut self) -> Result<(), ViewError>;
}

/// What is behind an IOMMU: views by the endpoint's number.
pub type Views = Vec<(u32, Box<dyn View>)>;

/// Domains and endpoints, as registers and queue share them.
#[derive(Clone)]
struct Handle(Arc<Turns>);

struct Turns {
    /// Held while waiting for the space: whoever has just had it waits here, behind the one who waits for it. So a
    /// vCPU waits for one request, and not for all that are in the queue.
    next: Mutex<()>,
    space: Mutex<Space>,
}

impl Handle {
    fn new(space: Space) -> Self {
        Self(Arc::new(Turns { next: Mutex::new(()), space: Mutex::new(space) }))
    }

    fn lock(&self) -> Guard<'_> {
        let _turn = self.0.next.lock().unwrap_or_else(PoisonError::into_inner);
        // A panic within a request leaves tables that are whole.
        Guard(self.0.space.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

struct Guard<'a>(MutexGuard<'a, Space>);

impl Guard<'_> {
    fn has(&self, endpoint: u32) -> bool {
        self.0.has(endpoint)
    }

    fn apply(&mut self, request: Request) -> Result<(), Status> {
        let space = &mut *self.0;
        match request {
            Request::Attach { domain, endpoint, bypass } => space.attach(endpoint, domain, bypass),
            Request::Detach { domain, endpoint } => space.detach(endpoint, domain),
            Request::Map { domain, mapping } => space.map(domain, mapping),
            Request::Unmap { domain, first, last } => space.unmap(domain, first, last),
            // The queue answers these itself.
            Request::Probe { .. } => Err(Status::Unsupported),
        }
    }
}

/// A virtio IOMMU.
pub struct Iommu {
    space: Handle,
    /// `bypass` is the driver's to write.
    may_bypass: Cell<bool>,
}

impl Iommu {
    /// An IOMMU in front of these endpoints, by number. All of them see all RAM at its own addresses now.
    pub fn new(endpoints: Views) -> Self {
        Self { space: Handle::new(Space::new(endpoints)), may_bypass: Cell::new(false) }
    }
}

impl DeviceModel for Iommu {
    fn kind(&self) -> Kind {
        Kind::Iommu
    }

    fn features(&self) -> u64 {
        feature::ALL
    }

    fn accepts(&self, features: u64) -> bool {
        self.may_bypass.set(features & feature::BYPASS_CONFIG != 0);
        true
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUES
    }

    fn config_len(&self) -> u32 {
        registers::CONFIG_SIZE as u32
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let bypass = self.space.lock().0.bypass();
        read_space(&registers::config(bypass), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (registers::BYPASS, [value @ (0 | 1)], true) = (offset, data, self.may_bypass.get())
        {
            self.space.lock().0.set_bypass(*value == 1);
        }
    }

    fn activate(&mut self, mut start: Activation) -> Result<Box<dyn Serve>, DeviceError> {
        let requests = start.need(queue::REQUESTS)?;
        let bypass = start.features & feature::BYPASS_CONFIG != 0;
        let space = self.space.clone();
        Ok(Box::new(queue::Requests::new(requests, start.memory, space, bypass)))
    }

    fn reset(&mut self) {
        self.space.lock().0.reset();
    }
}
