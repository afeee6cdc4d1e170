//! Example workloads: a VR application, a game and a background load, each with a cost that can be set.
//!
//! A [`Player`] is the frame loop of such a guest, as a state machine over a [`Transport`]: the freestanding
//! image runs it between interrupts, and a test runs the same code in its own process.
//!
//! ```text
//!   new ──start()──▶ running ◀──on_host_request()──▶ paused
//!                       │ on_wake()
//!                       ▼ `frames` reached and nothing in flight
//!                     done
//! ```

mod flood;
mod game;
mod params;
mod vr;

pub use params::{Kind, Params, ParamsError};

use crate::gpu::{CommandError, Commands, Gpu, GpuError, JobPlace, SUBMIT_BYTES};
use crate::pacer::{Pacer, PacerError, VblankPoll};
use crate::pci::MsiTarget;
use crate::transport::{Arena, ArenaFull, Slot, Transport};
use beamline_abi::pacer::{status, vector};
use beamline_abi::{FrameId, JobIndex, Reason, SliceId};

/// Most frames that a scene may have in flight.
pub const MAX_DEPTH: usize = 8;
/// Most vblanks or completions that one wake looks at before it returns to its caller.
const MAX_PER_WAKE: usize = 64;

/// Why a scene cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SceneError {
    /// The pacer does not work.
    #[error("the pacer does not work")]
    Pacer(#[from] PacerError),
    /// The vGPU does not work.
    #[error("the vGPU does not work")]
    Gpu(#[from] GpuError),
    /// A command stream cannot be built.
    #[error("a command stream cannot be built")]
    Commands(#[from] CommandError),
    /// No memory for the pose.
    #[error("the pose does not fit the DMA arena")]
    Arena(#[from] ArenaFull),
    /// Pacer and vGPU belong to different slices.
    #[error(
        "the pacer belongs to slice {pacer}, the vGPU to slice {gpu}: attach two functions of one slice"
    )]
    Unpaired {
        /// The pacer's.
        pacer: SliceId,
        /// The vGPU's.
        gpu: SliceId,
    },
    /// The host takes fewer jobs than one frame has.
    #[error("the host queues {queued} jobs, but one frame of this scene has {jobs}")]
    Queue {
        /// What the host takes.
        queued: u32,
        /// What the frame needs.
        jobs: u16,
    },
    /// The slice lost its GPU contexts.
    #[error("the slice lost its GPU contexts, reason {reason:?}: reset it to go on")]
    Lost {
        /// The host's reason.
        reason: Option<Reason>,
    },
}

/// What a wake has led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Progress {
    /// Wait for the next interrupt.
    Wait,
    /// There may be more to do: call again before waiting.
    Again,
    /// All frames are done.
    Done,
}

/// What a scene has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Frames submitted.
    pub submitted: u64,
    /// Frames whose jobs all ended well.
    pub completed: u64,
    /// Frames of which at least one job failed or was dropped.
    pub failed: u64,
    /// Vblanks whose frame was not submitted, because too many were in flight.
    pub skipped: u64,
    /// Vblanks seen.
    pub vblanks: u64,
    /// Vblanks that passed without a wake.
    pub missed_vblanks: u64,
    /// The answer to the latest job that failed, see [`beamline_abi::virtio_gpu::cmd`].
    pub last_error: u32,
}

/// A frame whose jobs the host is not done with.
#[derive(Clone, Copy, Debug)]
struct Flight {
    frame: FrameId,
    left: u16,
    failed: bool,
}

/// What differs between scenes.
#[derive(Debug)]
enum Scene {
    Vr(vr::Vr),
    Game(game::Game),
    Flood(flood::Flood),
}

/// What a scene knows when it records a job.
#[derive(Clone, Copy, Debug)]
struct Recording {
    frame: FrameId,
    job: u16,
}

