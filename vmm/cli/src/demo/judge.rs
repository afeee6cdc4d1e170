//! What the runs came to: reports per run, and a verdict for every promise under every policy.

use super::config::{Class, Demo, Guest};
use super::interrupts::GuestInterrupts;
use super::others::Others;
use super::session::Outcome;
use beamline_abi::Nanos;
use beamline_latency::analysis::{Analysis, Options};
use beamline_latency::report::RunReport;
use beamline_latency::verdict::{Reason, Target, Verdict};
use serde::Serialize;
use std::time::Duration;

/// A run's report, and what it gave to its background guests.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Judged {
    #[serde(flatten)]
    pub(crate) report: RunReport,
    pub(crate) background: Vec<Background>,
    /// What other programs took meanwhile.
    pub(crate) others: Others,
    /// What each guest's interrupts have cost.
    pub(crate) interrupts: Vec<GuestInterrupts>,
    /// Times that this run was tried because the machine spoiled it before.
    pub(crate) repeats: u32,
}

/// GPU time of a background guest.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Background {
    pub(crate) name: String,
    /// Jobs that ended in the judged part.
    pub(crate) jobs: u64,
    /// GPU time in the judged part.
    pub(crate) gpu_ns: u64,
    /// What its contract declares as a minimum for that time.
    pub(crate) minimum_ns: u64,
}

/// Judges one run of `guests`.
pub(crate) fn judge(
    outcome: &Outcome,
    analysis: &Analysis<'_>,
    guests: &[&Guest],
    demo: &Demo,
    warm_up: Duration,
    repeats: u32,
) -> Judged {
    // Alone, nothing is promised: that run is what the others are held against.
    let required = (guests.len() > 1).then_some(demo.promises.in_budget);
    let mut report = RunReport::new(analysis, Some(outcome.noise.clone()), required);
    // The window begins after it.
    report.warm_up_ns = warm_up.as_nanos() as u64;
    report.void = report.void.or_else(|| outcome.others.void_reason(demo.noise.others_percent));
    for (slice, guest) in report.slices.iter_mut().zip(guests) {
        if let (Some(verdict), Some(why)) = (&mut slice.verdict, &report.void) {
            *verdict = Verdict::Inconclusive(Reason::Void(why.clone()));
        }
        // Its promise is GPU time, not frames.
        if guest.contract.class == Class::Background {
            slice.verdict = None;
        }
    }
    let background = guests
        .iter()
        .enumerate()
        .filter(|(_, guest)| guest.contract.class == Class::Background)
        .map(|(slice, guest)| background(analysis, slice, guest))
        .collect();
    let interrupts = outcome.interrupts.clone();
    Judged { report, background, others: outcome.others, interrupts, repeats }
}

/// The analysis of a run's judged part.
pub(crate) fn analyse(outcome: &Outcome) -> Analysis<'_> {
    Analysis::new(&outcome.log, Options { warm_up: Nanos::ZERO, window: Some(outcome.window) })
}

fn background(analysis: &Analysis<'_>, slice: usize, guest: &Guest) -> Background {
    let window = analysis.window;
    let (from, to) = (Nanos(window.from_ns), Nanos(window.to_ns));
    let (mut jobs, mut gpu_ns) = (0, 0);
    for span in analysis.timeline.spans().iter().filter(|s| usize::from(s.slice.0) == slice) {
        gpu_ns += span.end.min(to).saturating_sub(span.start.max(from)).0;
        jobs += u64::from(!span.killed && window.contains(span.end));
    }
    // Whole periods: what the last one still owes is not late yet.
    let periods = to.saturating_sub(from).0 as f64 / 1e6 / guest.contract.period_ms();
    let minimum_ms = guest.contract.budget_ms.unwrap_or(0.0) * periods.floor();
    Background { name: guest.name.clone(), jobs, gpu_ns, minimum_ns: (minimum_ms * 1e6) as u64 }
}

/// One promise, and whether each run kept it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Promise {
    /// In words, with its bound.
    pub(crate) promise: String,
    pub(crate) results: Vec<PromiseResult>,
}

