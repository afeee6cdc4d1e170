use super::*;
use crate::admission::{Admission, Current, Proof};
use crate::beamline::Beamline;
use crate::contract::{Guard, LateLatch, Period};
use crate::kind::PolicyKind;
use crate::policy::Preemption;
use crate::preempt;
use crate::tenant::Breach;
use crate::testing::{CAPS, contract, flood, game, vr};
use proptest::prelude::*;

/// Admits what it can of `contracts`, in order.
pub(super) fn admitted(contracts: &[Contract], caps: GpuCaps) -> Vec<Current> {
    let admission = Admission::new(caps, 64);
    let mut set: Vec<Current> = vec![];
    for c in contracts {
        if let Ok(got) = admission.try_admit(&set, c) {
            set.push((TenantId(set.len() as u16), *c, got.phase));
        }
    }
    set
}

pub(super) fn guests(set: &[Current]) -> Vec<Guest> {
    set.iter().map(|(_, c, phase)| Guest::of(*c, *phase)).collect()
}

fn run(kind: PolicyKind, guests: Vec<Guest>, end: u64, seed: u64) -> Vec<Tally> {
    let mut policy = kind.build(CAPS, 64, 512);
    Sim::new(policy.as_mut(), guests, CAPS, seed).run(end)
}

/// Under the frame-contract policy, in any class.
pub(super) fn run_on(caps: GpuCaps, guests: Vec<Guest>, end: u64, seed: u64) -> Vec<Tally> {
    run_for_breaches(caps, guests, end, seed).0
}

/// The same, and how each guest broke its contract.
pub(super) fn run_for_breaches(
    caps: GpuCaps,
    guests: Vec<Guest>,
    end: u64,
    seed: u64,
) -> (Vec<Tally>, Vec<Option<Breach>>) {
    let mut policy = Beamline::new(caps, 64, 512);
    let n = guests.len() as u16;
    let tally = Sim::new(&mut policy, guests, caps, seed).run(end);
    (tally, (0..n).map(|t| policy.breach(TenantId(t))).collect())
}

fn reference() -> Vec<Guest> {
    let set = admitted(&[vr(), game(), flood()], CAPS);
    assert_eq!(set.len(), 3);
    let mut guests = guests(&set);
    guests[2].jobs = vec![1_000_000];
    guests[2].vary = false;
    guests
}

#[test]
fn headset_game_and_flood_over_ten_thousand_frames() {
    let end = 112_000_000_000;
    let t = run(PolicyKind::Beamline, reference(), end, 7);
    assert!(t[0].frames >= 10_000 && t[0].late_jobs >= 10_000, "{t:?}");
    for (i, t) in t.iter().enumerate().take(2) {
        assert_eq!((t.missed, t.late_missed), (0, 0), "tenant {i}: {t:?}");
    }
    assert!(t[2].gpu > end / 4, "the flood gets the slack: {t:?}");
    assert!(t[2].least >= 20_000_000, "and never less than its minimum: {t:?}");

    let t = run(PolicyKind::Fifo, reference(), end, 7);
    assert!(t[0].late_missed > t[0].late_jobs / 10, "{t:?}");
}

#[test]
fn no_mediation_grants_everything_released() {
    let mut policy = PolicyKind::None.build(CAPS, 4, 16);
    policy.admit(TenantId(1), &game());
    for i in 0..5 {
        policy.submit(job(1, i, 10)).unwrap();
    }
    for i in 0..5 {
        assert!(
            matches!(policy.decide(Nanos(10)), Decision::Grant { ticket: Ticket(t), .. } if t == i)
        );
    }
}

fn job(tenant: u16, ticket: u32, release: u64) -> JobSpec {
    JobSpec {
        ticket: Ticket(ticket),
        tenant: TenantId(tenant),
        frame: FrameId(1),
        job: JobIndex(0),
        jobs: 1,
        late_latch: false,
        arrival: Nanos(0),
        release: Nanos(release),
        deadline: Nanos::MAX,
        slot: 0,
    }
}

