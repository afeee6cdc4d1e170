//! Small schedules of every baseline, worked out by hand from what its documents say.

use super::driver::{FULL, Gpu, MS, NONE, Turn, US, Work, flood, tenant_contract, turn, work};
use super::{EqualShare, RoundRobin, Slicing, XeQuantum};
use crate::kind::PolicyKind;
use crate::policy::{Decision, GpuCaps, Policy, Preemption, TenantId, Ticket};
use alloc::boxed::Box;
use alloc::{vec, vec::Vec};
use beamline_abi::Nanos;

/// A slice of NVIDIA's at 480 Hz.
const SLICE: u64 = 1_000_000_000 / 480;

/// Runs `kind` with the tenants below `n`, all of weight 100.
fn run(kind: PolicyKind, caps: GpuCaps, n: u16, work: &[Work], end: u64) -> Gpu {
    weighted(kind, caps, &vec![100; usize::from(n)], work, end)
}

fn weighted(kind: PolicyKind, caps: GpuCaps, weights: &[u16], work: &[Work], end: u64) -> Gpu {
    drive(kind.build(caps, weights.len(), work.len()), caps, weights, work, end)
}

fn drive(
    mut policy: Box<dyn Policy>,
    caps: GpuCaps,
    weights: &[u16],
    work: &[Work],
    end: u64,
) -> Gpu {
    for (t, &weight) in weights.iter().enumerate() {
        policy.admit(TenantId(t as u16), &tenant_contract(weight));
    }
    Gpu::new(policy, caps, work).run(end)
}

fn floods(jobs: &[(usize, u64)]) -> Vec<Work> {
    jobs.iter().enumerate().flat_map(|(t, &(n, cost))| flood(t as u16, n, cost)).collect()
}

/// `n` turns of `length` each, round the tenants below `tenants`.
fn rounds(tenants: u16, n: u64, length: u64) -> Vec<Turn> {
    (0..n).map(|i| turn((i % u64::from(tenants)) as u16, i * length, (i + 1) * length)).collect()
}

#[test]
fn best_effort_alternates_at_480_hz() {
    let work = floods(&[(40, 500 * US); 3]);
    let gpu = run(PolicyKind::BestEffort, FULL, 3, &work, 6 * SLICE);
    assert_eq!(gpu.turns, rounds(3, 6, 2_083_333));
}

#[test]
fn best_effort_with_more_than_eight_vgpus_alternates_at_960_hz() {
    let work = floods(&[(40, 500 * US); 9]);
    let gpu = run(PolicyKind::BestEffort, FULL, 9, &work, 18 * 1_041_666);
    assert_eq!(gpu.turns, rounds(9, 18, 1_041_666));
    let gpu = run(PolicyKind::BestEffort, FULL, 8, &work[..320], 16 * SLICE);
    assert_eq!(gpu.turns, rounds(8, 16, SLICE));
}

#[test]
fn best_effort_forgives_what_cannot_be_asked_back() {
    // Five jobs of 0.5 ms are more than a slice of 2.08 ms; the next turn is as long.
    let work = floods(&[(40, 500 * US); 3]);
    let gpu = run(PolicyKind::BestEffort, NONE, 3, &work, 15 * MS);
    assert_eq!(gpu.turns, rounds(3, 6, 2_500 * US));
}

#[test]
fn best_effort_passes_by_who_has_no_work() {
    let work = floods(&[(40, 500 * US), (1, MS), (40, 500 * US)]);
    let gpu = run(PolicyKind::BestEffort, FULL, 3, &work, SLICE * 3 + MS);
    let back = SLICE + MS;
    assert_eq!(
        gpu.turns,
        [
            turn(0, 0, SLICE),
            turn(1, SLICE, back),
            turn(2, back, back + SLICE),
            turn(0, back + SLICE, back + 2 * SLICE),
        ]
    );
}

#[test]
fn who_joins_a_tenant_alone_waits_for_the_end_of_its_slice() {
    let jobs = [work(0, 0, 20 * MS), work(1, 3 * MS, MS)];
    let gpu = run(PolicyKind::BestEffort, FULL, 2, &jobs, 22 * MS);
    let join = 2 * SLICE;
    assert_eq!(
        gpu.turns,
        [turn(0, 0, join), turn(1, join, join + MS), turn(0, join + MS, 21 * MS)]
    );
    // Nobody else came: it was asked back once.
    assert_eq!((gpu.asked, gpu.unfinished()), (1, 0));
}

