//! Stage 4, schedule: what follows from the set of contracts: the blocking that each tolerates, and the guards'
//! rules. Worked out when a tenant comes, not on the frame's path.

use super::Beamline;
use crate::contract::{Class, Contract, Guard};
use crate::demand::{self, Task};
use crate::guard::{Kind, Rule};
use crate::policy::{Preemption, TenantId};
use crate::preempt;
use crate::tenant::Tenant;
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

    /// Works out how many jobs may stand in line on the GPU: none where somebody else, or a budget, would wait
    /// for them.
    pub(super) fn renew_ahead(&mut self) {
        let mut all = self.tenants.iter().flatten();
        let alone = match (all.next(), all.next()) {
            (Some(Tenant { contract, .. }), None) => {
                // What is latched would be read a job too early.
                contract.class != Class::Reserved && contract.late_latch.is_none()
            }
            _ => false,
        };
        let runs_to_its_end = matches!(self.caps.preemption, Preemption::None);
        self.ahead = if alone && runs_to_its_end { u32::from(self.caps.ahead) } else { 0 };
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

#[cfg(test)]
mod tests {
    use super::Beamline;
    use crate::contract::{Class, Contract};
    use crate::policy::{Decision, Defer, GpuCaps, JobSpec, Policy, Preemption, TenantId, Ticket};
    use crate::testing::{CAPS, contract, flood, vr};
    use alloc::vec;
    use alloc::vec::Vec;
    use beamline_abi::{FrameId, JobIndex, Nanos};

    fn policy(preemption: Preemption) -> Beamline {
        Beamline::new(GpuCaps { ahead: 1, preemption, ..CAPS }, 4, 16)
    }

    fn submit(policy: &mut Beamline, tenant: u16, tickets: core::ops::Range<u32>) {
        for ticket in tickets {
            let job = JobSpec {
                ticket: Ticket(ticket),
                tenant: TenantId(tenant),
                frame: FrameId::NONE,
                job: JobIndex(0),
                jobs: 1,
                late_latch: false,
                arrival: Nanos(0),
                release: Nanos(0),
                deadline: Nanos::MAX,
                slot: 0,
            };
            policy.submit(job).unwrap();
        }
    }

    /// What is granted at 1 ms until the policy idles, and why it does.
    fn granted(policy: &mut Beamline) -> (Vec<u32>, Defer) {
        let mut all = vec![];
        loop {
            match policy.decide(Nanos(1_000_000)) {
                Decision::Grant { ticket, .. } => all.push(ticket.0),
                Decision::Preempt { .. } => panic!("nobody wants the GPU"),
                Decision::Idle { why, .. } => return (all, why),
            }
        }
    }

    #[test]
    fn a_tenant_alone_has_a_job_in_line_until_another_comes() {
        let mut policy = policy(Preemption::None);
        policy.admit(TenantId(0), &flood());
        submit(&mut policy, 0, 0..8);
        assert_eq!(granted(&mut policy), (vec![0, 1], Defer::InFlight));
        policy.complete(Nanos(1), Ticket(0), Nanos(1));
        assert_eq!(granted(&mut policy).0, [2]);

        policy.admit(TenantId(1), &contract(60, 2_000, 2_000));
        policy.complete(Nanos(1), Ticket(1), Nanos(1));
        assert_eq!(granted(&mut policy), (vec![], Defer::InFlight));
        policy.complete(Nanos(1), Ticket(2), Nanos(1));
        assert_eq!(granted(&mut policy).0, [3]);

        policy.remove(TenantId(1));
        assert_eq!(granted(&mut policy).0, [4]);
    }

    #[test]
    fn what_is_reserved_or_latches_late_or_can_be_asked_back_has_none() {
        let elastic = Contract { class: Class::Elastic, ..flood() };
        let reserved = contract(60, 9_000, 1_000);
        let latching = Contract { late_latch: vr().late_latch, ..elastic };
        let full = Preemption::Full { cost: Nanos(1_000) };
        let levels = Preemption::Levels { levels: 2, grain: Nanos(1_000) };
        for (contract, preemption, most) in [
            (elastic, Preemption::None, 2),
            (reserved, Preemption::None, 1),
            (latching, Preemption::None, 1),
            (flood(), full, 1),
            (flood(), levels, 1),
        ] {
            let mut policy = policy(preemption);
            policy.admit(TenantId(0), &contract);
            submit(&mut policy, 0, 0..8);
            assert_eq!(granted(&mut policy).0.len(), most, "{contract:?} {preemption:?}");
        }
    }
}
