//! The dispatcher's thread: waits for a worker, the GPU, a control request or the next point in time.

use crate::backend::{Event, SliceKey};
use crate::device::eventfd::EventFd;
use crate::mediate::dispatcher::Dispatcher;
use beamline_abi::Nanos;
use beamline_latency::clock::Clock;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fd::{AsFd, OwnedFd};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError};

/// A request from outside the path.
pub(super) enum Control {
    /// Reads back a slice's last presented image. The answer comes as soon as it is there; the sender is
    /// dropped where there is none.
    Capture {
        /// Which slice.
        slice: u16,
        /// Where the image goes.
        reply: Sender<Event>,
    },
    /// Ends the thread.
    Stop,
}

/// Everything the thread waits on.
pub(super) struct Waiter {
    epoll: OwnedFd,
    timer: OwnedFd,
    wake: EventFd,
    armed: Nanos,
}

impl Waiter {
    /// A waiter for the dispatcher's wake and the backend's descriptors.
    pub(super) fn new(wake: EventFd, dispatcher: &mut Dispatcher) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )?;
        let data = EventData::new_u64(0);
        epoll::add(&epoll, &timer, data, EventFlags::IN)?;
        epoll::add(&epoll, wake.as_fd(), data, EventFlags::IN)?;
        let mut result = Ok(());
        dispatcher.gpu().register(&mut |fd| {
            if let Err(error) = epoll::add(&epoll, fd, data, EventFlags::IN) {
                result = Err(error);
            }
        });
        result?;
        Ok(Self { epoll, timer, wake, armed: Nanos::MAX })
    }

    /// Waits until something is readable or `until` has come.
    fn wait(&mut self, until: Nanos) -> io::Result<()> {
        if until != self.armed {
            // All zeros would disarm the timer; a time that has passed fires at once.
            let at = if until == Nanos::MAX { 0 } else { until.0.max(1) };
            let time = Timespec {
                tv_sec: (at / 1_000_000_000) as i64,
                tv_nsec: (at % 1_000_000_000) as _,
            };
            let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
            let spec = Itimerspec { it_interval: zero, it_value: time };
            timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &spec)?;
            self.armed = until;
        }
        let mut buffer = [std::mem::MaybeUninit::<epoll::Event>::uninit(); 8];
        match epoll::wait(&self.epoll, &mut buffer, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        self.wake.take();
        let mut expirations = [0; 8];
        if rustix::io::read(&self.timer, &mut expirations).is_ok() {
            self.armed = Nanos::ZERO;
        }
        Ok(())
    }
}

/// Runs the dispatcher until [`Control::Stop`].
pub(super) fn run(
    mut dispatcher: Dispatcher,
    mut waiter: Waiter,
    clock: &Arc<dyn Clock>,
    control: &Receiver<Control>,
) -> io::Result<()> {
    let mut captures: Vec<(SliceKey, Sender<Event>)> = Vec::new();
    loop {
        let until = dispatcher.step(clock.now());
        for event in dispatcher.take_captures() {
            if let Some(n) = captures.iter().position(|(key, _)| *key == event.slice()) {
                // Nobody waits any more: nothing is lost.
                let _ = captures.swap_remove(n).1.send(event);
            }
        }
        match control.try_recv() {
            Ok(Control::Capture { slice, reply }) => {
                if let Some(key) = dispatcher.ready(slice)
                    && dispatcher.gpu().capture(key).is_ok()
                {
                    captures.push((key, reply));
                }
                continue;
            }
            // A host that is gone wants nothing more.
            Ok(Control::Stop) | Err(TryRecvError::Disconnected) => return Ok(()),
            Err(TryRecvError::Empty) => {}
        }
        waiter.wait(until)?;
    }
}
