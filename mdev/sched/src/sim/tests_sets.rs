//! What must hold of sets of tenants: alone and beside others, as many as fit, breaches and allowed misses.

use super::super::TenantOutcome;
use super::super::density::{Limit, Search, density};
use super::super::solo::{interference, solo};
use super::*;
use crate::contract::MissAllowance;

#[test]
fn alone_a_tenant_has_the_same_frames_and_beside_others_it_waits() {
    let s = scenario(CAPS, 20_000, reference());
    let o = options(PolicyKind::Fifo);
    let (beside, alone) = (run(&s, &o).unwrap(), solo(&s, &o, 1).unwrap());
    let (beside, alone) = (&beside.tenants[1], &alone.tenants[1]);
    assert_eq!((beside.frames.due, beside.phase), (alone.frames.due, alone.phase));
    assert!(interference(beside, alone).unwrap() > 1.5, "{:?}", interference(beside, alone));
    assert_eq!(interference(alone, alone), Some(1.0));
    let error = solo(&s, &o, 3).unwrap_err();
    assert_eq!(error.to_string(), "victim is 3; there are 3 tenants");
}

#[test]
fn the_qualified_density_is_the_one_that_counting_says() {
    // At one phase, each 10 ms hold three jobs of 2.5 ms and a fourth's first 2.47 ms.
    let work = Work::Frames(frames(&[us(2_500)]));
    let add = tenant("frame", contract(100, 2_500, 2_500), work);
    let s = Scenario { density: Some(vec![add]), ..scenario(CAPS, 1_000, vec![]) };
    let o = Options { phases: Phases::Synchronous, admission: false, ..options(PolicyKind::Fifo) };
    let find = |threads, o: &Options| {
        let search = Search { seeds: 5, share: 0.999, threads };
        density(&s, o, &search, &|_, _| {}).unwrap()
    };
    let got = find(1, &o);
    assert_eq!((got.qualified, got.declared, got.mean), (3, 3, 3), "{got:?}");
    assert!(matches!(got.limit, Limit::Missed { seed: 1, tenant: 3, .. }), "{got:?}");
    assert_eq!(find(3, &o), got, "threads change nothing");
    let admitted = find(2, &Options { admission: true, ..options(PolicyKind::Beamline) });
    assert!(matches!(admitted.limit, Limit::Refused(_)), "{admitted:?}");
    assert!((1..=3).contains(&admitted.qualified), "{admitted:?}");
}

/// 64 tenants at 60, 72, 90 and 120 Hz, 75% of the GPU.
fn crowd() -> Vec<Tenant> {
    let one = |i: u64| {
        let hz = [60, 72, 90, 120][i as usize % 4];
        let c = Contract { jitter: Nanos::from_micros(500), ..contract(hz, 160, 80) };
        let jobs = [uniform(40, 70), uniform(40, 70)];
        let work = Frames { wake: uniform(0, 400), ..frames(&jobs) };
        tenant(&format!("tenant {i}"), c, Work::Frames(work))
    };
    (0..64).map(one).collect()
}

#[test]
#[ignore = "takes seconds: prints how fast the simulator is"]
fn ten_minutes_of_64_tenants() {
    let s = scenario(GpuCaps { switch_cost: Nanos(5_000), ..CAPS }, 600_000, crowd());
    let before = std::time::Instant::now();
    let o = Options { admission: false, ..options(PolicyKind::Beamline) };
    let o = run(&s, &o).unwrap();
    let frames: u64 = o.tenants.iter().map(|t| t.frames.due).sum();
    std::println!(
        "simulated 10 min of 64 tenants, {frames} frames, in {:.2} s; GPU {:.1}% busy; kept: {:?}",
        before.elapsed().as_secs_f64(),
        100.0 * o.utilisation(),
        o.kept()
    );
    assert!(frames > 3_000_000, "{frames}");
}

