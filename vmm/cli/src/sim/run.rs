//! Every policy with every seed, and beside each run the victim alone.
//!
//! Runs are spread over the CPUs and added up in the order of the seeds: the figures do not depend on who was
//! first. A signal ends the command at once; runs hold nothing that has to be given back.

use super::Call;
use crate::failure::{interrupted, refused_by};
use crate::output::Progress;
use crate::signals::Stop;
use beamline_sched::PolicyKind;
use beamline_sched::sim::density::{self, Density, Search};
use beamline_sched::sim::scenario::{Options, Scenario, ScenarioError};
use beamline_sched::sim::{Interval, Outcome, Runs, run as simulate, solo};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

/// How often signals are looked for, and progress is shown.
const LOOK: Duration = Duration::from_millis(100);

/// What came of one policy.
pub(super) struct Result {
    pub(super) policy: PolicyKind,
    pub(super) runs: Runs,
    /// By seed: the victim's p99 beside the others over its p99 alone, under the same policy; `None` where one
    /// of them has too few frames.
    pub(super) interference: Vec<Option<f64>>,
    /// How many tenants fit, where it was asked for.
    pub(super) density: Option<Density>,
}

impl Result {
    /// The victim's interference over the seeds.
    pub(super) fn interference(&self) -> Option<Interval> {
        let values: Vec<f64> = self.interference.iter().copied().flatten().collect();
        Interval::of(&values)
    }
}

/// One run and what it is compared with.
struct One {
    outcome: Outcome,
    interference: Option<f64>,
}

/// Runs all of it.
pub(super) fn run(call: &Call, stop: &Stop) -> anyhow::Result<Vec<Result>> {
    let began = Instant::now();
    let tasks: Arc<Vec<Options>> = Arc::new(tasks(call));
    let scenario = Arc::new(call.scenario.clone());
    let next = Arc::new(AtomicUsize::new(0));
    let (done, results) = mpsc::channel();
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(tasks.len());
    for _ in 0..threads {
        let (tasks, scenario) = (Arc::clone(&tasks), Arc::clone(&scenario));
        let (next, done) = (Arc::clone(&next), done.clone());
        std::thread::spawn(move || {
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                let Some(options) = tasks.get(i) else { break };
                // Nobody listens once the command has been told to end.
                if done.send((i, one(&scenario, options))).is_err() {
                    break;
                }
            }
        });
    }
    drop(done);
    let mut progress = Progress::new();
    let mut early = BTreeMap::new();
    let (mut all, mut added): (Vec<Result>, usize) = (Vec::new(), 0);
    while added < tasks.len() {
        match results.recv_timeout(LOOK) {
            Ok((i, one)) => drop(early.insert(i, one.map_err(refused_by)?)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => anyhow::bail!("a simulation ended early"),
        }
        if stop.requested() {
            return Err(interrupted());
        }
        while let Some(one) = early.remove(&added) {
            add(&mut all, one);
            added += 1;
        }
        if began.elapsed() > Duration::from_secs(1) {
            progress.show(&format!("simulating: {added} of {} runs", tasks.len()));
        }
    }
    Ok(all)
}

/// By policy, then by seed. Only a policy's first seed keeps a timeline.
fn tasks(call: &Call) -> Vec<Options> {
    let of = |&policy: &PolicyKind| {
        (1..=call.seeds).map(move |seed| Options {
            policy,
            phases: call.phases,
            admission: call.admission,
            seed,
            timeline: call.timeline && seed == 1,
        })
    };
    call.policies.iter().flat_map(of).collect()
}

fn one(scenario: &Scenario, options: &Options) -> std::result::Result<One, ScenarioError> {
    let outcome = simulate(scenario, options)?;
    let interference = match scenario.victim {
        None => None,
        Some(victim) => {
            let alone = solo::solo(scenario, &Options { timeline: false, ..*options }, victim)?;
            let (beside, alone) = (outcome.tenants.get(victim), alone.tenants.get(victim));
            beside.zip(alone).and_then(|(beside, alone)| solo::interference(beside, alone))
        }
    };
    Ok(One { outcome, interference })
}

fn add(all: &mut Vec<Result>, one: One) {
    let policy = one.outcome.options.policy;
    match all.last_mut().filter(|r| r.policy == policy) {
        Some(result) => {
            result.runs.add(&one.outcome);
            result.interference.push(one.interference);
        }
        None => all.push(Result {
            policy,
            runs: Runs::new(one.outcome),
            interference: vec![one.interference],
            density: None,
        }),
    }
}

/// Seeds that a qualified density rests on at least.
pub(super) const DENSITY_SEEDS: u64 = 20;
/// The share of its frames that each tenant has to keep in budget.
pub(super) const DENSITY_SHARE: f64 = 0.999;

/// Finds how many of the scenario's density tenants fit on an empty GPU, for each result.
pub(super) fn densities(call: &Call, stop: &Stop, all: &mut [Result]) -> anyhow::Result<()> {
    let scenario = Scenario { tenants: Vec::new(), victim: None, ..call.scenario.clone() };
    let search = Search {
        seeds: call.seeds.max(DENSITY_SEEDS) as usize,
        share: DENSITY_SHARE,
        threads: std::thread::available_parallelism().map_or(1, usize::from),
    };
    let base = Options {
        policy: PolicyKind::Beamline,
        phases: call.phases,
        admission: call.admission,
        seed: 1,
        timeline: false,
    };
    let policies: Vec<PolicyKind> = all.iter().map(|r| r.policy).collect();
    let looked_at = Arc::new(AtomicUsize::new(0));
    let (done, results) = mpsc::channel();
    let tenants = Arc::clone(&looked_at);
    std::thread::spawn(move || {
        for policy in policies {
            let told = |n: usize, _: usize| tenants.store(n, Ordering::Relaxed);
            let found = density::density(&scenario, &Options { policy, ..base }, &search, &told);
            if done.send(found).is_err() {
                break;
            }
        }
    });
    let mut progress = Progress::new();
    for result in all {
        let found = loop {
            match results.recv_timeout(LOOK) {
                Ok(found) => break found.map_err(refused_by)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => anyhow::bail!("a simulation ended early"),
            }
            if stop.requested() {
                return Err(interrupted());
            }
            let n = looked_at.load(Ordering::Relaxed);
            progress.show(&format!("density under {}: {n} tenants", result.policy));
        };
        result.density = Some(found);
    }
    Ok(())
}
