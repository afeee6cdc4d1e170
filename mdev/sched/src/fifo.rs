//! Stage 4, schedule: from mediate/job to backend. The policy of a driver's queue.
//!
//! One queue for all tenants: jobs run in the order in which they could first run, which is the later of
//! arrival and release. A job that is not released yet is passed by, as a driver would not have
//! received it; only jobs of its own tenant wait behind it. Budgets, deadlines and guards are ignored;
//! [`GpuCaps::in_flight`] is kept.

use crate::contract::Contract;
use crate::heap::IndexedHeap;
use crate::policy::{
    Decision, Defer, GpuCaps, JobSpec, Policy, QueueFull, TenantId, Ticket, Vblank,
};
use crate::queue::{JobTable, Note};
use alloc::{vec, vec::Vec};
use beamline_abi::Nanos;

/// Jobs in the order of arrival, at most `bound` on the GPU.
#[derive(Debug)]
pub(crate) struct ArrivalOrder {
    bound: Option<u32>,
    jobs: JobTable,
    /// Tenants by when their first job could run, then by submission.
    order: IndexedHeap<(u64, u64)>,
    /// Submission numbers by ticket, to break ties.
    numbers: Vec<u64>,
    next_number: u64,
    max_job: Vec<Nanos>,
    in_flight: u32,
}

impl ArrivalOrder {
    pub(crate) fn new(bound: Option<u32>, max_tenants: usize, max_jobs: usize) -> Self {
        let max_tenants = max_tenants.min(usize::from(u16::MAX) + 1);
        let max_jobs = max_jobs.min(u32::MAX as usize - 1);
        Self {
            bound,
            jobs: JobTable::new(max_tenants, max_jobs),
            order: IndexedHeap::new(max_tenants),
            numbers: vec![0; max_jobs],
            next_number: 0,
            max_job: vec![Nanos::ZERO; max_tenants],
            in_flight: 0,
        }
    }

    pub(crate) fn admit(&mut self, tenant: TenantId, contract: &Contract) {
        let t = usize::from(tenant.0);
        self.drop_jobs(tenant);
        if self.jobs.open(t) {
            self.max_job[t] = contract.max_job;
        }
    }

    pub(crate) fn remove(&mut self, tenant: TenantId) {
        self.order.remove(usize::from(tenant.0));
        self.jobs.close(usize::from(tenant.0));
    }

    pub(crate) fn drop_jobs(&mut self, tenant: TenantId) {
        self.order.remove(usize::from(tenant.0));
        self.jobs.clear(usize::from(tenant.0));
    }

    pub(crate) fn submit(&mut self, job: JobSpec) -> Result<(), QueueFull> {
        self.jobs.push(job)?;
        // In range: the table has as many slots, and took the ticket.
        self.numbers[job.ticket.0 as usize] = self.next_number;
        self.next_number += 1;
        self.file(usize::from(job.tenant.0));
        Ok(())
    }

    fn file(&mut self, t: usize) {
        match self.jobs.head(t) {
            Some(job) => {
                let at = job.arrival.max(job.release).0;
                self.order.set(t, (at, self.numbers[job.ticket.0 as usize]));
            }
            None => {
                self.order.remove(t);
            }
        }
    }

    pub(crate) fn complete(&mut self, ticket: Ticket) {
        if self.jobs.finish(ticket).is_some() {
            self.in_flight = self.in_flight.saturating_sub(1);
        }
    }

    pub(crate) fn preempted(&mut self, ticket: Ticket) {
        if let Some(back) = self.jobs.put_back(ticket) {
            self.in_flight = self.in_flight.saturating_sub(1);
            if !back.orphan {
                self.file(usize::from(back.spec.tenant.0));
            }
        }
    }

    pub(crate) fn decide(&mut self, now: Nanos) -> Decision {
        let idle = |until, why| Decision::Idle { until, why };
        let Some((t, (at, _))) = self.order.peek() else {
            return idle(None, Defer::Empty);
        };
        if self.bound.is_some_and(|b| self.in_flight >= b) {
            return idle(None, Defer::InFlight);
        }
        if at > now.0 {
            return idle(Some(Nanos(at)), Defer::NotReleased);
        }
        let Some(job) = self.jobs.start(t, Note::default()) else {
            return idle(None, Defer::Empty);
        };
        self.in_flight = self.in_flight.saturating_add(1);
        self.file(t);
        Decision::Grant { ticket: job.ticket, expected: self.max_job[t], level: 0 }
    }
}

/// First in, first out.
#[derive(Debug)]
pub struct Fifo(ArrivalOrder);

impl Fifo {
    /// A policy for at most `max_tenants` tenants and `max_jobs` jobs queued or running.
    pub fn new(caps: GpuCaps, max_tenants: usize, max_jobs: usize) -> Self {
        let bound = u32::from(caps.in_flight.max(1));
        Self(ArrivalOrder::new(Some(bound), max_tenants, max_jobs))
    }
}

/// The parts of [`Policy`] that arrival order leaves alone.
macro_rules! delegate_to_arrival_order {
    () => {
        fn admit(&mut self, tenant: TenantId, contract: &Contract) {
            self.0.admit(tenant, contract);
        }
        fn remove(&mut self, tenant: TenantId) {
            self.0.remove(tenant);
        }
        fn drop_jobs(&mut self, tenant: TenantId) {
            self.0.drop_jobs(tenant);
        }
        fn vblank(&mut self, _: TenantId, _: Vblank) {}
        fn submit(&mut self, job: JobSpec) -> Result<(), QueueFull> {
            self.0.submit(job)
        }
        fn complete(&mut self, _: Nanos, ticket: Ticket, _: Nanos) {
            self.0.complete(ticket);
        }
        fn preempted(&mut self, _: Nanos, ticket: Ticket, _: Nanos) {
            self.0.preempted(ticket);
        }
        fn decide(&mut self, now: Nanos) -> Decision {
            self.0.decide(now)
        }
        fn balance(&self, _: TenantId) -> (Nanos, Nanos) {
            (Nanos::ZERO, Nanos::ZERO)
        }
    };
}
pub(crate) use delegate_to_arrival_order;

impl Policy for Fifo {
    fn name(&self) -> &'static str {
        "fifo"
    }
    delegate_to_arrival_order!();
}
