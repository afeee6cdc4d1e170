//! Stage 4, schedule: from mediate/worker to backend. One dispatcher per GPU owns the scheduler.
//!
//! [`Dispatcher::step`] is a function of its inputs and the time: it empties the workers' rings, takes the
//! GPU's events, emits the vblanks that are due, ends jobs that ran too long, and grants what the policy
//! decides. The interrupts of vblanks leave from here too ([`Beat`]). The thread around it (see [`crate::host`]) only waits; a test drives it with a clock of its own.

mod intake;
mod live;
mod outgo;

pub use live::{Change, Way};

use super::beat::{Beat, Sent, Shot, Volley};
use super::fence::Slab;
use super::frames::Frames;
use super::job::{Job, Validated};
use super::message::{Pending, Post, Work};
use crate::backend::{Event, Gpu, SliceKey, SliceLimits};
use crate::device::eventfd::EventFd;
use crate::device::signals::BATCH;
use crate::memory::GuestMemory;
use crate::vblank::Grid;
use beamline_abi::{FrameId, Generation, Nanos, Reason};
use beamline_latency::recorder::Recorder;
use beamline_latency::stamp::{JobKey, SliceIndex, Stamp};
use beamline_sched::{Contract, Policy, TenantId, Ticket, Vblank};
use rtrb::{Consumer, Producer};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

/// How long a renderer may take to start, or to answer one setup.
const CONTROL_PATIENCE: Nanos = Nanos::from_secs(20);
/// How often that is looked at, when something else wakes the dispatcher: every vblank does.
const CONTROL_LOOK: Nanos = Nanos::from_millis(100);
/// Lateness of the dispatcher itself that is no ordinary wake-up any more.
const HELD_UP: Nanos = Nanos::from_millis(1);
/// Vblanks that are made up for after the host was held up: more than a contract's depth.
const MAX_RENEWALS: u64 = 8;

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
    /// How often the guest rang its doorbells, as their eventfds count it. A peer may count them up itself: that is
    /// its own number.
    pub doorbells: AtomicU64,
    /// Vblanks passed over because the host was late.
    pub skipped_vblanks: AtomicU64,
    /// A change of its contract is under way: set by who sends it, cleared by the dispatcher.
    pub changing: AtomicBool,
    /// A [`Stand`].
    stand: AtomicU8,
}

/// How a slice stands, as others may see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stand {
    /// It waits for a guest to make a context.
    Waiting = 0,
    /// Its renderer starts.
    Starting = 1,
    /// Its guest can render.
    Rendering = 2,
    /// Its renderer is gone; the guest has to make a new context.
    Lost = 3,
}

impl SliceCounters {
    /// How the slice stands.
    pub fn stand(&self) -> Stand {
        match self.stand.load(Ordering::Relaxed) {
            1 => Stand::Starting,
            2 => Stand::Rendering,
            3 => Stand::Lost,
            _ => Stand::Waiting,
        }
    }
}

/// A slice as the dispatcher is given it.
pub struct SliceLink {
    /// What it is promised.
    pub contract: Contract,
    /// Its vblanks.
    pub grid: Grid,
    /// Its first life: above those of a slice that had its place before.
    pub generation: Generation,
    /// What its context may use.
    pub limits: SliceLimits,
    /// Guest memory for late-latch reads.
    pub memory: Arc<GuestMemory>,
    /// What its guest gets at a vblank.
    pub beat: Beat,
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
    /// Jobs of it in the table.
    jobs: u32,
    /// Setups that the renderer has not answered.
    setups: u32,
    /// Since when it owes an answer to the start or to a setup.
    control_since: Nanos,
    /// Something was posted in this step.
    posted: bool,
    /// Its contract is changing.
    change: Option<live::Stage>,
    /// Its poster has to be told of the contract and the phase.
    untold: bool,
    /// The contract that the guest is told of: also while something else holds on the way there.
    told: Contract,
}

