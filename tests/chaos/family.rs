//! A host and its guests as real processes: started, listened to, killed, and never left behind.

use crate::files::{Files, SLICES};
use crate::machine;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};
use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// Bounds every wait: far beyond what anything here needs on a busy machine.
const PATIENCE: Duration = Duration::from_mins(2);
/// Lines of output that are kept for a failure's message.
const KEPT: usize = 20;
/// The host's name among the processes.
const HOST: &str = "host";

/// What a process said.
struct News {
    name: String,
    pid: u32,
    /// `None`: its output has ended, and it has or will.
    line: Option<String>,
}

/// What is known of one process.
struct Process {
    child: Child,
    ready: bool,
    silent: bool,
    lines: Vec<String>,
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails where it has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A renderer, held so that its number cannot come to mean another process.
pub(crate) struct Renderer {
    pid: i32,
    fd: OwnedFd,
}

impl Renderer {
    pub(crate) fn kill(&self) {
        pidfd_send_signal(&self.fd, Signal::KILL).unwrap();
    }
}

/// The processes.
pub(crate) struct Family<'a> {
    program: PathBuf,
    files: &'a Files,
    processes: HashMap<String, Process>,
    /// Frames shown by slice, from the host's latest line.
    frames: HashMap<String, u64>,
    drained: bool,
    news: Receiver<News>,
    sender: Sender<News>,
}

impl<'a> Family<'a> {
    /// Starts a host and waits until guests can attach.
    pub(crate) fn start(program: &Path, files: &'a Files) -> Self {
        let (sender, news) = channel();
        let mut family = Self {
            program: program.to_owned(),
            files,
            processes: HashMap::new(),
            frames: HashMap::new(),
            drained: false,
            news,
            sender,
        };
        family.spawn(HOST, &[HOST.as_ref(), files.host().as_os_str()]);
        family.until("the host is ready", |f| f.processes[HOST].ready);
        family
    }

    fn spawn(&mut self, name: &str, arguments: &[&std::ffi::OsStr]) {
        let mut child = Command::new(&self.program)
            // They die with this process, also where it is killed.
            .arg(format!("--follow={}", std::process::id()))
            .args(arguments)
            .current_dir(self.files.folder())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (pid, stdout) = (child.id(), child.stdout.take().unwrap());
        let (name_of, sender) = (name.to_owned(), self.sender.clone());
        std::thread::spawn(move || {
            let said = BufReader::new(stdout).lines().map_while(Result::ok).map(Some);
            for line in said.chain([None]) {
                // Nobody listens any more where the test has failed.
                let _ = sender.send(News { name: name_of.clone(), pid, line });
            }
        });
        let process = Process { child, ready: false, silent: false, lines: Vec::new() };
        self.processes.insert(name.to_owned(), process);
    }

    /// Starts the guest of `slice` and waits until it renders.
    pub(crate) fn boot(&mut self, slice: &str) {
        self.spawn(slice, &["run".as_ref(), self.files.guest(slice).as_os_str()]);
        self.until(&format!("{slice} renders"), |f| f.processes[slice].ready);
    }

