//! Stage 4, schedule: the processor-demand test of sporadic, non-preemptible work under earliest deadline
//! first.
//!
//! After Baruah, Rosier and Howell (1990) for the demand bound and Jeffay, Stanat and Martel (1991) for
//! the blocking by a job that cannot be preempted. Releases are *offset-free*: every alignment of the
//! tenants' vblanks passes if this test does. A frame and the pauses between its jobs count as one piece
//! of work, since the scheduler keeps the GPU for it meanwhile.
//!
//! Of a tenant that allows misses only the mandatory frames are demands ([`crate::mk`]), in the window of its
//! pattern that holds most of them; the others run as slack, which the guards keep from doing harm.
//!
//! *Making room.* Where a GPU can be preempted, blocking shrinks and demand grows ([`crate::preempt`]). Consider
//! an interval that ends with a deadline and begins when the last of the work due by then begins to wait:
//! * Under levels, slack never runs in it except for the `grain` that each reserved job of the interval may
//!   wait for; reserved work that is due later blocks once, by one job with its own grain, as without preemption.
//! * Under full preemption, every job that is asked back within the interval is so for one release of the
//!   interval, and a release waits for one job only. If that was due by the end of the interval too, leaving
//!   and going on (2 × `cost`) and a switch are added; what it ran meanwhile is demand anyhow. If it was due
//!   later, it goes on after the interval, so its last run, at most `cost` because only who is expected to end
//!   within that is left alone, and its leaving fit into the same charge. What is on its way out already when the
//!   interval begins is the blocking: at most `cost`, or one job where that is shorter.
//!
//! All arithmetic is on integers; the work is bounded by [`MAX_STEPS`].

use crate::contract::{Class, Contract, Guard, LateLatch};
use crate::mk::Pattern;
use crate::policy::{GpuCaps, TenantId};
use crate::preempt;
use alloc::{vec, vec::Vec};

/// Bound on (test points × tasks).
pub(crate) const MAX_STEPS: u64 = 4_000_000;

/// Scale of a utilisation: 2^40 is the whole GPU.
const ONE: u128 = 1 << 40;

/// One stream of demands: a tenant's frames, or its late-latch jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Task {
    pub(crate) tenant: TenantId,
    pub(crate) late_latch: bool,
    /// Least time between releases, ns.
    pub(crate) period: u64,
    /// Which of the releases are demands; the others' work runs in what is left.
    pub(crate) pattern: Pattern,
    /// Deadline after the nominal release, ns.
    pub(crate) deadline: u64,
    /// Latest arrival after the nominal release, ns.
    pub(crate) jitter: u64,
    /// GPU time with switches, pauses and what making room for it costs others, ns.
    pub(crate) cost: u64,
    /// The longest that a job of it holds up reserved work that is due earlier, ns.
    pub(crate) chunk: u64,
    /// Whether elastic and background work never blocks it.
    pub(crate) release_guard: bool,
}

impl Task {
    /// Deadline after the latest arrival.
    pub(crate) const fn reduced(&self) -> u64 {
        self.deadline.saturating_sub(self.jitter)
    }
    /// Most work with release and deadline within `t` ns.
    fn demand(&self, t: u64) -> u128 {
        match t.checked_sub(self.reduced()) {
            Some(rest) => self.pattern.most(rest / self.period + 1) * u128::from(self.cost),
            None => 0,
        }
    }
    /// Share of the GPU that it uses, scaled by [`ONE`].
    fn utilisation(&self) -> u128 {
        // A pattern's share of 2^40 is rounded up by less than 1.
        let share = u128::from(self.pattern.share(ONE as u64));
        (u128::from(self.cost) * share).div_ceil(u128::from(self.period.max(1)))
    }
}

/// Jobs of a frame that admission reckons with: as many as the budget holds of the longest.
pub(crate) fn jobs_per_frame(c: &Contract) -> u64 {
    c.budget.0.div_ceil(c.max_job.0.max(1)).max(1)
}

