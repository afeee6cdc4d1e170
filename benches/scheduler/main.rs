//! What one decision of the scheduler costs, with few and with very many tenants.
//!
//! The load is in virtual time ([`load`]); only `decide` is timed, each call by itself.

mod callgrind;
mod load;

use beamline_benches::report::{Gate, LABEL, Row, table, write_json};
use beamline_benches::stats::Summary;
use beamline_benches::{exit, run};
use beamline_sched::{Decision, PolicyKind};
use load::Load;
use std::collections::{BTreeMap, HashMap};
use std::hint::black_box;
use std::process::ExitCode;
use std::time::Instant;

const TENANTS: [u16; 3] = [3, 64, 1024];
/// Decisions that are timed for each row.
const DECISIONS: usize = 200_000;
/// Decisions before them.
const WARM_UP: usize = 50_000;
/// Most that a decision of `beamline` may take with up to [`MANY`] tenants: µs, median and p99.
const MEDIAN_US: f64 = 0.2;
const P99_US: f64 = 1.0;
const MANY: u16 = 64;
/// How many times that it may take with more.
const GROWTH: f64 = 4.0;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.split_first() {
        Some((first, rest)) if first == callgrind::COUNT => exit("scheduler", callgrind::run(rest)),
        _ => run("scheduler", bench),
    }
}

fn bench() -> anyhow::Result<()> {
    let mut rows = vec![Row {
        name: "two readings of the clock, contained in each".into(),
        summary: clock(),
        ratio: None,
    }];
    let mut gates = Vec::new();
    let mut many = HashMap::new();
    for kind in [PolicyKind::Beamline, PolicyKind::Fifo] {
        for tenants in TENANTS {
            let mut timed = decisions(kind, tenants)?;
            let used = timed.used;
            for (which, values) in [("all", &mut timed.all), ("grants", &mut timed.grants)] {
                let name = format!("{kind}, {tenants} tenants, GPU {used}% busy, {which}");
                let summary = Summary::of(values);
                if kind == PolicyKind::Beamline {
                    gates.extend(gates_of(&mut many, which, tenants, &summary));
                }
                rows.push(Row { name, summary, ratio: None });
            }
        }
    }
    print!("{}", table("One decision of the scheduler", &rows));
    for (gate, unit) in &gates {
        println!("gate: {}", gate.line(unit));
    }
    let instructions = count()?;
    let gates: Vec<&Gate> = gates.iter().map(|(gate, _)| gate).collect();
    let json = serde_json::json!({
        "bench": "scheduler", "label": LABEL, "rows": rows, "gates": gates,
        "instructions": instructions,
    });
    println!("{}\n", write_json("scheduler", &json)?.display());
    Ok(())
}

/// The gates of one row, with their units. `many`: median and p99 with [`MANY`], by kind of decision.
fn gates_of<'a>(
    many: &mut HashMap<&'a str, (f64, f64)>,
    which: &'a str,
    tenants: u16,
    summary: &Summary,
) -> Vec<(Gate, &'static str)> {
    let (median, p99) = (summary.median_ns as f64 / 1e3, summary.p99_ns as f64 / 1e3);
    let name = format!("beamline, {tenants} tenants, {which}");
    let limits = match many.get(which) {
        Some(&(median, p99)) => {
            (format!(" over that with {MANY}"), median, p99, GROWTH, GROWTH, "×")
        }
        None => (String::new(), 1.0, 1.0, MEDIAN_US, P99_US, " µs"),
    };
    let (over, by_median, by_p99, most_median, most_p99, unit) = limits;
    if tenants == MANY {
        many.insert(which, (median, p99));
    }
    vec![
        (Gate::at_most(format!("{name}, median{over}"), most_median, median / by_median), unit),
        (Gate::at_most(format!("{name}, p99{over}"), most_p99, p99 / by_p99), unit),
    ]
}

/// Instructions per decision, by number of tenants, where valgrind is installed.
fn count() -> anyhow::Result<BTreeMap<u16, f64>> {
    let mut counts = BTreeMap::new();
    for tenants in TENANTS {
        let Some(n) = callgrind::instructions(PolicyKind::Beamline, tenants)? else {
            println!(
                "skip: instructions per decision: valgrind is not installed (apt install valgrind)"
            );
            break;
        };
        println!("beamline, {tenants} tenants: {n:.0} instructions per decision (measured)");
        counts.insert(tenants, n);
    }
    Ok(counts)
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
