//! What the dispatcher's thread waits for: a worker, the GPU, a control request, or a point in time.
//!
//! A thread that sleeps until a point in time wakes after it, by as long as the system takes to give it a CPU:
//! on a virtual machine some tens of microseconds, and several times that now and then. Where the CPUs are kept
//! awake anyway, the waiter has itself woken [`LEAD`] early and looks again and again for the rest.

use crate::backend::Gpu;
use crate::device::eventfd::EventFd;
use beamline_abi::Nanos;
use beamline_latency::clock::Clock;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use std::io;
use std::sync::Arc;

/// How much earlier it wakes: most wake-ups take less. What it adds to the thread's CPU time is as much per
/// point in time at most.
const LEAD: Nanos = Nanos::from_micros(50);
const NO_TIME: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// What an event of the epoll is.
const OTHER: u64 = 0;
const TIMER: u64 = 1;
const WAKE: u64 = 2;

/// Everything the thread waits on.
pub(super) struct Waiter {
    epoll: OwnedFd,
    timer: OwnedFd,
    wake: EventFd,
    clock: Arc<dyn Clock>,
    /// How long before a point in time it is awake.
    lead: Nanos,
    /// What the timer is set to; `None`: it has fired, or was never set.
    armed: Option<Nanos>,
}

/// What a look at the epoll found.
#[derive(Default)]
struct Seen {
    /// Something other than the timer.
    any: bool,
    /// Somebody has asked for the dispatcher.
    stirred: bool,
}

impl Waiter {
    /// A waiter for the dispatcher's wake, on host time. `early`: it is awake before each point in time.
    pub(super) fn new(wake: EventFd, clock: Arc<dyn Clock>, early: bool) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )?;
        epoll::add(&epoll, &timer, EventData::new_u64(TIMER), EventFlags::IN)?;
        epoll::add(&epoll, wake.as_fd(), EventData::new_u64(WAKE), EventFlags::IN)?;
        let lead = if early { LEAD } else { Nanos::ZERO };
        Ok(Self { epoll, timer, wake, clock, lead, armed: None })
    }

    /// Waits for the backend's descriptors too.
    pub(super) fn watch(&mut self, gpu: &mut dyn Gpu) -> io::Result<()> {
        let mut result = Ok(());
        gpu.register(&mut |fd| {
            if let Err(error) =
                epoll::add(&self.epoll, fd, EventData::new_u64(OTHER), EventFlags::IN)
            {
                result = Err(error);
            }
        });
        Ok(result?)
    }

    /// Waits until something is readable or `until` has come; whether somebody has asked for the dispatcher. Where
    /// there is time to spare before `until`, `spare` is called once.
    pub(super) fn wait(&mut self, until: Nanos, spare: impl FnOnce()) -> io::Result<bool> {
        let alarm = if until == Nanos::MAX { until } else { until.saturating_sub(self.lead) };
        let mut spare = Some(spare);
        loop {
            let early = self.lead > Nanos::ZERO && self.clock.now() >= alarm;
            if !early {
                self.arm(alarm)?;
            } else if let Some(spare) = spare.take() {
                spare();
            }
            let seen = self.look(early.then_some(&NO_TIME))?;
            if seen.any || self.lead == Nanos::ZERO || self.clock.now() >= until {
                return Ok(seen.stirred);
            }
        }
    }

    fn arm(&mut self, at: Nanos) -> io::Result<()> {
        if self.armed == Some(at) {
            return Ok(());
        }
        // All zeros would disarm the timer; a time that has passed fires at once.
        let ns = if at == Nanos::MAX { 0 } else { at.0.max(1) };
        let time =
            Timespec { tv_sec: (ns / 1_000_000_000) as i64, tv_nsec: (ns % 1_000_000_000) as _ };
        let spec = Itimerspec { it_interval: NO_TIME, it_value: time };
        timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &spec)?;
        self.armed = Some(at);
        Ok(())
    }

    /// Sees what is readable, or waits for it, no longer than `limit`.
    fn look(&mut self, limit: Option<&Timespec>) -> io::Result<Seen> {
        let mut buffer = [std::mem::MaybeUninit::<epoll::Event>::uninit(); 8];
        let events = match epoll::wait(&self.epoll, &mut buffer, limit) {
            Ok((events, _)) => events,
            // A signal: whoever sent it may want the thread to look round.
            Err(Errno::INTR) => return Ok(Seen { any: true, stirred: false }),
            Err(error) => return Err(error.into()),
        };
        let mut seen = Seen::default();
        for event in events {
            match event.data.u64() {
                // It stays readable until it is set anew.
                TIMER => self.armed = None,
                WAKE => {
                    seen.any = true;
                    seen.stirred |= self.wake.take();
                }
                _ => seen.any = true,
            }
        }
        Ok(seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use beamline_latency::clock::MonotonicClock;

    fn waiter(early: bool) -> (Waiter, EventFd) {
        let clock: Arc<dyn Clock> = Arc::new(MonotonicClock);
        let wake = EventFd::new().unwrap();
        let waiter = Waiter::new(wake.clone(), clock, early).unwrap();
        (waiter, wake)
    }

    #[test]
    fn a_point_in_time_is_never_early_and_time_to_spare_is_offered_once() {
        for early in [false, true] {
            let (mut waiter, _wake) = waiter(early);
            let mut spared = 0;
            for _ in 0..50 {
                let until = MonotonicClock.now().saturating_add(Nanos::from_micros(300));
                while MonotonicClock.now() < until {
                    let before = spared;
                    assert!(!waiter.wait(until, || spared += 1).unwrap());
                    assert!(spared <= before + 1);
                }
            }
            if early {
                // Time to spare from the start: a busy system may have woken it too late for any until now.
                (spared, waiter.lead) = (0, Nanos::from_millis(3_600_000));
                let soon = MonotonicClock.now().saturating_add(Nanos::from_micros(300));
                assert!(!waiter.wait(soon, || spared += 1).unwrap());
                assert_eq!(spared, 1);
            } else {
                assert_eq!(spared, 0);
            }
        }
    }

    #[test]
    fn a_wake_ends_the_wait_also_in_the_time_to_spare() {
        for early in [false, true] {
            let (mut waiter, wake) = waiter(early);
            wake.signal();
            assert!(waiter.wait(Nanos::MAX, || ()).unwrap());
            let soon = MonotonicClock.now().saturating_add(Nanos::from_millis(60_000));
            wake.signal();
            assert!(waiter.wait(soon, || ()).unwrap());
            // Time to spare from the start.
            waiter.lead = Nanos::from_millis(3_600_000);
            wake.signal();
            assert!(waiter.wait(soon, || ()).unwrap());
        }
    }
}
