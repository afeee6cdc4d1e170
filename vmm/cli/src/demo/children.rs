//! The processes of one run: started, listened to, and never left behind.

use super::guests::Guests;
use crate::events::{GuestEvent, HostEvent, InterruptsEvent};
use crate::failure::{interrupted, refused};
use crate::signals::Stop;
use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// How long a child may take to end in order before it is killed.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a wait looks for a signal.
const TICK: Duration = Duration::from_millis(50);
/// The longest line that is kept of a child's output: a guest may write without end.
const MAX_LINE: usize = 4096;
/// What a guest writes once it renders.
const READY: &str = "READY";

/// What a child said.
#[derive(Debug)]
pub(crate) enum News {
    /// The host's.
    Host(HostEvent),
    /// This guest renders.
    Rendering(String),
    /// What this guest's interrupts have cost.
    Interrupts(String, Box<InterruptsEvent>),
    /// A child's output has ended: it has exited, or will.
    Silent(String),
}

/// One process. Dropping it ends it.
#[derive(Debug)]
struct Child {
    name: String,
    log: PathBuf,
    process: std::process::Child,
    ended: Option<ExitStatus>,
}

impl Child {
    /// Starts this program with `arguments`. Its output goes to `log`, and what matters of it to `news`.
    fn start(
        name: &str,
        role: Role,
        arguments: &[&std::ffi::OsStr],
        log: &Path,
        news: Sender<News>,
    ) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let out = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let errors = out.try_clone().context("cannot duplicate a file")?;
        let mut process = Command::new(program)
            .arg(format!("--follow={}", std::process::id()))
            .args(arguments)
            // Ctrl-C reaches this process only: it ends its children in order.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        if let Some(stdout) = process.stdout.take() {
            let name = name.to_owned();
            std::thread::spawn(move || listen(&name, role, stdout, out, &news));
        }
        Ok(Self { name: name.into(), log: log.into(), process, ended: None })
    }

    /// Waits for its end; `None` where it has not ended within `time`.
    fn wait(&mut self, time: Duration) -> Option<ExitStatus> {
        if self.ended.is_none() {
            // Not reaped yet, so the ID is still its own.
            let pid = Pid::from_child(&self.process);
            if let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) {
                let timeout = Timespec {
                    tv_sec: time.as_secs() as i64,
                    tv_nsec: i64::from(time.subsec_nanos()),
                };
                // Interrupted or timed out: try_wait says how it stands.
                let _ = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout));
            }
            self.ended = self.process.try_wait().ok().flatten();
        }
        self.ended
    }

    /// Asks it to end; kills it where it does not.
    fn stop(&mut self, patience: Duration) -> Option<ExitStatus> {
        if self.wait(Duration::ZERO).is_none() {
            let _ = kill_process(Pid::from_child(&self.process), Signal::TERM);
            if self.wait(patience).is_none() {
                let _ = self.process.kill();
                self.ended = self.process.wait().ok();
            }
        }
        self.ended
    }

    /// The end of what it wrote, for a message.
    fn last_words(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
        let last = lines[lines.len().saturating_sub(6)..].join("\n  ");
        if last.is_empty() { "it wrote nothing".into() } else { last }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.stop(Duration::from_secs(2));
    }
}

/// Whose output it is: what a guest writes is never taken for the host's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Host,
    Guest,
}

/// Copies a child's stdout to its log, line by line, and passes on what matters.
fn listen(name: &str, role: Role, stdout: impl Read, mut log: File, news: &Sender<News>) {
    let mut stdout = BufReader::new(stdout);
    let mut line = Vec::new();
    loop {
        line.clear();
        // A line that is too long is taken in pieces.
        match stdout.by_ref().take(MAX_LINE as u64).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
        let _ = log.write_all(&line);
        let text = String::from_utf8_lossy(&line);
        let text = text.trim();
        let item = match role {
            Role::Host => serde_json::from_str(text).ok().map(News::Host),
            // `beamline run` puts the guest's name before its lines.
            Role::Guest => match text.strip_prefix(name).and_then(|t| t.strip_prefix(": ")) {
                Some(said) => said.starts_with(READY).then(|| News::Rendering(name.to_owned())),
                None => match serde_json::from_str(text) {
                    Ok(GuestEvent::Interrupts(event)) => {
                        Some(News::Interrupts(name.to_owned(), Box::new(event)))
                    }
                    _ => None,
                },
            },
        };
        // Nobody listens any more once the run is over; the log still wants the rest.
        if let Some(item) = item {
            let _ = news.send(item);
        }
    }
    let _ = news.send(News::Silent(name.to_owned()));
}

