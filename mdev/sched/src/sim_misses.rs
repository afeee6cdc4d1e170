//! Contracts that allow misses, in virtual time: each keeps its m-in-k, also where all frames together are more
//! than the GPU can do, and costs those that allow none nothing.

use super::cases::any_class;
use super::*;
use crate::admission::{Admission, Current, Refusal};
use crate::contract::{Guard, LateLatch, MissAllowance};
use crate::kind::PolicyKind;
use crate::preempt;
use crate::tenant::Tenant;
use crate::testing::{CAPS, contract, flood, vr};
use proptest::prelude::*;

fn may_miss(misses: u32, frames: u32, c: Contract) -> Contract {
    Contract { miss: MissAllowance { misses, frames }, ..c }
}

/// All of `contracts`, or why one is refused.
fn admit(contracts: &[Contract]) -> Result<Vec<Current>, Refusal> {
    let admission = Admission::new(CAPS, 64);
    let mut set: Vec<Current> = vec![];
    for c in contracts {
        let got = admission.try_admit(&set, c)?;
        set.push((TenantId(set.len() as u16), *c, got.phase));
    }
    Ok(set)
}

fn run(set: &[Current], vary: bool, end: u64, seed: u64) -> Vec<Tally> {
    run_on(CAPS, set, vary, end, seed)
}

fn run_on(caps: GpuCaps, set: &[Current], vary: bool, end: u64, seed: u64) -> Vec<Tally> {
    let guests = set.iter().map(|(_, c, phase)| Guest { vary, ..Guest::of(*c, *phase) }).collect();
    let mut policy = PolicyKind::Beamline.build(caps, 64, 512);
    Sim::new(policy.as_mut(), guests, caps, seed).run(end)
}

/// A headset, a game at 120 Hz and a slow one at 30 Hz: more than the whole GPU if every frame came in time.
fn overload(misses: u32, frames: u32) -> [Contract; 3] {
    [
        vr(),
        may_miss(misses, frames, Contract { jitter: Nanos(0), ..contract(120, 3_200, 400) }),
        Contract { jitter: Nanos(0), ..contract(30, 16_000, 400) },
    ]
}

#[test]
fn an_overloaded_set_is_admitted_where_misses_are_allowed() {
    let refusal = admit(&overload(0, 2)).unwrap_err();
    assert!(matches!(refusal, Refusal::Demand { .. }), "{refusal}");
    let set = admit(&overload(1, 2)).unwrap();
    let tally = run(&set, false, 60_000_000_000, 3);
    for (i, t) in tally.iter().enumerate() {
        assert!(t.most_missed <= u32::from(i == 1), "tenant {i}: {t:?}");
    }
    let [headset, fast, slow] = tally[..] else { panic!("three tenants: {tally:?}") };
    assert_eq!((headset.broken, slow.broken), (0, 0));
    assert!(headset.kept > 5_000 && slow.kept > 1_700, "{tally:?}");
    assert!(fast.broken > 100, "there is no room for all: {fast:?}");
    assert!(fast.kept > fast.broken + 100, "but for more than what is promised: {fast:?}");
}

#[test]
fn frames_that_may_miss_are_in_time_where_there_is_room() {
    let game = may_miss(3, 4, contract(60, 5_000, 500));
    let tally = run(&admit(&[vr(), game]).unwrap(), true, 20_000_000_000, 5);
    assert!(tally[1].kept > 1_100 && tally[1].broken == 0, "{tally:?}");
}

/// An allowance of no misses in k frames is the same contract for every k.
#[test]
fn without_misses_nothing_changes() {
    let plain = [vr(), contract(60, 3_000, 600), flood()];
    let set = admit(&plain).unwrap();
    let tally = run(&set, true, 20_000_000_000, 11);
    for k in [2, 100, u32::MAX] {
        let other = admit(&plain.map(|c| may_miss(0, k, c))).unwrap();
        assert!(set.iter().zip(&other).all(|(a, b)| (a.0, a.2) == (b.0, b.2)));
        let same = run(&other, true, 20_000_000_000, 11);
        for (a, b) in tally.iter().zip(&same) {
            assert_eq!((a.kept, a.gpu, a.granted, a.worst), (b.kept, b.gpu, b.granted, b.worst));
        }
    }
    assert!(tally[0].kept > 1_700 && tally[0].broken == 0, "{tally:?}");
}

