//! The simulator's engine: events in virtual time, and the calls to the policy that the live dispatcher makes, in its
//! order.
//!
//! At each time at which something happens: what left the GPU, the vblanks, the submissions; then the policy is
//! asked until it idles, and again when it said. A job longer than its contract's `max_job` and the grace is
//! killed then; its frame fails, its tenant goes on with the next. Where a contract allows misses, what is still
//! queued at its next vblank is dropped ([`crate::Contract::pattern`]).

use super::gpu::{Gpu, Granted, Left};
use super::guest::{Guest, Next};
use super::ledger::{Label, Ledger};
use super::outcome::{Outcome, TenantOutcome};
use super::place::{Answer, admit, phase};
use super::scenario::{Options, Scenario, ScenarioError, Tenant, Work};
use crate::policy::{Decision, JobSpec, Policy, Preemption, Ticket};
use beamline_abi::Nanos;
use std::boxed::Box;
use std::collections::BinaryHeap;
use std::vec::Vec;

/// Runs a scenario.
///
/// # Errors
/// A field of the scenario that is wrong.
pub fn run(scenario: &Scenario, options: &Options) -> Result<Outcome, ScenarioError> {
    scenario.check()?;
    let answers = admit(scenario, options.phases, options.admission);
    Ok(run_some(scenario, options, &answers, |_| true))
}

/// Runs the tenants that `present` names, with everything else about them as if all were there. The scenario has
/// been checked, and admission has given its `answers`.
pub(super) fn run_some(
    scenario: &Scenario,
    options: &Options,
    answers: &[Answer],
    present: impl Fn(usize) -> bool,
) -> Outcome {
    let mut engine = Engine::new(scenario, options, |i, tenant| {
        let given = answers[i].as_ref().ok().filter(|_| present(i))?;
        Some(phase(*given, tenant, i, options))
    });
    engine.run();
    let mut outcome = engine.close(scenario, options);
    for (tenant, answer) in outcome.tenants.iter_mut().zip(answers) {
        tenant.refused = answer.as_ref().err().cloned();
    }
    outcome
}

/// In the order in which the dispatcher looks at what happens at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Vblank(u16),
    /// The tenant's next main job.
    Send(u16),
    /// The late latch of a frame.
    Post(u16, u64),
    /// A job of a flood.
    Pour(u16),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Event {
    time: u64,
    sequence: u64,
    what: What,
}

impl Ord for Event {
    /// The greatest is the first that happens: the heap takes the greatest.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let key = |e: &Self| (e.time, !matches!(e.what, What::Vblank(_)), e.sequence);
        key(other).cmp(&key(self))
    }
}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// A submitted job.
#[derive(Clone, Copy, Debug)]
struct Job {
    label: Label,
    /// Work until its end or until it is killed, ns.
    left: u64,
    killed: bool,
    begun: bool,
    granted: bool,
    flood: bool,
}

struct Engine<'a> {
    policy: Box<dyn Policy>,
    gpu: Gpu,
    /// By tenant; `None` for those that are not there.
    guests: Vec<Option<Guest<'a>>>,
    events: BinaryHeap<Event>,
    sequence: u64,
    jobs: Vec<Option<Job>>,
    free: Vec<u32>,
    grace: u64,
    /// When the policy wants to be asked again.
    look: Option<u64>,
    start: u64,
    end: u64,
    full: bool,
}

/// Jobs that a tenant can have queued or running.
fn most_jobs(t: &Tenant) -> usize {
    match &t.work {
        Work::Flood(f) => f.depth as usize,
        // A late frame's late latch may still wait when the next frame's jobs come.
        Work::Frames(_) => 2 * usize::from(t.contract.depth) + 2,
        Work::Trace(trace) => {
            let jobs = trace.frames.iter().map(|f| f.jobs.len()).max().unwrap_or(0);
            (jobs + 1) * usize::from(t.contract.depth)
        }
    }
}

