//! Stage 8, posted interrupt: from the dispatcher to eventfd → irqfd → guest. One per slice.
//!
//! Whatever a peer can make slow is touched here and nowhere else: it may hold up a write to its interrupt
//! eventfds. A poster that is held up delays its own slice alone, and not its vblanks, which come from
//! [`beat`](super::beat). [`Poster::step`] takes what the dispatcher and the worker posted, writes used
//! rings, signals, and reads the guest's markers (stages 1 and 9).

use super::beat::{Gap, Shot};
use super::display::edid::Edid;
use super::fence;
use super::hold::Hold;
use super::message::{Answered, Pending, Post, Short};
use crate::backend::SliceLimits;
use crate::device::pacer::{PacerHandle, SliceState};
use crate::device::virtio::gpu::{Answer, EdidAnswer};
use crate::device::virtio::queue::{QueueError, UsedWriter};
use beamline_abi::frame::{FrameCapset, MAX_SUBMIT_BYTES, VERSION};
use beamline_abi::pacer::{MarkerKind, vector};
use beamline_abi::virtio_gpu::{CONTROL_QUEUE, QUEUES};
use beamline_abi::{FrameId, Generation, Reason, SliceId};
use beamline_latency::clock::Clock;
use beamline_latency::recorder::Recorder;
use beamline_latency::stamp::{JobKey, SliceIndex, Stamp};
use beamline_sched::Period;
use rtrb::Consumer;
use std::sync::Arc;
use zerocopy::IntoBytes;

/// What a poster is made of.
pub struct PosterParts {
    /// The slice's place among the host's slices.
    pub index: SliceIndex,
    /// The slice.
    pub slice: SliceId,
    /// Its refresh period, for the display's EDID.
    pub period: Period,
    /// Scanout size in pixels.
    pub display: (u32, u32),
    /// What its context may use.
    pub limits: SliceLimits,
    /// Vectors and markers.
    pub pacer: PacerHandle,
    /// When its vblanks come.
    pub gap: Arc<Gap>,
    /// From the dispatcher.
    pub posts: Consumer<Post>,
    /// From the worker.
    pub answers: Consumer<Answered>,
    /// Host time.
    pub clock: Arc<dyn Clock>,
    /// Stamps of stages 1, 8 and 9.
    pub recorder: Recorder,
}

/// Answers one slice's guest.
pub struct Poster {
    parts: PosterParts,
    edid: Edid,
    /// By number, of one life.
    queues: [Option<UsedWriter>; QUEUES as usize],
    epoch: u64,
    /// Answers that wait for a vblank.
    hold: Hold,
    /// Resets of the pacer that were followed.
    resets: u32,
    /// Answers were written that the guest wants an interrupt for, by queue.
    interrupt: [bool; QUEUES as usize],
}

impl Poster {
    /// A poster whose guest has not come yet.
    pub fn new(parts: PosterParts) -> Self {
        let (width, height) = parts.display;
        Self {
            edid: Edid::new(width, height, parts.period),
            parts,
            queues: [None, None],
            epoch: 0,
            hold: Hold::default(),
            resets: 0,
            interrupt: [false; QUEUES as usize],
        }
    }

    /// The pacer, whose wake-up the poster's thread waits for.
    pub fn pacer(&self) -> &PacerHandle {
        &self.parts.pacer
    }

    /// Takes what has been posted.
    pub fn step(&mut self) {
        self.follow_resets();
        // Counted first: the queue that a completion belongs to was announced before it.
        let posted = self.parts.posts.slots();
        while let Ok(answered) = self.parts.answers.pop() {
            match answered {
                Answered::Queue { queue, used, epoch } => self.take_queue(queue, used, epoch),
                Answered::Request { pending, answer, flushed } => {
                    if pending.epoch == self.epoch
                        && let Some((pending, answer)) = self.hold.answer(pending, answer, flushed)
                    {
                        self.say(&pending, answer);
                    }
                }
            }
        }
        for _ in 0..posted {
            let Ok(post) = self.parts.posts.pop() else { break };
            match post {
                Post::Complete { pending, result } => {
                    if let Err(reason) = result {
                        self.parts.pacer.shared().set_reason(reason);
                    }
                    if pending.epoch == self.epoch {
                        let answer = Short::Plain(fence::outcome(result));
                        if let Some((pending, answer)) = self.hold.work(pending, answer) {
                            self.say(&pending, answer);
                        }
                        self.release();
                    }
                }
                Post::Vblank { shot, signal } => self.vblank(shot, signal),
                // Where nobody listens, the guest sees it when it next looks at the page.
                Post::Contract => {
                    let _ = self.parts.pacer.signal(vector::CONTRACT);
                }
                Post::Lost { reason, generation } => self.lost(reason, generation),
            }
        }
        self.release_held();
        self.flush();
        self.markers();
        for vector in self.parts.pacer.shared().take_notices() {
            // The register that it is about says the same to a guest that nobody can interrupt.
            let _ = self.parts.pacer.signal(vector);
        }
    }

