//! The integer arithmetic of contracts, grids, budgets, demand and slewing against computations in 128 bits: periods from
//! 1 ms to 10 s, budgets from nothing to the period, 4,096 tenants, ten years of uptime.
//!
//! Tests are built with overflow checks, so that what wraps fails: [`arithmetic_is_checked`] makes sure.

use beamline_abi::{FrameId, JobIndex, Nanos};
use beamline_sched::budget::Server;
use beamline_sched::slew::Slew;
use beamline_sched::{
    Admission, Class, Contract, Current, Decision, GpuCaps, Guard, JobSpec, LateLatch,
    MissAllowance, Period, PolicyKind, Preemption, Refusal, Sink, TenantId, Ticket, Vblank,
};
use proptest::prelude::*;
use std::hint::black_box;

const TEN_YEARS: u64 = 10 * 366 * 86_400 * 1_000_000_000;
const MIN: u128 = 1_000_000;
const MAX: u128 = 10_000_000_000;

#[test]
#[cfg_attr(not(debug_assertions), ignore = "built without overflow checks")]
fn arithmetic_is_checked() {
    assert!(std::panic::catch_unwind(|| black_box(u64::MAX) + black_box(1)).is_err());
}

/// Compares everything that a period answers with exact rationals: `num / den` ns.
fn check_period(period: Option<Period>, num: u128, den: u128) {
    let in_range = num >= MIN * den && num <= MAX * den;
    let Some(p) = period else {
        assert!(!in_range, "{num}/{den} ns is a period");
        return;
    };
    assert!(in_range, "{num}/{den} ns is no period");
    let (n, d) = (u128::from(p.num()), u128::from(p.den()));
    assert_eq!(n * den, num * d, "{num}/{den}");
    assert_eq!(u128::from(p.floor().0), num / den);
    assert_eq!(u128::from(p.ceil().0), num.div_ceil(den));
    // The vblanks around ten years of uptime.
    let last = (u128::from(TEN_YEARS) * den / num) as u64;
    for k in [0, 1, last, last + 1] {
        assert_eq!(
            u128::from(p.times(k).0),
            u128::from(k) * num / den,
            "vblank {k} of {num}/{den}"
        );
    }
}

#[test]
fn every_display_rate_is_exact_for_ten_years() {
    for scale in [1_000u64, 1_001] {
        for n in 1..=Period::MAX_DEN {
            let period = Period::from_hz(n, scale);
            check_period(period, u128::from(scale) * 1_000_000_000, u128::from(n));
        }
    }
}

#[test]
fn every_denominator_is_exact_at_the_shortest_and_the_longest_period() {
    for den in 1..=Period::MAX_DEN {
        for edge in [MIN as u64 * den, MAX as u64 * den] {
            for num in [edge - 1, edge, edge + 1] {
                check_period(Period::new(num, den), u128::from(num), u128::from(den));
            }
        }
    }
    assert_eq!(Period::new(u64::MAX, u64::MAX), None);
    assert_eq!(Period::new(2 * MIN as u64 * (Period::MAX_DEN + 1) - 1, Period::MAX_DEN + 1), None);
    assert_eq!(Period::from_hz(1, u64::MAX), None);
    assert_eq!(Period::new(0, 1).or(Period::new(1, 0)).or(Period::from_hz(0, 1)), None);
    let longest = Period::new(MAX as u64, 1).unwrap();
    assert_eq!(
        longest.times(u64::MAX),
        Nanos::MAX,
        "beyond all time, never wrapped round to an earlier one"
    );
}

/// Periods that matter, in ns: the ends, display rates, primes.
const PERIODS: [u64; 8] = [
    1_000_000,
    1_000_003,
    8_333_333,
    11_111_111,
    16_683_333,
    33_366_666,
    999_999_937,
    10_000_000_000,
];

