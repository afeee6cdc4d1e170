//! Stage 4, schedule: from mediate/job to backend. The frame-contract policy.
//!
//! In order of preference:
//! 1. *Reserved* jobs within budget, earliest deadline first; one that would run over a release that is kept
//!    free gives way to it while that does no harm. While a frame pauses between its jobs, for as
//!    long as its contract declares, no later deadline starts: admission has charged that time.
//! 2. *Background* minima, earliest period end first.
//! 3. *Elastic* jobs, reserved jobs beyond their budget, and those of frames that their contract allows to miss
//!    ([`crate::mk`]), by weighted virtual time.
//! 4. Other background jobs, by weighted virtual time too: in turn where weights and costs are equal.
//!
//! 2 to 4 start only if they end clear of the known releases of reserved work ([`crate::guard`]). The first
//! that does is taken, so that a job too long for any gap holds nobody up.
//! Releases are known from a tenant's first [`Policy::vblank`] on: until then only blocking among reserved
//! work is bounded. A background minimum that has fallen behind a whole period may end after a release, within what the
//! demand test tolerates.
//!
//! A tenant that is alone, and has neither reserved time nor a late latch, may have jobs in line on the GPU
//! ([`GpuCaps::ahead`]). Who comes next may find them there, once.
//!
//! Work that comes later than its contract says is not pushed in front of others': its deadline is put
//! off as if it had been due that much later, and so are its tenant's next ones until the reserved work has
//! paused. So whatever a tenant does, within any interval it gets what admission has charged.
//!
//! Where the GPU can be preempted ([`crate::policy::Preemption`]), slack may begin however long it is:
//! * *Levels*: reserved jobs run above slack, one at a time, so that their order stays here; slack also runs
//!   while a frame pauses. The guards keep the GPU's grain clear.
//! * *Full*: one job at a time, asked back when it has to be (`room`); the guards keep that cost clear. Where
//!   admission rests on the phases, late work is due last instead of put off: the phases have no place for it.
//!
//! A tenant is in at most one of the queues, with the job at the head of its list:
//!
//! ```text
//!            submit, job done                    release passed
//!   Nothing ------------------> Waiting ---------------------------> Reserved (in budget)
//!      ^                                                       \---> Slack
//!      ^                                                       \---> Held (by its own job on the GPU)
//!      '------------- last job granted or dropped ---------------------'
//! ```

use crate::contract::{Class, Contract};
use crate::demand;
use crate::guard::{Guards, Kind};
use crate::heap::IndexedHeap;
use crate::policy::{
    Decision, Defer, GpuCaps, JobSpec, Policy, Preemption, QueueFull, TenantId, Ticket, Vblank,
};
use crate::preempt;
use crate::queue::{Finished, JobTable, Note};
use crate::slack::{Clear, SlackHeap};
use crate::tenant::{Breach, Place, Tenant};
use alloc::vec::Vec;
use beamline_abi::Nanos;

mod gaps;
mod room;
mod rules;
use room::Running;

/// Order among the slack: rank, then period end or virtual time.
type SlackKey = (u8, u64);

/// The frame-contract policy.
#[derive(Debug)]
pub struct Beamline {
    caps: GpuCaps,
    tenants: Vec<Option<Tenant>>,
    jobs: JobTable,
    guards: Guards,
    /// By release time.
    waiting: IndexedHeap<u64>,
    /// By deadline.
    reserved: IndexedHeap<u64>,
    slack: SlackHeap<SlackKey>,
    /// Frames between two jobs: deadline, and until when the GPU is kept.
    pauses: IndexedHeap<(u64, u64)>,
    in_flight: u32,
    reserved_in_flight: u32,
    /// The job on the GPU, where it can be asked back.
    running: Option<Running>,
    /// Busy periods of reserved work so far.
    busy: u64,
    /// Sums over the jobs in flight, ns.
    expected_in_flight: u64,
    worst_in_flight: u64,
    last_tenant: Option<TenantId>,
    /// Virtual time of the latest slack grant: of background, and of all else.
    virtual_now: [u64; 2],
    /// The longest job of any contract, and a switch, ns.
    longest_job: u64,
    /// Jobs that may be on the GPU beyond `caps.in_flight`: [`Self::renew_ahead`].
    ahead: u32,
    /// The latest time any call has named.
    clock: u64,
}