/// A headset and a flood beside a game that does `work`; answers the game and the headset.
fn beside(work: Frames, policy: PolicyKind) -> [TenantOutcome; 2] {
    let mut tenants = reference();
    tenants[1].work = Work::Frames(work);
    let s = scenario(CAPS, 60_000, tenants);
    let o = run(&s, &options(policy)).unwrap();
    [o.tenants[1].clone(), o.tenants[0].clone()]
}

#[test]
fn whoever_breaks_the_contract_harms_only_itself_and_the_cause_is_named() {
    let jobs = [uniform(300, 590), uniform(300, 590), uniform(300, 590)];
    let good = Frames { wake: uniform(0, 900), gap: uniform(0, 190), ..frames(&jobs) };
    let rare = |typical: u64, most: u64| Cost::Pareto {
        scale: Nanos::from_micros(typical),
        shape: 1.0,
        at_most: Nanos::from_micros(most),
    };
    let long = [rare(200, 3_000), uniform(300, 590), uniform(300, 590)];
    for (cause, work) in [
        (OwnCause::Budget, Frames { jobs: vec![uniform(500, 600); 15], ..good.clone() }),
        (OwnCause::MaxJob, Frames { jobs: long.to_vec(), ..good.clone() }),
        (OwnCause::Jitter, Frames { wake: rare(300, 16_500), ..good.clone() }),
        (OwnCause::Gap, Frames { gap: rare(50, 15_000), ..good.clone() }),
    ] {
        let [game, headset] = beside(work, PolicyKind::Beamline);
        let own = game.own[cause as usize];
        assert!(own.due > 100 && own.missed() > 0, "{cause:?}: {:?}", game.own);
        assert_eq!(headset.kept.missed(), 0, "{cause:?}: {:?}", headset.kept);
        assert_eq!(headset.kept, headset.frames);
        let share = game.kept.share().unwrap_or(1.0);
        assert!(share >= 0.999, "{cause:?}: {:?}", game.kept);
    }
}

/// The second of two tenants under FIFO, at one phase, which may miss as `miss` says: 6 ms of each 10.
fn behind(first: Tenant, misses: u32, of: u32) -> TenantOutcome {
    let miss = MissAllowance { misses, frames: of };
    let c = Contract { miss, depth: 2, ..contract(100, 6_000, 6_000) };
    let second = tenant("second", c, Work::Frames(frames(&[us(6_000)])));
    let s = scenario(CAPS, 2_000, vec![first, second]);
    let phases = Phases::Synchronous;
    let o = Options { phases, admission: false, ..options(PolicyKind::Fifo) };
    run(&s, &o).unwrap().tenants.swap_remove(1)
}

#[test]
fn misses_that_the_contract_allows_are_excused() {
    // Every other frame waits for 5 ms and ends after 11 ms; the next one after 7.
    let first = || tenant("first", contract(50, 5_000, 5_000), Work::Frames(frames(&[us(5_000)])));
    let t = behind(first(), 1, 2);
    assert!(t.kept.due.abs_diff(2 * t.kept.missed()) <= 1, "{t:?}");
    assert_eq!((t.excused, t.promised().missed()), (t.kept.missed(), 0), "{t:?}");
    let t = behind(first(), 1, 3);
    assert_eq!(t.excused, 1, "one in three is less than one in two: {t:?}");
    let t = behind(first(), 0, 1);
    assert_eq!(t.excused, 0, "{t:?}");
}

#[test]
fn what_may_be_missed_is_given_up_at_the_next_vblank() {
    let slow = Contract { class: Class::Background, ..contract(10, 5_000, 5_000) };
    let flood_work = Flood { depth: 8, cost: us(2_000), burst: None };
    let first = || tenant("first", slow, Work::Flood(flood_work));
    // 16 ms are ahead of every frame of 10.
    let t = behind(first(), 1, 2);
    assert_eq!((t.kept.in_time, t.jobs, t.gpu), (0, 0, Nanos::ZERO), "{t:?}");
    let t = behind(first(), 0, 1);
    assert!(t.kept.in_time == 0 && t.jobs > 50, "{t:?}");
}