#[test]
fn budgets_are_conserved_from_nothing_to_the_period() {
    for period in PERIODS {
        for capacity in [0, 1, 2, period / 3, period / 2, period - 1, period] {
            for max_job in [0, 10_000, period, MAX as u64] {
                let mut server = Server::new(capacity, max_job);
                let most_debt = i128::from(capacity.max(max_job));
                let (mut debt, mut last) = (0i128, TEN_YEARS / 1_000_000);
                let costs = [0, 1, capacity / 2, capacity, capacity + 1, 3 * period, u64::MAX];
                for step in 0..200usize {
                    // Now and then vblanks are passed over.
                    last += if step % 17 == 0 { 9 } else { 1 };
                    server.renew(last);
                    let repaid = debt.min(i128::from(capacity));
                    debt -= repaid;
                    let mut left = i128::from(capacity) - repaid;
                    for cost in [costs[step % 7], costs[step / 7 % 7]] {
                        server.charge(last, cost);
                        let paid = left.min(i128::from(cost));
                        left -= paid;
                        debt = (debt + i128::from(cost) - paid).min(most_debt);
                        assert_eq!(i128::from(server.left(last)), left);
                        assert_eq!(i128::from(server.debt()), debt);
                    }
                }
            }
        }
    }
}

#[test]
fn slewing_after_ten_years_is_exact() {
    for (n, scale) in
        [(60_000, 1001), (24_000, 1001), (90, 1), (72, 1), (1_000, 1), (1, 10), (999_983, 1_000)]
    {
        let Some(period) = Period::from_hz(n, scale) else { panic!("{n}/{scale} Hz is in range") };
        let (num, den) = (u128::from(period.num()), u128::from(period.den()));
        let first = (u128::from(TEN_YEARS) * den / num) as u64;
        let floor = period.floor().0;
        for (from, to) in
            [(0, floor - 1), (floor - 1, 0), (floor / 2, floor / 2 - 1), (1, 2), (5, 5)]
        {
            let slew = Slew::plan(period, Nanos(from), Nanos(to), first).unwrap();
            let last = slew.last();
            for seq in first - 2..last + 2 {
                let old = u128::from(from) + u128::from(seq) * num / den;
                let target = u128::from(to) + (u128::from(seq) + u128::from(to < from)) * num / den;
                let time = u128::from(slew.time(seq).0);
                assert!((old..=target).contains(&time), "vblank {seq}: {old} {time} {target}");
                assert!(seq > first || time == old);
                assert!(seq < last || time == target);
            }
        }
    }
}

fn caps(switch: u64) -> GpuCaps {
    GpuCaps {
        in_flight: 1,
        ahead: 0,
        switch_cost: Nanos(switch),
        guard_margin: Nanos(0),
        preemption: Preemption::None,
    }
}

fn reserved(period: u64, budget: u64, max_job: u64) -> Contract {
    Contract {
        period: Period::new(period, 1).expect("in range"),
        deadline: Nanos(period),
        budget: Nanos(budget),
        max_job: Nanos(max_job),
        gap: Nanos(0),
        jitter: Nanos(0),
        sink: Sink::External,
        class: Class::Reserved,
        miss: MissAllowance { misses: 0, frames: 1 },
        late_latch: None,
        guard: Guard::Release,
        depth: 1,
        weight: 100,
    }
}

/// The processor-demand test by the book, in 128 bits, over every deadline within `horizon` ns.
fn passes(set: &[Contract], switch: i128, horizon: i128) -> bool {
    let ns = |t: Nanos| i128::from(t.0);
    let cost = |c: &Contract| {
        let jobs = (ns(c.budget) + ns(c.max_job) - 1) / ns(c.max_job);
        ns(c.budget) + jobs * switch + (jobs - 1) * ns(c.gap)
    };
    let window = |c: &Contract| ns(c.deadline) - ns(c.jitter);
    let period = |c: &Contract| ns(c.period.floor());
    let demand = |c: &Contract, t: i128| {
        if t < window(c) {
            return 0;
        }
        let frames = (t - window(c)) / period(c) + 1;
        let (q, k) = (i128::from(c.miss.frames - c.miss.misses), i128::from(c.miss.frames));
        (frames * q + k - 1) / k * cost(c)
    };
    let mut deadlines: Vec<i128> = vec![];
    for c in set {
        deadlines.extend((0..).map(|n| window(c) + n * period(c)).take_while(|&t| t <= horizon));
    }
    deadlines.into_iter().all(|t| {
        let due = set.iter().filter(|c| window(c) <= t).count();
        let blocking = |i: usize, c: &Contract| {
            let itself = due == 1 && window(&set[i]) <= t;
            if ns(c.deadline) > t && !itself { ns(c.max_job) + switch } else { 0 }
        };
        let blocked = set.iter().enumerate().map(|(i, c)| blocking(i, c)).max().unwrap_or(0);
        set.iter().map(|c| demand(c, t)).sum::<i128>() + blocked <= t
    })
}

