//! Stage 4, schedule: from mediate/worker to backend. One dispatcher per GPU owns the scheduler.
//!
//! [`Dispatcher::step`] is a function of its inputs and the time: it empties the workers' rings, takes the
//! GPU's events, emits the vblanks that are due, ends jobs that ran too long, and grants what the policy
//! decides. The thread around it (see [`crate::host`]) only waits; a test drives it with a clock of its own.

use super::fence::Slab;
use super::frames::{FrameJob, Frames, Pace};
use super::job::{Grant, Job, MAX_LATCHES, Validated};
use super::message::{Pending, Post, Work};
use crate::backend::{Event, Gpu, GpuError, Latched, SliceKey, SliceLimits};
use crate::device::eventfd::EventFd;
use crate::memory::{Gpa, GuestMemory};
use crate::vblank::Grid;
use beamline_abi::frame::{SubmitHeader, submit_flag};
use beamline_abi::{Generation, Nanos, Reason};
use beamline_latency::recorder::Recorder;
use beamline_latency::stamp::{JobKey, SliceIndex, Stamp};
use beamline_sched::{Class, Contract, Decision, JobSpec, Policy, TenantId, Ticket};
use rtrb::{Consumer, Producer};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a slice has done so far, readable from any thread.
#[derive(Debug, Default)]
pub struct SliceCounters {
    /// Frames shown.
    pub shown: AtomicU64,
    /// Frames shown at a later vblank than the one they were due at.
    pub late: AtomicU64,
    /// Jobs that ran to their end.
    pub jobs: AtomicU64,
    /// Jobs that failed or were dropped.
    pub failed: AtomicU64,
    /// Submissions on their way: raised by the worker, lowered by the dispatcher.
    pub queued: AtomicU64,
    /// GPU time used, ns.
    pub busy: AtomicU64,
    /// Vblanks passed over because the host was late.
    pub skipped_vblanks: AtomicU64,
}

/// A slice as the dispatcher is given it.
pub struct SliceLink {
    /// What it is promised.
    pub contract: Contract,
    /// Its vblanks.
    pub grid: Grid,
    /// What its context may use.
    pub limits: SliceLimits,
    /// Guest memory for late-latch reads.
    pub memory: Arc<GuestMemory>,
    /// From its worker.
    pub work: Consumer<Work>,
    /// Used buffers, back to its worker.
    pub recycle: Producer<Vec<u8>>,
    /// To its poster.
    pub post: Producer<Post>,
    /// Wakes its poster.
    pub poster: EventFd,
    /// What it has done.
    pub counters: Arc<SliceCounters>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    /// No context.
    Detached,
    /// The renderer starts; the guest waits for this answer.
    Starting(Pending),
    /// Jobs are taken.
    Ready,
    /// The renderer is gone; the guest has to make a new context.
    Lost,
}

struct Slice {
    link: SliceLink,
    key: SliceKey,
    life: Life,
    frames: Frames,
    vblank: u64,
    /// Something was posted in this step.
    posted: bool,
}

/// A job between the worker's ring and its fence.
pub(super) struct Entry {
    slice: u16,
    job: Job<Validated>,
    pending: Pending,
    key: JobKey,
    release: Nanos,
    deadline: Nanos,
    /// When it was handed to the backend, and when its renderer is killed.
    running: Option<Running>,
}

#[derive(Clone, Copy)]
struct Running {
    since: Nanos,
    kill_at: Nanos,
}

/// Owns the policy, the backend and every slice's schedule.
pub struct Dispatcher {
    policy: Box<dyn Policy>,
    gpu: Box<dyn Gpu>,
    slices: Vec<Slice>,
    jobs: Slab<Entry>,
    setups: Slab<(u16, Pending)>,
    /// Next vblank of every slice, earliest first.
    vblanks: BinaryHeap<Reverse<(Nanos, u16)>>,
    running: Vec<Ticket>,
    events: Vec<Event>,
    kill_grace: Nanos,
    recorder: Recorder,
    captures: Vec<Event>,
}

