//! Stage 4, schedule: phases: where on the host's grid each tenant's vblanks lie, so that bursts of work
//! interleave.
//!
//! Two tenants with periods P1 and P2 meet in every alignment that differs by a multiple of gcd(P1, P2), so
//! their bursts never overlap if they do not on a circle of that length. Placing is a search over the
//! offsets at which a burst begins where another ends or ends where another begins; it is deterministic.
//! [`test`] then decides exactly whether every deadline holds under the phases found.

use crate::contract::{Class, Contract, Sink};
use crate::demand::{self, Shortage, Task};
use crate::mk::Pattern;
use crate::policy::{GpuCaps, TenantId};
use crate::preempt;
use alloc::{vec, vec::Vec};
use beamline_abi::Nanos;

/// Longest common hyperperiod that is looked at, ns.
const MAX_HYPERPERIOD: u128 = 2_000_000_000;
/// Most frames and late-latch jobs within two hyperperiods and a half.
const MAX_BURSTS: usize = 2_048;
/// Whole-nanosecond grids drift by less than this against each other.
const ROUNDING: u64 = 2;
/// Most tenants of one contract that are looked at together.
const MOST_PLACES: u64 = 64;
/// Evenly spaced offsets that are tried beside the neighbours' edges.
const EVEN: u64 = 32;

/// Different moments at which elastic tenants of one period have their vblanks at most. Each is a wake-up of the
/// host, which costs more than a vblank, and no promise rests on where these lie.
const WAKE_UPS: usize = 4;

/// How long a guest is busy with its vblank at least, before its first job comes, ns. Guests that share a
/// CPU hold each other up when they wake together.
const WAKE: u64 = 250_000;

/// What a tenant needs in a stretch of its period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    Gpu,
    /// The CPU, between its vblank and its first job.
    Cpu,
}

/// Such a stretch: offset from the tenant's vblank and length in ns.
type Arc = (Need, u64, u64);

fn gcd128(mut a: u128, mut b: u128) -> u128 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// The greatest common divisor of two periods, rounded to whole ns; at least 1.
fn common(a: &Contract, b: &Contract) -> u64 {
    let (n1, d1) = (u128::from(a.period.num()), u128::from(a.period.den()));
    let (n2, d2) = (u128::from(b.period.num()), u128::from(b.period.den()));
    let g = gcd128(n1 * d2, n2 * d1) / (d1 * d2);
    u64::try_from(g).unwrap_or(u64::MAX).max(1)
}

/// Where a contract's bursts lie: its frame with the uncertainty of its start; its late latch, which waits for
/// the window to open; and before them the guest itself.
fn arcs(c: &Contract, caps: &GpuCaps) -> impl Iterator<Item = Arc> + use<> {
    let id = TenantId(0);
    let main_deadline = c.main_deadline().0;
    let gpu = demand::tasks(id, c, caps).map(move |t| {
        if t.late_latch {
            (Need::Gpu, main_deadline, t.cost)
        } else {
            (Need::Gpu, 0, t.jitter.saturating_add(t.cost))
        }
    });
    gpu.chain([(Need::Cpu, 0, c.jitter.0.max(WAKE))])
}

/// Overlap of two arcs on a circle of length `g`, the second one's start `shift` after the first one's.
fn overlap(first: u64, second: u64, shift: u64, g: u64) -> u64 {
    if first >= g || second >= g {
        return first.min(second).min(g);
    }
    // The second arc may begin within the first, or wrap round into it.
    let ahead = first.saturating_sub(shift).min(second);
    let wrapped = shift.saturating_add(second).saturating_sub(g).min(first);
    ahead + wrapped
}

