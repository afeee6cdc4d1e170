//! Stage 4, schedule: what runs between the releases of reserved work, and when reserved work itself gives way to
//! one.

use super::{Beamline, idle};
use crate::contract::Class;
use crate::guard::{Horizon, Kind, Span};
use crate::policy::{Decision, Defer, Preemption};
use crate::slack::Clear;

impl Beamline {
    /// The first slack job that ends clear of the guards; else why not, and when to look again.
    pub(super) fn grant_slack(&mut self, now: u64) -> Decision {
        let next = self.waiting.peek().map(|(_, at)| at);
        let Some((first, _)) = self.slack.peek() else {
            return idle(next, Defer::NotReleased);
        };
        let horizon = self.guards.horizon(None, now);
        let clear = self.clear(horizon, now);
        let Self { slack, tenants, jobs, guards, .. } = self;
        let (ahead, caps) = ((self.expected_in_flight, self.worst_in_flight), self.caps);
        let found = slack.first(clear, |t| {
            let (Some(Some(tenant)), Some(job)) = (tenants.get(t), jobs.head(t)) else {
                return false;
            };
            if tenant.contract.class != Class::Reserved || tenant.is_optional(job) {
                return true;
            }
            tenant.need(job, caps.guard_margin.0).fits(clear_of(
                guards.horizon(Some(t), now),
                now,
                ahead,
                caps.switch_cost.0,
            ))
        });
        if let Some((t, _)) = found
            && let Some(grant) = self.grant(t, now, None)
        {
            return grant;
        }
        let over = self.tenant(first).is_some_and(|t| t.contract.class == Class::Reserved);
        let until = next.map_or(horizon.until, |n| n.min(horizon.until));
        idle(
            (until != u64::MAX).then_some(until),
            if over { Defer::NoBudget } else { Defer::Guarded },
        )
    }

    /// What a job may take, started now.
    fn clear(&self, horizon: Horizon, now: u64) -> Clear {
        let ahead = (self.expected_in_flight, self.worst_in_flight);
        clear_of(horizon, now, ahead, self.caps.switch_cost.0)
    }

    /// Until when the first reserved job waits for a release that is kept free.
    pub(super) fn gives_way(&mut self, t: usize, deadline: u64, now: u64) -> Option<u64> {
        // Waiting takes from all that waits; this is worked out for one.
        if self.reserved.len() > 1 || self.reserved_in_flight > 0 {
            return None;
        }
        let ahead = match self.caps.preemption {
            Preemption::None => self.expected_in_flight,
            Preemption::Levels { .. } => 0,
            // It makes room when it has to.
            Preemption::Full { .. } => return None,
        };
        let (tenant, job) = (self.tenant(t)?, self.jobs.head(t)?);
        let kind = if tenant.is_late(job) { Kind::LateLatch } else { Kind::Frame };
        let cost = tenant.expected(job).0.saturating_add(ahead);
        let margin = self.caps.switch_cost.0.saturating_add(self.caps.guard_margin.0);
        let end = now.saturating_add(cost).saturating_add(margin);
        let blocking = self.longest_job;
        let span = Span { release: job.release.0, end, deadline, blocking };
        self.guards.give_way(t, kind, span, now).filter(|&until| until > now)
    }
}

/// What a job may take, started now, to end clear of `horizon`: behind the work `ahead` of it on the GPU, as
/// expected and at worst, and after a `switch` of tenant.
fn clear_of(horizon: Horizon, now: u64, ahead: (u64, u64), switch: u64) -> Clear {
    let start = now.saturating_add(switch);
    Clear {
        expected: horizon.soft.saturating_sub(start.saturating_add(ahead.0)),
        worst: horizon.hard.saturating_sub(start.saturating_add(ahead.1)),
    }
}
