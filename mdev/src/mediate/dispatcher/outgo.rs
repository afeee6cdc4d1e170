//! Stages 4 to 6: what goes out: grants to the backend, fences to the posters.

use super::{Dispatcher, Life, Running, Slice, tenant};
use crate::backend::{GpuError, Latched};
use crate::mediate::job::{Grant, Job, Validated};
use crate::mediate::message::{MAX_QUEUED, Pending, Post};
use crate::memory::{Gpa, GuestMemory};
use beamline_abi::frame::MAX_LATCHES;
use beamline_abi::{Nanos, Reason};
use beamline_latency::stamp::Stamp;
use beamline_sched::{Decision, Ticket};
use std::sync::atomic::Ordering;

impl Dispatcher {
    /// Grants until the policy idles; answers when to ask it again.
    pub(super) fn grant(&mut self, now: Nanos) -> Nanos {
        loop {
            match self.policy.decide(now) {
                Decision::Grant { ticket, expected, .. } => self.run(ticket, expected, now),
                // Backends run a job to its end, and the capabilities say so: no policy asks one back.
                Decision::Preempt { .. } => return Nanos::MAX,
                Decision::Idle { until, .. } => return until.unwrap_or(Nanos::MAX),
            }
        }
    }

    fn run(&mut self, ticket: Ticket, expected: Nanos, now: Nanos) {
        let Some(entry) = self.jobs.get_mut(ticket.0) else { return };
        let Some(Some(slice)) = self.slices.get(usize::from(entry.slice)) else { return };
        let key = slice.key;
        let mut latched = [NO_LATCH; MAX_LATCHES];
        let result = match latch(&slice.link.memory, entry.job.meta(), &mut latched) {
            Ok(count) => {
                let grant = Grant::new(key, ticket, &entry.job, &latched[..count]);
                self.gpu.submit(now, grant).map_err(|error| gpu_reason(&error))
            }
            Err(reason) => Err(reason),
        };
        let stamp = Stamp::granted(entry.key, now, entry.release, entry.deadline, Some(expected));
        self.recorder.record(stamp);
        match result {
            Ok(()) => {
                let bound = self.bound(slice);
                let kill_at = self.extend_kills(now, bound);
                if let Some(entry) = self.jobs.get_mut(ticket.0) {
                    entry.running = Some(Running { since: now, kill_at });
                }
                self.running.push(ticket);
            }
            Err(reason) => {
                self.policy.complete(now, ticket, Nanos::ZERO);
                self.finish(ticket, now, now, Err(reason));
            }
        }
    }

    /// Jobs in flight together slow each other down, so each one's limit grows by one bound for every job
    /// beside it. Answers the new one's.
    fn extend_kills(&mut self, now: Nanos, bound: Nanos) -> Nanos {
        for other in &self.running {
            if let Some(running) = self.jobs.get_mut(other.0).and_then(|e| e.running.as_mut()) {
                running.kill_at = running.kill_at.saturating_add(bound);
            }
        }
        let together = self.running.len() as u64 + 1;
        now.saturating_add(Nanos(bound.0.saturating_mul(together)))
    }

    /// How long a job of this slice may run where it has the GPU alone.
    fn bound(&self, slice: &Slice) -> Nanos {
        slice.link.contract.max_job.saturating_add(self.kill_grace)
    }

    /// A job of this slice has left the GPU. None behind it waits for it any longer: from now on each has the time
    /// of all that are on the GPU together.
    fn renew_kills(&mut self, index: usize, now: Nanos) {
        let bound = |t: &Ticket| {
            let slice = self.slice(usize::from(self.jobs.get(t.0)?.slice))?;
            Some(self.bound(slice))
        };
        let latest = self.running.iter().filter_map(bound).fold(now, Nanos::saturating_add);
        for ticket in &self.running {
            if let Some(entry) = self.jobs.get_mut(ticket.0)
                && usize::from(entry.slice) == index
                && let Some(running) = &mut entry.running
            {
                running.kill_at = running.kill_at.min(latest);
            }
        }
    }

