//! `beamline report`: what a host's log of stamps says about its frames.

use crate::failure::refused_by;
use crate::output;
use anyhow::Context;
use beamline_abi::Nanos;
use beamline_latency::{Analysis, Log, Options, RunReport, csv, stages, svg, table, trace};
use std::path::{Path, PathBuf};

/// What is to be reported, and where it goes.
#[derive(clap::Args)]
pub(crate) struct Report {
    /// The log that a host wrote (`output.stamps`), after it has drained
    log: PathBuf,
    /// Leave out the first seconds
    #[arg(long, default_value_t = 1.5, value_name = "SECONDS")]
    warm_up: f64,
    /// Share of frames that must be in budget for the verdict `met`
    #[arg(long, default_value_t = 0.99, value_name = "0..1")]
    required: f64,
    /// Print JSON in place of the tables
    #[arg(long)]
    json: bool,
    /// Write every judged frame, with PresentMon's column names where the meaning is the same
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Write a picture of who had the GPU when, 100 ms around the first miss
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Write a timeline that Perfetto and chrome://tracing load
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
}

/// Runs the subcommand.
pub(crate) fn report(options: &Report) -> anyhow::Result<()> {
    let path = options.log.display().to_string();
    let log = Log::read(&options.log).map_err(refused_by).context(path)?;
    let warm_up = Nanos((options.warm_up.clamp(0.0, 1e6) * 1e9) as u64);
    let analysis = Analysis::new(&log, Options { warm_up, window: None });
    let report = RunReport::new(&analysis, None, Some(options.required.clamp(0.0, 1.0)));
    let save = |path: &Option<PathBuf>, content: &dyn Fn() -> anyhow::Result<String>| match path {
        Some(path) => write(path, &content()?),
        None => Ok(()),
    };
    save(&options.csv, &|| Ok(csv::frames(&analysis)))?;
    save(&options.svg, &|| {
        Ok(svg::svg(&analysis, analysis.telling_window(Nanos::from_millis(100))))
    })?;
    save(&options.trace, &|| Ok(serde_json::to_string(&trace::chrome_json(&analysis))?))?;
    if options.json {
        let value = serde_json::json!({ "run": report, "steps": stages::steps(&analysis) });
        return output::json(&value);
    }
    output::line(&table::table(&[report]));
    output::line(stages::table(&analysis).trim_end());
    Ok(())
}

fn write(path: &Path, content: &str) -> anyhow::Result<()> {
    std::fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}
