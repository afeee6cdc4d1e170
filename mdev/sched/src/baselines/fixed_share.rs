//! Stage 4, schedule: from mediate/job to backend. NVIDIA vGPU's fixed-share scheduler, as its *Virtual GPU
//! Software User Guide* documents it. A model of documented behaviour.
//!
//! Each vGPU has the share of the GPU that its profile fixes, whether or not the others run: its slots come
//! round whether it has work or not, and nobody else runs in them. So this policy keeps the GPU idle on purpose.
//! Slots are as long as under the other two schedulers ([`super::BestEffort`]); an overshoot is repaid over
//! 33 slots.
//!
//! The profile is the one that just fits: there are as many slots as there were tenants at once, and a slot
//! stays when its tenant goes, until another one takes it.

use super::backlog::{Backlog, Left};
use super::debt::Debt;
use super::nvidia::{AVERAGING, default_slice};
use crate::contract::Contract;
use crate::policy::{
    Decision, Defer, GpuCaps, JobSpec, Policy, QueueFull, TenantId, Ticket, Vblank,
};
use alloc::{vec, vec::Vec};
use beamline_abi::Nanos;

/// The slot that runs.
#[derive(Clone, Copy, Debug)]
struct Slot {
    place: usize,
    end: u64,
    /// When its tenant's latest job left the GPU.
    off: u64,
}

/// NVIDIA vGPU's fixed-share scheduler.
#[derive(Debug)]
pub struct FixedShare {
    backlog: Backlog,
    /// Whose slots come round, in order.
    places: Vec<Option<usize>>,
    debts: Vec<Debt>,
    slot: Option<Slot>,
}

impl FixedShare {
    /// A policy for at most `max_tenants` tenants and `max_jobs` jobs queued or running.
    pub fn new(caps: GpuCaps, max_tenants: usize, max_jobs: usize) -> Self {
        let backlog = Backlog::new(caps, max_tenants, max_jobs);
        let n = backlog.max_tenants();
        Self { backlog, places: Vec::with_capacity(n), debts: vec![Debt::default(); n], slot: None }
    }

    fn slice(&self) -> u64 {
        default_slice(self.places.len()).0
    }

    /// The slot's owner.
    fn owner(&self, slot: Slot) -> Option<usize> {
        self.places.get(slot.place).copied().flatten()
    }

    /// The slot that `now` is in; the GPU is free. Begins it if need be.
    fn slot_at(&mut self, now: u64) -> Slot {
        let slice = self.slice();
        let mut slot =
            self.slot.unwrap_or(Slot { place: 0, end: now.saturating_add(slice), off: 0 });
        while now >= slot.end && slot.end != u64::MAX {
            if let Some(t) = self.owner(slot).filter(|_| self.places.len() > 1) {
                self.debts[t].add(slot.off.saturating_sub(slot.end), AVERAGING);
            }
            // Slots that have passed while nobody asked were idle ones of full length.
            let begin = slot.end.max(slot.off);
            let passed = now.saturating_sub(begin) / slice;
            let begin = begin.saturating_add(passed.saturating_mul(slice));
            slot.place =
                (slot.place + 1 + (passed % self.places.len() as u64) as usize) % self.places.len();
            let length = self.owner(slot).map_or(slice, |t| self.debts[t].repay(slice));
            slot.end = begin.saturating_add(length);
            slot.off = 0;
        }
        self.slot = Some(slot);
        slot
    }

    fn left(&mut self, now: Nanos, left: Left) {
        if let Some(mut slot) = self.slot
            && self.owner(slot) == Some(left.tenant)
            && !left.orphan
        {
            slot.off = slot.off.max(now.0);
            self.slot = Some(slot);
        }
    }
}

impl Policy for FixedShare {
    fn name(&self) -> &'static str {
        "fixed_share"
    }

    fn admit(&mut self, tenant: TenantId, contract: &Contract) {
        self.remove(tenant);
        if !self.backlog.open(tenant, contract) {
            return;
        }
        let t = Some(usize::from(tenant.0));
        match self.places.iter_mut().find(|place| place.is_none()) {
            Some(place) => *place = t,
            None => self.places.push(t),
        }
    }

    fn remove(&mut self, tenant: TenantId) {
        let t = usize::from(tenant.0);
        self.backlog.close(tenant);
        if let Some(debt) = self.debts.get_mut(t) {
            *debt = Debt::default();
        }
        for place in &mut self.places {
            place.take_if(|owner| *owner == t);
        }
    }

    fn drop_jobs(&mut self, tenant: TenantId) {
        self.backlog.clear(tenant);
    }

    fn vblank(&mut self, _: TenantId, _: Vblank) {}

    fn submit(&mut self, job: JobSpec) -> Result<(), QueueFull> {
        self.backlog.push(job)
    }

    fn complete(&mut self, now: Nanos, ticket: Ticket, _: Nanos) {
        if let Some(left) = self.backlog.finish(ticket) {
            self.left(now, left);
        }
    }

    fn preempted(&mut self, now: Nanos, ticket: Ticket, _: Nanos) {
        if let Some(left) = self.backlog.put_back(ticket) {
            self.left(now, left);
        }
    }

    fn decide(&mut self, now: Nanos) -> Decision {
        let now = self.backlog.advance(now);
        // Releases change nothing but in their tenant's slot, where its first job is looked at anyway.
        while self.backlog.released().is_some() {}
        if self.places.is_empty() {
            return self.backlog.idle(None, Defer::Empty);
        }
        let busy = self.backlog.busy();
        let slot = match self.slot {
            Some(slot) if busy => slot,
            _ => self.slot_at(now),
        };
        let owner = self.owner(slot);
        // With one vGPU on the GPU, its slots follow each other.
        let over = now >= slot.end && self.places.len() > 1;
        let ready = owner.is_some_and(|t| self.backlog.ready(t));
        if !over
            && ready
            && !self.backlog.full()
            && let Some(grant) = owner.and_then(|t| self.backlog.grant(t, 0, 0))
        {
            return grant;
        }
        if busy {
            if over && self.backlog.can_ask() {
                let ask = self.backlog.ask(|job| Some(job.tenant) == owner);
                return ask.unwrap_or_else(|| self.backlog.idle(None, Defer::InFlight));
            }
            let end = (now < slot.end).then_some(slot.end);
            return self.backlog.idle(end, Defer::InFlight);
        }
        if self.backlog.queued() == 0 {
            return self.backlog.idle(None, Defer::Empty);
        }
        self.backlog.idle(Some(slot.end), Defer::NoBudget)
    }

    fn balance(&self, tenant: TenantId) -> (Nanos, Nanos) {
        let debt = self.debts.get(usize::from(tenant.0)).copied().unwrap_or_default();
        (Nanos::ZERO, debt.owed())
    }
}
