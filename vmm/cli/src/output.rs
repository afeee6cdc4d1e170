//! What goes to stdout and stderr. A reader that went away (`beamline doctor | head`) is no error.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use tracing_subscriber::EnvFilter;

/// Whether [`line`] goes to stderr.
static TO_STDERR: AtomicBool = AtomicBool::new(false);

/// Leaves stdout to [`json`]: text goes to stderr from now on.
pub(crate) fn text_to_stderr(yes: bool) {
    TO_STDERR.store(yes, Ordering::Relaxed);
}

/// A line of text for people, or for whoever reads stdout.
pub(crate) fn line(text: &str) {
    if TO_STDERR.load(Ordering::Relaxed) {
        error(text);
    } else {
        stdout(text);
    }
}

/// A value as JSON on stdout.
pub(crate) fn json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    stdout(&serde_json::to_string_pretty(value)?);
    Ok(())
}

/// A value as JSON on one line of stdout. False: nobody reads it any more.
pub(crate) fn json_line(value: &impl serde::Serialize) -> anyhow::Result<bool> {
    Ok(stdout(&serde_json::to_string(value)?))
}

fn stdout(text: &str) -> bool {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).is_ok()
}

/// A line on stderr.
pub(crate) fn error(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Logs go to stderr, as `BEAMLINE_LOG` asks; warnings where it does not.
pub(crate) fn start_logs() {
    let filter = EnvFilter::try_from_env("BEAMLINE_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    // Fails only where logs were started before.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // The crate is built without colours, and says so by a panic where they are asked for.
        .with_ansi(false)
        .try_init();
}

/// A line that is written over while something goes on; only where someone watches.
pub(crate) struct Progress {
    shown: usize,
    terminal: bool,
}

impl Progress {
    /// On stderr, where that is a terminal.
    pub(crate) fn new() -> Self {
        Self { shown: 0, terminal: std::io::stderr().is_terminal() }
    }

    /// Shows `text` in place of what was shown.
    pub(crate) fn show(&mut self, text: &str) {
        // Where nothing is shown there is nothing to write over.
        if self.terminal && !(text.is_empty() && self.shown == 0) {
            let width = text.chars().count();
            let pad = self.shown.saturating_sub(width);
            let mut err = std::io::stderr().lock();
            let _ = write!(err, "\r{text}{:pad$}", "").and_then(|()| err.flush());
            self.shown = width;
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown > 0 {
            self.show("");
            let _ = write!(std::io::stderr().lock(), "\r");
        }
    }
}
