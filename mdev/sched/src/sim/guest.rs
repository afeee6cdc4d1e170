//! One tenant in a run: its vblanks, the frames it has under way, and what became of them.
//!
//! ```text
//!   vblank: room? --no--> stale                        all main jobs done
//!        \--yes--> sending: job, job, ... --> waiting ------------------> late latch --> finished
//! ```
//!
//! Frames are sent one after the other: the next one's first job comes when the last of the one before is
//! submitted.

use super::outcome::{OwnCause, TenantOutcome};
use super::scenario::{Tenant, Work};
use super::verdict::Verdicts;
use super::work::{Demand, Jobs, Judge, Source, Timing};
use crate::contract::{Class, Contract};
use crate::policy::{GpuCaps, JobSpec, TenantId, Ticket, Vblank};
use beamline_abi::{FrameId, JobIndex, Nanos};
use std::collections::VecDeque;

/// A frame between its vblank and its end.
#[derive(Clone, Copy, Debug)]
struct Frame {
    slot: u64,
    demand: Demand,
    cause: Option<OwnCause>,
    /// The vblank that the scheduler takes it for: a later one where it is submitted later.
    placed: Option<u64>,
    sent: u16,
    done: u16,
    late_sent: bool,
    /// Jobs queued or on the GPU.
    out: u16,
    failed: bool,
    /// Vblanks just before it for which no frame was begun; those of the last `stale_kept` were not the
    /// tenant's own doing.
    stale: u64,
    stale_kept: u64,
}

impl Frame {
    fn sending(&self) -> bool {
        !self.failed && self.sent < self.demand.jobs
    }
}

/// What has to happen after a job's end or submission.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Next {
    /// The next main job comes at this time.
    pub(super) job: Option<u64>,
    /// This frame's late latch is posted now.
    pub(super) late_latch: Option<u64>,
}

#[derive(Debug)]
pub(super) struct Guest<'a> {
    pub(super) index: u16,
    pub(super) contract: Contract,
    source: Source<'a>,
    pub(super) flood: Option<Jobs<'a>>,
    judge: Judge,
    frames: VecDeque<Frame>,
    /// The newest vblank.
    pub(super) slot: u64,
    placed: Option<u64>,
    /// When the next main job comes, as it was last told.
    pub(super) expects: Option<u64>,
    floods: u64,
    /// Some of its frames may be missed, and are given up at the next vblank.
    drops: bool,
    stale: u64,
    stale_kept: u64,
    pub(super) verdicts: Verdicts,
}

impl<'a> Guest<'a> {
    /// The tenant at `start`: its last vblank before that is its newest.
    pub(super) fn new(
        index: usize,
        tenant: &'a Tenant,
        phase: Nanos,
        seed: u64,
        start: u64,
        counted: (u64, u64),
        setup: (&GpuCaps, Nanos),
    ) -> Self {
        let c = &tenant.contract;
        let (caps, grace) = setup;
        let since = u128::from(start.saturating_sub(phase.0));
        let slot = since * u128::from(c.period.den()) / u128::from(c.period.num());
        // Less than the start's whole periods.
        let slot = u64::try_from(slot).unwrap_or(0);
        let flood = match &tenant.work {
            Work::Flood(f) => Some(Jobs::new(f, seed, index)),
            Work::Frames(_) | Work::Trace(_) => None,
        };
        Self {
            index: index as u16,
            contract: *c,
            source: Source::new(&tenant.work, seed, index, slot + 1),
            flood,
            judge: Judge::new(c, caps, grace.0, slot),
            frames: VecDeque::with_capacity(usize::from(c.depth)),
            slot,
            placed: None,
            expects: None,
            floods: 0,
            drops: !c.pattern().is_all(),
            stale: 0,
            stale_kept: 0,
            verdicts: Verdicts::new(&tenant.name, c, phase, counted),
        }
    }

    pub(super) fn id(&self) -> TenantId {
        TenantId(self.index)
    }

    fn time(&self, slot: u64) -> u64 {
        self.verdicts.time(slot)
    }

    fn deadline(&self, slot: u64) -> u64 {
        self.verdicts.deadline(slot)
    }