impl Slice {
    fn new(index: u16, link: SliceLink) -> Self {
        Self {
            key: SliceKey { index, generation: link.generation },
            life: Life::Detached,
            frames: Frames::default(),
            vblank: 0,
            jobs: 0,
            setups: 0,
            control_since: Nanos::ZERO,
            posted: false,
            change: None,
            untold: false,
            told: link.contract,
            link,
        }
    }

    fn set_life(&mut self, life: Life) {
        self.life = life;
        let stand = match life {
            Life::Detached => Stand::Waiting,
            Life::Starting(_) => Stand::Starting,
            Life::Ready => Stand::Rendering,
            Life::Lost => Stand::Lost,
        };
        self.link.counters.stand.store(stand as u8, Ordering::Relaxed);
    }
}

/// A job between the worker's ring and its fence.
pub(super) struct Entry {
    slice: u16,
    job: Job<Validated>,
    pending: Pending,
    key: JobKey,
    arrival: Nanos,
    release: Nanos,
    deadline: Nanos,
    /// The vblank whose budget pays for it.
    slot: u64,
    /// Its place in the order of submission.
    order: u64,
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
    /// By place. A slice's place is its tenant number.
    slices: Vec<Option<Slice>>,
    /// No place from here on has a slice.
    top: usize,
    jobs: Slab<Entry>,
    /// Jobs submitted so far.
    submitted: u64,
    /// Queued jobs of a slice whose contract changes: order, ticket.
    requeued: Vec<(u64, Ticket)>,
    setups: Slab<(u16, Pending)>,
    /// Next vblank of every slice, earliest first.
    vblanks: BinaryHeap<Reverse<(Nanos, u16)>>,
    running: Vec<Ticket>,
    events: Vec<Event>,
    /// Interrupts of this step's vblanks.
    volley: Volley,
    kill_grace: Nanos,
    /// When to look again for renderers that do not answer.
    next_look: Nanos,
    /// Slices whose posters have something new, each once.
    stirred: Vec<u16>,
    /// When `step` wanted to be called again at the latest.
    asked_for: Nanos,
    recorder: Recorder,
    captures: Vec<Event>,
}

impl Dispatcher {
    /// A dispatcher with room for `max_slices` slices, and none yet; the policy has room for as many tenants
    /// and [`Dispatcher::max_jobs`]. Nothing is allocated after this. `kill_grace`: how long beyond its
    /// `max_job` a job may run before its renderer is killed.
    pub fn new(
        policy: Box<dyn Policy>,
        gpu: Box<dyn Gpu>,
        max_slices: usize,
        kill_grace: Nanos,
        volley: Volley,
        recorder: Recorder,
    ) -> Self {
        let max_jobs = Self::max_jobs(max_slices);
        Self {
            policy,
            gpu,
            jobs: Slab::new(max_jobs),
            submitted: 0,
            requeued: Vec::with_capacity(super::message::MAX_QUEUED),
            setups: Slab::new(max_jobs),
            vblanks: BinaryHeap::with_capacity(max_slices),
            running: Vec::with_capacity(max_jobs),
            events: Vec::with_capacity(64),
            slices: (0..max_slices).map(|_| None).collect(),
            top: 0,
            volley,
            kill_grace,
            next_look: Nanos::ZERO,
            stirred: Vec::with_capacity(max_slices),
            asked_for: Nanos::MAX,
            recorder,
            captures: Vec::new(),
        }
    }

    /// The tickets that a policy for `slices` slices must be able to hold.
    pub const fn max_jobs(slices: usize) -> usize {
        slices * super::message::MAX_QUEUED
    }

