//! `beamline run`: boots one guest.

use crate::api::ApiSocket;
use crate::check;
use crate::confine;
use crate::connector::Connector;
use crate::events::{Events, GuestEvent};
use crate::failure::{self, RESET, RESET_AT_ONCE, refused_by};
use crate::interrupts::{Interrupts, LOOK};
use crate::lives;
use crate::output;
use crate::ports::PortEvents;
use crate::read;
use crate::signals::Stop;
use crate::terminal::{Keys, Terminal, TerminalConsole};
use anyhow::Context;
use beamline_vmm::config::{Api, OnReset};
use beamline_vmm::devices::tpm::TpmError;
use beamline_vmm::memory::{Filled, MemoryError};
use beamline_vmm::sandbox::tell_stdout;
use beamline_vmm::text::forget_start;
use beamline_vmm::{Config, Console, ExitReason, Vm, VmError, VmHandle};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::ffi::OsString;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

/// The guest's lines, where text goes: stdout, or stderr beside events.
struct Lines;

impl Console for Lines {
    fn line(&mut self, guest: &str, line: &str) {
        output::line(&format!("{guest}: {line}"));
    }
}

/// What `beamline run` is asked to do.
#[derive(clap::Args)]
pub(crate) struct Run {
    /// The guest's configuration: image, memory, CPUs, devices
    guest: PathBuf,
    /// Start nothing: say what the file makes, and look for mistakes in it and for what this machine lacks
    #[arg(long)]
    check: bool,
    /// Print JSON: events, one a line, or with --check a report; the guest's console goes to stderr then
    #[arg(long)]
    json: bool,
    /// Make the guest's API socket there, in place of what the file's [api] says
    #[arg(long, value_name = "SOCKET")]
    api: Option<PathBuf>,
    /// Keep all files, system calls and privileges within reach, to look for what the sandbox stops
    #[arg(long)]
    no_sandbox: bool,
    /// End with a code of its own where the guest resets; started by another `beamline run`
    #[arg(long, hide = true)]
    one_life: bool,
}

impl Run {
    /// The arguments of the command that runs one life of the same guest.
    pub(crate) fn one_life(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["run".into(), "--one-life".into()];
        arguments.extend(self.json.then(|| "--json".into()));
        arguments.extend(self.no_sandbox.then(|| "--no-sandbox".into()));
        if let Some(api) = &self.api {
            // One word: a path may start with a dash.
            let mut word = OsString::from("--api=");
            word.push(api);
            arguments.push(word);
        }
        arguments.extend(["--".into(), self.guest.clone().into()]);
        arguments
    }
}

/// Boots a guest, and waits for its end or a signal; or only looks at its file.
pub(crate) fn run(options: &Run) -> anyhow::Result<()> {
    output::text_to_stderr(options.json);
    let config = load(options);
    if options.check {
        return check::check(&config?, &options.guest, options.json);
    }
    let events = Events::new(options.json);
    let ended = config.and_then(|config| {
        if config.guest.on_reset == OnReset::Reboot && !options.one_life {
            check::before(&config, &options.guest)?;
            // Each life says itself what happens.
            return lives::run(options, &config.guest.name, events).map(Ended::at_once);
        }
        life(&config, options, events)
    });
    match ended {
        Ok(Ended { reason: ExitReason::Reset, ran }) if options.one_life => {
            let code = if ran < lives::AT_ONCE { RESET_AT_ONCE } else { RESET };
            std::process::exit(code.into())
        }
        Ok(Ended { reason, .. }) => match reason {
            ExitReason::GuestExit(0)
            | ExitReason::Shutdown
            | ExitReason::Reset
            | ExitReason::Stopped => Ok(()),
            reason => Err(anyhow::anyhow!("{reason}")),
        },
        Err(error) => {
            let exit_code = failure::exit_code(&error);
            events.say(&GuestEvent::Failed { error: format!("{error:#}"), exit_code });
            Err(error)
        }
    }
}

/// How a life ended.
struct Ended {
    reason: ExitReason,
    /// For how long its vCPUs ran.
    ran: Duration,
}

impl Ended {
    /// It ended before it began, or as its own process has told.
    fn at_once(reason: ExitReason) -> Self {
        Self { reason, ran: Duration::ZERO }
    }
}

fn load(options: &Run) -> anyhow::Result<Config> {
    let mut config = read::guest(&options.guest)?;
    if let Some(socket) = &options.api {
        config.api = Some(Api { socket: socket.clone() });
    }
    Ok(config)
}

