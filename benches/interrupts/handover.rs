//! The step behind the doorbell: a worker wakes the dispatcher. Both wait as the host's threads do, on the
//! same CPU, the dispatcher in an epoll set with its timer.

use crate::tsc;
use anyhow::Context;
use beamline_mdev::device::eventfd::EventFd;
use beamline_mdev::host::threads::{Placement, Role};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

/// A thread that waits as the dispatcher does.
pub(crate) struct Handover {
    work: EventFd,
    taken: EventFd,
    woken: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Handover {
    /// Starts it on `cpu`, in the dispatcher's role.
    pub(crate) fn start(cpu: usize) -> anyhow::Result<Self> {
        let eventfd = || EventFd::new().context("an eventfd");
        let (work, taken) = (eventfd()?, eventfd()?);
        let epoll = epoll::create(CreateFlags::CLOEXEC).context("an epoll set")?;
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC).context("a timer")?;
        epoll::add(&epoll, &timer, EventData::new_u64(0), EventFlags::IN).context("the timer")?;
        epoll::add(&epoll, &work, EventData::new_u64(0), EventFlags::IN).context("the eventfd")?;
        let (woken, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (a, b, c, d) = (work.clone(), taken.clone(), Arc::clone(&woken), Arc::clone(&stop));
        let placement = Placement { cpus: vec![cpu], realtime: true };
        let thread = placement.spawn("handover", Role::Dispatcher, move || {
            let _timer = timer;
            let mut room = [std::mem::MaybeUninit::<epoll::Event>::uninit(); 8];
            while epoll::wait(&epoll, &mut room, None).is_ok() {
                c.store(tsc::now(), Ordering::Relaxed);
                a.take();
                b.signal();
                if d.load(Ordering::Relaxed) {
                    return;
                }
            }
        })?;
        Ok(Self { work, taken, woken, stop, thread: Some(thread) })
    }

    /// One hand-over, in ticks.
    pub(crate) fn once(&mut self) -> anyhow::Result<u64> {
        let posted = tsc::now();
        self.work.signal();
        poll(&mut [PollFd::new(&self.taken, PollFlags::IN)], None)
            .context("the dispatcher's answer")?;
        self.taken.take();
        Ok(self.woken.load(Ordering::Relaxed).saturating_sub(posted))
    }
}

impl Drop for Handover {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.work.signal();
        if let Some(thread) = self.thread.take() {
            // It only waits and answers.
            let _ = thread.join();
        }
    }
}
