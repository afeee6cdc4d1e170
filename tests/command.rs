//! The command under test, for the suites that start it.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The newest `beamline` in the target folder; where there is none, it is built.
pub(crate) fn newest(target: &Path, profile: &Path) -> Result<PathBuf, String> {
    let built = ["debug", "release"].map(|p| target.join(p).join("beamline"));
    let age = |path: &PathBuf| std::fs::metadata(path).and_then(|m| m.modified()).ok();
    if let Some(newest) = built.into_iter().filter(|p| p.is_file()).max_by_key(age) {
        return Ok(newest);
    }
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--locked", "-p", "beamline"]).env("CARGO_TARGET_DIR", target);
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
    let status = cargo.status().map_err(|e| format!("cargo cannot be started: {e}"))?;
    // What does not build is no reason to skip.
    assert!(status.success(), "`cargo build -p beamline`: {status}");
    Ok(profile.join("beamline"))
}
