//! A small discrete-event driver over any policy, in virtual time, and what must hold under it.

use crate::contract::{Class, Contract};
use crate::mk;
use crate::policy::{Decision, GpuCaps, JobSpec, Policy, TenantId, Ticket, Vblank};
use crate::sim_gpu::{Gpu, Left};
use crate::slew::Slew;
use alloc::collections::BTreeMap;
use alloc::{vec, vec::Vec};
use beamline_abi::{FrameId, JobIndex, Nanos};

/// A small generator of numbers that are the same in every run (xorshift64*).
#[derive(Debug)]
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }
    /// `0..=most`.
    pub(crate) fn upto(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let x = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 1;
        x % (most + 1)
    }
}

/// How a guest behaves beside its contract.
#[derive(Clone, Debug)]
pub(crate) struct Guest {
    pub(crate) contract: Contract,
    pub(crate) phase: u64,
    /// Where its vblanks move from that phase on, if they do.
    pub(crate) slew: Option<Slew>,
    /// Costs of a frame's jobs; for a flood, of each job in turn.
    pub(crate) jobs: Vec<u64>,
    pub(crate) late: Option<u64>,
    /// Jobs a flood keeps queued; 0 for frames.
    pub(crate) flood: usize,
    /// Costs vary down to a half.
    pub(crate) vary: bool,
    /// Longest that it is late beyond its contract with a frame's first job, and with the others, ns.
    pub(crate) tardy: (u64, u64),
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) frames: u64,
    pub(crate) missed: u64,
    pub(crate) late_jobs: u64,
    pub(crate) late_missed: u64,
    /// Longest that a main or late-latch job of a mandatory frame ended after its deadline, ns.
    pub(crate) worst: u64,
    pub(crate) gpu: u64,
    pub(crate) granted: u64,
    /// Least GPU time in any four periods, ns.
    pub(crate) least: u64,
    /// Frames due by the end, their late latch included, that were in time; and those that were not.
    pub(crate) kept: u64,
    pub(crate) broken: u64,
    /// The most of the latter in any k in a row, with the contract's k.
    pub(crate) most_missed: u32,
    /// Times that a job was asked back.
    pub(crate) asked_back: u64,
    /// Most that was owed, ns.
    pub(crate) debt: u64,
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Vblank(usize, u64),
    /// Tenant, slot, job.
    Arrive(usize, u64, usize),
    Late(usize, u64),
    Flood(usize),
    Look,
}

/// A job between its submission and its end.
#[derive(Clone, Copy, Debug)]
struct Live {
    spec: JobSpec,
    /// What is left of it, ns.
    cost: u64,
    running: bool,
    /// It was asked back before.
    resumes: bool,
}

pub(crate) struct Sim<'a> {
    policy: &'a mut dyn Policy,
    guests: Vec<Guest>,
    events: BTreeMap<(u64, u64), Event>,
    sequence: u64,
    numbers: Numbers,
    free: Vec<u32>,
    live: BTreeMap<u32, Live>,
    order: Vec<Vec<u32>>,
    pub(crate) tally: Vec<Tally>,
    window: Vec<Vec<u64>>,
    /// By slot: how much of each frame was in time, its late latch counted apart.
    results: Vec<Vec<u8>>,
    gpu: Gpu,
}

impl<'a> Sim<'a> {
    pub(crate) fn new(
        policy: &'a mut dyn Policy,
        guests: Vec<Guest>,
        caps: GpuCaps,
        seed: u64,
    ) -> Self {
        let n = guests.len();
        let mut sim = Self {
            policy,
            guests,
            events: BTreeMap::new(),
            sequence: 0,
            numbers: Numbers::new(seed),
            free: (0..512).collect(),
            live: BTreeMap::new(),
            order: vec![vec![]; n],
            tally: vec![Tally::default(); n],
            window: vec![vec![]; n],
            results: vec![vec![]; n],
            gpu: Gpu::new(caps, seed ^ 0x5bd1_e995),
        };
        // Releases are known from a tenant's first vblank on: floods begin when all are.
        let known = sim.guests.iter().map(|g| g.phase).max().unwrap_or(0);
        for t in 0..n {
            sim.policy.admit(TenantId(t as u16), &sim.guests[t].contract);
            sim.at(sim.guests[t].phase, Event::Vblank(t, 0));
            for _ in 0..sim.guests[t].flood {
                sim.at(known, Event::Flood(t));
            }
        }
        sim
    }

