//! Stage 5, GPU: from the schedule's grant to the fence.
//!
//! [`Gpu`] is what the dispatcher drives: it takes validated command streams for slices and tells what
//! became of them as [`Event`]s. Nothing of a graphics API shows here.
//!
//! * [`model`]: service times in the caller's clock; draws nothing.
//! * [`wgpu`]: real rendering through Vulkan, each slice in a process of its own that can be killed.

use beamline_abi::frame::MAX_LATCH_BYTES;
use beamline_abi::{Generation, Nanos, Reason};
use std::io;
use std::os::fd::BorrowedFd;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub mod model;
#[cfg(feature = "wgpu")]
pub mod wgpu;

pub use crate::mediate::job::Grant;
pub use beamline_latency::Label;
/// Names a job between submit and its completion event.
pub use beamline_sched::Ticket;

/// Identifies one life of one slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SliceKey {
    /// The slice's place among the host's slices.
    pub index: u16,
    /// Which life.
    pub generation: Generation,
}

impl std::fmt::Display for SliceKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "slice {} life {}", self.index, self.generation.0)
    }
}

/// What a slice may hold on the GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SliceLimits {
    /// Bytes of buffers and images.
    pub memory: u64,
    /// Resource IDs are below this; at most [`MAX_RESOURCES`].
    pub max_resources: u32,
}

/// The highest [`SliceLimits::max_resources`].
pub const MAX_RESOURCES: u32 = 65_536;

/// The most jobs of one slice between [`Gpu::submit`] and their [`Event::Done`].
pub const MAX_QUEUED_JOBS: usize = 64;

/// The most setups of one slice between [`Gpu::configure`] and their [`Event::Configured`].
pub const MAX_QUEUED_SETUPS: usize = 64;

/// Guest memory that was read for one `Latch` command when its job was granted.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Latched {
    /// The command's place in the stream, from 0.
    pub command: u16,
    /// How many bytes of `data` count.
    pub len: u16,
    /// The bytes.
    pub data: [u8; MAX_LATCH_BYTES],
}

/// Why the GPU did not take an order.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    /// Nothing is attached under this key.
    #[error("{0} is not attached")]
    NotAttached(SliceKey),
    /// The index is in use by a life that was not detached.
    #[error("{new} cannot be attached: {old} holds its index and was not detached")]
    InUse {
        /// Who wants the index.
        new: SliceKey,
        /// Who has it.
        old: SliceKey,
    },
    /// The limits are not possible.
    #[error("a slice may have {MAX_RESOURCES} resources at most, not {0}")]
    Limits(u32),
    /// Too much is queued; retry after the next event.
    #[error("{0} has too much queued; wait for an event")]
    Busy(SliceKey),
    /// The stream, or its latched data, is longer than the command set allows.
    #[error("{len} bytes with {latched} latched reads are more than one submission may have")]
    TooLong {
        /// Bytes of the stream.
        len: usize,
        /// Latched reads.
        latched: usize,
    },
    /// What executed the slice's work is gone; detach it.
    #[error("the renderer of {0} is gone")]
    Lost(SliceKey),
    /// This backend cannot do that.
    #[error("{0}")]
    Unsupported(&'static str),
    /// The operating system refused.
    #[error("cannot {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Its answer.
        source: io::Error,
    },
}

/// What became of an order.
#[derive(Debug)]
pub enum Event {
    /// The slice can execute work.
    Ready {
        /// Whose it is.
        slice: SliceKey,
        /// The GPU and its driver, for people.
        description: String,
    },
    /// A setup stream is done. Where it failed, nothing of it took effect.
    Configured {
        /// Whose it is.
        slice: SliceKey,
        /// As given to [`Gpu::configure`].
        token: u64,
        /// Why it failed.
        result: Result<(), Reason>,
    },
    /// A job has left the GPU.
    Done {
        /// Whose it is.
        slice: SliceKey,
        /// As given to [`Gpu::submit`].
        ticket: Ticket,
        /// When the GPU began it.
        gpu_start: Nanos,
        /// When the GPU ended it.
        gpu_end: Nanos,
        /// GPU time it used.
        busy: Nanos,
        /// The GPU's clock is not the host's: `gpu_start` and `gpu_end` were placed by host times, which
        /// include the way to the GPU and back.
        estimated: bool,
        /// Why it failed.
        result: Result<(), Reason>,
    },
    /// The image that [`Gpu::capture`] asked for.
    Image {
        /// Whose it is.
        slice: SliceKey,
        /// Pixels; 0 where the slice has presented nothing.
        width: u32,
        /// Pixels; 0 where the slice has presented nothing.
        height: u32,
        /// Rows from the top, 4 bytes per pixel, without padding.
        rgba: Vec<u8>,
    },
    /// What executed the slice's work is gone, and its resources with it. No other event of this life
    /// follows; the caller detaches it.
    Lost {
        /// Whose it was.
        slice: SliceKey,
        /// Why, for people.
        reason: String,
    },
}

/// One GPU, as the thread that schedules it sees it. No call blocks.
pub trait Gpu: Send {
    /// How far the times it tells can be trusted.
    fn label(&self) -> Label;

    /// The GPU and its driver, for people.
    fn describe(&self) -> String;

    /// Starts a life of a slice; [`Event::Ready`] or [`Event::Lost`] follows. Orders may be given at once.
    fn attach(&mut self, slice: SliceKey, limits: SliceLimits) -> Result<(), GpuError>;

    /// Ends a life at once, whatever its jobs are doing, and frees everything it had. Its events end here.
    fn detach(&mut self, slice: SliceKey);

    /// Makes and destroys resources: a validated setup stream. [`Event::Configured`] follows.
    fn configure(&mut self, slice: SliceKey, token: u64, setup: &[u8]) -> Result<(), GpuError>;

    /// Runs a granted job. [`Event::Done`] follows, in the order of submission per slice.
    fn submit(&mut self, now: Nanos, grant: Grant<'_>) -> Result<(), GpuError>;

    /// Hands out what has happened until `now`.
    fn poll(&mut self, now: Nanos, events: &mut dyn FnMut(Event));

    /// When the next event will happen, where the backend decides that itself; `None` where the
    /// descriptors of [`Gpu::register`] tell.
    fn next_event(&self) -> Option<Nanos>;

    /// Names the descriptors that become readable when [`Gpu::poll`] has something to hand out. They stay
    /// the same for the backend's life.
    fn register(&self, poller: &mut dyn FnMut(BorrowedFd<'_>));

    /// Asks for the image presented last; [`Event::Image`] follows. Not for the frame's path.
    fn capture(&mut self, slice: SliceKey) -> Result<(), GpuError>;
}

impl Event {
    /// Whose it is.
    pub fn slice(&self) -> SliceKey {
        match *self {
            Self::Ready { slice, .. }
            | Self::Configured { slice, .. }
            | Self::Done { slice, .. }
            | Self::Image { slice, .. }
            | Self::Lost { slice, .. } => slice,
        }
    }
}