#[test]
fn equal_share_repays_an_overshoot_over_33_slices() {
    // 0.33 ms beyond the first slice: 33 slices are 10 µs shorter, and the jobs just fill them.
    let mut jobs = vec![work(0, 0, SLICE + 330 * US)];
    jobs.extend(flood(0, 33, SLICE - 10 * US));
    jobs.extend(flood(0, 5, SLICE));
    jobs.extend(flood(1, 60, SLICE));
    let debt_at = |turns: u64| {
        let end = turns * 2 * SLICE + 330 * US;
        let gpu = run(PolicyKind::EqualShare, NONE, 2, &jobs, end);
        gpu.policy.balance(TenantId(0)).1
    };
    assert_eq!(debt_at(1), Nanos(320 * US), "the second slice has begun, and repays");
    assert_eq!(debt_at(11), Nanos(220 * US));
    assert_eq!(debt_at(34), Nanos::ZERO);
    assert_eq!(debt_at(36), Nanos::ZERO);
}

#[test]
fn equal_share_shortens_the_next_slice() {
    let mut jobs = vec![work(0, 0, SLICE + 330 * US)];
    jobs.extend(flood(0, 1_000, 10 * US));
    jobs.extend(flood(1, 20, SLICE));
    let second = |kind| {
        let gpu = run(kind, NONE, 2, &jobs, 20 * MS);
        let turn = gpu.turns[2];
        assert_eq!((turn.tenant, turn.start), (0, 2 * SLICE + 330 * US));
        turn.end - turn.start
    };
    assert_eq!(second(PolicyKind::BestEffort), 2_090 * US);
    assert_eq!(second(PolicyKind::EqualShare), 2_080 * US);
}

#[test]
fn equal_share_is_equal_in_the_long_run_whatever_the_jobs() {
    let work = floods(&[(700, 1_500 * US), (500, SLICE), (30, 40 * MS)]);
    for kind in [PolicyKind::EqualShare, PolicyKind::GimFair] {
        let gpu = run(kind, NONE, 3, &work, 1_000 * MS);
        let shares = gpu.shares(3, 0, 1_000 * MS);
        for share in &shares {
            assert!(share.abs_diff(1_000 * MS / 3) <= 40 * MS, "{kind}: {shares:?}");
        }
        assert_eq!(gpu.wasted, 0);
    }
    let shares = run(PolicyKind::BestEffort, NONE, 3, &work, 1_000 * MS).shares(3, 0, 1_000 * MS);
    assert!(shares[2] > 10 * shares[0], "best effort is not: {shares:?}");
}

#[test]
fn equal_share_takes_an_averaging_factor_of_1_to_60() {
    assert_eq!(EqualShare::default().averaging(), Some(33));
    assert_eq!(EqualShare::new(0).averaging(), Some(1));
    assert_eq!(EqualShare::new(61).averaging(), Some(60));
}

#[test]
fn fixed_share_keeps_an_idle_tenants_slot_empty() {
    let mut jobs = floods(&[(60, 500 * US), (0, 0), (60, 500 * US)]);
    // In its own slot a job runs at once; in another's it waits for its own.
    jobs.push(work(1, 4 * SLICE + 500 * US, 200 * US));
    jobs.push(work(1, 5 * SLICE + 100 * US, 200 * US));
    let gpu = run(PolicyKind::FixedShare, FULL, 3, &jobs, 9 * SLICE);
    let (own, next) = (4 * SLICE + 500 * US, 7 * SLICE);
    assert_eq!(
        gpu.turns,
        [
            turn(0, 0, SLICE),
            turn(2, 2 * SLICE, 3 * SLICE),
            turn(0, 3 * SLICE, 4 * SLICE),
            turn(1, own, own + 200 * US),
            turn(2, 5 * SLICE, 6 * SLICE),
            turn(0, 6 * SLICE, 7 * SLICE),
            turn(1, next, next + 200 * US),
            turn(2, 8 * SLICE, 9 * SLICE),
        ]
    );
    assert_eq!(gpu.wasted, 3 * SLICE - 400 * US);
}

#[test]
fn fixed_share_asks_back_though_nobody_waits() {
    let gpu = run(PolicyKind::FixedShare, FULL, 2, &[work(0, 0, 3 * SLICE)], 6 * SLICE);
    assert_eq!(
        gpu.turns,
        [turn(0, 0, SLICE), turn(0, 2 * SLICE, 3 * SLICE), turn(0, 4 * SLICE, 5 * SLICE)]
    );
    let gpu = run(PolicyKind::FixedShare, FULL, 1, &[work(0, 0, 3 * SLICE)], 6 * SLICE);
    assert_eq!(gpu.turns, [turn(0, 0, 3 * SLICE)], "one vGPU has all slots");
}

