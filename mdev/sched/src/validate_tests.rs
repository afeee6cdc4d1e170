use super::*;
use crate::contract::{Guard, LateLatch, MissAllowance, Period, Sink};
use crate::testing::{game, vr};
use alloc::string::ToString;
use alloc::vec;
use proptest::prelude::*;

fn ms(n: u64) -> Nanos {
    Nanos::from_millis(n)
}

#[test]
fn what_contradicts_itself_is_named() {
    let game = Contract { gap: ms(8), ..game() };
    let error = contract(&game).unwrap_err();
    let most = Nanos((game.deadline.0 - 1_800_000) / 2);
    assert_eq!(error, ContractError::Pauses { gap: ms(8), pauses: 2, most });
    assert!(error.to_string().starts_with("gap is 8.000 ms; the 2 pauses"), "{error}");

    // A budget of more than the period, before a deadline that is further off than that.
    let period = vr().period;
    let deep = Contract { deadline: ms(30), budget: ms(20), depth: 3, late_latch: None, ..vr() };
    let error = contract(&deep).unwrap_err();
    assert_eq!(error, ContractError::Budget { budget: ms(20), most: period.floor() });

    let miss = MissAllowance { misses: 1, frames: 2 };
    let lenient = Contract { budget: ms(5), miss, ..deep };
    let error = contract(&lenient).unwrap_err();
    assert_eq!(error, ContractError::MissDeadline { deadline: ms(30), period: period.ceil() });
    contract(&Contract { miss: MissAllowance { misses: 0, ..miss }, ..lenient }).unwrap();
    contract(&Contract { class: Class::Elastic, ..lenient }).unwrap();
}

/// The contract with the field that an error names set to what the error says would be right.
fn mended(c: &Contract, error: ContractError) -> Contract {
    use ContractError as E;
    let late = |window, budget| Some(LateLatch { window, budget });
    match error {
        E::Deadline { most, .. } => Contract { deadline: most, ..*c },
        E::Budget { most, .. } => Contract { budget: most, ..*c },
        E::Minimum { period, .. } => Contract { budget: period, ..*c },
        E::MaxJob { max_job } => {
            Contract { max_job: max_job.clamp(Nanos::from_micros(10), Nanos::from_secs(10)), ..*c }
        }
        E::LateLatchJob { budget, .. } => Contract { max_job: budget, ..*c },
        E::Gap { period, .. } => Contract { gap: period, ..*c },
        E::Pauses { most, .. } => Contract { gap: most, ..*c },
        E::Jitter { most, .. } => Contract { jitter: most, ..*c },
        E::Window { deadline, .. } => {
            let window = deadline - Nanos(1);
            Contract { late_latch: late(window, c.late_latch.unwrap().budget), ..*c }
        }
        E::LateLatchBudget { window, .. } => Contract { late_latch: late(window, window), ..*c },
        E::LateLatchDeadline { period, .. } | E::MissDeadline { period, .. } => {
            Contract { deadline: period, ..*c }
        }
        E::Miss { misses, .. } => {
            let frames = misses.saturating_add(1);
            Contract { miss: MissAllowance { misses: frames - 1, frames }, ..*c }
        }
        E::Depth { depth } => Contract { depth: depth.clamp(1, 4), ..*c },
        E::Weight { weight } => Contract { weight: weight.clamp(1, 1_000), ..*c },
    }
}

/// Any number, among them many that are likely to matter.
fn time() -> impl Strategy<Value = Nanos> {
    prop_oneof![
        any::<u64>(),
        0u64..50_000_000,
        Just(0),
        Just(1),
        Just(u64::MAX),
        Just(11_111_111),
        Just(11_111_112),
    ]
    .prop_map(Nanos)
}

proptest! {
    /// What an error says would be right is right: setting the fields to it, one error after the other, ends with a
    /// contract that makes sense. One more than the most is refused.
    #[test]
    fn every_error_says_what_would_be_right(
        period in 1_000_000u64..=10_000_000_000,
        times in prop::collection::vec(time(), 7),
        late: bool,
        class in prop::sample::select(vec![Class::Reserved, Class::Elastic, Class::Background]),
        miss: (u32, u32),
        depth: u8,
        weight: u16,
    ) {
        // Below 2 ns there is no room for a window before the deadline.
        let deadline = times[0].max(Nanos(2));
        let late_latch = late.then_some(LateLatch { window: times[5], budget: times[6] });
        let mut c = Contract {
            period: Period::new(period, 1).unwrap(),
            deadline: if deadline.0 == 2 && late { ms(1) } else { deadline },
            budget: times[1],
            max_job: times[2],
            gap: times[3],
            jitter: times[4],
            sink: Sink::Virtual,
            class,
            miss: MissAllowance { misses: miss.0 % 1_000, frames: miss.1 % 1_000 },
            late_latch,
            guard: Guard::Deadline,
            depth,
            weight,
        };
        for _ in 0..32 {
            match contract(&c) {
                Ok(()) => break,
                Err(error) => {
                    let better = mended(&c, error);
                    prop_assert!(better != c, "{error} is all there is to say of {c:?}");
                    c = better;
                }
            }
        }
        prop_assert_eq!(contract(&c), Ok(()));
        let one = Nanos(1);
        let beyond = [
            Contract { deadline: c.period.times(u64::from(c.depth)) + one, ..c },
            Contract { budget: c.period.floor() + one, ..c },
            Contract { gap: c.period.floor() + one, ..c },
            Contract { jitter: c.period.floor() + one, ..c },
        ];
        for c in beyond {
            prop_assert!(contract(&c).is_err(), "{:?} is too much", c);
        }
        if class == Class::Reserved {
            let jobs = demand::jobs_per_frame(&c);
            let used = c.budget.0 + c.gap.0 * (jobs - 1) + c.jitter.0;
            prop_assert!(used <= c.main_deadline().0, "{:?} does not fit by itself", c);
        }
    }
}
