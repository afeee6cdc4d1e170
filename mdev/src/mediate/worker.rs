//! Stages 2 and 3, doorbell and mediation: from device/virtio to mediate/dispatcher. One per slice.
//!
//! [`Worker::step`] takes what the guest put into its queues, copies each request once, answers what needs
//! no GPU, and hands checked submissions to the dispatcher. It never waits for either side.

mod shown;

use super::dispatcher::SliceCounters;
use super::display::Display;
use super::fence;
use super::job::{Job, Rejected};
use super::limit::Bucket;
use super::message::{Answered, MAX_QUEUED, Pending, Short, Work};
use super::resources::Resources;
use crate::backend::SliceLimits;
use crate::device::eventfd::EventFd;
use crate::device::pacer::{PacerShared, SliceState};
use crate::device::virtio::gpu::{self, Fence, GpuHandle, REQUEST_HEAD, Request, SUBMIT_PAYLOAD};
use crate::device::virtio::queue::{AvailReader, Chain, QueueError};
use beamline_abi::frame::{CAPSET_ID, MAX_SUBMIT_BYTES, SubmitHeader, SubmitKind, submit_flag};
use beamline_abi::virtio_gpu::{CONTROL_QUEUE, CURSOR_QUEUE, QUEUES, cmd, feature};
use beamline_abi::{Generation, Nanos, Reason};
use beamline_latency::clock::Clock;
use beamline_latency::recorder::Recorder;
use beamline_latency::stamp::{JobKey, SliceIndex, Stamp};
use rtrb::{Consumer, Producer};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Requests a slice may make: at once, and one more every so often. A frame takes a handful; a guest that
/// makes this many costs the host's CPU a small share, and waits.
const REQUESTS: Bucket = Bucket::new(256, Nanos::from_micros(100));
/// Contexts a slice may make: each one starts a process.
const CONTEXTS: Bucket = Bucket::new(8, Nanos::from_millis(50));
/// GPU memory that a slice may have cleared for new resources, in thousandths of its quota: all of it at
/// once, and again in a second. Clearing is GPU work that no grant pays for.
const CLEARS: Bucket = Bucket::new(1_000, Nanos::from_millis(1));
/// Requests that one step takes at most, so that the thread looks at its other duties in between.
const BURST: usize = 32;

/// What a worker is made of.
pub struct WorkerParts {
    /// The slice's place among the host's slices.
    pub index: SliceIndex,
    /// The vGPU's queues and memory.
    pub device: GpuHandle,
    /// Where refusals are shown to the guest.
    pub pacer: Arc<PacerShared>,
    /// Its first life, as in the dispatcher's link and the pacer.
    pub generation: Generation,
    /// What its context may use.
    pub limits: SliceLimits,
    /// What it shows without a GPU.
    pub display: Display,
    /// To the dispatcher.
    pub work: Producer<Work>,
    /// Used buffers, from the dispatcher.
    pub recycle: Consumer<Vec<u8>>,
    /// To the poster.
    pub answers: Producer<Answered>,
    /// Wakes the dispatcher.
    pub dispatcher: EventFd,
    /// Wakes the poster.
    pub poster: EventFd,
    /// What the slice has done.
    pub counters: Arc<SliceCounters>,
    /// Stamps of stages 2 and 3.
    pub recorder: Recorder,
}

/// Decodes and validates one slice's requests.
pub struct Worker {
    parts: WorkerParts,
    /// By number; without a control queue there is none.
    queues: [Option<AvailReader>; QUEUES as usize],
    epoch: u64,
    /// The features agreed on.
    features: u64,
    /// Requests handed to the dispatcher whose fence is on the device's timeline.
    handed: u64,
    generation: Generation,
    /// The guest's ID of the frame context.
    context: Option<u32>,
    resources: Resources,
    requests: Bucket,
    contexts: Bucket,
    clears: Bucket,
    copies: Bucket,
    /// What was copied and not paid for yet.
    owed: u64,
    /// A buffer whose submission was refused.
    spare: Vec<u8>,
    worked: bool,
    answered: bool,
}

/// What the worker's thread does next.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Wait for the doorbell.
    Wait,
    /// There is more: step again.
    Again,
    /// The guest has used up its allowance: step again at this time, whatever the doorbell does.
    Throttled(Nanos),
}