impl Dispatcher {
    /// A dispatcher for these slices; the index of a slice is its tenant number. Nothing is allocated
    /// after this. `kill_grace`: how long beyond its `max_job` a job may run before its renderer is killed.
    pub fn new(
        policy: Box<dyn Policy>,
        gpu: Box<dyn Gpu>,
        links: Vec<SliceLink>,
        kill_grace: Nanos,
        recorder: Recorder,
    ) -> Self {
        let max_jobs = Self::max_jobs(links.len());
        let mut vblanks = BinaryHeap::with_capacity(links.len());
        let mut slices = Vec::with_capacity(links.len());
        for (index, link) in links.into_iter().enumerate() {
            vblanks.push(Reverse((link.grid.next_time(), index as u16)));
            let key = SliceKey { index: index as u16, generation: Generation(0) };
            let vblank = 0;
            slices.push(Slice {
                link,
                key,
                life: Life::Detached,
                frames: Frames::default(),
                vblank,
                posted: false,
            });
        }
        Self {
            policy,
            gpu,
            jobs: Slab::new(max_jobs),
            setups: Slab::new(max_jobs),
            vblanks,
            running: Vec::with_capacity(max_jobs),
            events: Vec::with_capacity(64),
            slices,
            kill_grace,
            recorder,
            captures: Vec::new(),
        }
    }

    /// The tickets that a policy for `slices` slices must be able to hold.
    pub const fn max_jobs(slices: usize) -> usize {
        slices * super::message::MAX_QUEUED
    }

    /// Does everything that is due at `now` and says when to be called again at the latest. To be called
    /// earlier when a worker or the GPU has something.
    pub fn step(&mut self, now: Nanos) -> Nanos {
        self.take_gpu_events(now);
        self.emit_vblanks(now);
        for index in 0..self.slices.len() {
            self.take_work(index, now);
        }
        self.end_overlong(now);
        let wake = self.grant(now);
        self.wake_posters();
        let vblank = self.vblanks.peek().map_or(Nanos::MAX, |Reverse((t, _))| *t);
        let kill = self.next_kill();
        let gpu = self.gpu.next_event().unwrap_or(Nanos::MAX);
        wake.min(vblank).min(kill).min(gpu)
    }

    /// The backend, for what is off the path.
    pub fn gpu(&mut self) -> &mut dyn Gpu {
        &mut *self.gpu
    }

    /// The life of a slice that is ready for work.
    pub fn ready(&self, index: u16) -> Option<SliceKey> {
        self.slices.get(usize::from(index)).filter(|s| s.life == Life::Ready).map(|s| s.key)
    }