/// The phase for `candidate` that overlaps least with the tenants already placed; zero where the
/// candidate's clock is not the host's.
pub fn place(placed: &[(Contract, Nanos)], candidate: &Contract, caps: &GpuCaps) -> Nanos {
    if candidate.sink != Sink::Virtual {
        return Nanos::ZERO;
    }
    let period = candidate.period.floor().0.max(1);
    let own: Vec<Arc> = arcs(candidate, caps).collect();
    let others: Vec<(Arc, u64)> = placed
        .iter()
        .filter(|(c, _)| c.sink == Sink::Virtual)
        .flat_map(|(c, phase)| {
            let g = common(c, candidate);
            arcs(c, caps)
                .map(move |(need, at, len)| ((need, phase.0.saturating_add(at) % g, len), g))
        })
        .collect();
    let cost = |offset: u64| -> u64 {
        let mut sum = 0u64;
        for &((need, at, len), g) in &others {
            for &(_, own_at, own_len) in own.iter().filter(|arc| arc.0 == need) {
                let begins = offset.saturating_add(own_at) % g;
                let shift = (begins + g - at) % g;
                sum = sum.saturating_add(overlap(len, own_len, shift, g));
            }
        }
        sum
    };
    let edges = others.iter().flat_map(|&((need, at, len), g)| {
        own.iter().filter(move |arc| arc.0 == need).flat_map(move |&(_, own_at, own_len)| {
            let base = g - own_at % g;
            let after = at.saturating_add(len) % g;
            let before = at + g - own_len % g;
            [(base + after) % g, (base + before) % g]
        })
    });
    let even = (0..EVEN).map(|k| period / EVEN * k);
    let key = |&offset: &u64| (cost(offset), offset);
    if let Some(places) = lattice(placed, candidate, caps) {
        let taken = |at: u64| placed.iter().any(|(_, phase)| phase.0 % period == at);
        let free = (0..places).map(|k| period * k / places).filter(|&at| !taken(at));
        if let Some(best) = free.min_by_key(key) {
            return Nanos(best);
        }
    }
    if let Some(shared) = shared(placed, candidate) {
        return Nanos(shared.into_iter().min_by_key(key).unwrap_or(0));
    }
    Nanos(edges.chain(even).map(|offset| offset % period).min_by_key(key).unwrap_or(0))
}

/// The offsets that `candidate` is to share with tenants like it, where there are enough of them.
fn shared(placed: &[(Contract, Nanos)], candidate: &Contract) -> Option<Vec<u64>> {
    let like = |c: &Contract| c.class != Class::Reserved && c.period == candidate.period;
    let period = candidate.period.floor().0.max(1);
    let mut offsets: Vec<u64> =
        placed.iter().filter(|(c, _)| like(c)).map(|(_, phase)| phase.0 % period).collect();
    offsets.sort_unstable();
    offsets.dedup();
    (like(candidate) && offsets.len() >= WAKE_UPS).then_some(offsets)
}

/// Into how many places the period is to be divided for tenants that are all like `candidate`: as many as can be
/// kept at once. `None` where they are not all alike, or where no more than one can be kept.
fn lattice(placed: &[(Contract, Nanos)], candidate: &Contract, caps: &GpuCaps) -> Option<u64> {
    let reserved = |c: &Contract| c.class == Class::Reserved;
    let alike = placed.iter().filter(|(c, _)| reserved(c)).all(|(c, _)| c == candidate);
    if !alike || !reserved(candidate) || candidate.late_latch.is_none() {
        return None;
    }
    let period = candidate.period.floor().0;
    let each: u64 = demand::tasks(TenantId(0), candidate, caps).map(|t| t.cost).sum();
    (2..=(period / each.max(1)).min(MOST_PLACES)).rev().find(|&places| {
        let all = (0..places).map(|k| (TenantId(k as u16), *candidate, Nanos(period * k / places)));
        test(&all.collect::<Vec<_>>(), 0, caps).is_ok()
    })
}

/// Phases for all tenants at once, in the order given: how long after the host's grid each one's vblanks
/// come. Tight contracts (late latch, then short periods) are placed first.
pub fn assign(tenants: &[(TenantId, &Contract)], caps: &GpuCaps) -> Vec<(TenantId, Nanos)> {
    let mut order: Vec<usize> = (0..tenants.len()).collect();
    order.sort_by_key(|&i| {
        let (id, c) = tenants[i];
        (c.class, c.late_latch.is_none(), c.period.floor(), id)
    });
    let mut placed: Vec<(Contract, Nanos)> = Vec::with_capacity(tenants.len());
    let mut phases: Vec<_> = tenants.iter().map(|&(id, _)| (id, Nanos::ZERO)).collect();
    for i in order {
        let phase = place(&placed, tenants[i].1, caps);
        phases[i].1 = phase;
        placed.push((*tenants[i].1, phase));
    }
    phases
}

/// Why the phase-aware test does not apply or does not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phased {
    /// A reserved tenant's clock is not the host's, or the common grid is too long.
    NotApplicable,
    Short(Shortage),
}

/// One release within the hyperperiods looked at.
#[derive(Clone, Copy, Debug)]
struct Burst {
    release: u64,
    /// Latest arrival.
    arrival: u64,
    deadline: u64,
    cost: u64,
    chunk: u64,
    release_guard: bool,
}

