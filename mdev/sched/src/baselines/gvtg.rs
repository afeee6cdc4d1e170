//! Stage 4, schedule: from mediate/job to backend. The weighted scheduler of Intel GVT-g, as the Linux kernel's
//! source documents it (`drivers/gpu/drm/i915/gvt/sched_policy.c`). A model of documented behaviour.
//!
//! * Every 100 ms each vGPU is given its part of 100 ms, by weight among all vGPUs, with work or without. What
//!   it did not use, or used too much, is carried over for 10 such stages; then the account begins anew.
//! * A vGPU runs while it has time left, and is charged for the whole time that it has the GPU. When nobody
//!   with work has time left the GPU is idle until the next stage: this policy is not work-conserving.
//! * On a tick of 1 ms the vGPU that has waited longest takes over, and at once when the one before has no work.
//! * A switch happens only when all rings are idle: what runs is never asked back, whatever the GPU can do.
//!
//! Left out: the 2 s in which a vGPU that starts has priority. When a vGPU comes or goes all accounts begin
//! anew, where the driver waits up to a second. Weights are those of the contracts.

use super::backlog::{Backlog, Left};
use crate::contract::Contract;
use crate::heap::IndexedHeap;
use crate::policy::{
    Decision, Defer, GpuCaps, JobSpec, Policy, QueueFull, TenantId, Ticket, Vblank,
};
use alloc::{vec, vec::Vec};
use beamline_abi::Nanos;

const TICK: u64 = 1_000_000;
const STAGE: u64 = 100 * TICK;
const STAGES: u64 = 10;

/// Which queue a tenant is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Nothing,
    /// It has work and time.
    Queue,
    /// It has work, but no time before the next stage.
    Spent,
}

#[derive(Clone, Copy, Debug)]
struct Vgpu {
    place: Place,
    weight: u64,
    /// Time left, ns, as of `account` and `stage`.
    left: i64,
    account: u64,
    stage: u64,
    /// Number of its latest turn: the lowest has waited longest.
    turn: u64,
}

const NEW: Vgpu = Vgpu { place: Place::Nothing, weight: 0, left: 0, account: 0, stage: 0, turn: 0 };

#[derive(Clone, Copy, Debug)]
struct Turn {
    /// `None` once the tenant was removed.
    tenant: Option<usize>,
    /// Charged up to here.
    since: u64,
    tick: u64,
    /// Another vGPU waits until the GPU is idle.
    drain: bool,
    /// When the tenant's latest job left the GPU.
    off: u64,
}

/// Intel GVT-g's weighted scheduler.
#[derive(Debug)]
pub struct GvtgWeighted {
    backlog: Backlog,
    vgpus: Vec<Vgpu>,
    queue: IndexedHeap<u64>,
    /// By the stage that gives them time again, counted from the first.
    spent: IndexedHeap<u64>,
    turn: Option<Turn>,
    turns: u64,
    total_weight: u64,
    /// When the accounts began anew; `None` before the first decision and after a change of tenants.
    begin: Option<u64>,
    account: u64,
    stage: u64,
}

impl GvtgWeighted {
    /// A policy for at most `max_tenants` tenants and `max_jobs` jobs queued or running.
    pub fn new(caps: GpuCaps, max_tenants: usize, max_jobs: usize) -> Self {
        let backlog = Backlog::new(caps, max_tenants, max_jobs);
        let n = backlog.max_tenants();
        Self {
            backlog,
            vgpus: vec![NEW; n],
            queue: IndexedHeap::new(n),
            spent: IndexedHeap::new(n),
            turn: None,
            turns: 0,
            total_weight: 0,
            begin: None,
            account: 0,
            stage: 0,
        }
    }

    /// Begins the stage that `now` is in; answers when the next one begins.
    fn balance_at(&mut self, now: u64) -> u64 {
        let begin = self.begin.unwrap_or(now);
        let passed = (now - begin) / STAGE;
        let (accounts, stage) = (passed / STAGES, passed % STAGES);
        let anew = accounts + u64::from(self.begin.is_none());
        let begin = begin + accounts * STAGES * STAGE;
        if anew > 0 || stage != self.stage {
            self.begin = Some(begin);
            self.account += anew;
            self.stage = stage;
            let stage = self.account * STAGES + stage;
            while let Some((t, _)) = self.spent.peek().filter(|&(_, from)| from <= stage) {
                self.spent.remove(t);
                self.vgpus[t].place = Place::Nothing;
                self.enqueue(t);
            }
        }
        begin.saturating_add((stage + 1) * STAGE)
    }

    /// What each stage gives a vGPU, ns.
    fn part(&self, t: usize) -> i64 {
        // A weight has 16 bits, so this fits.
        (STAGE * self.vgpus[t].weight / self.total_weight.max(1)).max(1) as i64
    }

    /// Time that a vGPU has left, ns: every stage gives it its part, the first one of an account that alone.
    fn left(&mut self, t: usize) -> i64 {
        let (account, stage, part) = (self.account, self.stage, self.part(t));
        let vgpu = &mut self.vgpus[t];
        if vgpu.account == account {
            vgpu.left = vgpu.left.saturating_add(part * (stage - vgpu.stage) as i64);
        } else {
            vgpu.left = part * (stage + 1) as i64;
        }
        vgpu.account = account;
        vgpu.stage = stage;
        vgpu.left
    }