    /// Answers what waited for a vblank that has come. A vblank that comes just now finds the word that
    /// answers wait, and has the poster woken again.
    fn release_held(&mut self) {
        if self.hold.is_empty() {
            self.parts.gap.hold(false);
            return;
        }
        self.parts.gap.hold(true);
        self.hold.vblank(self.parts.gap.latest());
        self.release();
        self.parts.gap.hold(!self.hold.is_empty());
    }

    /// A guest that comes next finds nothing of the one before it.
    fn follow_resets(&mut self) {
        let resets = self.parts.pacer.shared().resets();
        if std::mem::replace(&mut self.resets, resets) != resets {
            self.parts.pacer.shared().forget_faults();
        }
    }

    /// A new life begins with its control queue; what waited in the one before it is of no use.
    fn take_queue(&mut self, queue: u8, used: UsedWriter, epoch: u64) {
        if u16::from(queue) == CONTROL_QUEUE {
            self.queues = [None, None];
            self.hold.clear();
            self.epoch = epoch;
        }
        if let Some(place) = self.queues.get_mut(usize::from(queue)) {
            *place = Some(used);
        }
    }

    /// Answers what need not wait any more.
    fn release(&mut self) {
        while let Some((pending, answer)) = self.hold.take() {
            self.say(&pending, answer);
        }
    }

    fn say(&mut self, pending: &Pending, answer: Short) {
        let number = usize::from(pending.queue);
        let Some(Some(queue)) = self.queues.get_mut(number) else { return };
        if self.epoch != pending.epoch {
            return;
        }
        let fence = &pending.fence;
        let answer = match answer {
            Short::Plain(type_) => Answer::plain(fence, type_),
            Short::DisplayInfo => {
                Answer::display_info(fence, self.parts.display.0, self.parts.display.1)
            }
            Short::Edid => {
                let answer = EdidAnswer::new(fence, self.edid.as_bytes());
                let result = queue.complete(&pending.reply, answer.as_bytes());
                return self.said(number, result);
            }
            Short::CapsetInfo => Answer::capset_info(fence),
            Short::Capset(generation) => Answer::capset(fence, &capset(&self.parts, generation)),
        };
        let result = queue.complete(&pending.reply, answer.as_bytes());
        self.said(number, result);
    }

    fn said(&mut self, number: usize, result: Result<bool, QueueError>) {
        match result {
            Ok(wanted) => self.interrupt[number] |= wanted,
            // Bus mastering is off: the driver has taken its memory away before its answers came.
            Err(QueueError::Paused) => {}
            Err(QueueError::Closed) => self.queues[number] = None,
            Err(error) => {
                tracing::warn!(slice = self.parts.index.0, %error, "the guest's used ring is out of reach");
                self.queues[number] = None;
            }
        }
    }

    /// One interrupt for all answers since the last.
    fn flush(&mut self) {
        for (queue, wanted) in self.queues.iter().zip(&mut self.interrupt) {
            if std::mem::take(wanted)
                && let Some(queue) = queue
            {
                // A peer whose eventfd cannot be written has itself to blame; its guest polls or hangs.
                let _ = queue.interrupt();
            }
        }
    }

    fn vblank(&mut self, shot: Shot, signal: bool) {
        let Shot { slice, generation, seq, frame } = shot;
        if signal {
            let began = self.parts.clock.now();
            if self.parts.pacer.signal(vector::VBLANK) == Ok(true) {
                let times = (began, self.parts.clock.now());
                self.parts.recorder.record(Stamp::posted(slice, generation, frame, seq, times));
            }
        }
    }

    /// What the guest has stamped since.
    fn markers(&mut self) {
        let PosterParts { index, pacer, recorder, .. } = &mut self.parts;
        let generation = pacer.shared().generation();
        pacer.markers().drain(|kind, marker| {
            recorder.record(match kind {
                MarkerKind::Submit => {
                    let key = JobKey {
                        slice: *index,
                        generation,
                        frame: FrameId(marker.id),
                        job: marker.job,
                        ..JobKey::default()
                    };
                    Stamp::submit(key, marker.tsc)
                }
                MarkerKind::Vblank => Stamp::guest(*index, generation, marker.id, marker.tsc),
            });
        });
    }

    fn lost(&mut self, reason: Reason, generation: Generation) {
        let shared = self.parts.pacer.shared();
        // A guest that polls may have made a new context by now.
        if shared.generation() != generation {
            return;
        }
        shared.set_reason(reason);
        shared.set_state(SliceState::Lost);
        // The guest looks at STATUS; where nobody listens it will see it later.
        let _ = self.parts.pacer.signal(vector::CONTRACT);
    }
}

fn capset(parts: &PosterParts, generation: Generation) -> FrameCapset {
    FrameCapset {
        version: VERSION.into(),
        max_resources: parts.limits.max_resources,
        memory: parts.limits.memory,
        max_queued_jobs: super::message::MAX_QUEUED as u32,
        max_submit_bytes: MAX_SUBMIT_BYTES as u32,
        slice_id: parts.slice.0,
        generation: generation.0,
        reserved: 0,
    }
}
