//! Calibration: each scene runs alone at two costs, and the costs that give the wanted times follow.

use super::children::EndedEarly;
use super::config::{Class, Demo, Guest};
use super::cost::{Line, busy_by_position};
use super::files::Budget;
use super::others;
use super::prepare;
use super::session::{Booking, Plan, Session};
use crate::failure::refused;
use crate::output;
use anyhow::Context;
use beamline_latency::noise;
use std::time::Duration;

/// What calibration has found for one guest.
#[derive(Clone, Debug)]
pub(crate) struct Calibrated<'a> {
    pub(crate) guest: &'a Guest,
    /// The cost of each job of its frames.
    pub(crate) costs: Vec<u32>,
    /// What each job should take at that cost, in ms.
    pub(crate) expected_ms: Vec<f64>,
}

impl<'a> Calibrated<'a> {
    /// What the guest's contract is to promise.
    pub(crate) fn budget(&self, demo: &Demo) -> Budget {
        budget(self.guest, &self.expected_ms, demo)
    }

    /// GPU time of one frame, in ms.
    pub(crate) fn frame_ms(&self) -> f64 {
        self.expected_ms.iter().sum()
    }

    /// Its place in a run.
    pub(crate) fn booking(&self, demo: &Demo) -> Booking<'a> {
        Booking { guest: self.guest, costs: self.costs.clone(), budget: self.budget(demo) }
    }
}

/// A guest's budgets, from what its jobs take.
pub(crate) fn budget(guest: &Guest, jobs_ms: &[f64], demo: &Demo) -> Budget {
    let headroom = demo.calibration.headroom;
    let (mut main, mut longest, mut late_latch) = (0.0, 0.0_f64, 0.0);
    for (position, ms) in jobs_ms.iter().enumerate() {
        if guest.scene.is_late_latch(position) {
            late_latch += ms;
        } else {
            main += ms;
        }
        longest = longest.max(*ms);
    }
    Budget {
        main_ms: guest.contract.budget_ms.unwrap_or(main * headroom),
        max_job_ms: guest.contract.max_job_ms.unwrap_or(longest * demo.calibration.job_headroom),
        late_latch_ms: late_latch * headroom,
    }
}

/// What was measured cannot be used: on a disturbed machine, another try may go better.
#[derive(Debug)]
struct Unfit;

impl std::fmt::Display for Unfit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the calibration cannot be used")
    }
}

/// Finds the costs of every guest's jobs, and checks that the promised frames fit beside each other. Jobs
/// that do not fit are measured again: a machine that is disturbed for a moment makes them look long.
pub(crate) fn calibrate<'a>(session: &Session<'a>) -> anyhow::Result<Vec<Calibrated<'a>>> {
    let mut repeats = session.demo.runs.repeats;
    loop {
        let (others, machine) = (others::Watch::begin()?, noise::Watch::begin()?);
        let found = measure_all(session)
            .and_then(|all| check_fit(&all, session.demo).context(Unfit).map(|()| all));
        let why = match found {
            Err(why) if why.downcast_ref::<Unfit>().is_some() => why,
            done => return done,
        };
        let percent = others.end()?.percent;
        let noise = machine.end(session.demo.noise.steal_per_30s, None)?;
        let meanwhile = format!(
            "other programs took {percent:.0}% of a CPU meanwhile, and the machine had {noise} (measured)"
        );
        if repeats == 0 {
            return Err(why.context(meanwhile));
        }
        repeats -= 1;
        output::line(&format!("calibrating again; {meanwhile}: {why:#}"));
    }
}

fn measure_all<'a>(session: &Session<'a>) -> anyhow::Result<Vec<Calibrated<'a>>> {
    let mut all = Vec::with_capacity(session.demo.guests.len());
    for guest in &session.demo.guests {
        let found = calibrate_guest(session, guest)?;
        for (position, (cost, ms)) in found.costs.iter().zip(&found.expected_ms).enumerate() {
            output::line(&format!(
                "  {:<8} {:<16} cost {cost:>6} for {ms:.2} ms (aimed at {:.2})",
                guest.name,
                guest.scene.jobs()[position],
                guest.jobs[position].target_ms,
            ));
        }
        all.push(found);
    }
    Ok(all)
}

