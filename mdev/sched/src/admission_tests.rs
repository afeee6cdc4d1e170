use super::*;
use crate::contract::{Guard, LateLatch, MissAllowance, Sink};
use crate::testing::{CAPS, contract, flood, game, vr};
use alloc::string::ToString;
use alloc::vec;

fn admit_all(contracts: &[Contract]) -> Result<Vec<Current>, Refusal> {
    let admission = Admission::new(CAPS, 64);
    let mut set = vec![];
    for (i, c) in contracts.iter().enumerate() {
        let got = admission.try_admit(&set, c)?;
        set.push((TenantId(i as u16), *c, got.phase));
    }
    Ok(set)
}

#[test]
fn the_reference_set_is_admitted() {
    admit_all(&[vr(), game(), flood()]).unwrap();
    admit_all(&[flood(), game(), vr()]).unwrap();
}

#[test]
fn an_overfull_gpu_is_refused_with_what_would_fit() {
    let first = contract(90, 7_000, 1_000);
    let second = contract(90, 6_000, 1_000);
    let refusal = admit_all(&[first, second]).unwrap_err();
    let Refusal::Demand { shortage, nearest } = refusal else {
        panic!("{refusal}");
    };
    assert!(shortage.demand > shortage.interval);
    let fits = nearest.budget.unwrap();
    assert!(fits > Nanos::from_micros(3_000) && fits < Nanos::from_micros(4_112), "{fits}");
    let again = Contract { budget: fits, ..second };
    admit_all(&[first, again]).unwrap();
    let hz = nearest.hz.unwrap();
    let period = Period::from_hz(hz, 1).unwrap();
    admit_all(&[first, Contract { period, deadline: period.floor(), ..second }]).unwrap();
    let text = refusal.to_string();
    assert!(text.contains("too much; a budget of") && text.contains(" Hz"), "{text}");
}

#[test]
fn blocking_by_a_long_job_counts() {
    let mut vr = vr();
    vr.sink = Sink::External;
    let mut game = game();
    admit_all(&[vr, game]).unwrap();
    // A job of 1 ms before a late latch of 0.4 ms does not end within its window of 1.2 ms.
    game.max_job = Nanos::from_millis(1);
    let refusal = admit_all(&[vr, game]).unwrap_err();
    let Refusal::Demand { shortage, .. } = refusal else {
        panic!("{refusal}");
    };
    assert_eq!(shortage.interval, 1_200_000);
}

#[test]
fn phases_admit_what_alignment_alone_would_not() {
    let mut game = game();
    game.max_job = Nanos::from_micros(1_000);
    game.gap = Nanos::ZERO;
    game.budget = Nanos::from_micros(700);
    game.jitter = Nanos::from_micros(100);
    let got =
        Admission::new(CAPS, 8).try_admit(&[(TenantId(0), vr(), Nanos::ZERO)], &game).unwrap();
    assert_eq!(got.proof, Proof::Phased);
    game.sink = Sink::External;
    assert!(admit_all(&[vr(), game]).is_err());
}

#[test]
fn a_guarded_release_is_not_blocked_by_background() {
    let mut flood = flood();
    flood.budget = Nanos::ZERO;
    flood.max_job = Nanos::from_millis(50);
    admit_all(&[vr(), flood]).unwrap();
    let open = Contract { guard: Guard::Deadline, ..vr() };
    assert!(matches!(admit_all(&[open, flood]), Err(Refusal::Demand { .. })));
}

#[test]
fn a_minimum_that_does_not_fit_is_refused() {
    let mut flood = flood();
    flood.budget = Nanos::from_millis(60);
    let refusal = admit_all(&[vr(), game(), flood]).unwrap_err();
    assert!(matches!(refusal, Refusal::Minimum { .. }), "{refusal}");
}

#[test]
fn every_field_is_checked() {
    let good = vr();
    let ms = Nanos::from_millis;
    let ll = |window, budget| Some(LateLatch { window, budget });
    let wrong: Vec<(Contract, &str)> = vec![
        (Contract { deadline: ms(12), ..good }, "deadline"),
        (Contract { deadline: Nanos::ZERO, ..good }, "deadline"),
        (Contract { budget: Nanos::ZERO, ..good }, "budget"),
        (Contract { budget: ms(11), ..good }, "budget"),
        (Contract { max_job: Nanos(1), ..good }, "max_job"),
        (Contract { max_job: Nanos::MAX, ..good }, "max_job"),
        (Contract { gap: ms(12), ..good }, "gap"),
        (Contract { jitter: ms(9), ..good }, "jitter"),
        (Contract { late_latch: ll(ms(12), ms(1)), ..good }, "late_latch.window"),
        (Contract { late_latch: ll(ms(2), ms(3)), ..good }, "late_latch.budget"),
        (Contract { late_latch: ll(ms(2), ms(1)), deadline: ms(20), depth: 2, ..good }, "deadline"),
        (Contract { miss: MissAllowance { misses: 1, frames: 1 }, ..good }, "miss"),
        (Contract { miss: MissAllowance { misses: 0, frames: 0 }, ..good }, "miss"),
        (Contract { depth: 0, ..good }, "depth"),
        (Contract { depth: 5, ..good }, "depth"),
        (Contract { weight: 0, ..good }, "weight"),
        (Contract { class: Class::Background, budget: Nanos::MAX, ..good }, "budget"),
    ];
    for (c, field) in wrong {
        let refusal = admit_all(&[c]).unwrap_err().to_string();
        assert!(refusal.contains(&alloc::format!("read: {field} ")), "{field}: {refusal}");
    }
}

#[test]
fn the_number_of_places_is_kept() {
    let admission = Admission::new(CAPS, 1);
    let refusal = admission.try_admit(&[(TenantId(0), game(), Nanos::ZERO)], &game()).unwrap_err();
    assert_eq!(refusal, Refusal::Full { max_tenants: 1 });
}