prop_compose! {
    /// Periods that meet again within 40 ms, and patterns of up to 4 frames.
    fn small()(
        ms in prop::sample::select(vec![1u64, 2, 4, 5, 8, 10]),
        budget in 1u64..1_000,
        jobs in 1u64..4,
        early in 0u64..500,
        jitter in 0u64..200,
        miss in (0u32..4, 1u32..5),
    ) -> Contract {
        let period = ms * 1_000_000;
        // Up to all of the period, mostly much less.
        let budget = (period * budget * budget / 1_000_000).max(10_000);
        let c = reserved(period, budget, budget.div_ceil(jobs).max(10_000));
        Contract {
            deadline: Nanos(period - period * early / 1_000),
            jitter: Nanos(period * jitter / 1_000),
            miss: MissAllowance { misses: miss.0 % miss.1, frames: miss.1 },
            ..c
        }
    }
}

proptest! {
    /// Admission of tenants with clocks of their own is the demand test and nothing else: in neither direction
    /// does it differ from the one by the book.
    #[test]
    fn admission_agrees_with_the_test_by_the_book(
        contracts in prop::collection::vec(small(), 1..8),
        switch in prop::sample::select(vec![0u64, 1, 10_000]),
    ) {
        let admission = Admission::new(caps(switch), 64);
        let mut set: Vec<Contract> = vec![];
        for c in contracts {
            let current: Vec<Current> =
                (0..).zip(&set).map(|(i, c)| (TenantId(i), *c, Nanos(0))).collect();
            let answer = admission.try_admit(&current, &c);
            set.push(c);
            // 12 times the hyperperiod: the patterns repeat within it too.
            let book = passes(&set, i128::from(switch), 12 * 40_000_000 + 20_000_000);
            match answer {
                Ok(_) => prop_assert!(book, "admitted: {:?}", set),
                Err(Refusal::Demand { shortage, .. }) => {
                    // A GPU that is used to the last ns is refused without a look.
                    let used: f64 = set.iter().map(|c| {
                        let jobs = c.budget.0.div_ceil(c.max_job.0);
                        let share = f64::from(c.miss.frames - c.miss.misses) / f64::from(c.miss.frames);
                        (c.budget.0 + jobs * switch) as f64 * share / c.period.floor().0 as f64
                    }).sum();
                    prop_assert!(!book || used > 1.0 - 1e-9, "refused: {:?} {:?}", shortage, set);
                    prop_assert!(shortage.demand >= shortage.interval);
                    set.pop();
                }
                Err(Refusal::Invalid(_)) => { set.pop(); }
                Err(other) => prop_assert!(false, "{}", other),
            }
        }
    }

    /// No contract and no set makes admission overflow, whatever its numbers.
    #[test]
    fn admission_takes_any_numbers(
        numbers in prop::collection::vec(prop_oneof![any::<u64>(), 0u64..20_000_000_000], 7),
        period in (1u64..=u64::MAX, 1u64..=Period::MAX_DEN),
        miss: (u32, u32),
        phase: u64,
        class in prop::sample::select(vec![Class::Reserved, Class::Elastic, Class::Background]),
        others in 0usize..6,
        in_flight: u8,
    ) {
        let n = |i: usize| Nanos(numbers[i]);
        let (num, den) = period;
        let range = (MAX - MIN) as u64 * den + 1;
        let period = Period::new(MIN as u64 * den + num % range, den).expect("in range");
        let c = Contract {
            period,
            deadline: n(0),
            budget: n(1),
            max_job: n(2),
            gap: n(3),
            jitter: n(4),
            late_latch: (phase % 2 == 0).then_some(LateLatch { window: n(5), budget: n(6) }),
            miss: MissAllowance { misses: miss.0, frames: miss.1 },
            sink: if phase % 3 == 0 { Sink::External } else { Sink::Virtual },
            class,
            ..reserved(1_000_000, 1, 1)
        };
        let tame = Contract {
            deadline: period.floor(),
            budget: Nanos(n(1).0 % (period.floor().0 + 1)),
            max_job: Nanos((n(2).0 % period.floor().0).max(10_000)),
            gap: Nanos(0),
            jitter: Nanos(0),
            late_latch: None,
            ..c
        };
        let caps = GpuCaps { in_flight, ..caps(numbers[6] % 1_000_000) };
        let current: Vec<Current> =
            (0..others as u16).map(|i| (TenantId(i), tame, Nanos(phase))).collect();
        for candidate in [c, tame] {
            if let Err(refusal) = Admission::new(caps, 16).try_admit(&current, &candidate) {
                prop_assert!(!refusal.to_string().is_empty());
            }
        }
    }
}

