//! A guest that boots again after a reset: one process for each of its lives.
//!
//! What builds a guest opens files and makes a virtual machine, which a process that has run one may not do
//! any more. So this process, which touches nothing of the guest's, starts `beamline run` anew after each
//! reset. The children have its terminal, its output and its signals.

use crate::failure::RESET;
use crate::run::Run;
use crate::signals::Stop;
use anyhow::Context;
use beamline_vmm::ExitReason;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use std::process::{Child, Command, ExitStatus};

/// This very file, also where it was replaced since.
const PROGRAM: &str = "/proc/self/exe";

/// Runs one life of the guest after the other. Where the last one failed, its process has said so, and this
/// one ends with its code.
pub(crate) fn run(options: &Run) -> anyhow::Result<ExitReason> {
    let stop = Stop::install()?;
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
            Some(code) if code == i32::from(RESET) => {
                if stop.requested() {
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
