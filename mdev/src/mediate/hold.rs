//! Stage 8, posted interrupt: answers that wait for a vblank, and those that must not overtake them.
//!
//! A flush with a fence is answered at the next vblank: that is what paces a guest with a stock driver.
//! Fences that name no ring of a context are one timeline, in the order in which the requests came: a
//! driver that sees fence N takes all earlier ones for signalled (`virtio_gpu_fence_event_process` of
//! Linux does). So
//!
//! * no answer on the timeline leaves before a flush that came earlier, and
//! * no answer that the worker gave at once leaves before the work of an earlier request is over.
//!
//! Answers to work that ran on the GPU keep the order in which it ended, as without a flush. Answers
//! without a fence, and those on a context's ring, never wait.
//!
//! ```text
//!  worker's answer ──► first, no flush, no earlier work? ──► guest
//!                              │ no                            ▲
//!                              ▼                               │ from the front, while its vblank has come
//!                           waiting, in order of arrival ──────┘ and the work before it is over
//!                              ▲ an earlier one waits
//!  dispatcher's answer ────────┴──► else ──────────────────► guest
//! ```

use super::message::{Pending, Short};
use crate::device::virtio::queue::MAX_QUEUE_SIZE;
use beamline_abi::Nanos;
use std::collections::VecDeque;

/// Answers that may wait: as many as a queue has descriptors, so a driver that keeps virtio's rules has no
/// more. With one more the oldest leaves, whatever it waits for.
pub const MAX_HELD: usize = MAX_QUEUE_SIZE as usize;

/// An answer that waits.
#[derive(Clone, Copy, Debug)]
struct Held {
    pending: Pending,
    answer: Short,
    /// Since when it waits for a vblank.
    flushed: Option<Nanos>,
    /// Earlier requests whose work is not over.
    missing: u64,
    /// The dispatcher answered it: it waits behind others, and no other waits for it.
    work: bool,
}

impl Held {
    fn free(&self) -> bool {
        self.flushed.is_none() && self.missing == 0
    }
}

/// The answers of one queue's life that wait.
#[derive(Debug)]
pub struct Hold {
    waiting: VecDeque<Held>,
    /// Requests on the timeline whose work is over.
    over: u64,
}

impl Default for Hold {
    fn default() -> Self {
        Self { waiting: VecDeque::with_capacity(MAX_HELD), over: 0 }
    }
}

impl Hold {
    /// Forgets everything: a new life of the queues.
    pub fn clear(&mut self) {
        self.waiting.clear();
        self.over = 0;
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// An answer that the worker gave, a flush where `flushed` says since when. What may leave now, if
    /// anything may: this one, or where too many wait the oldest.
    #[must_use]
    pub fn answer(
        &mut self,
        pending: Pending,
        answer: Short,
        flushed: Option<Nanos>,
    ) -> Option<(Pending, Short)> {
        if !pending.on_timeline() {
            return Some((pending, answer));
        }
        let missing = pending.order.saturating_sub(self.over);
        let held = Held { pending, answer, flushed, missing, work: false };
        if held.free() && self.waiting.is_empty() {
            return Some((pending, answer));
        }
        self.push(held)
    }

    /// The work of a request is over; as for [`Hold::answer`]. [`Hold::take`] may have more afterwards.
    #[must_use]
    pub fn work(&mut self, pending: Pending, answer: Short) -> Option<(Pending, Short)> {
        if !pending.on_timeline() {
            return Some((pending, answer));
        }
        self.over += 1;
        let mut behind = false;
        for held in self.waiting.iter_mut().filter(|held| !held.work) {
            if held.pending.order >= pending.order {
                held.missing = held.missing.saturating_sub(1);
            } else {
                behind = true;
            }
        }
        if !behind {
            return Some((pending, answer));
        }
        self.push(Held { pending, answer, flushed: None, missing: 0, work: true })
    }

    /// A vblank has come: flushes from before it need not wait any more. [`Hold::take`] hands them out.
    pub fn vblank(&mut self, time: Nanos) {
        for held in &mut self.waiting {
            held.flushed = held.flushed.filter(|since| *since > time);
        }
    }

    /// The next answer that may leave.
    #[must_use]
    pub fn take(&mut self) -> Option<(Pending, Short)> {
        self.waiting.pop_front_if(|held| held.free()).map(|held| (held.pending, held.answer))
    }

    fn push(&mut self, held: Held) -> Option<(Pending, Short)> {
        let oldest = if self.waiting.len() < MAX_HELD { None } else { self.waiting.pop_front() };
        self.waiting.push_back(held);
        oldest.map(|held| (held.pending, held.answer))
    }
}

#[cfg(test)]
#[path = "hold_tests.rs"]
mod tests;
