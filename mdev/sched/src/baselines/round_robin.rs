//! Stage 4, schedule: from mediate/job to backend. Round robin with time slices, over the tenants that have
//! work.
//!
//! A slice begins when a tenant gets the GPU; within it the tenant's jobs run one after another. It ends
//! * when nothing of the tenant is ready or on the GPU: the next tenant's turn comes at once;
//! * when its time is over and another tenant has work. Where the GPU preempts in full, what runs is asked
//!   back; elsewhere it runs to its end, and what it takes beyond the slice is an *overshoot*.
//!
//! A tenant that has the GPU to itself gets slice after slice; one that joins waits for the end of the current
//! one. Tenants take turns in the order in which they got work: the longest wait is one slice of each other
//! tenant.

use super::backlog::{Backlog, Left};
use super::debt::Debt;
use crate::contract::Contract;
use crate::heap::IndexedHeap;
use crate::policy::{
    Decision, Defer, GpuCaps, JobSpec, Policy, QueueFull, TenantId, Ticket, Vblank,
};
use alloc::{vec, vec::Vec};
use beamline_abi::Nanos;

/// What one product's documents say about its slices.
pub trait Slicing: core::fmt::Debug + Send {
    /// The policy's name in reports.
    fn name(&self) -> &'static str;

    /// Length of a slice with so many tenants admitted, above 0; `None` where it has no end.
    fn slice(&self, tenants: usize) -> Option<Nanos>;

    /// Over how many slices an overshoot is repaid; `None` where it is forgiven.
    fn averaging(&self) -> Option<u64> {
        None
    }

    /// With so many tenants admitted, a job ran so long beyond its tenant's slice while others waited.
    fn overshot(&mut self, _over: Nanos, _tenants: usize) {}
}

/// Whose slice it is.
#[derive(Clone, Copy, Debug)]
struct Turn {
    /// `None` once the tenant was removed.
    tenant: Option<usize>,
    end: u64,
    /// Another tenant waits for the end.
    contested: bool,
    /// When the tenant's latest job left the GPU.
    off: u64,
}

/// Round robin with time slices.
#[derive(Debug)]
pub struct RoundRobin<S> {
    slicing: S,
    backlog: Backlog,
    /// Tenants with work whose turn it is not, in the order of their turns.
    queue: IndexedHeap<u64>,
    in_queue: Vec<bool>,
    number: u64,
    debts: Vec<Debt>,
    turn: Option<Turn>,
}

impl<S: Slicing> RoundRobin<S> {
    /// A policy for at most `max_tenants` tenants and `max_jobs` jobs queued or running.
    pub fn with(slicing: S, caps: GpuCaps, max_tenants: usize, max_jobs: usize) -> Self {
        let backlog = Backlog::new(caps, max_tenants, max_jobs);
        let n = backlog.max_tenants();
        Self {
            slicing,
            backlog,
            queue: IndexedHeap::new(n),
            in_queue: vec![false; n],
            number: 0,
            debts: vec![Debt::default(); n],
            turn: None,
        }
    }

    /// What the slices go by.
    pub fn slicing(&self) -> &S {
        &self.slicing
    }

    fn slice(&self) -> u64 {
        self.slicing.slice(self.backlog.tenants()).map_or(u64::MAX, |s| s.0.max(1))
    }

    fn has_turn(&self, t: usize) -> bool {
        self.turn.is_some_and(|turn| turn.tenant == Some(t))
    }

    /// A tenant with work waits for its turn, behind all that wait already.
    fn enqueue(&mut self, t: usize) {
        if !self.has_turn(t) && !self.in_queue[t] && self.backlog.ready(t) {
            self.in_queue[t] = true;
            self.number += 1;
            self.queue.set(t, self.number);
        }
    }

    fn dequeue(&mut self, t: usize) {
        self.queue.remove(t);
        if let Some(flag) = self.in_queue.get_mut(t) {
            *flag = false;
        }
    }

    /// The turn as it is at `now`: whether others wait, and until when they must.
    fn look(&mut self, mut turn: Turn, now: u64) -> Turn {
        let others = !self.queue.is_empty();
        if others && !turn.contested {
            // Slices that nobody waited for have followed each other.
            let slice = self.slice();
            let passed = now.saturating_sub(turn.end).div_ceil(slice);
            turn.end = turn.end.saturating_add(passed.saturating_mul(slice));
        }
        turn.contested = others;
        self.turn = Some(turn);
        turn
    }

