//! What a run came to, as numbers: the content of `summary.json`.

use crate::analysis::Analysis;
use crate::cause::Cause;
use crate::dist::{self, Interval, Quantile, Samples, Summary};
use crate::frames::{Frame, Health, SliceRun, Window};
use crate::meta::{Label, SliceMeta};
use crate::noise::Noise;
use crate::slots::{Slot, Slots};
use crate::verdict::{Reason, Target, Verdict};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A part of a whole. What cannot be a share, because nothing was due, has no percentage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// How many.
    pub hits: u64,
    /// Of how many.
    pub of: u64,
    /// In percent.
    pub percent: Option<f64>,
    /// 95% interval of that, by block bootstrap.
    pub ci95: Option<Interval>,
}

/// Cut, not rounded: 99.996% is not all. "NA": of none.
impl std::fmt::Display for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.percent {
            Some(percent) => write!(f, "{:.2}%", (percent * 100.0).floor() / 100.0),
            None => f.write_str("NA"),
        }
    }
}

impl Share {
    fn new(hits: impl Iterator<Item = bool>, seed: u64) -> Self {
        let hits: Vec<bool> = hits.collect();
        let of = hits.len() as u64;
        let count = hits.iter().filter(|h| **h).count() as u64;
        Self {
            hits: count,
            of,
            percent: (of > 0).then(|| 100.0 * count as f64 / of as f64),
            ci95: dist::share_interval(&hits, seed),
        }
    }
}

/// One slice of a run. Durations in ns; what was not measured is null.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SliceReport {
    /// The slice's name.
    pub name: String,
    /// Its contract's class; empty without a contract.
    pub class: String,
    /// How the numbers came about.
    pub label: Label,
    /// Frames that were due, and of those, how many were in budget.
    pub in_budget: Share,
    /// The same, of frames whose guest kept its contract.
    pub in_budget_kept: Share,
    /// Late latches started in their window and done in time; null without late latch.
    pub late_latch: Option<Share>,
    /// Frames with an overrun of the guest's own.
    pub own_overruns: u64,
    /// Vblanks for which the guest made no frame.
    pub skipped: u64,
    /// Frames beyond one per vblank.
    pub extra: u64,
    /// Vblanks that were never emitted.
    pub vblanks_lost: u64,
    /// Most due frames missed in a row.
    pub max_miss_run: u64,
    /// Last job done after release, late latch apart.
    pub completion: Summary,
    /// The same, corrected for coordinated omission with the period.
    pub completion_corrected: Summary,
    /// 95% interval of `completion.p99_ns`.
    pub completion_p99_ci95: Option<Interval>,
    /// GPU time per frame, late latch apart.
    pub gpu_busy: Summary,
    /// Time between arrival and first run per frame, late latch apart.
    pub gpu_wait: Summary,
    /// Emission of a vblank after its place on the grid.
    pub vblank_err: Summary,
    /// Guest's handler after the eventfd's write.
    pub irq_delivery: Summary,
    /// Error bound of guest times; null where they could not be placed.
    pub clock_err_ns: Option<u64>,
    /// Completion p99 against that of the slice alone; null without a run alone or with too few frames.
    pub interference: Option<f64>,
    /// Causes of misses; `present` counts frames that were in budget and shown late.
    pub causes: BTreeMap<Cause, u64>,
    /// GPU jobs without a frame.
    pub background_jobs: u64,
    /// GPU time of those in ns.
    pub background_gpu_ns: u64,
    /// Against the target, where there is one.
    pub verdict: Option<Verdict>,
}

/// A run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunReport {
    /// The run's name.
    pub run: String,
    /// How the numbers came about.
    pub label: Label,
    /// What was judged, host ns.
    pub window: Window,
    /// Left out at the beginning, in ns.
    pub warm_up_ns: u64,
    /// Seed of the workload and of the bootstrap.
    pub seed: u64,
    /// Hash of the configuration.
    pub config_hash: String,
    /// The slices.
    pub slices: Vec<SliceReport>,
    /// What is wrong with the stamps.
    pub health: Health,
    /// The machine's noise, where it was watched.
    pub noise: Option<Noise>,
    /// Why the run is void, if it is.
    pub void: Option<String>,
}

impl RunReport {
    /// Sums up `analysis`. `required` is the share of due frames that every slice with a contract must
    /// have in budget, from 0 to 1.
    pub fn new(analysis: &Analysis<'_>, noise: Option<Noise>, required: Option<f64>) -> Self {
        let meta = &analysis.log.meta;
        let void = noise.as_ref().and_then(Noise::void_reason);
        let slices = analysis.slices().map(|(slice, run, slots)| {
            let mut report = slice_report(analysis, slice, run, slots);
            report.verdict = required.and_then(|required| {
                let deadline = slice.contract.as_ref()?.deadline_ns;
                Some(verdict(&report, deadline, required, meta.gpu_clock_err_ns, void.as_ref()))
            });
            report
        });
        Self {
            run: meta.run.clone(),
            label: meta.label,
            window: analysis.window,
            warm_up_ns: analysis.options.window.map_or(analysis.options.warm_up.0, |_| 0),
            seed: meta.seed,
            config_hash: meta.config_hash.clone(),
            slices: slices.collect(),
            health: analysis.joined.health.clone(),
            noise,
            void,
        }
    }

