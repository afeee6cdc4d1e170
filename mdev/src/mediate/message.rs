//! What the threads of the path hand to each other: owned messages through bounded rings.
//!
//! worker → dispatcher: [`Work`]. dispatcher → poster: [`Post`]. worker → poster: [`Answered`]. No message
//! is shared, none is borrowed, and a full ring is an answer, not a wait.

use super::beat::Shot;
use super::job::{Job, Validated};
use crate::device::virtio::gpu::Fence;
use crate::device::virtio::queue::{Reply, UsedWriter};
use beamline_abi::virtio_gpu::CONTROL_QUEUE;
use beamline_abi::{Generation, Nanos, Reason};

/// Submissions of one slice that may be on their way at once. Rings hold more than this, so that a
/// message of the path always finds room.
pub const MAX_QUEUED: usize = 32;
/// Entries of every ring between two threads.
pub const RING: usize = 128;
const _: () = assert!(RING >= 3 * MAX_QUEUED);

/// A request that waits for its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Where the answer goes.
    pub reply: Reply,
    /// What the answer repeats.
    pub fence: Fence,
    /// The queue's life: the answer to a queue that was reset since is dropped.
    pub epoch: u64,
    /// The queue it came from.
    pub queue: u8,
    /// Requests of [`Pending::on_timeline`] that had been handed to the dispatcher in this life when this one
    /// came; one that is handed over counts itself. See [`Hold`](super::hold::Hold).
    pub order: u64,
}

impl Pending {
    /// Whether its fence is on the device's own timeline: one that names a context's ring is not, and a
    /// fence on the cursor queue means nothing.
    pub fn on_timeline(&self) -> bool {
        u16::from(self.queue) == CONTROL_QUEUE
            && self.fence.id.is_some()
            && self.fence.ring.is_none()
    }
}

/// From a slice's worker to the dispatcher.
#[derive(Debug)]
pub enum Work {
    /// The guest made a frame context: start a renderer.
    Attach {
        /// The new life of the slice.
        generation: Generation,
        /// Answered when the renderer is ready.
        pending: Pending,
    },
    /// The context is gone: stop the renderer, drop the jobs.
    Detach,
    /// Makes and destroys resources.
    Setup {
        /// The checked stream.
        job: Job<Validated>,
        /// Answered when the resources are ready.
        pending: Pending,
    },
    /// One GPU job of a frame.
    Job {
        /// The checked stream.
        job: Job<Validated>,
        /// Answered when the GPU is done.
        pending: Pending,
        /// When the worker found it: host ns.
        arrival: Nanos,
    },
}

/// From a slice's worker to its poster.
pub enum Answered {
    /// The driver is ready: answers of this life go to this queue. The control queue comes first.
    Queue {
        /// Its number.
        queue: u8,
        /// The poster's half.
        used: UsedWriter,
        /// The queue's life.
        epoch: u64,
    },
    /// A request that needs no GPU.
    Request {
        /// Where the answer goes.
        pending: Pending,
        /// What it says.
        answer: Short,
        /// Since when it waits for a vblank, if it does.
        flushed: Option<Nanos>,
    },
}

/// An answer that the poster can write by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Short {
    /// A header of this type.
    Plain(u32),
    /// The one display.
    DisplayInfo,
    /// The one display's EDID.
    Edid,
    /// The frame capset's name.
    CapsetInfo,
    /// The frame capset, as of this life of the slice.
    Capset(Generation),
}

/// From the dispatcher to a slice's poster.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Post {
    /// The work of this request is over.
    Complete {
        /// Whose.
        pending: Pending,
        /// How it ended.
        result: Result<(), Reason>,
    },
    /// A vblank has come that has work for the poster.
    Vblank {
        /// Which one.
        shot: Shot,
        /// Its interrupt has not been sent.
        signal: bool,
    },
    /// The timing page has another contract, or its vblanks are on their way to another phase.
    Contract,
    /// The slice's renderer is gone.
    Lost {
        /// Why.
        reason: Reason,
        /// The life that it was the renderer of.
        generation: Generation,
    },
}
