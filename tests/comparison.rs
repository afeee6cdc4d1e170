//! A headset, a game and a background load on one GPU: under Beamline every frame is in time; in a driver's
//! queue, and without any mediation, late latches are not. All of it *modelled*, in virtual time.

use beamline_abi::Nanos;
use beamline_latency::verdict::Verdict;
use beamline_latency::{Analysis, Label, Log, Options, RunReport, Stage};
use beamline_sched::PolicyKind;
use beamline_tests::{FLOOD, GAME, Outcome, Scenario, State, VR, World};

const SEED: u64 = 20_260_101;
/// 10,000 frames at 90 Hz take 111.2 s.
const LONG: Nanos = Nanos::from_secs(114);
const SHORT: Nanos = Nanos::from_secs(12);
/// Start-up: schedulers learn costs and guests come one after the other.
const WARM_UP: Nanos = SECOND;
const SECOND: Nanos = Nanos::from_secs(1);

struct Run {
    outcome: Outcome,
    from: Nanos,
    to: Nanos,
    /// The least GPU time that the flood got in any one second.
    least: Nanos,
}

impl Run {
    fn new(policy: PolicyKind, guests: &[usize], span: Nanos) -> Self {
        let scenario = Scenario::new(policy, SEED);
        let mut world = scenario.with_guests(scenario.costs(), guests).unwrap();
        world.run_for(WARM_UP).unwrap();
        let from = world.now();
        let mut least = Nanos::MAX;
        for _ in 0..span.0 / SECOND.0 {
            let before = world.busy(FLOOD);
            world.run_for(SECOND).unwrap();
            least = least.min(world.busy(FLOOD).saturating_sub(before));
        }
        for &guest in guests {
            assert!(!matches!(world.state(guest), State::Failed(_)), "{:?}", world.state(guest));
            check_clock(&mut world, guest);
        }
        Self { to: world.now(), from, least, outcome: world.log() }
    }

    fn report(&self) -> RunReport {
        self.outcome.report(self.from, self.to)
    }

    /// Every stamp is there, once.
    fn assert_complete(&self, guests: &[usize]) {
        let health = self.outcome.health(guests, Nanos::ZERO, self.to);
        assert!(health.is_sound(), "{health:?}");
        let last = self.to.saturating_sub(Nanos::from_millis(50));
        for &guest in guests {
            let incomplete = self.outcome.incomplete(guest, last);
            assert!(incomplete.is_empty(), "slice {guest}: {:?}", &incomplete[..1]);
        }
    }
}

/// The guest's TSC has an offset and a scale of its own, and still it knows host time.
fn check_clock(world: &mut World, guest: usize) {
    let (off, admitted) = world.clock_error(guest).expect("the timing page has a map");
    // Beside what the page admits, the rate is rounded to 32 fractional bits.
    let rounding = Nanos(1 + world.now().0 / 1_000_000_000);
    assert!(off <= admitted.saturating_add(rounding), "guest {guest} is off by {off}");
}

#[test]
fn beamline_keeps_every_frame_of_ten_thousand() {
    let all = [VR, GAME, FLOOD];
    let run = Run::new(PolicyKind::Beamline, &all, LONG);
    run.assert_complete(&all);
    let report = run.report();
    assert_eq!(report.label, Label::Modelled);
    let vr = &report.slices[VR];
    assert!(vr.in_budget.of >= 10_000, "{} frames", vr.in_budget.of);
    for slice in [VR, GAME] {
        let slice = &report.slices[slice];
        println!("{}: {:?} {:?}", slice.name, slice.in_budget, slice.late_latch);
        assert_eq!(slice.in_budget.hits, slice.in_budget.of, "{}: {:?}", slice.name, slice.causes);
        assert_eq!((slice.skipped, slice.extra, slice.vblanks_lost), (0, 0, 0), "{}", slice.name);
        assert!(slice.causes.is_empty(), "{}: {:?}", slice.name, slice.causes);
    }
    let latch = vr.late_latch.expect("the contract has a late latch");
    assert_eq!(latch.hits, latch.of);
    assert_eq!(vr.verdict, Some(Verdict::Met));

    // 2 ms in every 16.7 ms, and much of what the others leave.
    let minimum = Nanos::from_millis(120);
    println!("flood: at least {} in every second, promised are {minimum}", run.least);
    assert!(run.least >= minimum, "the flood got {} of {minimum}", run.least);
}