    fn has_turn(&self, t: usize) -> bool {
        self.turn.is_some_and(|turn| turn.tenant == Some(t))
    }

    fn enqueue(&mut self, t: usize) {
        if self.has_turn(t) || self.vgpus[t].place != Place::Nothing || !self.backlog.ready(t) {
            return;
        }
        let left = self.left(t);
        if left > 0 {
            self.vgpus[t].place = Place::Queue;
            self.queue.set(t, self.vgpus[t].turn);
        } else {
            self.vgpus[t].place = Place::Spent;
            let stages = left.unsigned_abs() / self.part(t).unsigned_abs() + 1;
            let from = self.stage.saturating_add(stages).min(STAGES);
            self.spent.set(t, self.account * STAGES + from);
        }
    }

    fn dequeue(&mut self, t: usize) {
        self.queue.remove(t);
        self.spent.remove(t);
        if let Some(vgpu) = self.vgpus.get_mut(t) {
            vgpu.place = Place::Nothing;
        }
    }

    /// Charges whose turn it is up to `to`; answers what it has left, ns.
    fn charge(&mut self, turn: &mut Turn, to: u64) -> i64 {
        let Some(t) = turn.tenant else {
            return 0;
        };
        let time = to.saturating_sub(turn.since);
        turn.since = turn.since.max(to);
        let left = self.left(t).saturating_sub(i64::try_from(time).unwrap_or(i64::MAX));
        self.vgpus[t].left = left;
        left
    }

    /// The first tick after `now`.
    fn tick_after(&self, now: u64) -> u64 {
        let begin = self.begin.unwrap_or(0);
        now.saturating_add(TICK - (now - begin) % TICK)
    }

    /// The turn as it is at `now`, charged where a tick has passed.
    fn look(&mut self, mut turn: Turn, now: u64) -> Turn {
        if now >= turn.tick && !turn.drain {
            let left = self.charge(&mut turn, now);
            turn.drain = left <= 0 || !self.queue.is_empty();
            turn.tick = self.tick_after(now);
        }
        self.turn = Some(turn);
        turn
    }

    fn next_turn(&mut self, now: u64) -> Option<usize> {
        let (t, _) = self.queue.peek()?;
        self.dequeue(t);
        self.turns += 1;
        self.vgpus[t].turn = self.turns;
        let tick = self.tick_after(now);
        self.turn = Some(Turn { tenant: Some(t), since: now, tick, drain: false, off: 0 });
        Some(t)
    }

    fn off(&mut self, now: Nanos, left: Left) {
        if let Some(turn) = &mut self.turn
            && turn.tenant == Some(left.tenant)
            && !left.orphan
        {
            turn.off = turn.off.max(now.0);
        }
    }
}

impl Policy for GvtgWeighted {
    fn name(&self) -> &'static str {
        "gvtg_weighted"
    }

    fn admit(&mut self, tenant: TenantId, contract: &Contract) {
        self.remove(tenant);
        if self.backlog.open(tenant, contract) {
            let weight = u64::from(contract.weight.max(1));
            self.vgpus[usize::from(tenant.0)].weight = weight;
            self.total_weight += weight;
            self.begin = None;
        }
    }

    fn remove(&mut self, tenant: TenantId) {
        let t = usize::from(tenant.0);
        self.dequeue(t);
        self.backlog.close(tenant);
        if let Some(vgpu) = self.vgpus.get_mut(t) {
            self.total_weight -= vgpu.weight;
            *vgpu = NEW;
            self.begin = None;
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
            self.off(now, left);
        }
    }

    fn preempted(&mut self, now: Nanos, ticket: Ticket, _: Nanos) {
        if let Some(left) = self.backlog.put_back(ticket) {
            self.off(now, left);
            self.enqueue(left.tenant);
        }
    }

    fn decide(&mut self, now: Nanos) -> Decision {
        let now = self.backlog.advance(now);
        let stage_end = self.balance_at(now);
        while let Some(t) = self.backlog.released() {
            self.enqueue(t);
        }
        if let Some(turn) = self.turn {
            let mut turn = self.look(turn, now);
            let owner = turn.tenant;
            let ready = owner.is_some_and(|t| self.backlog.ready(t));
            if !turn.drain
                && ready
                && !self.backlog.full()
                && let Some(grant) = owner.and_then(|t| self.backlog.grant(t, 0, 0))
            {
                return grant;
            }
            if self.backlog.busy() {
                let tick = (!turn.drain).then_some(turn.tick);
                return self.backlog.idle(tick, Defer::InFlight);
            }
            let off = turn.off;
            self.charge(&mut turn, off);
            self.turn = None;
            if let Some(t) = owner {
                self.enqueue(t);
            }
        }
        if let Some(grant) = self.next_turn(now).and_then(|t| self.backlog.grant(t, 0, 0)) {
            return grant;
        }
        if self.spent.is_empty() {
            self.backlog.idle(None, Defer::NotReleased)
        } else {
            self.backlog.idle(Some(stage_end), Defer::NoBudget)
        }
    }

    fn balance(&self, tenant: TenantId) -> (Nanos, Nanos) {
        let left = self.vgpus.get(usize::from(tenant.0)).map_or(0, |vgpu| vgpu.left);
        (Nanos(left.max(0).unsigned_abs()), Nanos(left.min(0).unsigned_abs()))
    }
}
