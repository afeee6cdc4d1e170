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
//! The deadlines are visited once, in order, with the demand so far: n log m for n deadlines of m tasks. All
//! arithmetic is on integers; n is bounded by [`MAX_POINTS`].

use crate::contract::{Class, Contract, Guard, LateLatch};
use crate::heap::IndexedHeap;
use crate::mk::Pattern;
use crate::policy::{GpuCaps, TenantId};
use crate::preempt;
use alloc::{vec, vec::Vec};

/// Bound on the deadlines looked at.
pub(crate) const MAX_POINTS: u128 = 100_000;
/// The same where the policy asks, when a tenant comes: a millisecond's worth.
const POLICY_POINTS: u128 = 10_000;

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
    /// What its release number `k` adds to the most work with release and deadline within an interval, ns.
    fn step(&self, k: u64) -> u128 {
        (self.pattern.most(k + 1) - self.pattern.most(k)) * u128::from(self.cost)
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
    bounded_test(tasks, foreign, room, caps, MAX_POINTS)
}

fn bounded_test(
    tasks: &[Task],
    foreign: u64,
    room: u64,
    caps: &GpuCaps,
    most: u128,
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
    if points > most {
        return Err(overload(end));
    }
    let mut blockers = Blockers::new(tasks, foreign);
    // What is spare at the tightest deadline since each task came into view, and those before it.
    let mut spare = vec![known; tasks.len()];
    let mut demand = 0u128;
    // By time: each task's next deadline, and the number of its release.
    let mut next = IndexedHeap::new(tasks.len());
    for (i, task) in tasks.iter().enumerate() {
        next.set(i, (task.reduced(), 0));
    }
    while let Some((i, (t, k))) = next.peek() {
        if t > end {
            break;
        }
        let task = &tasks[i];
        demand += task.step(k);
        _ = match t.checked_add(task.period) {
            Some(then) => next.set(i, (then, k + 1)),
            None => next.remove(i),
        };
        // Of deadlines at the same time the last one's sum decides.
        if next.peek().is_some_and(|(_, (then, _))| then == t) {
            continue;
        }
        blockers.advance(t);
        let blocking = match blockers.longest() {
            0 => 0,
            chunk => block(chunk),
        };
        let total = demand + u128::from(blocking);
        if total > u128::from(t) {
            return Err(Shortage { interval: t, demand: saturate(total) });
        }
        let tightest = &mut spare[blockers.inside - 1];
        *tightest = (t - saturate(demand)).min(*tightest);
    }
    // A task's blocking shows in every interval from its first deadline on.
    let mut tolerance = vec![known; tasks.len()];
    let mut least = known;
    for (&i, spare) in blockers.by_view.iter().zip(spare).rev() {
        least = least.min(spare);
        tolerance[i] = least;
    }
    Ok(Passed { tolerance })
}

/// The longest job that may run when an interval begins although its deadline is beyond it, as the interval grows.
struct Blockers<'a> {
    tasks: &'a [Task],
    foreign: u64,
    /// Tasks in the order in which they come into view.
    by_view: Vec<usize>,
    /// How many of them have a deadline within the interval.
    inside: usize,
    /// Whether any of these may be blocked by elastic and background work.
    open: bool,
    /// Whose these are, if one tenant's.
    alone: Option<TenantId>,
    /// Tasks by deadline, each with the longest job of it and all after it, its tenant's, and the longest of others.
    beyond: Vec<Beyond>,
    /// How many of them are due within the interval.
    due: usize,
}

#[derive(Clone, Copy)]
struct Beyond {
    deadline: u64,
    longest: u64,
    tenant: TenantId,
    others: u64,
}

impl<'a> Blockers<'a> {
    fn new(tasks: &'a [Task], foreign: u64) -> Self {
        let mut by_view: Vec<usize> = (0..tasks.len()).collect();
        by_view.sort_by_key(|&i| tasks[i].reduced());
        let mut by_deadline: Vec<&Task> = tasks.iter().collect();
        by_deadline.sort_by_key(|t| core::cmp::Reverse(t.deadline));
        let mut beyond: Vec<Beyond> = Vec::with_capacity(tasks.len());
        for task in by_deadline {
            let Task { deadline, chunk, tenant, .. } = *task;
            let before = beyond.last().copied();
            let mut all = before.unwrap_or(Beyond { deadline, longest: 0, tenant, others: 0 });
            all.deadline = deadline;
            if tenant == all.tenant {
                all.longest = all.longest.max(chunk);
            } else if chunk > all.longest {
                all = Beyond { deadline, longest: chunk, tenant, others: all.longest };
            } else {
                all.others = all.others.max(chunk);
            }
            beyond.push(all);
        }
        beyond.reverse();
        Self { tasks, foreign, by_view, inside: 0, open: false, alone: None, beyond, due: 0 }
    }

    /// The interval is `t` long now.
    fn advance(&mut self, t: u64) {
        while let Some(task) = self.by_view.get(self.inside).map(|&i| &self.tasks[i])
            && task.reduced() <= t
        {
            self.open |= !task.release_guard;
            let same = self.inside == 0 || self.alone == Some(task.tenant);
            self.alone = same.then_some(task.tenant);
            self.inside += 1;
        }
        while self.beyond.get(self.due).is_some_and(|b| b.deadline <= t) {
            self.due += 1;
        }
    }

    /// A tenant does not block itself: its late latch comes after its own frame, and its next frame after that.
    fn longest(&self) -> u64 {
        let peers = match self.beyond.get(self.due) {
            Some(b) if Some(b.tenant) == self.alone => b.others,
            Some(b) => b.longest,
            None => 0,
        };
        if self.open { peers.max(self.foreign) } else { peers }
    }
}

/// Per task: the blocking at its release that harms nobody, beside no other blocking, ns; zero where that takes
/// too long to find out.
pub(crate) fn tolerances(tasks: &[Task], caps: &GpuCaps) -> Vec<u64> {
    // No task tolerates more than it has until it is due.
    let widest = tasks.iter().map(Task::reduced).max().unwrap_or(0);
    bounded_test(tasks, 0, widest, caps, POLICY_POINTS)
        .or_else(|_| bounded_test(tasks, 0, 0, caps, POLICY_POINTS))
        .map_or_else(|_| vec![0; tasks.len()], |p| p.tolerance)
}

#[cfg(test)]
#[path = "demand_tests.rs"]
mod tests;
