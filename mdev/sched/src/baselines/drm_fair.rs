//! Stage 4, schedule: from mediate/job to backend. The fair policy of the Linux DRM GPU scheduler, as its source
//! documents it (`drivers/gpu/drm/scheduler/sched_rq.c`). A model of documented behaviour.
//!
//! The entity with the least virtual GPU time runs next; a job runs to its end. The model has one entity per
//! tenant, all of the same priority, so that virtual time is GPU time.
//!
//! * GPU time that has been used is added when the entity's next job is taken and another one waits behind it.
//! * An entity without a waiting job leaves the queue and keeps how far it was ahead of the first one in it;
//!   when it comes back it is as far ahead of who is first then. Time spent away earns nothing.
//!
//! No deadline, no period: a frame that comes late waits as long as any other work. Left out: the turn of
//! 1 ns by which the driver shuffles equals; here they go in the order in which they came.

use super::backlog::Backlog;
use crate::contract::Contract;
use crate::heap::IndexedHeap;
use crate::policy::{
    Decision, Defer, GpuCaps, JobSpec, Policy, QueueFull, TenantId, Ticket, Vblank,
};
use alloc::{vec, vec::Vec};
use beamline_abi::Nanos;

#[derive(Clone, Copy, Debug, Default)]
struct Entity {
    in_queue: bool,
    /// Virtual time, ns: absolute in the queue, relative to the queue's first outside.
    time: u64,
    /// Used since virtual time was last brought up to date, ns.
    used: u64,
}

/// The Linux DRM scheduler's fair policy.
#[derive(Debug)]
pub struct DrmFair {
    backlog: Backlog,
    entities: Vec<Entity>,
    /// By virtual time, then by when they joined.
    queue: IndexedHeap<(u64, u64)>,
    number: u64,
}

impl DrmFair {
    /// A policy for at most `max_tenants` tenants and `max_jobs` jobs queued or running.
    pub fn new(caps: GpuCaps, max_tenants: usize, max_jobs: usize) -> Self {
        let backlog = Backlog::new(caps, max_tenants, max_jobs);
        let n = backlog.max_tenants();
        Self {
            backlog,
            entities: vec![Entity::default(); n],
            queue: IndexedHeap::new(n),
            number: 0,
        }
    }

    /// The least virtual time in the queue.
    fn least(&self) -> u64 {
        self.queue.peek().map_or(0, |(_, (time, _))| time)
    }

    fn set(&mut self, t: usize) {
        self.number += 1;
        self.queue.set(t, (self.entities[t].time, self.number));
    }

    fn join(&mut self, t: usize) {
        if self.entities[t].in_queue || !self.backlog.ready(t) {
            return;
        }
        let least = self.least();
        let entity = &mut self.entities[t];
        entity.in_queue = true;
        entity.time = entity.time.saturating_add(least);
        self.set(t);
    }

    fn leave(&mut self, t: usize) {
        self.queue.remove(t);
        let least = self.least();
        let alone = self.queue.is_empty();
        if let Some(entity) = self.entities.get_mut(t).filter(|e| e.in_queue) {
            entity.in_queue = false;
            entity.time = if alone { 0 } else { entity.time.saturating_sub(least) };
        }
    }

    /// The entity's first job was taken.
    fn taken(&mut self, t: usize) {
        if self.backlog.ready(t) {
            let entity = &mut self.entities[t];
            entity.time = entity.time.saturating_add(core::mem::take(&mut entity.used));
            self.set(t);
        } else {
            self.leave(t);
        }
    }

    fn charge(&mut self, t: usize, time: Nanos) {
        let entity = &mut self.entities[t];
        entity.used = entity.used.saturating_add(time.0);
    }
}

impl Policy for DrmFair {
    fn name(&self) -> &'static str {
        "drm_fair"
    }

    fn admit(&mut self, tenant: TenantId, contract: &Contract) {
        self.remove(tenant);
        self.backlog.open(tenant, contract);
    }

    fn remove(&mut self, tenant: TenantId) {
        let t = usize::from(tenant.0);
        self.queue.remove(t);
        self.backlog.close(tenant);
        if let Some(entity) = self.entities.get_mut(t) {
            *entity = Entity::default();
        }
    }

    fn drop_jobs(&mut self, tenant: TenantId) {
        self.leave(usize::from(tenant.0));
        self.backlog.clear(tenant);
    }

    fn vblank(&mut self, _: TenantId, _: Vblank) {}

    fn submit(&mut self, job: JobSpec) -> Result<(), QueueFull> {
        self.backlog.push(job)?;
        self.join(usize::from(job.tenant.0));
        Ok(())
    }

    fn complete(&mut self, _: Nanos, ticket: Ticket, cost: Nanos) {
        if let Some(left) = self.backlog.finish(ticket).filter(|left| !left.orphan) {
            self.charge(left.tenant, cost);
        }
    }

    fn preempted(&mut self, _: Nanos, ticket: Ticket, ran: Nanos) {
        if let Some(left) = self.backlog.put_back(ticket).filter(|left| !left.orphan) {
            self.charge(left.tenant, ran);
            self.join(left.tenant);
        }
    }

    fn decide(&mut self, now: Nanos) -> Decision {
        self.backlog.advance(now);
        while let Some(t) = self.backlog.released() {
            self.join(t);
        }
        if self.backlog.full() {
            return self.backlog.idle(None, Defer::InFlight);
        }
        let Some((t, _)) = self.queue.peek() else {
            return self.backlog.idle(None, Defer::NotReleased);
        };
        match self.backlog.grant(t, 0, 0) {
            Some(grant) => {
                self.taken(t);
                grant
            }
            None => self.backlog.idle(None, Defer::NotReleased),
        }
    }

    fn balance(&self, _: TenantId) -> (Nanos, Nanos) {
        (Nanos::ZERO, Nanos::ZERO)
    }
}
