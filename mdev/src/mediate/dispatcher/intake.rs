//! Stage 4, schedule: what comes in: the workers' messages and the GPU's events.

use super::outgo::gpu_reason;
use super::{Dispatcher, Entry, Life, Slice, tenant};
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
            let Ok(work) = self.slices[index].link.work.pop() else { return };
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
        let slice = &mut self.slices[index];
        slice.key.generation = generation;
        slice.frames.clear();
        match self.gpu.attach(slice.key, slice.link.limits) {
            Ok(()) => {
                slice.life = Life::Starting(pending);
                slice.control_since = now;
                self.policy.admit(tenant(index), &slice.link.contract);
                // So that the scheduler knows the next release from the first frame on.
                let (seq, grid) = (slice.vblank, &slice.link.grid);
                let vblank = Vblank { seq, time: grid.time(seq), next: grid.time(seq + 1) };
                self.policy.vblank(tenant(index), vblank);
            }
            Err(error) => {
                tracing::debug!(slice = index, %error, "the renderer does not start");
                slice.life = Life::Detached;
                self.complete(index, pending, Err(Reason::DeviceLost));
            }
        }
    }

    fn detach(&mut self, index: usize, now: Nanos) {
        match self.slices[index].life {
            Life::Detached => return,
            Life::Starting(pending) => {
                self.complete(index, pending, Err(Reason::Draining));
                self.fail_all(index, now, Reason::Draining);
            }
            Life::Ready => self.fail_all(index, now, Reason::Draining),
            Life::Lost => {}
        }
        self.policy.remove(tenant(index));
        self.gpu.detach(self.slices[index].key);
        self.slices[index].life = Life::Detached;
    }

    fn setup(&mut self, index: usize, job: Job<Validated>, pending: Pending, now: Nanos) {
        let key = self.slices[index].key;
        let life = self.slices[index].life;
        // A renderer that starts keeps its orders.
        let result = if matches!(life, Life::Ready | Life::Starting(_)) {
            match self.setups.insert((index as u16, pending)) {
                Some(token) => match self.gpu.configure(key, u64::from(token), job.bytes()) {
                    Ok(()) => {
                        let slice = &mut self.slices[index];
                        if slice.setups == 0 && life == Life::Ready {
                            slice.control_since = now;
                        }
                        slice.setups += 1;
                        Ok(())
                    }
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
        let key = self.key(index, &job.meta().header);
        match self.place(index, &job) {
            Ok((slot, release, deadline)) => {
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
                    frame: key.frame,
                    job: key.job,
                    jobs: key.jobs,
                    late_latch: key.late_latch,
                    arrival,
                    release,
                    deadline,
                    slot,
                };
                if self.policy.submit(spec).is_err() {
                    self.finish(ticket, now, now, Err(Reason::Quota));
                }
            }
            Err(reason) => {
                self.recorder.record(Stamp::failed(key, now, reason));
                self.recycle(index, job);
                self.slices[index].link.counters.failed.fetch_add(1, Ordering::Relaxed);
                self.complete(index, pending, Err(reason));
            }
        }
    }

    fn key(&self, index: usize, header: &SubmitHeader) -> JobKey {
        JobKey {
            slice: SliceIndex(index as u16),
            generation: self.slices[index].key.generation,
            frame: header.frame,
            job: header.job,
            jobs: header.jobs,
            late_latch: header.flags & submit_flag::LATE_LATCH != 0,
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

    pub(super) fn take_gpu_events(&mut self, now: Nanos) {
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
                    let owner = &mut self.slices[usize::from(index)];
                    (owner.setups, owner.control_since) = (owner.setups.saturating_sub(1), now);
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
                self.finish(ticket, now, gpu_end, result);
            }
            Event::Lost { slice, reason } if current(&self.slices, slice) => {
                tracing::info!(slice = slice.index, reason, "the renderer is gone");
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
}
