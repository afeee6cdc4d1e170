//! The dispatcher's thread: serves the workers, the GPU, control requests and the next point in time.

use super::control::ControlError;
use super::waiter::Waiter;
use super::{HostError, system};
use crate::backend::{Event, SliceKey};
use crate::device::eventfd::EventFd;
use crate::mediate::dispatcher::{Change, Dispatcher, SliceLink};
use beamline_abi::Nanos;
use beamline_latency::clock::Clock;
use rtrb::{Consumer, Producer, RingBuffer};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::time::Timespec;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::Sender;

/// Requests that wait for the dispatcher at most.
const REQUESTS: usize = 64;
/// How long the dispatcher may take to answer one.
const PATIENCE: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };

/// A request from outside the path. It comes through a ring, so that taking it neither locks nor allocates.
#[expect(clippy::large_enum_variant, reason = "a box would have to be freed by the dispatcher")]
pub(super) enum Control {
    /// Reads back a slice's last presented image. The answer comes as soon as it is there; the sender is
    /// dropped where there is none.
    Capture {
        /// Which slice.
        slice: u16,
        /// Where the image goes.
        reply: Sender<Event>,
    },
    /// A slice begins at a free place.
    Add {
        /// Which place.
        index: u16,
        /// The slice.
        link: SliceLink,
    },
    /// A slice's contract changes, as admission has decided.
    Change {
        /// Which slice.
        index: u16,
        /// How.
        change: Change,
    },
    /// A slice ends. What is left of it comes back.
    Remove {
        /// Which slice.
        index: u16,
    },
    /// Ends the thread.
    Stop,
}

/// The dispatcher's end.
pub(super) struct Requests {
    queue: Consumer<Control>,
    removed: Producer<(u16, Option<SliceLink>)>,
    answered: EventFd,
}

/// The control side's end.
pub(super) struct Link {
    requests: Producer<Control>,
    removed: Consumer<(u16, Option<SliceLink>)>,
    answered: EventFd,
    wake: EventFd,
}

/// The way to the dispatcher that `wake` wakes, and back.
pub(super) fn link(wake: EventFd) -> Result<(Link, Requests), Errno> {
    let (to, queue) = RingBuffer::new(REQUESTS);
    let (removed, from) = RingBuffer::new(REQUESTS);
    let answered = EventFd::new()?;
    let ours = Link { requests: to, removed: from, answered: answered.clone(), wake };
    Ok((ours, Requests { queue, removed, answered }))
}

impl Link {
    /// Whether the dispatcher would take a request: until one is sent, that stays so.
    pub(super) fn is_open(&self) -> Result<(), ControlError> {
        if self.requests.is_abandoned() {
            Err(ControlError::Ended)
        } else if self.requests.is_full() {
            Err(ControlError::Busy { wait: Nanos::from_millis(10) })
        } else {
            Ok(())
        }
    }

    /// Gives the dispatcher a request.
    pub(super) fn send(&mut self, control: Control) -> Result<(), ControlError> {
        self.is_open()?;
        self.requests.push(control).map_err(|_| ControlError::Ended)?;
        self.wake.signal();
        Ok(())
    }

    /// Gives the dispatcher a slice.
    pub(super) fn add(&mut self, index: u16, link: SliceLink) -> Result<(), HostError> {
        let sent = self.send(Control::Add { index, link });
        sent.map_err(|_| system("reach the dispatcher")(io::ErrorKind::BrokenPipe.into()))
    }

    /// Takes a slice back from the dispatcher: none of its work is on the GPU any more.
    pub(super) fn remove(&mut self, index: u16) -> Result<Option<SliceLink>, ControlError> {
        self.send(Control::Remove { index })?;
        loop {
            // An answer that nobody waited for any more belongs to another place.
            while let Ok((other, link)) = self.removed.pop() {
                if other == index {
                    return Ok(link);
                }
            }
            let mut fds = [PollFd::new(&self.answered, PollFlags::IN)];
            match poll(&mut fds, Some(&PATIENCE)) {
                Ok(0) => return Err(ControlError::Ended),
                Ok(_) | Err(Errno::INTR) => self.answered.take(),
                Err(_) => return Err(ControlError::Ended),
            };
        }
    }
}

/// Runs the dispatcher until [`Control::Stop`].
pub(super) fn run(
    mut dispatcher: Dispatcher,
    mut waiter: Waiter,
    clock: &Arc<dyn Clock>,
    control: &mut Requests,
) -> io::Result<()> {
    let mut captures: Vec<(SliceKey, Sender<Event>)> = Vec::new();
    let mut stirred = true;
    loop {
        let until = dispatcher.step(clock.now(), stirred);
        for event in dispatcher.take_captures() {
            if let Some(n) = captures.iter().position(|(key, _)| *key == event.slice()) {
                // Nobody waits any more: nothing is lost.
                let _ = captures.swap_remove(n).1.send(event);
            }
        }
        // A renderer that is gone answers nobody.
        captures.retain(|(key, _)| dispatcher.ready(key.index) == Some(*key));
        let Ok(request) = control.queue.pop() else {
            // A host that is gone wants nothing more.
            if control.queue.is_abandoned() {
                return Ok(());
            }
            stirred = waiter.wait(until, || dispatcher.warm(until))?;
            continue;
        };
        stirred = true;
        match request {
            Control::Capture { slice, reply } => {
                if let Some(key) = dispatcher.ready(slice)
                    && dispatcher.gpu().capture(key).is_ok()
                {
                    captures.push((key, reply));
                }
            }
            Control::Add { index, link } => {
                if dispatcher.add(index, link).is_err() {
                    tracing::error!(
                        slice = index,
                        "the place is taken; the slice gets no schedule"
                    );
                }
            }
            Control::Change { index, change } => dispatcher.change(index, change),
            Control::Remove { index } => {
                captures.retain(|(key, _)| key.index != index);
                // One answer per request: the ring has room.
                let _ = control.removed.push((index, dispatcher.remove(index, clock.now())));
                control.answered.signal();
            }
            Control::Stop => return Ok(()),
        }
    }
}