/// GPU ns that a frame's jobs may use with their switches and the preemption they may cause.
pub(crate) fn frame_budget(c: &Contract, caps: &GpuCaps) -> u64 {
    let switches = jobs_per_frame(c).saturating_mul(preempt::per_job(caps));
    c.budget.0.saturating_add(switches).saturating_add(preempt::per_release(caps))
}

/// The same for a late latch, which is one job.
pub(crate) fn late_budget(l: &LateLatch, caps: &GpuCaps) -> u64 {
    let making_room = preempt::per_job(caps).saturating_add(preempt::per_release(caps));
    l.budget.0.saturating_add(making_room)
}

/// The demands of a reserved contract; none of any other.
pub(crate) fn tasks(
    tenant: TenantId,
    c: &Contract,
    caps: &GpuCaps,
) -> impl Iterator<Item = Task> + use<> {
    let reserved = c.class == Class::Reserved;
    let pauses = (jobs_per_frame(c) - 1).saturating_mul(c.gap.0);
    let frame = Task {
        tenant,
        late_latch: false,
        period: c.period.floor().0,
        pattern: preempt::pattern(c, caps),
        deadline: c.main_deadline().0,
        jitter: c.jitter.0,
        cost: frame_budget(c, caps).saturating_add(pauses),
        chunk: preempt::chunk(c.max_job.0, caps),
        release_guard: c.guard == Guard::Release,
    };
    let late = c.late_latch.map(|l| Task {
        late_latch: true,
        deadline: l.window.0,
        jitter: 0,
        cost: late_budget(&l, caps),
        ..frame
    });
    reserved.then_some(frame).into_iter().chain(late.filter(|_| reserved))
}

/// An interval in which more is asked than fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// Length of the interval, ns.
    pub interval: u64,
    /// Work that may have to be done in it, with blocking, ns.
    pub demand: u64,
}

/// What the test found of a set that passes.
#[derive(Clone, Debug)]
pub(crate) struct Passed {
    /// Per task: blocking at its release that still harms nobody, ns, as far as the test has looked.
    pub(crate) tolerance: Vec<u64>,
}

/// Share of the GPU that the tasks use, scaled by [`ONE`].
fn utilisation(tasks: &[Task]) -> u128 {
    tasks.iter().map(Task::utilisation).sum()
}

/// The tasks' share of the GPU in parts per million.
pub(crate) fn utilisation_ppm(tasks: &[Task]) -> u64 {
    u64::try_from(utilisation(tasks) * 1_000_000 / ONE).unwrap_or(u64::MAX)
}

/// Refuses tasks that need more than the whole GPU.
pub(crate) fn not_overloaded(tasks: &[Task]) -> Result<(), Shortage> {
    let used = utilisation(tasks);
    if used <= ONE {
        return Ok(());
    }
    let interval = tasks.iter().map(|t| t.period).max().unwrap_or(1);
    Err(Shortage { interval, demand: saturate(used * u128::from(interval) / ONE) })
}

fn saturate(v: u128) -> u64 {
    u64::try_from(v).unwrap_or(u64::MAX)
}

/// Longest interval that has to be looked at, or `None` where the tasks leave nothing free.
fn limit(tasks: &[Task], blocking: u64) -> Option<u64> {
    let free = ONE.checked_sub(utilisation(tasks)).filter(|f| *f > 0)?;
    // Beyond this the demand's linear upper bound is below the interval's length.
    let excess: u128 = tasks
        .iter()
        .map(|t| {
            // Where not every release is a demand, an interval may begin with one more than their share.
            let more = if t.pattern.is_all() { 0 } else { u128::from(t.cost) * ONE };
            t.utilisation() * u128::from(t.period.saturating_sub(t.reduced())) + more
        })
        .sum();
    let linear = saturate((excess + u128::from(blocking) * ONE) / free + 1);
    // The longest busy period ends at least as surely.
    let mut busy = u128::from(blocking) + tasks.iter().map(|t| u128::from(t.cost)).sum::<u128>();
    for _ in 0..64 {
        let next = u128::from(blocking)
            + tasks
                .iter()
                .map(|t| {
                    let n = (busy + u128::from(t.jitter)).div_ceil(u128::from(t.period));
                    t.pattern.most(saturate(n)) * u128::from(t.cost)
                })
                .sum::<u128>();
        if next == busy {
            return Some(linear.min(saturate(busy)));
        }
        busy = next;
        if busy > u128::from(linear) {
            break;
        }
    }
    Some(linear)
}

