//! One slice's worker, dispatcher's end and poster, joined by rings. Whoever calls gives them threads, or steps.

use super::beat::{Beat, BeatParts};
use super::dispatcher::{SliceCounters, SliceLink};
use super::display::{Display, DisplaySettings};
use super::message::RING;
use super::poster::{Poster, PosterParts};
use super::worker::{Worker, WorkerParts};
use crate::backend::SliceLimits;
use crate::config::SliceConfig;
use crate::device::eventfd::EventFd;
use crate::device::pacer::{PacerBeat, PacerHandle};
use crate::device::virtio::gpu::GpuHandle;
use crate::vblank::Grid;
use beamline_abi::{Generation, Nanos, SliceId};
use beamline_latency::clock::{Clock, TscMap};
use beamline_latency::recorder::Recorder;
use beamline_latency::stamp::SliceIndex;
use rtrb::RingBuffer;
use rustix::io::Errno;
use std::sync::Arc;

/// What a slice's parts are made from.
pub struct JointParts<'a> {
    /// Its name, its display, its memory and its contract.
    pub config: &'a SliceConfig,
    /// Its place among the host's slices.
    pub index: SliceIndex,
    /// The slice.
    pub slice: SliceId,
    /// Its first life.
    pub generation: Generation,
    /// What its context may use.
    pub limits: SliceLimits,
    /// Offset of its vblanks from the host's grid.
    pub phase: Nanos,
    /// Vblank 0 of the host's grid.
    pub origin: Nanos,
    /// The dispatcher's and the poster's side of its pacer.
    pub pacer: (PacerBeat, PacerHandle),
    /// Its vGPU.
    pub gpu: GpuHandle,
    /// The host's TSC on host time.
    pub tsc: Option<TscMap>,
    /// Host time.
    pub clock: Arc<dyn Clock>,
    /// Wakes the dispatcher.
    pub dispatcher: EventFd,
    /// One for the worker, one for the poster.
    pub recorders: [Recorder; 2],
}

/// A slice's parts.
pub struct Joint {
    /// For the dispatcher. Its `poster` wakes the poster.
    pub link: SliceLink,
    /// Stages 2 and 3.
    pub worker: Worker,
    /// Stage 8.
    pub poster: Poster,
}

/// Joins a slice's parts.
///
/// # Errors
/// The system's, where it has no eventfd left.
pub fn join(parts: JointParts<'_>, display: Display) -> Result<Joint, Errno> {
    let JointParts { config, index, generation, limits, phase, .. } = parts;
    let contract = config.contract;
    let (beat, pacer) = parts.pacer;
    let [of_worker, of_poster] = parts.recorders;
    let (to_dispatcher, work) = RingBuffer::new(RING);
    let (recycle, recycled) = RingBuffer::new(RING);
    let (post, posts) = RingBuffer::new(RING);
    // A queue may hold more requests that need no GPU than submissions may be on their way.
    let (to_poster, answers) = RingBuffer::new(4 * RING);
    let poster_wake = EventFd::new()?;
    let counters = Arc::new(SliceCounters::default());
    let beat = Beat::new(BeatParts { contract, phase, pacer: beat, tsc: parts.tsc });
    let gap = beat.gap();
    let link = SliceLink {
        contract,
        grid: Grid::new(parts.origin, phase, contract.period, parts.clock.now()),
        generation,
        limits,
        memory: Arc::clone(parts.gpu.memory()),
        beat,
        work,
        recycle,
        post,
        poster: poster_wake.clone(),
        counters: Arc::clone(&counters),
    };
    let worker = Worker::new(WorkerParts {
        index,
        device: parts.gpu,
        pacer: Arc::clone(pacer.shared()),
        generation,
        limits,
        display,
        work: to_dispatcher,
        recycle: recycled,
        answers: to_poster,
        dispatcher: parts.dispatcher,
        poster: poster_wake,
        counters,
        recorder: of_worker,
    });
    let poster = Poster::new(PosterParts {
        index,
        slice: parts.slice,
        period: contract.period,
        display: (config.width, config.height),
        limits,
        pacer,
        gap,
        posts,
        answers,
        clock: parts.clock,
        recorder: of_poster,
    });
    Ok(Joint { link, worker, poster })
}

/// A slice's display.
pub fn display(slice: &SliceConfig) -> Display {
    Display::new(DisplaySettings {
        width: slice.width,
        height: slice.height,
        period: slice.contract.period,
        quota: slice.display_memory,
    })
}