/// Whether the frames fit beside each other, and every contract is admitted.
fn check_fit(all: &[Calibrated<'_>], demo: &Demo) -> anyhow::Result<()> {
    check_load(all, demo.calibration.load_limit_ms)?;
    let slices: Vec<_> = all.iter().map(|c| (c.guest, c.budget(demo))).collect();
    prepare::admit(demo, &slices).context(
        "with what the scenes take on this machine (smaller images or targets in the demo's \
         configuration take less)",
    )
}

fn check_load(all: &[Calibrated<'_>], limit_ms: f64) -> anyhow::Result<()> {
    let reserved = || all.iter().filter(|c| c.guest.contract.class == Class::Reserved);
    let load: f64 = reserved().map(Calibrated::frame_ms).sum();
    if load <= limit_ms {
        return Ok(());
    }
    let names: Vec<&str> = reserved().map(|c| c.guest.name.as_str()).collect();
    Err(refused(format!(
        "calibration: one frame of each reserved guest ({}) takes {load:.2} ms of this GPU at the lowest \
         cost that can be set; calibration.load_limit_ms allows {limit_ms:.2}. Choose smaller images or \
         smaller targets in the demo's configuration, or run on a faster GPU",
        names.join(", ")
    )))
}

fn calibrate_guest<'a>(session: &Session<'a>, guest: &'a Guest) -> anyhow::Result<Calibrated<'a>> {
    let mut points = Vec::new();
    for (round, word) in ["low", "high"].into_iter().enumerate() {
        let costs: Vec<u32> = guest.jobs.iter().map(|job| job.probe[round]).collect();
        let times = measure(session, guest, word, costs.clone())?;
        points.push((costs, times));
    }
    let mut lines = fit(guest, &points[0], &points[1])?;
    let choose = |lines: &[Line]| -> Vec<u32> {
        lines.iter().zip(&guest.jobs).map(|(line, job)| line.cost_for(job.target_ms)).collect()
    };
    let mut costs = choose(&lines);
    // Far from what was measured, the line is a guess: measure there too.
    let far = |(cost, job): (&u32, &super::config::Job)| {
        *cost < job.probe[0] / 2 || *cost > job.probe[1].saturating_mul(2)
    };
    if costs.iter().zip(&guest.jobs).any(far) {
        let times = measure(session, guest, "again", costs.clone())?;
        // The point that is farther from the new one in cost makes the better line.
        let there = (costs.clone(), times);
        lines = refit(&points, &there).unwrap_or(lines);
        costs = choose(&lines);
    }
    let expected_ms = lines.iter().zip(&costs).map(|(line, cost)| line.ms_at(*cost)).collect();
    Ok(Calibrated { guest, costs, expected_ms })
}

type Point = (Vec<u32>, Vec<f64>);

fn fit(guest: &Guest, low: &Point, high: &Point) -> anyhow::Result<Vec<Line>> {
    (0..guest.jobs.len())
        .map(|i| {
            Line::through((low.0[i], low.1[i]), (high.0[i], high.1[i])).map_err(|why| {
                anyhow::anyhow!("guest {}, {}: {why}", guest.name, guest.scene.jobs()[i])
                    .context(Unfit)
            })
        })
        .collect()
}

/// Lines through the new point and, for each job, the probe that is farther from it. `None` where a job's
/// line does not rise.
fn refit(points: &[Point], new: &Point) -> Option<Vec<Line>> {
    (0..new.0.len())
        .map(|i| {
            let new = (new.0[i], new.1[i]);
            let other = points
                .iter()
                .map(|p| (p.0[i], p.1[i]))
                .max_by_key(|(cost, _)| cost.abs_diff(new.0))?;
            let (low, high) = if other.0 < new.0 { (other, new) } else { (new, other) };
            Line::through(low, high).ok()
        })
        .collect()
}

/// Runs one guest alone and says what each of its jobs took, in ms.
fn measure(
    session: &Session<'_>,
    guest: &Guest,
    word: &str,
    costs: Vec<u32>,
) -> anyhow::Result<Vec<f64>> {
    // Its contract does not matter here, as long as no scene is held back by it.
    let period = guest.contract.period_ms();
    let budget = Budget {
        main_ms: period * 0.4,
        max_job_ms: period * 0.4,
        late_latch_ms: guest.contract.late_latch_window_ms.unwrap_or(0.0) * 0.8,
    };
    let plan = Plan {
        name: format!("calibrate-{}-{word}", guest.name),
        policy: "fifo",
        bookings: vec![Booking { guest, costs, budget }],
        warm_up: Duration::from_millis(300),
        length: Duration::from_secs_f64(session.demo.calibration.seconds),
    };
    let outcome = session.run(&plan).map_err(|why| {
        if why.downcast_ref::<EndedEarly>().is_some() {
            // On a machine that is busy with something else, a job takes long enough to be killed.
            why.context(Unfit)
        } else {
            why
        }
    })?;
    busy_by_position(&outcome.log.stamps, 0, outcome.window.from_ns, guest.jobs.len())
        .map_err(|why| anyhow::anyhow!("{}: {why}", plan.name).context(Unfit))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demo() -> Demo {
        Demo::load(None).unwrap()
    }

    #[test]
    fn budgets_come_from_measured_times() {
        let demo = demo();
        let [vr, game, flood] = &demo.guests[..] else { panic!() };
        let (h, j) = (demo.calibration.headroom, demo.calibration.job_headroom);
        let b = budget(vr, &[2.0, 0.5], &demo);
        let close = |a: f64, b: f64| (a - b).abs() < 1e-9;
        assert!(close(b.main_ms, 2.0 * h) && close(b.late_latch_ms, 0.5 * h), "{b:?}");
        assert!(close(b.max_job_ms, 2.0 * j));
        let b = budget(game, &[0.5, 0.6, 0.7], &demo);
        assert!(close(b.main_ms, 1.8 * h) && close(b.max_job_ms, 0.7 * j), "{b:?}");
        // A background contract's minimum is declared, not measured.
        let b = budget(flood, &[1.1], &demo);
        assert!(close(b.main_ms, flood.contract.budget_ms.unwrap()), "{b:?}");
    }

    #[test]
    fn too_much_load_is_refused_with_names() {
        let demo = demo();
        let all: Vec<_> = demo
            .guests
            .iter()
            .map(|guest| Calibrated { guest, costs: vec![1], expected_ms: vec![3.0] })
            .collect();
        assert!(check_load(&all, 6.0).is_ok());
        let error = check_load(&all, 5.5).unwrap_err();
        assert_eq!(crate::failure::exit_code(&error), crate::failure::REFUSED);
        let text = error.to_string();
        assert!(text.contains("vr, game") && text.contains("6.00 ms"), "{text}");
    }

    #[test]
    fn a_third_point_makes_a_line_with_the_farther_probe() {
        let points = [(vec![10], vec![1.0]), (vec![40], vec![4.0])];
        let lines = refit(&points, &(vec![200], vec![20.0])).unwrap();
        assert!((lines[0].ms_at(200) - 20.0).abs() < 1e-9);
        assert!((lines[0].ms_at(10) - 1.0).abs() < 1e-9);
        assert!(refit(&points, &(vec![200], vec![0.5])).is_none());
    }
}