/// Tests the set. `foreign`: the longest that elastic and background work holds up any other; `room`: up to which blocking the
/// tolerances are of interest, ns. The longer, the longer the intervals that are looked at.
pub(crate) fn test(
    tasks: &[Task],
    foreign: u64,
    room: u64,
    caps: &GpuCaps,
) -> Result<Passed, Shortage> {
    if tasks.is_empty() {
        return Ok(Passed { tolerance: vec![] });
    }
    let longest = tasks.iter().map(|t| t.chunk).max().unwrap_or(0);
    let block = |chunk: u64| preempt::block(chunk, caps);
    let overload = |interval: u64| Shortage {
        interval,
        demand: saturate(utilisation(tasks) * u128::from(interval) / ONE).max(interval),
    };
    let widest = tasks.iter().map(|t| t.period).max().unwrap_or(1);
    let first = tasks.iter().map(Task::reduced).max().unwrap_or(0);
    // Beyond the limit that holds for a blocking, no more than that is known to be free.
    let known = block(longest.max(foreign)).max(room);
    let end = limit(tasks, known).ok_or_else(|| overload(widest))?.max(first);
    let points: u128 =
        tasks.iter().map(|t| u128::from(end.saturating_sub(t.reduced()) / t.period) + 1).sum();
    if points * tasks.len() as u128 > u128::from(MAX_STEPS) {
        return Err(overload(end));
    }
    let mut tolerance = vec![known; tasks.len()];
    for task in tasks {
        let mut t = task.reduced();
        while t <= end {
            let demand: u128 = tasks.iter().map(|x| x.demand(t)).sum();
            let blocking = match blocking(tasks, t, foreign) {
                0 => 0,
                chunk => block(chunk),
            };
            let total = demand + u128::from(blocking);
            if total > u128::from(t) {
                return Err(Shortage { interval: t, demand: saturate(total) });
            }
            let spare = t - saturate(demand);
            for (x, least) in tasks.iter().zip(&mut tolerance) {
                if x.reduced() <= t {
                    *least = spare.min(*least);
                }
            }
            t = t.saturating_add(task.period);
        }
    }
    Ok(Passed { tolerance })
}

/// Per task: the blocking at its release that harms nobody, beside no other blocking, ns; zero where that takes
/// too long to find out.
pub(crate) fn tolerances(tasks: &[Task], caps: &GpuCaps) -> Vec<u64> {
    // No task tolerates more than it has until it is due.
    let widest = tasks.iter().map(Task::reduced).max().unwrap_or(0);
    test(tasks, 0, widest, caps)
        .or_else(|_| test(tasks, 0, 0, caps))
        .map_or_else(|_| vec![0; tasks.len()], |p| p.tolerance)
}

/// The longest job that may run when an interval of `t` begins although its deadline is beyond it.
fn blocking(tasks: &[Task], t: u64, foreign: u64) -> u64 {
    let inside = || tasks.iter().filter(|x| x.reduced() <= t);
    let Some(first) = inside().next() else {
        return 0;
    };
    // A tenant does not block itself: its late latch comes after its own frame, and its next frame after
    // that.
    let alone = inside().all(|x| x.tenant == first.tenant).then_some(first.tenant);
    let peers = tasks
        .iter()
        .filter(|x| x.deadline > t && Some(x.tenant) != alone)
        .map(|x| x.chunk)
        .max()
        .unwrap_or(0);
    if inside().any(|x| !x.release_guard) { peers.max(foreign) } else { peers }
}
