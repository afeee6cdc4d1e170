use super::*;
use crate::config::HostConfig;
use beamline_sched::{Class, Guard, MissAllowance, Sink};
use proptest::prelude::*;

const BEGIN: Nanos = Nanos::from_secs(1);
const MS: u64 = 1_000_000;

fn hz(hz: u64) -> Period {
    Period::from_hz(hz, 1).unwrap()
}

fn contract(rate: u64, budget_ms: u64) -> Contract {
    Contract {
        period: hz(rate),
        deadline: hz(rate).floor(),
        budget: Nanos::from_millis(budget_ms),
        max_job: Nanos::from_millis(1),
        gap: Nanos::ZERO,
        jitter: Nanos::ZERO,
        sink: Sink::Virtual,
        class: Class::Reserved,
        miss: MissAllowance { misses: 0, frames: 1 },
        late_latch: None,
        guard: Guard::Deadline,
        depth: 2,
        weight: 100,
    }
}

fn with_latch(c: Contract, window_ms: u64, budget_ms: u64) -> Contract {
    let (window, budget) = (Nanos::from_millis(window_ms), Nanos::from_millis(budget_ms));
    Contract { late_latch: Some(LateLatch { window, budget }), ..c }
}

/// A ledger with this contract at place 0, and the terms of its guest.
fn set(ceiling: Contract) -> (Ledger, Terms) {
    let text =
        "run_dir = \"run\"\nmax_slices = 4\n[gpu]\nbackend = \"model\"\nswitch_cost_ms = 0.0\n";
    let config = HostConfig::parse(text, std::path::Path::new("host.toml")).unwrap();
    let mut ledger = Ledger::new(&config, config.caps());
    ledger.admit(0, &ceiling, BEGIN).unwrap();
    let policy = GuestContract::Within { fastest: hz(120), slowest: hz(30) };
    (ledger, Terms { policy, ceiling, current: ceiling })
}

fn ask(rate: u64, budget: u64) -> Ask {
    let period = hz(rate);
    let (period_num, period_den) = (period.num(), period.den());
    Ask { period_num, period_den, budget: Nanos(budget), ..Ask::default() }
}

/// The answer, and the contract that the slice has then.
fn decided(ledger: &mut Ledger, terms: &Terms, ask: &Ask) -> (Answer, Contract) {
    let before = ledger.place(0).unwrap().contract;
    let Decision::Answered(answer, change) = decide(ledger, 0, terms, ask, BEGIN) else {
        panic!("it is put off");
    };
    let after = ledger.place(0).unwrap().contract;
    assert_eq!(change.map_or(before, |c| c.contract), after);
    assert!(!matches!(answer, Answer::Refused { .. }) || change.is_none());
    (answer, after)
}

fn refused(reason: Reason, budget: u64) -> Answer {
    Answer::Refused { reason, budget: Nanos(budget) }
}

fn reduced(reason: Reason, budget: u64) -> Answer {
    Answer::Reduced { reason, budget: Nanos(budget) }
}

#[test]
fn another_rate_with_half_the_budget_is_granted() {
    let (mut ledger, terms) = set(contract(60, 8));
    let (answer, after) = decided(&mut ledger, &terms, &ask(90, 4 * MS));
    assert_eq!(answer, Answer::Granted);
    let wanted = Contract { period: hz(90), deadline: hz(90).floor(), ..contract(60, 4) };
    assert_eq!(after, wanted);
    // Nothing staged at all is what it has.
    let (mut ledger, terms) = set(contract(60, 8));
    let decision = decide(&mut ledger, 0, &terms, &Ask::default(), BEGIN);
    assert_eq!(decision, Decision::Answered(Answer::Granted, None));
}

#[test]
fn what_is_above_the_ceiling_becomes_less() {
    for (ask, budget) in [
        (ask(90, 0), 5_333_333),
        (ask(60, 9 * MS), 8 * MS),
        (ask(30, 20 * MS), 16 * MS),
        // Beyond the rates that are allowed, the nearest one.
        (ask(1000, 4 * MS), 4 * MS),
        (ask(1000, MS), MS),
        (ask(1, 16 * MS), 16 * MS),
    ] {
        let (mut ledger, terms) = set(contract(60, 8));
        let (answer, after) = decided(&mut ledger, &terms, &ask);
        assert_eq!(answer, reduced(Reason::Ceiling, budget), "{ask:?}");
        assert_eq!((after.budget, after.deadline), (Nanos(budget), after.period.floor()));
        assert!(!is_shorter(after.period, hz(120)) && !is_shorter(hz(30), after.period));
    }
    // As much of the GPU, but due in half the time: it could have half of it, which is less than it has.
    let (mut ledger, terms) = set(contract(60, 8));
    let sooner = Ask { deadline: Nanos(8_333_333), ..ask(60, 8 * MS) };
    let (answer, after) = decided(&mut ledger, &terms, &sooner);
    assert_eq!((answer, after), (refused(Reason::Ceiling, 4 * MS), terms.current));
    let half = Ask { deadline: Nanos(8_333_333), ..ask(60, 4 * MS - 1_000) };
    assert_eq!(decided(&mut ledger, &terms, &half).0, Answer::Granted);
}