#[test]
fn fixed_share_finds_the_slot_after_a_long_pause() {
    // A millisecond into the 1,000th round, in the slot of tenant 0.
    let at = 3_000 * SLICE + MS;
    let jobs = [work(0, 0, MS), work(2, at, MS), work(0, at, MS / 2)];
    let gpu = run(PolicyKind::FixedShare, FULL, 3, &jobs, at + 3 * SLICE);
    let slot = 3_002 * SLICE;
    assert_eq!(gpu.turns, [turn(0, 0, MS), turn(0, at, at + MS / 2), turn(2, slot, slot + MS)]);
}

#[test]
fn fixed_share_repays_an_overshoot_from_its_own_slots() {
    let mut jobs = vec![work(0, 0, SLICE + 330 * US)];
    jobs.extend(flood(0, 1_000, 10 * US));
    jobs.extend(flood(1, 20, SLICE));
    let gpu = run(PolicyKind::FixedShare, NONE, 2, &jobs, 20 * MS);
    let start = 2 * SLICE + 330 * US;
    assert_eq!(gpu.turns[1], turn(1, SLICE + 330 * US, start));
    assert_eq!(gpu.turns[2], turn(0, start, start + 2_080 * US));
}

#[test]
fn gvtg_gives_each_100_ms_by_weight() {
    let work = floods(&[(400, 500 * US), (800, 500 * US)]);
    let gpu = weighted(PolicyKind::GvtgWeighted, NONE, &[100, 300], &work, 300 * MS);
    for stage in 0..3 {
        let from = stage * 100 * MS;
        assert_eq!(gpu.shares(2, from, from + 100 * MS), [25 * MS, 75 * MS], "stage {stage}");
    }
    // On every tick the one that has waited longer, until the light one's 25 ms are used.
    let mut want = rounds(2, 49, MS);
    want.push(turn(1, 49 * MS, 100 * MS));
    assert_eq!(gpu.turns[..50], want[..]);
}

#[test]
fn gvtg_caps_a_vgpu_and_carries_over_for_ten_stages() {
    let jobs = flood(0, 4_000, 500 * US);
    let gpu = run(PolicyKind::GvtgWeighted, NONE, 2, &jobs, 1_000 * MS);
    assert_eq!(gpu.turns[..2], [turn(0, 0, 50 * MS), turn(0, 100 * MS, 150 * MS)]);
    assert_eq!((gpu.shares(1, 0, 1_000 * MS)[0], gpu.wasted), (500 * MS, 500 * MS));

    // Away for a stage: the time of three stages lasts from 100 to 250 ms. Away for nearly ten: what is not used
    // when the account ends is lost, and from then on there is the new stage's time alone.
    for (at, until) in [(100, 250), (950, 1_050)] {
        let mut all = vec![work(0, 0, MS / 2)];
        all.extend((0..400).map(|_| work(0, at * MS, 500 * US)));
        let gpu = run(PolicyKind::GvtgWeighted, NONE, 2, &all, 1_100 * MS);
        let had = gpu.turns.iter().find(|t| t.start == at * MS).unwrap();
        assert!(had.end.abs_diff(until * MS) <= MS, "{had:?}");
    }
}

#[test]
fn gvtg_subtracts_an_overshoot_and_never_asks_back() {
    // A job of 20 ms costs 20 of the 50 ms, whatever the tick says.
    let mut jobs = vec![work(0, 0, 20 * MS)];
    jobs.extend(flood(0, 400, 500 * US));
    jobs.extend(flood(1, 400, 500 * US));
    let gpu = run(PolicyKind::GvtgWeighted, FULL, 2, &jobs, 100 * MS);
    assert_eq!(gpu.turns[0], turn(0, 0, 20 * MS));
    assert_eq!(gpu.turns[1..3], [turn(1, 20 * MS, 21 * MS), turn(0, 21 * MS, 22 * MS)]);
    assert_eq!((gpu.shares(2, 0, 100 * MS), gpu.asked), (vec![50 * MS, 50 * MS], 0));
}

#[test]
fn xe_quantum_follows_the_30_fps_profile() {
    let two = run(PolicyKind::XeQuantum, FULL, 2, &floods(&[(20, 5 * MS); 2]), 96 * MS);
    assert_eq!(two.turns, rounds(2, 6, 16 * MS));
    let five = run(PolicyKind::XeQuantum, FULL, 5, &floods(&[(10, 5 * MS); 5]), 60 * MS);
    assert_eq!(five.turns, rounds(5, 10, 6 * MS));
    let many = run(PolicyKind::XeQuantum, FULL, 40, &floods(&[(4, 5 * MS); 40]), 80 * MS);
    assert_eq!(many.turns, rounds(40, 80, MS));
}

