//! The results as a table for a terminal: a row per policy.

use super::run::{DENSITY_SEEDS, DENSITY_SHARE, Result};
use super::{Call, standing};
use beamline_sched::sim::density::Limit;
use beamline_sched::sim::outcome::{Tally, TenantOutcome};
use beamline_sched::sim::{Interval, OwnCause};

const HEAD: [&str; 11] = [
    "policy",
    "in budget %",
    "least %",
    "own overruns %",
    "done p50",
    "p99",
    "p99.9 ms",
    "miss run",
    "beside/alone ×",
    "GPU %",
    "background %",
];

/// What stands where a figure was not counted, or over too few frames.
const NA: &str = "NA";
/// Most refusals that are written out.
const MAX_REFUSALS: usize = 8;

/// The table, with what was simulated above it and what the columns mean below.
pub(super) fn table(call: &Call, results: &[Result]) -> String {
    let mut out = head(call);
    let mut rows = vec![HEAD.map(String::from).to_vec()];
    rows.extend(results.iter().map(|r| row(call, r)));
    out += &lay_out(&rows);
    out += "\n";
    out += &densities(call, results);
    out += &notes(call, results);
    out
}

/// What was simulated.
fn head(call: &Call) -> String {
    let s = &call.scenario;
    format!(
        "{} (simulated): {}\n{} s after {} s of warm-up, {}, {} phases, {} admission, scenario {}\n\n",
        s.name,
        s.about,
        s.length.0 as f64 / 1e9,
        s.warm_up.0 as f64 / 1e9,
        seeds(call.seeds),
        call.phases.name(),
        if call.admission { "with" } else { "without" },
        call.hash,
    )
}

fn seeds(n: u64) -> String {
    if n == 1 { "seed 1".into() } else { format!("seeds 1 to {n}") }
}

/// The tenant whose times are shown: the victim, else the first one that is not refused.
pub(super) fn shown(call: &Call, result: &Result) -> Option<usize> {
    let there = |t: &TenantOutcome| t.refused.is_none() && t.frames.due > 0;
    call.scenario.victim.or_else(|| result.runs.sum.tenants.iter().position(there))
}

fn row(call: &Call, result: &Result) -> Vec<String> {
    let runs = &result.runs;
    let times = shown(call, result).map_or([None; 3], |t| runs.completion(t));
    let [p50, p99, p999] = times.map(|interval| show(interval, 1e-6, 2));
    vec![
        result.policy.to_string(),
        show(runs.total(|t| t.kept), 100.0, 2),
        show(runs.total(|t| t.least_kept), 100.0, 2),
        own_share(result).map_or(NA.into(), |s| format!("{:.2}", s * 100.0)),
        p50,
        p99,
        p999,
        longest_miss_run(result).map_or(NA.into(), |n| n.to_string()),
        show(result.interference(), 1.0, 2),
        show(runs.total(|t| Some(t.utilisation)), 100.0, 1),
        show(runs.total(|t| Some(t.background)), 100.0, 1),
    ]
}

/// A figure with its interval.
fn show(interval: Option<Interval>, scale: f64, digits: usize) -> String {
    match interval {
        None => NA.into(),
        Some(Interval { mean, half: None }) => format!("{:.digits$}", mean * scale),
        Some(Interval { mean, half: Some(half) }) => {
            format!("{:.digits$} ±{:.digits$}", mean * scale, half * scale)
        }
    }
}

/// Frames that left the contract by their own doing, as a share of all reserved frames that were due.
pub(super) fn own_share(result: &Result) -> Option<f64> {
    let (mut own, mut all) = (Tally::default(), Tally::default());
    for tenant in result.runs.sum.reserved() {
        tenant.own.iter().for_each(|t| own.add(*t));
        all.add(tenant.frames);
    }
    (all.due > 0).then(|| own.due as f64 / all.due as f64)
}

/// The longest run of missed frames of any reserved tenant that was admitted.
pub(super) fn longest_miss_run(result: &Result) -> Option<u64> {
    let there = result.runs.sum.reserved().filter(|t| t.refused.is_none() && t.frames.due > 0);
    there.map(|t| t.miss_run).max()
}

/// Names to the left, figures to the right; sentences at the end of a row are long, and to the left too.
fn lay_out(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |c: usize| rows.iter().map(|r| r[c].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).enumerate();
        let line: Vec<String> = cells
            .map(|(c, (cell, &w))| {
                if c == 0 || (columns == 3 && c == 2) {
                    format!("{cell:w$}")
                } else {
                    format!("{cell:>w$}")
                }
            })
            .collect();
        out += line.join("   ").trim_end();
        out.push('\n');
    }
    out
}

