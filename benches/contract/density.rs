//! Qualified density: how many tenants a GPU carries under each policy, with which phases, with admission or without.

use crate::{beamline, scenario};
use beamline_abi::Nanos;
use beamline_benches::report::Gate;
use beamline_sched::PolicyKind;
use beamline_sched::sim::density::{Search, density};
use beamline_sched::sim::{Options, Phases};
use serde::Serialize;

const SCENARIOS: [&str; 2] = ["vr-late-latch", "mixed-rates"];
/// Virtual time of one run.
const LENGTH: Nanos = Nanos::from_secs(20);
const SEARCH: Search = Search { seeds: 20, share: 0.999, threads: 2 };
/// How many times the best baseline's density, and which part of what the declared budgets allow.
const GAIN: f64 = 1.5;
const OF_BOUND: f64 = 0.9;

/// One search.
#[derive(Serialize)]
pub(crate) struct Found {
    scenario: &'static str,
    policy: &'static str,
    phases: &'static str,
    admission: bool,
    qualified: usize,
}

/// Searches them all.
pub(crate) fn all() -> anyhow::Result<(Vec<Found>, Vec<Gate>)> {
    let (mut found, mut gates) = (Vec::new(), Vec::new());
    for name in SCENARIOS {
        one(name, &mut found, &mut gates)?;
    }
    Ok((found, gates))
}

fn one(name: &'static str, found: &mut Vec<Found>, gates: &mut Vec<Gate>) -> anyhow::Result<()> {
    let mut empty = scenario(name)?;
    empty.tenants.clear();
    empty.victim = None;
    empty.length = LENGTH;
    let search = |options: &Options| density(&empty, options, &SEARCH, &|_, _| {});
    let own = search(&beamline(1))?;
    println!(
        "Qualified density in {name}: tenants that each keep {:.1}% of their frames, {} seeds (simulated)\n\
         baselines are models of documented behaviour; the declared budgets allow {}, the mean demand {}",
        SEARCH.share * 100.0,
        SEARCH.seeds,
        own.declared,
        own.mean
    );
    println!("{:<14} {:>24} {:>24}", "", "without admission", "with admission");
    let heads = Phases::ALL.map(|p| format!("{:>8.8}", p.name())).concat();
    println!("{:<14} {heads} {heads}", "policy");
    // Without admission, as the products are, by phases: Beamline's and the others'.
    let mut free = [0usize; Phases::ALL.len()];
    let mut others: Vec<(PolicyKind, [usize; Phases::ALL.len()])> = Vec::new();
    for kind in PolicyKind::ALL {
        print!("{:<14}", kind.name());
        let mut row = [0usize; Phases::ALL.len()];
        for admission in [false, true] {
            print!(" ");
            for (i, phases) in Phases::ALL.into_iter().enumerate() {
                let options = Options { policy: kind, phases, admission, ..beamline(1) };
                let qualified = search(&options)?.qualified;
                print!("{qualified:>8}");
                if !admission {
                    row[i] = qualified;
                }
                let (policy, phases) = (kind.name(), phases.name());
                found.push(Found { scenario: name, policy, phases, admission, qualified });
            }
        }
        println!();
        if kind == PolicyKind::Beamline { free = row } else { others.push((kind, row)) }
    }
    println!();
    let [synchronous, random, assigned] = [0, 1, 2];
    let gated = if name == "mixed-rates" { synchronous } else { random };
    let phases = Phases::ALL[gated].name();
    // Its own phases against theirs, nobody refused on either side.
    for (kind, row) in &others {
        let theirs = row[gated].max(1) as f64;
        let (ratio, most) = (free[assigned] as f64 / theirs, own.mean as f64 / theirs);
        let what = format!("{name}: density over that of {} at {phases} phases", kind.name());
        if most < GAIN {
            println!(
                "{what} is {ratio:.2}×; the mean demand forbids more than {most:.2}× (simulated)"
            );
        } else {
            gates.push(Gate::at_least(what, GAIN, ratio));
        }
    }
    for (i, phases) in Phases::ALL.into_iter().enumerate() {
        let best = others.iter().map(|(_, row)| row[i]).max().unwrap_or(0).max(1);
        let what =
            format!("{name}: density over the best baseline's, both at {} phases", phases.name());
        gates.push(Gate::at_least(what, 1.0, free[i] as f64 / best as f64));
    }
    println!();
    let bound = own.qualified as f64 / own.declared.max(1) as f64;
    gates.push(Gate::at_least(
        format!("{name}: density over what the budgets allow"),
        OF_BOUND,
        bound,
    ));
    Ok(())
}