    fn at(&mut self, time: u64, event: Event) {
        self.sequence += 1;
        self.events.insert((time, self.sequence), event);
    }

    fn vblank_time(&self, t: usize, slot: u64) -> u64 {
        let guest = &self.guests[t];
        match &guest.slew {
            Some(slew) => slew.time(slot).0,
            None => guest.phase + guest.contract.period.times(slot).0,
        }
    }

    /// Runs until `end`; answers the tallies.
    pub(crate) fn run(mut self, end: u64) -> Vec<Tally> {
        loop {
            let event = self.events.first_key_value().map(|(&(at, _), _)| at);
            let Some(now) = [event, self.gpu.next()].into_iter().flatten().min() else {
                break;
            };
            if now > end {
                break;
            }
            while let Some(left) = self.gpu.left(now) {
                self.left(now, left);
            }
            self.gpu.settle(now);
            // All that happens at one time is known before anything is decided.
            while let Some((&(at, n), &event)) = self.events.first_key_value() {
                if at != now {
                    break;
                }
                self.events.remove(&(at, n));
                self.handle(now, event);
            }
            self.dispatch(now);
        }
        for (t, w) in self.window.iter().enumerate() {
            self.tally[t].least = w.windows(5).map(|w| w[4] - w[0]).min().unwrap_or(0);
        }
        self.judge(end);
        for job in self.live.values() {
            let known = self.order[usize::from(job.spec.tenant.0)].contains(&job.spec.ticket.0);
            assert!(job.running || known, "a job was lost");
        }
        self.tally
    }

    /// Whole frames. The first is left out: a tenant's releases are known from its first vblank on.
    fn judge(&mut self, end: u64) {
        for (t, results) in self.results.iter().enumerate() {
            let guest = &self.guests[t];
            let whole = if guest.late.is_some() { 2 } else { 1 };
            let due = |slot: u64| self.vblank_time(t, slot) + guest.contract.deadline.0 <= end;
            let kept: Vec<bool> = (1..)
                .zip(results.iter().skip(1))
                .take_while(|&(slot, _)| due(slot))
                .map(|(_, &parts)| parts == whole)
                .collect();
            let tally = &mut self.tally[t];
            tally.kept = kept.iter().filter(|&&k| k).count() as u64;
            tally.broken = kept.len() as u64 - tally.kept;
            tally.most_missed = mk::most_missed(&kept, guest.contract.miss.frames);
        }
    }

    /// What is still queued of a tenant that may miss has missed: it makes room for the next frame.
    fn drop_overdue(&mut self, t: usize) {
        self.policy.drop_jobs(TenantId(t as u16));
        for ticket in self.order[t].drain(..) {
            self.live.remove(&ticket);
            self.free.insert(0, ticket);
        }
    }

    /// Whether the rest of a frame was dropped.
    fn is_overdue(&self, t: usize, slot: u64) -> bool {
        let newest = self.results[t].len() as u64 - 1;
        !self.guests[t].contract.pattern().is_all() && slot < newest
    }

    fn dispatch(&mut self, now: u64) {
        loop {
            match self.policy.decide(Nanos(now)) {
                Decision::Grant { ticket, expected, level } => {
                    self.granted(now, ticket, expected.0, level);
                }
                Decision::Preempt { ticket } => {
                    let job = self.live.get(&ticket.0).expect("asked an unknown job back");
                    self.tally[usize::from(job.spec.tenant.0)].asked_back += 1;
                    self.gpu.ask_back(now, ticket.0);
                }
                Decision::Idle { until, .. } => {
                    if let Some(until) = until {
                        assert!(until.0 > now, "told to look again at {until}, now is {now}");
                        self.at(until.0, Event::Look);
                    }
                    return;
                }
            }
        }
    }

