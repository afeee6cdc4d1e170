//! The balloon's configuration space (virtio 1.3, section 5.5.4) and feature bits (5.5.3).

use crate::devices::virtio::Shared;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Feature bits.
pub(super) mod feature {
    /// The guest takes pages back where it has no others.
    pub(in super::super) const DEFLATE_ON_OOM: u64 = 1 << 2;
    /// The guest reports pages that are free.
    pub(in super::super) const REPORTING: u64 = 1 << 5;
}

/// Bytes: `num_pages` and `actual`, since no other feature is offered.
pub(super) const SIZE: usize = 8;

#[derive(Debug, Default)]
struct State {
    wanted: AtomicU32,
    actual: AtomicU32,
    running: Mutex<Weak<Shared>>,
}

/// What the guest is asked to give up, in pages of 4 KiB, and what it gave. Any thread may use it.
#[derive(Clone, Debug, Default)]
pub struct Target(Arc<State>);

impl Target {
    /// Asks the guest to give up `pages` in all. It gives what it can, when it can.
    pub fn set(&self, pages: u32) {
        self.0.wanted.store(pages, Ordering::Release);
        if let Some(shared) = self.running().upgrade() {
            shared.config_changed();
        }
    }

    /// How many pages the guest is asked to give up.
    pub fn wanted(&self) -> u32 {
        self.0.wanted.load(Ordering::Acquire)
    }

    /// How many pages the guest says that it gave up.
    pub fn actual(&self) -> u32 {
        self.0.actual.load(Ordering::Acquire)
    }

    fn running(&self) -> MutexGuard<'_, Weak<Shared>> {
        // It is replaced whole: a panic elsewhere leaves it sound.
        self.0.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn connect(&self, shared: &Arc<Shared>) {
        *self.running() = Arc::downgrade(shared);
    }

    pub(super) fn disconnect(&self) {
        *self.running() = Weak::new();
        self.0.actual.store(0, Ordering::Release);
    }

    pub(super) fn registers(&self) -> [u8; SIZE] {
        let mut r = [0; SIZE];
        r[..4].copy_from_slice(&self.0.wanted.load(Ordering::Acquire).to_le_bytes());
        r[4..].copy_from_slice(&self.actual().to_le_bytes());
        r
    }

    /// Only `actual` is the driver's to write, whole.
    pub(super) fn write(&self, offset: u64, data: &[u8]) {
        if let (4, Ok(word)) = (offset, <[u8; 4]>::try_from(data)) {
            self.0.actual.store(u32::from_le_bytes(word), Ordering::Release);
        }
    }
}