impl Worker {
    /// A worker whose guest has not come yet.
    pub fn new(parts: WorkerParts) -> Self {
        let resources = Resources::new(parts.limits.max_resources, parts.limits.memory);
        Self {
            requests: REQUESTS,
            contexts: CONTEXTS,
            clears: CLEARS,
            copies: parts.display.settings().allowance(),
            owed: 0,
            spare: Vec::new(),
            generation: parts.generation,
            parts,
            queues: [None, None],
            epoch: 0,
            features: 0,
            handed: 0,
            context: None,
            resources,
            worked: false,
            answered: false,
        }
    }

    /// The device whose doorbell and wake-up the worker's thread waits for.
    pub fn device(&self) -> &GpuHandle {
        &self.parts.device
    }

    /// Takes what has come. What is signalled from here on is for the next step. `clock` is host time.
    pub fn step(&mut self, clock: impl Clock) -> Turn {
        self.follow_device();
        let turn = self.take_chains(&clock);
        if std::mem::take(&mut self.worked) {
            self.parts.dispatcher.signal();
        }
        if std::mem::take(&mut self.answered) {
            self.parts.poster.signal();
        }
        turn
    }

    /// Counts doorbells; whether there were any.
    pub fn count_doorbells(&self, rung: u64) -> bool {
        if rung > 0 {
            self.parts.counters.doorbells.fetch_add(rung, Ordering::Relaxed);
        }
        rung > 0
    }

    /// The driver became ready, or the device was reset.
    fn follow_device(&mut self) {
        let queues = self.parts.device.take_queues();
        let dead = self.queues.iter().flatten().any(AvailReader::is_closed);
        if dead || queues.is_some() {
            self.end();
        }
        let Some(mut queues) = queues else { return };
        let Some(control) = queues.take(CONTROL_QUEUE) else { return };
        let epoch = queues.epoch;
        (self.epoch, self.features, self.handed) = (epoch, queues.features, 0);
        self.parts.display.reset(self.features & feature::RESOURCE_BLOB != 0);
        for (number, queue) in
            [(CONTROL_QUEUE, Some(control)), (CURSOR_QUEUE, queues.take(CURSOR_QUEUE))]
        {
            if let Some(queue) = queue {
                self.queues[usize::from(number)] = Some(queue.avail);
                self.answer(Answered::Queue { queue: number as u8, used: queue.used, epoch });
            }
        }
    }

    fn take_chains(&mut self, clock: &impl Clock) -> Turn {
        for _ in 0..BURST {
            // What the last request had copied is paid late, so that the first costs no time.
            if let Err(until) = self.pay(clock.now()) {
                return Turn::Throttled(until);
            }
            match self.next_chain() {
                Ok(Some((queue, chain))) => {
                    // Not before: a vblank that its guest saw before it asked does not answer it.
                    let now = clock.now();
                    if self.request(queue, &chain, now).is_err() {
                        return Turn::Wait;
                    }
                    // One request late, so that looking at an empty queue costs nothing.
                    if let Err(until) = self.requests.take(now, 1) {
                        return Turn::Throttled(until);
                    }
                }
                Ok(None) | Err(QueueError::Paused | QueueError::Closed) => return Turn::Wait,
                Err(error) => {
                    self.guest_fault(&error);
                    return Turn::Wait;
                }
            }
        }
        Turn::Again
    }

    /// The next request and its queue: the cursor's where the control queue is empty.
    fn next_chain(&mut self) -> Result<Option<(u8, Chain)>, QueueError> {
        for (number, queue) in self.queues.iter_mut().enumerate() {
            if let Some(queue) = queue
                && let Some(chain) = queue.pop()?
            {
                return Ok(Some((number as u8, chain)));
            }
        }
        Ok(None)
    }

    /// The guest broke the queue: it has to reset the device.
    fn guest_fault(&mut self, error: &QueueError) {
        // A guest can repeat this as fast as it resets its device, so it is not for the log of every host.
        tracing::debug!(slice = self.parts.index.0, %error, "the guest's queue is broken; it has to reset the device");
        self.give_up();
    }

    /// Ends the queues and all that came through them.
    fn end(&mut self) {
        self.queues = [None, None];
        self.end_context();
        self.parts.display.reset(false);
    }

    /// Ends the queues; the driver is told to reset the device.
    fn give_up(&mut self) {
        self.end();
        // The guest that cannot be told is the one at fault.
        let _ = self.parts.device.fail();
    }

