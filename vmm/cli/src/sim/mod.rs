//! `beamline sim`: a scenario in virtual time, under Beamline and under models of other schedulers.
//!
//! | step | file |
//! |---|---|
//! | which scenario | [`load`] |
//! | policies × seeds, each beside the victim alone | [`run`] |
//! | what comes out | [`table`], [`json`], [`svg`], [`trace`] |

mod json;
mod load;
mod run;
mod svg;
mod table;
mod trace;

use crate::failure::refused;
use crate::output;
use crate::signals::Stop;
use anyhow::Context;
use beamline_abi::Nanos;
use beamline_sched::PolicyKind;
use beamline_sched::sim::Phases;
use beamline_sched::sim::scenario::Scenario;
use std::path::{Path, PathBuf};

/// What is simulated, and what is shown of it.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// A built-in scenario (see --list), or a file (see docs/scenarios.md)
    #[arg(required_unless_present = "list")]
    scenario: Option<String>,
    /// Name the built-in scenarios and the policies
    #[arg(long)]
    list: bool,
    /// Policies, separated by commas, or given several times
    #[arg(long, value_name = "POLICY", value_delimiter = ',', value_parser = policy,
          default_values_t = [PolicyKind::Beamline, PolicyKind::Fifo])]
    policy: Vec<PolicyKind>,
    /// Every policy
    #[arg(long, conflicts_with = "policy")]
    all: bool,
    /// How many seeds; 95% intervals need 2
    #[arg(long, value_name = "N", default_value_t = 5,
          value_parser = clap::value_parser!(u64).range(1..=1000))]
    seeds: u64,
    /// Where the vblanks lie: synchronous, random, assigned
    #[arg(long, value_name = "HOW", default_value = "assigned", value_parser = phases)]
    phases: Phases,
    /// Run everybody, also those that admission refuses
    #[arg(long)]
    no_admission: bool,
    /// Virtual time that counts, in place of the scenario's own
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<f64>,
    /// Also find how many of the scenario's density tenants fit on an empty GPU, over at least 20 seeds
    #[arg(long)]
    density: bool,
    /// Print JSON in place of the table
    #[arg(long)]
    json: bool,
    /// Write a picture: frames in budget by policy, and who had the GPU in the first 100 ms
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Write a timeline of the first seconds that Perfetto and chrome://tracing load
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
}

fn policy(name: &str) -> Result<PolicyKind, String> {
    name.parse().map_err(|e: beamline_sched::UnknownPolicy| e.to_string())
}

fn phases(name: &str) -> Result<Phases, String> {
    let names = || Phases::ALL.map(Phases::name).join(", ");
    Phases::ALL
        .into_iter()
        .find(|p| p.name() == name)
        .ok_or_else(|| format!("there is no such choice; use one of: {}", names()))
}

/// What the other schedulers are here.
const MODEL: &str = "model of documented behaviour";

/// What a policy's results rest on.
fn standing(policy: PolicyKind) -> &'static str {
    if policy == PolicyKind::Beamline { "the code that schedules live" } else { MODEL }
}

/// One call of the command: what all outputs say of it.
struct Call {
    scenario: Scenario,
    /// Of the scenario's text and its traces.
    hash: String,
    policies: Vec<PolicyKind>,
    seeds: u64,
    phases: Phases,
    admission: bool,
    timeline: bool,
}

/// Runs the subcommand.
pub(crate) fn sim(options: &Options) -> anyhow::Result<()> {
    if options.list {
        output::line(&load::list());
        let names = PolicyKind::ALL.map(PolicyKind::name).join(", ");
        output::line(&format!("\npolicies: {names}"));
        return Ok(());
    }
    let stop = Stop::install()?;
    // Required by the command line where nothing is listed.
    let name = options.scenario.as_deref().unwrap_or_default();
    let load::Loaded { mut scenario, hash } = load::load(name)?;
    if let Some(seconds) = options.seconds {
        if !(0.1..=3_600.0).contains(&seconds) {
            return Err(refused(format!("--seconds: {seconds} is out of range; use 0.1 to 3600")));
        }
        scenario.length = Nanos((seconds * 1e9).round() as u64);
    }
    if options.density && scenario.density.is_none() {
        let problem = "names no tenants to add for --density; give it [[density]] entries, or use";
        return Err(refused(format!("{name}: {problem} density, mixed-rates or vr-late-latch")));
    }
    if !options.density && scenario.tenants.is_empty() {
        return Err(refused(format!("{name}: has no [[tenant]]; add one, or ask for --density")));
    }
    let mut policies = if options.all { PolicyKind::ALL.to_vec() } else { options.policy.clone() };
    let mut seen = Vec::new();
    policies.retain(|p| {
        !seen.contains(p) && {
            seen.push(*p);
            true
        }
    });
    let call = Call {
        scenario,
        hash,
        policies,
        seeds: options.seeds,
        phases: options.phases,
        admission: !options.no_admission,
        timeline: options.plot.is_some() || options.trace.is_some(),
    };
    let mut results = run::run(&call, &stop)?;
    if options.density {
        run::densities(&call, &stop, &mut results)?;
    }
    if let Some(path) = &options.plot {
        write(path, &svg::svg(&call, &results))?;
    }
    if let Some(path) = &options.trace {
        write(path, &serde_json::to_string(&trace::chrome_json(&call, &results))?)?;
    }
    if options.json {
        return output::json(&json::json(&call, &results));
    }
    output::line(table::table(&call, &results).trim_end());
    Ok(())
}

fn write(path: &Path, content: &str) -> anyhow::Result<()> {
    std::fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}