#[test]
fn misuse_is_refused_or_ignored() {
    for kind in PolicyKind::ALL {
        let mut p = kind.build(CAPS, 2, 4);
        assert!(p.submit(job(0, 0, 0)).is_err(), "not admitted");
        p.admit(TenantId(0), &game());
        p.admit(TenantId(9), &game());
        assert!(p.submit(job(9, 0, 0)).is_err(), "no such tenant");
        assert!(p.submit(job(0, 4, 0)).is_err(), "no such ticket");
        p.submit(job(0, 1, 0)).unwrap();
        assert!(p.submit(job(0, 1, 0)).is_err(), "ticket in use");
        p.complete(Nanos(5), Ticket(1), Nanos(5));
        p.complete(Nanos(5), Ticket(77), Nanos(5));
        p.vblank(TenantId(9), Vblank { seq: 0, time: Nanos(0), next: Nanos(1) });
        assert!(matches!(p.decide(Nanos(9)), Decision::Grant { ticket: Ticket(1), .. }));
        p.remove(TenantId(0));
        p.admit(TenantId(0), &game());
        p.submit(job(0, 2, 0)).unwrap();
        p.drop_jobs(TenantId(0));
        p.complete(Nanos(5), Ticket(1), Nanos::MAX);
        let now = p.decide(Nanos(10));
        assert!(matches!(now, Decision::Idle { why: crate::Defer::Empty, .. }), "{now:?}");
        assert_eq!(p.balance(TenantId(0)).1, Nanos::ZERO, "the old tenant's debt is gone");
        assert_eq!(p.balance(TenantId(9)), (Nanos::ZERO, Nanos::ZERO));
    }
}

#[test]
fn policies_have_names() {
    for kind in PolicyKind::ALL {
        assert_eq!(kind.name().parse(), Ok(kind));
        assert_eq!(kind.build(CAPS, 1, 1).name(), kind.name());
    }
    assert!("magic".parse::<PolicyKind>().is_err());
}

prop_compose! {
    /// Every class, with costs up to what makes it useless.
    pub(super) fn any_class()(
        class in 0u8..3,
        cost in prop_oneof![Just(0u64), 1u64..100, 1u64..1_000],
        levels in 2u8..5,
        switch in 0u64..60,
        margin in prop_oneof![Just(0u64), Just(150), 0u64..400],
        ahead in 0u8..3,
    ) -> GpuCaps {
        let cost = Nanos::from_micros(cost);
        GpuCaps {
            ahead,
            switch_cost: Nanos::from_micros(switch),
            guard_margin: Nanos::from_micros(margin),
            preemption: match class {
                0 => Preemption::None,
                1 => Preemption::Levels { levels, grain: cost },
                _ => Preemption::Full { cost },
            },
            ..CAPS
        }
    }
}

prop_compose! {
    pub(super) fn reserved()(
        hz in prop::sample::select(vec![30u64, 60, 72, 90, 120, 144]),
        budget in 100u64..4_000,
        jobs in 1u64..5,
        jitter in 0u64..1_500,
        gap in 0u64..300,
        late in prop::option::of((100u64..600, 0u64..2_000)),
        guard in prop::sample::select(vec![Guard::Release, Guard::Deadline]),
    ) -> Contract {
        Contract {
            gap: Nanos::from_micros(gap),
            jitter: Nanos::from_micros(jitter),
            late_latch: late.map(|(b, w)| LateLatch {
                window: Nanos::from_micros(b + w),
                budget: Nanos::from_micros(b),
            }),
            guard,
            ..contract(hz, budget, budget.div_ceil(jobs).max(late.map_or(0, |(b, _)| b)))
        }
    }
}