#[test]
fn xe_unlimited_ends_a_turn_only_with_the_work() {
    let work = floods(&[(50, MS), (50, MS)]);
    let gpu = run(PolicyKind::XeUnlimited, FULL, 2, &work, 100 * MS);
    assert_eq!(gpu.turns, [turn(0, 0, 50 * MS), turn(1, 50 * MS, 100 * MS)]);
}

#[test]
fn xe_quantum_can_be_set() {
    let set = XeQuantum::set(Nanos(16 * MS), Nanos(640 * US));
    let policy = Box::new(RoundRobin::with(set, FULL, 3, 60));
    let gpu = drive(policy, FULL, &[100; 3], &floods(&[(20, 5 * MS); 3]), 96 * MS);
    assert_eq!(gpu.turns, rounds(3, 6, 16 * MS));
    assert_eq!(XeQuantum::set(Nanos::ZERO, Nanos::ZERO).slice(1), None);
}

#[test]
fn xe_counts_where_the_product_would_reset() {
    // With two functions a quantum of 16 ms, and 32 ms to make room.
    for (job, resets) in [(47 * MS, 0), (49 * MS, 1)] {
        let mut policy = RoundRobin::with(XeQuantum::profile_30fps(), NONE, 2, 2);
        for t in 0..2 {
            policy.admit(TenantId(t), &tenant_contract(100));
            policy.submit(spec(t)).unwrap();
        }
        assert!(matches!(policy.decide(Nanos(0)), Decision::Grant { ticket: Ticket(0), .. }));
        let idle = policy.decide(Nanos(0));
        assert!(matches!(idle, Decision::Idle { until: Some(Nanos(n)), .. } if n == 16 * MS));
        policy.complete(Nanos(job), Ticket(0), Nanos(job));
        assert!(matches!(policy.decide(Nanos(job)), Decision::Grant { ticket: Ticket(1), .. }));
        assert_eq!(policy.slicing().resets(), resets);
    }
}

fn spec(tenant: u16) -> crate::JobSpec {
    crate::JobSpec {
        ticket: Ticket(u32::from(tenant)),
        tenant: TenantId(tenant),
        frame: beamline_abi::FrameId(1),
        job: beamline_abi::JobIndex(0),
        jobs: 1,
        late_latch: tenant == 1,
        arrival: Nanos(0),
        release: Nanos(0),
        deadline: Nanos::MAX,
        slot: 0,
    }
}

#[test]
fn gim_takes_an_overshoot_from_the_next_slices() {
    // 14 ms beyond a slice of 6 ms: two slices are lost, and 2 ms of the third.
    let mut jobs = vec![work(0, 0, 20 * MS)];
    jobs.extend(flood(0, 20, MS));
    jobs.extend(flood(1, 20, 6 * MS));
    let gpu = run(PolicyKind::GimFair, NONE, 2, &jobs, 54 * MS);
    assert_eq!(
        gpu.turns,
        [
            turn(0, 0, 20 * MS),
            turn(1, 20 * MS, 38 * MS),
            turn(0, 38 * MS, 42 * MS),
            turn(1, 42 * MS, 48 * MS),
            turn(0, 48 * MS, 54 * MS),
        ]
    );
}

#[test]
fn gim_switches_every_6_ms() {
    let gpu = run(PolicyKind::GimFair, FULL, 3, &floods(&[(20, 5 * MS); 3]), 54 * MS);
    assert_eq!(gpu.turns, rounds(3, 9, 6 * MS));
}

#[test]
fn drm_fair_goes_by_virtual_time() {
    let work = floods(&[(600, MS), (200, 3 * MS)]);
    let gpu = run(PolicyKind::DrmFair, FULL, 2, &work, 1_000 * MS);
    let at = |t: u16, from: u64, to: u64| turn(t, from * MS, to * MS);
    // A job counts when the one after it is taken.
    assert_eq!(
        gpu.turns[..9],
        [
            at(0, 0, 1),
            at(1, 1, 4),
            at(0, 4, 5),
            at(1, 5, 8),
            at(0, 8, 10),
            at(1, 10, 13),
            at(0, 13, 16),
            at(1, 16, 19),
            at(0, 19, 22),
        ]
    );
    let shares = gpu.shares(2, 0, 1_000 * MS);
    assert!(shares[0].abs_diff(shares[1]) <= 6 * MS, "1:1 in the long run: {shares:?}");
    assert_eq!(gpu.asked, 0, "a job runs to its end");
}

