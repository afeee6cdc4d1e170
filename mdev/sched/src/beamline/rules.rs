//! Stage 4, schedule: what follows from the set of contracts: the blocking that each tolerates, and the guards'
//! rules. Worked out when a tenant comes, not on the frame's path.

use super::Beamline;
use crate::contract::{Class, Contract, Guard};
use crate::demand::{self, Task};
use crate::guard::{Kind, Rule};
use crate::policy::TenantId;
use crate::preempt;
use alloc::vec::Vec;

/// Reserved tenants up to which the harmless blocking is worked out; beyond, none is assumed harmless.
const TOLERANCE_TENANTS: usize = 64;

impl Beamline {
    /// Works out which blocking the reserved tenants tolerate.
    pub(super) fn renew_tolerances(&mut self) {
        let jobs = self.tenants.iter().flatten().map(|t| t.contract.max_job.0).max();
        self.longest_job = jobs.unwrap_or(0).saturating_add(self.caps.switch_cost.0);
        let reserved = || {
            self.tenants.iter().enumerate().filter_map(|(i, t)| {
                t.as_ref().filter(|t| t.contract.class == Class::Reserved).map(|t| (i, &t.contract))
            })
        };
        let tasks: Vec<_> = if reserved().count() <= TOLERANCE_TENANTS {
            reserved().flat_map(|(i, c)| demand::tasks(TenantId(i as u16), c, &self.caps)).collect()
        } else {
            Vec::new()
        };
        let known = demand::tolerances(&tasks, &self.caps);
        for t in 0..self.tenants.len() {
            for kind in [Kind::Frame, Kind::LateLatch] {
                self.guards.set_tolerance(t, kind, 0);
            }
        }
        let late_is_last = self.preemption_cost().is_some() && !self.any_alignment(&tasks);
        for tenant in self.tenants.iter_mut().flatten() {
            tenant.late_is_last = late_is_last;
        }
        let leaving =
            self.preemption_cost().map(|cost| cost.saturating_add(self.caps.switch_cost.0));
        for (task, tolerance) in tasks.iter().zip(known) {
            // Slack that may be on the GPU when the work comes is asked back then, and not before.
            let tolerance = match leaving {
                Some(leaving) if leaving <= tolerance => u64::MAX,
                _ => tolerance,
            };
            let kind = if task.late_latch { Kind::LateLatch } else { Kind::Frame };
            self.guards.set_tolerance(usize::from(task.tenant.0), kind, tolerance);
        }
    }

    /// Whether the reserved work is in time at every alignment of the vblanks, so that it may also come late.
    fn any_alignment(&self, tasks: &[Task]) -> bool {
        let others = self.tenants.iter().flatten().filter(|t| t.contract.class != Class::Reserved);
        let jobs = others.map(|t| preempt::foreign_chunk(t.contract.max_job.0, &self.caps));
        !tasks.is_empty() && demand::test(tasks, jobs.max().unwrap_or(0), 0, &self.caps).is_ok()
    }

    pub(super) fn set_rules(&mut self, t: usize, c: &Contract) {
        self.guards.remove(t);
        if c.class != Class::Reserved {
            return;
        }
        let rule = Rule {
            soft: c.guard == Guard::Release,
            hold: c.jitter.0,
            period: c.period.floor().0,
            tolerance: 0,
            span: c.main_deadline().0,
        };
        self.guards.set_rule(t, Kind::Frame, rule);
        if let Some(l) = c.late_latch {
            // Later than this the job could not end in time anyway.
            let hold = l.window.saturating_sub(l.budget).0;
            self.guards.set_rule(t, Kind::LateLatch, Rule { hold, span: l.window.0, ..rule });
        }
    }
}
