//! From the start of the command to the guest's first instruction.
//!
//! The guest's first instructions write a newline to its serial port. The time ends when this program has read the
//! line that the VMM makes of it: what is measured is more than what is promised, by an exit and a pipe.

use super::process::Process;
use anyhow::Context;
use beamline_benches::image;
use beamline_benches::report::{Gate, Row};
use beamline_benches::stats::Summary;
use std::path::Path;
use std::time::Instant;

/// Starts that count; a few before do not: they read the program from the disk.
const STARTS: usize = 40;
const WARM_UP: usize = 3;
/// Most that the median may be, ms.
const LIMIT: f64 = 50.0;

pub(crate) fn measure(beamline: &Path) -> anyhow::Result<(Row, Gate)> {
    let folder = tempfile::tempdir().context("a folder")?;
    // mov dx, 0x3f8; mov al, '\n'; out dx, al; mov al, 0; out 0xf4, al; hlt
    let code = [0x66, 0xba, 0xf8, 0x03, 0xb0, b'\n', 0xee, 0xb0, 0, 0xe6, 0xf4, 0xf4, 0xeb, 0xfd];
    std::fs::write(folder.path().join("image"), image::elf(&code)).context("the guest's image")?;
    let guest = "[guest]\nname = \"first\"\nimage = \"image\"\n[memory]\nsize = \"512M\"\n";
    std::fs::write(folder.path().join("guest.toml"), guest).context("the guest's file")?;
    let mut times = Vec::with_capacity(STARTS);
    for n in 0..WARM_UP + STARTS {
        let began = Instant::now();
        let mut process = Process::start(beamline, &["run", "guest.toml"], folder.path())?;
        process.wait_for("first:")?;
        if n >= WARM_UP {
            times.push(began.elapsed().as_nanos() as u64);
        }
    }
    let summary = Summary::of(&mut times);
    let name = "start to first instruction, 512 MiB".to_owned();
    let gate = Gate::at_most(format!("{name}, median"), LIMIT, summary.median_ns as f64 / 1e6);
    Ok((Row { name, summary, ratio: None }, gate))
}
