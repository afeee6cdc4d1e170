//! What the frame contract is worth: frames in budget, qualified density against models of other products'
//! documented behaviour, and the simulator's own speed. All but the last is *simulated*.

mod density;
mod kept;

use beamline_benches::report::{Gate, write_json};
use beamline_sched::PolicyKind;
use beamline_sched::sim::{self, Options, Phases, Scenario};
use std::process::ExitCode;
use std::time::Instant;

/// Virtual time of the speed run, and how many tenants share the GPU in it.
const SPEED_S: u64 = 600;
const SPEED_TENANTS: usize = 64;
/// Most real time that it may take, s.
const SPEED_LIMIT_S: f64 = 10.0;

fn main() -> ExitCode {
    beamline_benches::run("contract", bench)
}

fn bench() -> anyhow::Result<()> {
    let (kept, mut gates) = kept::all()?;
    let (densities, more) = density::all()?;
    gates.extend(more);
    gates.push(speed()?);
    for gate in &gates {
        println!("gate: {}", gate.line(""));
    }
    let json = serde_json::json!({
        "bench": "contract", "label": "simulated", "kept": kept, "densities": densities, "gates": gates,
    });
    println!("{}\n", write_json("contract", &json)?.display());
    Ok(())
}

/// A scenario that comes with the simulator.
fn scenario(name: &str) -> anyhow::Result<Scenario> {
    sim::builtin::scenario(name).ok_or_else(|| anyhow::anyhow!("there is no scenario {name}"))
}

/// How Beamline itself is run.
fn beamline(seed: u64) -> Options {
    Options {
        policy: PolicyKind::Beamline,
        phases: Phases::Assigned,
        admission: true,
        seed,
        timeline: false,
    }
}

/// Ten minutes of many tenants; the only figure here that is real time.
fn speed() -> anyhow::Result<Gate> {
    let mut many = scenario("density")?;
    let template = many.density.take().unwrap_or_default();
    anyhow::ensure!(!template.is_empty(), "the scenario density has no tenants to add");
    many.tenants = template.iter().cycle().take(SPEED_TENANTS).cloned().collect();
    many.victim = None;
    many.length = beamline_abi::Nanos::from_secs(SPEED_S);
    let options = Options { admission: false, ..beamline(1) };
    let start = Instant::now();
    let outcome = sim::run(&many, &options)?;
    let took = start.elapsed().as_secs_f64();
    let frames: u64 = outcome.tenants.iter().map(|t| t.frames.due).sum();
    println!(
        "simulator: {SPEED_S} s of {SPEED_TENANTS} tenants, {frames} frames, in {took:.1} s on one core (measured)"
    );
    Ok(Gate::at_most("simulator: 10 minutes of 64 tenants, s", SPEED_LIMIT_S, took))
}
