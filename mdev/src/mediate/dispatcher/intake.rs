//! Stage 4, schedule: what comes in: the workers' messages and the GPU's events.

use super::outgo::gpu_reason;
use super::{Dispatcher, Entry, Life, SliceLink, tenant};
use crate::backend::{Event, SliceKey};
use crate::mediate::frames::{FrameJob, Pace};
use crate::mediate::job::{Job, Validated};
use crate::mediate::message::{Pending, RING, Work};
use beamline_abi::frame::{SubmitHeader, submit_flag};
use beamline_abi::{Generation, Nanos, Reason};
use beamline_latency::stamp::{JobKey, SliceIndex, Stamp};
use beamline_sched::{Class, JobSpec, Ticket, Vblank};
use std::sync::atomic::Ordering;

impl Dispatcher {
    pub(super) fn take_work(&mut self, index: usize, now: Nanos) {
        // Bounded: no worker can hold the dispatcher here.
        for _ in 0..RING {
            let Some(slice) = self.slice_mut(index) else { return };
            let Ok(work) = slice.link.work.pop() else { return };
            match work {
                Work::Attach { generation, pending } => {
                    self.attach(index, generation, pending, now);
                }
                Work::Detach => self.detach(index, now),
                Work::Setup { job, pending } => self.setup(index, job, pending, now),
                Work::Job { job, pending, arrival } => {
                    self.submit(index, job, pending, arrival, now);
                }
            }
        }
    }

    fn attach(&mut self, index: usize, generation: Generation, pending: Pending, now: Nanos) {
        // A worker ends one life before it begins the next; this only makes sure of it.
        self.detach(index, now);
        let Some(slice) = self.slices.get_mut(index).and_then(Option::as_mut) else { return };
        slice.key.generation = generation;
        slice.frames.clear();
        match self.gpu.attach(slice.key, slice.link.limits) {
            Ok(()) => {
                slice.set_life(Life::Starting(pending));
                slice.control_since = now;
                self.policy.admit(tenant(index), &slice.link.contract);
                // So that the scheduler knows the next release from the first frame on.
                let (seq, grid) = (slice.vblank, &slice.link.grid);
                let vblank = Vblank { seq, time: grid.time(seq), next: grid.time(seq + 1) };
                self.policy.vblank(tenant(index), vblank);
            }
            Err(error) => {
                tracing::debug!(slice = index, %error, "the renderer does not start");
                slice.set_life(Life::Detached);
                self.complete(index, pending, Err(Reason::DeviceLost));
            }
        }
    }

    pub(super) fn detach(&mut self, index: usize, now: Nanos) {
        let Some(life) = self.slice(index).map(|slice| slice.life) else { return };
        match life {
            Life::Detached => return,
            Life::Starting(pending) => {
                self.complete(index, pending, Err(Reason::Draining));
                self.fail_all(index, now, Reason::Draining);
            }
            Life::Ready => self.fail_all(index, now, Reason::Draining),
            Life::Lost => {}
        }
        self.policy.remove(tenant(index));
        if let Some(slice) = self.slices.get_mut(index).and_then(Option::as_mut) {
            self.gpu.detach(slice.key);
            slice.set_life(Life::Detached);
        }
    }

    fn setup(&mut self, index: usize, job: Job<Validated>, pending: Pending, now: Nanos) {
        let result = self.configure(index, &job, pending, now);
        self.recycle(index, job);
        if result.is_err() {
            self.complete(index, pending, result);
        }
    }

    fn configure(
        &mut self,
        index: usize,
        job: &Job<Validated>,
        pending: Pending,
        now: Nanos,
    ) -> Result<(), Reason> {
        let slice = self.slices.get_mut(index).and_then(Option::as_mut);
        // A renderer that starts keeps its orders.
        let slice = slice
            .filter(|slice| matches!(slice.life, Life::Ready | Life::Starting(_)))
            .ok_or(Reason::DeviceLost)?;
        let token = self.setups.insert((index as u16, pending)).ok_or(Reason::Quota)?;
        if let Err(error) = self.gpu.configure(slice.key, u64::from(token), job.bytes()) {
            self.setups.remove(token);
            return Err(gpu_reason(&error));
        }
        if slice.setups == 0 && slice.life == Life::Ready {
            slice.control_since = now;
        }
        slice.setups += 1;
        Ok(())
    }