impl<'a> Engine<'a> {
    fn new(
        scenario: &'a Scenario,
        options: &Options,
        phase: impl Fn(usize, &Tenant) -> Option<Nanos>,
    ) -> Self {
        let caps = scenario.caps;
        let tenants = &scenario.tenants;
        // Every tenant has had a vblank before the start, as in a host that has run for a while.
        let start = tenants.iter().map(|t| 2 * t.contract.period.ceil().0).max().unwrap_or(0);
        let from = start + scenario.warm_up.0;
        let end = from + scenario.length.0;
        let max_jobs: usize = tenants.iter().map(most_jobs).sum();
        let ledger = Ledger::new(tenants.len(), from, end, start, options.timeline);
        let mut engine = Self {
            policy: options.policy.build(caps, tenants.len(), max_jobs),
            gpu: Gpu::new(&caps, max_jobs, ledger),
            guests: Vec::with_capacity(tenants.len()),
            events: BinaryHeap::with_capacity(max_jobs + 4 * tenants.len()),
            sequence: 0,
            jobs: std::vec![None; max_jobs],
            free: (0..max_jobs as u32).rev().collect(),
            grace: scenario.kill_grace.0,
            look: None,
            start,
            end,
            full: matches!(caps.preemption, Preemption::Full { .. }),
        };
        for (i, tenant) in tenants.iter().enumerate() {
            let guest = phase(i, tenant).map(|phase| {
                let setup = (&caps, scenario.kill_grace);
                Guest::new(i, tenant, phase, options.seed, start, (from, end), setup)
            });
            engine.guests.push(guest);
            engine.open(i, tenant);
        }
        engine
    }

    /// As the dispatcher takes a slice: admitted, then told its newest vblank.
    fn open(&mut self, i: usize, tenant: &Tenant) {
        let Some(guest) = &self.guests[i] else { return };
        self.policy.admit(guest.id(), &guest.contract);
        self.policy.vblank(guest.id(), guest.vblank());
        let next = guest.vblank().next.0;
        let first = guest.flood.as_ref().map(|f| self.start + f.next(0));
        self.at(next, What::Vblank(i as u16));
        if let (Work::Flood(flood), Some(first)) = (&tenant.work, first) {
            for _ in 0..flood.depth {
                self.at(first, What::Pour(i as u16));
            }
        }
    }

    fn at(&mut self, time: u64, what: What) {
        self.sequence += 1;
        self.events.push(Event { time, sequence: self.sequence, what });
    }

    fn run(&mut self) {
        loop {
            let event = self.events.peek().map(|e| e.time);
            let next = [event, self.gpu.next_event(), self.look].into_iter().flatten().min();
            let Some(now) = next.filter(|&t| t <= self.end) else { break };
            while let Some(left) = self.gpu.poll(now) {
                self.left(now, left);
            }
            while let Some(event) = self.events.peek().copied().filter(|e| e.time <= now) {
                self.events.pop();
                self.happens(now, event);
            }
            self.decide(now);
        }
    }

    fn happens(&mut self, now: u64, event: Event) {
        let (What::Vblank(t) | What::Send(t) | What::Post(t, _) | What::Pour(t)) = event.what;
        let Some(guest) = self.guests[usize::from(t)].as_mut() else { return };
        match event.what {
            What::Vblank(_) => {
                if guest.gives_up() {
                    self.policy.drop_jobs(guest.id());
                    for (ticket, entry) in self.jobs.iter_mut().enumerate() {
                        let queued = |j: &mut Job| j.label.tenant == t && !j.granted;
                        if let Some(job) = entry.take_if(queued) {
                            guest.dropped(job.label.slot);
                            self.free.push(ticket as u32);
                        }
                    }
                    guest.give_up(now);
                }
                let next = guest.begin(now);
                let vblank = guest.vblank();
                self.policy.vblank(guest.id(), vblank);
                self.at(vblank.next.0, What::Vblank(t));
                self.follow(t, next, now);
            }
            // A job that was expected otherwise meanwhile.
            What::Send(_) if guest.expects != Some(event.time) => {}
            What::Send(_) => {
                let sent = self.free.last().and_then(|&t| guest.send(now, Ticket(t)));
                if let Some((spec, cost, next)) = sent {
                    self.submit(spec, cost, false);
                    self.follow(t, next, now);
                }
            }
            What::Post(_, slot) => {
                let sent = self.free.last().and_then(|&t| guest.post(now, slot, Ticket(t)));
                if let Some((spec, cost)) = sent {
                    self.submit(spec, cost, false);
                }
            }
            What::Pour(_) => {
                let sent = self.free.last().and_then(|&t| guest.pour(now, Ticket(t)));
                if let Some((spec, cost)) = sent {
                    self.submit(spec, cost, true);
                }
            }
        }
    }