/// Whether one run kept a promise.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PromiseResult {
    pub(crate) run: String,
    /// What was seen, in words.
    pub(crate) seen: String,
    pub(crate) verdict: Verdict,
}

/// Every promise, held against every run with all guests.
pub(crate) fn promises(demo: &Demo, runs: &[Judged]) -> Vec<Promise> {
    let mut all = Vec::new();
    let share = demo.promises.in_budget;
    let percent = format!("{:.4}", share * 100.0);
    let percent = percent.trim_end_matches('0').trim_end_matches('.');
    let mut add = |promise: String, result: &dyn Fn(&Judged) -> (String, Verdict)| {
        let results = runs.iter().map(|run| {
            let (seen, verdict) = result(run);
            let verdict = match &run.report.void {
                Some(why) => Verdict::Inconclusive(Reason::Void(why.clone())),
                None => verdict,
            };
            PromiseResult { run: run.report.run.clone(), seen, verdict }
        });
        all.push(Promise { promise, results: results.collect() });
    };
    for guest in demo.guests.iter().filter(|g| g.contract.class == Class::Reserved) {
        let Guest { name, contract, .. } = guest;
        add(
            format!("{name}: {percent}% of frames within {:.2} ms", contract.period_ms()),
            &|run| in_budget(run, name),
        );
        if let Some(window_ms) = contract.late_latch_window_ms {
            add(format!("{name}: {percent}% of late latches in their {window_ms} ms"), &|run| {
                late_latch(run, name, window_ms, share)
            });
        }
    }
    if let Some(first) = demo.guests.iter().find(|g| g.contract.class == Class::Reserved) {
        let most = demo.promises.interference;
        add(format!("{}: p99 at most {most} times that alone", first.name), &|run| {
            interference(run, &first.name, most)
        });
    }
    for guest in demo.guests.iter().filter(|g| g.contract.class == Class::Background) {
        let ms = guest.contract.budget_ms.unwrap_or(0.0);
        let period = guest.contract.period_ms();
        add(format!("{}: at least {ms} ms of GPU per {period:.2} ms", guest.name), &|run| {
            at_least_minimum(run, &guest.name)
        });
    }
    all
}

fn missing() -> (String, Verdict) {
    let reason = Reason::TooFewFrames { seen: 0, needed: 1 };
    ("nothing".into(), Verdict::Inconclusive(reason))
}

fn in_budget(run: &Judged, name: &str) -> (String, Verdict) {
    let Some(slice) = run.report.slices.iter().find(|s| s.name == name) else { return missing() };
    let seen = slice.in_budget.to_string();
    slice.verdict.clone().map_or_else(missing, |verdict| (seen, verdict))
}

fn late_latch(run: &Judged, name: &str, window_ms: f64, required: f64) -> (String, Verdict) {
    let slice = run.report.slices.iter().find(|s| s.name == name);
    let Some(share) = slice.and_then(|s| s.late_latch) else { return missing() };
    let tolerance_ns = (window_ms * 1e6) as u64;
    let target = Target { name: "late latch".into(), tolerance_ns, required };
    // The GPU's clock error has been charged where the window's opening is judged.
    (share.to_string(), target.judge(share.hits, share.of, 0))
}

fn interference(run: &Judged, name: &str, most: f64) -> (String, Verdict) {
    let Some(slice) = run.report.slices.iter().find(|s| s.name == name) else { return missing() };
    let Some(times) = slice.interference else {
        // A p99 needs 1,000 frames in both runs.
        let reason = Reason::TooFewFrames { seen: slice.completion.n, needed: 1_000 };
        return ("NA".into(), Verdict::Inconclusive(reason));
    };
    (format!("{times:.2}"), if times <= most { Verdict::Met } else { Verdict::Missed })
}

fn at_least_minimum(run: &Judged, name: &str) -> (String, Verdict) {
    let Some(b) = run.background.iter().find(|b| b.name == name) else { return missing() };
    let seen = format!("{:.0}% of it", 100.0 * b.gpu_ns as f64 / b.minimum_ns.max(1) as f64);
    (seen, if b.gpu_ns >= b.minimum_ns { Verdict::Met } else { Verdict::Missed })
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
