//! A tenant alone: the same frames at the same vblanks, with the GPU to itself.

use super::engine::run_some;
use super::outcome::{Outcome, TenantOutcome};
use super::place::admit;
use super::scenario::{Options, Scenario, ScenarioError};
use std::format;

/// Runs `tenant` (its index) of the scenario with all others absent; nothing else about it changes.
///
/// # Errors
/// A field of the scenario that is wrong, or a tenant that it does not have.
pub fn solo(
    scenario: &Scenario,
    options: &Options,
    tenant: usize,
) -> Result<Outcome, ScenarioError> {
    scenario.check()?;
    let there = scenario.tenants.len();
    if tenant >= there {
        let problem = format!("is {tenant}; there are {there} tenants");
        return Err(ScenarioError::new("victim", problem));
    }
    let answers = admit(scenario, options.phases, options.admission);
    Ok(run_some(scenario, options, &answers, |i| i == tenant))
}

/// How much longer a tenant's frames take beside others than alone: the ratio of the 99% completion times; `None`
/// where either has too few frames.
pub fn interference(beside: &TenantOutcome, alone: &TenantOutcome) -> Option<f64> {
    let (beside, alone) = (beside.quantile(0.99)?, alone.quantile(0.99)?);
    Some(beside.0 as f64 / alone.0 as f64)
}
