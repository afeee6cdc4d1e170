//! What slices cost that are attached and paced, and draw nothing.

use super::pacers::{Pacers, Setup};
use anyhow::Context;
use beamline_benches::report::{Gate, Row};
use std::time::{Duration, Instant};

const SETUP: Setup = Setup { slices: 64, hz: 60, prompt: false, stamps: false };
const SECONDS: u64 = 15;
/// Until all memory that idle slices touch has been touched, s.
const SETTLE: u64 = 3;
/// Most of one core, %, for all of them.
const CPU: f64 = 3.0;
/// Most memory of one of them, MiB.
const MEMORY: f64 = 2.0;

/// Gates; there are no distributions here.
pub(super) fn measure() -> anyhow::Result<(Vec<Row>, Vec<Gate>)> {
    // What the first slice brings once is no other's.
    let one = Pacers::start(Setup { slices: 1, ..SETUP })?;
    let before = resident()?;
    let many = Pacers::start(SETUP)?;
    std::thread::sleep(Duration::from_secs(SETTLE));
    let each = (resident()? - before) / SETUP.slices as f64;
    one.end(Setup { slices: 1, ..SETUP })?;
    let (start, used) = (Instant::now(), cpu()?);
    std::thread::sleep(Duration::from_secs(SECONDS));
    let share = (cpu()? - used) / start.elapsed().as_secs_f64() * 100.0;
    many.end(SETUP)?;
    let Setup { slices, hz, .. } = SETUP;
    println!(
        "{slices} idle slices at {hz} Hz: {share:.2}% of a core, {each:.2} MiB of memory each, this program's clients \
         included (measured)\n"
    );
    let gates = vec![
        Gate::at_most(format!("{slices} idle slices at {hz} Hz: % of a core"), CPU, share),
        Gate::at_most("an idle slice: MiB of memory", MEMORY, each),
    ];
    Ok((Vec::new(), gates))
}

/// CPU time of this process, s.
fn cpu() -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The name, which is in brackets, may have spaces; user and system time are the 14th and the 15th field.
    let (_, fields) = stat.rsplit_once(") ").context("/proc/self/stat has no name")?;
    let mut times = fields.split(' ').skip(11);
    let mut next = || -> anyhow::Result<f64> {
        Ok(times.next().context("/proc/self/stat is short")?.parse::<u64>()? as f64)
    };
    Ok((next()? + next()?) / rustix::param::clock_ticks_per_second() as f64)
}

/// Memory of this process that is resident, MiB.
fn resident() -> anyhow::Result<f64> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = statm.split(' ').nth(1).context("/proc/self/statm is short")?.parse()?;
    Ok((pages * rustix::param::page_size() as u64) as f64 / f64::from(1 << 20))
}