    fn granted(&mut self, now: u64, ticket: Ticket, expected: u64, level: u8) {
        let job = self.live.get_mut(&ticket.0).expect("granted an unknown job");
        assert!(!job.running, "granted twice");
        job.running = true;
        let tenant = job.spec.tenant.0;
        let t = usize::from(tenant);
        assert!(job.spec.release.0 <= now, "granted before its release");
        assert!(expected <= self.guests[t].contract.max_job.0);
        assert_eq!(self.order[t].remove(0), ticket.0, "a tenant's jobs keep their order");
        self.gpu.grant(now, ticket.0, tenant, level, job.cost, job.resumes);
    }

    fn left(&mut self, now: u64, left: Left) {
        let job = self.live.get_mut(&left.ticket).expect("runs");
        let (ticket, t) = (Ticket(left.ticket), usize::from(job.spec.tenant.0));
        self.tally[t].gpu += left.ran;
        if left.done {
            self.done(now, ticket, left.ran);
        } else {
            job.cost -= left.ran;
            job.running = false;
            job.resumes = true;
            self.order[t].insert(0, left.ticket);
            self.policy.preempted(Nanos(now), ticket, Nanos(left.ran));
        }
        let (_, debt) = self.policy.balance(TenantId(t as u16));
        self.tally[t].debt = self.tally[t].debt.max(debt.0);
    }

    fn handle(&mut self, now: u64, event: Event) {
        match event {
            Event::Arrive(t, slot, _) | Event::Late(t, slot) if self.is_overdue(t, slot) => {}
            Event::Vblank(t, slot) => self.vblank(now, t, slot),
            Event::Arrive(t, slot, job) => {
                let g = &self.guests[t];
                let (jobs, base) = (g.jobs.len() as u16, self.vblank_time(t, slot));
                let deadline = base + g.contract.main_deadline().0;
                let cost = self.cost(t, self.guests[t].jobs[job]);
                self.submit(t, job as u16, jobs, slot, (now, base, deadline), cost, false);
            }
            Event::Late(t, slot) => {
                let g = &self.guests[t];
                let (base, cost) = (self.vblank_time(t, slot), g.late.expect("has one"));
                let c = g.contract;
                let opening = base + c.main_deadline().0;
                let jobs = g.jobs.len() as u16;
                let cost = self.cost(t, cost);
                self.submit(
                    t,
                    jobs,
                    jobs + 1,
                    slot,
                    (now, opening, base + c.deadline.0),
                    cost,
                    true,
                );
            }
            Event::Flood(t) => {
                let c = self.guests[t].contract;
                let i = self.tally[t].granted as usize % self.guests[t].jobs.len();
                let slot = (now - self.guests[t].phase) / c.period.ceil().0;
                let cost = self.cost(t, self.guests[t].jobs[i]);
                self.submit(t, 0, 1, slot, (now, now, u64::MAX), cost, false);
            }
            Event::Look => {}
        }
    }

    fn vblank(&mut self, now: u64, t: usize, slot: u64) {
        let next = self.vblank_time(t, slot + 1);
        let vblank = Vblank { seq: slot, time: Nanos(now), next: Nanos(next) };
        self.results[t].push(0);
        if !self.guests[t].contract.pattern().is_all() {
            self.drop_overdue(t);
        }
        self.policy.vblank(TenantId(t as u16), vblank);
        self.window[t].push(self.tally[t].gpu);
        self.at(next, Event::Vblank(t, slot + 1));
        if self.guests[t].flood > 0 {
            return;
        }
        let jitter = self.guests[t].contract.jitter.0;
        let delay = self.numbers.upto(jitter + self.guests[t].tardy.0);
        // Who overruns skips frames instead of queueing without end.
        if self.order[t].len() < 4 {
            self.at(now + delay, Event::Arrive(t, slot, 0));
        }
    }

