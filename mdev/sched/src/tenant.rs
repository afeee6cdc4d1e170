//! Stage 4, schedule: one tenant of the frame-contract policy: what it may use, and when its work is due.

use crate::budget::{Minimum, Server};
use crate::contract::{Class, Contract};
use crate::demand;
use crate::mk::Pattern;
use crate::policy::{GpuCaps, JobSpec, Ticket};
use crate::predict::Predictor;
use crate::preempt;
use crate::slack::Clear;
use beamline_abi::Nanos;

/// Which queue a tenant's first job is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Nothing,
    Waiting,
    Reserved,
    Slack,
    /// Its first job waits for one of its own that is on the GPU.
    Held,
}

/// How a tenant broke its contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Breach {
    /// A frame's first job, or its late latch, came later than `jitter` allows.
    Jitter,
    /// A later job of a frame came later than `gap` allows.
    Gap,
    /// A job ran longer than `max_job`.
    MaxJob,
    /// A frame or late latch took more than its budget.
    Budget,
}

#[derive(Debug)]
pub(crate) struct Tenant {
    pub(crate) contract: Contract,
    pub(crate) place: Place,
    /// What its frames, its late latch and its minimum may still use.
    pub(crate) frames: Server,
    pub(crate) late: Server,
    pub(crate) minimum: Minimum,
    pub(crate) predictor: Predictor,
    pub(crate) pattern: Pattern,
    /// When the current period ends.
    pub(crate) period_end: u64,
    /// Declared pauses left in the current frame.
    pub(crate) pauses: u64,
    /// When the next job of the current frame has to come, and the frame it belongs to.
    pub(crate) resume_by: Option<(u64, u64)>,
    /// It is behind its contract by its own doing: work came late, or went beyond its budget.
    behind: bool,
    /// What last put it behind its contract.
    pub(crate) breach: Option<Breach>,
    /// The slot of the newest job.
    newest: u64,
    /// Weighted GPU time received as slack.
    pub(crate) virtual_time: u64,
    /// Jobs of it on the GPU.
    pub(crate) on_gpu: u32,
    /// The job that was asked back, and what it has had so far, ns: none but the first can be.
    partial: Option<(Ticket, u64)>,
    /// What it brings late is due last: the phases that admission rests on have no place for it.
    pub(crate) late_is_last: bool,
    /// The last frame that was due last: so are its later jobs, however soon they come.
    late_frame: Option<u64>,
    /// The clear time that is worth beginning a job for, ns.
    part: u64,
}

impl Tenant {
    pub(crate) fn new(contract: &Contract, caps: &GpuCaps) -> Self {
        let late = contract.late_latch.map_or(0, |l| demand::late_budget(&l, caps));
        Self {
            contract: *contract,
            place: Place::Nothing,
            frames: Server::new(demand::frame_budget(contract, caps), contract.max_job.0),
            late: Server::new(late, 0),
            minimum: Minimum::new(contract.budget.0),
            predictor: Predictor::new(contract),
            pattern: preempt::pattern(contract, caps),
            period_end: 0,
            pauses: 0,
            resume_by: None,
            behind: false,
            breach: None,
            newest: 0,
            virtual_time: 0,
            on_gpu: 0,
            partial: None,
            late_is_last: false,
            late_frame: None,
            part: preempt::part(caps),
        }
    }

    /// Which line of virtual time it stands in.
    pub(crate) fn line(&self) -> usize {
        usize::from(self.contract.class != Class::Background)
    }

    /// Whether the late-latch budget pays for this job.
    pub(crate) fn is_late(&self, job: &JobSpec) -> bool {
        job.late_latch && self.contract.late_latch.is_some()
    }

    /// Whether the contract promises nothing for this job's frame: one of a reserved tenant that may miss.
    pub(crate) fn is_optional(&self, job: &JobSpec) -> bool {
        !self.pattern.is_mandatory(job.slot)
    }

    /// Whether this job runs as reserved work.
    pub(crate) fn pays(&self, job: &JobSpec) -> bool {
        if self.contract.class != Class::Reserved || self.is_optional(job) {
            return false;
        }
        let expected = self.expected(job).0;
        if self.is_late(job) {
            let left = self.late.left(job.slot);
            // A fresh account is never too small: what a late latch goes beyond it, its frames repay.
            left > 0 && (self.frames.debt() == 0 || left >= expected.min(self.late.capacity()))
        } else {
            self.frames.pays(job.slot, expected)
        }
    }

    /// When the job is due for its order among the others; work without a deadline is due with the frame
    /// it delays. Work of a tenant that is behind by its own doing counts as released when it gets to the
    /// head of its queue, and a period after the tenant's work before it; or is due last.
    pub(crate) fn deadline(&mut self, job: &JobSpec, busy: u64, now: u64) -> u64 {
        let latest = self.period_end.saturating_add(self.contract.deadline.0);
        let nominal = job.deadline.0.min(latest);
        let span = self.span(job);
        let put_off = self.behind && now > self.in_time(job);
        if self.late_is_last {
            let frame = (!self.is_late(job)).then_some(job.slot);
            if put_off || (frame.is_some() && frame == self.late_frame) {
                self.late_frame = frame.or(self.late_frame);
                return u64::MAX;
            }
        }
        let put_off = put_off.then(|| now.saturating_add(span));
        let mut apart = self.contract.period.floor().0;
        if !self.pattern.is_all() {
            // Late ones keep the pattern's distance too: they are never denser than admission has charged.
            let last = self.server(job).last_slot().unwrap_or(0);
            apart = apart.saturating_mul(job.slot.saturating_sub(last).max(1));
        }
        self.server(job).due(job.slot, nominal, put_off, now, busy, apart)
    }