    /// The newest vblank.
    pub(super) fn vblank(&self) -> Vblank {
        let at = |slot| Nanos(self.time(slot));
        Vblank { seq: self.slot, time: at(self.slot), next: at(self.slot + 1) }
    }

    /// The next vblank is there: a frame begins, if there is room.
    pub(super) fn begin(&mut self, now: u64) -> Next {
        self.slot += 1;
        let Some(demand) = self.source.at(self.slot) else { return Next::default() };
        let disturbed =
            self.frames.iter().any(|f| f.cause.is_some_and(|cause| cause != OwnCause::Aftermath));
        if self.frames.len() >= usize::from(self.contract.depth) {
            self.stale += 1;
            self.stale_kept = if disturbed { 0 } else { self.stale_kept + 1 };
            return Next::default();
        }
        let cause = self.judge.judge(self.slot, &demand, disturbed);
        let idle = !self.frames.iter().any(Frame::sending);
        self.frames.push_back(Frame {
            slot: self.slot,
            demand,
            cause,
            placed: None,
            sent: 0,
            done: 0,
            late_sent: false,
            out: 0,
            failed: false,
            stale: std::mem::take(&mut self.stale),
            stale_kept: std::mem::take(&mut self.stale_kept),
        });
        if idle { self.next_frame(now) } else { Next::default() }
    }

    /// When the first job of the oldest frame that has sent none comes.
    fn next_frame(&mut self, now: u64) -> Next {
        let first = self.frames.iter().find(|f| f.sending() && f.sent == 0);
        let at = first.map(|f| (self.time(f.slot) + f.demand.times[0]).max(now));
        self.expects = at;
        Next { job: at, late_latch: None }
    }

    /// The next main job, submitted at `now`: its spec, its cost, and when the one after it comes.
    pub(super) fn send(&mut self, now: u64, ticket: Ticket) -> Option<(JobSpec, u64, Next)> {
        let background = self.contract.class == Class::Background;
        let at = self.frames.iter().position(Frame::sending)?;
        let follows = self.placed.map_or(0, |p| p + 1);
        let newest = if background { self.slot } else { self.slot.max(follows) };
        let frame = &mut self.frames[at];
        let placed = *frame.placed.get_or_insert(newest);
        let job = frame.sent;
        frame.sent += 1;
        frame.out += 1;
        let Frame { slot, demand, .. } = *frame;
        self.placed = Some(placed);
        let start = self.time(placed);
        let spec = JobSpec {
            ticket,
            tenant: self.id(),
            frame: FrameId(slot),
            job: JobIndex(job),
            jobs: demand.jobs + u16::from(demand.late_latch.is_some()),
            late_latch: false,
            arrival: Nanos(now),
            release: Nanos(if background { 0 } else { start }),
            deadline: if background {
                Nanos::MAX
            } else {
                Nanos(start).saturating_add(self.contract.main_deadline())
            },
            slot: placed,
        };
        self.expects = None;
        let next = if job + 1 == demand.jobs {
            self.next_frame(now)
        } else if demand.timing == Timing::Recorded {
            let at = (self.time(slot) + demand.times[usize::from(job) + 1]).max(now);
            self.expects = Some(at);
            Next { job: self.expects, late_latch: None }
        } else {
            Next::default()
        };
        Some((spec, demand.costs[usize::from(job)], next))
    }

    /// The late latch of the frame of `slot`, posted at `now`, with its cost.
    pub(super) fn post(&mut self, now: u64, slot: u64, ticket: Ticket) -> Option<(JobSpec, u64)> {
        let window = self.contract.late_latch?.window;
        let deadline = self.contract.deadline;
        let tenant = self.id();
        let frame = self.frames.iter_mut().find(|f| f.slot == slot && !f.late_sent)?;
        let cost = frame.demand.late_latch?;
        let placed = frame.placed?;
        frame.late_sent = true;
        frame.out += 1;
        let jobs = frame.demand.jobs + 1;
        let due = Nanos(self.time(placed)).saturating_add(deadline);
        let spec = JobSpec {
            ticket,
            tenant,
            frame: FrameId(slot),
            job: JobIndex(jobs - 1),
            jobs,
            late_latch: true,
            arrival: Nanos(now),
            release: due.saturating_sub(window),
            deadline: due,
            slot: placed,
        };
        Some((spec, cost))
    }