    /// Images that arrived since the last call.
    pub fn take_captures(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.captures)
    }

    // ---- what comes in ----

    fn take_work(&mut self, index: usize, now: Nanos) {
        // Bounded: no worker can hold the dispatcher here.
        for _ in 0..super::message::RING {
            let Ok(work) = self.slices[index].link.work.pop() else { return };
            match work {
                Work::Attach { generation, pending } => {
                    self.attach(index, generation, pending, now);
                }
                Work::Detach => self.detach(index, now),
                Work::Setup { job, pending } => self.setup(index, job, pending),
                Work::Job { job, pending, arrival } => {
                    self.submit(index, job, pending, arrival, now);
                }
            }
        }
    }

    fn attach(&mut self, index: usize, generation: Generation, pending: Pending, now: Nanos) {
        // A worker ends one life before it begins the next; this only makes sure of it.
        self.detach(index, now);
        let slice = &mut self.slices[index];
        slice.key.generation = generation;
        slice.frames.clear();
        match self.gpu.attach(slice.key, slice.link.limits) {
            Ok(()) => {
                slice.life = Life::Starting(pending);
                self.policy.admit(tenant(index), &slice.link.contract);
            }
            Err(error) => {
                tracing::warn!(slice = index, %error, "the renderer does not start");
                slice.life = Life::Detached;
                self.complete(index, pending, Err(Reason::DeviceLost));
            }
        }
    }

    fn detach(&mut self, index: usize, now: Nanos) {
        match self.slices[index].life {
            Life::Detached => return,
            Life::Starting(pending) => self.complete(index, pending, Err(Reason::Draining)),
            Life::Ready => self.fail_all(index, now, Reason::Draining),
            Life::Lost => {}
        }
        self.policy.remove(tenant(index));
        self.gpu.detach(self.slices[index].key);
        self.slices[index].life = Life::Detached;
    }

    fn setup(&mut self, index: usize, job: Job<Validated>, pending: Pending) {
        let key = self.slices[index].key;
        let result = if self.slices[index].life == Life::Ready {
            match self.setups.insert((index as u16, pending)) {
                Some(token) => match self.gpu.configure(key, u64::from(token), job.bytes()) {
                    Ok(()) => Ok(()),
                    Err(error) => {
                        self.setups.remove(token);
                        Err(gpu_reason(&error))
                    }
                },
                None => Err(Reason::Quota),
            }
        } else {
            Err(Reason::DeviceLost)
        };
        self.recycle(index, job);
        if result.is_err() {
            self.complete(index, pending, result);
        }
    }

    fn submit(
        &mut self,
        index: usize,
        job: Job<Validated>,
        pending: Pending,
        arrival: Nanos,
        now: Nanos,
    ) {
        match self.place(index, &job) {
            Ok((slot, release, deadline)) => {
                let header = job.meta().header;
                let late_latch = header.flags & submit_flag::LATE_LATCH != 0;
                let key = JobKey {
                    slice: SliceIndex(index as u16),
                    generation: self.slices[index].key.generation,
                    frame: header.frame,
                    job: header.job,
                    jobs: header.jobs,
                    late_latch,
                };
                let entry = Entry {
                    slice: index as u16,
                    job,
                    pending,
                    key,
                    release,
                    deadline,
                    running: None,
                };
                let ticket = match self.jobs.insert(entry) {
                    Some(n) => Ticket(n),
                    // The workers' own limit is below the slab's size, so this is a host defect, not a guest's.
                    None => return,
                };
                let spec = JobSpec {
                    ticket,
                    tenant: tenant(index),
                    frame: header.frame,
                    job: header.job,
                    jobs: header.jobs,
                    late_latch,
                    arrival,
                    release,
                    deadline,
                    slot,
                };
                if self.policy.submit(spec).is_err() {
                    self.finish(ticket, now, Err(Reason::Quota));
                }
            }
            Err(reason) => {
                self.recycle(index, job);
                self.slices[index].link.counters.failed.fetch_add(1, Ordering::Relaxed);
                self.complete(index, pending, Err(reason));
            }
        }
    }

    /// The vblank, the earliest start and the deadline of a job.
    fn place(&mut self, index: usize, job: &Job<Validated>) -> Result<(u64, Nanos, Nanos), Reason> {
        let slice = &mut self.slices[index];
        match slice.life {
            Life::Ready => {}
            Life::Lost => return Err(Reason::DeviceLost),
            Life::Detached | Life::Starting(_) => return Err(Reason::Draining),
        }
        let contract = &slice.link.contract;
        let header = &job.meta().header;
        let late_latch = header.flags & submit_flag::LATE_LATCH != 0;
        if late_latch && contract.late_latch.is_none() {
            return Err(Reason::Unsupported);
        }
        let background = contract.class == Class::Background;
        let pace = if background { Pace::Own } else { Pace::Vblank { depth: contract.depth } };
        let SubmitHeader { frame, job: place, jobs, .. } = *header;
        let part = FrameJob { frame, job: place, jobs, presents: job.meta().presents };
        let slot = slice.frames.place(part, slice.vblank, pace)?;
        if background {
            return Ok((slot, Nanos::ZERO, Nanos::MAX));
        }
        let start = slice.link.grid.time(slot);
        let due = start.saturating_add(contract.deadline);
        Ok(match contract.late_latch {
            Some(l) if late_latch => (slot, due.saturating_sub(l.window), due),
            _ => (slot, start, start.saturating_add(contract.main_deadline())),
        })
    }

    fn take_gpu_events(&mut self, now: Nanos) {
        let mut events = std::mem::take(&mut self.events);
        self.gpu.poll(now, &mut |event| events.push(event));
        for event in events.drain(..) {
            self.gpu_event(event, now);
        }
        self.events = events;
    }

    fn gpu_event(&mut self, event: Event, now: Nanos) {
        let current = |slices: &[Slice], key: SliceKey| {
            slices.get(usize::from(key.index)).is_some_and(|s| s.key == key)
        };
        match event {
            Event::Ready { slice, .. } if current(&self.slices, slice) => {
                let index = usize::from(slice.index);
                if let Life::Starting(pending) = self.slices[index].life {
                    self.slices[index].life = Life::Ready;
                    self.complete(index, pending, Ok(()));
                }
            }
            Event::Configured { slice, token, result } if current(&self.slices, slice) => {
                let entry = u32::try_from(token).ok().and_then(|t| self.setups.remove(t));
                if let Some((index, pending)) = entry {
                    self.complete(usize::from(index), pending, result);
                }
            }
            Event::Done { slice, ticket, gpu_start, gpu_end, busy, estimated, result }
                if current(&self.slices, slice) =>
            {
                let Some(entry) = self.jobs.get(ticket.0).filter(|e| e.slice == slice.index) else {
                    return;
                };
                self.recorder.record(Stamp::gpu(entry.key, gpu_start, gpu_end, busy, estimated));
                let counters = &self.slices[usize::from(slice.index)].link.counters;
                counters.busy.fetch_add(busy.0, Ordering::Relaxed);
                self.policy.complete(now, ticket, busy);
                self.finish(ticket, now, result);
            }
            Event::Lost { slice, reason } if current(&self.slices, slice) => {
                tracing::warn!(slice = slice.index, reason, "the renderer is gone");
                self.lose(usize::from(slice.index), now, Reason::DeviceLost);
            }
            image @ Event::Image { .. } => self.captures.push(image),
            // What belongs to an earlier life of the slice.
            Event::Ready { .. }
            | Event::Configured { .. }
            | Event::Done { .. }
            | Event::Lost { .. } => {}
        }
    }

    // ---- what time brings ----

    fn emit_vblanks(&mut self, now: Nanos) {
        while let Some(Reverse((time, index))) = self.vblanks.peek().copied() {
            if time > now {
                return;
            }
            self.vblanks.pop();
            self.emit_vblank(usize::from(index), now);
            let next = self.slices[usize::from(index)].link.grid.next_time();
            self.vblanks.push(Reverse((next, index)));
        }
    }

    fn emit_vblank(&mut self, index: usize, now: Nanos) {
        let slice = &mut self.slices[index];
        let Some(due) = slice.link.grid.due(now) else { return };
        let (seq, time) = (due.vblank.seq, due.vblank.time);
        slice.vblank = seq;
        slice.link.counters.skipped_vblanks.fetch_add(due.skipped, Ordering::Relaxed);
        let (name, generation) = (SliceIndex(index as u16), slice.key.generation);
        let shown = slice.frames.show();
        if slice.life == Life::Ready {
            self.policy.vblank(tenant(index), due.vblank);
            self.recorder.record(Stamp::tick(name, generation, seq, time, now));
        }
        if let Some(shown) = shown {
            self.recorder.record(Stamp::vblank(name, generation, shown.frame, seq, time, now));
            slice.link.counters.shown.fetch_add(1, Ordering::Relaxed);
            let due_at =
                slice.link.grid.time(shown.slot).saturating_add(slice.link.contract.deadline);
            // One tick of slack: a deadline of one period is rounded down to whole ns, the grid may not be.
            if time > due_at.saturating_add(Nanos(1)) {
                slice.link.counters.late.fetch_add(1, Ordering::Relaxed);
            }
        }
        let presented = shown.map(|s| s.frame);
        self.post(index, Post::Vblank { vblank: due.vblank, presented, generation });
    }

    fn end_overlong(&mut self, now: Nanos) {
        let overdue = self
            .running
            .iter()
            .find(|t| self.jobs.get(t.0).and_then(|e| e.running).is_some_and(|r| r.kill_at <= now));
        let Some(&ticket) = overdue else { return };
        let Some(entry) = self.jobs.get(ticket.0) else { return };
        let index = usize::from(entry.slice);
        tracing::warn!(slice = index, key = ?entry.key, "a job ran too long; its renderer is killed");
        self.lose(index, now, Reason::JobTooLong);
    }

    fn next_kill(&self) -> Nanos {
        let bound = |t: &Ticket| self.jobs.get(t.0).and_then(|e| e.running).map(|r| r.kill_at);
        self.running.iter().filter_map(bound).min().unwrap_or(Nanos::MAX)
    }

    // ---- what goes out ----

    /// Grants until the policy idles; answers when to ask it again.
    fn grant(&mut self, now: Nanos) -> Nanos {
        loop {
            match self.policy.decide(now) {
                Decision::Grant { ticket, expected } => self.run(ticket, expected, now),
                Decision::Idle { until, .. } => return until.unwrap_or(Nanos::MAX),
            }
        }
    }

    fn run(&mut self, ticket: Ticket, expected: Nanos, now: Nanos) {
        // In flight together they slow each other down, so the bound grows with their number.
        let together = self.running.len() as u64 + 1;
        let Some(entry) = self.jobs.get_mut(ticket.0) else { return };
        let slice = &self.slices[usize::from(entry.slice)];
        let key = slice.key;
        let mut latched = [NO_LATCH; MAX_LATCHES];
        let result = match latch(&slice.link.memory, entry.job.meta(), &mut latched) {
            Ok(count) => {
                let grant = Grant::new(key, ticket, &entry.job, &latched[..count]);
                self.gpu
                    .submit(now, grant.slice, grant.ticket, grant.job().bytes(), grant.latched())
                    .map_err(|error| gpu_reason(&error))
            }
            Err(reason) => Err(reason),
        };
        let stamp = Stamp::granted(entry.key, now, entry.release, entry.deadline, Some(expected));
        self.recorder.record(stamp);
        match result {
            Ok(()) => {
                let bound = slice.link.contract.max_job.saturating_add(self.kill_grace);
                let kill_at = now.saturating_add(Nanos(bound.0.saturating_mul(together)));
                entry.running = Some(Running { since: now, kill_at });
                self.running.push(ticket);
            }
            Err(reason) => {
                self.policy.complete(now, ticket, Nanos::ZERO);
                self.finish(ticket, now, Err(reason));
            }
        }
    }

    /// Stage 6 for one job: it leaves the slab, its frame is told, its fence goes to the poster.
    fn finish(&mut self, ticket: Ticket, now: Nanos, result: Result<(), Reason>) {
        let Some(entry) = self.jobs.remove(ticket.0) else { return };
        let index = usize::from(entry.slice);
        if entry.running.is_some() {
            self.running.retain(|t| *t != ticket);
        }
        self.recorder.record(match result {
            Ok(()) => Stamp::fence(entry.key, now),
            Err(reason) => Stamp::failed(entry.key, now, reason),
        });
        let slice = &mut self.slices[index];
        slice.frames.job_done(entry.key.frame, result.is_ok());
        let counters = &slice.link.counters;
        let counter = if result.is_ok() { &counters.jobs } else { &counters.failed };
        counter.fetch_add(1, Ordering::Relaxed);
        self.recycle(index, entry.job);
        self.complete(index, entry.pending, result);
    }

    /// The slice's renderer is gone, or has to go.
    fn lose(&mut self, index: usize, now: Nanos, reason: Reason) {
        if let Life::Starting(pending) = self.slices[index].life {
            self.complete(index, pending, Err(reason));
        }
        self.fail_all(index, now, reason);
        self.gpu.detach(self.slices[index].key);
        self.slices[index].life = Life::Lost;
        self.post(index, Post::Lost(reason));
    }

    /// Ends every job and setup of a slice.
    fn fail_all(&mut self, index: usize, now: Nanos, reason: Reason) {
        self.policy.drop_jobs(tenant(index));
        for n in 0..self.jobs.capacity() {
            let Some(entry) = self.jobs.get(n).filter(|e| usize::from(e.slice) == index) else {
                continue;
            };
            if let Some(running) = entry.running {
                self.policy.complete(now, Ticket(n), now.saturating_sub(running.since));
            }
            self.finish(Ticket(n), now, Err(reason));
        }
        for n in 0..self.setups.capacity() {
            if self.setups.get(n).is_some_and(|(owner, _)| usize::from(*owner) == index)
                && let Some((_, pending)) = self.setups.remove(n)
            {
                self.complete(index, pending, Err(reason));
            }
        }
        self.slices[index].frames.clear();
    }

    fn complete(&mut self, index: usize, pending: Pending, result: Result<(), Reason>) {
        self.slices[index].link.counters.queued.fetch_sub(1, Ordering::Release);
        self.post(index, Post::Complete { pending, result });
    }

    fn post(&mut self, index: usize, post: Post) {
        let slice = &mut self.slices[index];
        // A poster that is held up by its peer loses vblanks first; completions have room set aside,
        // because no more than MAX_QUEUED of them can be on their way.
        let spare =
            if matches!(post, Post::Vblank { .. }) { 2 * super::message::MAX_QUEUED } else { 0 };
        if slice.link.post.slots() > spare && slice.link.post.push(post).is_ok() {
            slice.posted = true;
        }
    }

    fn wake_posters(&mut self) {
        for slice in &mut self.slices {
            if std::mem::take(&mut slice.posted) {
                slice.link.poster.signal();
            }
        }
    }

    fn recycle(&mut self, index: usize, job: Job<Validated>) {
        // Where the worker's ring is full the buffer is freed; that costs time, never memory.
        let _ = self.slices[index].link.recycle.push(job.into_buffer());
    }
}