    /// Ends the turn.
    fn close(&mut self, turn: Turn) {
        self.turn = None;
        let Some(t) = turn.tenant else {
            return;
        };
        if turn.contested && turn.off > turn.end {
            let over = turn.off - turn.end;
            self.slicing.overshot(Nanos(over), self.backlog.tenants());
            if let Some(averaging) = self.slicing.averaging() {
                self.debts[t].add(over, averaging);
            }
        }
        self.enqueue(t);
    }

    /// Begins the turn of the first tenant in the queue whose debt leaves it some of its slice.
    ///
    /// Each tenant that is passed by has repaid a whole slice with it, so this happens no more often than
    /// there were slices overrun.
    fn next_turn(&mut self, now: u64) -> Option<usize> {
        loop {
            let (t, _) = self.queue.peek()?;
            self.dequeue(t);
            let slice = self.slice();
            // Alone, there is nobody to repay.
            let left = if self.queue.is_empty() { slice } else { self.debts[t].repay(slice) };
            if left == 0 {
                self.enqueue(t);
                continue;
            }
            let end = now.saturating_add(left);
            self.turn = Some(Turn { tenant: Some(t), end, contested: false, off: 0 });
            return Some(t);
        }
    }

    fn left(&mut self, now: Nanos, left: Left) {
        if let Some(turn) = &mut self.turn
            && turn.tenant == Some(left.tenant)
            && !left.orphan
        {
            turn.off = turn.off.max(now.0);
        }
    }
}

impl<S: Slicing> Policy for RoundRobin<S> {
    fn name(&self) -> &'static str {
        self.slicing.name()
    }

    fn admit(&mut self, tenant: TenantId, contract: &Contract) {
        self.remove(tenant);
        self.backlog.open(tenant, contract);
    }

    fn remove(&mut self, tenant: TenantId) {
        let t = usize::from(tenant.0);
        self.dequeue(t);
        self.backlog.close(tenant);
        if let Some(debt) = self.debts.get_mut(t) {
            *debt = Debt::default();
        }
        if let Some(turn) = &mut self.turn
            && turn.tenant == Some(t)
        {
            turn.tenant = None;
        }
    }

    fn drop_jobs(&mut self, tenant: TenantId) {
        self.dequeue(usize::from(tenant.0));
        self.backlog.clear(tenant);
    }

    fn vblank(&mut self, _: TenantId, _: Vblank) {}

    fn submit(&mut self, job: JobSpec) -> Result<(), QueueFull> {
        self.backlog.push(job)?;
        self.enqueue(usize::from(job.tenant.0));
        Ok(())
    }

    fn complete(&mut self, now: Nanos, ticket: Ticket, _: Nanos) {
        if let Some(left) = self.backlog.finish(ticket) {
            self.left(now, left);
        }
    }

    fn preempted(&mut self, now: Nanos, ticket: Ticket, _: Nanos) {
        if let Some(left) = self.backlog.put_back(ticket) {
            self.left(now, left);
            self.enqueue(left.tenant);
        }
    }

    fn decide(&mut self, now: Nanos) -> Decision {
        let now = self.backlog.advance(now);
        while let Some(t) = self.backlog.released() {
            self.enqueue(t);
        }
        if let Some(turn) = self.turn {
            let turn = self.look(turn, now);
            let owner = turn.tenant;
            let over = turn.contested && now >= turn.end;
            let ready = owner.is_some_and(|t| self.backlog.ready(t));
            if !over
                && ready
                && !self.backlog.full()
                && let Some(grant) = owner.and_then(|t| self.backlog.grant(t, 0, 0))
            {
                return grant;
            }
            if self.backlog.busy() {
                if over && owner.is_some() && self.backlog.can_ask() {
                    let ask = self.backlog.ask(|_| true);
                    return ask.unwrap_or_else(|| self.backlog.idle(None, Defer::InFlight));
                }
                let end = (turn.contested && !over).then_some(turn.end);
                return self.backlog.idle(end, Defer::InFlight);
            }
            self.close(turn);
        }
        // Whoever is in the queue has work, so its turn begins with a grant.
        match self.next_turn(now).and_then(|t| self.backlog.grant(t, 0, 0)) {
            Some(grant) => grant,
            None => self.backlog.idle(None, Defer::NotReleased),
        }
    }

    fn balance(&self, tenant: TenantId) -> (Nanos, Nanos) {
        let debt = self.debts.get(usize::from(tenant.0)).copied().unwrap_or_default();
        (Nanos::ZERO, debt.owed())
    }
}
