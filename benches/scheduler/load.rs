//! A steady load on a policy: many tenants with frames, late latches and background work, in virtual time.
//!
//! Only the policy's decisions take real time here; vblanks, submissions and completions happen at the times
//! that the load says. Costs vary by up to a fifth, the same way in every run.

use anyhow::Context;
use beamline_abi::{FrameId, JobIndex, Nanos};
use beamline_sched::{
    Class, Contract, Decision, GpuCaps, Guard, JobSpec, LateLatch, MissAllowance, Period, Policy,
    PolicyKind, Preemption, Sink, TenantId, Ticket, Vblank,
};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Share of the GPU's time that all contracts together take, in percent.
const LOAD_PERCENT: u64 = 70;
/// Jobs of one tenant that may wait or run at once; a tenant that has more skips a frame.
const MAX_OPEN: u32 = 6;
/// Jobs that a background tenant keeps waiting.
const FLOOD_DEPTH: u32 = 2;
const CAPS: GpuCaps = GpuCaps {
    in_flight: 1,
    ahead: 0,
    switch_cost: Nanos::from_micros(1),
    guard_margin: Nanos::from_micros(5),
    preemption: Preemption::None,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A job and a late latch per frame.
    Vr,
    /// Three jobs per frame.
    Game,
    /// Jobs without end.
    Flood,
}

struct Tenant {
    kind: Kind,
    contract: Contract,
    phase: Nanos,
    /// The latest vblank's number.
    seq: u64,
    open: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Done { ticket: u32, cost: Nanos },
    Vblank { tenant: u16 },
}

/// A policy with tenants on it.
pub(crate) struct Load {
    policy: Box<dyn Policy>,
    tenants: Vec<Tenant>,
    /// What happens when, earliest first.
    events: BinaryHeap<Reverse<(Nanos, Event)>>,
    /// Whose job a ticket is.
    owner: Vec<u16>,
    free: Vec<u32>,
    now: Nanos,
    /// When the policy wants to be asked again.
    ask: Nanos,
    random: u64,
    /// GPU time of all jobs that were granted.
    busy: Nanos,
}

impl Load {
    /// `count` tenants, a third of each kind, whose vblanks are spread evenly.
    pub(crate) fn new(kind: PolicyKind, count: u16) -> anyhow::Result<Self> {
        let max_jobs = usize::from(count) * (MAX_OPEN as usize + 3);
        let mut load = Self {
            policy: kind.build(CAPS, count.into(), max_jobs),
            tenants: Vec::with_capacity(count.into()),
            events: BinaryHeap::with_capacity(2 * max_jobs),
            owner: vec![0; max_jobs],
            free: (0..max_jobs as u32).rev().collect(),
            now: Nanos::ZERO,
            ask: Nanos::MAX,
            random: 1,
            busy: Nanos::ZERO,
        };
        for index in 0..count {
            let tenant = tenant(index, count).context("a refresh rate")?;
            load.policy.admit(TenantId(index), &tenant.contract);
            load.events.push(Reverse((tenant.phase, Event::Vblank { tenant: index })));
            load.tenants.push(tenant);
        }
        Ok(load)
    }

    /// Goes on to the next moment at which the policy is to be asked.
    pub(crate) fn advance(&mut self) -> anyhow::Result<()> {
        let next = self.events.peek().map_or(Nanos::MAX, |Reverse((at, _))| *at);
        self.now = self.now.max(next.min(self.ask));
        self.ask = Nanos::MAX;
        while let Some(&Reverse((at, event))) = self.events.peek() {
            if at > self.now {
                break;
            }
            self.events.pop();
            match event {
                Event::Done { ticket, cost } => self.done(ticket, cost)?,
                Event::Vblank { tenant } => self.vblank(tenant)?,
            }
        }
        Ok(())
    }

    /// Asks the policy, which is what is measured.
    #[inline]
    pub(crate) fn decide(&mut self) -> Decision {
        self.policy.decide(self.now)
    }

    /// Does what was decided; whether the policy is to be asked again at once.
    pub(crate) fn follow(&mut self, decision: Decision) -> bool {
        match decision {
            Decision::Grant { ticket, .. } => {
                let index = usize::from(self.owner[ticket.0 as usize]);
                let planned = self.tenants[index].contract.max_job.0;
                // 80% to 100% of what the contract says.
                let cost = Nanos(planned * 4 / 5 + self.random() % (planned / 5).max(1));
                self.busy = self.busy.saturating_add(cost);
                let done = Event::Done { ticket: ticket.0, cost };
                self.events.push(Reverse((self.now.saturating_add(cost), done)));
                true
            }
            Decision::Preempt { .. } => {
                unreachable!("the capabilities say that no job can be asked back")
            }
            Decision::Idle { until, .. } => {
                // A time that has passed would ask for ever.
                self.ask = until.map_or(Nanos::MAX, |at| at.max(Nanos(self.now.0 + 1)));
                false
            }
        }
    }

