//! What holds under every baseline, whatever the guests submit: no job is lost, run early or out of its tenant's
//! order (the driver asserts these), and no time is wasted but where the product's documents say so.

use super::driver::{Gpu, NONE, US, Work, tenant_contract};
use crate::kind::PolicyKind;
use crate::policy::{Decision, Defer, GpuCaps, JobSpec, Policy, Preemption, TenantId, Ticket};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use beamline_abi::{FrameId, JobIndex, Nanos};
use proptest::prelude::*;

const TENANTS: u16 = 12;

prop_compose! {
    fn submission()(
        tenant in 0..TENANTS,
        at in 0u64..60_000,
        later in prop::option::of(0u64..6_000),
        deadline in prop::option::of(0u64..20_000),
        late_latch: bool,
        cost in prop_oneof![4 => 10u64..1_500, 1 => 1_500u64..9_000],
    ) -> Work {
        let release = at + later.unwrap_or(0);
        Work {
            tenant,
            arrival: at * US,
            release: release * US,
            deadline: deadline.map_or(u64::MAX, |d| (release + d) * US),
            late_latch,
            cost: cost * US,
        }
    }
}

fn caps() -> impl Strategy<Value = GpuCaps> {
    let preemption = prop_oneof![
        Just(Preemption::None),
        (0u64..150).prop_map(|us| Preemption::Full { cost: Nanos(us * US) }),
    ];
    (1u8..4, preemption).prop_map(|(in_flight, preemption)| GpuCaps {
        in_flight,
        preemption,
        ..NONE
    })
}

/// What runs under a bound on the jobs in flight, apart from frame contracts.
fn bounded() -> impl Iterator<Item = PolicyKind> {
    let others = [PolicyKind::Beamline, PolicyKind::None];
    PolicyKind::ALL.into_iter().filter(move |kind| !others.contains(kind))
}

/// Policies that keep the GPU idle on purpose, by their documents.
const RESERVING: [PolicyKind; 2] = [PolicyKind::FixedShare, PolicyKind::GvtgWeighted];

proptest! {
    #[test]
    fn every_job_runs_and_no_time_is_wasted(
        jobs in prop::collection::vec(submission(), 1..80),
        weights in prop::collection::vec(1u16..1_000, usize::from(TENANTS)),
        caps in caps(),
    ) {
        for kind in bounded() {
            let mut policy = kind.build(caps, usize::from(TENANTS), jobs.len());
            for (t, &weight) in (0..TENANTS).zip(&weights) {
                policy.admit(TenantId(t), &tenant_contract(weight));
            }
            let gpu = Gpu::new(policy, caps, &jobs).run(1_000_000_000 * US);
            prop_assert_eq!(gpu.unfinished(), 0, "under {}", kind);
            if !RESERVING.contains(&kind) {
                prop_assert_eq!(gpu.wasted, 0, "under {}", kind);
            }
            let had: u64 = gpu.shares(TENANTS, 0, u64::MAX).iter().sum();
            let cost: u64 = jobs.iter().map(|j| j.cost).sum();
            prop_assert!(had >= cost, "under {}", kind);
            prop_assert!(gpu.asked > 0 || had == cost, "under {}", kind);
        }
    }

    /// Tenants come, go and are reset, with jobs on the GPU or without: nothing stays behind.
    #[test]
    fn resets_and_removals_leave_nothing_behind(
        ops in prop::collection::vec((0u8..8, 0..4u16, 0u64..4_000), 0..200),
        caps in caps(),
    ) {
        for kind in bounded() {
            let mut world = World::new(kind, caps, ops.len() + 1);
            for &(op, tenant, later) in &ops {
                world.step(op, TenantId(tenant), later * US);
            }
            for t in 0..4 {
                world.policy.remove(TenantId(t));
            }
            while world.complete() {}
            let now = Nanos(world.now);
            let idle = world.policy.decide(now);
            let empty = Decision::Idle { until: None, why: Defer::Empty };
            prop_assert_eq!(idle, empty, "under {}", kind);
            // Whoever comes then is served, at the latest after a round of slots.
            world.policy.admit(TenantId(2), &tenant_contract(100));
            world.submit(TenantId(2));
            let served = (0..10).any(|_| world.decide());
            prop_assert!(served, "under {}", kind);
        }
    }
}

/// A policy, the jobs it has granted, and the time.
struct World {
    policy: Box<dyn Policy>,
    on_gpu: VecDeque<Ticket>,
    caps: GpuCaps,
    next: u32,
    now: u64,
}

impl World {
    fn new(kind: PolicyKind, caps: GpuCaps, jobs: usize) -> Self {
        let mut policy = kind.build(caps, 4, jobs);
        for t in 0..4 {
            policy.admit(TenantId(t), &tenant_contract(100));
        }
        Self { policy, on_gpu: VecDeque::new(), caps, next: 0, now: 0 }
    }

    fn step(&mut self, op: u8, tenant: TenantId, later: u64) {
        match op {
            0..=2 => self.submit(tenant),
            3 | 4 => {
                self.now += later;
                self.decide();
            }
            5 => {
                self.complete();
            }
            6 => self.policy.drop_jobs(tenant),
            _ if later.is_multiple_of(2) => self.policy.remove(tenant),
            _ => self.policy.admit(tenant, &tenant_contract(100)),
        }
    }

    /// Refused where the tenant was removed.
    fn submit(&mut self, tenant: TenantId) {
        let job = JobSpec {
            ticket: Ticket(self.next),
            tenant,
            frame: FrameId(1),
            job: JobIndex(0),
            jobs: 1,
            late_latch: self.next.is_multiple_of(3),
            arrival: Nanos(self.now),
            release: Nanos(self.now),
            deadline: Nanos(self.now + u64::from(self.next * 7 % 40) * 1_000 * US),
            slot: 0,
        };
        self.next += u32::from(self.policy.submit(job).is_ok());
    }

    fn complete(&mut self) -> bool {
        let done = self.on_gpu.pop_front();
        if let Some(ticket) = done {
            self.policy.complete(Nanos(self.now), ticket, Nanos(US));
        }
        done.is_some()
    }

    /// Does what the policy decides, up to the time it names; answers whether it granted.
    fn decide(&mut self) -> bool {
        let mut granted = false;
        for _ in 0..1_000 {
            match self.policy.decide(Nanos(self.now)) {
                Decision::Grant { ticket, .. } => {
                    self.on_gpu.push_back(ticket);
                    assert!(self.on_gpu.len() <= usize::from(self.caps.in_flight));
                    granted = true;
                }
                Decision::Preempt { ticket } => {
                    self.on_gpu.retain(|&t| t != ticket);
                    self.policy.preempted(Nanos(self.now), ticket, Nanos::ZERO);
                }
                Decision::Idle { until, .. } => {
                    self.now = until.map_or(self.now, |at| at.0);
                    return granted;
                }
            }
        }
        panic!("no end of decisions");
    }
}
