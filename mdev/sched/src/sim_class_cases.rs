//! What the classes of preemption give, whom a breach of contract harms, and that the tests would notice.

use super::cases::{admitted, any_class, guests, reserved, run_for_breaches, run_on};
use super::*;
use crate::admission::{Admission, Refusal};
use crate::beamline::Beamline;
use crate::contract::LateLatch;
use crate::policy::Preemption;
use crate::preempt;
use crate::tenant::Breach;
use crate::testing::{CAPS, contract, flood, game, vr};
use proptest::prelude::*;

const SECOND: u64 = 1_000_000_000;

fn class(preemption: Preemption) -> GpuCaps {
    GpuCaps { preemption, ..CAPS }
}

/// One of each, at a cost that is common today.
fn classes() -> [GpuCaps; 3] {
    let cost = Nanos::from_micros(50);
    [
        class(Preemption::None),
        class(Preemption::Levels { levels: 2, grain: cost }),
        class(Preemption::Full { cost }),
    ]
}

#[test]
fn background_gets_more_where_it_makes_room() {
    let mut hog = flood();
    hog.budget = Nanos::ZERO;
    hog.max_job = Nanos::from_millis(8);
    let got = classes().map(|caps| {
        let set = admitted(&[vr(), game(), hog], caps);
        assert_eq!(set.len(), 3, "{caps:?}");
        let mut all = guests(&set);
        all[2].vary = false;
        let tally = run_on(caps, all, 20 * SECOND, 3);
        for t in &tally[..2] {
            assert_eq!((t.missed, t.late_missed), (0, 0), "{caps:?}: {t:?}");
        }
        tally[2]
    });
    // Few gaps between two releases take a job of 8 ms whole.
    for t in &got[1..] {
        assert!(t.gpu > 4 * got[0].gpu && t.gpu > 12 * SECOND, "{got:?}");
    }
    assert!(got[2].asked_back > 1_000, "{got:?}");
}

fn spec(tenant: u16, ticket: u32, at: u64, deadline: u64) -> JobSpec {
    JobSpec {
        ticket: Ticket(ticket),
        tenant: TenantId(tenant),
        frame: FrameId(1),
        job: JobIndex(0),
        jobs: 1,
        late_latch: false,
        arrival: Nanos(at),
        release: Nanos(at),
        deadline: Nanos(deadline),
        slot: 0,
    }
}

