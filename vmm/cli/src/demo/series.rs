//! All runs of a demo: each guest alone, then all of them under each policy.

use super::calibrate::Calibrated;
use super::config::{Class, Demo, Guest};
use super::judge::{self, Judged};
use super::session::{Outcome, Plan, Session};
use crate::failure::{FAILED, exit_code};
use crate::output;
use std::time::{Duration, Instant};

/// How long a demo may take; a run is repeated only where what is left to do still fits.
const LIMIT: Duration = Duration::from_secs(175);
/// What a run takes beside warm-up and length: starting, draining, judging.
const OVERHEAD: Duration = Duration::from_millis(2_500);
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
    let plans = plans(demo, calibrated);
    let mut series = Series { alone: Vec::new(), together: Vec::new() };
    for (index, plan) in plans.iter().enumerate() {
        let left: Duration = plans[index..].iter().map(takes).sum();
        let (mut judged, outcome) = repeated(session, plan, began, left)?;
        if index < calibrated.len() {
            series.alone.push((judged, outcome));
        } else {
            for (alone, _) in &series.alone {
                judged.report.compare_alone(&alone.report);
            }
            series.together.push((judged, outcome));
        }
    }
    Ok(series)
}

/// Each guest alone, then all under each policy.
fn plans<'a>(demo: &'a Demo, calibrated: &[Calibrated<'a>]) -> Vec<Plan<'a>> {
    let warm_up = Duration::from_secs_f64(demo.runs.warm_up_s);
    let alone = calibrated.iter().map(|c| Plan {
        name: format!("{}-alone", c.guest.name),
        policy: "fifo",
        bookings: vec![c.booking(demo)],
        warm_up,
        length: Duration::from_secs_f64(alone_s(c.guest, demo.runs.alone_s)),
    });
    let together = demo.runs.policies.iter().map(|policy| Plan {
        name: policy.clone(),
        policy,
        bookings: calibrated.iter().map(|c| c.booking(demo)).collect(),
        warm_up,
        length: Duration::from_secs_f64(demo.runs.together_s),
    });
    alone.chain(together).collect()
}

fn takes(plan: &Plan<'_>) -> Duration {
    plan.warm_up + plan.length + OVERHEAD
}

/// How long a guest runs alone: a guest whose latencies are held against this run needs enough frames for
/// a p99, others the configured time.
fn alone_s(guest: &Guest, configured: f64) -> f64 {
    let compared = guest.contract.class != Class::Background;
    let p99 = FRAMES_FOR_P99 * guest.contract.period_ms() / 1e3;
    if compared { configured.max(p99) } else { configured }
}

/// Does a run, and again where the machine spoiled it. `left`: what this run and those after it take.
fn repeated(
    session: &Session<'_>,
    plan: &Plan<'_>,
    began: Instant,
    left: Duration,
) -> anyhow::Result<(Judged, Outcome)> {
    let guests: Vec<&Guest> = plan.bookings.iter().map(|b| b.guest).collect();
    let mut repeats = 0;
    loop {
        let again = repeats < session.demo.runs.repeats && began.elapsed() + left < LIMIT;
        let mut outcome = match session.run(plan) {
            Ok(outcome) => outcome,
            // What is refused stays refused, and a signal is obeyed.
            Err(error) if again && exit_code(&error) == FAILED && !session.stop.requested() => {
                repeats += 1;
                output::line(&format!("{}: failed, again: {error:#}", plan.name));
                continue;
            }
            Err(error) => return Err(error),
        };
        outcome.log.meta.run.clone_from(&plan.name);
        let analysis = judge::analyse(&outcome);
        let judged =
            judge::judge(&outcome, &analysis, &guests, session.demo, plan.warm_up, repeats);
        drop(analysis);
        let again = repeats < session.demo.runs.repeats && began.elapsed() + left < LIMIT;
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
            text +=
                &format!("  {} {} of {} frames", slice.name, slice.in_budget, slice.in_budget.of);
        }
    }
    if judged.report.void.is_some() {
        text += "  (void: the machine was disturbed)";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_demo_fits_three_minutes() {
        let demo = Demo::load(None).unwrap();
        let calibrated: Vec<_> = demo
            .guests
            .iter()
            .map(|guest| Calibrated { guest, costs: vec![1], expected_ms: vec![1.0] })
            .collect();
        let plans = plans(&demo, &calibrated);
        assert_eq!(plans.len(), 6);
        // Calibration: up to three short runs per guest.
        let one = Duration::from_secs_f64(demo.calibration.seconds) + OVERHEAD;
        let all = plans.iter().map(takes).sum::<Duration>() + one * 9;
        assert!(all < LIMIT, "{all:?}");
    }

    #[test]
    fn guests_with_frames_run_alone_for_a_p99() {
        let demo = Demo::load(None).unwrap();
        for guest in &demo.guests {
            let frames = alone_s(guest, 1.0) * 1e3 / guest.contract.period_ms();
            assert_eq!(frames > 1_000.0, guest.contract.class != Class::Background);
        }
    }
}
