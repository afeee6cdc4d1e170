//! The command, run in a folder.

use std::path::Path;
use std::process::{Command, Output, Stdio};

/// The command with these arguments, and nothing to read.
pub(crate) fn beamline(arguments: &[&str], folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_beamline"));
    command.args(arguments).current_dir(folder).stdin(Stdio::null());
    command
}

/// What it said, once it has ended.
pub(crate) fn output(arguments: &[&str], folder: &Path) -> Output {
    beamline(arguments, folder).output().unwrap()
}

/// The exit code and stderr of a command that must fail.
pub(crate) fn failure(arguments: &[&str], folder: &Path) -> (Option<i32>, String) {
    let out = output(arguments, folder);
    assert!(!out.status.success(), "{arguments:?} succeeded");
    (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
}