impl Beamline {
    /// A policy for at most `max_tenants` tenants and `max_jobs` jobs queued or running.
    pub fn new(caps: GpuCaps, max_tenants: usize, max_jobs: usize) -> Self {
        // Tenants are numbered by u16 and tickets by u32.
        let max_tenants = max_tenants.min(usize::from(u16::MAX) + 1);
        let max_jobs = max_jobs.min(u32::MAX as usize - 1);
        let caps = GpuCaps { preemption: caps.preemption.usable(), ..caps };
        Self {
            caps,
            tenants: (0..max_tenants).map(|_| None).collect(),
            jobs: JobTable::new(max_tenants, max_jobs),
            guards: Guards::new(max_tenants),
            waiting: IndexedHeap::new(max_tenants),
            reserved: IndexedHeap::new(max_tenants),
            slack: SlackHeap::new(max_tenants),
            pauses: IndexedHeap::new(max_tenants),
            in_flight: 0,
            reserved_in_flight: 0,
            running: None,
            busy: 0,
            expected_in_flight: 0,
            worst_in_flight: 0,
            last_tenant: None,
            virtual_now: [0; 2],
            longest_job: 0,
            ahead: 0,
            clock: 0,
        }
    }

    /// How a tenant last broke its contract since it was admitted, if it ever did.
    pub fn breach(&self, tenant: TenantId) -> Option<Breach> {
        self.tenant(usize::from(tenant.0))?.breach
    }

    fn tenant(&self, t: usize) -> Option<&Tenant> {
        self.tenants.get(t)?.as_ref()
    }

    fn tenant_mut(&mut self, t: usize) -> Option<&mut Tenant> {
        self.tenants.get_mut(t)?.as_mut()
    }

    /// Takes a tenant out of whichever queue it is in.
    fn displace(&mut self, t: usize) {
        match self.tenant(t).map(|t| t.place) {
            Some(Place::Waiting) => {
                self.waiting.remove(t);
            }
            Some(Place::Reserved) => {
                self.reserved.remove(t);
            }
            Some(Place::Slack) => self.slack.remove(t),
            Some(Place::Nothing | Place::Held) | None => {}
        }
        if let Some(t) = self.tenant_mut(t) {
            t.place = Place::Nothing;
        }
    }

    /// Puts a tenant into the queue its first job belongs to.
    fn replace(&mut self, t: usize) {
        let idle = self.tenant(t).is_none_or(|t| t.place == Place::Nothing);
        self.displace(t);
        let Some(&job) = self.jobs.head(t) else {
            return;
        };
        let (clock, virtual_now, busy) = (self.clock, self.virtual_now, self.busy);
        let GpuCaps { preemption, guard_margin: Nanos(margin), .. } = self.caps;
        let Some(tenant) = self.tenant_mut(t) else {
            return;
        };
        if job.release.0 > clock {
            tenant.place = Place::Waiting;
            self.waiting.set(t, job.release.0);
            return;
        }
        let pays = tenant.pays(&job);
        // Its own job on the GPU may have to wait for others' now, or be asked back: it keeps its order.
        let held = match preemption {
            Preemption::None => false,
            Preemption::Levels { .. } => pays,
            Preemption::Full { .. } => true,
        };
        if held && tenant.on_gpu > 0 {
            tenant.place = Place::Held;
            return;
        }
        if pays {
            tenant.place = Place::Reserved;
            let key = tenant.deadline(&job, busy, clock);
            self.reserved.set(t, key);
            return;
        }
        tenant.place = Place::Slack;
        if idle {
            // Whoever was away claims nothing for that time.
            tenant.virtual_time = tenant.virtual_time.max(virtual_now[tenant.line()]);
        }
        let key = match tenant.contract.class {
            Class::Background if tenant.minimum.left() > 0 => (0, tenant.period_end),
            Class::Reserved | Class::Elastic => (1, tenant.virtual_time),
            Class::Background => (2, tenant.virtual_time),
        };
        let need = match tenant.contract.class {
            // Its own releases do not hold it up: that is looked at when it is its turn. But a frame that may
            // miss keeps clear of its tenant's own next ones too.
            Class::Reserved if !tenant.is_optional(&job) => Clear::NONE,
            Class::Background if key.0 == 0 && tenant.minimum.is_behind() => {
                Clear { expected: 0, ..tenant.need(&job, margin) }
            }
            Class::Background | Class::Elastic | Class::Reserved => tenant.need(&job, margin),
        };
        self.slack.set(t, key, need);
    }

