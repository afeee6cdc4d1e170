//! SIGINT, SIGTERM and SIGHUP as one thing that can be waited for, and children that do not outlive us.

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Becomes readable once the process has been asked to stop.
pub(crate) struct Stop {
    pipe: UnixStream,
    came: Cell<bool>,
}

impl Stop {
    /// Takes over SIGINT and SIGTERM; and SIGHUP, which the end of a terminal sends, unless it is ignored (nohup(1)).
    pub(crate) fn install() -> anyhow::Result<Self> {
        let (pipe, writer) = UnixStream::pair().context("cannot make a pipe for signals")?;
        let mut signals = vec![SIGINT, SIGTERM];
        if !hangup_is_ignored() {
            signals.push(SIGHUP);
        }
        for signal in signals {
            let writer = writer.try_clone().context("cannot make a pipe for signals")?;
            signal_hook::low_level::pipe::register(signal, writer)
                .context("cannot take over SIGINT, SIGTERM and SIGHUP")?;
        }
        Ok(Self { pipe, came: Cell::new(false) })
    }

    /// Waits until asked to stop, or for `time`; true when asked, then and ever after.
    pub(crate) fn wait(&self, time: Duration) -> bool {
        let end = Instant::now() + time;
        while !self.came.get() {
            let left = end.saturating_duration_since(Instant::now());
            let timeout =
                Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
            let mut fds = [PollFd::new(&self.pipe, PollFlags::IN)];
            match poll(&mut fds, Some(&timeout)) {
                // The byte is left in the pipe: others that poll it see it as well.
                Ok(0) => break,
                Err(rustix::io::Errno::INTR) => {}
                // A poll of one valid descriptor fails for want of memory only: stop rather than spin.
                Ok(_) | Err(_) => self.came.set(true),
            }
        }
        self.came.get()
    }

    /// Whether the process has been asked to stop.
    pub(crate) fn requested(&self) -> bool {
        self.wait(Duration::ZERO)
    }
}

impl AsFd for Stop {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

/// Whether whoever started this process has it ignore SIGHUP, as the kernel tells (proc(5), `SigIgn`).
fn hangup_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & 1 << (SIGHUP - 1) != 0)
}

/// Asks for SIGTERM at the death of `parent`, which started this process. Call it from the main thread.
/// Fails where the parent is already gone.
pub(crate) fn follow(parent: i32) -> anyhow::Result<()> {
    let parent = Pid::from_raw(parent)
        .ok_or_else(|| crate::failure::refused("--follow: 0 is not a process ID"))?;
    set_parent_process_death_signal(Some(Signal::TERM)).context("PR_SET_PDEATHSIG")?;
    // It may have died before the line above.
    anyhow::ensure!(getppid() == Some(parent), "the process that started this one has ended");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_seen_once_and_for_all() {
        let stop = Stop::install().unwrap();
        assert!(!stop.requested());
        signal_hook::low_level::raise(SIGTERM).unwrap();
        assert!(stop.wait(Duration::from_mins(1)));
        assert!(stop.requested());
    }
}
