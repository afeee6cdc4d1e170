//! `type = "virtio-console"`: a console.

use super::{Device, Entry, Wrong};
use crate::devices::virtio::console::Output;
use schemars::JsonSchema;
use serde::Deserialize;
use std::path::PathBuf;

/// The terminal's name, and what starts a socket's.
const TERMINAL: &str = "terminal";
const SOCKET: &str = "unix:";

/// A console.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "virtio-console")]
pub(in crate::config) struct Raw {
    /// A file, "unix:" and a socket's path, or "terminal".
    output: String,
}

/// A console.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsoleDevice {
    /// Where it leads.
    pub output: Output,
}

impl Raw {
    pub(super) fn check(self, entry: &Entry<'_>) -> Result<ConsoleDevice, Wrong> {
        const WHAT: &str = "a file, \"unix:\" and a socket's path, or \"terminal\"";
        let output = match self.output.strip_prefix(SOCKET) {
            Some(path) => Output::Socket(entry.socket("output", PathBuf::from(path), WHAT)?),
            None if self.output == TERMINAL => Output::Terminal,
            None => Output::File(entry.path("output", PathBuf::from(self.output), WHAT)?),
        };
        Ok(ConsoleDevice { output })
    }
}

impl ConsoleDevice {
    pub(super) fn both_at_terminal(a: &Device, b: &Device) -> bool {
        let terminal = |d: &Device| matches!(d, Device::Console(c) if c.output == Output::Terminal);
        terminal(a) && terminal(b)
    }
}
