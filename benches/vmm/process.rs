//! A command that is run, listened to, and ended.

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

/// A process whose output is read line by line. Dropping it ends it.
pub(crate) struct Process {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Process {
    /// Starts `beamline` with `arguments` in `folder`.
    pub(crate) fn start(
        beamline: &Path,
        arguments: &[&str],
        folder: &Path,
    ) -> anyhow::Result<Self> {
        let mut child = Command::new(beamline)
            .args(arguments)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", beamline.display()))?;
        let stdout = child.stdout.take().context("a pipe from the command")?;
        Ok(Self { child, lines: BufReader::new(stdout) })
    }

    /// Its number.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Reads until a line has `part`.
    pub(crate) fn wait_for(&mut self, part: &str) -> anyhow::Result<()> {
        let mut line = String::new();
        loop {
            line.clear();
            if self.lines.read_line(&mut line).context("the command's output")? == 0 {
                bail!("the command ended before it said `{part}`");
            }
            if line.contains(part) {
                return Ok(());
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Not reaped yet, so that the number is still its own.
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        // It reads until its children have closed their pipes.
        let _ = std::io::copy(&mut self.lines, &mut std::io::sink());
        let _ = self.child.wait();
    }
}
