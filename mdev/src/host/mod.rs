//! The host: the process that owns one GPU's schedule and serves its slices.
//!
//! ```text
//! vfio-user thread ×2 per slice ─ registers, mappings        (peer may be slow: only its own slice waits)
//! worker per slice ─ kick → copy, validate ─┐
//! dispatcher ─ one per GPU ◄────────────────┴─ schedule, GPU events, vblanks
//! poster per slice ◄─ used rings, timing page, interrupts
//! collector ─ stamps → log                                   (off the path)
//! ```

mod collect;
mod dispatch;
pub(crate) mod scanout;
mod slice;
pub mod threads;

use crate::backend::model::{CostTable, ModelGpu, Service};
use crate::backend::{Gpu, GpuError, Label};
use crate::config::{BackendKind, HostConfig};
use crate::device::eventfd::EventFd;
use crate::mediate::dispatcher::{Dispatcher, SliceCounters};
use beamline_abi::Nanos;
use beamline_latency::clock::{Clock, ClockError, MonotonicClock, TscMap};
use beamline_latency::log::LogError;
use beamline_latency::meta::{ContractMeta, Meta, SliceMeta};
use beamline_latency::recorder::{Collector, DEFAULT_CAPACITY, Recorder};
use beamline_sched::{Admission, Class, Contract, GpuCaps, PolicyKind, Refusal, TenantId};
use beamline_vfio_user::server::ListenError;
use collect::LogThread;
use dispatch::{Control, Waiter};
pub use scanout::Image;
use slice::SliceServer;
pub use slice::display_settings;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Instant;
use threads::{KeepAwake, Placement, Role};

/// Why a host does not start, or could not finish its work.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A contract cannot be kept beside the ones before it.
    #[error("slice `{slice}`: its contract is refused: {refusal}")]
    Refused {
        /// The slice's name.
        slice: String,
        /// What is short, by how much, and what would fit.
        refusal: Refusal,
    },
    /// The GPU cannot be used.
    #[error("the GPU cannot be used: {0}")]
    Gpu(GpuError),
    /// This build has no such backend.
    #[error(
        "this build has no `wgpu` backend; build with the `wgpu` feature, or set gpu.backend = \"model\""
    )]
    NoWgpu,
    /// A socket cannot be served.
    #[error("slice `{slice}`: {source}")]
    Listen {
        /// The slice's name.
        slice: String,
        /// Why.
        source: ListenError,
    },
    /// A folder or file cannot be made.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The log of stamps cannot be written.
    #[error("{path}: {source}")]
    Log {
        /// The log.
        path: PathBuf,
        /// Why.
        source: LogError,
    },
    /// The host's clock cannot be used to place what guests stamp.
    #[error("the clock: {0}")]
    Clock(ClockError),
    /// A slice's device cannot be made.
    #[error("slice `{slice}`: {problem}")]
    Device {
        /// The slice's name.
        slice: String,
        /// Why.
        problem: String,
    },
    /// The operating system refused a thread or a descriptor.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Its answer.
        source: io::Error,
    },
}

fn system(what: &'static str) -> impl Fn(io::Error) -> HostError {
    move |source| HostError::System { what, source }
}

/// What a host says once its slices can be attached.
#[derive(Clone, Debug)]
pub struct Ready {
    /// How its times come about.
    pub label: Label,
    /// The GPU, for people.
    pub gpu: String,
    /// Who decides the order.
    pub policy: PolicyKind,
    /// In the order of the configuration.
    pub slices: Vec<ReadySlice>,
}

/// A slice that waits for its guest.
#[derive(Clone, Debug)]
pub struct ReadySlice {
    /// Its name.
    pub name: String,
    /// The pacer's socket.
    pub pacer: PathBuf,
    /// The vGPU's socket.
    pub gpu: PathBuf,
    /// Offset of its vblanks from the host's grid.
    pub phase: Nanos,
}

/// What a slice has done so far.
#[derive(Clone, Debug)]
pub struct SliceStats {
    /// Its name.
    pub name: String,
    /// Frames shown.
    pub frames: u64,
    /// Frames shown at a later vblank than the one they were due at.
    pub late: u64,
    /// Jobs that ran to their end.
    pub jobs: u64,
    /// Jobs that failed or were dropped.
    pub failed: u64,
    /// GPU time used.
    pub busy: Nanos,
}

/// What is left of a host that was drained.
#[derive(Clone, Debug, Default)]
pub struct Drained {
    /// The pictures that were written.
    pub images: Vec<PathBuf>,
    /// What could not be written or was cut short, for people.
    pub problems: Vec<String>,
}

