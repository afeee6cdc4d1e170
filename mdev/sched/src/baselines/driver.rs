//! A GPU and its guests in virtual time, for the tests of the baselines: every grant is checked, and who had
//! the GPU when is written down.

use crate::contract::Contract;
use crate::policy::{Decision, GpuCaps, JobSpec, Policy, Preemption, TenantId, Ticket};
use crate::testing::contract;
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::{vec, vec::Vec};
use beamline_abi::{FrameId, JobIndex, Nanos};

pub(super) const US: u64 = 1_000;
pub(super) const MS: u64 = 1_000 * US;

pub(super) const NONE: GpuCaps = GpuCaps {
    in_flight: 1,
    ahead: 0,
    switch_cost: Nanos(0),
    guard_margin: Nanos(0),
    preemption: Preemption::None,
};
/// Preemption that costs nothing, so that schedules are round numbers.
pub(super) const FULL: GpuCaps =
    GpuCaps { preemption: Preemption::Full { cost: Nanos(0) }, ..NONE };

/// What a guest submits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work {
    pub(super) tenant: u16,
    pub(super) arrival: u64,
    pub(super) release: u64,
    pub(super) deadline: u64,
    pub(super) late_latch: bool,
    pub(super) cost: u64,
}

/// Work of `tenant` that is there at `at`, due never.
pub(super) fn work(tenant: u16, at: u64, cost: u64) -> Work {
    Work { tenant, arrival: at, release: at, deadline: u64::MAX, late_latch: false, cost }
}

/// `count` jobs at once: a tenant that always has work.
pub(super) fn flood(tenant: u16, count: usize, cost: u64) -> Vec<Work> {
    vec![work(tenant, 0, cost); count]
}

pub(super) fn tenant_contract(weight: u16) -> Contract {
    Contract { weight, ..contract(60, 1_000, 1_000) }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Coming,
    Queued,
    OnGpu,
    Done,
}

#[derive(Clone, Copy, Debug)]
struct Job {
    spec: JobSpec,
    state: State,
    /// Work left, ns; with what it takes to go on.
    left: u64,
    resume: u64,
}

/// A stretch of time in which one tenant had the GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) tenant: u16,
    pub(super) start: u64,
    pub(super) end: u64,
}

/// Shorthand for an expected [`Turn`].
pub(super) fn turn(tenant: u16, start: u64, end: u64) -> Turn {
    Turn { tenant, start, end }
}

pub(super) struct Gpu {
    pub(super) policy: Box<dyn Policy>,
    caps: GpuCaps,
    jobs: Vec<Job>,
    /// Tickets by when they arrive.
    coming: VecDeque<u32>,
    /// Queued tickets by tenant, in order.
    order: BTreeMap<u16, VecDeque<u32>>,
    /// Tickets on the GPU: the first one runs.
    running: VecDeque<u32>,
    /// When the first one began.
    began: u64,
    /// The job that was asked back: when it is off, and what it ran before.
    leaving: Option<(u64, u32, u64)>,
    look: Option<u64>,
    pub(super) turns: Vec<Turn>,
    /// Time that the GPU was idle with a ready job in the queue.
    pub(super) wasted: u64,
    pub(super) asked: u64,
}

impl Gpu {
    pub(super) fn new(policy: Box<dyn Policy>, caps: GpuCaps, work: &[Work]) -> Self {
        let jobs: Vec<Job> = work
            .iter()
            .enumerate()
            .map(|(i, w)| Job {
                spec: JobSpec {
                    ticket: Ticket(i as u32),
                    tenant: TenantId(w.tenant),
                    frame: FrameId(1),
                    job: JobIndex(0),
                    jobs: 1,
                    late_latch: w.late_latch,
                    arrival: Nanos(w.arrival),
                    release: Nanos(w.release),
                    deadline: Nanos(w.deadline),
                    slot: 0,
                },
                state: State::Coming,
                left: w.cost,
                resume: 0,
            })
            .collect();
        let mut coming: Vec<u32> = (0..jobs.len() as u32).collect();
        coming.sort_by_key(|&i| jobs[i as usize].spec.arrival);
        Self {
            policy,
            caps,
            jobs,
            coming: coming.into(),
            order: BTreeMap::new(),
            running: VecDeque::new(),
            began: 0,
            leaving: None,
            look: None,
            turns: vec![],
            wasted: 0,
            asked: 0,
        }
    }

    /// Runs until nothing more happens before `end`, where what runs is cut off.
    pub(super) fn run(mut self, end: u64) -> Self {
        let mut now = 0;
        for _ in 0..1_000_000 {
            let idle_since = now;
            let arrival = self.coming.front().map(|&i| self.jobs[i as usize].spec.arrival.0);
            let leaving = self.leaving.map(|(at, _, _)| at);
            let done = self.front().filter(|_| self.leaving.is_none());
            let done = done.map(|job| self.began + job.resume + job.left);
            let next = [arrival, leaving, done, self.look].into_iter().flatten().min();
            let Some(next) = next.filter(|&at| at <= end) else {
                self.ran(end);
                return self;
            };
            now = next;
            self.count_waste(idle_since, now);
            self.events(now);
            self.decide(now);
        }
        panic!("no end of events at {now} under {}", self.policy.name());
    }

