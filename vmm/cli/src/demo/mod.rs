//! `beamline demo`: real guests, alone and together under each policy, and a report on every frame.
//!
//! | step | file |
//! |---|---|
//! | configuration | [`config`] |
//! | what has to be there, and what the guests are | [`prepare`], [`guests`] |
//! | costs of the scenes on this machine | [`calibrate`], [`cost`] |
//! | one run: files, processes, stamps | [`session`], [`files`], [`children`], [`place`], [`others`], [`interrupts`] |
//! | all runs | [`series`] |
//! | verdicts, tables, pictures | [`judge`], [`show`] |

mod calibrate;
mod children;
mod config;
mod cost;
mod files;
mod guests;
mod interrupts;
mod judge;
mod others;
mod place;
mod prepare;
mod series;
mod session;
mod show;
mod summary;

pub(crate) use place::{cpus, realtime_permitted};

use crate::output;
use crate::signals::Stop;
use beamline_latency::noise::{Noise, WakeUps, Watch};
use beamline_vmm::probe;
use config::Demo;
use guests::Guests;
use session::Session;
use std::path::PathBuf;
use std::time::Instant;

/// What `beamline demo` takes.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The demo's configuration; the built-in one (assets/demo/demo.toml) where it is left out
    config: Option<PathBuf>,
    /// Folder for summary.json, timeline.svg, the images, and each run's configuration and stamps
    #[arg(long, value_name = "FOLDER", default_value = "demo-out")]
    out: PathBuf,
    /// The guest image; else the configuration's, or the one that `make guest` built beside this program
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// What the guests are; else virtual machines where KVM can be used, and processes where not
    #[arg(long, value_enum)]
    guests: Option<Guests>,
    /// Print summary.json on stdout at the end, and everything else on stderr
    #[arg(long)]
    json: bool,
}

/// Runs the whole demo.
pub(crate) fn demo(options: &Options) -> anyhow::Result<()> {
    let began = Instant::now();
    output::text_to_stderr(options.json);
    let stop = Stop::install()?;
    let demo = Demo::load(options.config.as_deref())?;
    let (guests, said) = Guests::choose(options.guests, &probe::kvm());
    if let Some(said) = said {
        output::line(&said);
    }
    let image = prepare::image(options.image.as_deref(), &demo, guests)?;
    let place = place::Placement::here()?;
    let gpu = prepare::check(&demo, guests)?;

    output::line(&format!(
        "{} guests on one GPU, {gpu}; rendering on CPU {:?}, all else on CPU {:?}{}",
        demo.guests.len(),
        place.render,
        place.host,
        if place.realtime { "" } else { " without real-time scheduling (not permitted)" },
    ));
    let noise = watch(&demo, &stop)?;
    output::line(&format!("this machine, idle: {noise} (measured)"));

    let session = Session::new(&demo, guests, image, &options.out, place, &stop)?;
    output::line("calibrating each scene alone (measured):");
    let calibrated = calibrate::calibrate(&session)?;
    let series = series::run_all(&session, &calibrated, began)?;
    let summary = summary::Summary::new(&session, gpu, &calibrated, noise, &series);
    summary.write(&session, &series)?;
    summary.print(&session, began.elapsed());
    if options.json {
        output::json(&summary)?;
    }
    Ok(())
}

/// Watches the machine before anything of ours runs.
fn watch(demo: &Demo, stop: &Stop) -> anyhow::Result<Noise> {
    let mut progress = output::Progress::new();
    progress.show("watching the machine");
    let watch = Watch::begin()?;
    let wake_ups = WakeUps::sample(session::nanos(demo.noise.seconds))?;
    let noise = watch.end(demo.noise.steal_per_30s, Some(wake_ups))?;
    if stop.requested() {
        return Err(crate::failure::interrupted());
    }
    Ok(noise)
}
