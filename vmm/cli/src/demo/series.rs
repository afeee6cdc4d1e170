//! All runs of a demo: each guest alone, then all of them under each policy.

use super::calibrate::Calibrated;
use super::config::{Class, Guest};
use super::judge::{self, Judged};
use super::session::{Outcome, Plan, Session};
use crate::output;
use std::time::{Duration, Instant};

/// Repeats begin only while this much of the demo's three minutes is used: in seconds.
const LAST_REPEAT_S: u64 = 150;
/// How many frames a p99 needs, with a few to spare for those under way at the end.
const FRAMES_FOR_P99: f64 = 1_020.0;

/// What all runs came to.
pub(crate) struct Series {
    pub(crate) alone: Vec<(Judged, Outcome)>,
    pub(crate) together: Vec<(Judged, Outcome)>,
}

impl Series {
    /// Runs that were tried again because the machine spoiled them.
    pub(crate) fn repeats(&self) -> u32 {
        self.alone.iter().chain(&self.together).map(|(judged, _)| judged.repeats).sum()
    }
}

/// Does all runs.
pub(crate) fn run_all<'a>(
    session: &Session<'a>,
    calibrated: &[Calibrated<'a>],
    began: Instant,
) -> anyhow::Result<Series> {
    let demo = session.demo;
    let mut series = Series { alone: Vec::new(), together: Vec::new() };
    let warm_up = Duration::from_secs_f64(demo.runs.warm_up_s);
    for c in calibrated {
        let plan = Plan {
            name: format!("{}-alone", c.guest.name),
            policy: "fifo",
            bookings: vec![c.booking(demo)],
            warm_up,
            length: Duration::from_secs_f64(alone_s(c.guest, demo.runs.alone_s)),
        };
        series.alone.push(repeated(session, &plan, began)?);
    }
    for policy in &demo.runs.policies {
        let plan = Plan {
            name: policy.clone(),
            policy,
            bookings: calibrated.iter().map(|c| c.booking(demo)).collect(),
            warm_up,
            length: Duration::from_secs_f64(demo.runs.together_s),
        };
        let (mut judged, outcome) = repeated(session, &plan, began)?;
        for (alone, _) in &series.alone {
            judged.report.compare_alone(&alone.report);
        }
        series.together.push((judged, outcome));
    }
    Ok(series)
}

/// How long a guest runs alone: a guest whose latencies are held against this run needs enough frames for
/// a p99, others the configured time.
fn alone_s(guest: &Guest, configured: f64) -> f64 {
    let compared = guest.contract.class != Class::Background;
    let p99 = FRAMES_FOR_P99 * guest.contract.period_ms() / 1e3;
    if compared { configured.max(p99) } else { configured }
}

/// Does a run, and again where the machine spoiled it.
fn repeated(
    session: &Session<'_>,
    plan: &Plan<'_>,
    began: Instant,
) -> anyhow::Result<(Judged, Outcome)> {
    let guests: Vec<&Guest> = plan.bookings.iter().map(|b| b.guest).collect();
    let mut repeats = 0;
    loop {
        let mut outcome = session.run(plan)?;
        outcome.log.meta.run.clone_from(&plan.name);
        let analysis = judge::analyse(&outcome);
        let judged =
            judge::judge(&outcome, &analysis, &guests, session.demo, plan.warm_up, repeats);
        drop(analysis);
        let again = repeats < session.demo.runs.repeats
            && began.elapsed() < Duration::from_secs(LAST_REPEAT_S);
        if let Some(why) = judged.report.void.as_ref().filter(|_| again) {
            repeats += 1;
            output::line(&format!("{}: void, again: {why}", plan.name));
        } else {
            output::line(&one_line(&plan.name, &judged));
            return Ok((judged, outcome));
        }
    }
}

/// A run in one line, while the others go on.
fn one_line(name: &str, judged: &Judged) -> String {
    let mut text = format!("{name} ({}):", judged.report.label);
    for slice in &judged.report.slices {
        if let Some(b) = judged.background.iter().find(|b| b.name == slice.name) {
            text += &format!("  {} {} jobs", b.name, b.jobs);
        } else {
            let percent = slice.in_budget.percent.unwrap_or(0.0);
            text += &format!("  {} {percent:.2}% of {} frames", slice.name, slice.in_budget.of);
        }
    }
    if judged.report.void.is_some() {
        text += "  (void: the machine was disturbed)";
    }
    text
}
