//! One round trip, whoever is on the other side: interrupt, handler, doorbell.

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How long a guest may take to answer before the benchmark gives up. A bound, not a measure.
const PATIENCE: Timespec = Timespec { tv_sec: 20, tv_nsec: 0 };

/// The host's time-stamp counter around a round trip, and the guest's within it, as host ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trip {
    /// Before the interrupt is posted.
    pub(crate) posted: u64,
    /// In the guest's handler.
    pub(crate) handled: u64,
    /// When the thread that waits for the doorbell runs.
    pub(crate) woken: u64,
}

/// A guest that answers interrupts.
pub(crate) trait Side {
    /// Waits for the doorbell that says that the guest is set up.
    fn ready(&mut self) -> anyhow::Result<()>;
    /// Posts an interrupt and waits for its answer.
    fn trip(&mut self) -> anyhow::Result<Trip>;
}

/// Waits until one of `fds` is readable.
pub(crate) fn wait(fds: &mut [PollFd<'_>]) -> anyhow::Result<()> {
    loop {
        match poll(fds, Some(&PATIENCE)) {
            Ok(0) => anyhow::bail!("the guest did not answer within {} s", PATIENCE.tv_sec),
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => anyhow::bail!("poll: {error}"),
        }
    }
}

/// Watches for readability.
pub(crate) fn readable<T: std::os::fd::AsFd>(fd: &T) -> PollFd<'_> {
    PollFd::new(fd, PollFlags::IN)
}
