//! `summary.json`, the pictures, and what the terminal shows at the end.

use super::calibrate::Calibrated;
use super::guests::Guests;
use super::judge::{self, Judged, Promise};
use super::series::Series;
use super::session::{Session, write};
use super::show;
use crate::output;
use anyhow::Context;
use beamline_abi::Nanos;
use beamline_latency::noise::Noise;
use beamline_latency::{Label, svg, table};
use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;

/// How much of a run a timeline shows.
const TIMELINE: Nanos = Nanos::from_millis(100);

/// The content of `summary.json`. Durations in ns unless a key says otherwise.
#[derive(Serialize)]
pub(crate) struct Summary {
    /// How the numbers came about.
    label: Label,
    /// What the guests were.
    guests: Guests,
    /// Who executed the GPU work.
    gpu: String,
    /// The machine before the first run.
    machine: Noise,
    /// Runs that were tried again because the machine spoiled them.
    repeats: u32,
    calibration: Vec<CalibrationEntry>,
    promises: Vec<Promise>,
    alone: Vec<Judged>,
    together: Vec<Judged>,
    timeline: PathBuf,
    images: Vec<PathBuf>,
}

#[derive(Serialize)]
struct CalibrationEntry {
    guest: String,
    jobs: Vec<CalibratedJob>,
}

#[derive(Serialize)]
struct CalibratedJob {
    job: &'static str,
    cost: u32,
    expected_ms: f64,
    target_ms: f64,
}

impl Summary {
    /// From all runs.
    pub(crate) fn new(
        session: &Session<'_>,
        gpu: String,
        calibrated: &[Calibrated<'_>],
        machine: Noise,
        series: &Series,
    ) -> Self {
        let reports =
            |runs: &[(Judged, _)]| runs.iter().map(|(j, _)| j.clone()).collect::<Vec<_>>();
        let together = reports(&series.together);
        let first = series.together.first().or(series.alone.first());
        Self {
            label: first.map_or(Label::Measured, |(judged, _)| judged.report.label),
            guests: session.guests,
            gpu,
            machine,
            repeats: series.repeats(),
            calibration: calibrated.iter().map(entry).collect(),
            promises: judge::promises(session.demo, &together),
            alone: reports(&series.alone),
            together,
            timeline: "timeline.svg".into(),
            images: calibrated.iter().map(|c| format!("{}.png", c.guest.name).into()).collect(),
        }
    }

    /// Writes the files of the output folder.
    pub(crate) fn write(&self, session: &Session<'_>, series: &Series) -> anyhow::Result<()> {
        let folder = &session.output;
        let json = serde_json::to_vec_pretty(self).context("cannot write the summary as JSON")?;
        write(&folder.join("summary.json"), json)?;
        write(&folder.join(&self.timeline), timelines(series))?;
        // The last run with all guests has each guest's image as it is under the last policy.
        if let Some((_, outcome)) = series.together.last() {
            for guest in &session.demo.guests {
                let (from, to) =
                    (outcome.files.image(guest), folder.join(format!("{}.png", guest.name)));
                std::fs::copy(&from, &to).with_context(|| {
                    format!("cannot copy {} to {}", from.display(), to.display())
                })?;
            }
        }
        Ok(())
    }

    /// Shows the tables.
    pub(crate) fn print(&self, session: &Session<'_>, took: Duration) {
        let reports: Vec<_> =
            self.alone.iter().chain(&self.together).map(|j| j.report.clone()).collect();
        output::line(&format!("\nGPU: {}\nguests: {}\n", self.gpu, self.guests.words()));
        output::line(&table::table(&reports));
        for run in &self.together {
            output::line(&format!(
                "during {}: other programs took {:.0}% of a CPU (measured)",
                run.report.run, run.others.percent
            ));
            for guest in &run.interrupts {
                output::line(&guest.line(&run.report.run));
            }
            for b in &run.background {
                output::line(&format!(
                    "{} under {}: {} jobs, {:.1}% of the GPU ({})",
                    b.name,
                    run.report.run,
                    b.jobs,
                    100.0 * b.gpu_ns as f64
                        / run.report.window.to_ns.saturating_sub(run.report.window.from_ns).max(1)
                            as f64,
                    run.report.label
                ));
            }
        }
        output::line("");
        output::line(&show::promise_table(&self.promises, &self.label.to_string()));
        let names: Vec<String> =
            self.images.iter().map(|path| path.display().to_string()).collect();
        output::line(&format!(
            "{} run(s) repeated because the machine was disturbed; the first {} s of each run are not judged.\n\
             In {}: summary.json, timeline.svg ({} ms of each run with all guests), {}\n\
             Took {:.0} s (measured).",
            self.repeats,
            session.demo.runs.warm_up_s,
            session.output.display(),
            TIMELINE.0 / 1_000_000,
            names.join(", "),
            took.as_secs_f64()
        ));
    }
}

fn entry(calibrated: &Calibrated<'_>) -> CalibrationEntry {
    let Calibrated { guest, costs, expected_ms } = calibrated;
    let jobs = guest.scene.jobs().iter().zip(&guest.jobs).zip(costs.iter().zip(expected_ms)).map(
        |((name, job), (cost, expected_ms))| CalibratedJob {
            job: name,
            cost: *cost,
            expected_ms: *expected_ms,
            target_ms: job.target_ms,
        },
    );
    CalibrationEntry { guest: guest.name.clone(), jobs: jobs.collect() }
}

/// Who had the GPU when, in each run with all guests.
fn timelines(series: &Series) -> String {
    let pictures: Vec<String> = series
        .together
        .iter()
        .map(|(_, outcome)| {
            let analysis = judge::analyse(outcome);
            svg::svg(&analysis, analysis.telling_window(TIMELINE))
        })
        .collect();
    show::stacked(&pictures)
}