    /// Notes whether a job comes as its contract says. `first`: nothing else of the tenant is queued. What comes
    /// while the job before it is on the GPU is not late.
    pub(crate) fn note_arrival(&mut self, job: &JobSpec, first: bool) {
        let start = job.arrival.max(job.release).0;
        let by = match self.resume_by {
            Some((slot, by)) if slot == job.slot && job.job.0 > 0 => by,
            _ => 0,
        };
        let follows = (!first || self.on_gpu > 0) && job.slot == self.newest && !self.is_late(job);
        if start > by.max(self.in_time(job)) && !follows {
            let later = job.job.0 > 0 && !self.is_late(job);
            self.fall_behind(if later { Breach::Gap } else { Breach::Jitter });
            self.server(job).displace(job.slot);
        } else if first && (self.on_gpu == 0 || !self.can_be_asked_back()) {
            // What is on the GPU and comes back is as late as it was.
            self.behind = false;
        }
        self.newest = job.slot;
    }

    /// Whether its jobs may leave the GPU before they are done.
    const fn can_be_asked_back(&self) -> bool {
        self.part != u64::MAX
    }

    /// The tenant is behind. What follows from one breach (late work causes more preemption, for one) does not
    /// hide it.
    fn fall_behind(&mut self, breach: Breach) {
        if !core::mem::replace(&mut self.behind, true) {
            self.breach = Some(breach);
        }
    }

    /// Work beyond the tenant's budget is done: what waited behind it counts as released only now.
    pub(crate) fn note_own_delay(&mut self, done: &JobSpec, head: Option<&JobSpec>, now: u64) {
        let held_up = head.filter(|head| now > self.in_time(head));
        // An optional frame that held nothing up has kept its contract.
        self.behind |= !self.is_optional(done) || held_up.is_some();
        if let Some(head) = held_up {
            self.server(head).displace(head.slot);
        }
    }

    /// The account that pays for a job.
    fn server(&mut self, job: &JobSpec) -> &mut Server {
        if self.is_late(job) { &mut self.late } else { &mut self.frames }
    }

    /// Until when a frame's first job, or its late latch, may come.
    fn in_time(&self, job: &JobSpec) -> u64 {
        let jitter = if self.is_late(job) { 0 } else { self.contract.jitter.0 };
        job.release.0.saturating_add(jitter)
    }

    /// From a job's latest release that the contract allows to its deadline.
    fn span(&self, job: &JobSpec) -> u64 {
        let c = &self.contract;
        if self.is_late(job) {
            c.late_latch.map_or(0, |l| l.window.0)
        } else {
            c.main_deadline().saturating_sub(c.jitter).0
        }
    }

    /// The clear time that a job needs, never none: with a margin where guards are kept as expected.
    pub(crate) fn need(&self, job: &JobSpec, margin: u64) -> Clear {
        Clear {
            expected: self.expected(job).0.min(self.part).saturating_add(margin).max(1),
            worst: self.worst(job).min(self.part).max(1),
        }
    }

    /// What a job is expected to cost from now on. One that was asked back and has outrun its estimate is
    /// expected to go on for a quarter of what it has had.
    pub(crate) fn expected(&self, job: &JobSpec) -> Nanos {
        let whole = self.predictor.expected(job.job.0, job.jobs, self.is_late(job));
        match self.had(job) {
            0 => whole,
            had if had < whole.0 => Nanos(whole.0 - had),
            had => Nanos((had / 4).min(self.worst(job))),
        }
    }

    /// What a job may cost from now on at most.
    pub(crate) fn worst(&self, job: &JobSpec) -> u64 {
        self.contract.max_job.0.saturating_sub(self.had(job))
    }

    /// What the account that pays for a job still holds.
    pub(crate) fn left(&self, job: &JobSpec) -> u64 {
        if self.is_late(job) { self.late.left(job.slot) } else { self.frames.left(job.slot) }
    }

    /// Whether a job goes on where it was asked back.
    pub(crate) fn is_resumed(&self, job: &JobSpec) -> bool {
        self.partial.is_some_and(|(ticket, _)| ticket == job.ticket)
    }

    /// What a job has had before it was asked back.
    fn had(&self, job: &JobSpec) -> u64 {
        match self.partial {
            Some((ticket, had)) if ticket == job.ticket => had,
            _ => 0,
        }
    }

    /// A job was asked back after `ran` more.
    pub(crate) fn interrupt(&mut self, job: &JobSpec, ran: u64) {
        self.partial = Some((job.ticket, self.had(job).saturating_add(ran)));
    }

    /// A job is done after `cost` more; answers what it had in all.
    pub(crate) fn finish(&mut self, job: &JobSpec, cost: Nanos) -> Nanos {
        let all = Nanos(self.had(job).saturating_add(cost.0));
        if self.is_resumed(job) {
            self.partial = None;
        }
        if all > self.contract.max_job {
            self.breach = Some(Breach::MaxJob);
        }
        all
    }

    /// Its queued jobs are gone.
    pub(crate) fn forget_partial(&mut self) {
        self.partial = None;
    }

    pub(crate) fn charge(&mut self, job: &JobSpec, cost: u64) {
        let debt = self.frames.debt();
        if self.is_optional(job) {
            // It runs in what is left, so no account pays for it and it is owed to nobody.
            return;
        }
        match self.contract.class {
            // Its own budget; what goes beyond is repaid by the tenant's frames.
            Class::Reserved if self.is_late(job) => {
                let beyond = self.late.pay(job.slot, cost);
                self.frames.owe(beyond);
            }
            Class::Reserved => self.frames.charge(job.slot, cost),
            Class::Background => self.minimum.charge(cost),
            Class::Elastic => {}
        }
        if self.frames.debt() > debt {
            self.fall_behind(Breach::Budget);
        }
    }
}