/// Whether every deadline holds with the given phases.
///
/// Bursts are grouped into clusters by a bound on when their work can last: whatever is released after a
/// cluster's end meets an idle GPU. Within a cluster, demand is summed over every interval as in the
/// offset-free test, and only a job of the same cluster that is released earlier can block, by its whole length:
/// a tenant that breaks its contract may begin it at any time.
pub(crate) fn test(
    tenants: &[(TenantId, Contract, Nanos)],
    foreign: u64,
    caps: &GpuCaps,
) -> Result<(), Phased> {
    let bursts = bursts(tenants, caps)?;
    let block = |chunk: u64| match chunk {
        0 => 0,
        chunk => preempt::block(chunk, caps),
    };
    let guarded = bursts.iter().all(|b| b.release_guard);
    let foreign = if guarded { 0 } else { foreign };
    let mut from = 0;
    while from < bursts.len() {
        let mut end = bursts[from].release;
        let mut to = from;
        while to < bursts.len() && (to == from || bursts[to].release < end) {
            let begin = if to == from {
                bursts[to].arrival.saturating_add(block(foreign))
            } else {
                end.max(bursts[to].arrival)
            };
            end = begin.saturating_add(bursts[to].cost);
            to += 1;
        }
        check(&bursts[from..to], |chunk| block(chunk.max(foreign))).map_err(Phased::Short)?;
        from = to;
    }
    Ok(())
}

/// Quadratic in the cluster's size, which [`MAX_BURSTS`] bounds.
fn check(bursts: &[Burst], block: impl Fn(u64) -> u64) -> Result<(), Shortage> {
    let mut by_deadline: Vec<&Burst> = bursts.iter().collect();
    by_deadline.sort_by_key(|b| b.deadline);
    // Longest job that is due after each, and may be running when the interval begins.
    let mut blocking = vec![0u64; bursts.len()];
    for start in bursts {
        let begin = start.arrival;
        let (mut longest, mut tied, mut later) = (0, 0, u64::MAX);
        for (b, blocking) in by_deadline.iter().zip(&mut blocking).rev() {
            if b.deadline < later {
                (longest, later) = (tied, b.deadline);
            }
            if b.release < begin {
                tied = tied.max(b.chunk);
            }
            *blocking = longest;
        }
        let mut demand = 0u64;
        for (due, &blocking) in by_deadline.iter().zip(&blocking) {
            if due.arrival < begin || due.deadline < begin {
                continue;
            }
            // Of those due at the same time the last one's sum decides; the others' are smaller.
            demand = demand.saturating_add(due.cost);
            let interval = due.deadline - begin;
            let demand = demand.saturating_add(block(blocking));
            if demand > interval {
                return Err(Shortage { interval, demand });
            }
        }
    }
    Ok(())
}

/// The releases of two and a half hyperperiods and more, in order: enough for what one hyperperiod leaves
/// to the next to show.
fn bursts(tenants: &[(TenantId, Contract, Nanos)], caps: &GpuCaps) -> Result<Vec<Burst>, Phased> {
    let reserved = || tenants.iter().filter(|(_, c, _)| c.class == Class::Reserved);
    if reserved().any(|(_, c, _)| c.sink != Sink::Virtual) {
        return Err(Phased::NotApplicable);
    }
    let hyperperiod = hyperperiod(reserved().map(|(_, c, _)| c)).ok_or(Phased::NotApplicable)?;
    let latest = reserved().map(|(_, _, p)| p.0).max().unwrap_or(0);
    let due = reserved().map(|(_, c, _)| c.deadline.0).max().unwrap_or(0);
    let horizon = latest
        .saturating_add(hyperperiod.saturating_mul(5) / 2)
        .saturating_add(due.saturating_mul(2));
    let mut bursts = vec![];
    // Every frame counts, also one that may miss: which are mandatory repeats only after many hyperperiods.
    let tasks = |id: TenantId, c: &Contract| {
        demand::tasks(id, c, caps).map(|t| Task { pattern: Pattern::ALL, ..t })
    };
    let all: Vec<Task> = reserved().flat_map(|(id, c, _)| tasks(*id, c)).collect();
    // With no more work than time, intervals longer than a hyperperiod show nothing new.
    demand::not_overloaded(&all).map_err(Phased::Short)?;
    for (id, c, phase) in reserved() {
        for task in tasks(*id, c) {
            for k in 0.. {
                let vblank = phase.0.saturating_add(c.period.times(k).0);
                if vblank > horizon {
                    break;
                }
                if bursts.len() >= MAX_BURSTS {
                    return Err(Phased::NotApplicable);
                }
                bursts.push(burst(&task, c, vblank));
            }
        }
    }
    bursts.sort_by_key(|b| b.release);
    Ok(bursts)
}

fn burst(task: &Task, c: &Contract, vblank: u64) -> Burst {
    let release = if task.late_latch { vblank.saturating_add(c.main_deadline().0) } else { vblank };
    Burst {
        release,
        arrival: release.saturating_add(task.jitter),
        deadline: release.saturating_add(task.deadline),
        cost: task.cost.saturating_add(ROUNDING),
        chunk: task.chunk,
        release_guard: task.release_guard,
    }
}