#[test]
fn a_late_latch_is_the_operators_to_give() {
    let latch = |window, budget| Ask {
        late_latch: Nanos(window * MS),
        latch_budget: Nanos(budget),
        ..ask(60, 2 * MS)
    };
    let (mut ledger, terms) = set(contract(60, 4));
    assert_eq!(decided(&mut ledger, &terms, &latch(2, MS)).0, refused(Reason::Ceiling, 0));
    let top = with_latch(contract(60, 4), 4, 1);
    let (mut ledger, terms) = set(top);
    let (answer, after) = decided(&mut ledger, &terms, &latch(2, MS));
    let half = Some(LateLatch { window: Nanos(2 * MS), budget: Nanos(MS / 2) });
    assert_eq!((answer, after.late_latch), (refused(Reason::Ceiling, 2 * MS), top.late_latch));
    let more = Ask { budget: Nanos(9 * MS), ..latch(2, MS / 2) };
    let (answer, after) = decided(&mut ledger, &terms, &more);
    // Both together are no more than the 5 ms of before.
    assert_eq!((answer, after.late_latch), (reduced(Reason::Ceiling, 4_500_000), half));
    let (mut ledger, terms) = set(top);
    let (answer, after) = decided(&mut ledger, &terms, &ask(60, 5 * MS));
    assert_eq!((answer, after.late_latch), (Answer::Granted, None));
}

#[test]
fn what_others_are_promised_stays_theirs() {
    let (mut ledger, mut terms) = set(contract(60, 8));
    terms.ceiling = contract(60, 12);
    ledger.admit(1, &contract(60, 7), BEGIN).unwrap();
    let (answer, after) = decided(&mut ledger, &terms, &ask(60, 12 * MS));
    let Answer::Reduced { reason: Reason::NoRoom, budget } = answer else { panic!("{answer:?}") };
    assert!(after.budget == budget && (8 * MS..10 * MS).contains(&budget.0), "{budget}");
    // What would fit is less than it has: 7 ms that come at any time and are due soon leave little of 8.3 ms.
    let (mut ledger, terms) = set(contract(60, 8));
    let deadline = Nanos::from_millis(8);
    let urgent = Contract { deadline, sink: Sink::External, ..contract(60, 7) };
    ledger.admit(1, &urgent, BEGIN).unwrap();
    let terms = Terms { ceiling: contract(60, 12), ..terms };
    let (answer, after) = decided(&mut ledger, &terms, &ask(120, 6 * MS));
    let Answer::Refused { reason: Reason::NoRoom, budget } = answer else { panic!("{answer:?}") };
    assert!((MS..1_400_000).contains(&budget.0), "{budget}");
    assert_eq!(after, terms.current);
}

#[test]
fn nonsense_and_a_fixed_contract_are_refused() {
    let (mut ledger, terms) = set(with_latch(contract(60, 8), 2, 1));
    let whole = ask(60, MS);
    for bad in [
        Ask { period_den: 0, ..whole },
        Ask { period_num: 0, ..whole },
        Ask { period_num: u64::MAX, period_den: 7, ..whole },
        Ask { deadline: Nanos::MAX, ..whole },
        Ask { deadline: Nanos(MS), late_latch: Nanos(MS), ..whole },
        Ask { late_latch: Nanos::MAX, ..whole },
    ] {
        assert_eq!(decided(&mut ledger, &terms, &bad).0, refused(Reason::Malformed, 0), "{bad:?}");
    }
    let terms = Terms { policy: GuestContract::Fixed, ..terms };
    assert_eq!(decided(&mut ledger, &terms, &whole).0, refused(Reason::Fixed, 0));
}

#[test]
fn a_change_before_puts_it_off() {
    let (mut ledger, terms) = set(contract(60, 8));
    decided(&mut ledger, &terms, &ask(90, 4 * MS));
    let current = ledger.place(0).unwrap().contract;
    let terms = Terms { current, ..terms };
    let Decision::Later(until) = decide(&mut ledger, 0, &terms, &ask(60, 0), BEGIN) else {
        panic!("at once");
    };
    assert_eq!(until, ledger.busy_until());
    let decision = decide(&mut ledger, 0, &terms, &ask(60, 0), until);
    assert!(matches!(decision, Decision::Answered(Answer::Granted, Some(_))), "{decision:?}");
}

/// A number that may be anything, and often is near to one that means something.
fn number(near: u64) -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), 0..=2 * near, any::<u64>()]
}

proptest! {
    /// Whatever is asked for, the slice has no more than its ceiling, and what is not the guest's stays.
    #[test]
    fn no_guest_gets_beyond_its_ceiling(
        num in number(20_000_000), den in number(2), rate in 1u64..1_000, plain: bool,
        budget in number(10 * MS), deadline in number(17 * MS), window in number(4 * MS),
        latch in number(MS), top_latch: bool,
    ) {
        let top = contract(60, 6);
        let top = if top_latch { with_latch(top, 3, 1) } else { top };
        let (mut ledger, terms) = set(top);
        let asked = ask(rate, budget);
        let asked = Ask {
            period_num: if plain { asked.period_num } else { num },
            period_den: if plain { asked.period_den } else { den },
            deadline: Nanos(deadline), late_latch: Nanos(window), latch_budget: Nanos(latch),
            ..asked
        };
        let (answer, got) = decided(&mut ledger, &terms, &asked);
        prop_assert!(!is_less(&top, &got) || got == top, "{:?}", got);
        prop_assert!(got.period == top.period || !is_shorter(got.period, hz(120)));
        let time = |c: &Contract| u128::from(c.main_deadline().min(c.period.floor()).0);
        prop_assert!(u128::from(got.budget.0) * time(&top) <= u128::from(top.budget.0) * time(&got));
        match (got.late_latch, top.late_latch) {
            (Some(l), Some(t)) => prop_assert!(l.budget.0 * t.window.0 <= t.budget.0 * l.window.0),
            (latch, _) => prop_assert_eq!(latch, None),
        }
        let Contract { period, deadline, budget, late_latch, .. } = top;
        prop_assert_eq!(Contract { period, deadline, budget, late_latch, ..got }, top);
        if let Answer::Reduced { budget, .. } = answer {
            prop_assert_eq!(budget, got.budget);
        }
    }
}
