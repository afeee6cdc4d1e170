//! Eventfds of our own: doorbells and wake-ups.

use rustix::event::EventfdFlags;
use rustix::io::{Errno, ReadWriteFlags};
use std::io::IoSliceMut;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// A non-blocking eventfd that several threads share. A clone is the same eventfd.
#[derive(Clone, Debug)]
pub struct EventFd(Arc<OwnedFd>);

impl EventFd {
    /// A new one, not signalled.
    pub fn new() -> Result<Self, Errno> {
        let fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(Arc::new(fd)))
    }

    /// Makes it readable, and wakes who waits for its signals. Never blocks.
    pub fn signal(&self) {
        let one = 1u64.to_ne_bytes();
        // The only error is a full counter, which only a peer can have filled: it wakes nobody any more.
        if rustix::io::write(&*self.0, &one).is_err() {
            self.take();
            let _ = rustix::io::write(&*self.0, &one);
        }
    }

    /// Takes the signal back; whether there was one.
    pub fn take(&self) -> bool {
        self.take_all() > 0
    }

    /// Takes all signals back; how many there were. Never blocks, also where a peer that has the eventfd too has made
    /// it a blocking one.
    pub fn take_all(&self) -> u64 {
        let mut count = [0; 8];
        let mut parts = [IoSliceMut::new(&mut count)];
        // No position: it is a stream.
        match rustix::io::preadv2(&*self.0, &mut parts, u64::MAX, ReadWriteFlags::NOWAIT) {
            Ok(8) => u64::from_ne_bytes(count),
            _ => 0,
        }
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