    /// Queues the tenants whose first job is released by now.
    fn release(&mut self, now: u64) {
        self.clock = self.clock.max(now);
        while let Some((t, at)) = self.waiting.peek() {
            if at > self.clock {
                break;
            }
            self.replace(t);
        }
    }

    /// The frame with the earliest deadline that is between two jobs.
    fn pause(&mut self, now: u64) -> Option<(u64, u64)> {
        while let Some((t, (deadline, until))) = self.pauses.peek() {
            if until > now {
                return Some((deadline, until));
            }
            self.pauses.remove(t);
        }
        None
    }

    /// Grants a tenant's first job. `due`: of reserved work.
    fn grant(&mut self, t: usize, now: u64, due: Option<u64>) -> Option<Decision> {
        let reserved = due.is_some();
        let job = *self.jobs.head(t)?;
        let tenant = self.tenant(t)?;
        let expected = tenant.expected(&job);
        let leveled = matches!(self.caps.preemption, Preemption::Levels { .. });
        let above = leveled && reserved && self.in_flight > 0;
        // Who had it asked back has paid for its going on.
        let switches = self.last_tenant != Some(job.tenant) && !tenant.is_resumed(&job);
        let switch = match (above, switches) {
            (true, _) => preempt::per_job(&self.caps),
            (false, true) => self.caps.switch_cost.0,
            (false, false) => 0,
        };
        let worst = tenant.worst(&job);
        let note = Note { expected: expected.0, worst, reserved, switch };
        if !reserved {
            let (line, time) = (tenant.line(), tenant.virtual_time);
            self.virtual_now[line] = self.virtual_now[line].max(time);
        }
        self.note_running(t, now, due, &note);
        self.jobs.start(t, note)?;
        if let Some(tenant) = self.tenant_mut(t) {
            tenant.on_gpu += 1;
        }
        self.last_tenant = Some(job.tenant);
        self.in_flight += 1;
        self.reserved_in_flight += u32::from(reserved);
        self.expected_in_flight = self.expected_in_flight.saturating_add(note.expected);
        self.worst_in_flight = self.worst_in_flight.saturating_add(note.worst);
        self.replace(t);
        let level = u8::from(leveled && reserved);
        Some(Decision::Grant { ticket: job.ticket, expected, level })
    }

    /// Counts the busy periods of reserved work: one ends here if none waits, runs or pauses.
    fn note_busy(&mut self, pause: Option<(u64, u64)>) {
        if self.reserved.is_empty() && self.reserved_in_flight == 0 && pause.is_none() {
            self.busy += 1;
        }
    }

    /// The reserved job that is due first, or until when it waits; `None` where there is none.
    fn grant_reserved(&mut self, now: u64, pause: Option<(u64, u64)>) -> Option<Decision> {
        let (t, deadline) = self.reserved.peek()?;
        let wait = match pause {
            Some((earlier, until)) if earlier < deadline => Some(until),
            _ => self.gives_way(t, deadline, now),
        };
        match wait {
            Some(until) => Some(idle(Some(self.or_released(until)), Defer::Guarded)),
            None => self.grant(t, now, Some(deadline)),
        }
    }

    /// Where the GPU knows levels: one reserved job above, and slack below at any time.
    fn decide_by_level(&mut self, now: u64) -> Decision {
        let pause = self.pause(now);
        self.note_busy(pause);
        let mut wait = pause.map(|(_, until)| until);
        if self.reserved_in_flight == 0 {
            match self.grant_reserved(now, pause) {
                Some(Decision::Idle { until, .. }) => wait = until.map(|at| at.0),
                Some(grant) => return grant,
                None => {}
            }
        }
        let below = self.in_flight.saturating_sub(self.reserved_in_flight);
        let (slack, why) = if below < u32::from(self.caps.in_flight.max(1)) {
            match self.grant_slack(now) {
                Decision::Idle { until, why } => (until.map(|at| at.0), why),
                grant => return grant,
            }
        } else {
            (self.waiting.peek().map(|(_, at)| at), Defer::InFlight)
        };
        idle([wait, slack].into_iter().flatten().min(), why)
    }