    fn cost(&mut self, t: usize, most: u64) -> u64 {
        if self.guests[t].vary { most - self.numbers.upto(most / 2) } else { most }
    }

    #[expect(clippy::too_many_arguments, reason = "a job's own fields")]
    fn submit(
        &mut self,
        t: usize,
        job: u16,
        jobs: u16,
        slot: u64,
        when: (u64, u64, u64),
        cost: u64,
        late: bool,
    ) {
        let Some(ticket) = self.free.pop() else { return };
        let spec = JobSpec {
            ticket: Ticket(ticket),
            tenant: TenantId(t as u16),
            frame: FrameId(slot + 1),
            job: JobIndex(job),
            jobs,
            late_latch: late,
            arrival: Nanos(when.0),
            release: Nanos(when.1),
            deadline: Nanos(when.2),
            slot,
        };
        self.policy.submit(spec).expect("there is room");
        self.live.insert(ticket, Live { spec, cost, running: false, resumes: false });
        self.order[t].push(ticket);
    }

    fn done(&mut self, now: u64, ticket: Ticket, cost: u64) {
        self.policy.complete(Nanos(now), ticket, Nanos(cost));
        let job = self.live.remove(&ticket.0).expect("runs").spec;
        self.free.insert(0, ticket.0);
        let t = usize::from(job.tenant.0);
        self.tally[t].granted += 1;
        // A tenant's releases are known, and so guarded, from its first vblank on.
        let late_by = if job.slot == 0 { 0 } else { now.saturating_sub(job.deadline.0) };
        if self.guests[t].contract.pattern().is_mandatory(job.slot) {
            self.tally[t].worst = self.tally[t].worst.max(late_by);
        }
        let missed = u64::from(late_by > 0);
        let gap = self.guests[t].contract.gap.0 + self.guests[t].tardy.1;
        let main = self.guests[t].jobs.len();
        if self.guests[t].flood > 0 {
            self.at(now, Event::Flood(t));
        } else if job.late_latch {
            self.results[t][job.slot as usize] += u8::from(missed == 0);
            self.tally[t].late_jobs += 1;
            self.tally[t].late_missed += missed;
        } else if usize::from(job.job.0) + 1 < main {
            let pause = self.numbers.upto(gap);
            self.at(now + pause, Event::Arrive(t, job.slot, usize::from(job.job.0) + 1));
        } else {
            self.results[t][job.slot as usize] += u8::from(missed == 0);
            self.tally[t].frames += 1;
            self.tally[t].missed += missed;
            if self.guests[t].late.is_some() {
                self.at(now, Event::Late(t, job.slot));
            }
        }
    }
}

impl Guest {
    /// A guest that does just what its contract says.
    pub(crate) fn of(contract: Contract, phase: Nanos) -> Self {
        let jobs = if contract.class == Class::Reserved {
            let n = crate::demand::jobs_per_frame(&contract);
            (0..n).map(|_| contract.budget.0 / n).collect()
        } else {
            vec![contract.max_job.0]
        };
        Self {
            contract,
            phase: phase.0,
            slew: None,
            jobs,
            late: contract.late_latch.map(|l| l.budget.0),
            flood: if contract.class == Class::Reserved { 0 } else { 4 },
            vary: true,
            tardy: (0, 0),
        }
    }
}

#[cfg(test)]
#[path = "sim_cases.rs"]
mod cases;
#[cfg(test)]
#[path = "sim_class_cases.rs"]
mod class_cases;
#[cfg(test)]
#[path = "sim_misses.rs"]
mod misses;
#[cfg(test)]
#[path = "sim_slews.rs"]
mod slews;
