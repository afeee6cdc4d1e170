use super::*;
use crate::contract::LateLatch;
use crate::testing::{CAPS, contract, game, vr};
use alloc::string::ToString;
use alloc::vec;
use proptest::prelude::*;

/// Every interval on the way and around it is at least what it would have been, and at most 1% more.
fn check(slew: &Slew, period: Period, first: u64) {
    let interval = |seq: u64| slew.time(seq + 1).0 - slew.time(seq).0;
    for seq in first.saturating_sub(3)..slew.last() + 3 {
        let plain = if seq < slew.last() {
            slew.old_time(seq + 1).0 - slew.old_time(seq).0
        } else {
            slew.new_time(seq + 1).0 - slew.new_time(seq).0
        };
        assert!(interval(seq) >= plain && plain >= period.floor().0, "vblank {seq} of {slew:?}");
        assert!(interval(seq) * 100 <= plain * 101, "vblank {seq} of {slew:?}: {}", interval(seq));
    }
    assert_eq!(slew.time(first), slew.old_time(first), "nothing moves before {slew:?}");
    assert!(slew.periods() <= 101, "{slew:?}");
}

#[test]
fn half_a_period_takes_fifty_longer_ones() {
    let period = Period::from_hz(100, 1).unwrap();
    let slew = Slew::plan(period, Nanos(0), Nanos(5_000_000), 7).unwrap();
    assert_eq!((slew.periods(), slew.last(), slew.turns()), (50, 57, 0));
    assert_eq!(slew.time(7), Nanos(70_000_000));
    assert_eq!(slew.time(8), Nanos(80_100_000));
    assert_eq!(slew.time(57), Nanos(575_000_000));
    check(&slew, period, 7);
}

#[test]
fn a_phase_before_the_old_one_is_reached_by_going_round() {
    let period = Period::from_hz(100, 1).unwrap();
    let slew = Slew::plan(period, Nanos(9_000_000), Nanos(1_000_000), 0).unwrap();
    assert_eq!((slew.periods(), slew.turns()), (20, 1));
    // 2 ms later than vblank 20 would have been: vblank 21 of the new grid.
    assert_eq!(slew.time(20), Nanos(211_000_000));
    check(&slew, period, 0);
    let stay = Slew::plan(period, Nanos(4), Nanos(4), 9).unwrap();
    assert_eq!(
        (stay.periods(), stay.time(9), stay.time(1)),
        (0, Nanos(90_000_004), Nanos(10_000_004))
    );
}

#[test]
fn a_phase_beyond_the_period_is_refused() {
    let period = Period::from_hz(90, 1).unwrap();
    let beyond = Nanos(11_111_112);
    let error = Slew::plan(period, Nanos(0), beyond, 0).unwrap_err();
    assert_eq!(error, NoPhase { phase: beyond, period: beyond });
    assert!(Slew::plan(period, Nanos(u64::MAX), Nanos(0), 0).is_err());
    Slew::plan(period, Nanos(11_111_111), Nanos(0), 0).unwrap();
}

/// A million vblanks at 59.94 Hz, slewed again and again: always on a grid, to the nanosecond.
#[test]
fn a_million_vblanks_do_not_drift() {
    let period = Period::from_hz(60_000, 1001).unwrap();
    // `lead`: periods that the grid's numbering is behind the vblanks', one for each turn round the period.
    let (mut phase, mut lead, mut seq) = (Nanos(0), 0, 0);
    let mut last = Nanos(0);
    for i in 0..2_000u64 {
        let to = Nanos(i * 7_919_111 % period.floor().0);
        let slew = Slew::plan(period, phase, to, seq + lead + 450).unwrap();
        let end = slew.last() + 50;
        for on_grid in [slew.last(), slew.last() + 1, end] {
            let exact = u128::from(period.num()) * u128::from(on_grid + slew.turns());
            assert_eq!(u128::from(slew.time(on_grid).0 - to.0), exact / u128::from(period.den()));
        }
        assert_eq!(slew.time(seq + lead), last, "it goes on where the one before ended");
        (phase, last, seq) = (to, slew.time(end), end - lead);
        lead += slew.turns();
    }
    assert!(seq > 1_000_000 && lead > 500, "{seq} vblanks, {lead} turns");
}

