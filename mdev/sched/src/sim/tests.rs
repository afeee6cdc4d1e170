//! What must hold of every run.

use super::cost::Cost;
use super::outcome::{Doing, Outcome, OwnCause};
use super::run;
use super::scenario::{
    Burst, Flood, Frames, Options, Overrun, Phases, Scenario, Tenant, Trace, TraceFrame, TraceJob,
    Work,
};
use crate::contract::{Class, Contract};
use crate::kind::PolicyKind;
use crate::policy::{GpuCaps, Preemption};
use crate::testing::{CAPS, contract, flood, game, vr};
use beamline_abi::Nanos;
use std::string::{String, ToString};
use std::sync::Arc;
use std::vec::Vec;
use std::{format, vec};

fn us(n: u64) -> Cost {
    Cost::Fixed(Nanos::from_micros(n))
}

fn uniform(low: u64, high: u64) -> Cost {
    Cost::Uniform { low: Nanos::from_micros(low), high: Nanos::from_micros(high) }
}

fn frames(jobs: &[Cost]) -> Frames {
    Frames {
        jobs: jobs.to_vec(),
        late_latch: None,
        wake: us(0),
        gap: us(0),
        scene_change: None,
        overrun: None,
    }
}

fn tenant(name: &str, contract: Contract, work: Work) -> Tenant {
    Tenant { name: name.to_string(), contract, work, phase: None }
}

fn scenario(caps: GpuCaps, millis: u64, tenants: Vec<Tenant>) -> Scenario {
    Scenario {
        name: "test".to_string(),
        about: String::new(),
        caps,
        kill_grace: Nanos::from_millis(1),
        length: Nanos::from_millis(millis),
        warm_up: Nanos::from_millis(200),
        tenants,
        victim: None,
        density: None,
    }
}

fn options(policy: PolicyKind) -> Options {
    Options { policy, phases: Phases::Assigned, admission: true, seed: 1, timeline: false }
}

/// A headset, a game and a neighbour that saturates the GPU.
fn reference() -> Vec<Tenant> {
    let headset = Frames {
        late_latch: Some(uniform(200, 390)),
        wake: uniform(100, 900),
        ..frames(&[uniform(800, 1_590)])
    };
    let game_frames = Frames {
        wake: uniform(0, 900),
        gap: uniform(0, 190),
        ..frames(&[uniform(300, 590), uniform(300, 590), uniform(300, 590)])
    };
    let burst = Some(Burst { on: Nanos::from_millis(300), off: Nanos::from_millis(100) });
    let flood_work = Flood { depth: 8, cost: uniform(250, 1_900), burst };
    vec![
        tenant("headset", vr(), Work::Frames(headset)),
        tenant("game", game(), Work::Frames(game_frames)),
        tenant("flood", flood(), Work::Flood(flood_work)),
    ]
}