    /// Fills in the interference of every slice that `alone` has too, by name.
    pub fn compare_alone(&mut self, alone: &Self) {
        for slice in &mut self.slices {
            let Some(before) = alone.slices.iter().find(|s| s.name == slice.name) else { continue };
            let p99s = slice.completion.p99_ns.zip(before.completion.p99_ns);
            slice.interference =
                p99s.filter(|(_, b)| *b > 0).map(|(now, then)| now as f64 / then as f64);
        }
    }
}

fn verdict(
    report: &SliceReport,
    deadline_ns: u64,
    required: f64,
    gpu_clock_err_ns: u64,
    void: Option<&String>,
) -> Verdict {
    if let Some(why) = void {
        return Verdict::Inconclusive(Reason::Void(why.clone()));
    }
    let target = Target { name: "in budget".into(), tolerance_ns: deadline_ns, required };
    target.judge(report.in_budget.hits, report.in_budget.of, gpu_clock_err_ns)
}

fn slice_report(
    analysis: &Analysis<'_>,
    meta: &SliceMeta,
    run: &SliceRun,
    judged: &Slots,
) -> SliceReport {
    let seed = analysis.log.meta.seed;
    let slots = &judged.slots;
    let frames =
        || -> Vec<&Frame> { slots.iter().filter_map(|s| Some(&run.frames[s.frame?])).collect() };
    let has_latch = meta.contract.as_ref().is_some_and(|c| c.late_latch_ns > 0);
    let completion: Samples = slots.iter().filter_map(|s| Some(s.completion?.0)).collect();
    let period = meta.contract.as_ref().map_or(0, |c| c.period().0);
    let mut causes = BTreeMap::new();
    for cause in slots.iter().filter_map(|s| s.cause) {
        *causes.entry(cause).or_default() += 1;
    }
    let samples = |values: Vec<u64>| values.into_iter().collect::<Samples>().summary();
    SliceReport {
        name: meta.name.clone(),
        class: meta.contract.as_ref().map(|c| c.class.clone()).unwrap_or_default(),
        label: analysis.log.meta.label,
        in_budget: Share::new(slots.iter().map(|s| s.in_budget), seed),
        in_budget_kept: Share::new(slots.iter().filter(|s| s.kept).map(|s| s.in_budget), seed),
        late_latch: has_latch.then(|| Share::new(slots.iter().filter_map(|s| s.latch), seed)),
        own_overruns: count(slots, |s| s.own_overrun),
        skipped: count(slots, |s| s.frame.is_none()),
        extra: judged.extra,
        vblanks_lost: judged.vblanks_lost,
        max_miss_run: longest_run(slots),
        completion: completion.summary(),
        completion_corrected: completion.corrected(period),
        completion_p99_ci95: completion.quantile_interval(Quantile::P99, seed),
        gpu_busy: samples(frames().iter().map(|f| f.busy().0).collect()),
        gpu_wait: samples(frames().iter().map(|f| f.gpu_wait().0).collect()),
        vblank_err: samples(vblank_errors(run, analysis.window)),
        irq_delivery: samples(deliveries(run, analysis.window)),
        clock_err_ns: run.clock_err.map(|e| e.0),
        interference: None,
        causes,
        background_jobs: run.background_jobs,
        background_gpu_ns: run.background_busy.0,
        verdict: None,
    }
}

fn count(slots: &[Slot], which: impl Fn(&Slot) -> bool) -> u64 {
    slots.iter().filter(|s| which(s)).count() as u64
}

fn longest_run(slots: &[Slot]) -> u64 {
    let mut run = 0;
    let runs = slots.iter().map(|s| {
        run = if s.in_budget { 0 } else { run + 1 };
        run
    });
    runs.max().unwrap_or(0)
}

fn vblank_errors(run: &SliceRun, window: Window) -> Vec<u64> {
    let ticks = run.vblanks.values().filter_map(|v| v.tick);
    let ticks = ticks.filter(|(grid, _)| window.contains(*grid));
    ticks.map(|(grid, emitted)| emitted.saturating_sub(grid).0).collect()
}

/// From each vblank's write to the handler that saw it, or the next one: interrupts may coalesce.
fn deliveries(run: &SliceRun, window: Window) -> Vec<u64> {
    let posted = run.vblanks.iter().filter_map(|(key, v)| Some((*key, v.posted?)));
    let posted = posted.filter(|(_, at)| window.contains(*at));
    posted
        .filter_map(|((generation, seq), at)| {
            let (_, handled) = run.first_handled(generation, seq)?;
            Some(handled.saturating_sub(at).0)
        })
        .collect()
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
