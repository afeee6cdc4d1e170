//! `beamline host`: schedules one GPU and serves its slices.

use crate::confine;
use crate::doctor;
use crate::events::{HostEvent, ReadySlice, SliceStats};
use crate::failure::refused;
use crate::output;
use crate::read;
use crate::signals::Stop;
use beamline_mdev::config::{BackendKind, HostConfig};
use beamline_mdev::host::{Host, HostError, RendererProgram};
use std::path::Path;
use std::time::Duration;

/// How often `stats` is printed.
const STATS: Duration = Duration::from_millis(500);

/// Serves the slices of the configuration at `path` until a signal comes or nobody reads stdout.
pub(crate) fn host(path: &Path, sandbox: bool) -> anyhow::Result<()> {
    let stop = Stop::install()?;
    let config = read::host(path)?;
    let adapter = match config.backend {
        BackendKind::Wgpu => Some(doctor::require_vulkan(config.adapter.as_deref())?),
        BackendKind::Model => None,
    };
    // This very file, also where it was replaced since.
    let mut renderer =
        RendererProgram { exe: "/proc/self/exe".into(), args: vec!["renderer".into()] };
    if sandbox {
        confine::host_set_up(&config)?;
    } else {
        renderer.args.push("--no-sandbox".into());
    }
    let confine = || if sandbox { confine::host_run() } else { Ok(()) };
    let host = Host::start_confined(config, renderer, confine)
        .map_err(|error| classed(error).context(path.display().to_string()))?;
    let mut read = output::json_line(&ready(&host, adapter))?;
    while read && !stop.wait(STATS) {
        read = output::json_line(&stats(&host))?;
    }
    let drained = host.drain();
    output::json_line(&HostEvent::Drained)?;
    if drained.problems.is_empty() {
        return Ok(());
    }
    anyhow::bail!("{}: while draining: {}", path.display(), drained.problems.join("; "))
}

/// Looks for mistakes in the configuration at `path`, and says what it would make; starts nothing.
pub(crate) fn check(path: &Path) -> anyhow::Result<()> {
    let config = read::host(path)?;
    admit(&config).map_err(|error| error.context(path.display().to_string()))?;
    for slice in &config.slices {
        let contract = &slice.contract;
        output::line(&format!(
            "slice {}: {} ms of every {} ms, {}x{}, at {} and {}",
            slice.name,
            millis(contract.budget),
            contract.period.num() as f64 / contract.period.den() as f64 / 1e6,
            slice.width,
            slice.height,
            config.pacer_socket(slice).display(),
            config.gpu_socket(slice).display(),
        ));
    }
    output::line(&format!("control socket: {}", config.control_socket().display()));
    output::line(&format!(
        "{}: no mistakes found; all contracts can be kept together",
        path.display()
    ));
    Ok(())
}

fn millis(time: beamline_abi::Nanos) -> f64 {
    time.0 as f64 / 1e6
}

fn ready(host: &Host, adapter: Option<String>) -> HostEvent {
    let ready = host.ready();
    let slice = |s: &beamline_mdev::host::ReadySlice| ReadySlice {
        name: s.name.clone(),
        pacer: s.pacer.clone(),
        gpu: s.gpu.clone(),
        phase_ns: s.phase.0,
    };
    HostEvent::Ready {
        label: ready.label.to_string(),
        gpu: adapter.unwrap_or_else(|| ready.gpu.clone()),
        slices: ready.slices.iter().map(slice).collect(),
    }
}

fn stats(host: &Host) -> HostEvent {
    let slices = host
        .stats()
        .into_iter()
        .map(|s| SliceStats {
            name: s.name,
            frames: s.frames,
            late: s.late,
            doorbells: s.doorbells,
        })
        .collect();
    HostEvent::Stats { slices }
}

/// What the user can mend, and what has failed.
fn classed(error: HostError) -> anyhow::Error {
    match error {
        HostError::Clock(_) | HostError::Device { .. } | HostError::System { .. } => error.into(),
        other => refused(other),
    }
}

/// Whether every contract of `config` can be kept beside the others. What does not fit is refused with its
/// slice's name.
pub(crate) fn admit(config: &HostConfig) -> anyhow::Result<()> {
    let caps = config.caps();
    beamline_mdev::host::admit(config, caps).map(drop).map_err(classed)
}