    fn follow(&mut self, t: u16, next: Next, now: u64) {
        if let Some(at) = next.job {
            self.at(at, What::Send(t));
        }
        if let Some(slot) = next.late_latch {
            self.at(now, What::Post(t, slot));
        }
    }

    fn submit(&mut self, spec: JobSpec, cost: u64, flood: bool) {
        let Some(guest) = &self.guests[usize::from(spec.tenant.0)] else { return };
        let taken = self.free.pop();
        debug_assert_eq!(taken, Some(spec.ticket.0), "there is a ticket for every job");
        let longest = guest.contract.max_job.0.saturating_add(self.grace);
        let slot = if flood { spec.slot } else { spec.frame.0 };
        let (tenant, job, late_latch) = (spec.tenant.0, spec.job.0, spec.late_latch);
        let label = Label { tenant, slot, job, late_latch };
        let (left, killed) = (cost.min(longest), cost > longest);
        self.jobs[spec.ticket.0 as usize] =
            Some(Job { label, left, killed, begun: false, granted: false, flood });
        let taken = self.policy.submit(spec);
        debug_assert!(taken.is_ok(), "the policy was built for as many jobs as there are tickets");
    }

    fn left(&mut self, now: u64, left: Left) {
        match left {
            Left::Off { ticket, ran } => {
                if let Some(job) = self.jobs[ticket as usize].as_mut() {
                    job.left -= ran;
                    job.granted = false;
                    job.begun |= ran > 0;
                }
                self.policy.preempted(Nanos(now), Ticket(ticket), Nanos(ran));
            }
            Left::Done { ticket, ran } => {
                self.policy.complete(Nanos(now), Ticket(ticket), Nanos(ran));
                let Some(job) = self.jobs[ticket as usize].take() else { return };
                self.free.push(ticket);
                let Label { tenant, slot, late_latch, .. } = job.label;
                let Some(guest) = self.guests[usize::from(tenant)].as_mut() else { return };
                if job.flood {
                    guest.verdicts.job_left(now, job.killed);
                    let since = now - self.start;
                    let next = guest.flood.as_ref().map_or(since, |f| f.next(since));
                    self.at(self.start + next, What::Pour(tenant));
                } else {
                    let next = guest.done(now, slot, late_latch, job.killed);
                    self.follow(tenant, next, now);
                }
            }
        }
    }

    fn decide(&mut self, now: u64) {
        self.look = None;
        // Each job is granted and asked back at most once at one time: more would be a policy that runs in
        // circles.
        for _ in 0..=2 * self.jobs.len() {
            match self.policy.decide(Nanos(now)) {
                Decision::Grant { ticket, level, .. } => {
                    let Some(Some(job)) = self.jobs.get_mut(ticket.0 as usize) else { return };
                    job.granted = true;
                    let (label, left, begun) = (job.label, job.left, job.begun);
                    let ticket = ticket.0;
                    self.gpu.grant(now, Granted { ticket, label, level, left, begun, ran: 0 });
                }
                Decision::Preempt { ticket } if self.full => {
                    if let Some(left) = self.gpu.preempt(now, ticket.0) {
                        self.left(now, left);
                    }
                }
                Decision::Preempt { ticket } => {
                    debug_assert!(false, "{ticket:?} was asked back, which this GPU cannot do");
                    return;
                }
                Decision::Idle { until, .. } => {
                    debug_assert!(until.is_none_or(|u| u.0 > now), "asked for {until:?} at {now}");
                    self.look = until.map(|u| u.0.max(now + 1));
                    return;
                }
            }
        }
        debug_assert!(false, "the policy never idles at {now}");
    }

    fn close(mut self, scenario: &Scenario, options: &Options) -> Outcome {
        let end = self.end;
        self.gpu.finish(end);
        let ledger = &mut self.gpu.ledger;
        let close = |(guest, tenant): (Option<Guest<'_>>, &Tenant)| match guest {
            Some(guest) => guest.close(end),
            None => TenantOutcome::new(&tenant.name, &tenant.contract),
        };
        let mut tenants: Vec<TenantOutcome> =
            self.guests.into_iter().zip(&scenario.tenants).map(close).collect();
        for (tenant, &gpu) in tenants.iter_mut().zip(&ledger.tenants) {
            tenant.gpu = Nanos(gpu);
        }
        Outcome {
            options: *options,
            span: scenario.length,
            tenants,
            gpu: ledger.gpu,
            timeline: ledger.take_timeline(),
        }
    }
}