    /// A flood's next job, with its cost.
    pub(super) fn pour(&mut self, now: u64, ticket: Ticket) -> Option<(JobSpec, u64)> {
        let cost = self.flood.as_mut()?.cost();
        self.floods += 1;
        let spec = JobSpec {
            ticket,
            tenant: self.id(),
            frame: FrameId(self.floods),
            job: JobIndex(0),
            jobs: 1,
            late_latch: false,
            arrival: Nanos(now),
            release: Nanos::ZERO,
            deadline: Nanos::MAX,
            slot: self.slot,
        };
        Some((spec, cost))
    }

    /// Whether the next vblank ends what is queued: see [`Contract::pattern`].
    pub(super) fn gives_up(&self) -> bool {
        self.drops && !self.frames.is_empty()
    }

    /// A queued job was dropped.
    pub(super) fn dropped(&mut self, slot: u64) {
        if let Some(frame) = self.frames.iter_mut().find(|f| f.slot == slot) {
            frame.out -= 1;
        }
    }

    /// What was queued is dropped: the frames under way have missed.
    pub(super) fn give_up(&mut self, now: u64) {
        self.expects = None;
        self.frames.iter_mut().for_each(|f| f.failed = true);
        while let Some(at) = self.frames.iter().position(|f| f.out == 0) {
            self.finish(at, now);
        }
    }

    /// A frame's job has left the GPU at its end, or was killed.
    pub(super) fn done(&mut self, now: u64, slot: u64, late_latch: bool, killed: bool) -> Next {
        self.verdicts.job_left(now, killed);
        let Some(at) = self.frames.iter().position(|f| f.slot == slot) else {
            return Next::default();
        };
        let due = self.deadline(slot);
        let frame = &mut self.frames[at];
        let was_sending = frame.sending();
        frame.failed |= killed;
        frame.out -= 1;
        if late_latch {
            self.finish(at, now);
            return Next::default();
        }
        frame.done += 1;
        if frame.failed {
            if frame.out == 0 {
                self.finish(at, now);
            }
            return if was_sending { self.next_frame(now) } else { Next::default() };
        }
        if frame.done < frame.demand.jobs {
            if frame.demand.timing == Timing::Recorded {
                return Next::default();
            }
            let at = now + frame.demand.times[usize::from(frame.done)];
            self.expects = Some(at);
            return Next { job: self.expects, late_latch: None };
        }
        // What comes after the vblank it was for is not posted any more.
        if frame.demand.late_latch.is_some() && now <= due {
            return Next { job: None, late_latch: Some(slot) };
        }
        self.finish(at, now);
        Next::default()
    }

    /// A frame is over: it is counted, and so are the vblanks before it that got none.
    fn finish(&mut self, at: usize, now: u64) {
        let Some(frame) = self.frames.remove(at) else { return };
        self.verdicts.count_stale(frame.stale, frame.stale_kept, frame.slot, now);
        let in_time = !frame.failed
            && now <= self.deadline(frame.slot)
            && (frame.late_sent || frame.demand.late_latch.is_none());
        if frame.demand.late_latch.is_some() && self.verdicts.counts(frame.slot) {
            self.verdicts.out.late_latch.count(in_time);
        }
        self.verdicts.count(frame.slot, frame.cause, in_time, now);
    }

    /// The run is over: what is under way and was due is missed. It counts with the time it has taken so far.
    pub(super) fn close(mut self, now: u64) -> TenantOutcome {
        while let Some(frame) = self.frames.pop_front() {
            self.verdicts.count_stale(frame.stale, frame.stale_kept, frame.slot, now);
            if frame.demand.late_latch.is_some() && self.verdicts.counts(frame.slot) {
                self.verdicts.out.late_latch.count(false);
            }
            self.verdicts.count(frame.slot, frame.cause, false, now);
        }
        self.verdicts.count_stale(self.stale, self.stale_kept, self.slot + 1, now);
        self.verdicts.out
    }
}
