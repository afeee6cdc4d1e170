//! Stage 4, schedule: what every baseline keeps: the queued jobs, the releases that are still to come, and
//! what is on the GPU.
//!
//! A job is *ready* when it is the first of its tenant's and its release has passed: a driver would not have
//! received it earlier. Jobs of a tenant run in the order they were submitted.

use crate::contract::Contract;
use crate::heap::IndexedHeap;
use crate::policy::{Decision, Defer, GpuCaps, JobSpec, Preemption, QueueFull, TenantId, Ticket};
use crate::queue::{JobTable, Note};
use alloc::{vec, vec::Vec};
use beamline_abi::Nanos;

/// A granted job that has not left the GPU.
#[derive(Clone, Copy, Debug)]
pub(super) struct OnGpu {
    pub(super) ticket: Ticket,
    pub(super) tenant: usize,
    /// How urgent its policy says it is; less is more urgent.
    pub(super) rank: u64,
    /// It was asked back.
    pub(super) asked: bool,
}

/// A job that has left the GPU, done or asked back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Left {
    pub(super) tenant: usize,
    /// Its tenant was removed (or replaced) meanwhile: nobody is charged.
    pub(super) orphan: bool,
}

#[derive(Debug)]
pub(super) struct Backlog {
    jobs: JobTable,
    /// Tenants whose first job is released later, by release.
    waiting: IndexedHeap<u64>,
    /// Of each contract, ns; `None` for a number not in use.
    max_job: Vec<Option<Nanos>>,
    /// In the order of their grants.
    on_gpu: Vec<OnGpu>,
    bound: usize,
    preemption: Preemption,
    tenants: usize,
    /// The latest time that a decision was asked for.
    clock: u64,
}

impl Backlog {
    pub(super) fn new(caps: GpuCaps, max_tenants: usize, max_jobs: usize) -> Self {
        // Tenants are numbered by u16 and tickets by u32.
        let max_tenants = max_tenants.min(usize::from(u16::MAX) + 1);
        let max_jobs = max_jobs.min(u32::MAX as usize - 1);
        let bound = usize::from(caps.in_flight.max(1));
        Self {
            jobs: JobTable::new(max_tenants, max_jobs),
            waiting: IndexedHeap::new(max_tenants),
            max_job: vec![None; max_tenants],
            // Where the GPU knows levels, the upper one has a bound of its own.
            on_gpu: Vec::with_capacity(2 * bound),
            bound,
            preemption: caps.preemption,
            tenants: 0,
            clock: 0,
        }
    }

    /// Numbers for tenants: those below it.
    pub(super) fn max_tenants(&self) -> usize {
        self.max_job.len()
    }

    /// Tenants admitted now.
    pub(super) fn tenants(&self) -> usize {
        self.tenants
    }

    /// Takes a tenant. False where its number is out of range.
    pub(super) fn open(&mut self, tenant: TenantId, contract: &Contract) -> bool {
        let t = usize::from(tenant.0);
        self.close(tenant);
        if !self.jobs.open(t) {
            return false;
        }
        self.max_job[t] = Some(contract.max_job);
        self.tenants += 1;
        true
    }

    pub(super) fn close(&mut self, tenant: TenantId) {
        let t = usize::from(tenant.0);
        self.jobs.close(t);
        self.waiting.remove(t);
        if self.max_job.get_mut(t).and_then(Option::take).is_some() {
            self.tenants -= 1;
        }
    }

    /// Drops a tenant's queued jobs.
    pub(super) fn clear(&mut self, tenant: TenantId) {
        self.jobs.clear(usize::from(tenant.0));
        self.waiting.remove(usize::from(tenant.0));
    }

    pub(super) fn push(&mut self, job: JobSpec) -> Result<(), QueueFull> {
        self.jobs.push(job)
    }

    /// Jobs that wait for their grant.
    pub(super) fn queued(&self) -> u32 {
        self.jobs.queued()
    }

    pub(super) fn head(&self, t: usize) -> Option<&JobSpec> {
        self.jobs.head(t)
    }

    /// Moves the clock, never back; answers its time.
    pub(super) fn advance(&mut self, now: Nanos) -> u64 {
        self.clock = self.clock.max(now.0);
        self.clock
    }