/// Runs the guest until it ends. Everything that it takes is given back when this returns.
fn life(config: &Config, options: &Run, events: Events) -> anyhow::Result<Ended> {
    let stop = &Stop::install()?;
    let (path, sandbox) = (&options.guest, !options.no_sandbox);
    check::before(config, path)?;
    if let Some(folder) = config.api.as_ref().and_then(|api| api.socket.parent()) {
        confine::make_folder(folder);
    }
    let connector = Connector::start(config, sandbox)?;
    // Looked up before the sandbox hides it.
    let mut interrupts = Interrupts::here();
    if sandbox {
        if options.json {
            tell_stdout();
        }
        confine::vmm_set_up(config)?;
    }
    // Beside events there is no console to type on.
    let terminal = if options.json { Ok(None) } else { Terminal::take() };
    let terminal = terminal.context("cannot take over the terminal")?;
    let failed = |error| classed(error).context(path.display().to_string());
    let api = config.api.as_ref().map(|api| ApiSocket::bind(&api.socket)).transpose()?;
    let console: Box<dyn Console> =
        if terminal.is_some() { Box::new(TerminalConsole::new()) } else { Box::new(Lines) };
    let vm = match build(config.clone(), console, stop) {
        Ok(vm) => vm,
        // Asked to end before it began.
        Err(VmError::Memory(MemoryError::Interrupted) | VmError::Tpm(TpmError::Interrupted)) => {
            return Ok(Ended::at_once(ExitReason::Stopped));
        }
        Err(error) => return Err(failed(error)),
    };
    if sandbox {
        confine::vmm_run()?;
    }
    let name = &config.guest.name;
    interrupts.announce(name, vm.interrupt_sources());
    // Before the guest runs: it is not held up then.
    forget_start();
    let handle = vm.start().map_err(failed)?;
    events.say(&GuestEvent::Started {
        guest: config.guest.name.clone(),
        pid: std::process::id(),
        api: config.api.as_ref().map(|api| api.socket.clone()),
    });
    let api = api.map(|api| api.serve(config, handle.guest(), connector, events)).transpose()?;
    let mut ports = PortEvents::new(config, &handle, events);
    let ended = wait(&handle, stop, terminal.as_ref(), &mut ports);
    let ran = handle.uptime();
    ports.look();
    interrupts.conclude(name, &handle, options.json || terminal.is_none())?;
    let reason = ended?;
    // It has ended; what is being plugged in is given up.
    handle.stop();
    // Whoever asked for the end is answered, and nothing is said of the guest after that.
    drop(api);
    match &reason {
        ExitReason::GuestExit(code) => events.say(&GuestEvent::Exited { code: *code }),
        ExitReason::Shutdown => events.say(&GuestEvent::PoweredOff),
        ExitReason::Reset => events.say(&GuestEvent::Reset),
        ExitReason::Stopped => events.say(&GuestEvent::Stopped),
        ExitReason::Error(e) => {
            events.say(&GuestEvent::Failed { error: e.to_string(), exit_code: failure::FAILED });
        }
    }
    // A signal that comes during a reset ends the guest all the same.
    if reason == ExitReason::Reset && stop.requested() {
        events.say(&GuestEvent::Stopped);
        return Ok(Ended { reason: ExitReason::Stopped, ran });
    }
    Ok(Ended { reason, ran })
}

/// Builds the guest, says how far its RAM is filled, and gives that up when a signal comes.
fn build(config: Config, console: Box<dyn Console>, stop: &Stop) -> Result<Vm, VmError> {
    let name = config.guest.name.clone();
    let mut progress = output::Progress::new();
    Vm::with_progress(config, console, &mut |Filled { done, all }| {
        if all > 0 {
            progress.show(&format!(
                "{name}: filling its RAM, {} of {} MiB, {}%",
                done >> 20,
                all >> 20,
                u128::from(done) * 100 / u128::from(all)
            ));
        }
        !stop.requested()
    })
}

/// What has to be there before a guest can run is the user's to mend; the rest has failed.
fn classed(error: VmError) -> anyhow::Error {
    match error {
        VmError::Kvm(_)
        | VmError::Memory(_)
        | VmError::Boot(_)
        | VmError::Flash(_)
        | VmError::Acpi(_)
        | VmError::Turn(_)
        | VmError::Hyperv(_)
        | VmError::Connect(_)
        | VmError::Attach(_)
        | VmError::Device(_)
        | VmError::Tpm(_)
        | VmError::Bus(_) => refused_by(error),
        VmError::Refused { .. }
        | VmError::Platform(_)
        | VmError::Vcpu(_)
        | VmError::Misplaced { .. }
        | VmError::Os { .. } => error.into(),
    }
}

/// Waits for the guest's end, or stops it when a signal or Ctrl-A x comes. What is typed goes to the guest.
fn wait(
    handle: &VmHandle,
    stop: &Stop,
    terminal: Option<&Terminal>,
    ports: &mut PortEvents<'_>,
) -> anyhow::Result<ExitReason> {
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
                    handle.stop();
                    return Err(error).context("poll");
                }
                Ok(_) => {}
            }
            // Whatever woke it: a look more does no harm.
            handle.sample_interrupts();
            ports.look();
            if !fds[0].revents().is_empty() {
                handle.stop();
                break;
            }
            if !fds[1].revents().is_empty() {
                break;
            }
            // A read would wait: the poll may have ended by its limit alone.
            let ready = fds.get(2).is_some_and(|fd| !fd.revents().is_empty());
            let Some(from) = input.filter(|_| ready) else { continue };
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
