//! A process whose lines are waited for, and which never outlives its test.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Bounds every wait: far beyond what any test here needs on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_mins(4);

/// The `name=value` words of a line.
pub(crate) fn words(line: &str) -> HashMap<&str, &str> {
    line.split_whitespace().filter_map(|word| word.split_once('=')).collect()
}

/// A process that talks by lines.
pub(crate) struct Process {
    name: &'static str,
    child: Child,
    lines: Receiver<String>,
    /// Everything it has said so far.
    said: Vec<String>,
    /// Whether its lines are shown.
    loud: bool,
    /// Files that are shown where it fails.
    logs: Vec<PathBuf>,
    end: Instant,
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails where it has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    pub(crate) fn start(name: &'static str, command: &mut Command, loud: bool) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let stdout = child.stdout.take().expect("it is piped");
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                // Nobody listens any more where the test has failed.
                let _ = sender.send(line);
            }
        });
        let end = Instant::now() + PATIENCE;
        Self { name, child, lines, said: Vec::new(), loud, logs: Vec::new(), end }
    }

    /// Shows these files where it fails.
    pub(crate) fn showing(mut self, logs: Vec<PathBuf>) -> Self {
        self.logs = logs;
        self
    }

    /// Bounds its whole life by `patience` from now on.
    pub(crate) fn patient(mut self, patience: Duration) -> Self {
        self.end = Instant::now() + patience;
        self
    }

    /// The next line that starts with `start`.
    ///
    /// # Panics
    /// Where it does not come, with all that was said.
    pub(crate) fn until(&mut self, start: &str) -> String {
        let line = self.until_end(start);
        line.unwrap_or_else(|| self.fail(&format!("ended before {start:?}")))
    }

    /// The next line that starts with `start`; `None`: it has ended before.
    ///
    /// # Panics
    /// Where neither comes, with all that was said.
    pub(crate) fn until_end(&mut self, start: &str) -> Option<String> {
        loop {
            match self.next() {
                Ok(line) if line.starts_with(start) => return Some(line),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => self.fail(&format!("{start:?} did not come")),
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        }
    }

    fn next(&mut self) -> Result<String, RecvTimeoutError> {
        let line = self.lines.recv_timeout(self.end.saturating_duration_since(Instant::now()))?;
        let line = line.trim_end_matches('\r').to_owned();
        if self.loud {
            println!("  {}: {line}", self.name);
        }
        self.said.push(line.clone());
        Ok(line)
    }

    pub(crate) fn fail(&self, what: &str) -> ! {
        panic!("{}: {what}; it said:\n{}{}", self.name, self.said.join("\n"), self.logs())
    }

    /// The files that are shown where it fails.
    pub(crate) fn logs(&self) -> String {
        let log = |file: &PathBuf| {
            let text = std::fs::read(file).unwrap_or_default();
            format!("\n--- {}:\n{}", file.display(), String::from_utf8_lossy(&text))
        };
        self.logs.iter().map(log).collect::<Vec<_>>().concat()
    }

    /// Says a line to it.
    pub(crate) fn say(&mut self, line: &str) {
        let stdin = self.child.stdin.as_mut().expect("it is piped");
        // One that has ended is found out by whoever waits for its answer.
        let _ = writeln!(stdin, "{line}").and_then(|()| stdin.flush());
    }

    /// Everything that it says until it ends, and how it ended.
    pub(crate) fn finish(&mut self) -> (ExitStatus, Vec<String>) {
        loop {
            match self.next() {
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => self.fail("did not end"),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        // It has closed its output, so it is exiting.
        let status = self.child.wait().unwrap();
        (status, std::mem::take(&mut self.said))
    }

    /// Everything that it has said so far.
    pub(crate) fn said(&self) -> &[String] {
        &self.said
    }

    pub(crate) fn id(&self) -> &Child {
        &self.child
    }
}
