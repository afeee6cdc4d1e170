//! What lasts while the kernel serves the guest.

use super::Shared;
use crate::devices::virtio::{Serve, VirtQueue};
use std::sync::PoisonError;

const EVENTS: usize = 2;

/// Dropping it stops the kernel.
pub(super) struct Running {
    kernel: Shared,
    /// Keeps the driver's buffers, for events that do not come.
    events: Option<VirtQueue>,
}

impl Running {
    pub(super) fn new(kernel: Shared, events: Option<VirtQueue>) -> Self {
        Self { kernel, events }
    }
}

impl Serve for Running {
    fn has(&self, queue: usize) -> bool {
        queue == EVENTS && self.events.is_some()
    }

    fn kick(&mut self, _: usize) {}
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kernel.lock().unwrap_or_else(PoisonError::into_inner).stop();
    }
}
