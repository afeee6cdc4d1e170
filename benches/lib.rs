//! What the benchmarks share: distributions, tables, gates and JSON.
//!
//! `make bench` runs all; each prints a table and writes `target/bench/<name>.json`. Every result is
//! *measured*: real time on the machine that ran it.

pub mod image;
pub mod report;
pub mod stats;

use std::process::ExitCode;

/// Runs the benchmark `name` where `cargo bench` asks for it.
pub fn run(name: &str, bench: impl FnOnce() -> anyhow::Result<()>) -> ExitCode {
    if asked_for() { exit(name, bench()) } else { ExitCode::SUCCESS }
}

/// The exit code of `name`, whose error is told.
pub fn exit(name: &str, done: anyhow::Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether this program was started by `cargo bench`. `cargo test --all-targets` starts benchmarks as well,
/// to see whether they build.
fn asked_for() -> bool {
    std::env::args().any(|argument| argument == "--bench")
}