#[test]
fn a_drivers_queue_misses_late_latches() {
    let run = Run::new(PolicyKind::Fifo, &[VR, GAME, FLOOD], SHORT);
    run.assert_complete(&[VR, GAME, FLOOD]);
    let vr = run.outcome.tally(VR, run.from, run.to);
    println!("fifo: {vr:?}");
    assert!(vr.latch_missed * 5 > vr.due, "{vr:?}: visible is more than one in five");
}

#[test]
fn without_mediation_late_latches_are_missed() {
    let run = Run::new(PolicyKind::None, &[VR, GAME, FLOOD], SHORT);
    run.assert_complete(&[VR, GAME, FLOOD]);
    let vr = run.outcome.tally(VR, run.from, run.to);
    println!("none: {vr:?}");
    assert!(vr.latch_missed * 5 > vr.due, "{vr:?}: visible is more than one in five");
}

#[test]
fn neighbours_move_a_headset_less_than_in_a_drivers_queue() {
    let interference = |policy| {
        let alone = Run::new(policy, &[VR], SHORT).report();
        let mut together = Run::new(policy, &[VR, GAME, FLOOD], SHORT).report();
        together.compare_alone(&alone);
        let vr = &together.slices[VR];
        println!("{policy}: interference {:?}", vr.interference);
        vr.interference.expect("both runs have enough frames")
    };
    let beamline = interference(PolicyKind::Beamline);
    let fifo = interference(PolicyKind::Fifo);
    assert!(beamline < fifo, "beamline {beamline}, fifo {fifo}");
    // The completion's p99, with neighbours against without.
    assert!(beamline < 1.1, "{beamline}");
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let bytes = |policy| {
        let run = Run::new(policy, &[VR, GAME, FLOOD], Nanos::from_secs(3));
        run.outcome.bytes().to_vec()
    };
    for policy in PolicyKind::ALL {
        assert!(bytes(policy) == bytes(policy), "two runs under {policy} differ");
    }
    let other = Scenario::new(PolicyKind::Beamline, SEED + 1);
    let mut world = other.with_guests(other.costs(), &[VR, GAME, FLOOD]).unwrap();
    world.run_for(Nanos::from_secs(4)).unwrap();
    assert!(world.log().bytes() != bytes(PolicyKind::Beamline), "the seed has no effect");
}

/// The checks that the other tests rest on see what they are there to see.
#[test]
fn a_missing_and_a_double_stamp_are_noticed() {
    let run = Run::new(PolicyKind::Beamline, &[VR, GAME], Nanos::from_secs(1));
    run.assert_complete(&[VR, GAME]);
    let log = run.outcome.log();
    let health = |log: &Log| {
        let options = Options { warm_up: Nanos::ZERO, window: None };
        Analysis::new(log, options).joined.health
    };
    assert!(health(log).is_sound());
    for stage in Stage::OF_A_JOB.into_iter().chain([Stage::Posted, Stage::Guest]) {
        // In the middle of the run, of the vblank or job that shows the frame.
        let middle = log.stamps.len() / 2;
        let at = (middle..log.stamps.len())
            .find(|&i| log.stamps[i].stage() == Some(stage))
            .expect("there is one");
        let mut broken = log.clone();
        broken.stamps.remove(at);
        if stage != Stage::Guest {
            assert_eq!(health(&broken).missing, 1, "{stage:?}");
        }
        let mut broken = log.clone();
        broken.stamps.push(log.stamps[at]);
        assert_eq!(health(&broken).double, 1, "{stage:?}");
    }
}
