//! The host: the process that owns one GPU's schedule and serves its slices.
//!
//! ```text
//! vfio-user thread ×2 per slice ─ registers, mappings        (peer may be slow: only its own slice waits)
//! worker per slice ─ kick → copy, validate ─┐
//! dispatcher ─ one per GPU ◄────────────────┴─ schedule, GPU events, vblanks
//! poster per slice ◄─ used rings, timing page, interrupts
//! collector ─ stamps → log                                   (off the path)
//! api ─ control socket → admission → dispatcher              (off the path)
//! asks ─ guests' requests → admission → dispatcher           (off the path)
//! ```

pub mod admit;
pub mod api;
pub mod ask;
mod bells;
mod collect;
pub mod control;
mod dispatch;
pub(crate) mod parts;
mod slice;
pub mod threads;
mod waiter;

use crate::backend::{GpuError, Label};
use crate::config::HostConfig;
use crate::device::eventfd::EventFd;
use crate::device::signals::Signals;
use crate::mediate::beat::Volley;
use crate::mediate::dispatcher::Dispatcher;
pub use crate::mediate::display::screen::Image;
use admit::Ledger;
pub use admit::admit;
use api::ApiServer;
use beamline_abi::Nanos;
use beamline_latency::clock::{Clock, ClockError, MonotonicClock, TscMap};
use beamline_latency::log::LogError;
use beamline_latency::meta::{Meta, SliceMeta};
use beamline_latency::recorder::{Collector, DEFAULT_CAPACITY, Recorder};
use beamline_sched::{PolicyKind, Refusal};
use beamline_vfio_user::server::ListenError;
use collect::LogThread;
use control::{AskThread, ControlError, Controller, DRAIN_PATIENCE, Facts, Past, Workshop};
pub use parts::contract_meta;
use parts::{awake_cpus, make_folder, make_gpu, write_png};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use threads::{KeepAwake, Placement, Role};
use waiter::Waiter;

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
    /// The control socket cannot be served.
    #[error("the control socket: {0}")]
    Control(ListenError),
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
    /// Vblanks passed over because the host came too late for them.
    pub skipped_vblanks: u64,
    /// How often the guest rang its queues' doorbells: each one is an exit of a vCPU that KVM serves itself.
    pub doorbells: u64,
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
    images: Option<PathBuf>,
    ready: Ready,
    controller: Arc<Controller>,
    api: Option<ApiServer>,
    asks: Option<AskThread>,
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
        Self::start_confined(config, renderer, || Ok(()))
    }

    /// As [`Self::start`], with `confine` called once the thread is there that starts renderers, and before any
    /// other: what it does to the calling thread it does to all threads of the host but that one.
    pub fn start_confined(
        config: HostConfig,
        renderer: RendererProgram,
        confine: impl FnOnce() -> io::Result<()>,
    ) -> Result<Self, HostError> {
        let mut host = Self::start_unasked(config, renderer, Arc::new(MonotonicClock), confine)?;
        host.asks = Some(AskThread::start(Arc::clone(&host.controller))?);
        host.api = Some(ApiServer::start(Arc::clone(&host.controller))?);
        Ok(host)
    }

    /// A host without its control socket, which answers no guest that asks for another contract.
    fn start_unasked(
        config: HostConfig,
        renderer: RendererProgram,
        clock: Arc<dyn Clock>,
        confine: impl FnOnce() -> io::Result<()>,
    ) -> Result<Self, HostError> {
        let caps = config.caps();
        let ledger = Ledger::load(&config, caps)?;
        let gpu = make_gpu(&config, renderer)?;
        confine().map_err(system("confine the host's threads"))?;
        let facts = Facts {
            label: gpu.label(),
            gpu: gpu.describe(),
            policy: config.policy,
            max_slices: config.max_slices,
        };
        make_folder(&config.run_dir)?;
        let tsc = TscMap::calibrate(CALIBRATION).map_err(HostError::Clock)?;
        let collector = config.stamps.is_some().then(Collector::new);
        let registry = collector.as_ref().map(Collector::registry);
        let recorder =
            registry.as_ref().map_or_else(Recorder::off, |r| r.recorder(DEFAULT_CAPACITY));
        let placement = Placement { cpus: config.host_cpus.clone(), realtime: config.realtime };
        let wake = EventFd::new().map_err(|e| system("make an eventfd")(e.into()))?;
        let asked = EventFd::new().map_err(|e| system("make an eventfd")(e.into()))?;
        let log = match (&config.stamps, collector) {
            (Some(path), Some(collector)) => {
                let at = |source| HostError::Log { path: path.clone(), source };
                Some((path.clone(), LogThread::start(path, collector).map_err(at)?))
            }
            _ => None,
        };
        let most = config.max_slices;
        let policy = config.policy.build(caps, most, Dispatcher::max_jobs(most));
        let signals = Signals::new().inspect_err(|error| {
            tracing::warn!(%error, "no asynchronous I/O (fs.aio-max-nr): vblanks take a thread more, and come later");
        });
        let volley = Volley::new(signals.ok(), Arc::clone(&clock));
        let mut dispatcher =
            Dispatcher::new(policy, gpu, most, config.kill_grace, volley, recorder);
        let epoll = system("make the dispatcher's epoll");
        let mut waiter =
            Waiter::new(wake.clone(), Arc::clone(&clock), config.keep_awake).map_err(&epoll)?;
        waiter.watch(dispatcher.gpu()).map_err(epoll)?;
        let (link, mut requests) =
            dispatch::link(wake.clone()).map_err(|e| system("make an eventfd")(e.into()))?;
        let (images, awake) = (config.images.clone(), awake_cpus(&config));
        let time = Arc::clone(&clock);
        let thread = placement
            .spawn("dispatcher", Role::Dispatcher, move || {
                if let Err(error) = dispatch::run(dispatcher, waiter, &time, &mut requests) {
                    tracing::error!(%error, "the dispatcher cannot wait; the host is of no use any more");
                }
            })
            .map_err(system("start the dispatcher's thread"))?;
        let awake = KeepAwake::start(&awake).map_err(system("start a keep-awake thread"))?;
        let origin = clock.now();
        let workshop = Workshop { config, origin, clock, tsc, placement, wake, asked, registry };
        let ready = |slices| Ready {
            label: facts.label,
            gpu: facts.gpu.clone(),
            policy: facts.policy,
            slices,
        };
        let ready = ready(Vec::new());
        let controller = Arc::new(Controller::new(workshop, facts, ledger, link)?);
        let slices = controller.slices().into_iter().map(|slice| slice.ready).collect();
        // From here on, dropping it ends everything.
        Ok(Self {
            images,
            ready: Ready { slices, ..ready },
            controller,
            api: None,
            asks: None,
            dispatcher: Some(thread),
            log,
            tsc: Some(tsc),
            _awake: awake,
        })
    }

    /// What was served where when the host started.
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// Looks at the host and changes it, as the control socket does.
    pub fn controller(&self) -> &Arc<Controller> {
        &self.controller
    }

    /// What each slice has done so far.
    pub fn stats(&self) -> Vec<SliceStats> {
        self.controller.slices().into_iter().map(|slice| slice.stats).collect()
    }

    /// What a slice shows; `None` where there is no such slice, or it shows nothing. Waits for a renderer, for
    /// two seconds at most.
    pub fn scanout(&self, slice: &str) -> Option<Image> {
        self.controller.scanout(slice).ok()
    }

    /// Asks every guest to stop submitting and lets the frames under way finish, for [`DRAIN_PATIENCE`] at most;
    /// then writes each slice's last picture, ends every thread, and closes the log.
    pub fn drain(mut self) -> Drained {
        // No change comes in between.
        self.take_no_more();
        if !self.controller.quiesce_all(DRAIN_PATIENCE) {
            tracing::warn!(
                "a guest goes on submitting {} s after it was asked to stop; its work is cut short",
                DRAIN_PATIENCE.as_secs()
            );
        }
        let mut drained = Drained::default();
        if let Some(folder) = self.images.clone() {
            self.write_images(&folder, &mut drained);
        }
        let slices = self.controller.history();
        let stuck = self.stop();
        if stuck > 0 {
            drained.problems.push(format!(
                "{stuck} threads are held up by their guests' eventfds; they end with this process"
            ));
        }
        if let Some((path, log)) = self.log.take()
            && let Err(error) = log.finish(self.meta(slices))
        {
            drained.problems.push(format!("{}: {error}", path.display()));
        }
        drained
    }

    fn write_images(&self, folder: &Path, drained: &mut Drained) {
        if let Err(error) = std::fs::create_dir_all(folder) {
            drained.problems.push(format!("{}: {error}", folder.display()));
            return;
        }
        for slice in self.controller.slices() {
            let picture = match self.controller.scanout(&slice.config.name) {
                Ok(picture) => picture,
                Err(ControlError::Ended) => return,
                // No context, or nothing presented: there is no picture, and nothing is wrong.
                Err(_) => continue,
            };
            let path = folder.join(format!("{}.png", slice.config.name));
            match write_png(&path, &picture) {
                Ok(()) => drained.images.push(path),
                Err(error) => drained.problems.push(format!("{}: {error}", path.display())),
            }
        }
    }

    /// Ends the threads through which a host is changed.
    fn take_no_more(&mut self) {
        drop(self.api.take());
        drop(self.asks.take());
    }

    /// Ends the threads; how many are held up by a peer.
    fn stop(&mut self) -> usize {
        self.take_no_more();
        let stuck = self.controller.end();
        if let Some(thread) = self.dispatcher.take() {
            let _ = thread.join();
        }
        stuck
    }

    fn meta(&self, slices: Vec<Past>) -> Meta {
        let slices = slices.into_iter().map(|slice| SliceMeta {
            name: slice.name,
            contract: Some(contract_meta(&slice.contract)),
            guest_tsc: slice.tsc,
        });
        Meta {
            label: self.ready.label,
            run: self.ready.policy.name().to_owned(),
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
