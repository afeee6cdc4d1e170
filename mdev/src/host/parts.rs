//! What a host is put together from: the backend, its folder, the CPUs it keeps awake; and what it leaves.

use super::{HostError, RendererProgram};
use crate::backend::Gpu;
use crate::backend::model::{CostTable, ModelGpu, Service};
use crate::config::slice::class;
use crate::config::{BackendKind, HostConfig};
use crate::mediate::display::screen::Image;
use beamline_abi::Nanos;
use beamline_latency::meta::ContractMeta;
use beamline_sched::{Class, Contract, PolicyKind};
use std::io;
use std::path::Path;

/// The backend that the configuration names.
pub(super) fn make_gpu(
    config: &HostConfig,
    renderer: RendererProgram,
) -> Result<Box<dyn Gpu>, HostError> {
    match config.backend {
        BackendKind::Model => {
            let service = match config.policy {
                PolicyKind::None => Service::Shared,
                _ => Service::Fifo,
            };
            Ok(Box::new(ModelGpu::new(service, CostTable::new(MODEL_JOB))))
        }
        #[cfg(feature = "wgpu")]
        BackendKind::Wgpu => {
            use crate::renderer::Launcher;
            let cpus = |list: &[usize]| list.iter().map(|&c| c as u32).collect();
            let launcher = Launcher {
                exe: renderer.exe,
                args: renderer.args,
                render_cpus: cpus(&config.render_cpus),
                host_cpus: cpus(&config.host_cpus),
                adapter: config.adapter.clone(),
                ..Launcher::this_program()
            };
            let gpu = crate::backend::wgpu::WgpuGpu::new(launcher).map_err(HostError::Gpu)?;
            Ok(Box::new(gpu))
        }
        #[cfg(not(feature = "wgpu"))]
        BackendKind::Wgpu => {
            drop(renderer);
            Err(HostError::NoWgpu)
        }
    }
}

/// What every job costs on the `model` backend.
const MODEL_JOB: Nanos = Nanos::from_micros(500);

/// Makes a folder that is its owner's alone.
pub(super) fn make_folder(path: &Path) -> Result<(), HostError> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| HostError::File { path: path.into(), source })
}

/// The CPUs that are kept awake: none where that is not asked for.
pub(super) fn awake_cpus(config: &HostConfig) -> Vec<usize> {
    if !config.keep_awake {
        return Vec::new();
    }
    let mut cpus: Vec<usize> =
        config.host_cpus.iter().chain(&config.render_cpus).copied().collect();
    if cpus.is_empty() {
        cpus = (0..std::thread::available_parallelism().map_or(1, usize::from)).collect();
    }
    cpus.sort_unstable();
    cpus.dedup();
    cpus
}

/// A contract as the log of stamps tells it.
pub fn contract_meta(c: &Contract) -> ContractMeta {
    ContractMeta {
        period_num: c.period.num(),
        period_den: c.period.den(),
        deadline_ns: c.deadline.0,
        budget_ns: c.budget.0,
        max_job_ns: c.max_job.0,
        gap_ns: c.gap.0,
        jitter_ns: c.jitter.0,
        late_latch_ns: c.late_latch.map_or(0, |l| l.window.0),
        late_latch_budget_ns: c.late_latch.map_or(0, |l| l.budget.0),
        paced: c.class != Class::Background,
        class: class(c.class).to_owned(),
    }
}

/// Writes a picture as a PNG file.
pub(crate) fn write_png(path: &Path, picture: &Image) -> Result<(), png::EncodingError> {
    encode_png(io::BufWriter::new(std::fs::File::create(path)?), picture)
}

/// Encodes a picture as PNG.
pub(super) fn encode_png(to: impl io::Write, picture: &Image) -> Result<(), png::EncodingError> {
    let mut encoder = png::Encoder::new(to, picture.width, picture.height);
    encoder.set_color(png::ColorType::Rgba);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&picture.rgba)?;
    writer.finish()
}