/// The frame loop of one guest: a slice's pacer and vGPU, and a scene to draw.
#[derive(Debug)]
pub struct Player {
    gpu: Gpu,
    pacer: Pacer,
    scene: Scene,
    params: Params,
    scratch: [u8; SUBMIT_BYTES],
    flights: [Option<Flight>; MAX_DEPTH],
    depth: usize,
    paused: bool,
    next_frame: u64,
    stats: Stats,
}

/// Where a player's interrupts go.
#[derive(Clone, Copy, Debug)]
pub struct Targets {
    /// The pacer's vectors, see [`vector`].
    pub pacer: [MsiTarget; vector::COUNT as usize],
    /// The vGPU's control queue.
    pub gpu: MsiTarget,
}

impl Player {
    /// Attaches to the first slice of this machine, and checks that the scene fits it.
    pub fn new<T: Transport>(
        t: &mut T,
        arena: &mut Arena,
        params: Params,
        targets: &Targets,
    ) -> Result<Self, SceneError> {
        let pacer = Pacer::attach(t, Slot(0), &targets.pacer)?;
        let gpu = Gpu::attach(t, arena, Slot(0), targets.gpu)?;
        let of_gpu = SliceId(gpu.capset().slice_id);
        if of_gpu != pacer.slice() {
            return Err(SceneError::Unpaired { pacer: pacer.slice(), gpu: of_gpu });
        }
        let scene = match params.kind {
            Kind::Vr => Scene::Vr(vr::Vr::new(t, arena)?),
            Kind::Game => Scene::Game(game::Game),
            Kind::Flood => Scene::Flood(flood::Flood),
        };
        let (jobs, queued) = (params.kind.jobs(), gpu.capset().max_queued_jobs);
        let fits = queued as usize / usize::from(jobs);
        if fits == 0 {
            return Err(SceneError::Queue { queued, jobs });
        }
        Ok(Self {
            depth: fits.min(params.depth),
            gpu,
            pacer,
            scene,
            params,
            scratch: [0; SUBMIT_BYTES],
            flights: [None; MAX_DEPTH],
            paused: false,
            next_frame: 1,
            stats: Stats::default(),
        })
    }

    /// Makes the scene's resources, waits for them, asks for vblanks, and looks at what the host asks for.
    pub fn start<T: Transport>(&mut self, t: &mut T) -> Result<(), SceneError> {
        for step in 0.. {
            let mut commands = Commands::new(&mut self.scratch);
            let more = match &self.scene {
                Scene::Vr(s) => s.setup(step, &self.params, &mut commands),
                Scene::Game(s) => s.setup(step, &self.params, &mut commands),
                Scene::Flood(s) => s.setup(step, &self.params, &mut commands),
            };
            if !more {
                break;
            }
            let submission = commands.finish_setup()?;
            self.gpu.setup(t, &mut self.pacer.markers, &submission)?;
        }
        self.pacer.enable(t);
        // The host may have asked before there was anybody to interrupt.
        self.on_host_request(t)
    }

    /// Takes what has come since the last wake, and submits what is due.
    pub fn on_wake<T: Transport>(&mut self, t: &mut T) -> Result<Progress, SceneError> {
        let drained = self.take_completions(t)?;
        if let Scene::Vr(vr) = &mut self.scene {
            vr.update_pose(t);
        }
        let mut busy = !drained;
        match self.pacer.poll_vblank(t) {
            VblankPoll::New(vblank) => {
                self.stats.vblanks += 1;
                self.stats.missed_vblanks += vblank.missed;
                if self.params.kind.is_paced() && self.wants_frame() {
                    if self.has_room() {
                        self.submit_frame(t)?;
                        self.gpu.kick(t);
                    } else {
                        self.stats.skipped += 1;
                    }
                }
            }
            VblankPoll::Busy => busy = true,
            VblankPoll::None => {}
        }
        if !self.params.kind.is_paced() {
            self.fill_queue(t)?;
        }
        let idle = self.flights.iter().all(Option::is_none);
        Ok(match (idle && self.is_last_submitted(), busy) {
            (true, _) => Progress::Done,
            (false, true) => Progress::Again,
            (false, false) => Progress::Wait,
        })
    }