const NO_LATCH: Latched =
    Latched { command: 0, len: 0, data: [0; beamline_abi::frame::MAX_LATCH_BYTES] };

/// What a guest is told when the backend does not take its work.
fn gpu_reason(error: &GpuError) -> Reason {
    match error {
        GpuError::Busy(_) | GpuError::Limits(_) => Reason::Quota,
        GpuError::TooLong { .. } => Reason::Malformed,
        GpuError::Unsupported(_) => Reason::Unsupported,
        GpuError::NotAttached(_)
        | GpuError::InUse { .. }
        | GpuError::Lost(_)
        | GpuError::System { .. } => Reason::DeviceLost,
    }
}

fn tenant(index: usize) -> TenantId {
    TenantId(index as u16)
}

/// Reads what the job's latch commands name, at this moment. Answers how many there are.
fn latch(
    memory: &GuestMemory,
    meta: &Validated,
    out: &mut [Latched; MAX_LATCHES],
) -> Result<usize, Reason> {
    let mut count = 0;
    for read in meta.latches.iter().flatten() {
        let to = &mut out[count];
        to.command = read.command;
        to.len = read.len;
        let bytes = to.data.get_mut(..usize::from(read.len)).ok_or(Reason::Malformed)?;
        memory.read(Gpa(read.addr), bytes).map_err(|_| Reason::Dma)?;
        count += 1;
    }
    Ok(count)
}