    fn front(&self) -> Option<&Job> {
        self.running.front().map(|&i| &self.jobs[i as usize])
    }

    fn count_waste(&mut self, from: u64, to: u64) {
        if self.running.is_empty() {
            let heads = self.order.values().filter_map(VecDeque::front);
            let release = heads.map(|&i| self.jobs[i as usize].spec.release.0).min();
            self.wasted += release.map_or(0, |at| to.saturating_sub(at.max(from)));
        }
    }

    /// The first job has had the GPU until now.
    fn ran(&mut self, now: u64) -> u64 {
        let Some(&i) = self.running.front() else { return 0 };
        let job = &mut self.jobs[i as usize];
        let time = now - self.began;
        let resume = time.min(job.resume);
        job.resume -= resume;
        job.left -= time - resume;
        let tenant = job.spec.tenant.0;
        match self.turns.last_mut() {
            Some(last) if last.tenant == tenant && last.end == self.began => last.end = now,
            _ if time > 0 => self.turns.push(Turn { tenant, start: self.began, end: now }),
            _ => {}
        }
        self.began = now;
        time - resume
    }

    fn events(&mut self, now: u64) {
        if self.look == Some(now) {
            self.look = None;
        }
        if let Some((_, ticket, ran)) = self.leaving.filter(|&(at, _, _)| at == now) {
            self.leaving = None;
            self.off(ticket, now, ran);
        } else if self.leaving.is_none()
            && let Some(job) = self.front().copied()
            && self.began + job.resume + job.left == now
        {
            let ran = self.ran(now);
            let ticket = job.spec.ticket;
            self.running.pop_front();
            self.jobs[ticket.0 as usize].state = State::Done;
            self.policy.complete(Nanos(now), ticket, Nanos(ran));
        }
        while let Some(&i) = self.coming.front() {
            let job = &mut self.jobs[i as usize];
            if job.spec.arrival.0 > now {
                break;
            }
            job.state = State::Queued;
            self.coming.pop_front();
            self.order.entry(job.spec.tenant.0).or_default().push_back(i);
            self.policy.submit(job.spec).unwrap();
        }
    }

    /// A job that was asked back is off the GPU.
    fn off(&mut self, ticket: u32, now: u64, ran: u64) {
        self.running.retain(|&i| i != ticket);
        let job = &mut self.jobs[ticket as usize];
        job.state = State::Queued;
        self.order.get_mut(&job.spec.tenant.0).unwrap().push_front(ticket);
        self.policy.preempted(Nanos(now), Ticket(ticket), Nanos(ran));
        self.began = now;
    }

    fn decide(&mut self, now: u64) {
        for _ in 0..1_000 {
            match self.policy.decide(Nanos(now)) {
                Decision::Grant { ticket, .. } => self.granted(now, ticket.0),
                Decision::Preempt { ticket } => self.ask(now, ticket.0),
                Decision::Idle { until, .. } => {
                    assert!(until.is_none_or(|at| at.0 > now), "look again at {until:?}: {now}");
                    self.look = until.map(|at| at.0);
                    return;
                }
            }
        }
        panic!("no end of decisions at {now}");
    }

    fn granted(&mut self, now: u64, ticket: u32) {
        let job = &mut self.jobs[ticket as usize];
        assert_eq!(job.state, State::Queued, "granted twice or unknown");
        assert!(job.spec.release.0 <= now, "granted before its release");
        let order = self.order.get_mut(&job.spec.tenant.0).unwrap();
        assert_eq!(order.pop_front(), Some(ticket), "a tenant's jobs keep their order");
        job.state = State::OnGpu;
        if self.running.is_empty() {
            self.began = now;
        }
        self.running.push_back(ticket);
        assert!(self.running.len() <= usize::from(self.caps.in_flight), "too many on the GPU");
    }

    fn ask(&mut self, now: u64, ticket: u32) {
        let Preemption::Full { cost } = self.caps.preemption else {
            panic!("asked {ticket} back where the GPU cannot");
        };
        assert_eq!(self.jobs[ticket as usize].state, State::OnGpu, "asked back, but not there");
        self.asked += 1;
        if self.running.front() != Some(&ticket) {
            let began = self.began;
            self.off(ticket, now, 0);
            self.began = began;
            return;
        }
        let ran = self.ran(now);
        self.jobs[ticket as usize].resume = cost.0;
        if cost.0 == 0 {
            self.off(ticket, now, ran);
        } else {
            self.leaving = Some((now + cost.0, ticket, ran));
        }
    }

    /// GPU time that each of the tenants below `n` had within `from..to`.
    pub(super) fn shares(&self, n: u16, from: u64, to: u64) -> Vec<u64> {
        let within = |t: &Turn| t.end.min(to).saturating_sub(t.start.max(from));
        (0..n).map(|i| self.turns.iter().filter(|t| t.tenant == i).map(within).sum()).collect()
    }

    /// Jobs that have not run to their end.
    pub(super) fn unfinished(&self) -> usize {
        self.jobs.iter().filter(|j| j.state != State::Done).count()
    }
}
