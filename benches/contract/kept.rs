//! Frames in budget under Beamline, in every scenario that is feasible.

use crate::{beamline, scenario};
use beamline_abi::Nanos;
use beamline_benches::report::Gate;
use beamline_sched::Class;
use beamline_sched::sim::solo::{interference, solo};
use beamline_sched::sim::{self, Scenario, TenantOutcome};
use serde::Serialize;

/// Scenarios whose reserved tenants can all be kept.
const FEASIBLE: [&str; 6] =
    ["two-tenants", "noisy-neighbour", "vr-late-latch", "mixed-rates", "encode-beside-game", "hog"];
/// Frames of each tenant at least.
const FRAMES: u64 = 10_000;
/// Share of the frames that kept the contract.
const SHARE: f64 = 0.999;
/// The scenario with one reserved tenant beside one that saturates the GPU, and how much longer the tenant's
/// frames may take there.
const SATURATED: &str = "noisy-neighbour";
const INTERFERENCE: f64 = 1.07;

/// One tenant in one scenario.
#[derive(Serialize)]
pub(crate) struct Kept {
    scenario: String,
    tenant: String,
    hz: f64,
    /// Frames that kept the contract.
    due: u64,
    in_budget: f64,
    own_overruns: u64,
    p99_ms: Option<f64>,
    response_over_deadline: Option<f64>,
    interference: Option<f64>,
}

/// Runs them all.
pub(crate) fn all() -> anyhow::Result<(Vec<Kept>, Vec<Gate>)> {
    println!("Frames in budget under beamline, phases by the host (simulated)");
    println!(
        "{:<20} {:<14} {:>6} {:>8} {:>10} {:>6} {:>9} {:>10} {:>8}",
        "scenario", "tenant", "Hz", "kept", "in budget", "own", "p99 ms", "÷ deadline", "alone ×"
    );
    let (mut rows, mut gates) = (Vec::new(), Vec::new());
    for name in FEASIBLE {
        let mut scenario = scenario(name)?;
        lengthen(&mut scenario);
        let outcome = sim::run(&scenario, &beamline(1))?;
        let mut least = 1.0_f64;
        for (i, t) in outcome.tenants.iter().enumerate() {
            if t.contract.class != Class::Reserved {
                continue;
            }
            anyhow::ensure!(t.refused.is_none(), "{name}: {} is refused: {:?}", t.name, t.refused);
            let alone = solo(&scenario, &beamline(1), i)?;
            let row = row(name, t, interference(t, &alone.tenants[i]));
            print(&row);
            least = least.min(row.in_budget);
            if name == SATURATED {
                let what = format!("{name}: {} p99 over that alone", t.name);
                gates.push(Gate::at_most(what, INTERFERENCE, row.interference.unwrap_or(f64::NAN)));
            }
            rows.push(row);
        }
        println!(
            "{name:<20} GPU {:.1}% busy, background {:.1}% of it",
            outcome.utilisation() * 100.0,
            outcome.background() * 100.0
        );
        gates.push(Gate::at_most(
            format!("{name}: share of kept frames missed"),
            1.0 - SHARE,
            1.0 - least,
        ));
    }
    println!();
    Ok((rows, gates))
}

/// Long enough for [`FRAMES`] of every tenant.
fn lengthen(scenario: &mut Scenario) {
    let longest = scenario.tenants.iter().filter(|t| t.contract.class == Class::Reserved);
    let period = longest.map(|t| t.contract.period.ceil().0).max().unwrap_or(0);
    scenario.length = scenario.length.max(Nanos(period * (FRAMES + FRAMES / 20)));
}

fn row(scenario: &str, t: &TenantOutcome, interference: Option<f64>) -> Kept {
    let p99 = t.quantile(0.99);
    Kept {
        scenario: scenario.into(),
        tenant: t.name.clone(),
        hz: t.contract.period.hz(),
        due: t.kept.due,
        in_budget: t.kept.share().unwrap_or(f64::NAN),
        own_overruns: t.own.iter().map(|o| o.due).sum(),
        p99_ms: p99.map(|n| n.0 as f64 / 1e6),
        response_over_deadline: p99.map(|n| t.response(n)),
        interference,
    }
}

fn print(row: &Kept) {
    let or_na =
        |v: Option<f64>, digits: usize| v.map_or_else(|| "NA".into(), |v| format!("{v:.digits$}"));
    println!(
        "{:<20} {:<14} {:>6.1} {:>8} {:>9.3}% {:>6} {:>9} {:>10} {:>8}",
        row.scenario,
        row.tenant,
        row.hz,
        row.due,
        row.in_budget * 100.0,
        row.own_overruns,
        or_na(row.p99_ms, 3),
        or_na(row.response_over_deadline, 3),
        or_na(row.interference, 3),
    );
}