/// A host and the guests on it.
pub(crate) struct Family {
    // Guests end before the host: fields drop in this order.
    guests: Vec<Child>,
    host: Child,
    news: Receiver<News>,
    sender: Sender<News>,
}

impl Family {
    /// Starts a host and waits until clients may attach.
    pub(crate) fn start(host_toml: &Path, log: &Path, stop: &Stop) -> anyhow::Result<Self> {
        let (sender, news) = channel();
        let arguments = ["host".as_ref(), host_toml.as_os_str()];
        let host = Child::start("the host", Role::Host, &arguments, log, sender.clone())?;
        let mut family = Self { guests: Vec::new(), host, news, sender };
        let end = Instant::now() + Duration::from_mins(1);
        loop {
            match family.next(end, stop)? {
                Some(News::Host(HostEvent::Ready { .. })) => return Ok(family),
                Some(_) => {}
                None => bail!(
                    "the host was not ready after 60 s; it wrote:\n  {}",
                    family.host.last_words()
                ),
            }
        }
    }

    /// Starts a guest's VMM, or the process that is the guest.
    pub(crate) fn add_guest(
        &mut self,
        guests: Guests,
        name: &str,
        toml: &Path,
        log: &Path,
    ) -> anyhow::Result<()> {
        let arguments = [guests.subcommand().as_ref(), toml.as_os_str()];
        self.guests.push(Child::start(name, Role::Guest, &arguments, log, self.sender.clone())?);
        Ok(())
    }

    /// Waits until every guest renders.
    pub(crate) fn wait_rendering(&mut self, stop: &Stop) -> anyhow::Result<()> {
        let end = Instant::now() + Duration::from_mins(1);
        let mut waiting: Vec<String> = self.guests.iter().map(|g| g.name.clone()).collect();
        while !waiting.is_empty() {
            match self.next(end, stop)? {
                Some(News::Rendering(name)) => waiting.retain(|w| *w != name),
                Some(_) => {}
                None => {
                    let late = &waiting[0];
                    let words = self
                        .guests
                        .iter()
                        .find(|g| g.name == *late)
                        .map_or_else(String::new, Child::last_words);
                    bail!("guest {late} did not render after 60 s; it wrote:\n  {words}");
                }
            }
        }
        Ok(())
    }

    /// Lets the run go on until `end`, showing each host event.
    pub(crate) fn run_until(
        &mut self,
        end: Instant,
        stop: &Stop,
        mut show: impl FnMut(&HostEvent),
    ) -> anyhow::Result<()> {
        while let Some(news) = self.next(end, stop)? {
            if let News::Host(event) = news {
                show(&event);
            }
        }
        Ok(())
    }

    /// Ends the host, which writes the guests' last images and its other files while they are still
    /// attached, and then the guests. Answers what each guest's interrupts have cost, as far as its VMM said so.
    pub(crate) fn finish(mut self) -> anyhow::Result<Vec<(String, InterruptsEvent)>> {
        let status = self.host.stop(PATIENCE);
        for guest in &mut self.guests {
            // How a guest ends that has lost its host says nothing about the run.
            guest.stop(PATIENCE);
        }
        if !status.is_some_and(|s| s.success()) {
            let end = describe(status);
            bail!("the host ended with {end}; it wrote:\n  {}", self.host.last_words());
        }
        Ok(self.last_costs())
    }

    /// All children have ended, so that each one's output ends as well.
    fn last_costs(&self) -> Vec<(String, InterruptsEvent)> {
        let (mut costs, mut silent) = (Vec::new(), 0);
        while silent <= self.guests.len() {
            match self.news.recv_timeout(PATIENCE) {
                Ok(News::Interrupts(name, event)) => costs.push((name, *event)),
                Ok(News::Silent(_)) => silent += 1,
                Ok(_) => {}
                // A grandchild may hold a pipe open.
                Err(_) => break,
            }
        }
        costs
    }