    /// A job has left the GPU after `ran` ns on it: what was in flight, and what its tenant has used.
    fn off_gpu(&mut self, now: u64, job: &Finished, ran: u64) {
        let Note { expected, worst, reserved, switch } = job.note;
        self.clock = self.clock.max(now);
        self.running = None;
        self.in_flight = self.in_flight.saturating_sub(1);
        self.reserved_in_flight -= u32::from(reserved);
        self.expected_in_flight = self.expected_in_flight.saturating_sub(expected);
        self.worst_in_flight = self.worst_in_flight.saturating_sub(worst);
        let tenant = self.tenant_mut(usize::from(job.spec.tenant.0));
        let Some(tenant) = tenant.filter(|_| !job.orphan) else {
            return;
        };
        tenant.on_gpu = tenant.on_gpu.saturating_sub(1);
        let charged = ran.saturating_add(switch);
        tenant.charge(&job.spec, charged);
        if !reserved {
            let weighted = charged / u64::from(tenant.contract.weight.max(1));
            tenant.virtual_time = tenant.virtual_time.saturating_add(weighted);
        }
    }

    /// `until`, or the next release of a job that is queued, if that is sooner.
    fn or_released(&self, until: u64) -> u64 {
        self.waiting.peek().map_or(until, |(_, at)| at.min(until))
    }

    /// Keeps the GPU for the frame that `job` belongs to until its next job comes, if the contract declares
    /// the pause.
    fn begin_pause(&mut self, t: usize, now: u64, job: &JobSpec) {
        let more = u32::from(job.job.0) + 1 < u32::from(job.jobs);
        let comes = self.jobs.head(t).is_some();
        let busy = self.busy;
        let Some(tenant) = self.tenant_mut(t) else {
            return;
        };
        tenant.resume_by = None;
        if !more || comes {
            return;
        }
        tenant.resume_by = Some((job.slot, now));
        let gap = tenant.contract.gap.0;
        if gap == 0 || tenant.pauses == 0 || !tenant.pays(job) {
            return;
        }
        tenant.pauses -= 1;
        let until = now.saturating_add(gap);
        tenant.resume_by = Some((job.slot, until));
        let deadline = tenant.deadline(job, busy, now);
        self.pauses.set(t, (deadline, until));
    }
}

fn idle(until: Option<u64>, why: Defer) -> Decision {
    Decision::Idle { until: until.map(Nanos), why }
}

