//! Qualified density: the largest N such that, for every n ≤ N and every seed, each reserved tenant keeps its share
//! of frames in budget (its own overruns apart).
//!
//! Tenants are added in turn from [`Scenario::density`] to those of the scenario. With admission, they are asked for
//! in that order, and the first that is refused ends the search.

use super::engine::run_some;
use super::outcome::{Outcome, Tally};
use super::place::{Answer, Door, admit};
use super::scenario::{MAX_TENANTS, Options, Scenario, ScenarioError, Tenant};
use super::work::mean_demand;
use crate::contract::{Class, Contract};
use crate::demand;
use crate::policy::GpuCaps;
use std::string::String;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::vec::Vec;
use std::{format, thread};

/// How to search.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Search {
    /// Seeds per number of tenants, from [`Options::seed`] on: at least 1.
    pub seeds: usize,
    /// The share of frames that each tenant has to keep in budget, 0 to 1: 0.999.
    pub share: f64,
    /// Threads, at least 1. The result does not depend on it.
    pub threads: usize,
}

/// What was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Density {
    /// Added tenants up to which everything passes.
    pub qualified: usize,
    /// Why one more does not.
    pub limit: Limit,
    /// Added tenants up to which the declared budgets, late latches and switches fit into the GPU's time: no
    /// scheduler can promise more.
    pub declared: usize,
    /// Added tenants up to which the mean demand does: no scheduler can serve more.
    pub mean: usize,
}

/// Why the search ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Limit {
    /// A tenant missed too often.
    Missed {
        /// The first seed under which it did.
        seed: u64,
        /// Which: index among the scenario's and the added tenants.
        tenant: usize,
        /// Its frames that kept the contract.
        kept: Tally,
    },
    /// Admission refused the tenant.
    Refused(String),
    /// There are as many as can be simulated.
    Most,
}

/// Searches the qualified density. `progress` is told the number of added tenants that is looked at, and how many
/// seeds have passed; from any thread.
///
/// # Errors
/// A field of the scenario that is wrong, or no tenants to add.
pub fn density(
    scenario: &Scenario,
    options: &Options,
    search: &Search,
    progress: &(dyn Fn(usize, usize) + Sync),
) -> Result<Density, ScenarioError> {
    scenario.check()?;
    let Some(template) = scenario.density.as_deref() else {
        let problem = "is missing; name the tenants that are to be added in turn";
        return Err(ScenarioError::new("density", problem));
    };
    if !template.iter().any(|t| t.contract.class == Class::Reserved) {
        let problem = "has no reserved contract, so that nothing could be missed; add one";
        return Err(ScenarioError::new("density", problem));
    }
    let (seeds, threads) = (search.seeds.max(1), search.threads.max(1));
    let search = Search { seeds, threads, ..*search };
    let bound = |of: &dyn Fn(&Tenant, &GpuCaps) -> f64| {
        let share = |t: &Tenant| of(t, &scenario.caps);
        let base: f64 = scenario.tenants.iter().map(share).sum();
        fits(base, template.iter().map(share))
    };
    let declared = bound(&|t, caps| declared_share(&t.contract, caps));
    let mean = bound(&|t, caps| match t.contract.class {
        Class::Reserved => mean_demand(&t.work, &t.contract, caps).unwrap_or(0.0),
        Class::Elastic | Class::Background => 0.0,
    });
    let mut set = Scenario { density: None, ..scenario.clone() };
    let mut door = Door::new(scenario.caps, options.phases);
    let mut answers: Vec<Answer> = Vec::new();
    if options.admission {
        answers.extend(set.tenants.iter().enumerate().map(|(i, t)| door.ask(i, t)));
    }
    let found = |qualified, limit| Ok(Density { qualified, limit, declared, mean });
    for (n, next) in template.iter().cycle().enumerate() {
        if set.tenants.len() >= MAX_TENANTS {
            return found(n, Limit::Most);
        }
        let mut tenant = next.clone();
        tenant.name = format!("{} {}", next.name, n / template.len() + 1);
        if options.admission {
            match door.ask(set.tenants.len(), &tenant) {
                Err(why) => return found(n, Limit::Refused(why)),
                answer => answers.push(answer),
            }
        }
        set.tenants.push(tenant);
        if !options.admission {
            answers = admit(&set, options.phases, false);
        }
        let report = |passed| progress(n + 1, passed);
        if let Some(limit) = first_failure(&set, options, &answers, &search, &report) {
            return found(n, limit);
        }
    }
    found(0, Limit::Most)
}

/// The first seed under which a tenant misses too often. Seeds are handed out in order and only those before
/// a failing one still matter, so that the answer is the same however the threads run.
fn first_failure(
    set: &Scenario,
    options: &Options,
    answers: &[Answer],
    search: &Search,
    progress: &(dyn Fn(usize) + Sync),
) -> Option<Limit> {
    let (next, failing) = (AtomicUsize::new(0), AtomicUsize::new(usize::MAX));
    let passed = AtomicUsize::new(0);
    let work = || {
        let mut found: Option<(usize, Limit)> = None;
        loop {
            let k = next.fetch_add(1, Ordering::Relaxed);
            if k >= search.seeds || k > failing.load(Ordering::Relaxed) {
                return found;
            }
            let seed = options.seed.wrapping_add(k as u64);
            let run = Options { seed, timeline: false, ..*options };
            let outcome = run_some(set, &run, answers, |_| true);
            if let Some((tenant, kept)) = misses(&outcome, search.share) {
                failing.fetch_min(k, Ordering::Relaxed);
                found = Some((k, Limit::Missed { seed, tenant, kept }));
                return found;
            }
            progress(passed.fetch_add(1, Ordering::Relaxed) + 1);
        }
    };
    let threads = search.threads.min(search.seeds);
    let failures: Vec<(usize, Limit)> = thread::scope(|scope| {
        let handles: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let own = work();
        let others = handles.into_iter().map(|h| match h.join() {
            Ok(found) => found,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        others.chain([own]).flatten().collect()
    });
    failures.into_iter().min_by_key(|(k, _)| *k).map(|(_, limit)| limit)
}

/// The first reserved tenant that has too few frames in budget. One none of whose frames kept the contract cannot
/// show that they would be.
fn misses(outcome: &Outcome, share: f64) -> Option<(usize, Tally)> {
    let reserved = |t: &super::TenantOutcome| t.contract.class == Class::Reserved;
    outcome
        .tenants
        .iter()
        .enumerate()
        .filter(|(_, t)| reserved(t) && t.refused.is_none())
        .map(|(i, t)| (i, t.promised()))
        .find(|(_, kept)| kept.due == 0 || (kept.in_time as f64) < share * kept.due as f64)
}

/// Share of the GPU's time that a reserved contract's budgets and switches take.
fn declared_share(c: &Contract, caps: &GpuCaps) -> f64 {
    if c.class != Class::Reserved {
        return 0.0;
    }
    let late = c.late_latch.map_or(0, |l| l.budget.0 + caps.switch_cost.0);
    let period = c.period.num() as f64 / c.period.den() as f64;
    (demand::frame_budget(c, caps) + late) as f64 / period
}

/// How many of the `shares`, over and over, fit beside `base` into 1.
fn fits(base: f64, shares: impl Iterator<Item = f64> + Clone) -> usize {
    let mut sum = base;
    let fitting = shares.cycle().take(MAX_TENANTS).take_while(|share| {
        sum += share;
        sum <= 1.0 + 1e-9
    });
    fitting.count()
}