    /// One request. An error: the queue is gone.
    fn request(&mut self, queue: u8, chain: &Chain, now: Nanos) -> Result<(), ()> {
        let mut head = [0; REQUEST_HEAD];
        let len = chain.readable_len().min(REQUEST_HEAD as u64) as usize;
        self.read(queue, chain, 0, &mut head[..len])?;
        let (fence, request) = match gpu::decode(&head[..len]) {
            Ok(decoded) => decoded,
            Err(short) => {
                self.reject(self.pending(queue, chain, short.fence), Reason::Malformed);
                return Ok(());
            }
        };
        let pending = self.pending(queue, chain, fence);
        if u16::from(queue) == CURSOR_QUEUE {
            return self.cursor_request(chain, pending, &request, now);
        }
        let contexts = self.features & feature::VIRGL != 0;
        match request {
            Request::GetDisplayInfo => self.say(pending, Short::DisplayInfo),
            Request::GetEdid { scanout: 0 } => self.say(pending, Short::Edid),
            Request::GetEdid { .. } => {
                self.say(pending, Short::Plain(cmd::RESP_ERR_INVALID_SCANOUT_ID));
            }
            Request::Show(shown) => return self.show(chain, pending, &shown, now),
            Request::GetCapsetInfo { index: 0 } if contexts => self.say(pending, Short::CapsetInfo),
            Request::GetCapset { id: CAPSET_ID, .. } if contexts => {
                self.say(pending, Short::Capset(self.generation));
            }
            Request::GetCapsetInfo { .. } | Request::GetCapset { .. } => {
                self.say(pending, Short::Plain(cmd::RESP_ERR_INVALID_PARAMETER));
            }
            Request::CtxCreate { capset, .. } if contexts => {
                self.create_context(pending, capset, now);
            }
            Request::CtxDestroy if self.context == Some(fence.ctx) => {
                self.end_context();
                self.say(pending, Short::Plain(cmd::RESP_OK_NODATA));
            }
            Request::CtxDestroy => {
                self.say(pending, Short::Plain(cmd::RESP_ERR_INVALID_CONTEXT_ID));
            }
            Request::Submit3d { size } => return self.submission(chain, pending, size, now),
            Request::CtxCreate { .. } | Request::Unknown(_) => {
                self.say(pending, Short::Plain(cmd::RESP_ERR_UNSPEC));
            }
        }
        Ok(())
    }

    fn read(&mut self, queue: u8, chain: &Chain, offset: u64, out: &mut [u8]) -> Result<(), ()> {
        let Some(queue) = &self.queues[usize::from(queue)] else { return Err(()) };
        match queue.read(chain, offset, out) {
            Ok(()) => Ok(()),
            Err(QueueError::Closed | QueueError::Paused) => Err(()),
            Err(error) => {
                self.guest_fault(&error);
                Err(())
            }
        }
    }

    fn create_context(&mut self, pending: Pending, capset: u8, now: Nanos) {
        if u32::from(capset) != CAPSET_ID {
            self.say(pending, Short::Plain(cmd::RESP_ERR_INVALID_PARAMETER));
        } else if self.context.is_some() || self.contexts.take(now, 1).is_err() {
            // One frame context per slice: a renderer is one process, and one quota.
            self.reject(pending, Reason::Quota);
        } else {
            self.resources.clear();
            self.parts.pacer.set_state(SliceState::Normal);
            let generation = self.generation;
            if self.hand_over(pending, |pending| Work::Attach { generation, pending }) {
                self.context = Some(pending.fence.ctx);
            }
        }
    }

    /// Ends the context's life; work on its way comes back as failed.
    fn end_context(&mut self) {
        if self.context.take().is_none() {
            return;
        }
        self.resources.clear();
        self.generation = Generation(self.generation.0.wrapping_add(1));
        self.parts.pacer.set_generation(self.generation);
        self.parts.pacer.set_state(SliceState::Normal);
        // The ring holds more than can be on its way, see `hand_over`.
        self.worked |= self.parts.work.push(Work::Detach).is_ok();
    }

