//! `beamline run`: boots one guest.

use crate::confine;
use crate::failure::{refused, refused_by};
use crate::output;
use crate::signals::Stop;
use anyhow::Context;
use beamline_vmm::{Config, Console, ExitReason, Vm, VmError, VmHandle};
use rustix::event::{PollFd, PollFlags, poll};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// The guest's lines on stdout.
struct Stdout;

impl Console for Stdout {
    fn line(&mut self, guest: &str, line: &str) {
        output::line(&format!("{guest}: {line}"));
    }
}

/// Boots the guest that `path` describes, and waits for its end or a signal.
pub(crate) fn run(path: &Path, check: bool, sandbox: bool) -> anyhow::Result<()> {
    let stop = Stop::install()?;
    let config = Config::load(path).map_err(refused_by)?;
    let image = &config.guest.image;
    if !image.is_file() {
        return Err(refused(format!(
            "{}: guest.image: there is no file {}; `make guest` builds the image that comes with beamline",
            path.display(),
            image.display()
        )));
    }
    if check {
        output::line(&format!("{}: no mistakes found", path.display()));
        return Ok(());
    }
    if sandbox {
        confine::vmm_set_up(&config)?;
    }
    let failed = |error| classed(error).context(path.display().to_string());
    let vm = Vm::with_console(config, Box::new(Stdout)).map_err(failed)?;
    if sandbox {
        confine::vmm_run()?;
    }
    let handle = vm.start().map_err(failed)?;
    match wait(&handle, &stop)? {
        ExitReason::GuestExit(0)
        | ExitReason::Shutdown
        | ExitReason::Reset
        | ExitReason::Stopped => Ok(()),
        reason => Err(anyhow::anyhow!("{reason}")),
    }
}

/// What has to be there before a guest can run is the user's to mend; the rest has failed.
fn classed(error: VmError) -> anyhow::Error {
    match error {
        VmError::Kvm(_)
        | VmError::Memory(_)
        | VmError::Boot(_)
        | VmError::Acpi(_)
        | VmError::Connect(_)
        | VmError::Attach(_)
        | VmError::Device(_)
        | VmError::Bus(_) => refused_by(error),
        VmError::Refused { .. } | VmError::Platform(_) | VmError::Vcpu(_) | VmError::Os { .. } => {
            error.into()
        }
    }
}

/// Waits for the guest's end, or stops it when a signal comes.
fn wait(handle: &VmHandle, stop: &Stop) -> anyhow::Result<ExitReason> {
    let (ended, ends) = UnixStream::pair().context("cannot make a pipe")?;
    std::thread::scope(|scope| {
        let waiter = scope.spawn(move || {
            let reason = handle.wait();
            // Closing its end wakes the poll below.
            drop(ends);
            reason
        });
        loop {
            let mut fds = [PollFd::new(stop, PollFlags::IN), PollFd::new(&ended, PollFlags::IN)];
            match poll(&mut fds, None) {
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    handle.request_stop();
                    return Err(error).context("poll");
                }
                Ok(_) => break,
            }
        }
        if stop.requested() {
            handle.stop();
        }
        waiter.join().map_err(|_| anyhow::anyhow!("the thread that waited for the guest panicked"))
    })
}
