//! Stage 4, schedule: from mediate/job to backend. Policies that order jobs by a rank and know nothing of
//! budgets, guards or gaps: the lowest rank first, then in the order in which jobs could first run.
//!
//! Where the GPU preempts in full, whatever other tenants have on it at a higher rank is asked back first.

use super::backlog::Backlog;
use crate::contract::Contract;
use crate::heap::IndexedHeap;
use crate::policy::{
    Decision, Defer, GpuCaps, JobSpec, Policy, QueueFull, TenantId, Ticket, Vblank,
};
use alloc::{vec, vec::Vec};
use beamline_abi::Nanos;

/// What orders the jobs.
pub trait Rank: core::fmt::Debug + Send {
    /// The policy's name in reports.
    fn name(&self) -> &'static str;

    /// The job's rank; the lowest goes first.
    fn rank(&self, job: &JobSpec) -> u64;

    /// The level that jobs of this rank run at, where the GPU knows levels: 0 or 1.
    fn level(&self, _rank: u64) -> u8 {
        0
    }
}

/// Earliest deadline first: every released job with a deadline by its deadline, then those without in order.
/// What the deadlines alone are worth.
#[derive(Clone, Copy, Debug, Default)]
pub struct Edf;

impl Rank for Edf {
    fn name(&self) -> &'static str {
        "edf"
    }
    fn rank(&self, job: &JobSpec) -> u64 {
        job.deadline.0
    }
}

/// First in, first out, but late-latch jobs first: what VR stacks do with a compute queue of high priority. Where
/// the GPU knows levels, late-latch jobs have the upper one.
#[derive(Clone, Copy, Debug, Default)]
pub struct FifoLate;

impl Rank for FifoLate {
    fn name(&self) -> &'static str {
        "fifo_late"
    }
    fn rank(&self, job: &JobSpec) -> u64 {
        u64::from(!job.late_latch)
    }
    fn level(&self, rank: u64) -> u8 {
        u8::from(rank == 0)
    }
}

/// Jobs by rank.
#[derive(Debug)]
pub struct Ranked<R> {
    order: R,
    backlog: Backlog,
    /// Tenants whose first job is ready: by rank, when it could first run, and submission.
    queue: IndexedHeap<(u64, u64, u64)>,
    /// Submission numbers by ticket.
    numbers: Vec<u64>,
    number: u64,
}

impl<R: Rank> Ranked<R> {
    /// A policy for at most `max_tenants` tenants and `max_jobs` jobs queued or running.
    pub fn with(order: R, caps: GpuCaps, max_tenants: usize, max_jobs: usize) -> Self {
        let backlog = Backlog::new(caps, max_tenants, max_jobs);
        let n = backlog.max_tenants();
        Self {
            order,
            backlog,
            queue: IndexedHeap::new(n),
            numbers: vec![0; max_jobs.min(u32::MAX as usize - 1)],
            number: 0,
        }
    }

    /// Puts a tenant where its first job belongs.
    fn file(&mut self, t: usize) {
        if !self.backlog.ready(t) {
            self.queue.remove(t);
        } else if let Some(job) = self.backlog.head(t) {
            let at = job.arrival.max(job.release).0;
            let number = self.numbers[job.ticket.0 as usize];
            self.queue.set(t, (self.order.rank(job), at, number));
        }
    }

    /// Whether a job of this rank finds room beside what is on the GPU; at which level.
    fn room(&self, t: usize, rank: u64) -> Option<u8> {
        let level = if self.backlog.has_levels() { self.order.level(rank) } else { 0 };
        // A tenant's jobs keep their order: none runs above an earlier one.
        let behind = self.backlog.on_gpu().iter().any(|j| j.tenant == t && j.rank > rank);
        let level = if behind { 0 } else { level };
        let above = |rank| self.order.level(rank) > 0;
        let taken = match level {
            0 => self.backlog.on_gpu().len(),
            _ => self.backlog.on_gpu().iter().filter(|j| above(j.rank)).count(),
        };
        (taken < self.backlog.bound()).then_some(level)
    }
}

impl<R: Rank> Policy for Ranked<R> {
    fn name(&self) -> &'static str {
        self.order.name()
    }

    fn admit(&mut self, tenant: TenantId, contract: &Contract) {
        self.remove(tenant);
        self.backlog.open(tenant, contract);
    }

    fn remove(&mut self, tenant: TenantId) {
        self.queue.remove(usize::from(tenant.0));
        self.backlog.close(tenant);
    }

    fn drop_jobs(&mut self, tenant: TenantId) {
        self.queue.remove(usize::from(tenant.0));
        self.backlog.clear(tenant);
    }

    fn vblank(&mut self, _: TenantId, _: Vblank) {}

    fn submit(&mut self, job: JobSpec) -> Result<(), QueueFull> {
        self.backlog.push(job)?;
        // In range: the backlog has as many slots, and took the ticket.
        self.numbers[job.ticket.0 as usize] = self.number;
        self.number += 1;
        self.file(usize::from(job.tenant.0));
        Ok(())
    }

    fn complete(&mut self, _: Nanos, ticket: Ticket, _: Nanos) {
        self.backlog.finish(ticket);
    }

    fn preempted(&mut self, _: Nanos, ticket: Ticket, _: Nanos) {
        if let Some(left) = self.backlog.put_back(ticket) {
            self.file(left.tenant);
        }
    }

    fn decide(&mut self, now: Nanos) -> Decision {
        self.backlog.advance(now);
        while let Some(t) = self.backlog.released() {
            self.file(t);
        }
        let Some((t, (rank, _, _))) = self.queue.peek() else {
            return self.backlog.idle(None, Defer::NotReleased);
        };
        let less_urgent = |tenant, other| tenant != t && other > rank;
        if self.backlog.can_ask() {
            if let Some(ask) = self.backlog.ask(|j| less_urgent(j.tenant, j.rank)) {
                return ask;
            }
            if self.backlog.on_gpu().iter().any(|j| j.asked) {
                return self.backlog.idle(None, Defer::InFlight);
            }
        }
        match self.room(t, rank).and_then(|level| self.backlog.grant(t, rank, level)) {
            Some(grant) => {
                self.file(t);
                grant
            }
            None => self.backlog.idle(None, Defer::InFlight),
        }
    }

    fn balance(&self, _: TenantId) -> (Nanos, Nanos) {
        (Nanos::ZERO, Nanos::ZERO)
    }
}
