use super::*;
use crate::contract::MissAllowance;
use crate::policy::Preemption;
use crate::testing::{CAPS, contract};
use beamline_abi::Nanos;
use proptest::prelude::*;

/// The test as its definition says it: at every deadline, the sum over all tasks.
fn by_definition(tasks: &[Task], foreign: u64, room: u64) -> Result<Vec<u64>, Shortage> {
    let longest = tasks.iter().map(|t| t.chunk).max().unwrap_or(0);
    let block = |chunk: u64| if chunk == 0 { 0 } else { preempt::block(chunk, &CAPS) };
    let known = preempt::block(longest.max(foreign), &CAPS).max(room);
    let first = tasks.iter().map(Task::reduced).max().unwrap_or(0);
    let end = limit(tasks, known).expect("not overloaded").max(first);
    let mut points: Vec<u64> = tasks
        .iter()
        .flat_map(|x| (0..).map(|k| x.reduced() + k * x.period).take_while(|t| *t <= end))
        .collect();
    points.sort_unstable();
    let mut tolerance = vec![known; tasks.len()];
    for t in points {
        let inside = || tasks.iter().filter(|x| x.reduced() <= t);
        let demand: u128 = inside()
            .map(|x| x.pattern.most((t - x.reduced()) / x.period + 1) * u128::from(x.cost))
            .sum();
        let one = inside().next().expect("a deadline of one").tenant;
        let alone = inside().all(|x| x.tenant == one);
        let peers = tasks.iter().filter(|x| x.deadline > t && !(alone && x.tenant == one));
        let mut longest = peers.map(|x| x.chunk).max().unwrap_or(0);
        if inside().any(|x| !x.release_guard) {
            longest = longest.max(foreign);
        }
        let total = saturate(demand) + block(longest);
        if total > t {
            return Err(Shortage { interval: t, demand: total });
        }
        for (x, tolerance) in tasks.iter().zip(&mut tolerance) {
            if x.reduced() <= t {
                *tolerance = (t - saturate(demand)).min(*tolerance);
            }
        }
    }
    Ok(tolerance)
}

prop_compose! {
    fn any_task()(
        tenant in 0u16..4,
        period in 1u64..40,
        span in 1u64..60,
        jitter in 0u64..20,
        cost in 1u64..12,
        chunk in 0u64..8,
        miss in (0u32..3, 1u32..5),
        release_guard: bool,
    ) -> Task {
        let unit = 100_000;
        Task {
            tenant: TenantId(tenant),
            late_latch: false,
            period: period * unit,
            pattern: Pattern::new(MissAllowance { misses: miss.0, frames: miss.1 }),
            deadline: (span + jitter) * unit,
            jitter: jitter * unit,
            cost: cost * 10_000,
            chunk: chunk * 10_000,
            release_guard,
        }
    }
}

proptest! {
    #[test]
    fn one_sweep_finds_what_the_definition_says(
        tasks in prop::collection::vec(any_task(), 1..7),
        foreign in 0u64..200_000,
        room in 0u64..3_000_000,
    ) {
        if limit(&tasks, room).is_none() {
            prop_assert!(test(&tasks, foreign, room, &CAPS).is_err());
            return Ok(());
        }
        let found = test(&tasks, foreign, room, &CAPS).map(|p| p.tolerance);
        prop_assert_eq!(found, by_definition(&tasks, foreign, room));
    }
}

/// As many tenants as a host can have, at nearly the whole GPU.
#[test]
fn thousands_of_tenants_are_tested() {
    let one = contract(1, 200, 200);
    let set: Vec<Task> = (0..4_096).flat_map(|i| tasks(TenantId(i), &one, &CAPS)).collect();
    assert!(utilisation_ppm(&set) > 860_000);
    test(&set, 0, 0, &CAPS).expect("one period holds them all");
    let more: Vec<Task> = (0..4_800).flat_map(|i| tasks(TenantId(i), &one, &CAPS)).collect();
    let short = test(&more, 0, 0, &CAPS).expect_err("4,800 × 0.21 ms are more than 1 s");
    assert!(short.demand > short.interval, "{short:?}");
    // Of different rates, so that deadlines are many.
    let rates = [1, 2, 3, 5, 7, 11, 13];
    let mixed: Vec<Task> = (0..4_096u16)
        .flat_map(|i| {
            let hz = rates[usize::from(i) % rates.len()];
            let c =
                Contract { budget: Nanos(20_000), max_job: Nanos(20_000), ..contract(hz, 20, 20) };
            tasks(TenantId(i), &c, &GpuCaps { preemption: Preemption::None, ..CAPS })
        })
        .collect();
    test(&mixed, 0, 0, &CAPS).expect("three quarters of the GPU");
}