    fn submit(
        &mut self,
        index: usize,
        job: Job<Validated>,
        pending: Pending,
        arrival: Nanos,
        now: Nanos,
    ) {
        let Some(slice) = self.slice(index) else { return };
        let key = key(slice.key, &job.meta().header);
        match self.place(index, &job) {
            Ok((slot, release, deadline)) => {
                let order = self.submitted;
                self.submitted += 1;
                let entry = Entry {
                    slice: index as u16,
                    job,
                    pending,
                    key,
                    arrival,
                    release,
                    deadline,
                    slot,
                    order,
                    running: None,
                };
                let spec = entry.spec(Ticket(0));
                let ticket = match self.jobs.insert(entry) {
                    Some(n) => Ticket(n),
                    // The workers' own limit is below the slab's size, so this is a host defect, not a guest's.
                    None => return,
                };
                if let Some(slice) = self.slice_mut(index) {
                    slice.jobs += 1;
                }
                if self.policy.submit(JobSpec { ticket, ..spec }).is_err() {
                    self.finish(ticket, now, now, Err(Reason::Quota));
                }
            }
            Err(reason) => {
                self.recorder.record(Stamp::failed(key, now, reason));
                self.recycle(index, job);
                if let Some(slice) = self.slice(index) {
                    slice.link.counters.failed.fetch_add(1, Ordering::Relaxed);
                }
                self.complete(index, pending, Err(reason));
            }
        }
    }

    /// The vblank, the earliest start and the deadline of a job.
    fn place(&mut self, index: usize, job: &Job<Validated>) -> Result<(u64, Nanos, Nanos), Reason> {
        let slice = self.slice_mut(index).ok_or(Reason::DeviceLost)?;
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
        let (release, deadline) = slice.link.bounds(slot, late_latch);
        Ok((slot, release, deadline))
    }

    pub(super) fn take_gpu_events(&mut self, now: Nanos) {
        let mut events = std::mem::take(&mut self.events);
        self.gpu.poll(now, &mut |event| events.push(event));
        for event in events.drain(..) {
            self.gpu_event(event, now);
        }
        self.events = events;
    }

    fn gpu_event(&mut self, event: Event, now: Nanos) {
        let index = usize::from(event.slice().index);
        let current = self.slice(index).is_some_and(|slice| slice.key == event.slice());
        match event {
            Event::Ready { .. } if current => {
                if let Some(slice) = self.slice_mut(index)
                    && let Life::Starting(pending) = slice.life
                {
                    slice.set_life(Life::Ready);
                    self.complete(index, pending, Ok(()));
                }
            }
            Event::Configured { token, result, .. } if current => {
                let entry = u32::try_from(token).ok().and_then(|t| self.setups.remove(t));
                if let Some((owner, pending)) = entry {
                    let owner = usize::from(owner);
                    if let Some(slice) = self.slice_mut(owner) {
                        (slice.setups, slice.control_since) = (slice.setups.saturating_sub(1), now);
                    }
                    self.complete(owner, pending, result);
                }
            }
            Event::Done { slice, ticket, gpu_start, gpu_end, busy, estimated, result }
                if current =>
            {
                let Some(entry) = self.jobs.get(ticket.0).filter(|e| e.slice == slice.index) else {
                    return;
                };
                self.recorder.record(Stamp::gpu(entry.key, gpu_start, gpu_end, busy, estimated));
                if let Some(slice) = self.slice(index) {
                    slice.link.counters.busy.fetch_add(busy.0, Ordering::Relaxed);
                }
                self.policy.complete(now, ticket, busy);
                self.finish(ticket, now, gpu_end, result);
            }
            Event::Lost { reason, .. } if current => {
                tracing::info!(slice = index, reason, "the renderer is gone");
                self.lose(index, now, Reason::DeviceLost);
            }
            image @ Event::Image { .. } => self.captures.push(image),
            // What belongs to an earlier life of the slice.
            Event::Ready { .. }
            | Event::Configured { .. }
            | Event::Done { .. }
            | Event::Lost { .. } => {}
        }
    }
}

impl Entry {
    /// The job as the policy sees it.
    pub(super) fn spec(&self, ticket: Ticket) -> JobSpec {
        JobSpec {
            ticket,
            tenant: tenant(usize::from(self.slice)),
            frame: self.key.frame,
            job: self.key.job,
            jobs: self.key.jobs,
            late_latch: self.key.late_latch,
            arrival: self.arrival,
            release: self.release,
            deadline: self.deadline,
            slot: self.slot,
        }
    }
}

impl SliceLink {
    /// The earliest start and the deadline of a job whose frame belongs to vblank `slot`.
    pub(super) fn bounds(&self, slot: u64, late_latch: bool) -> (Nanos, Nanos) {
        if self.contract.class == Class::Background {
            return (Nanos::ZERO, Nanos::MAX);
        }
        let start = self.grid.time(slot);
        let due = start.saturating_add(self.contract.deadline);
        match self.contract.late_latch {
            Some(l) if late_latch => (due.saturating_sub(l.window), due),
            _ => (start, start.saturating_add(self.contract.main_deadline())),
        }
    }
}

fn key(slice: SliceKey, header: &SubmitHeader) -> JobKey {
    JobKey {
        slice: SliceIndex(slice.index),
        generation: slice.generation,
        frame: header.frame,
        job: header.job,
        jobs: header.jobs,
        late_latch: header.flags & submit_flag::LATE_LATCH != 0,
    }
}