/// A running host. Dropping it without [`Host::drain`] ends its threads and removes its sockets, but
/// leaves no pictures and no log.
pub struct Host {
    config: HostConfig,
    ready: Ready,
    counters: Vec<Arc<SliceCounters>>,
    slices: Vec<SliceServer>,
    control: Sender<Control>,
    wake: EventFd,
    dispatcher: Option<JoinHandle<()>>,
    log: Option<(PathBuf, LogThread)>,
    tsc: Option<TscMap>,
    _awake: KeepAwake,
}

/// Base of the TSC map; its rate is narrowed over the whole run at the end.
const CALIBRATION: Nanos = Nanos::from_millis(20);

impl Host {
    /// Starts a host. `renderer` is the program that runs one slice's GPU work, with its arguments; the
    /// `model` backend does not use it. When this returns, guests can attach.
    pub fn start(config: HostConfig, renderer: RendererProgram) -> Result<Self, HostError> {
        let caps = config.caps();
        let phases = admit(&config, caps)?;
        let gpu = make_gpu(&config, renderer)?;
        let (label, description) = (gpu.label(), gpu.describe());
        make_folder(&config.run_dir)?;
        let tsc = TscMap::calibrate(CALIBRATION).map_err(HostError::Clock)?;
        let collector = config.stamps.is_some().then(Collector::new);
        let registry = collector.as_ref().map(Collector::registry);
        let recorder =
            |capacity| registry.as_ref().map_or_else(Recorder::off, |r| r.recorder(capacity));
        let clock: Arc<dyn Clock> = Arc::new(MonotonicClock);
        let origin = clock.now();
        let placement = Placement { cpus: config.host_cpus.clone(), realtime: config.realtime };
        let wake = EventFd::new().map_err(|e| system("make an eventfd")(e.into()))?;

        let log = match (&config.stamps, collector) {
            (Some(path), Some(collector)) => {
                let at = |source| HostError::Log { path: path.clone(), source };
                Some((path.clone(), LogThread::start(path, collector).map_err(at)?))
            }
            _ => None,
        };
        let mut slices = Vec::with_capacity(config.slices.len());
        let mut links = Vec::with_capacity(config.slices.len());
        for (index, (slice, phase)) in config.slices.iter().zip(&phases).enumerate() {
            let parts = slice::Parts {
                config: &config,
                slice,
                index: index as u16,
                phase: *phase,
                origin,
                clock: &clock,
                tsc,
                placement: &placement,
                dispatcher: &wake,
                recorder: &recorder,
            };
            let (server, link) = slice::start(&parts)?;
            slices.push(server);
            links.push(link);
        }
        let counters = links.iter().map(|l| Arc::clone(&l.counters)).collect();
        let jobs = Dispatcher::max_jobs(links.len());
        let policy = config.policy.build(caps, links.len(), jobs);
        let mut dispatcher =
            Dispatcher::new(policy, gpu, links, config.kill_grace, recorder(DEFAULT_CAPACITY));
        let waiter = Waiter::new(wake.clone(), &mut dispatcher)
            .map_err(system("make the dispatcher's epoll"))?;
        let (control, requests) = channel();
        let thread = placement
            .spawn("dispatcher", Role::Dispatcher, move || {
                if let Err(error) = dispatch::run(dispatcher, waiter, &clock, &requests) {
                    tracing::error!(%error, "the dispatcher cannot wait; the host is of no use any more");
                }
            })
            .map_err(system("start the dispatcher's thread"))?;
        let ready = Ready {
            label,
            gpu: description,
            policy: config.policy,
            slices: ready_slices(&config, &phases),
        };
        let awake = if config.keep_awake { awake_cpus(&config) } else { Vec::new() };
        let awake = KeepAwake::start(&awake).map_err(system("start a keep-awake thread"))?;
        Ok(Self {
            config,
            ready,
            counters,
            slices,
            control,
            wake,
            dispatcher: Some(thread),
            log,
            tsc: Some(tsc),
            _awake: awake,
        })
    }

    /// What is served where.
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// What each slice has done so far.
    pub fn stats(&self) -> Vec<SliceStats> {
        let load = |n: &std::sync::atomic::AtomicU64| n.load(Ordering::Relaxed);
        self.config
            .slices
            .iter()
            .zip(&self.counters)
            .map(|(slice, c)| SliceStats {
                name: slice.name.clone(),
                frames: load(&c.shown),
                late: load(&c.late),
                jobs: load(&c.jobs),
                failed: load(&c.failed),
                busy: Nanos(load(&c.busy)),
            })
            .collect()
    }

