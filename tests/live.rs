//! Slices that come, change and go while others render: none of it costs a neighbour a frame, or the slice
//! itself one that it was promised. *Modelled*, in virtual time.

use beamline_abi::pacer::{reg, status};
use beamline_abi::{Nanos, Reason};
use beamline_guest_driver::pacer::{Answer, Ask};
use beamline_latency::Stage;
use beamline_mdev::host::admit::NotNow;
use beamline_mdev::mediate::dispatcher::{Change, Way};
use beamline_sched::{Class, Period, PolicyKind};
use beamline_tests::{FLOOD, Function, GAME, Habits, Scenario, State, VR, World};
use beamline_vfio_user::RegionIndex;

/// The slice that comes and goes.
const LIVE: usize = 3;
const SECOND: Nanos = Nanos::from_secs(1);

fn section(hz: &str, class: &str, budget_ms: f64) -> String {
    format!(
        "[[slice]]\nname = \"live\"\nwidth = 256\nheight = 144\n[slice.contract]\nrefresh_hz = \"{hz}\"\n\
         class = \"{class}\"\nbudget_ms = {budget_ms:?}\nmax_job_ms = 0.5\njitter_ms = 0.5\n"
    )
}

/// The headset, the game and the flood, after a second.
fn world(seed: u64) -> World {
    let scenario = Scenario::new(PolicyKind::Beamline, seed);
    let micros = Nanos::from_micros;
    let costs = (0..3).fold(scenario.costs(), |c, job| c.with(LIVE as u16, job, micros(200)));
    let costs = (0..3).fold(costs, |c, job| c.with(LIVE as u16 + 1, job, micros(200)));
    let mut world = scenario.with_guests(costs, &[VR, GAME, FLOOD]).unwrap();
    world.run_for(SECOND).unwrap();
    world
}

/// Carries a change out once the one before it is over.
fn in_turn<T>(world: &mut World, mut what: impl FnMut(&mut World) -> Result<T, NotNow>) -> T {
    loop {
        match what(world) {
            Ok(done) => return done,
            Err(NotNow::Busy(until)) => world.run_until(until).unwrap(),
            Err(NotNow::Refused(refusal)) => panic!("{refusal}"),
        }
    }
}

/// Changes the live slice and lets it arrive.
fn change(world: &mut World, section: &str) -> Change {
    let change = in_turn(world, |w| w.change(LIVE, section));
    let begun = world.now();
    while world.is_changing(LIVE) {
        world.run_for(Nanos::from_millis(1)).unwrap();
        assert!(world.now() < begun.saturating_add(SECOND.saturating_add(SECOND)), "{change:?}");
    }
    change
}

/// Every frame of the headset and the game between `from` and now was in time.
fn assert_unharmed(world: &mut World, from: Nanos) {
    let to = world.now();
    let outcome = world.log();
    for slice in [VR, GAME] {
        let tally = outcome.tally(slice, from, to);
        let expected = to.saturating_sub(from).0 * if slice == VR { 90 } else { 60 } / SECOND.0;
        assert!(tally.due + 2 >= expected, "slice {slice}: {tally:?} of {expected}");
        assert_eq!((tally.missed, tally.latch_missed), (0, 0), "slice {slice}: {tally:?}");
    }
    let last = to.saturating_sub(Nanos::from_millis(50));
    for slice in [VR, GAME, FLOOD] {
        assert!(!matches!(world.state(slice), State::Failed(_)), "{:?}", world.state(slice));
        assert_eq!(outcome.incomplete(slice, last), Vec::<String>::new(), "slice {slice}");
    }
    let health = outcome.health(&[VR, GAME, FLOOD], Nanos::ZERO, to);
    assert!(health.is_sound(), "{health:?}");
}

/// The live slice, from now on: a second of its contract, in time.
fn assert_served(world: &mut World, hz: u64) {
    let from = world.now().saturating_add(Nanos::from_millis(50));
    world.run_until(from.saturating_add(SECOND)).unwrap();
    assert!(!matches!(world.state(LIVE), State::Failed(_)), "{:?}", world.state(LIVE));
    let tally = world.log().tally(LIVE, from, world.now());
    assert!(tally.due.abs_diff(hz) <= 1 && tally.missed == 0, "{tally:?} at {hz} Hz");
    // What the guest was told.
    let page = world.page(LIVE).unwrap();
    let period = Period::from_hz(hz, 1).unwrap();
    assert_eq!((page.period_num, page.period_den), (period.num(), period.den()));
}