/// A headset and a game whose longest job fits between the headset's jobs, but not before its late latch.
fn phased() -> Vec<Current> {
    let tight = Contract {
        max_job: Nanos::from_micros(1_000),
        jitter: Nanos::from_micros(100),
        ..contract(60, 700, 1_000)
    };
    let admission = Admission::new(CAPS, 8);
    let headset = (TenantId(0), vr(), Nanos::ZERO);
    let got = admission.try_admit(&[headset], &tight).unwrap();
    assert_eq!(got.proof, Proof::Phased);
    vec![headset, (TenantId(1), tight, got.phase)]
}

#[test]
fn a_set_that_rests_on_its_phases_does_not_slew_with_its_promises() {
    let admission = Admission::new(CAPS, 8);
    let set = phased();
    let at = set[1].2;
    let good = |phase: u64| admission.proof(&[set[0], (set[1].0, set[1].1, Nanos(phase))]).is_ok();
    // Every 10 µs round the period: some alignments are safe, and some between them are not.
    let all: Vec<bool> = (0..1_666).map(|i| good(i * 10_000)).collect();
    let safe = all.iter().filter(|&&g| g).count();
    assert!(safe > 100 && safe < all.len(), "{safe} of 1666");
    let changes = all.windows(2).filter(|w| w[0] != w[1]).count();
    assert!(changes >= 2, "the way round leads through {changes} edges");

    let other = all.iter().rposition(|&g| g).unwrap() as u64 * 10_000;
    let bad = all.iter().position(|&g| !g).unwrap() as u64 * 10_000;
    assert!(other > at.0);
    assert_eq!(
        admission.try_slew(&set, TenantId(1), Nanos(other)),
        Ok(Slewing::PromisedOnArrival),
        "a newcomer may, before it is promised anything"
    );
    let refused = admission.try_slew(&set, TenantId(1), Nanos(bad)).unwrap_err();
    assert!(matches!(refused, Refused::Phases(Refusal::Demand { .. })), "{refused}");
    assert!(refused.to_string().contains("rests on its phases"), "{refused}");
}

#[test]
fn what_needs_no_phases_slews_as_it_likes() {
    let admission = Admission::new(CAPS, 8);
    let set = [(TenantId(0), vr(), Nanos(0)), (TenantId(4), game(), Nanos(5))];
    assert_eq!(admission.try_slew(&set, TenantId(4), Nanos(9)), Ok(Slewing::Promised));
    assert_eq!(
        admission.try_slew(&set, TenantId(1), Nanos(9)),
        Err(Refused::NoTenant(TenantId(1)))
    );
    let far = admission.try_slew(&set, TenantId(4), Nanos::from_millis(17));
    assert!(matches!(far, Err(Refused::Phase(_))), "{far:?}");
    let own = Contract { sink: Sink::External, late_latch: None::<LateLatch>, ..vr() };
    let set = [(TenantId(0), own, Nanos(0))];
    assert_eq!(admission.try_slew(&set, TenantId(0), Nanos(9)), Err(Refused::OwnClock));
}

proptest! {
    #[test]
    fn never_shorter_never_more_than_one_percent_longer(
        period in prop_oneof![
            (100u64..1_000_000, Just(1000)),
            (100u64..1_000_000, Just(1001)),
            (1u64..1_000, 1u64..1_000),
            Just((1_000_000, 999_999)),
        ],
        from: u64,
        to: u64,
        first in prop_oneof![0u64..1_000, 0u64..300_000_000_000],
    ) {
        let Some(period) = Period::from_hz(period.0, period.1) else { return Ok(()) };
        let top = period.ceil().0;
        let (from, to) = (Nanos(from % top), Nanos(to % top));
        // Within the time that 64 bits count.
        let first = first % (u64::MAX / 2 / top);
        let slew = Slew::plan(period, from, to, first);
        let Ok(slew) = slew else {
            // Only the last, broken ns of a period is refused here.
            prop_assert!(from.0.max(to.0) * period.den() >= period.num());
            return Ok(());
        };
        check(&slew, period, first);
    }
}