proptest! {
    /// Whatever is admitted and keeps to its contract is never late, whatever background does beside it.
    #[test]
    fn admitted_frames_are_in_time(
        caps in any_class(),
        contracts in prop::collection::vec(reserved(), 1..6),
        flood_job in 100u64..4_000,
        shift in prop::collection::vec(0u64..33_000_000, 8),
        seed: u64,
        background: bool,
    ) {
        let mut contracts = contracts;
        let mut beside = flood();
        beside.max_job = Nanos::from_micros(flood_job);
        beside.budget = Nanos::ZERO;
        if !background {
            beside.class = Class::Elastic;
        }
        contracts.push(beside);
        let set = admitted(&contracts, caps);
        let mut all = guests(&set);
        let admission = Admission::new(caps, 64);
        // Where the proof needs no phases, any will do.
        let free = set.split_last().is_none_or(|(last, rest)| {
            admission.try_admit(rest, &last.1).is_ok_and(|a| a.proof == Proof::OffsetFree)
        });
        if free {
            for (g, s) in all.iter_mut().zip(&shift) {
                g.phase = *s;
            }
        }
        let end = 600_000_000;
        let phases: Vec<u64> = all.iter().map(|g| g.phase).collect();
        let (tally, breaches) = run_for_breaches(caps, all, end, seed);
        prop_assert!(breaches.iter().all(Option::is_none), "blamed: {breaches:?} {set:?}");
        for ((t, (_, c, _)), phase) in tally.iter().zip(&set).zip(phases) {
            if c.class == Class::Reserved {
                prop_assert_eq!((t.missed, t.late_missed, t.worst, t.debt), (0, 0, 0, 0), "{:?} {:?} {:?}", c, t, set);
                let whole = (end - phase - c.deadline.0) / c.period.ceil().0;
                let late = if c.late_latch.is_some() { t.late_jobs } else { t.frames };
                prop_assert!(t.frames.min(late) >= whole, "{} of {whole} frames: {:?} {:?}", t.frames, c, set);
            }
        }
    }

    /// One tenant that breaks its contract delays another by no more than its longest job.
    #[test]
    fn an_overrunner_harms_itself(
        caps in any_class(),
        contracts in prop::collection::vec(reserved(), 2..5),
        factor in 1u64..8,
        seed: u64,
    ) {
        let set = admitted(&contracts, caps);
        let mut all = guests(&set);
        if all.is_empty() {
            return Ok(());
        }
        let own = all[0].contract.max_job.0;
        all[0].jobs = (0..all[0].jobs.len() as u64 * factor).map(|_| own).collect();
        all[0].vary = false;
        let tally = run_on(caps, all, 600_000_000, seed);
        // What admission takes a job of it to hold others up.
        let bound = preempt::block(preempt::chunk(own, &caps), &caps);
        for t in &tally[1..] {
            prop_assert!(t.worst <= bound, "{:?} beyond {bound}, {:?}", t, set);
        }
    }

    /// A background minimum that was admitted is reached, on average over the run.
    #[test]
    fn minima_are_reached(
        caps in any_class(),
        contracts in prop::collection::vec(reserved(), 1..4),
        minimum in 1_000u64..20_000,
        job in 100u64..2_500,
        seed: u64,
    ) {
        let mut beside = flood();
        beside.budget = Nanos::from_micros(minimum);
        beside.max_job = Nanos::from_micros(job);
        let elastic = Contract { class: Class::Elastic, budget: Nanos::ZERO, ..beside };
        let mut contracts = contracts;
        contracts.push(beside);
        contracts.push(elastic);
        let set = admitted(&contracts, caps);
        let Some(i) = set.iter().position(|(_, c, _)| c.class == Class::Background) else {
            return Ok(());
        };
        let tally = run_on(caps, guests(&set), 2_000_000_000, seed);
        // The first period and the last job are not whole.
        prop_assert!(tally[i].gpu >= minimum * 1_000 * 18, "{:?} {:?}", tally[i], set);
    }

    /// Nothing overflows, panics or asks to look back at the extremes.
    #[test]
    fn extremes_do_no_harm(
        period in prop::sample::select(vec![1_000_000u64, 16_666_667, 10_000_000_000]),
        numbers in prop::collection::vec(any::<u64>(), 12),
        small in prop::collection::vec(any::<u16>(), 8),
        ops in prop::collection::vec((0u8..8, 0u16..4, 0u32..10, any::<u64>(), any::<u64>(), any::<bool>()), 0..120),
        class in prop::sample::select(vec![Class::Reserved, Class::Elastic, Class::Background]),
        caps in any_class(),
    ) {
        let n = |i: usize| Nanos(numbers[i]);
        let c = Contract {
            period: Period::new(period, 1).unwrap(),
            deadline: n(0),
            budget: n(1),
            max_job: n(2),
            gap: n(3),
            jitter: n(4),
            late_latch: (numbers[5] % 2 == 0).then_some(LateLatch { window: n(6), budget: n(7) }),
            depth: small[0] as u8,
            weight: small[1],
            class,
            ..contract(60, 1, 1)
        };
        let tame = Contract {
            deadline: Nanos(period),
            budget: Nanos(n(1).0 % (period + 1)),
            max_job: Nanos(n(2).0 % period),
            gap: Nanos(n(3).0 % period),
            jitter: Nanos(n(4).0 % period),
            late_latch: None,
            depth: 1,
            weight: 1,
            ..c
        };
        let admission = Admission::new(caps, 4);
        let _ = admission.try_admit(&[], &c);
        let _ = admission.try_admit(&[(TenantId(0), tame, n(8))], &tame);
        for kind in PolicyKind::ALL {
            let mut p = kind.build(caps, 3, 8);
            p.admit(TenantId(0), &c);
            p.admit(TenantId(1), &tame);
            for &(op, tenant, ticket, a, b, flag) in &ops {
                let tenant = TenantId(tenant);
                match op {
                    0 => p.vblank(tenant, Vblank { seq: a, time: Nanos(b), next: Nanos(a) }),
                    1 | 2 => {
                        let _ = p.submit(JobSpec {
                            late_latch: flag,
                            jobs: b as u16,
                            job: JobIndex(a as u16),
                            slot: b,
                            arrival: Nanos(a),
                            release: Nanos(b.min(a)),
                            deadline: Nanos(b),
                            ..job(tenant.0, ticket, 0)
                        });
                    }
                    3 => p.complete(Nanos(a), Ticket(ticket), Nanos(b)),
                    4 => p.drop_jobs(tenant),
                    7 => p.preempted(Nanos(a), Ticket(ticket), Nanos(b)),
                    5 if flag => p.admit(tenant, &tame),
                    5 => p.remove(tenant),
                    _ => {
                        for _ in 0..8 {
                            if let Decision::Idle { until: Some(u), .. } = p.decide(Nanos(a)) {
                                prop_assert!(u.0 > a || a == u64::MAX);
                            }
                        }
                    }
                }
                let _ = p.balance(tenant);
            }
        }
    }
}