#[test]
fn slices_come_change_and_go_at_nobodys_cost() {
    for seed in 1..4 {
        let mut world = world(seed);
        let from = world.now();
        let index = in_turn(&mut world, |w| w.add(&section("60", "reserved", 0.8)));
        assert_eq!(index, LIVE);
        world.attach(LIVE, "scene=game", Habits::default()).unwrap();
        assert_served(&mut world, 60);
        for (hz, class, budget) in [
            ("60", "reserved", 1.0),
            ("90", "reserved", 0.8),
            ("120", "reserved", 0.7),
            ("72", "reserved", 1.2),
            ("60", "elastic", 1.0),
            ("60", "reserved", 1.1),
        ] {
            let told = change(&mut world, &section(hz, class, budget));
            println!(
                "seed {seed}: {hz} Hz {class} {budget} ms: {:?}, {:?}",
                told.way,
                told.interim.is_some()
            );
            let page = world.page(LIVE).unwrap();
            assert_eq!(page.budget, told.contract.budget);
            if class == "reserved" {
                assert_served(&mut world, hz.parse().unwrap());
            }
        }
        // In the middle of a frame, with work on its way.
        world.run_for(Nanos::from_micros(8_400)).unwrap();
        assert!(world.remove(LIVE));
        assert!(!world.remove(LIVE));
        world.run_for(SECOND).unwrap();
        let next = in_turn(&mut world, |w| w.add(&section("90", "reserved", 0.9)));
        world.attach(next, "scene=game", Habits::default()).unwrap();
        world.run_for(SECOND).unwrap();
        assert!(world.stats(next).completed > 80, "{:?}", world.stats(next));
        assert_unharmed(&mut world, from);
    }
}

#[test]
fn what_is_refused_changes_nothing() {
    let mut world = world(9);
    let from = world.now();
    let refused = world.add(&section("90", "reserved", 7.0));
    assert!(matches!(refused, Err(NotNow::Refused(_))), "{refused:?}");
    let index = in_turn(&mut world, |w| w.add(&section("60", "reserved", 0.8)));
    world.attach(index, "scene=game", Habits::default()).unwrap();
    assert_served(&mut world, 60);
    let before = world.page(LIVE).unwrap();
    let refused = world.change(LIVE, &section("120", "reserved", 6.0));
    assert!(matches!(refused, Err(NotNow::Refused(_))), "{refused:?}");
    assert!(!world.is_changing(LIVE));
    assert_served(&mut world, 60);
    let after = world.page(LIVE).unwrap();
    assert_eq!((before.budget, before.phase), (after.budget, after.phase));
    assert_unharmed(&mut world, from);
}

#[test]
fn a_phase_is_reached_by_periods_that_are_one_percent_longer_at_most() {
    let mut world = world(5);
    let from = world.now();
    in_turn(&mut world, |w| w.add(&section("90", "reserved", 0.8)));
    world.attach(LIVE, "scene=game", Habits::default()).unwrap();
    let mut slews = 0;
    for budget in [2.5, 0.7, 1.9, 1.0, 3.0, 0.8] {
        let begun = world.now();
        let told = change(&mut world, &section("90", "reserved", budget));
        println!("{budget} ms: {:?}, interim {}", told.way, told.interim.is_some());
        let Way::Slew(to) = told.way else { continue };
        slews += 1;
        assert_served(&mut world, 90);
        let outcome = world.log();
        let stamps = outcome.log().stamps.iter();
        let ticks = stamps.filter(|s| {
            usize::from(s.slice.0) == LIVE && s.stage() == Some(Stage::Tick) && s.time >= begun.0
        });
        let times: Vec<u64> = ticks.map(|s| s.time).collect();
        let period = Period::from_hz(90, 1).unwrap();
        let most = period.ceil().0 + period.floor().0 / 100 + 1;
        let spans: Vec<u64> = times.windows(2).map(|w| w[1] - w[0]).collect();
        assert!(spans.iter().all(|s| (period.floor().0..=most).contains(s)), "{spans:?}");
        assert!(spans.iter().any(|s| *s > period.ceil().0 + 1_000), "it did move");
        assert_eq!(world.page(LIVE).unwrap().phase, to);
    }
    assert!(slews > 0, "no change moved a phase: the test shows nothing");
    assert_unharmed(&mut world, from);
}

/// Where not even both contracts together fit, the promise pauses on the way.
#[test]
fn a_promise_pauses_where_the_two_contracts_do_not_fit_together() {
    let mut world = world(6);
    let from = world.now();
    in_turn(&mut world, |w| w.add(&section("60", "reserved", 7.0)));
    world.attach(LIVE, "scene=game", Habits::default()).unwrap();
    assert_served(&mut world, 60);
    for (hz, budget) in [("120", 3.0), ("60", 7.0)] {
        let begun = world.now();
        let told = change(&mut world, &section(hz, "reserved", budget));
        let interim = told.interim.expect("both do not fit together");
        assert_eq!(interim.class, Class::Elastic);
        let took = world.now().saturating_sub(begun);
        assert!(took > told.hold, "it pauses for {}, not for {took}", told.hold);
        // Nothing else is changed meanwhile, nor until what it leaves is surely free.
        assert_served(&mut world, hz.parse().unwrap());
    }
    assert_unharmed(&mut world, from);
}

/// A slice whose guest may choose.
fn choosing(budget_ms: f64) -> String {
    let keys =
        "guest_contract = \"within\"\nguest_hz = { min = \"30\", max = \"120\" }\n[slice.contract]";
    section("60", "reserved", budget_ms).replace("[slice.contract]", keys)
}