#[test]
fn contracts_are_kept_and_the_rest_is_the_neighbours() {
    let s = scenario(CAPS, 20_000, reference());
    let o = run(&s, &options(PolicyKind::Beamline)).unwrap();
    for t in &o.tenants[..2] {
        assert!(t.frames.due >= 1_198, "{}: {:?}", t.name, t.frames);
        assert_eq!((t.frames.missed(), t.kept), (0, t.frames), "{}: {:?}", t.name, t.own);
        assert_eq!(t.late_latch.missed(), 0);
        assert!(t.worst <= t.contract.deadline && t.quantile(0.5).unwrap() < t.worst);
    }
    assert_eq!(o.tenants[0].late_latch.due, o.tenants[0].frames.due);
    assert!(o.background() > 0.25 && o.utilisation() > o.background() + 0.2, "{:?}", o.gpu);

    let o = run(&s, &options(PolicyKind::Fifo)).unwrap();
    assert!(o.tenants[0].kept.share().unwrap() < 0.9, "{:?}", o.tenants[0].kept);
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_one_others() {
    let s = scenario(CAPS, 2_000, reference());
    let bytes = |seed, policy| {
        let options = Options { seed, timeline: true, phases: Phases::Random, ..options(policy) };
        format!("{:?}", run(&s, &Options { admission: false, ..options }).unwrap())
    };
    for policy in PolicyKind::ALL {
        assert!(bytes(3, policy) == bytes(3, policy), "{policy}");
        assert!(bytes(3, policy) != bytes(4, policy), "{policy}");
    }
}

#[test]
fn every_policy_is_given_the_same_frames() {
    let s = scenario(CAPS, 2_000, vec![reference().swap_remove(1)]);
    let gpu = |policy| run(&s, &options(policy)).unwrap().tenants[0].gpu;
    let all: Vec<Nanos> = PolicyKind::ALL.into_iter().map(gpu).collect();
    assert!(all.iter().all(|&g| g == all[0] && g > Nanos::ZERO), "{all:?}");
}

fn classes() -> [Preemption; 3] {
    [
        Preemption::None,
        Preemption::Levels { levels: 3, grain: Nanos::from_micros(50) },
        Preemption::Full { cost: Nanos::from_micros(40) },
    ]
}

#[test]
fn contracts_are_kept_in_every_class_of_preemption() {
    for preemption in classes() {
        let s = scenario(GpuCaps { preemption, ..CAPS }, 20_000, reference());
        let o = run(&s, &options(PolicyKind::Beamline)).unwrap();
        assert_eq!(o.refused(), 0);
        let kept = o.kept();
        assert!(kept.due > 2_900 && kept.missed() == 0, "{preemption:?}: {kept:?}");
        assert!(o.background() > 0.25, "{preemption:?}: {}", o.background());
        let taken_off = matches!(preemption, Preemption::Full { .. });
        assert_eq!(o.gpu.preempting > Nanos::ZERO, taken_off, "{preemption:?}: {:?}", o.gpu);
    }
}

#[test]
fn gpu_time_is_the_sum_of_what_the_jobs_cost_and_the_switches() {
    for preemption in classes() {
        for policy in PolicyKind::ALL {
            let s = scenario(GpuCaps { preemption, ..CAPS }, 3_000, reference());
            let o = run(&s, &Options { timeline: true, ..options(policy) }).unwrap();
            let mut sums = [0u64; 3];
            let mut until = 0;
            for span in &o.timeline {
                // One engine: nothing overlaps, and no time is handed out twice.
                assert!(span.from.0 >= until && span.to > span.from, "{policy}: {span:?}");
                until = span.to.0;
                let from = span.from.0.max(s.warm_up.0);
                sums[span.doing as usize] += span.to.0.saturating_sub(from);
            }
            let gpu = [o.gpu.busy.0, o.gpu.switching.0, o.gpu.preempting.0];
            assert_eq!(sums, gpu, "{policy}");
            assert_eq!(o.tenants.iter().map(|t| t.gpu.0).sum::<u64>(), gpu[0]);
            assert!(gpu.iter().sum::<u64>() <= s.length.0);
        }
    }
}

#[test]
fn a_fifo_schedule_is_the_one_worked_out_by_hand() {
    // Vblanks at 0: a submits at 100 µs and, 50 µs after its first job's end, again; b at 200 µs. a: switch to
    // 110, work to 1110. b: switch to 1120, work to 3120. a's second, submitted at 1160: switch to 3130,
    // work to 4130.
    let two = Frames { wake: us(100), gap: us(50), ..frames(&[us(1_000), us(1_000)]) };
    let one = Frames { wake: us(200), ..frames(&[us(2_000)]) };
    let c = Contract {
        jitter: Nanos::from_micros(200),
        gap: Nanos::from_micros(50),
        ..contract(100, 4_000, 2_000)
    };
    let tenants = vec![tenant("a", c, Work::Frames(two)), tenant("b", c, Work::Frames(one))];
    let s = Scenario { warm_up: Nanos::ZERO, ..scenario(CAPS, 20, tenants) };
    let phases = Phases::Synchronous;
    let o = Options { phases, admission: false, timeline: true, ..options(PolicyKind::Fifo) };
    let o = run(&s, &o).unwrap();
    let work: Vec<_> = o
        .timeline
        .iter()
        .filter(|s| s.doing == Doing::Work)
        // The run begins a period before the first vblank.
        .map(|s| (s.tenant, s.job, s.from.0 / 1_000 - 10_000, s.to.0 / 1_000 - 10_000))
        .collect();
    assert_eq!(work, [(0, 0, 110, 1_110), (1, 0, 1_120, 3_120), (0, 1, 3_130, 4_130)]);
    assert_eq!((o.tenants[0].worst, o.tenants[1].worst), (Nanos(4_130_000), Nanos(3_120_000)));
    assert_eq!(o.tenants[0].frames.in_time, 1);
}

/// The causes that `work` is found to have under `contract`, alone on the GPU.
fn own(contract: Contract, work: Frames) -> (Outcome, Vec<OwnCause>) {
    let s = scenario(CAPS, 2_000, vec![tenant("a", contract, Work::Frames(work))]);
    let o = run(&s, &options(PolicyKind::Beamline)).unwrap();
    let found = OwnCause::ALL.into_iter().zip(o.tenants[0].own);
    let causes = found.filter(|(_, t)| t.due > 0).map(|(c, _)| c).collect();
    (o, causes)
}

#[test]
fn what_breaks_the_contract_is_named() {
    let c = Contract {
        gap: Nanos::from_micros(100),
        jitter: Nanos::from_micros(500),
        ..contract(60, 2_000, 1_000)
    };
    let work = Frames { wake: us(500), gap: us(100), ..frames(&[us(900), us(900)]) };
    let (o, causes) = own(c, work.clone());
    assert_eq!(causes, []);
    assert_eq!(o.tenants[0].kept, o.tenants[0].frames);
    assert_eq!(own(c, Frames { gap: us(101), ..work.clone() }).1, [OwnCause::Gap]);
    assert_eq!(own(c, Frames { wake: us(501), ..work.clone() }).1, [OwnCause::Jitter]);
    let long = Frames { jobs: vec![us(1_001), us(900)], ..work.clone() };
    assert_eq!(own(c, long).1, [OwnCause::MaxJob]);
    let short_jobs = Contract { max_job: Nanos::from_millis(2), ..c };
    let two = Frames { jobs: vec![us(1_000), us(900)], ..work.clone() };
    assert_eq!(own(short_jobs, two).1, [OwnCause::Gap], "the contract has one job, so no pause");
    let twice = Frames { overrun: Some(Overrun { chance: 0.2, factor: 1.11 }), ..work };
    let (o, causes) = own(Contract { budget: Nanos::from_micros(1_900), ..c }, twice);
    assert_eq!(causes, [OwnCause::Budget, OwnCause::Aftermath]);
    let t = &o.tenants[0];
    let parts: u64 = t.own.iter().map(|t| t.due).sum();
    assert_eq!(t.kept.due + parts, t.frames.due);
    let budget = t.own[OwnCause::Budget as usize].due as f64 / t.frames.due as f64;
    assert!((budget - 0.2).abs() < 0.1, "{budget}");
}

#[test]
fn a_job_that_is_far_too_long_is_killed_and_its_frame_is_lost() {
    let c = contract(60, 2_000, 1_000);
    let (o, causes) = own(c, frames(&[us(500), us(9_000), us(500)]));
    assert_eq!(causes, [OwnCause::MaxJob]);
    let t = &o.tenants[0];
    assert_eq!((t.frames.in_time, t.kept.due), (0, 0));
    assert_eq!(t.jobs, 2 * t.killed, "{t:?}");
    assert!(t.killed.abs_diff(t.frames.due) <= 1, "{t:?}");
    // Killed at max_job and the grace: 2 ms of the 9.
    let per_frame = t.gpu.0 / t.frames.due;
    assert!((2_500_000..2_530_000).contains(&per_frame), "{per_frame}");
}

#[test]
fn a_guest_without_room_skips_the_vblank_and_that_is_a_missed_frame() {
    // A frame takes 25 ms of a 16.7 ms period: with depth 1 every other vblank is skipped.
    let c = contract(60, 15_000, 5_000);
    let work = frames(&[us(5_000); 5]);
    let s = scenario(CAPS, 10_000, vec![tenant("a", c, Work::Frames(work))]);
    let o = run(&s, &options(PolicyKind::Fifo)).unwrap();
    let t = &o.tenants[0];
    assert_eq!(t.frames.in_time, 0);
    assert!(t.frames.due.abs_diff(2 * t.stale) <= 1, "{t:?}");
    assert_eq!(t.kept.due, 0, "its own doing: {:?}", t.own);
}

#[test]
fn a_trace_is_played_back_as_recorded() {
    let job = |submit, cost| TraceJob {
        submit: Nanos::from_micros(submit),
        cost: Nanos::from_micros(cost),
    };
    let frame = |jobs: &[TraceJob]| TraceFrame { jobs: jobs.to_vec(), late_latch: None };
    let recorded = vec![
        frame(&[job(100, 700), job(900, 300)]),
        frame(&[job(50, 1_100)]),
        frame(&[job(0, 400), job(0, 200), job(700, 500)]),
    ];
    let costs: Vec<u64> = recorded.iter().flat_map(|f| &f.jobs).map(|j| j.cost.0).collect();
    let work = Work::Trace(Arc::new(Trace { name: "t".to_string(), frames: recorded }));
    let c = Contract {
        gap: Nanos::from_micros(100),
        jitter: Nanos::from_micros(100),
        ..contract(60, 1_200, 1_100)
    };
    let s = Scenario { warm_up: Nanos::ZERO, ..scenario(CAPS, 500, vec![tenant("a", c, work)]) };
    let o = run(&s, &Options { timeline: true, ..options(PolicyKind::Beamline) }).unwrap();
    let mut played: Vec<u64> =
        o.timeline.iter().filter(|s| s.doing == Doing::Work).map(|s| s.to.0 - s.from.0).collect();
    // The run may have ended in the middle of the last.
    played.pop();
    assert!(played.len() > 40);
    assert!(played.iter().zip(costs.iter().cycle()).all(|(a, b)| a == b), "{played:?}");
    assert_eq!(o.tenants[0].frames.missed(), 0);
    // The second job of the first frame comes 100 µs after the first one's 700 would end, as declared.
    let first = o.timeline.iter().filter(|s| s.doing == Doing::Work).nth(1).unwrap();
    let vblank = o.timeline[0].from.0 - 100_000;
    assert_eq!(first.from.0 - vblank, 900_000);
}

#[test]
fn refused_tenants_are_left_out_and_say_why() {
    let heavy =
        |name| tenant(name, contract(60, 12_000, 12_000), Work::Frames(frames(&[us(9_000)])));
    let s = scenario(CAPS, 500, vec![heavy("a"), heavy("b")]);
    let o = run(&s, &options(PolicyKind::Beamline)).unwrap();
    assert_eq!((o.refused(), o.tenants[1].frames.due), (1, 0));
    assert!(o.tenants[1].refused.as_deref().unwrap().contains("too much"), "{:?}", o.tenants[1]);
    let o = Options { admission: false, ..options(PolicyKind::Fifo) };
    assert!(run(&s, &o).unwrap().tenants[1].frames.due > 20);
}

#[test]
fn a_wrong_scenario_is_refused_with_the_fields_name() {
    let good = scenario(CAPS, 500, reference());
    let message = |change: fn(&mut Scenario)| {
        let mut s = good.clone();
        change(&mut s);
        run(&s, &options(PolicyKind::Fifo)).map(|_| ()).unwrap_err().to_string()
    };
    for (change, start) in [
        ((|s| s.length = Nanos::ZERO) as fn(&mut Scenario), "length is 0 ns"),
        (|s| s.victim = Some(3), "victim is 3; there are 3"),
        (|s| s.tenants.clear(), "tenants is empty"),
        (|s| s.caps.in_flight = 0, "caps.in_flight is 0"),
        (|s| s.tenants[1].contract.depth = 9, "tenants[1].contract is wrong: depth is 9"),
        (|s| s.tenants[2].contract.class = Class::Reserved, "tenants[2].work is a flood"),
        (|s| s.tenants[0].contract.late_latch = None, "tenants[0].work.late_latch is there, but"),
        (|s| s.tenants[0].phase = Some(Nanos::MAX), "tenants[0].phase is "),
        (|s| s.density = Some(vec![]), "density.len is 0"),
    ] {
        let got = message(change);
        assert!(got.starts_with(start), "{got}");
    }
}

#[path = "tests_sets.rs"]
mod sets;