proptest! {
    // Each case fills a GPU.
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.div_ceil(16)))]

    /// Tenants that are alike are admitted by their phases alone, up to a full GPU, and are in time.
    #[test]
    fn alike_frames_are_in_time(
        contract in reserved(),
        window in 0u64..1_500,
        flood_job in 100u64..4_000,
        seed: u64,
    ) {
        let mut contract = Contract { guard: Guard::Release, ..contract };
        let late = contract.late_latch.map_or(Nanos(200_000), |l| l.budget);
        contract.late_latch = Some(LateLatch { window: late + Nanos::from_micros(window), budget: late });
        contract.max_job = contract.max_job.max(late);
        let mut beside = flood();
        beside.max_job = Nanos::from_micros(flood_job);
        beside.class = Class::Elastic;
        // As many as there is room for.
        let admission = Admission::new(CAPS, 64);
        let mut set: Vec<Current> = vec![];
        while let Ok(got) = admission.try_admit(&set, &contract) {
            set.push((TenantId(set.len() as u16), contract, got.phase));
            if set.len() == 16 {
                break;
            }
        }
        set.push((TenantId(set.len() as u16), beside, Nanos::ZERO));
        let tally = run(PolicyKind::Beamline, guests(&set), 300_000_000, seed);
        for (t, (_, c, _)) in tally.iter().zip(&set) {
            if c.class == Class::Reserved {
                prop_assert_eq!((t.missed, t.late_missed, t.worst), (0, 0, 0), "{:?} {:?} {:?}", c, t, set);
            }
        }
    }
}