/// The guest asks, and lives on until it is answered and has what it was granted.
fn ask(world: &mut World, hz: u64, budget: Nanos) -> Answer {
    let period = Period::from_hz(hz, 1).unwrap();
    let period = Some((period.num(), period.den()));
    let budget = Some(budget);
    world.ask(LIVE, &Ask { period, budget, ..Ask::default() }).unwrap();
    let end = world.now().saturating_add(SECOND.saturating_add(SECOND));
    let mut answer = None;
    while answer.is_none() || world.is_changing(LIVE) {
        world.run_for(Nanos::from_millis(1)).unwrap();
        answer = answer.or_else(|| world.answer(LIVE));
        assert!(world.now() < end, "{answer:?}");
    }
    answer.unwrap()
}

#[test]
fn a_guest_that_asks_for_another_rate_costs_nobody_a_frame() {
    for seed in 1..4 {
        let mut world = world(seed);
        let from = world.now();
        in_turn(&mut world, |w| w.add(&choosing(1.6)));
        world.attach(LIVE, "scene=game", Habits::default()).unwrap();
        assert_served(&mut world, 60);
        let half = Nanos::from_micros(800);
        assert_eq!(ask(&mut world, 90, half), Answer::Granted);
        assert_eq!(world.page(LIVE).unwrap().budget, half);
        assert_served(&mut world, 90);
        // More than the operator gave, at any rate, is that.
        let reason = Some(Reason::Ceiling);
        let budget = Nanos::from_micros(800);
        let greedy = ask(&mut world, 120, Nanos::from_millis(5));
        assert_eq!(greedy, Answer::Reduced { reason, budget });
        assert_served(&mut world, 120);
        assert_eq!(ask(&mut world, 60, Nanos::from_micros(1_600)), Answer::Granted);
        assert_served(&mut world, 60);
        assert_unharmed(&mut world, from);
    }
}

#[test]
fn a_guest_that_floods_its_pacer_with_requests_costs_nobody_a_frame() {
    let mut world = world(7);
    let from = world.now();
    in_turn(&mut world, |w| w.add(&choosing(1.6)));
    world.attach(LIVE, "scene=game", Habits::default()).unwrap();
    for n in 0..2_000u64 {
        world.misuse(LIVE, |port| {
            let mut write = |at: u32, value: u64| {
                let bar = RegionIndex::bar(0);
                port.region_write(Function::Pacer, bar, at.into(), &value.to_le_bytes());
            };
            for word in 0..8 {
                write(
                    reg::ASK_PERIOD_NUM,
                    [11_111_111, 1 << word, 16_666_666, u64::MAX][n as usize % 4],
                );
                write(reg::ASK_PERIOD_DEN, 1 + n % 2 * word);
                write(reg::ASK_BUDGET, n << word);
                write(reg::ASK_COMMIT, 1);
            }
        });
        world.run_for(Nanos::from_micros(700)).unwrap();
    }
    assert_unharmed(&mut world, from);
}

#[test]
fn a_guest_that_is_asked_to_stop_finishes_its_frames_and_goes_on_when_it_may() {
    let mut world = world(8);
    let from = world.now();
    world.quiesce(FLOOD, true);
    // It hears of it, and its jobs run to their end.
    world.run_for(Nanos::from_millis(100)).unwrap();
    assert_eq!(world.status(FLOOD).0, status::QUIESCE);
    let stats = world.stats(FLOOD);
    assert_eq!((world.queued(FLOOD), stats.failed), (0, 0));
    assert_eq!(stats.submitted, stats.completed);
    world.run_for(SECOND).unwrap();
    assert_eq!(world.stats(FLOOD).submitted, stats.submitted);
    world.quiesce(FLOOD, false);
    world.run_for(SECOND).unwrap();
    assert_eq!(world.status(FLOOD).0, status::RUNNING);
    assert!(world.stats(FLOOD).submitted > stats.submitted + 100, "{:?}", world.stats(FLOOD));
    assert_unharmed(&mut world, from);
}

/// Breaks what admission is there for: the test must see it.
#[test]
fn a_contract_that_was_not_admitted_does_harm() {
    let scenario = Scenario::new(PolicyKind::Fifo, 3);
    let costs =
        (0..3).fold(scenario.costs(), |c, job| c.with(LIVE as u16, job, Nanos::from_micros(2_500)));
    let mut world = scenario.with_guests(costs, &[VR, GAME, FLOOD]).unwrap();
    world.run_for(SECOND).unwrap();
    let from = world.now();
    let index = in_turn(&mut world, |w| w.add(&section("60", "elastic", 0.8)));
    world.attach(index, "scene=game", Habits::default()).unwrap();
    world.run_for(SECOND).unwrap();
    let harmed = world.log().tally(VR, from, world.now());
    assert!(harmed.missed + harmed.latch_missed > 0, "{harmed:?}");
}