/// What the columns mean here, and whom admission refused.
fn notes(call: &Call, results: &[Result]) -> String {
    let mut out = String::from(
        "All figures are simulated. In budget: of the reserved frames that kept their own contract; least: of \
         the tenant\nthat fared worst. Own overruns: the other frames, which their own guest's demand or \
         lateness took out of the contract.\n",
    );
    let whose = results.first().and_then(|r| shown(call, r));
    if let Some(tenant) = whose.and_then(|i| call.scenario.tenants.get(i)) {
        out += &format!(
            "Done, beside/alone: tenant `{}`, from vblank to the frame's end; p99 over p99 alone under the same policy.\n",
            tenant.name
        );
    }
    if call.seeds > 1 {
        out += &format!(
            "±: 95% interval by Student's t over the seeds. Where no seed missed a frame it is 0.00; a further seed \
             still\nmay, with a chance of up to {:.0}% (95% confidence). A time without ± is that of all seeds' frames \
             together: one seed has too few.\n",
            unseen(call.seeds) * 100.0
        );
    }
    let models: Vec<&str> = results
        .iter()
        .map(|r| r.policy)
        .filter(|&p| standing(p) == super::MODEL)
        .map(beamline_sched::PolicyKind::name)
        .collect();
    if !models.is_empty() {
        let each = if models.len() > 1 { "each " } else { "" };
        out += &format!("{}: {each}a {}.\n", models.join(", "), super::MODEL);
    }
    let tenants = results.first().map_or(&[][..], |r| &r.runs.sum.tenants);
    let refused: Vec<(&TenantOutcome, &String)> =
        tenants.iter().filter_map(|t| Some((t, t.refused.as_ref()?))).collect();
    for (tenant, why) in refused.iter().take(MAX_REFUSALS) {
        out += &format!("Refused by admission: `{}`: {why}\n", tenant.name);
    }
    if let Some(more) = refused.len().checked_sub(MAX_REFUSALS).filter(|n| *n > 0) {
        out += &format!("Refused by admission: {more} more\n");
    }
    out + &own_causes(results)
}

/// The largest chance of what was seen in none of `n` runs that 95% confidence leaves.
fn unseen(n: u64) -> f64 {
    1.0 - 0.05_f64.powf(1.0 / n as f64)
}

/// How many tenants fit, and why no more.
fn densities(call: &Call, results: &[Result]) -> String {
    let mut rows = vec![["policy", "qualified density", "one more"].map(String::from).to_vec()];
    let mut bounds = None;
    for result in results {
        let Some(found) = &result.density else { continue };
        bounds = Some((found.declared, found.mean));
        let limit = match &found.limit {
            Limit::Missed { seed, tenant, kept } => format!(
                "tenant {} misses {} of {} with seed {seed}",
                tenant + 1,
                kept.missed(),
                kept.due
            ),
            Limit::Refused(why) => format!("is refused: {why}"),
            Limit::Most => "cannot be simulated".into(),
        };
        rows.push(vec![result.policy.to_string(), found.qualified.to_string(), limit]);
    }
    let Some((declared, mean)) = bounds else { return String::new() };
    format!(
        "{}\nQualified density (simulated): tenants on an empty GPU, each with at least {}% of its frames in \
         budget, up to\nthis number with every one of {} seeds. Bounds: {declared} by declared budgets, {mean} \
         by mean demand.\n\n",
        lay_out(&rows),
        DENSITY_SHARE * 100.0,
        call.seeds.max(DENSITY_SEEDS),
    )
}

/// What took frames out of their contracts, under the first policy: under the others it is the same demand.
fn own_causes(results: &[Result]) -> String {
    let Some(first) = results.first() else { return String::new() };
    let mut out = String::new();
    for tenant in first.runs.sum.reserved() {
        let causes: Vec<String> = OwnCause::ALL
            .iter()
            .zip(&tenant.own)
            .filter(|(_, t)| t.due > 0)
            .map(|(cause, t)| format!("{} {}", cause.name(), t.due))
            .collect();
        if !causes.is_empty() {
            let name = &tenant.name;
            out += &format!(
                "Own overruns of `{name}` under {}: {}, of {} frames.\n",
                first.policy,
                causes.join(", "),
                tenant.frames.due
            );
        }
    }
    out
}
