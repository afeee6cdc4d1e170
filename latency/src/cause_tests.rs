use super::*;
use crate::testkit::{self, MS, T0, US};

fn start() -> Start {
    Start {
        release: Nanos(T0),
        deadline: Nanos(T0 + 10 * MS),
        emitted: Some(Nanos(T0)),
        handled: Some(Nanos(T0 + 50 * US)),
        earlier: None,
    }
}

#[test]
fn the_largest_share_wins_and_none_is_unknown() {
    let mut shares = Shares::default();
    assert_eq!(shares.largest(), Cause::Unknown);
    shares.add(Cause::Neighbour, Nanos(5));
    shares.add(Cause::SchedulerWait, Nanos(5));
    assert_eq!(shares.largest(), Cause::SchedulerWait, "the first listed among equals");
    shares.add(Cause::Neighbour, Nanos(1));
    assert_eq!(shares.largest(), Cause::Neighbour);
    shares.add(Cause::Neighbour, Nanos::MAX);
    assert_eq!(shares.of(Cause::Neighbour), Nanos::MAX, "sums saturate");
}

#[test]
fn lateness_is_excused_by_the_host_only_as_far_as_it_goes() {
    let contract = testkit::contract();
    let late = start().lateness(&contract, Nanos(T0 + MS));
    assert_eq!(late, Lateness::default(), "jitter is allowed");
    let late = start().lateness(&contract, Nanos(T0 + 3 * MS));
    assert_eq!((late.late, late.own), (Nanos(2 * MS), Nanos(2 * MS)));
    let slow = Start { handled: Some(Nanos(T0 + 700 * US)), ..start() };
    let late = slow.lateness(&contract, Nanos(T0 + 3 * MS));
    assert_eq!((late.irq, late.own), (Nanos(500 * US), Nanos(1_500 * US)));
    let earlier = Earlier { handled: Nanos(T0 + 2 * MS), cause: Some(Cause::Neighbour) };
    let behind = Start { earlier: Some(earlier), ..start() };
    let late = behind.lateness(&contract, Nanos(T0 + 2_500 * US));
    assert_eq!((late.behind, late.own), (Nanos(1_500 * US), Nanos::ZERO));
    // What was handled only after the submission did not delay it.
    let late = behind.lateness(&contract, Nanos(T0 + 1_900 * US));
    assert_eq!((late.behind, late.own), (Nanos::ZERO, Nanos(900 * US)));
}

#[test]
fn skipped_slots_by_evidence() {
    let contract = testkit::contract();
    let cause = |s| of_skipped(&s, &contract);
    assert_eq!(cause(start()), Cause::GuestCpu);
    assert_eq!(cause(Start { emitted: None, ..start() }), Cause::IrqLate);
    assert_eq!(cause(Start { handled: None, ..start() }), Cause::GuestCpu);
    let late = Some(Nanos(T0 + MS + 1));
    assert_eq!(cause(Start { handled: late, ..start() }), Cause::IrqLate);
    assert_eq!(cause(Start { emitted: late, ..start() }), Cause::IrqLate);
    let earlier = |cause| Some(Earlier { handled: Nanos(T0 + 2 * MS), cause });
    assert_eq!(cause(Start { earlier: earlier(None), ..start() }), Cause::Stuffing);
    let own = earlier(Some(Cause::GuestGpu));
    assert_eq!(cause(Start { earlier: own, ..start() }), Cause::GuestGpu);
}

#[test]
fn names_are_those_of_the_reports() {
    for cause in Cause::ALL {
        let json = serde_json::to_string(&cause).unwrap();
        assert_eq!(json, format!("\"{}\"", cause.name()));
    }
}
