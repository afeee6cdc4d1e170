//! A job that never ends: its renderer is killed within a stated bound, its guest is told, and its
//! neighbours lose nothing beyond that bound. *Modelled*, in virtual time.
//!
//! The bound is `max_job + kill_grace` of the job's slice, from its grant. While a job hangs the GPU is
//! lost to everyone, so neighbours whose slack is longer than the bound miss nothing.

use beamline_abi::pacer::status;
use beamline_abi::{Nanos, Reason};
use beamline_guest_driver::scene::SceneError;
use beamline_latency::Stage;
use beamline_latency::stamp::flag;
use beamline_sched::PolicyKind;
use beamline_tests::{FLOOD, GAME, Habits, Outcome, Scenario, State, VR, World};

/// Of the game: see its contract in the scenario.
const MAX_JOB: Nanos = Nanos::from_micros(600);
/// The frame that hangs.
const FRAME: u64 = 300;

struct Run {
    world: World,
    from: Nanos,
    outcome: Outcome,
}

/// Runs the game into its endless job and on for the rest of 2,000 frames of the headset.
fn run(kill_grace: Nanos) -> Run {
    let scenario = Scenario { kill_grace, ..Scenario::new(PolicyKind::Beamline, 7) };
    let costs = scenario.costs().hang(GAME as u16, FRAME);
    let mut world = scenario.with_guests(costs, &[VR, GAME, FLOOD]).unwrap();
    world.run_for(Nanos::from_secs(1)).unwrap();
    let from = world.now();
    world.run_for(Nanos::from_secs(23)).unwrap();
    let outcome = world.log();
    Run { world, from, outcome }
}

impl Run {
    /// When the endless job was granted, and when it was ended.
    fn hung(&self) -> (Nanos, Nanos) {
        let stamps = self.outcome.log().stamps.iter();
        let of = |stage| {
            let mut stamps = stamps.clone().filter(move |s| s.stage() == Some(stage));
            let stamp = stamps
                .find(|s| usize::from(s.slice.0) == GAME && s.frame.0 == FRAME && s.job.0 == 0);
            *stamp.expect("the job was granted and answered")
        };
        let (granted, ended) = (of(Stage::Granted), of(Stage::Fence));
        assert!(ended.has(flag::FAILED));
        assert_eq!(ended.b, Reason::JobTooLong as u64);
        (Nanos(granted.time), Nanos(ended.time))
    }
}

/// The job ends at the bound, its guest knows why, and a new guest can take the slice over.
fn assert_told_and_recovered(run: &mut Run, bound: Nanos) {
    let (granted, ended) = run.hung();
    let took = ended.saturating_sub(granted);
    println!("ended {took} after its grant, the bound is {bound}");
    assert_eq!(took, bound);
    let world = &mut run.world;
    assert_eq!(world.status(GAME), (status::LOST, Some(Reason::JobTooLong)));
    let told = SceneError::Lost { reason: Some(Reason::JobTooLong) };
    assert_eq!(world.state(GAME), State::Failed(told));
    assert!(!world.is_ready(GAME));

    world.kill(GAME);
    world.attach(GAME, "scene=game", Habits::default()).unwrap();
    world.run_for(Nanos::from_secs(2)).unwrap();
    let stats = world.stats(GAME);
    assert!(stats.completed >= 118 && stats.failed == 0, "{stats:?}");
    assert_eq!(world.status(GAME).0, status::RUNNING);
    let (from, to) = (world.now().saturating_sub(Nanos::from_secs(2)), world.now());
    let vr = world.log().tally(VR, from, to);
    assert_eq!((vr.missed, vr.latch_missed), (0, 0), "{vr:?}");
}

#[test]
fn a_bound_within_the_neighbours_slack_costs_them_nothing() {
    // The headset's late latch has the least slack: a window of 1.2 ms for 0.45 ms.
    let grace = Nanos::from_micros(100);
    let bound = MAX_JOB.saturating_add(grace);
    let mut run = run(grace);
    let vr = run.outcome.tally(VR, run.from, run.world.now());
    println!("vr: {vr:?}");
    assert!(vr.due >= 2000);
    assert_eq!((vr.missed, vr.latch_missed), (0, 0), "{vr:?}");
    assert_told_and_recovered(&mut run, bound);
}

#[test]
fn a_longer_bound_costs_the_frames_that_it_covers_and_no_more() {
    let grace = Nanos::from_millis(20);
    let bound = MAX_JOB.saturating_add(grace);
    let mut run = run(grace);
    let (granted, ended) = run.hung();
    let to = run.world.now();
    let vr = run.outcome.tally(VR, run.from, to);
    println!("vr: {vr:?}");
    // A frame is touched where the span from its release to its deadline meets the hung job: at 11.1 ms
    // apart, 20.6 ms meet three at most.
    let period = 11_111_111;
    let covered = bound.0.div_ceil(period) + 1;
    assert!(vr.due >= 2000 && vr.missed > 0, "the test hung nothing: {vr:?}");
    assert!(vr.missed <= covered && vr.latch_missed <= covered, "{vr:?}, covered {covered}");
    // And none of them lies before the job or later than the frame that was under way at its end.
    let before = run.outcome.tally(VR, run.from, granted);
    let settled = ended.saturating_add(Nanos(2 * period));
    let after = run.outcome.tally(VR, settled, to);
    assert_eq!((before.missed, before.latch_missed), (0, 0), "{before:?}");
    assert_eq!((after.missed, after.latch_missed), (0, 0), "{after:?}");
    assert_told_and_recovered(&mut run, bound);
}

/// Where two jobs of a slice are on the GPU, the first has the time of both from when the one before it was done,
/// however late the second comes.
#[test]
fn a_job_with_another_one_in_line_has_twice_the_bound() {
    let (frame, kill_grace) = (300, Nanos::from_millis(5));
    let scenario = Scenario { in_flight: 2, kill_grace, ..Scenario::new(PolicyKind::Beamline, 7) };
    let costs = scenario.costs().hang(FLOOD as u16, frame);
    let mut world = scenario.world(costs).unwrap();
    // Two jobs in turn: it submits one when the one before last is done, while the last is on the GPU.
    let habits = Habits { wake_delay: Nanos::from_micros(800), ..Habits::default() };
    world.attach(FLOOD, "scene=flood depth=2", habits).unwrap();
    world.run_for(Nanos::from_secs(2)).unwrap();
    let outcome = world.log();
    let of = |frame, stage| {
        let mut stamps = outcome.log().stamps.iter().filter(|s| s.stage() == Some(stage));
        *stamps.find(|s| s.frame.0 == frame).expect("the job left this stamp")
    };
    let ended = of(frame, Stage::Fence);
    assert!(ended.has(flag::FAILED));
    assert_eq!(ended.b, Reason::JobTooLong as u64);
    let before = of(frame - 1, Stage::Fence);
    assert!(of(frame, Stage::Granted).time < before.time, "it was not in line");
    let max_job = Nanos::from_micros(1_200);
    assert_eq!(ended.time - before.time, 2 * max_job.saturating_add(kill_grace).0);
}
