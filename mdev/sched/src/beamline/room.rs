//! Stage 4, schedule: from mediate/job to backend. When the frame-contract policy asks a running job back.
//!
//! Only under [`Preemption::Full`], where one job is on the GPU at a time. It is asked back
//! * for reserved work that is due earlier; slack, and work that has used up what pays for it, is due last.
//!   Not where the job is expected to be done within the cost of preemption: then it has that long;
//! * before a release that is kept free, as late as possible: slack runs right up to it.
//!
//! Whoever a job is asked back for is charged for it (`crate::preempt::per_release`), which is part of what
//! its contract's budget was opened with: once per frame and late latch. Work that comes in more pieces
//! pays for the others out of its own budget. A reserved job that has used up its account pays itself: without
//! its overrun nobody would have asked.
//!
//! ```text
//!            grant                ask back               preempted
//!   queued --------> running ----------------> leaving ------------> queued, first of its tenant's
//!                       \------- done ------------/
//! ```

use super::{Beamline, idle};
use crate::contract::Class;
use crate::policy::{Decision, Defer, JobSpec, Preemption, Ticket};
use crate::preempt;
use crate::queue::Note;

/// The job on the GPU.
#[derive(Clone, Copy, Debug)]
pub(super) struct Running {
    ticket: Ticket,
    tenant: usize,
    /// When reserved work is due; slack is due last.
    due: u64,
    /// Until when its account lasts; zero for slack.
    paid_until: u64,
    /// When it is done, as expected and at worst.
    expected_end: u64,
    worst_end: u64,
    asked: bool,
}

impl Running {
    /// Until when it is left alone although there is more urgent work: it ends sooner than it could leave.
    fn ends_soon(&self, now: u64, cost: u64) -> Option<u64> {
        [self.expected_end, self.worst_end].into_iter().find(|&end| end > now && end - now <= cost)
    }

    /// When to ask it back, to be off the GPU by `clear`: not at all while it `ends` before that.
    fn leaves(clear: u64, ends: u64, cost: u64) -> u64 {
        let last = clear.saturating_sub(cost);
        if ends <= clear { last.max(ends) } else { last }
    }
}

impl Beamline {
    /// What asking a job back costs, where that can be done.
    pub(super) fn preemption_cost(&self) -> Option<u64> {
        match self.caps.preemption {
            Preemption::Full { cost } => Some(cost.0),
            Preemption::None | Preemption::Levels { .. } => None,
        }
    }

    /// Notes which job is on the GPU from `now` on. `due`: of reserved work.
    pub(super) fn note_running(&mut self, t: usize, now: u64, due: Option<u64>, note: &Note) {
        let Some(cost) = self.preemption_cost() else {
            return;
        };
        let (Some(tenant), Some(job)) = (self.tenant(t), self.jobs.head(t)) else {
            return;
        };
        let resumes = if tenant.is_resumed(job) { cost } else { 0 };
        let begin = now.saturating_add(self.caps.switch_cost.0).saturating_add(resumes);
        self.running = Some(Running {
            ticket: job.ticket,
            tenant: t,
            due: due.unwrap_or(u64::MAX),
            paid_until: due.map_or(0, |_| begin.saturating_add(tenant.left(job))),
            expected_end: begin.saturating_add(note.expected),
            worst_end: begin.saturating_add(tenant.worst(job)),
            asked: false,
        });
    }

    /// Whether to ask the running job back at `now`, or when to look again.
    pub(super) fn make_room(&mut self, run: Running, cost: u64, now: u64) -> Decision {
        if run.asked {
            return idle(None, Defer::InFlight);
        }
        let in_budget = now < run.paid_until;
        let due = if in_budget { run.due } else { u64::MAX };
        if let Some((t, earlier)) = self.reserved.peek()
            && earlier < due
        {
            if let Some(until) = run.ends_soon(now, cost) {
                return idle(Some(self.or_released(until)), Defer::InFlight);
            }
            let overran = !in_budget && run.due != u64::MAX;
            let payer =
                if overran { self.jobs.running(run.ticket) } else { self.jobs.head(t) }.copied();
            return self.ask_back(run, payer);
        }
        let until = if in_budget { run.paid_until } else { self.leave_by(run, cost, now) };
        if until <= now {
            return self.ask_back(run, None);
        }
        let until = self.or_released(until);
        idle((until != u64::MAX).then_some(until), Defer::InFlight)
    }

    /// When slack that is running has to be asked back for the guards.
    fn leave_by(&mut self, run: Running, cost: u64, now: u64) -> u64 {
        let margin = self.caps.guard_margin.0;
        let (own, urgent) = self.tenant(run.tenant).map_or((false, false), |t| {
            (t.contract.class == Class::Reserved, t.minimum.is_behind())
        });
        let horizon = self.guards.horizon(own.then_some(run.tenant), now);
        let soft = match horizon.soft {
            u64::MAX => u64::MAX,
            _ if urgent => u64::MAX,
            soft => Running::leaves(soft.saturating_sub(margin), run.expected_end, cost),
        };
        let hard = match horizon.hard {
            u64::MAX => u64::MAX,
            hard => Running::leaves(hard, run.worst_end, cost),
        };
        soft.min(hard)
    }

    /// Asks the running job back; the tenant of `payer` pays for it.
    fn ask_back(&mut self, run: Running, payer: Option<JobSpec>) -> Decision {
        self.running = Some(Running { asked: true, ..run });
        if let Some(job) = payer {
            let t = usize::from(job.tenant.0);
            let charge = preempt::per_release(&self.caps);
            if let Some(tenant) = self.tenant_mut(t) {
                tenant.charge(&job, charge);
                self.replace(t);
            }
        }
        Decision::Preempt { ticket: run.ticket }
    }
}
