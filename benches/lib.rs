//! What the benchmarks share: distributions, tables, gates and JSON.
//!
//! `make bench` runs all; each prints a table and writes `target/bench/<name>.json`. Every result is
//! *measured*: real time on the machine that ran it.

pub mod image;
pub mod report;
pub mod stats;

/// Whether this program was started by `cargo bench`. `cargo test --all-targets` starts benchmarks as well,
/// to see whether they build.
pub fn asked_for() -> bool {
    std::env::args().any(|argument| argument == "--bench")
}