impl Policy for Beamline {
    fn name(&self) -> &'static str {
        "beamline"
    }

    fn admit(&mut self, tenant: TenantId, contract: &Contract) {
        let t = usize::from(tenant.0);
        self.remove(tenant);
        if !self.jobs.open(t) {
            return;
        }
        let mut new = Tenant::new(contract, &self.caps);
        new.virtual_time = self.virtual_now[new.line()];
        self.tenants[t] = Some(new);
        self.set_rules(t, contract);
        self.renew_tolerances();
        self.renew_ahead();
    }

    fn remove(&mut self, tenant: TenantId) {
        let t = usize::from(tenant.0);
        self.displace(t);
        self.jobs.close(t);
        self.pauses.remove(t);
        self.guards.remove(t);
        if let Some(slot) = self.tenants.get_mut(t) {
            *slot = None;
        }
        self.renew_ahead();
    }

    fn drop_jobs(&mut self, tenant: TenantId) {
        let t = usize::from(tenant.0);
        self.displace(t);
        self.jobs.clear(t);
        self.pauses.remove(t);
        if let Some(tenant) = self.tenant_mut(t) {
            tenant.forget_partial();
        }
    }

    fn vblank(&mut self, tenant: TenantId, vblank: Vblank) {
        let t = usize::from(tenant.0);
        let waiting = self.jobs.head(t).is_some();
        let Some(tenant) = self.tenant_mut(t) else {
            return;
        };
        let c = tenant.contract;
        tenant.period_end = vblank.next.0;
        match c.class {
            Class::Reserved => {
                if tenant.pattern.is_mandatory(vblank.seq) {
                    tenant.frames.renew(vblank.seq);
                    tenant.late.renew(vblank.seq);
                    tenant.pauses = demand::jobs_per_frame(&c) - 1;
                }
                let (seq, time) = (vblank.seq, vblank.time.0);
                self.guards.frame_vblank(t, seq, time, vblank.next.0);
                if c.late_latch.is_some() {
                    let opening = time.saturating_add(c.main_deadline().0);
                    self.guards.late_latch_vblank(t, seq, opening);
                }
            }
            Class::Background => tenant.minimum.renew(waiting),
            Class::Elastic => {}
        }
        if waiting {
            self.replace(t);
        }
    }

    fn submit(&mut self, job: JobSpec) -> Result<(), QueueFull> {
        let t = usize::from(job.tenant.0);
        let first = self.jobs.head(t).is_none();
        self.jobs.push(job)?;
        self.clock = self.clock.max(job.arrival.0);
        self.pauses.remove(t);
        if let Some(tenant) = self.tenant_mut(t)
            && tenant.contract.class == Class::Reserved
        {
            tenant.note_arrival(&job, first);
            let kind = if tenant.is_late(&job) { Kind::LateLatch } else { Kind::Frame };
            self.guards.arrived(t, kind, job.slot, job.release.0, job.arrival.0);
        }
        if self.tenant(t).is_some_and(|t| t.place == Place::Nothing) {
            self.replace(t);
        }
        Ok(())
    }

    fn complete(&mut self, now: Nanos, ticket: Ticket, cost: Nanos) {
        let Some(done) = self.jobs.finish(ticket) else {
            return;
        };
        let job = done.spec;
        let t = usize::from(job.tenant.0);
        self.off_gpu(now.0, &done, cost.0);
        if done.orphan {
            return;
        }
        let head = self.jobs.head(t).copied();
        let Some(tenant) = self.tenant_mut(t) else {
            return;
        };
        let late = tenant.is_late(&job);
        let whole = tenant.finish(&job, cost);
        tenant.predictor.measured(job.job.0, late, whole);
        if !done.note.reserved && tenant.contract.class == Class::Reserved {
            tenant.note_own_delay(&job, head.as_ref(), now.0);
        }
        if done.note.reserved && !late {
            self.begin_pause(t, now.0, &job);
        }
        let place = self.tenant(t).map(|t| t.place);
        if !matches!(place, None | Some(Place::Nothing | Place::Waiting)) {
            self.replace(t);
        }
    }

    fn preempted(&mut self, now: Nanos, ticket: Ticket, ran: Nanos) {
        let Some(back) = self.jobs.put_back(ticket) else {
            return;
        };
        let t = usize::from(back.spec.tenant.0);
        self.off_gpu(now.0, &back, ran.0);
        if back.orphan {
            return;
        }
        // Its tenant was not away meanwhile.
        self.displace(t);
        if let Some(tenant) = self.tenant_mut(t) {
            tenant.interrupt(&back.spec, ran.0);
            tenant.place = Place::Held;
        }
        self.replace(t);
    }

    fn decide(&mut self, now: Nanos) -> Decision {
        let now = now.0;
        self.release(now);
        if let (Some(run), Some(cost)) = (self.running, self.preemption_cost()) {
            return self.make_room(run, cost, now);
        }
        if self.jobs.queued() == 0 {
            return idle(None, Defer::Empty);
        }
        if matches!(self.caps.preemption, Preemption::Levels { .. }) {
            return self.decide_by_level(now);
        }
        if self.in_flight >= u32::from(self.caps.in_flight.max(1)) + self.ahead {
            return idle(None, Defer::InFlight);
        }
        let pause = self.pause(now);
        self.note_busy(pause);
        if let Some(decision) = self.grant_reserved(now, pause) {
            return decision;
        }
        match pause {
            Some((_, until)) => {
                let next = self.or_released(until);
                let why = if self.slack.is_empty() { Defer::NotReleased } else { Defer::Guarded };
                idle(Some(next), why)
            }
            None => self.grant_slack(now),
        }
    }

    fn balance(&self, tenant: TenantId) -> (Nanos, Nanos) {
        let Some(t) = self.tenant(usize::from(tenant.0)) else {
            return (Nanos::ZERO, Nanos::ZERO);
        };
        match t.contract.class {
            Class::Reserved => (Nanos(t.frames.left_now()), Nanos(t.frames.debt())),
            Class::Background => (Nanos(t.minimum.left()), Nanos::ZERO),
            Class::Elastic => (Nanos::ZERO, Nanos::ZERO),
        }
    }
}