    /// Writes each slice's last picture, ends every thread, and closes the log.
    pub fn drain(mut self) -> Drained {
        let mut drained = Drained::default();
        if let Some(folder) = self.config.images.clone() {
            self.write_images(&folder, &mut drained);
        }
        let guests: Vec<_> = self.slices.iter().map(SliceServer::guest_tsc).collect();
        let stuck = self.stop();
        if stuck > 0 {
            drained.problems.push(format!(
                "{stuck} threads are held up by their guests' eventfds; they end with this process"
            ));
        }
        if let Some((path, log)) = self.log.take()
            && let Err(error) = log.finish(self.meta(&guests))
        {
            drained.problems.push(format!("{}: {error}", path.display()));
        }
        drained
    }

    /// Ends the threads; how many are held up by a peer.
    fn stop(&mut self) -> usize {
        self.slices.iter().for_each(SliceServer::ask_to_stop);
        let deadline = Instant::now() + slice::STOP_PATIENCE;
        let stuck = self.slices.iter_mut().map(|s| s.join(deadline)).sum();
        // A dispatcher that has ended already needs no word.
        let _ = self.control.send(Control::Stop);
        self.wake.signal();
        if let Some(thread) = self.dispatcher.take() {
            let _ = thread.join();
        }
        self.slices.clear();
        stuck
    }

    fn meta(&self, guests: &[Option<beamline_latency::clock::GuestTsc>]) -> Meta {
        let slices = self.config.slices.iter().zip(guests).map(|(s, guest)| SliceMeta {
            name: s.name.clone(),
            contract: Some(contract_meta(&s.contract)),
            guest_tsc: *guest,
        });
        Meta {
            label: self.ready.label,
            run: self.config.policy.name().to_owned(),
            slices: slices.collect(),
            tsc: self.tsc.map(|map| map.extend().unwrap_or(map)),
            gpu_clock_err_ns: 0,
            seed: 0,
            config_hash: String::new(),
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The program that runs one slice's GPU work in a process of its own.
#[derive(Clone, Debug)]
pub struct RendererProgram {
    /// The program.
    pub exe: PathBuf,
    /// Its arguments.
    pub args: Vec<std::ffi::OsString>,
}

/// Asks admission for every slice, tight contracts first, and answers their phases in the configuration's
/// order. Phases are the `beamline` policy's own lever: other policies run on one common phase.
pub fn admit(config: &HostConfig, caps: GpuCaps) -> Result<Vec<Nanos>, HostError> {
    let admission = Admission::new(caps, HostConfig::MAX_SLICES);
    let mut order: Vec<usize> = (0..config.slices.len()).collect();
    order.sort_by_key(|&i| {
        let c = &config.slices[i].contract;
        (c.class, c.late_latch.is_none(), c.period.floor(), i)
    });
    let mut phases = vec![Nanos::ZERO; config.slices.len()];
    let mut current = Vec::with_capacity(config.slices.len());
    for i in order {
        let slice = &config.slices[i];
        let admitted = admission
            .try_admit(&current, &slice.contract)
            .map_err(|refusal| HostError::Refused { slice: slice.name.clone(), refusal })?;
        current.push((TenantId(i as u16), slice.contract, admitted.phase));
        if config.policy == PolicyKind::Beamline {
            phases[i] = admitted.phase;
        }
    }
    Ok(phases)
}

fn make_gpu(config: &HostConfig, renderer: RendererProgram) -> Result<Box<dyn Gpu>, HostError> {
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

fn make_folder(path: &Path) -> Result<(), HostError> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| HostError::File { path: path.into(), source })
}

fn awake_cpus(config: &HostConfig) -> Vec<usize> {
    let mut cpus: Vec<usize> =
        config.host_cpus.iter().chain(&config.render_cpus).copied().collect();
    if cpus.is_empty() {
        cpus = (0..std::thread::available_parallelism().map_or(1, usize::from)).collect();
    }
    cpus.sort_unstable();
    cpus.dedup();
    cpus
}

fn ready_slices(config: &HostConfig, phases: &[Nanos]) -> Vec<ReadySlice> {
    let ready = |(slice, phase): (&crate::config::SliceConfig, &Nanos)| ReadySlice {
        name: slice.name.clone(),
        pacer: config.pacer_socket(slice),
        gpu: config.gpu_socket(slice),
        phase: *phase,
    };
    config.slices.iter().zip(phases).map(ready).collect()
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
        class: match c.class {
            Class::Reserved => "reserved",
            Class::Elastic => "elastic",
            Class::Background => "background",
        }
        .to_owned(),
    }
}