/// The ticket that is granted, and what it is expected to cost.
fn granted(p: &mut Beamline, now: u64) -> (u32, u64) {
    match p.decide(Nanos(now)) {
        Decision::Grant { ticket, expected, .. } => (ticket.0, expected.0),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_job_in_parts_is_charged_as_one() {
    let caps = class(Preemption::Full { cost: Nanos(20_000) });
    let charge = preempt::per_release(&caps);
    assert_eq!(charge, 2 * 20_000 + 10_000);
    let mut p = Beamline::new(caps, 4, 8);
    // Long and late to be due; short and early.
    for (t, hz, budget) in [(0, 30, 4_000), (1, 120, 500)] {
        let c = contract(hz, budget, budget);
        p.admit(TenantId(t), &c);
        let vblank = Vblank { seq: 0, time: Nanos(0), next: c.period.times(1) };
        p.vblank(TenantId(t), vblank);
    }
    let (whole, short) = (4_000_000 + 10_000 + charge, 500_000 + 10_000 + charge);
    assert_eq!(p.balance(TenantId(0)).0, Nanos(whole));
    p.submit(spec(0, 0, 0, 33_000_000)).unwrap();
    assert_eq!(granted(&mut p, 0), (0, 4_000_000));

    // The short job comes; the long one is asked back for it, once.
    p.submit(spec(1, 1, 1_000_000, 8_000_000)).unwrap();
    assert_eq!(p.decide(Nanos(1_000_000)), Decision::Preempt { ticket: Ticket(0) });
    assert!(matches!(
        p.decide(Nanos(1_000_000)),
        Decision::Idle { why: crate::Defer::InFlight, .. }
    ));
    assert_eq!(p.balance(TenantId(1)).0, Nanos(short - charge), "paid by who asked");
    p.preempted(Nanos(1_020_000), Ticket(0), Nanos(990_000));
    assert_eq!(p.balance(TenantId(0)).0, Nanos(whole - 990_000 - 10_000));
    assert_eq!(granted(&mut p, 1_020_000).0, 1);
    p.complete(Nanos(1_500_000), Ticket(1), Nanos(470_000));
    assert_eq!(p.balance(TenantId(1)).0, Nanos(short - charge - 470_000 - 10_000));

    // The rest of the long one: no switch to pay, and the same place in the order.
    assert_eq!(granted(&mut p, 1_500_000), (0, 4_000_000 - 990_000));
    p.complete(Nanos(4_600_000), Ticket(0), Nanos(3_000_000));
    let left = whole - 990_000 - 10_000 - 3_000_000;
    assert_eq!(p.balance(TenantId(0)), (Nanos(left), Nanos::ZERO));
    assert_eq!((p.breach(TenantId(0)), p.breach(TenantId(1))), (None, None));

    // What it is expected to cost the next time is the sum.
    p.vblank(TenantId(0), Vblank { seq: 1, time: Nanos(33_333_333), next: Nanos(66_666_666) });
    let next = JobSpec { slot: 1, ..spec(0, 0, 33_333_333, 66_000_000) };
    p.submit(next).unwrap();
    assert_eq!(granted(&mut p, 33_333_333), (0, 990_000 + 3_000_000));
}

#[test]
fn a_job_about_to_end_is_left_alone() {
    let caps = class(Preemption::Full { cost: Nanos(20_000) });
    let mut p = Beamline::new(caps, 4, 8);
    for (t, hz) in [(0, 30), (1, 120)] {
        let c = contract(hz, 1_000, 1_000);
        p.admit(TenantId(t), &c);
        p.vblank(TenantId(t), Vblank { seq: 0, time: Nanos(0), next: c.period.times(1) });
    }
    p.submit(spec(0, 0, 0, 33_000_000)).unwrap();
    assert_eq!(granted(&mut p, 0).0, 0);
    p.submit(spec(1, 1, 995_000, 8_000_000)).unwrap();
    // Expected to end at 1,010 µs, with its switch; then its time is over.
    let until = Some(Nanos(1_010_000));
    assert_eq!(p.decide(Nanos(995_000)), Decision::Idle { until, why: crate::Defer::InFlight });
    assert_eq!(p.decide(Nanos(1_010_000)), Decision::Preempt { ticket: Ticket(0) });
}

#[test]
fn a_job_that_comes_while_the_one_before_it_runs_is_in_time() {
    let mut p = Beamline::new(CAPS, 2, 8);
    p.admit(TenantId(0), &game());
    p.vblank(TenantId(0), Vblank { seq: 0, time: Nanos(0), next: Nanos(16_666_666) });
    let first = JobSpec { jobs: 2, release: Nanos(0), ..spec(0, 0, 900_000, 16_000_000) };
    p.submit(first).unwrap();
    assert_eq!(granted(&mut p, 900_000).0, 0);
    let second =
        JobSpec { ticket: Ticket(1), job: JobIndex(1), arrival: Nanos(1_100_000), ..first };
    p.submit(second).unwrap();
    assert_eq!(p.breach(TenantId(0)), None);
    p.complete(Nanos(1_500_000), Ticket(0), Nanos(600_000));
    assert_eq!(granted(&mut p, 1_500_000).0, 1);
}

/// A headset, a game, a flood, and last a game that breaks its contract in one way.
fn with_a_breach(breach: Breach) -> impl Fn(GpuCaps) -> Vec<Guest> {
    move |caps| {
        let mut rogue = Contract { sink: crate::Sink::External, ..game() };
        if breach == Breach::Budget {
            // More jobs than declared are no longer pauses than declared.
            rogue.gap = Nanos::ZERO;
        }
        let set = admitted(&[vr(), game(), flood(), rogue], caps);
        assert_eq!(set.len(), 4, "{caps:?}");
        let mut all = guests(&set);
        let rogue = &mut all[3];
        rogue.vary = false;
        match breach {
            Breach::Jitter => rogue.tardy.0 = 16_000_000,
            Breach::Gap => rogue.tardy.1 = 9_000_000,
            Breach::MaxJob => rogue.jobs = vec![600_000, 9_000_000, 600_000],
            Breach::Budget => rogue.jobs = vec![600_000; 24],
        }
        all
    }
}

#[test]
fn who_breaks_a_contract_misses_and_the_breach_is_named() {
    for breach in [Breach::Jitter, Breach::Gap, Breach::MaxJob, Breach::Budget] {
        for caps in classes() {
            let all = with_a_breach(breach)(caps);
            let longest = all[3].jobs.iter().copied().max().unwrap_or(0);
            let (tally, breaches) = run_for_breaches(caps, all, 10 * SECOND, 5);
            assert!(tally[3].missed > 20, "{breach:?} on {caps:?}: {:?}", tally[3]);
            assert_eq!(breaches[3], Some(breach), "on {caps:?}");
            // A job that should have been killed may make a neighbour late, whose guest then comes late.
            if breach != Breach::MaxJob {
                assert_eq!(breaches[..3], [None; 3], "{breach:?} on {caps:?}");
            }
            let bound = preempt::block(preempt::chunk(longest, &caps), &caps);
            for t in &tally[..2] {
                assert!(t.worst <= bound, "{breach:?} on {caps:?}: {t:?} beyond {bound}");
            }
            assert!(tally[2].least >= 20_000_000, "{breach:?} on {caps:?}: {:?}", tally[2]);
        }
    }
}

#[test]
fn what_admission_refuses_does_miss() {
    for caps in classes() {
        let first = contract(90, 7_000, 1_000);
        let second = contract(90, 6_000, 1_000);
        let set = [(TenantId(0), first, Nanos::ZERO)];
        let refusal = Admission::new(caps, 8).try_admit(&set, &second).unwrap_err();
        assert!(matches!(refusal, Refusal::Demand { .. }), "{refusal}");
        let mut both = vec![Guest::of(first, Nanos::ZERO), Guest::of(second, Nanos::ZERO)];
        for guest in &mut both {
            guest.vary = false;
        }
        let tally = run_on(caps, both, 2 * SECOND, 1);
        let missed = tally[0].missed + tally[1].missed;
        assert!(missed > 10, "{caps:?}: {tally:?}");
    }
}

#[test]
fn a_gpu_slower_to_make_room_than_it_says_breaks_promises() {
    let tight = LateLatch { window: Nanos::from_micros(700), budget: Nanos::from_micros(400) };
    let open = crate::Guard::Deadline;
    let headset = Contract { late_latch: Some(tight), guard: open, ..vr() };
    let cost = Nanos::from_micros(20);
    let slow = Nanos::from_micros(1_500);
    for (told, true_caps) in [
        (Preemption::Full { cost }, Preemption::Full { cost: slow }),
        (
            Preemption::Levels { levels: 2, grain: cost },
            Preemption::Levels { levels: 2, grain: slow },
        ),
    ] {
        let set = admitted(&[headset, Contract { budget: Nanos::ZERO, ..flood() }], class(told));
        assert_eq!(set.len(), 2);
        let missed = |gpu: Preemption| {
            let mut policy = Beamline::new(class(told), 8, 512);
            let tally = Sim::new(&mut policy, guests(&set), class(gpu), 9).run(5 * SECOND);
            tally[0].missed + tally[0].late_missed
        };
        assert_eq!(missed(told), 0);
        assert!(missed(true_caps) > 10, "{told:?}");
    }
}

proptest! {
    /// Who comes late, pauses too long, or brings its work in countless pieces delays another by no more than
    /// admission has taken into account.
    #[test]
    fn no_breach_harms_others(
        caps in any_class(),
        contracts in prop::collection::vec(reserved(), 2..5),
        tardy in (0u64..20_000_000, 0u64..4_000_000),
        pieces in 1u64..40,
        seed: u64,
    ) {
        let set = admitted(&contracts, caps);
        let mut all = guests(&set);
        if all.is_empty() {
            return Ok(());
        }
        let c = all[0].contract;
        all[0].tardy = tardy;
        all[0].jobs = vec![(c.budget.0 / pieces).min(c.max_job.0).max(1); pieces as usize];
        let (tally, breaches) = run_for_breaches(caps, all, 600_000_000, seed);
        let bound = preempt::block(preempt::chunk(c.max_job.0, &caps), &caps);
        for (t, breach) in tally.iter().zip(&breaches).skip(1) {
            prop_assert_eq!(*breach, None);
            prop_assert!(t.worst <= bound, "{:?} beyond {bound}, {:?}", t, set);
        }
    }

    /// Whoever has work gets some of the GPU in any four of its periods: reserved work and minima because
    /// that was promised, elastic work where half of the time is nobody's.
    #[test]
    fn nobody_starves(
        caps in any_class(),
        contracts in prop::collection::vec(reserved(), 1..4),
        minimum in 1_000u64..8_000,
        job in 50u64..400,
        seed: u64,
    ) {
        let short = Nanos::from_micros(job);
        let beside = Contract { budget: Nanos::from_micros(minimum), max_job: short, ..flood() };
        let elastic = Contract { class: Class::Elastic, budget: Nanos::ZERO, ..beside };
        let mut contracts = contracts;
        contracts.extend([elastic, beside]);
        let set = admitted(&contracts, caps);
        let used: u64 = set
            .iter()
            .flat_map(|(id, c, _)| crate::demand::tasks(*id, c, &caps))
            .map(|t| {
                let edge = short.0.min(preempt::part(&caps)) + caps.guard_margin.0;
                (t.cost + t.jitter + t.deadline * u64::from(t.late_latch) + edge) * 1_000 / t.period
            })
            .sum();
        let tally = run_on(caps, guests(&set), SECOND, seed);
        for (t, (_, c, _)) in tally.iter().zip(&set) {
            if c.class == Class::Reserved || used < 500 {
                prop_assert!(t.least > 0, "{used}: {:?} {:?} {:?}", c, t, set);
            }
        }
    }
}