/// 4,096 tenants in one demand test: with the longest and the shortest periods and the largest budgets there are.
#[test]
fn four_thousand_tenants_do_not_overflow_the_demand_test() {
    let admission = Admission::new(caps(10_000), 4_096);
    for period in PERIODS {
        for budget in [10_000, period / 2, period] {
            let c = reserved(period, budget, budget);
            let current: Vec<Current> = (0..4_095).map(|i| (TenantId(i), c, Nanos(0))).collect();
            let demand = 4_096 * (u128::from(budget) + 10_000);
            let shortage = match admission.try_admit(&current, &c) {
                Ok(admitted) => {
                    assert!(demand <= u128::from(period));
                    let ppm = demand * 1_000_000 / u128::from(period);
                    let error = u128::from(admitted.promised_ppm).abs_diff(ppm);
                    assert!(error <= 1, "{admitted:?}, by the book {ppm}");
                    continue;
                }
                Err(Refusal::Demand { shortage, .. }) => shortage,
                Err(other) => panic!("{other}"),
            };
            assert!(demand > u128::from(period), "{shortage:?}");
            let share = u128::from(shortage.interval) * demand / u128::from(period);
            let error = u128::from(shortage.demand).abs_diff(share);
            assert!(error <= 1 + share / 1_000_000, "{shortage:?}, by the book {share}");
        }
    }
}

/// What was decided, in order, with times from `origin` on.
fn decisions(tenants: u16, origin: u64, slots: u64) -> Vec<(u64, u32)> {
    const PERIOD: u64 = 10_000_000;
    let n = usize::from(tenants);
    let mut policy = PolicyKind::Beamline.build(caps(1_000), n, 2 * n);
    for t in 0..tenants {
        let miss = MissAllowance { misses: u32::from(t % 3), frames: 4 };
        let c = Contract { miss, ..reserved(PERIOD, 40_000, 40_000) };
        policy.admit(TenantId(t), &Contract { class: CLASSES[usize::from(t % 4)], ..c });
    }
    let (mut log, mut now) = (vec![], origin);
    for k in 0..slots {
        let (seq, start) = (origin / PERIOD + k, origin + k * PERIOD);
        for t in 0..tenants {
            let at = Nanos(start);
            policy.vblank(TenantId(t), Vblank { seq, time: at, next: Nanos(start + PERIOD) });
            // Where the one before still waits, the ticket is in use and the job is refused.
            let _ = policy.submit(JobSpec {
                ticket: Ticket(u32::from(t)),
                tenant: TenantId(t),
                frame: FrameId(seq + 1),
                job: JobIndex(0),
                jobs: 1,
                late_latch: false,
                arrival: at,
                release: at,
                deadline: Nanos(start + PERIOD),
                slot: seq,
            });
        }
        now = now.max(start);
        while now < start + PERIOD {
            match policy.decide(Nanos(now)) {
                Decision::Grant { ticket, expected, .. } => {
                    log.push((now - origin, ticket.0));
                    now += expected.0.max(1);
                    policy.complete(Nanos(now), ticket, Nanos(37_000));
                }
                Decision::Idle { until: Some(at), .. } => now = at.0,
                Decision::Idle { until: None, .. } | Decision::Preempt { .. } => break,
            }
        }
    }
    for t in 0..tenants {
        let (left, debt) = policy.balance(TenantId(t));
        // A background minimum carries up to four budgets over.
        assert!(left.0 <= 160_000 && debt.0 <= 41_000, "tenant {t}: {left} {debt}");
    }
    log
}

const CLASSES: [Class; 4] = [Class::Reserved, Class::Reserved, Class::Elastic, Class::Background];

/// The uptime changes no decision.
#[test]
fn decisions_after_ten_years_are_those_of_the_first_day() {
    // Whole periods, and whole patterns of four frames.
    let later = TEN_YEARS / 40_000_000 * 40_000_000;
    for (tenants, slots) in [(48, 200), (4_096, 3)] {
        let first = decisions(tenants, 0, slots);
        assert!(first.len() as u64 > 100 * slots.min(48), "{} grants", first.len());
        assert_eq!(first, decisions(tenants, later, slots));
    }
}
