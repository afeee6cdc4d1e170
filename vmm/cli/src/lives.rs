//! A guest that boots again after a reset: one process for each of its lives.
//!
//! What builds a guest opens files and makes a virtual machine, which a process that has run one may not do
//! any more. So this process, which touches nothing of the guest's, starts `beamline run` anew after each
//! reset. The children have its terminal, its output and its signals.
//!
//! A guest that resets as soon as it runs would keep a CPU of the host's busy for ever. So there is a pause after such
//! a life, longer each time:
//!
//! ```text
//!             a life that ended at once
//!  no pause ─────────────────────────────► 0, 100 ms, 200 ms, ... 5 s
//!      ▲           a longer life                      │
//!      └──────────────────────────────────────────────┘
//! ```

use crate::events::{Events, GuestEvent};
use crate::failure::{RESET, RESET_AT_ONCE};
use crate::output;
use crate::run::Run;
use crate::signals::Stop;
use anyhow::Context;
use beamline_vmm::ExitReason;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

/// This very file, also where it was replaced since.
const PROGRAM: &str = "/proc/self/exe";

/// A life that was shorter ended at once.
pub(crate) const AT_ONCE: Duration = Duration::from_secs(1);
/// The pause after the second life in a row that ended at once. A guest that boots may reset once, as firmware does.
const FIRST: Duration = Duration::from_millis(100);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(5);

/// How many lives in a row ended at once.
#[derive(Debug, Default)]
struct Haste(u32);

/// What comes before the next life.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
struct Rest {
    pause: Duration,
    /// It is the first pause in this row of lives.
    first: bool,
}

impl Haste {
    /// One more life is over.
    fn after(&mut self, at_once: bool) -> Rest {
        if !at_once {
            *self = Self::default();
            return Rest { pause: Duration::ZERO, first: false };
        }
        let before = self.0;
        self.0 = before.saturating_add(1);
        let doubled = |n: u32| FIRST.saturating_mul(1u32.checked_shl(n).unwrap_or(u32::MAX));
        let pause = before.checked_sub(1).map_or(Duration::ZERO, doubled).min(LONGEST);
        Rest { pause, first: before == 1 }
    }
}

/// Runs one life of the guest called `name` after the other. Where the last one failed, its process has said so, and
/// this one ends with its code.
pub(crate) fn run(options: &Run, name: &str, events: Events) -> anyhow::Result<ExitReason> {
    let stop = Stop::install()?;
    let mut haste = Haste::default();
    loop {
        let mut child = Command::new(PROGRAM)
            // Nobody but this process would end it.
            .args(["--follow", &std::process::id().to_string()])
            .args(options.one_life())
            .spawn()
            .context("cannot start the guest's process")?;
        let status = wait(&mut child, &stop)?;
        match status.code() {
            Some(0) => return Ok(ExitReason::Stopped),
            Some(code) if [RESET, RESET_AT_ONCE].map(i32::from).contains(&code) => {
                let rest = haste.after(code == i32::from(RESET_AT_ONCE));
                if rest.first {
                    tell(name, events);
                }
                // Nothing runs that could say it.
                if stop.wait(rest.pause) {
                    events.say(&GuestEvent::Stopped);
                    return Ok(ExitReason::Stopped);
                }
            }
            Some(code) => std::process::exit(code),
            // The signal came before it could take it.
            None if stop.requested() => return Ok(ExitReason::Stopped),
            None => anyhow::bail!("the guest's process was ended by another: {status}"),
        }
    }
}

/// Says that the guest's lives are put apart.
fn tell(name: &str, events: Events) {
    output::error(&format!(
        "beamline: {name}: it resets within a second of its start, again and again: from now on it starts after pauses of \
         up to {} s, until it lives longer",
        LONGEST.as_secs()
    ));
    events.say(&GuestEvent::ResetsAtOnce { longest_pause_ms: LONGEST.as_millis() as u64 });
}

/// Waits for the child's end; a signal is passed on to it.
fn wait(child: &mut Child, stop: &Stop) -> anyhow::Result<ExitStatus> {
    let pid = Pid::from_child(child);
    // It is not waited for yet, so that its number is its own.
    let ended = pidfd_open(pid, PidfdFlags::empty()).context("cannot wait for the guest's process");
    let ended = match ended {
        Ok(ended) => ended,
        Err(error) => {
            // Nothing is left behind.
            let _ = child.kill();
            let _ = child.wait();
            return Err(error);
        }
    };
    let asked = loop {
        let mut fds = [PollFd::new(&ended, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => {}
            // A poll of valid descriptors fails for want of memory only: end what takes it.
            Err(_) => break true,
            Ok(_) => break fds[0].revents().is_empty(),
        }
    };
    if asked {
        // Fails where it has just ended.
        let _ = kill_process(pid, Signal::TERM);
    }
    child.wait().context("cannot wait for the guest's process")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_that_end_at_once_are_put_apart_more_and_more() {
        let mut haste = Haste::default();
        let mut pauses = |n: usize| -> Vec<u128> {
            (0..n).map(|_| haste.after(true).pause.as_millis()).collect()
        };
        assert_eq!(pauses(9), [0, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(pauses(100), [5000; 100]);
        haste.0 = u32::MAX;
        assert_eq!(haste.after(true).pause, LONGEST);
    }

    #[test]
    fn it_is_told_once_until_the_guest_lives_longer() {
        let mut haste = Haste::default();
        for _ in 0..2 {
            let told: Vec<bool> = (0..40).map(|_| haste.after(true).first).collect();
            assert!(told[1] && told.iter().filter(|t| **t).count() == 1, "{told:?}");
            assert_eq!(haste.after(false), Rest { pause: Duration::ZERO, first: false });
        }
    }
}
