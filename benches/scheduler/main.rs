//! What one decision of the scheduler costs, with few and with very many tenants.
//!
//! The load is in virtual time ([`load`]); only `decide` is timed, each call by itself.

mod load;

use beamline_benches::report::{Gate, LABEL, Row, table, write_json};
use beamline_benches::stats::Summary;
use beamline_sched::{Decision, PolicyKind};
use load::Load;
use std::hint::black_box;
use std::process::ExitCode;
use std::time::Instant;

const TENANTS: [u16; 3] = [3, 64, 1024];
/// Decisions that are timed for each row.
const DECISIONS: usize = 200_000;
/// Decisions before them.
const WARM_UP: usize = 50_000;
/// Most that a decision may take, median: µs.
const LIMIT_US: f64 = 1.0;

fn main() -> ExitCode {
    if !beamline_benches::asked_for() {
        return ExitCode::SUCCESS;
    }
    match bench() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("scheduler: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench() -> anyhow::Result<()> {
    let mut rows = vec![Row {
        name: "two readings of the clock, contained in each".into(),
        summary: clock(),
        ratio: None,
    }];
    let mut gates = Vec::new();
    for kind in [PolicyKind::Beamline, PolicyKind::Fifo] {
        for tenants in TENANTS {
            let mut timed = decisions(kind, tenants)?;
            let used = timed.used;
            for (which, values) in [("all", &mut timed.all), ("grants", &mut timed.grants)] {
                let name = format!("{kind}, {tenants} tenants, GPU {used}% busy, {which}");
                let summary = Summary::of(values);
                let median = summary.median_ns as f64 / 1e3;
                gates.push(Gate::at_most(format!("{name}, median"), LIMIT_US, median));
                rows.push(Row { name, summary, ratio: None });
            }
        }
    }
    print!("{}", table("One decision of the scheduler", &rows));
    for gate in &gates {
        println!("gate: {}", gate.line(" µs"));
    }
    let json =
        serde_json::json!({ "bench": "scheduler", "label": LABEL, "rows": rows, "gates": gates });
    println!("{}\n", write_json("scheduler", &json)?.display());
    Ok(())
}

/// What the timing itself costs.
fn clock() -> Summary {
    let mut values: Vec<u64> = (0..DECISIONS).map(|_| nanos(black_box(Instant::now()))).collect();
    Summary::of(&mut values)
}

fn nanos(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Durations of decisions, ns.
struct Timed {
    all: Vec<u64>,
    /// Those that granted a job. The others mostly find the GPU taken, which is soon seen.
    grants: Vec<u64>,
    /// How much of the GPU's virtual time the load used, percent.
    used: u64,
}

/// Times decisions in a load's steady state.
fn decisions(kind: PolicyKind, tenants: u16) -> anyhow::Result<Timed> {
    let mut load = Load::new(kind, tenants)?;
    let mut timed = Timed {
        all: Vec::with_capacity(DECISIONS),
        grants: Vec::with_capacity(DECISIONS),
        used: 0,
    };
    let mut done = 0;
    while timed.all.len() < DECISIONS {
        load.advance()?;
        loop {
            let start = Instant::now();
            let decision = black_box(load.decide());
            let cost = nanos(start);
            done += 1;
            if done > WARM_UP && timed.all.len() < DECISIONS {
                timed.all.push(cost);
                if matches!(decision, Decision::Grant { .. }) {
                    timed.grants.push(cost);
                }
            }
            if !load.follow(decision) {
                break;
            }
        }
    }
    timed.used = load.used();
    Ok(timed)
}