/// What admission charges for is the pattern: one that comes late is not denser for it.
#[test]
fn late_frames_keep_the_distance_of_their_pattern() {
    let c = may_miss(1, 3, contract(100, 2_000, 2_000));
    let mut tenant = Tenant::new(&c, &CAPS);
    tenant.period_end = u64::MAX;
    let (period, late) = (c.period.floor().0, 5_000_000);
    let job = |slot: u64, late: u64| {
        let release = Nanos(slot * period);
        JobSpec {
            ticket: Ticket(0),
            tenant: TenantId(0),
            frame: FrameId(slot + 1),
            job: JobIndex(0),
            jobs: 1,
            late_latch: false,
            arrival: release + Nanos(late),
            release,
            deadline: release + c.deadline,
            slot,
        }
    };
    let mut due = |slot: u64, late: u64| {
        let job = job(slot, late);
        tenant.frames.renew(slot);
        tenant.note_arrival(&job, true);
        assert!(tenant.pays(&job), "slot {slot} is mandatory");
        tenant.deadline(&job, 1, job.arrival.0)
    };
    let first = due(0, late);
    assert_eq!(first, period + late);
    assert_eq!(due(1, 0), first + period);
    assert_eq!(due(3, 0), first + 3 * period, "slot 2 may miss");
    assert!(!tenant.pays(&job(2, 0)));
}

prop_compose! {
    pub(super) fn lenient()(
        hz in prop::sample::select(vec![30u64, 60, 72, 90, 120, 144]),
        budget in 100u64..8_000,
        jobs in 1u64..8,
        jitter in 0u64..1_000,
        gap in 0u64..200,
        late in prop::option::of((100u64..400, 200u64..2_000)),
        guard in prop::sample::select(vec![Guard::Release, Guard::Deadline]),
        frames in 1u32..12,
        misses in 0u32..12,
    ) -> Contract {
        Contract {
            gap: Nanos::from_micros(gap),
            jitter: Nanos::from_micros(jitter),
            late_latch: late.map(|(b, w)| LateLatch {
                window: Nanos::from_micros(b + w),
                budget: Nanos::from_micros(b),
            }),
            guard,
            miss: MissAllowance { misses: misses % frames, frames },
            ..contract(hz, budget, budget.div_ceil(jobs).max(late.map_or(0, |(b, _)| b)))
        }
    }
}

proptest! {
    /// Whatever is admitted keeps its m-in-k, whatever slack work runs beside it.
    #[test]
    fn every_contract_keeps_its_m_in_k(
        caps in any_class(),
        contracts in prop::collection::vec(lenient(), 2..9),
        flood_job in 100u64..3_000,
        seed: u64,
        vary: bool,
    ) {
        let admission = Admission::new(caps, 64);
        let beside = Contract { max_job: Nanos::from_micros(flood_job), budget: Nanos(0), ..flood() };
        let mut set: Vec<Current> = vec![];
        for c in contracts.iter().chain([&beside]) {
            if let Ok(got) = admission.try_admit(&set, c) {
                set.push((TenantId(set.len() as u16), *c, got.phase));
            }
        }
        let tally = run_on(caps, &set, vary, 600_000_000, seed);
        for (t, (_, c, _)) in tally.iter().zip(&set) {
            if c.class == Class::Reserved {
                prop_assert!(t.most_missed <= c.miss.misses, "{c:?} {t:?} {set:?}");
            }
        }
    }

    /// A tenant that may miss, overruns and comes late delays another's mandatory frames by no more than its
    /// longest job.
    #[test]
    fn a_lenient_tenant_out_of_step_harms_itself(
        caps in any_class(),
        contracts in prop::collection::vec(lenient(), 2..6),
        factor in 1u64..5,
        tardy in 0u64..20_000_000,
        seed: u64,
    ) {
        let admission = Admission::new(caps, 64);
        let mut set: Vec<Current> = vec![];
        for c in &contracts {
            if let Ok(got) = admission.try_admit(&set, c) {
                set.push((TenantId(set.len() as u16), *c, got.phase));
            }
        }
        let mut guests: Vec<Guest> = set.iter().map(|(_, c, p)| Guest::of(*c, *p)).collect();
        let Some(first) = guests.first_mut() else { return Ok(()) };
        let own = first.contract.max_job.0;
        first.jobs = (0..first.jobs.len() as u64 * factor).map(|_| own).collect();
        (first.vary, first.tardy) = (false, (tardy, 0));
        let mut policy = PolicyKind::Beamline.build(caps, 64, 512);
        let tally = Sim::new(policy.as_mut(), guests, caps, seed).run(600_000_000);
        // What admission takes a job of it to hold others up.
        let bound = preempt::block(preempt::chunk(own, &caps), &caps);
        for t in &tally[1..] {
            prop_assert!(t.worst <= bound, "{t:?} beyond {bound}, {caps:?} {set:?}");
        }
    }
}
