//! Events on their way to the guest.

use crate::devices::virtio::shared;
use rustix::event::{EventfdFlags, eventfd};
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Most events that wait for the guest.
const MOST: usize = 1024;
/// Synchronisation events, and the one that ends a report (linux/input-event-codes.h).
pub(super) const EV_SYN: u16 = 0;
pub(super) const SYN_REPORT: u16 = 0;

/// An event, in the terms of linux/input-event-codes.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its type.
    pub kind: u16,
    /// Its code.
    pub code: u16,
    /// Its value.
    pub value: i32,
}

impl Event {
    /// What ends a report.
    pub(super) const END: Self = Self { kind: EV_SYN, code: SYN_REPORT, value: 0 };

    /// As the guest reads it (5.8.6.2).
    pub(super) fn bytes(self) -> [u8; 8] {
        let mut bytes = [0; 8];
        bytes[..2].copy_from_slice(&self.kind.to_le_bytes());
        bytes[2..4].copy_from_slice(&self.code.to_le_bytes());
        bytes[4..].copy_from_slice(&self.value.to_le_bytes());
        bytes
    }
}

/// The guest does not take events: the report is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the guest is {MOST} events behind: the report is dropped")]
pub struct NoRoom;

/// Sends reports to a guest. Never waits.
#[derive(Clone, Debug)]
pub struct InputSender {
    waiting: Arc<Mutex<VecDeque<Event>>>,
    event: Arc<OwnedFd>,
}

impl InputSender {
    pub(super) fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { waiting: Arc::default(), event: Arc::new(event) })
    }

    /// Sends events that happened at the same moment. All of them or none.
    pub fn send(&self, report: &[Event]) -> Result<(), NoRoom> {
        let mut waiting = self.waiting();
        if waiting.len() + report.len() >= MOST {
            return Err(NoRoom);
        }
        waiting.extend(report);
        waiting.push_back(Event::END);
        drop(waiting);
        shared::signal(&self.event);
        Ok(())
    }

    pub(super) fn waiting(&self) -> MutexGuard<'_, VecDeque<Event>> {
        // No operation on it panics half-way.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn clear(&self) {
        self.waiting().clear();
        shared::drain(&self.event);
    }

    pub(super) fn event(&self) -> &OwnedFd {
        &self.event
    }
}
