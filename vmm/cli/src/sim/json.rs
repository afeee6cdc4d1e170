//! The results as JSON. What was not counted, or over too few frames, is null.

use super::run::{DENSITY_SHARE, Result};
use super::{Call, standing, table};
use beamline_sched::contract::Class;
use beamline_sched::sim::density::{Density, Limit};
use beamline_sched::sim::outcome::{Tally, TenantOutcome};
use beamline_sched::sim::{Interval, OwnCause};
use serde_json::{Map, Value, json};

/// All of it. Times in ms, shares from 0 to 1.
pub(super) fn json(call: &Call, results: &[Result]) -> Value {
    let s = &call.scenario;
    json!({
        "label": "simulated",
        "scenario": { "name": s.name, "about": s.about, "hash": call.hash },
        "seconds": s.length.0 as f64 / 1e9,
        "warm_up_s": s.warm_up.0 as f64 / 1e9,
        "seeds": (1..=call.seeds).collect::<Vec<u64>>(),
        "interval": "95%, by Student's t over the seeds",
        "phases": call.phases.name(),
        "admission": call.admission,
        "policies": results.iter().map(|r| policy(call, r)).collect::<Vec<Value>>(),
    })
}

fn policy(call: &Call, result: &Result) -> Value {
    let runs = &result.runs;
    let shown = table::shown(call, result);
    let [p50, p99, p999] = shown.map_or([None; 3], |t| runs.completion(t));
    let tenants = runs.sum.tenants.iter().enumerate();
    json!({
        "policy": result.policy.name(),
        "is": standing(result.policy),
        "in_budget": interval(runs.total(|t| t.kept), 1.0),
        "least_in_budget": interval(runs.total(|t| t.least_kept), 1.0),
        "own_overruns": table::own_share(result),
        "completion_ms": {
            "tenant": shown.map(|t| &call.scenario.tenants[t].name),
            "p50": interval(p50, 1e-6), "p99": interval(p99, 1e-6), "p99.9": interval(p999, 1e-6),
        },
        "miss_run": table::longest_miss_run(result),
        "interference": interval(result.interference(), 1.0),
        "gpu_utilisation": interval(runs.total(|t| Some(t.utilisation)), 1.0),
        "background": interval(runs.total(|t| Some(t.background)), 1.0),
        "gpu_share": {
            "switching": runs.sum.gpu.switching.0 as f64 / runs.sum.span.0 as f64,
            "preempting": runs.sum.gpu.preempting.0 as f64 / runs.sum.span.0 as f64,
        },
        "density": result.density.as_ref().map(density),
        "tenants": tenants.map(|(i, t)| tenant(result, i, t)).collect::<Vec<Value>>(),
    })
}

fn tenant(result: &Result, i: usize, t: &TenantOutcome) -> Value {
    let runs = &result.runs;
    let own: Map<String, Value> = OwnCause::ALL
        .iter()
        .zip(&t.own)
        .map(|(cause, counts)| (cause.name().into(), tally(*counts)))
        .collect();
    let [p50, p99, p999] = runs.completion(i);
    let response = t.quantile(0.99).map(|p99| t.response(p99));
    json!({
        "name": t.name,
        "class": match t.contract.class {
            Class::Reserved => "reserved",
            Class::Elastic => "elastic",
            Class::Background => "background",
        },
        "refused": t.refused,
        "frames": tally(t.frames),
        "kept": tally(t.kept),
        "own_overruns": own,
        "stale": t.stale,
        "late_latch": tally(t.late_latch),
        "miss_run": t.miss_run,
        "in_budget": interval(runs.tenant(i, |f| f.kept), 1.0),
        "completion_ms": {
            "p50": interval(p50, 1e-6),
            "p99": interval(p99, 1e-6),
            "p99.9": interval(p999, 1e-6),
            "worst": (t.frames.due > 0).then(|| t.worst.as_millis_f64()),
        },
        "p99_of_deadline": response,
        "gpu": interval(runs.tenant(i, |f| Some(f.gpu)), 1.0),
        "jobs": t.jobs,
        "killed": t.killed,
    })
}

fn density(found: &Density) -> Value {
    let limit = match &found.limit {
        Limit::Missed { seed, tenant, kept } => {
            json!({ "missed": { "seed": seed, "tenant": tenant, "kept": tally(*kept) } })
        }
        Limit::Refused(why) => json!({ "refused": why }),
        Limit::Most => json!("as many as can be simulated"),
    };
    json!({
        "qualified": found.qualified,
        "limit": limit,
        "bound_by_declared_budgets": found.declared,
        "bound_by_mean_demand": found.mean,
        "share_in_budget": DENSITY_SHARE,
    })
}

fn tally(t: Tally) -> Value {
    json!({ "due": t.due, "in_time": t.in_time })
}

fn interval(interval: Option<Interval>, scale: f64) -> Value {
    interval.map_or(
        Value::Null,
        |i| json!({ "mean": i.mean * scale, "half": i.half.map(|h| h * scale) }),
    )
}