    /// A tenant whose first job has become ready since it was last asked for.
    pub(super) fn released(&mut self) -> Option<usize> {
        let (t, _) = self.waiting.peek().filter(|&(_, at)| at <= self.clock)?;
        self.waiting.remove(t);
        Some(t)
    }

    /// When the next first job is released.
    pub(super) fn next_release(&self) -> Option<u64> {
        self.waiting.peek().map(|(_, at)| at)
    }

    /// Whether the tenant's first job is ready; if it is released later, [`Backlog::released`] will name it.
    pub(super) fn ready(&mut self, t: usize) -> bool {
        match self.jobs.head(t) {
            Some(job) if job.release.0 > self.clock => {
                self.waiting.set(t, job.release.0);
                false
            }
            head => {
                let ready = head.is_some();
                self.waiting.remove(t);
                ready
            }
        }
    }

    /// Grants the tenant's first job.
    pub(super) fn grant(&mut self, t: usize, rank: u64, level: u8) -> Option<Decision> {
        let job = self.jobs.start(t, Note::default())?;
        self.on_gpu.push(OnGpu { ticket: job.ticket, tenant: t, rank, asked: false });
        self.ready(t);
        let expected = self.max_job.get(t).copied().flatten().unwrap_or(Nanos::ZERO);
        Some(Decision::Grant { ticket: job.ticket, expected, level })
    }

    pub(super) fn on_gpu(&self) -> &[OnGpu] {
        &self.on_gpu
    }

    /// Whether anything is on the GPU.
    pub(super) fn busy(&self) -> bool {
        !self.on_gpu.is_empty()
    }

    /// Jobs that may be on the GPU at once, or on one level of it.
    pub(super) fn bound(&self) -> usize {
        self.bound
    }

    /// Whether as many jobs as allowed are on the GPU.
    pub(super) fn full(&self) -> bool {
        self.on_gpu.len() >= self.bound
    }

    /// Whether a running job can be asked back.
    pub(super) fn can_ask(&self) -> bool {
        matches!(self.preemption, Preemption::Full { .. })
    }

    /// Whether a job can be granted above another one.
    pub(super) fn has_levels(&self) -> bool {
        matches!(self.preemption, Preemption::Levels { levels, .. } if levels > 1)
    }

    /// Asks one job back: of those chosen the one granted last, and none whose tenant has a later one on the GPU,
    /// so that each tenant's jobs return in order.
    pub(super) fn ask(&mut self, which: impl Fn(&OnGpu) -> bool) -> Option<Decision> {
        let on_gpu = &self.on_gpu;
        let follows =
            |i: usize, j: &OnGpu| on_gpu[i + 1..].iter().any(|k| k.tenant == j.tenant && !k.asked);
        let mut jobs = on_gpu.iter().enumerate().rev();
        let (i, _) = jobs.find(|&(i, j)| !j.asked && which(j) && !follows(i, j))?;
        let job = &mut self.on_gpu[i];
        job.asked = true;
        Some(Decision::Preempt { ticket: job.ticket })
    }

    /// Ends a running job; `None` where none of that name runs.
    pub(super) fn finish(&mut self, ticket: Ticket) -> Option<Left> {
        let done = self.jobs.finish(ticket)?;
        let job = self.take_off(ticket)?;
        Some(Left { tenant: job.tenant, orphan: done.orphan })
    }

    /// A running job waits again, the first of its tenant's.
    pub(super) fn put_back(&mut self, ticket: Ticket) -> Option<Left> {
        let job = self.take_off(ticket)?;
        let orphan = self.jobs.put_back(ticket).is_none();
        Some(Left { tenant: job.tenant, orphan })
    }

    fn take_off(&mut self, ticket: Ticket) -> Option<OnGpu> {
        let at = self.on_gpu.iter().position(|j| j.ticket == ticket)?;
        Some(self.on_gpu.remove(at))
    }

    /// Run nothing until the next release, or `until` if that is sooner.
    pub(super) fn idle(&self, until: Option<u64>, why: Defer) -> Decision {
        let until = match (until, self.next_release()) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let why = if self.queued() == 0 { Defer::Empty } else { why };
        Decision::Idle { until: until.filter(|&at| at != u64::MAX).map(Nanos), why }
    }
}