    /// Does everything that is due at `now` and says when to be called again at the latest. To be called
    /// earlier when a worker or the GPU has something. `stirred`: a worker may have something; without it
    /// the workers' rings are left alone, which is most of what an idle slice costs.
    pub fn step(&mut self, now: Nanos, stirred: bool) -> Nanos {
        self.forgive(now.saturating_sub(self.asked_for));
        self.take_gpu_events(now);
        self.emit_vblanks(now);
        if stirred {
            for index in 0..self.top {
                self.take_work(index, now);
            }
        }
        self.end_overlong(now);
        let wake = self.grant(now);
        self.wake_posters();
        let vblank = self.vblanks.peek().map_or(Nanos::MAX, |Reverse((t, _))| *t);
        let kill = self.next_kill();
        let gpu = self.gpu.next_event().unwrap_or(Nanos::MAX);
        self.asked_for = wake.min(vblank).min(kill).min(gpu);
        self.asked_for
    }

    /// The backend, for what is off the path.
    pub fn gpu(&mut self) -> &mut dyn Gpu {
        &mut *self.gpu
    }

    /// The life of a slice that is ready for work.
    pub fn ready(&self, index: u16) -> Option<SliceKey> {
        self.slice(usize::from(index)).filter(|s| s.life == Life::Ready).map(|s| s.key)
    }

    fn slice(&self, index: usize) -> Option<&Slice> {
        self.slices.get(index)?.as_ref()
    }

    fn slice_mut(&mut self, index: usize) -> Option<&mut Slice> {
        self.slices.get_mut(index)?.as_mut()
    }