    /// Takes in news until `done`.
    ///
    /// # Panics
    /// Where that takes too long, with what every process said last.
    pub(crate) fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !done(self) {
            match self.news.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(news) => self.take(news),
                Err(RecvTimeoutError::Timeout) => {
                    panic!("waited in vain until {what}{}", self.last_words())
                }
                Err(RecvTimeoutError::Disconnected) => unreachable!("`sender` is ours"),
            }
        }
    }

    fn take(&mut self, news: News) {
        let News { name, pid, line } = news;
        // A process whose slice has a new one by now is of no interest.
        let Some(process) = self.processes.get_mut(&name).filter(|p| p.child.id() == pid) else {
            return;
        };
        let Some(line) = line else {
            process.silent = true;
            return;
        };
        if process.lines.len() == KEPT {
            process.lines.remove(0);
        }
        process.lines.push(line.clone());
        if name != HOST {
            process.ready |= line.contains(": READY ");
            return;
        }
        let event: serde_json::Value = serde_json::from_str(&line).expect("the host writes JSON");
        match event["event"].as_str() {
            Some("ready") => process.ready = true,
            Some("drained") => self.drained = true,
            _ => {
                for slice in event["slices"].as_array().expect("stats have slices") {
                    let name = slice["name"].as_str().expect("a slice has a name");
                    let frames = slice["frames"].as_u64().expect("a slice has frames");
                    self.frames.insert(name.to_owned(), frames);
                }
            }
        }
    }

    fn last_words(&self) -> String {
        let words =
            |(name, p): (&String, &Process)| format!("\n--- {name}:\n{}", p.lines.join("\n"));
        self.processes.iter().map(words).collect()
    }

    /// Waits until each of `slices` has shown `more` frames than the host's latest line says.
    pub(crate) fn progress(&mut self, slices: &[&str], more: u64) {
        let goals: Vec<(&str, u64)> = slices.iter().map(|s| (*s, self.shown(s) + more)).collect();
        self.until(&format!("{slices:?} show {more} more frames"), |f| {
            goals.iter().all(|(slice, goal)| f.shown(slice) >= *goal)
        });
    }

    fn shown(&self, slice: &str) -> u64 {
        self.frames.get(slice).copied().unwrap_or(0)
    }

    /// Slices whose VMM has ended.
    pub(crate) fn ended(&self) -> Vec<&'static str> {
        SLICES.into_iter().filter(|s| self.processes.get(*s).is_some_and(|p| p.silent)).collect()
    }

    pub(crate) fn host_lives(&self) -> bool {
        !self.processes[HOST].silent
    }

    /// Kills a VMM as if it had crashed.
    pub(crate) fn kill_guest(&mut self, slice: &str) {
        self.kill(slice);
    }

    /// Kills the host as if it had crashed.
    pub(crate) fn kill_host(&mut self) {
        self.kill(HOST);
    }

    fn kill(&mut self, name: &str) {
        self.processes.get_mut(name).unwrap().child.kill().unwrap();
        self.until(&format!("{name} has ended"), |f| f.processes[name].silent);
        self.reap(name);
    }

    /// Asks a VMM to end; answers how it did.
    pub(crate) fn stop_guest(&mut self, slice: &str) -> ExitStatus {
        self.stop(slice)
    }

    /// Asks the host to end; answers how it did, and whether it said that it had drained.
    pub(crate) fn stop_host(&mut self) -> (ExitStatus, bool) {
        let status = self.stop(HOST);
        (status, self.drained)
    }

    fn stop(&mut self, name: &str) -> ExitStatus {
        let process = &self.processes[name];
        if !process.silent {
            // Not reaped yet, so its number is its own.
            kill_process(Pid::from_child(&process.child), Signal::TERM).unwrap();
        }
        self.until(&format!("{name} ends when asked to"), |f| f.processes[name].silent);
        self.reap(name)
    }

    /// How a process that has closed its output ended. It is exiting already.
    pub(crate) fn reap(&mut self, name: &str) -> ExitStatus {
        self.processes.get_mut(name).unwrap().child.wait().unwrap()
    }

    /// The host's renderers.
    pub(crate) fn renderers(&self) -> Vec<Renderer> {
        let open = |pid| {
            let id = Pid::from_raw(pid)?;
            // One that ends meanwhile is none.
            pidfd_open(id, PidfdFlags::empty()).ok().map(|fd| Renderer { pid, fd })
        };
        machine::children(self.processes[HOST].child.id()).into_iter().filter_map(open).collect()
    }
}

/// Waits until `count` of `renderers` have ended, and answers their numbers.
///
/// # Panics
/// Where that takes too long.
pub(crate) fn wait_ended(renderers: &[Renderer], count: usize) -> Vec<i32> {
    let end = Instant::now() + PATIENCE;
    let mut ended: Vec<i32> = Vec::new();
    while ended.len() < count {
        let waiting: Vec<&Renderer> =
            renderers.iter().filter(|r| !ended.contains(&r.pid)).collect();
        let mut fds: Vec<PollFd<'_>> =
            waiting.iter().map(|r| PollFd::new(&r.fd, PollFlags::IN)).collect();
        let left = end.saturating_duration_since(Instant::now());
        let timeout =
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => panic!("{} of {count} renderers ended: {ended:?}", ended.len()),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => panic!("poll: {e}"),
        }
        let now: Vec<i32> = fds
            .iter()
            .zip(&waiting)
            .filter(|(fd, _)| !fd.revents().is_empty())
            .map(|(_, r)| r.pid)
            .collect();
        ended.extend(now);
    }
    ended
}
