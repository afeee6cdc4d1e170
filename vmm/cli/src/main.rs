//! The `beamline` command.
fn main() {}
