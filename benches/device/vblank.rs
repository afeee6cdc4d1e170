//! How late vblanks are against their absolute grid, beside a bare loop of `clock_nanosleep` on the same machine
//! in the same run, and whether they drift.

use super::flood::flood;
use super::pacers::{Pacers, Setup};
use anyhow::{Context, anyhow, ensure};
use beamline_benches::report::{Gate, Row, table};
use beamline_benches::stats::Summary;
use beamline_latency::clock::{Clock, MonotonicClock};
use beamline_mdev::host::threads::{KeepAwake, Placement, Role};
use rustix::time::{ClockId, Timespec};
use std::sync::mpsc::channel;
use std::time::Duration;

/// One host, fast enough for many vblanks in little time; one that is full; and that one while its first slice
/// floods it, whose own vblanks are not counted then. Seconds, and whether it floods.
const RUNS: [(&str, Setup, u64, bool); 3] = [
    ("1 pacer at 500 Hz", Setup { slices: 1, hz: 500, prompt: true, stamps: true }, 22, false),
    ("64 pacers at 60 Hz", FULL, 15, false),
    ("63 pacers at 60 Hz, a 64th floods", FULL, 15, true),
];
const FULL: Setup = Setup { slices: 64, hz: 60, prompt: true, stamps: true };
/// p99 at most this times that of the bare loop.
const LIMIT: f64 = 1.5;
/// Drift at most, parts per million.
const DRIFT: f64 = 10.0;
/// Vblanks at each end that drift is taken between.
const ENDS: usize = 500;
/// A grid's first vblanks, before all slices are attached.
const WARM_UP: usize = 30;

/// Rows and gates of both runs.
pub(super) fn measure() -> anyhow::Result<(Vec<Row>, Vec<Gate>)> {
    let (mut rows, mut gates) = (Vec::new(), Vec::new());
    for (name, setup, seconds, floods) in RUNS {
        // Half before and half after, so that the machine's noise hits both.
        let mut bare = sleep(setup.hz, seconds / 2)?;
        let mut pacers = Pacers::start(setup)?;
        let time = Duration::from_secs(seconds);
        if floods {
            let (pacer, gpu) = pacers.first()?;
            let (writes, doorbells) = flood(pacer, &gpu, time)?;
            println!("{name}: {writes} register writes, {doorbells} doorbells in {seconds} s");
        } else {
            std::thread::sleep(time);
        }
        let errors = pacers.end(setup)?;
        bare.extend(sleep(setup.hz, seconds / 2)?);
        let mut all = Vec::new();
        for errors in &errors[usize::from(floods)..] {
            let expected = seconds * setup.hz * 9 / 10;
            ensure!(errors.len() as u64 > expected, "{} vblanks of {expected}", errors.len());
            all.extend_from_slice(&errors[WARM_UP..]);
        }
        if setup.slices == 1 {
            gates.push(Gate::at_most(
                format!("{name}: drift over {} vblanks, ppm", all.len()),
                DRIFT,
                drift(&all, setup.hz),
            ));
        }
        let (bare, ours) = (Summary::of(&mut bare), Summary::of(&mut all));
        let ratio = ours.p99_ns as f64 / bare.p99_ns.max(1) as f64;
        gates.push(Gate::at_most(
            format!("{name}: p99 of the vblank error over a bare loop's"),
            LIMIT,
            ratio,
        ));
        rows.push(Row {
            name: format!("bare loop at {} Hz", setup.hz),
            summary: bare,
            ratio: None,
        });
        rows.push(Row {
            name: name.into(),
            ratio: ours.ratio(&rows[rows.len() - 1].summary),
            summary: ours,
        });
    }
    print!("{}", table("Vblanks, from their place on the grid to the eventfd", &rows));
    Ok((rows, gates))
}

/// How much later the last vblanks are than the first, as a share of the time between.
fn drift(errors: &[u64], hz: u64) -> f64 {
    let median = |part: &[u64]| Summary::of(&mut part.to_vec()).median_ns as f64;
    let ends = ENDS.min(errors.len() / 2);
    let moved = median(&errors[errors.len() - ends..]) - median(&errors[..ends]);
    let apart = (errors.len() - ends) as f64 * 1e9 / hz as f64;
    moved.abs() / apart * 1e6
}

/// What the system itself does: a thread like the dispatcher's that sleeps until each point of a grid, ns late.
fn sleep(hz: u64, seconds: u64) -> anyhow::Result<Vec<u64>> {
    let cpus: Vec<usize> = (0..std::thread::available_parallelism()?.get()).collect();
    let _awake = KeepAwake::start(&cpus).context("keep-awake threads")?;
    let placement = Placement { cpus: Vec::new(), realtime: true };
    let (tell, told) = channel();
    let thread = placement.spawn("bare", Role::Dispatcher, move || {
        let origin = MonotonicClock.now().0;
        let mut errors = Vec::with_capacity((hz * seconds) as usize);
        for k in 1..=hz * seconds {
            let at = origin + k * 1_000_000_000 / hz;
            let time = Timespec {
                tv_sec: (at / 1_000_000_000) as i64,
                tv_nsec: (at % 1_000_000_000) as _,
            };
            // Interrupted by a signal: it is early, and sleeps again.
            while rustix::thread::clock_nanosleep_absolute(ClockId::Monotonic, &time).is_err() {}
            errors.push(MonotonicClock.now().0.saturating_sub(at));
        }
        // The other end waits until the thread has ended.
        let _ = tell.send(errors);
    });
    let joined = thread.context("a thread")?.join();
    joined.map_err(|_| anyhow!("the bare loop panicked"))?;
    Ok(told.recv()?)
}