    fn submission(
        &mut self,
        chain: &Chain,
        pending: Pending,
        size: u32,
        now: Nanos,
    ) -> Result<(), ()> {
        if self.context != Some(pending.fence.ctx) {
            self.say(pending, Short::Plain(cmd::RESP_ERR_INVALID_CONTEXT_ID));
            return Ok(());
        }
        let room = chain.readable_len().saturating_sub(SUBMIT_PAYLOAD);
        if size as usize > MAX_SUBMIT_BYTES || u64::from(size) > room {
            self.reject(pending, Reason::Malformed);
            return Ok(());
        }
        let mut bytes = std::mem::take(&mut self.spare);
        if bytes.capacity() == 0 {
            bytes = self.parts.recycle.pop().unwrap_or_default();
        }
        bytes.clear();
        bytes.resize(size as usize, 0);
        self.read(pending.queue, chain, SUBMIT_PAYLOAD, &mut bytes)?;
        match Job::new(bytes).validate(&mut self.resources) {
            Ok(job) => self.accept(job, pending, now),
            Err((rejected, buffer)) => {
                self.spare = buffer;
                self.refuse(pending, rejected);
            }
        }
        Ok(())
    }

    fn accept(&mut self, job: Job<super::job::Validated>, pending: Pending, now: Nanos) {
        let header = job.meta().header;
        let taken = match job.meta().kind {
            SubmitKind::Setup => {
                let quota = self.parts.limits.memory.max(1);
                let cleared = u128::from(self.resources.made()) * 1_000 / u128::from(quota);
                if self.clears.take(now, cleared as u64).is_err() {
                    self.reject(pending, Reason::Quota);
                    false
                } else {
                    self.hand_over(pending, |pending| Work::Setup { job, pending })
                }
            }
            SubmitKind::Job => {
                let key = self.key(&header);
                self.parts.recorder.record(Stamp::doorbell(key, now));
                self.parts.recorder.record(Stamp::mediated(key, now, job.bytes().len() as u64));
                let taken =
                    self.hand_over(pending, |pending| Work::Job { job, pending, arrival: now });
                if !taken {
                    self.parts.recorder.record(Stamp::failed(key, now, Reason::Quota));
                }
                taken
            }
        };
        // What the submission made exists once it is on its way, and not before.
        if taken {
            self.resources.commit();
        } else {
            self.resources.roll_back();
        }
    }

    fn key(&self, header: &SubmitHeader) -> JobKey {
        JobKey {
            slice: self.parts.index,
            generation: self.generation,
            frame: header.frame,
            job: header.job,
            jobs: header.jobs,
            late_latch: header.flags & submit_flag::LATE_LATCH != 0,
        }
    }

    /// Sends work to the dispatcher, if the slice has not too much on its way; else the request is refused.
    /// Every request counts until its answer is posted, and the ring holds `MAX_QUEUED` requests and as
    /// many detaches.
    fn hand_over(&mut self, pending: Pending, work: impl FnOnce(Pending) -> Work) -> bool {
        let queued = &self.parts.counters.queued;
        let handed = self.handed + u64::from(pending.on_timeline());
        if queued.fetch_add(1, Ordering::AcqRel) < MAX_QUEUED as u64
            && self.parts.work.push(work(Pending { order: handed, ..pending })).is_ok()
        {
            self.handed = handed;
            self.worked = true;
            return true;
        }
        queued.fetch_sub(1, Ordering::AcqRel);
        self.reject(pending, Reason::Quota);
        false
    }

    fn refuse(&mut self, pending: Pending, rejected: Rejected) {
        tracing::debug!(slice = self.parts.index.0, %rejected, "a submission is refused");
        self.parts.counters.failed.fetch_add(1, Ordering::Relaxed);
        self.reject(pending, rejected.reason);
    }

    fn reject(&mut self, pending: Pending, reason: Reason) {
        self.parts.pacer.set_reason(reason);
        self.say(pending, Short::Plain(fence::response_type(reason)));
    }

    fn say(&mut self, pending: Pending, answer: Short) {
        self.answer(Answered::Request { pending, answer, flushed: None });
    }

    /// An answer that waits for the next vblank, if it has a fence.
    fn say_at_vblank(&mut self, pending: Pending, answer: Short, now: Nanos) {
        self.answer(Answered::Request { pending, answer, flushed: Some(now) });
    }

    fn answer(&mut self, answered: Answered) {
        if self.parts.answers.push(answered).is_ok() {
            self.answered = true;
        } else {
            // The poster is held up by its peer for a whole ring of answers: give the guest up.
            tracing::debug!(slice = self.parts.index.0, "the guest does not take its answers");
            self.give_up();
        }
    }

    fn pending(&self, queue: u8, chain: &Chain, fence: Fence) -> Pending {
        Pending { reply: chain.reply(), fence, epoch: self.epoch, queue, order: self.handed }
    }
}