    /// The next thing a child says; `None` where nothing is said until `end`. A child that ends before it
    /// is asked to is an error, with its exit code's meaning; so is a signal.
    fn next(&mut self, end: Instant, stop: &Stop) -> anyhow::Result<Option<News>> {
        loop {
            if stop.requested() {
                return Err(interrupted());
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            match self.news.recv_timeout(left.min(TICK)) {
                Ok(News::Silent(name)) => return Err(self.ended_early(&name)),
                Ok(news) => return Ok(Some(news)),
                // The sender is ours as well, so it is never disconnected.
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
        }
    }

    fn ended_early(&mut self, name: &str) -> anyhow::Error {
        // A guest that lost its host ends as well, and may be heard first: the host's end is the cause.
        let host_ended = self.host.wait(Duration::from_millis(500)).is_some();
        let guest = self.guests.iter_mut().find(|g| g.name == name);
        let child = match guest {
            Some(guest) if !host_ended => guest,
            _ => &mut self.host,
        };
        let status = child.wait(PATIENCE);
        let what = format!(
            "{} ended early, with {}; it wrote:\n  {}",
            child.name,
            describe(status),
            child.last_words()
        );
        if status.and_then(|s| s.code()) == Some(i32::from(crate::failure::REFUSED)) {
            refused(what)
        } else {
            anyhow::Error::new(EndedEarly(what))
        }
    }
}

/// A host or a guest that ended although nobody asked it to.
#[derive(Debug)]
pub(crate) struct EndedEarly(String);

impl std::fmt::Display for EndedEarly {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for EndedEarly {}

fn describe(status: Option<ExitStatus>) -> String {
    status.map_or_else(|| "no exit status".into(), |s| s.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(role: Role, text: &[u8]) -> Vec<News> {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let (sender, news) = channel();
        listen("vr", role, text, File::create(&log).unwrap(), &sender);
        drop(sender);
        assert_eq!(std::fs::read(&log).unwrap(), text);
        news.iter().collect()
    }

    #[test]
    fn a_guest_is_not_taken_for_the_host() {
        let text = b"vr: READY scene=vr\ngame: READY\n{\"event\":\"drained\"}\n{not json\n\xff\n";
        let news = heard(Role::Guest, text);
        assert!(
            matches!(&news[..], [News::Rendering(n), News::Silent(_)] if n == "vr"),
            "{news:?}"
        );
        // What its VMM says has no name before it.
        let costs = r#"{"event":"interrupts","label":"measured","devices":[],"all":{"seconds":1.0,"vblanks":0,"exits_per_vblank":null,"counters":{"exits":5}},"paced":null,"to_vmm_io":1,"to_vmm_mmio":2,"to_vmm_other":3,"missing":null}"#;
        let news = heard(Role::Guest, format!("vr: {costs}\n{costs}\n").as_bytes());
        assert!(
            matches!(&news[..], [News::Interrupts(n, e), News::Silent(_)] if n == "vr" && e.all.counters["exits"] == 5),
            "{news:?}"
        );
        let news = heard(Role::Host, text);
        assert!(matches!(news[..], [News::Host(HostEvent::Drained), News::Silent(_)]), "{news:?}");
    }

    #[test]
    fn a_line_without_end_is_taken_in_pieces() {
        assert_eq!(heard(Role::Guest, &vec![b'x'; 3 * MAX_LINE + 1]).len(), 1);
    }

    fn child(script: &str) -> Child {
        let process = Command::new("/bin/sh").args(["-c", script]).spawn().unwrap();
        Child { name: "sh".into(), log: "/dev/null".into(), process, ended: None }
    }

    #[test]
    fn a_child_is_reaped_with_its_status() {
        let mut sh = child("exit 2");
        assert_eq!(sh.wait(Duration::from_mins(1)).and_then(|s| s.code()), Some(2));
        // Asked again, it is still known.
        assert_eq!(sh.stop(Duration::from_mins(1)).and_then(|s| s.code()), Some(2));
    }

    #[test]
    fn a_child_that_does_not_listen_is_killed() {
        use std::os::unix::process::ExitStatusExt;
        // Reading from the test's pipe blocks until it is killed.
        let mut process = Command::new("/bin/sh")
            .args(["-c", "trap '' TERM; echo go; while :; do read -r x; done"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut go = [0; 3];
        process.stdout.as_mut().unwrap().read_exact(&mut go).unwrap();
        let _keep_open = process.stdin.take();
        let mut sh = Child { name: "sh".into(), log: "/dev/null".into(), process, ended: None };
        let status = sh.stop(Duration::from_millis(50)).unwrap();
        assert_eq!(status.signal(), Some(9));
    }
}