    /// How much of the GPU's time was used so far: percent.
    pub(crate) fn used(&self) -> u64 {
        self.busy.0 * 100 / self.now.0.max(1)
    }

    fn done(&mut self, ticket: u32, cost: Nanos) -> anyhow::Result<()> {
        self.policy.complete(self.now, Ticket(ticket), cost);
        self.free.push(ticket);
        let owner = self.owner[ticket as usize];
        let tenant = &mut self.tenants[usize::from(owner)];
        tenant.open -= 1;
        if tenant.kind == Kind::Flood { self.flood(owner) } else { Ok(()) }
    }

    fn vblank(&mut self, index: u16) -> anyhow::Result<()> {
        let tenant = &mut self.tenants[usize::from(index)];
        tenant.seq += 1;
        let at = |seq| tenant.phase.saturating_add(tenant.contract.period.times(seq - 1));
        let vblank = Vblank { seq: tenant.seq, time: at(tenant.seq), next: at(tenant.seq + 1) };
        self.events.push(Reverse((vblank.next, Event::Vblank { tenant: index })));
        self.policy.vblank(TenantId(index), vblank);
        let tenant = &self.tenants[usize::from(index)];
        let (kind, contract) = (tenant.kind, tenant.contract);
        let jobs = match kind {
            Kind::Flood => return self.flood(index),
            _ if tenant.open + 3 > MAX_OPEN => return Ok(()),
            Kind::Vr => 2,
            Kind::Game => 3,
        };
        let deadline = vblank.time.saturating_add(contract.deadline);
        for job in 0..jobs {
            let window = contract.late_latch.filter(|_| job == 1).map(|l| l.window);
            self.submit(JobSpec {
                ticket: Ticket(0),
                tenant: TenantId(index),
                frame: FrameId(vblank.seq),
                job: JobIndex(job),
                jobs,
                late_latch: window.is_some(),
                arrival: self.now,
                release: window.map_or(vblank.time, |w| deadline.saturating_sub(w)),
                deadline,
                slot: vblank.seq,
            })?;
        }
        Ok(())
    }

    /// Keeps a background tenant's queue filled.
    fn flood(&mut self, index: u16) -> anyhow::Result<()> {
        while self.tenants[usize::from(index)].open < FLOOD_DEPTH {
            self.submit(JobSpec {
                ticket: Ticket(0),
                tenant: TenantId(index),
                frame: FrameId::NONE,
                job: JobIndex(0),
                jobs: 1,
                late_latch: false,
                arrival: self.now,
                release: self.now,
                deadline: Nanos::MAX,
                slot: self.tenants[usize::from(index)].seq,
            })?;
        }
        Ok(())
    }

    fn submit(&mut self, job: JobSpec) -> anyhow::Result<()> {
        let ticket = self.free.pop().context("more jobs are open than tenants may have")?;
        self.owner[ticket as usize] = job.tenant.0;
        self.tenants[usize::from(job.tenant.0)].open += 1;
        Ok(self.policy.submit(JobSpec { ticket: Ticket(ticket), ..job })?)
    }

    /// A linear congruential generator (Knuth, MMIX), its high bits.
    fn random(&mut self) -> u64 {
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.random >> 33
    }
}

/// Tenant `index` of `count`. With very many tenants the rates fall, so that a job stays long enough to be
/// worth a decision.
fn tenant(index: u16, count: u16) -> Option<Tenant> {
    let (kind, hz, jobs) = match index % 3 {
        0 => (Kind::Vr, 90, 2),
        1 => (Kind::Game, 60, 3),
        _ => (Kind::Flood, 60, 1),
    };
    let period = Period::from_hz(hz, if count > 100 { 10 } else { 1 })?;
    let share = Nanos(period.floor().0 * LOAD_PERCENT / 100 / u64::from(count));
    let job = Nanos(share.0 / jobs);
    let late_latch = (kind == Kind::Vr)
        .then_some(LateLatch { window: Nanos(period.floor().0 / 8), budget: job });
    let contract = Contract {
        period,
        deadline: period.floor(),
        budget: late_latch.map_or(share, |l| share.saturating_sub(l.budget)),
        max_job: job,
        gap: Nanos::ZERO,
        jitter: Nanos::from_micros(100),
        sink: Sink::Virtual,
        class: if kind == Kind::Flood { Class::Background } else { Class::Reserved },
        miss: MissAllowance { misses: 0, frames: 1 },
        late_latch,
        guard: if kind == Kind::Vr { Guard::Release } else { Guard::Deadline },
        depth: 1,
        weight: 100,
    };
    let phase = Nanos(period.floor().0 * u64::from(index) / u64::from(count));
    Some(Tenant { kind, contract, phase, seq: 0, open: 0 })
}