    /// Stage 6 for one job: it leaves the slab, its frame is told, its fence goes to the poster.
    pub(super) fn finish(
        &mut self,
        ticket: Ticket,
        now: Nanos,
        ended: Nanos,
        result: Result<(), Reason>,
    ) {
        let Some(entry) = self.jobs.remove(ticket.0) else { return };
        let index = usize::from(entry.slice);
        if entry.running.is_some() {
            self.running.retain(|t| *t != ticket);
            self.renew_kills(index, now);
        }
        self.recorder.record(match result {
            Ok(()) => Stamp::fence(entry.key, now),
            Err(reason) => Stamp::failed(entry.key, now, reason),
        });
        if let Some(slice) = self.slice_mut(index) {
            slice.jobs = slice.jobs.saturating_sub(1);
            slice.frames.job_done(entry.key.frame, result.is_ok(), ended);
            let counters = &slice.link.counters;
            let counter = if result.is_ok() { &counters.jobs } else { &counters.failed };
            counter.fetch_add(1, Ordering::Relaxed);
        }
        self.recycle(index, entry.job);
        self.complete(index, entry.pending, result);
    }

    /// The slice's renderer is gone, or has to go.
    pub(super) fn lose(&mut self, index: usize, now: Nanos, reason: Reason) {
        if let Some(Life::Starting(pending)) = self.slice(index).map(|slice| slice.life) {
            self.complete(index, pending, Err(reason));
        }
        self.fail_all(index, now, reason);
        let Some(slice) = self.slices.get_mut(index).and_then(Option::as_mut) else { return };
        self.gpu.detach(slice.key);
        slice.set_life(Life::Lost);
        let generation = slice.key.generation;
        self.post(index, Post::Lost { reason, generation });
    }

    /// Ends every job and setup of a slice. The tables have room for all slices and are looked through only
    /// as far as this one has something in them.
    pub(super) fn fail_all(&mut self, index: usize, now: Nanos, reason: Reason) {
        self.policy.drop_jobs(tenant(index));
        for n in 0..self.jobs.capacity() {
            if self.slice(index).is_none_or(|slice| slice.jobs == 0) {
                break;
            }
            let Some(entry) = self.jobs.get(n).filter(|e| usize::from(e.slice) == index) else {
                continue;
            };
            if let Some(running) = entry.running {
                self.policy.complete(now, Ticket(n), now.saturating_sub(running.since));
            }
            self.finish(Ticket(n), now, now, Err(reason));
        }
        for n in 0..self.setups.capacity() {
            if self.slice(index).is_none_or(|slice| slice.setups == 0) {
                break;
            }
            if self.setups.get(n).is_some_and(|(owner, _)| usize::from(*owner) == index)
                && let Some((_, pending)) = self.setups.remove(n)
            {
                if let Some(slice) = self.slice_mut(index) {
                    slice.setups -= 1;
                }
                self.complete(index, pending, Err(reason));
            }
        }
        if let Some(slice) = self.slice_mut(index) {
            slice.frames.clear();
        }
    }

    pub(super) fn complete(&mut self, index: usize, pending: Pending, result: Result<(), Reason>) {
        if let Some(slice) = self.slice(index) {
            slice.link.counters.queued.fetch_sub(1, Ordering::Release);
        }
        self.post(index, Post::Complete { pending, result });
    }

    /// Whether the poster was given it.
    pub(super) fn post(&mut self, index: usize, post: Post) -> bool {
        let Some(slice) = self.slice_mut(index) else { return false };
        // A poster that is held up by its peer loses markers first; completions have room set aside,
        // because no more than MAX_QUEUED of them can be on their way. What it has to know of its contract
        // is told again.
        let spare = match post {
            Post::Vblank { .. } | Post::Contract => 2 * MAX_QUEUED,
            Post::Complete { .. } | Post::Lost { .. } => 0,
        };
        let taken = slice.link.post.slots() > spare && slice.link.post.push(post).is_ok();
        if taken && !std::mem::replace(&mut slice.posted, true) {
            self.stirred.push(index as u16);
        }
        taken
    }

    pub(super) fn wake_posters(&mut self) {
        for index in self.stirred.drain(..) {
            if let Some(Some(slice)) = self.slices.get_mut(usize::from(index)) {
                slice.posted = false;
                slice.link.poster.signal();
            }
        }
    }

    pub(super) fn recycle(&mut self, index: usize, job: Job<Validated>) {
        // Where the worker's ring is full the buffer is freed; that costs time, never memory.
        if let Some(slice) = self.slice_mut(index) {
            let _ = slice.link.recycle.push(job.into_buffer());
        }
    }
}

const NO_LATCH: Latched =
    Latched { command: 0, len: 0, data: [0; beamline_abi::frame::MAX_LATCH_BYTES] };

/// What a guest is told when the backend does not take its work.
pub(super) fn gpu_reason(error: &GpuError) -> Reason {
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
