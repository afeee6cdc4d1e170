//! `beamline run`: boots one guest.

use crate::confine;
use crate::failure::{refused, refused_by};
use crate::interrupts::{Interrupts, LOOK};
use crate::output;
use crate::signals::Stop;
use crate::terminal::{Keys, Terminal, TerminalConsole};
use anyhow::Context;
use beamline_vmm::config::OnReset;
use beamline_vmm::memory::{Filled, MemoryError};
use beamline_vmm::{Config, Console, ExitReason, Vm, VmError, VmHandle};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
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
    if let Some(initrd) = config.guest.initrd.as_ref().filter(|i| !i.is_file()) {
        return Err(refused(format!(
            "{}: guest.initrd: there is no file {}",
            path.display(),
            initrd.display()
        )));
    }
    if check {
        output::line(&format!("{}: no mistakes found", path.display()));
        return Ok(());
    }
    if sandbox && config.guest.on_reset == OnReset::Reboot {
        return Err(refused(format!(
            "{}: guest.on_reset: a guest that reboots is built anew, and the sandbox lets a running VMM open nothing: use \"end\", \
             or --no-sandbox",
            path.display()
        )));
    }
    let mut interrupts = Interrupts::here();
    if sandbox {
        confine::vmm_set_up(&config)?;
    }
    let terminal = Terminal::take().context("cannot take over the terminal")?;
    let failed = |error| classed(error).context(path.display().to_string());
    loop {
        let console: Box<dyn Console> =
            if terminal.is_some() { Box::new(TerminalConsole::new()) } else { Box::new(Stdout) };
        let vm = match build(config.clone(), console, &stop) {
            Ok(vm) => vm,
            // Asked to end before it began.
            Err(VmError::Memory(MemoryError::Interrupted)) => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        if sandbox {
            confine::vmm_run()?;
        }
        interrupts.announce(&config.guest.name, vm.interrupt_sources());
        let handle = vm.start().map_err(failed)?;
        let ended = wait(&handle, &stop, terminal.as_ref());
        interrupts.conclude(&config.guest.name, &handle, terminal.is_none())?;
        match ended? {
            ExitReason::Reset if config.guest.on_reset == OnReset::Reboot && !stop.requested() => {}
            ExitReason::GuestExit(0)
            | ExitReason::Shutdown
            | ExitReason::Reset
            | ExitReason::Stopped => return Ok(()),
            reason => return Err(anyhow::anyhow!("{reason}")),
        }
    }
}

/// Builds the guest, says how far its RAM is filled, and gives that up when a signal comes.
fn build(config: Config, console: Box<dyn Console>, stop: &Stop) -> Result<Vm, VmError> {
    let name = config.guest.name.clone();
    let mut progress = output::Progress::new();
    Vm::with_progress(config, console, &mut |Filled { done, all }| {
        progress.show(&format!(
            "{name}: filling its RAM, {} of {} MiB, {}%",
            done >> 20,
            all >> 20,
            u128::from(done) * 100 / u128::from(all.max(1))
        ));
        !stop.requested()
    })
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

/// Waits for the guest's end, or stops it when a signal or Ctrl-A x comes. What is typed goes to the guest.
fn wait(handle: &VmHandle, stop: &Stop, terminal: Option<&Terminal>) -> anyhow::Result<ExitReason> {
    let (ended, ends) = UnixStream::pair().context("cannot make a pipe")?;
    std::thread::scope(|scope| {
        let waiter = scope.spawn(move || {
            let reason = handle.wait();
            // Closing its end wakes the poll below.
            drop(ends);
            reason
        });
        let look = Timespec { tv_sec: 0, tv_nsec: i64::from(LOOK.subsec_nanos()) };
        let (mut input, mut keys) = (terminal.map(Terminal::input), Keys::default());
        loop {
            let mut fds =
                vec![PollFd::new(stop, PollFlags::IN), PollFd::new(&ended, PollFlags::IN)];
            fds.extend(input.map(|input| PollFd::new(input, PollFlags::IN)));
            match poll(&mut fds, Some(&look)) {
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => {
                    handle.request_stop();
                    return Err(error).context("poll");
                }
                Ok(_) => {}
            }
            // Whatever woke it: a look more does no harm.
            handle.sample_interrupts();
            if !fds[0].revents().is_empty() {
                handle.stop();
                break;
            }
            if !fds[1].revents().is_empty() {
                break;
            }
            let Some(from) = input else { continue };
            let mut typed = [0; 256];
            match rustix::io::read(from, &mut typed) {
                // The terminal has gone away. The guest goes on.
                Ok(0) => input = None,
                Ok(n) => {
                    let (passed, end) = keys.pass(&typed[..n]);
                    // A guest that does not read loses what is typed.
                    handle.type_in(&passed);
                    if end {
                        handle.stop();
                        break;
                    }
                }
                Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
                Err(_) => input = None,
            }
        }
        waiter.join().map_err(|_| anyhow::anyhow!("the thread that waited for the guest panicked"))
    })
}