/// Least common multiple of the periods in whole ns, rounded up; `None` above the bound.
fn hyperperiod<'a>(contracts: impl Iterator<Item = &'a Contract>) -> Option<u64> {
    let (mut num, mut den) = (0u128, 1u128);
    for c in contracts {
        let (n, d) = (u128::from(c.period.num()), u128::from(c.period.den()));
        if num == 0 {
            (num, den) = (n, d);
        } else {
            num = num / gcd128(num, n) * n;
            den = gcd128(den, d);
        }
        // Below the bound times the largest denominator, so the next product fits.
        if num / den > MAX_HYPERPERIOD {
            return None;
        }
    }
    u64::try_from(num.div_ceil(den)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::Admission;
    use crate::contract::LateLatch;
    use crate::testing::{CAPS, contract, flood, game, vr};
    use proptest::prelude::*;

    #[test]
    fn display_rates_share_a_grid() {
        assert_eq!(common(&contract(60, 1, 1), &contract(90, 1, 1)), 5_555_555);
        assert_eq!(common(&contract(72, 1, 1), &contract(120, 1, 1)), 2_777_777);
        let both = [contract(60, 1, 1), contract(90, 1, 1)];
        assert_eq!(hyperperiod(both.iter()), Some(33_333_334));
    }

    #[test]
    fn a_game_goes_between_the_headsets_bursts() {
        let (vr, game) = (vr(), game());
        let phases = assign(&[(TenantId(0), &game), (TenantId(1), &vr)], &CAPS);
        assert_eq!(phases[1], (TenantId(1), Nanos::ZERO), "the headset is placed first");
        // In the common cell of 5.556 ms the headset's frame takes the first 2.61 ms, and its late latch 0.41 ms
        // from 4.356 ms on. The game needs up to 3.23 ms: between the frames, with the late latch inside.
        let at = phases[0].1.0 % 5_555_555;
        assert!((2_320_000..2_620_000).contains(&at), "placed at {at}");
    }

    #[test]
    fn guests_that_need_no_gpu_in_time_do_not_wake_with_those_that_do() {
        let (vr, flood) = (vr(), flood());
        let at = place(&[(vr, Nanos::ZERO)], &flood, &CAPS).0;
        let after = at % common(&vr, &flood);
        assert!(after >= 1_000_000, "{after}");
    }

    #[test]
    fn headsets_that_are_alike_leave_no_gaps() {
        let late_latch = LateLatch { window: Nanos(900_000), budget: Nanos(300_000) };
        let jitter = Nanos::from_micros(100);
        let headset = Contract { jitter, late_latch: Some(late_latch), ..contract(90, 800, 800) };
        let mut set: Vec<(TenantId, Contract, Nanos)> = vec![];
        while let Ok(admitted) = Admission::new(CAPS, 64).try_admit(&set, &headset) {
            set.push((TenantId(set.len() as u16), headset, admitted.phase));
        }
        // Another one's job is longer than what the window leaves, so no frame may begin in the 0.9 ms before a
        // vblank, nor last into them: every 1.81 ms there is room for one.
        assert_eq!(set.len(), 6);
    }

    #[test]
    fn many_elastic_tenants_share_few_wake_ups() {
        let mut placed: Vec<(Contract, Nanos)> = vec![];
        for _ in 0..64 {
            let phase = place(&placed, &flood(), &CAPS);
            placed.push((flood(), phase));
        }
        let mut at: Vec<Nanos> = placed.iter().map(|(_, phase)| *phase).collect();
        at.sort_unstable();
        let evenly = at.chunk_by(|a, b| a == b).map(<[_]>::len).max();
        at.dedup();
        assert_eq!((at.len(), evenly), (WAKE_UPS, Some(64 / WAKE_UPS)));
        // A headset is not placed with them.
        assert_ne!(place(&placed, &vr(), &CAPS), at[0]);
    }

    #[test]
    fn two_bursts_that_fit_the_common_divisor_never_overlap() {
        let (a, b) = (contract(60, 2_500, 2_500), contract(90, 3_000, 3_000));
        let caps = GpuCaps { switch_cost: Nanos::ZERO, ..CAPS };
        let phase = place(&[(a, Nanos::ZERO)], &b, &caps).0 % 5_555_555;
        assert!((2_500_000..=2_555_555).contains(&phase), "{phase}");
    }

    proptest! {
        #[test]
        fn overlap_is_what_counting_says(a in 0u64..30, b in 0u64..30, shift in 0u64..24) {
            let g = 24;
            let shift = shift % g;
            let covers = |len: u64, at: u64, x: u64| (x + g - at) % g < len.min(g);
            let count = (0..g).filter(|&x| covers(a, 0, x) && covers(b, shift, x)).count() as u64;
            prop_assert_eq!(overlap(a, b, shift, g), count);
        }
    }
}
