//! What a slice's thread waits for: its doorbells and wake-ups, and the word to stop.
//!
//! The epoll is edge-triggered: as long as nobody reads an eventfd's counter, each of its signals is an event of its
//! own. So a wake-up costs one system call, and looks at what was signalled only. A counter that is read between
//! signal and wait takes the event with it: whoever reads one has to look afterwards at what it stands for.

use crate::device::eventfd::EventFd;
use beamline_vfio_user::server::Stop;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use std::io;
use std::mem::MaybeUninit;

/// What an event of the epoll is, besides the number of an eventfd.
const STOP: u64 = 63;
/// Most events that one wait takes; more come with the next.
const EVENTS: usize = 4;

/// Doorbells and wake-ups of one thread.
pub(super) struct Bells(OwnedFd);

/// What a wait has heard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Heard(u64);

impl Heard {
    /// It is time to stop.
    pub(super) fn stop(self) -> bool {
        self.0 & 1 << STOP != 0
    }

    /// Whether the eventfd with this number was signalled.
    pub(super) fn has(self, number: usize) -> bool {
        self.0 & 1 << number != 0
    }
}

impl Bells {
    /// For `events`, also if they were signalled before, and for `stop`.
    pub(super) fn new(events: &[&EventFd], stop: &Stop) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let add = |fd, what, flags| epoll::add(&epoll, fd, EventData::new_u64(what), flags);
        debug_assert!(events.len() < STOP as usize, "each has a bit");
        for (number, event) in (0..).zip(events) {
            add(event.as_fd(), number, EventFlags::IN | EventFlags::ET)?;
        }
        // The word to stop stays.
        add(stop.as_fd(), STOP, EventFlags::IN)?;
        Ok(Self(epoll))
    }

    /// Waits for a signal that came since the last wait.
    pub(super) fn wait(&self) -> Heard {
        let mut buffer = [MaybeUninit::<epoll::Event>::uninit(); EVENTS];
        match epoll::wait(&self.0, &mut buffer, None) {
            Ok((events, _)) => {
                Heard(events.iter().fold(0, |heard, event| heard | 1 << event.data.u64()))
            }
            Err(Errno::INTR) => Heard::default(),
            Err(error) => {
                tracing::error!(%error, "a slice's thread cannot wait");
                Heard(1 << STOP)
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
        assert_eq!(bells.wait(), Heard(1));
        for (number, bell) in [(0, &one), (1, &other), (0, &one), (0, &one)] {
            bell.signal();
            let heard = bells.wait();
            assert!(heard.has(number) && !heard.has(1 - number) && !heard.stop());
        }
        assert_eq!((one.take_all(), other.take_all()), (4, 1));
        // Nothing is left but the word to stop, which stays.
        stop.stop();
        assert!(bells.wait().stop());
        assert!(bells.wait().stop());
    }

    /// Why whoever reads a counter looks afterwards at what it stands for.
    #[test]
    fn a_counter_that_is_read_takes_its_event_with_it() {
        let (bell, stop) = (EventFd::new().unwrap(), Stop::new().unwrap());
        let bells = Bells::new(&[&bell], &stop).unwrap();
        bell.signal();
        assert_eq!(bell.take_all(), 1);
        stop.stop();
        assert_eq!(bells.wait(), Heard(1 << STOP));
    }

    #[test]
    fn a_counter_that_a_peer_has_filled_rings_all_the_same() {
        let (bell, stop) = (EventFd::new().unwrap(), Stop::new().unwrap());
        let bells = Bells::new(&[&bell], &stop).unwrap();
        rustix::io::write(&bell, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        assert_eq!(bells.wait(), Heard(1));
        let heard = std::thread::spawn(move || bells.wait());
        bell.signal();
        assert_eq!(heard.join().unwrap(), Heard(1));
    }
}