    /// Looks at what the host asks for. To be called when the pacer's vectors 1 or 2 have fired.
    pub fn on_host_request<T: Transport>(&mut self, t: &mut T) -> Result<(), SceneError> {
        match self.pacer.status(t) {
            status::LOST => Err(SceneError::Lost { reason: self.pacer.reason(t) }),
            now => {
                self.paused = now == status::QUIESCE;
                Ok(())
            }
        }
    }

    /// What was counted so far.
    pub const fn stats(&self) -> &Stats {
        &self.stats
    }

    /// The pacer.
    pub const fn pacer(&self) -> &Pacer {
        &self.pacer
    }

    /// The pacer, to ask for another contract.
    pub const fn pacer_mut(&mut self) -> &mut Pacer {
        &mut self.pacer
    }

    /// The vGPU.
    pub const fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Whether all that could be taken was taken.
    fn take_completions<T: Transport>(&mut self, t: &mut T) -> Result<bool, SceneError> {
        for _ in 0..MAX_PER_WAKE {
            let Some(done) = self.gpu.poll(t)? else { return Ok(true) };
            if !done.is_ok() {
                self.stats.last_error = done.response;
            }
            let mut flights = self.flights.iter_mut();
            let of_frame = |f: &&mut Option<Flight>| f.is_some_and(|f| f.frame == done.frame);
            let Some(place) = flights.find(of_frame) else { continue };
            let Some(flight) = place else { continue };
            flight.failed |= !done.is_ok();
            flight.left -= 1;
            if flight.left > 0 {
                continue;
            }
            if flight.failed {
                self.stats.failed += 1;
            } else {
                self.stats.completed += 1;
            }
            *place = None;
        }
        Ok(false)
    }

    fn fill_queue<T: Transport>(&mut self, t: &mut T) -> Result<(), SceneError> {
        let before = self.stats.submitted;
        while self.wants_frame() && self.has_room() {
            self.submit_frame(t)?;
        }
        if self.stats.submitted != before {
            self.gpu.kick(t);
        }
        Ok(())
    }

    const fn wants_frame(&self) -> bool {
        !self.paused && !self.is_last_submitted()
    }

    const fn is_last_submitted(&self) -> bool {
        self.params.frames != 0 && self.stats.submitted >= self.params.frames
    }

    fn has_room(&self) -> bool {
        self.flights.iter().flatten().count() < self.depth
            && self.gpu.free_slots() >= usize::from(self.params.kind.jobs())
    }

    /// Submits every job of the next frame. The caller has checked that there is room.
    fn submit_frame<T: Transport>(&mut self, t: &mut T) -> Result<(), SceneError> {
        let frame = FrameId(self.next_frame);
        let jobs = self.params.kind.jobs();
        for job in 0..jobs {
            let mut commands = Commands::new(&mut self.scratch);
            let at = Recording { frame, job };
            let flags = match &self.scene {
                Scene::Vr(s) => s.record(at, &self.params, &mut commands),
                Scene::Game(s) => s.record(at, &self.params, &mut commands),
                Scene::Flood(s) => s.record(at, &self.params, &mut commands),
            };
            let place = JobPlace { frame, job: JobIndex(job), jobs, flags };
            let submission = commands.finish_job(place)?;
            self.gpu.submit(t, &mut self.pacer.markers, &submission)?;
        }
        if let Some(free) = self.flights.iter_mut().find(|flight| flight.is_none()) {
            *free = Some(Flight { frame, left: jobs, failed: false });
        }
        self.next_frame += 1;
        self.stats.submitted += 1;
        Ok(())
    }
}

/// Workgroups of 8×8 that cover an image.
const fn groups(width: u32, height: u32) -> [u32; 3] {
    [width.div_ceil(8), height.div_ceil(8), 1]
}