#[test]
fn drm_fair_gives_nothing_for_time_away() {
    let mut jobs = flood(0, 200, MS);
    jobs.extend((0..100).map(|_| work(1, 50 * MS, MS)));
    let gpu = run(PolicyKind::DrmFair, NONE, 2, &jobs, 150 * MS);
    let shares = gpu.shares(2, 50 * MS, 150 * MS);
    assert!(shares[0].abs_diff(shares[1]) <= 2 * MS, "{shares:?}");
}

fn due(tenant: u16, at: u64, deadline: u64, cost: u64) -> Work {
    Work { deadline, ..work(tenant, at, cost) }
}

#[test]
fn edf_takes_the_earliest_deadline_of_what_is_released() {
    let jobs = [
        work(0, 0, 2 * MS),
        work(1, 0, 2 * MS),
        due(2, 0, 30 * MS, 2 * MS),
        due(3, 0, 20 * MS, 2 * MS),
        // Due first, but released only at 3 ms.
        Work { release: 3 * MS, ..due(4, 0, 6 * MS, 2 * MS) },
    ];
    let order = |caps| run(PolicyKind::Edf, caps, 5, &jobs, 20 * MS).turns;
    let at = |t: u16, from: u64, to: u64| turn(t, from * MS, to * MS);
    assert_eq!(order(NONE), [at(3, 0, 2), at(2, 2, 4), at(4, 4, 6), at(0, 6, 8), at(1, 8, 10)]);
    assert_eq!(
        order(FULL),
        [at(3, 0, 2), at(2, 2, 3), at(4, 3, 5), at(2, 5, 6), at(0, 6, 8), at(1, 8, 10)]
    );
}

#[test]
fn fifo_late_takes_late_latches_first() {
    let late = |tenant, release| Work { late_latch: true, release, ..work(tenant, 0, MS) };
    let jobs = [
        work(0, 0, 2 * MS),
        work(1, 0, 2 * MS),
        work(2, 0, 2 * MS),
        late(3, 3 * MS),
        late(4, MS),
        late(5, MS),
    ];
    let order = |caps| run(PolicyKind::FifoLate, caps, 6, &jobs, 20 * MS).turns;
    let at = |t: u16, from: u64, to: u64| turn(t, from * MS, to * MS);
    assert_eq!(
        order(NONE),
        [at(0, 0, 2), at(4, 2, 3), at(5, 3, 4), at(3, 4, 5), at(1, 5, 7), at(2, 7, 9)]
    );
    assert_eq!(
        order(FULL),
        [at(0, 0, 1), at(4, 1, 2), at(5, 2, 3), at(3, 3, 4), at(0, 4, 5), at(1, 5, 7), at(2, 7, 9),]
    );
}

#[test]
fn fifo_late_uses_the_upper_level_where_there_is_one() {
    let caps =
        GpuCaps { preemption: Preemption::Levels { levels: 2, grain: Nanos(50 * US) }, ..NONE };
    let mut policy = PolicyKind::FifoLate.build(caps, 2, 4);
    for t in 0..2 {
        policy.admit(TenantId(t), &tenant_contract(100));
    }
    policy.submit(spec(0)).unwrap();
    let grant = policy.decide(Nanos(0));
    assert!(matches!(grant, Decision::Grant { ticket: Ticket(0), level: 0, .. }), "{grant:?}");
    // The late latch of another tenant goes above what runs; one of the same tenant waits for it.
    policy.submit(crate::JobSpec { late_latch: true, ticket: Ticket(2), ..spec(0) }).unwrap();
    assert!(matches!(policy.decide(Nanos(1)), Decision::Idle { .. }));
    policy.drop_jobs(TenantId(0));
    policy.submit(spec(1)).unwrap();
    let grant = policy.decide(Nanos(2));
    assert!(matches!(grant, Decision::Grant { ticket: Ticket(1), level: 1, .. }), "{grant:?}");
    assert!(matches!(policy.decide(Nanos(2)), Decision::Idle { .. }));
}

#[test]
fn the_list_of_policies_is_complete() {
    use alloc::string::ToString;
    let message = "magic".parse::<PolicyKind>().unwrap_err().to_string();
    for kind in PolicyKind::ALL {
        assert!(message.contains(kind.name()), "{message} does not name {kind}");
        assert!(kind.about().len() <= 80 && !kind.about().is_empty());
        assert_eq!(kind.is_model(), kind.about().contains("a model"), "{kind}");
    }
}