    /// Images that arrived since the last call.
    pub fn take_captures(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.captures)
    }

    /// Brings close to this CPU what is due at `until`: for a thread that has nothing better to do until then.
    pub fn warm(&self, until: Nanos) {
        for Reverse((_, index)) in self.vblanks.iter().filter(|Reverse((time, _))| *time <= until) {
            self.warm_slice(*index);
        }
    }

    fn warm_slice(&self, index: u16) {
        if let Some(slice) = self.slice(usize::from(index)) {
            std::hint::black_box(slice.vblank ^ slice.link.beat.warm());
        }
    }

    fn emit_vblanks(&mut self, now: Nanos) {
        loop {
            let mut due = [0; BATCH];
            let mut count = 0;
            while count < BATCH
                && let Some(Reverse((time, index))) = self.vblanks.peek().copied()
                && time <= now
            {
                self.vblanks.pop();
                due[count] = index;
                count += 1;
            }
            if count == 0 {
                return;
            }
            // One alone has nothing to wait for together with.
            if count > 1 {
                due[..count].iter().for_each(|index| self.warm_slice(*index));
            }
            for &index in &due[..count] {
                self.emit_vblank(usize::from(index), now);
                if let Some(slice) = self.slice(usize::from(index)) {
                    let next = slice.link.grid.next_time();
                    self.vblanks.push(Reverse((next, index)));
                }
            }
            self.send_interrupts();
        }
    }

    fn emit_vblank(&mut self, index: usize, now: Nanos) {
        let Some(slice) = self.slice_mut(index) else { return };
        let Some(due) = slice.link.grid.due(now) else { return };
        let (seq, time) = (due.vblank.seq, due.vblank.time);
        let before = std::mem::replace(&mut slice.vblank, seq);
        if due.skipped > 0 {
            slice.link.counters.skipped_vblanks.fetch_add(due.skipped, Ordering::Relaxed);
        }
        let (name, generation) = (SliceIndex(index as u16), slice.key.generation);
        let shown = slice.frames.show(time);
        let (life, grid, deadline) = (slice.life, slice.link.grid, slice.link.contract.deadline);
        self.follow_change(index, before, time);
        if matches!(life, Life::Ready | Life::Starting(_)) {
            // A frame that was posted ahead is paid by its own vblank, also where the host slept over it.
            for seq in seq - due.skipped.min(MAX_RENEWALS)..=seq {
                let vblank = Vblank { seq, time: grid.time(seq), next: grid.time(seq + 1) };
                self.policy.vblank(tenant(index), vblank);
            }
        }
        self.requeue(index, now);
        if life == Life::Ready {
            self.recorder.record(Stamp::tick(name, generation, seq, time, now));
        }
        if let (Some(shown), Some(slice)) = (shown, self.slice(index)) {
            let counters = &slice.link.counters;
            counters.shown.fetch_add(1, Ordering::Relaxed);
            // One tick of slack: a deadline of one period is rounded down to whole ns, the grid may not be.
            if time > grid.time(shown.slot).saturating_add(deadline).saturating_add(Nanos(1)) {
                counters.late.fetch_add(1, Ordering::Relaxed);
            }
            self.recorder.record(Stamp::vblank(name, generation, shown.frame, seq, time, now));
        }
        self.tell_contract(index);
        self.beat(index, due.vblank, shown.map(|s| s.frame), generation);
    }

    /// The timing page and the interrupt; and the poster's part, where it has one.
    fn beat(
        &mut self,
        index: usize,
        vblank: Vblank,
        presented: Option<FrameId>,
        generation: Generation,
    ) {
        let Some(Some(slice)) = self.slices.get_mut(index) else { return };
        let beat = &mut slice.link.beat;
        let wanted = beat.vblank(vblank, presented, generation);
        let frame = presented.unwrap_or(FrameId::NONE);
        let shot = Shot { slice: SliceIndex(index as u16), generation, seq: vblank.seq, frame };
        let signal = wanted && self.volley.add(beat, shot).is_err();
        if signal || beat.stirs_poster(vblank.seq) {
            self.post(index, Post::Vblank { shot, signal });
        }
    }

    fn send_interrupts(&mut self) {
        let mut all = [None; BATCH];
        let mut places = all.iter_mut();
        self.volley.send(&mut self.recorder, |shot, sent| {
            if let Some(place) = places.next() {
                *place = Some((shot, sent));
            }
        });
        for (shot, sent) in all.into_iter().flatten() {
            let index = usize::from(shot.slice.0);
            if sent == Sent::Refused {
                self.post(index, Post::Vblank { shot, signal: true });
            }
            if let Some(slice) = self.slice_mut(index) {
                slice.link.beat.judge(sent);
            }
        }
    }

    /// A dispatcher that is called late was held up by the machine, and so, likely, were the renderers: a
    /// job is not killed for that time.
    fn forgive(&mut self, late: Nanos) {
        if late > HELD_UP {
            for ticket in &self.running {
                if let Some(running) = self.jobs.get_mut(ticket.0).and_then(|e| e.running.as_mut())
                {
                    running.kill_at = running.kill_at.saturating_add(late);
                }
            }
        }
    }

    fn end_overlong(&mut self, now: Nanos) {
        self.end_silent(now);
        let overdue = self
            .running
            .iter()
            .find(|t| self.jobs.get(t.0).and_then(|e| e.running).is_some_and(|r| r.kill_at <= now));
        let Some(&ticket) = overdue else { return };
        let Some(entry) = self.jobs.get(ticket.0) else { return };
        let index = usize::from(entry.slice);
        tracing::info!(slice = index, key = ?entry.key, "a job ran too long; its renderer is killed");
        self.lose(index, now, Reason::JobTooLong);
    }

    /// Ends the renderers that do not start, or do not answer a setup: a shader may take for ever to compile.
    fn end_silent(&mut self, now: Nanos) {
        if now < self.next_look {
            return;
        }
        self.next_look = now.saturating_add(CONTROL_LOOK);
        for index in 0..self.top {
            let Some(slice) = self.slice(index) else { continue };
            let owes = match slice.life {
                Life::Starting(_) => true,
                Life::Ready => slice.setups > 0,
                Life::Detached | Life::Lost => false,
            };
            if owes && now.saturating_sub(slice.control_since) > CONTROL_PATIENCE {
                tracing::info!(slice = index, "a renderer does not answer; it is killed");
                self.lose(index, now, Reason::JobTooLong);
            }
        }
    }

    fn next_kill(&self) -> Nanos {
        let bound = |t: &Ticket| self.jobs.get(t.0).and_then(|e| e.running).map(|r| r.kill_at);
        self.running.iter().filter_map(bound).min().unwrap_or(Nanos::MAX)
    }
}

fn tenant(index: usize) -> TenantId {
    TenantId(index as u16)
}
