//! What a slice's thread waits for: its doorbells and wake-ups, and the word to stop.
//!
//! The epoll is edge-triggered: every signal of an eventfd is an event of its own, whatever the counter says. So
//! nobody reads the counters, and a wake-up costs one system call, and looks at what was signalled only.

use crate::device::eventfd::EventFd;
use beamline_vfio_user::server::Stop;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use std::io;
use std::mem::MaybeUninit;

/// What an event of the epoll is.
const BELL: u64 = 0;
const STOP: u64 = 1;
/// Most events that one wait takes; more come with the next.
const EVENTS: usize = 4;

/// Doorbells and wake-ups of one thread.
pub(super) struct Bells(OwnedFd);

impl Bells {
    /// For `events`, also if they were signalled before, and for `stop`.
    pub(super) fn new(events: &[&EventFd], stop: &Stop) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let add = |fd, what, flags| epoll::add(&epoll, fd, EventData::new_u64(what), flags);
        for event in events {
            add(event.as_fd(), BELL, EventFlags::IN | EventFlags::ET)?;
        }
        // The word to stop stays.
        add(stop.as_fd(), STOP, EventFlags::IN)?;
        Ok(Self(epoll))
    }

    /// Waits for a signal that came since the last wait; `true`: it is time to stop.
    pub(super) fn wait(&self) -> bool {
        let mut buffer = [MaybeUninit::<epoll::Event>::uninit(); EVENTS];
        match epoll::wait(&self.0, &mut buffer, None) {
            Ok((events, _)) => events.iter().any(|event| event.data.u64() == STOP),
            Err(Errno::INTR) => false,
            Err(error) => {
                tracing::error!(%error, "a slice's thread cannot wait");
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_is_heard_once_and_the_counter_is_left_alone() {
        let (one, other, stop) = (EventFd::new(), EventFd::new(), Stop::new());
        let (one, other, stop) = (one.unwrap(), other.unwrap(), stop.unwrap());
        one.signal();
        let bells = Bells::new(&[&one, &other], &stop).unwrap();
        // From before.
        assert!(!bells.wait());
        for bell in [&one, &other, &one, &one] {
            bell.signal();
            assert!(!bells.wait());
        }
        assert!(one.take() && other.take());
        // Nothing is left but the word to stop, which stays.
        stop.stop();
        assert!(bells.wait());
        assert!(bells.wait());
    }

    #[test]
    fn a_counter_that_a_peer_has_filled_rings_all_the_same() {
        let (bell, stop) = (EventFd::new().unwrap(), Stop::new().unwrap());
        let bells = Bells::new(&[&bell], &stop).unwrap();
        rustix::io::write(&bell, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        assert!(!bells.wait());
        let heard = std::thread::spawn(move || bells.wait());
        bell.signal();
        assert!(!heard.join().unwrap());
    }
}
