//! Stage 10, harness: which frames were due, and whether each came in time.
//!
//! A slice whose guest paces itself owes one frame per vblank, so each vblank is a slot, with or without a
//! frame. Other slices owe what they submitted. The words, per slot:
//!
//! * *in budget*: every job, the late latch included, was done by the frame's deadline.
//! * *own overrun*: the frame's jobs used more GPU time than the contract's budget or one exceeded the
//!   longest job, or its first job was submitted later than release plus jitter for no fault of the host.
//! * *kept*: the guest kept its contract: no own overrun, and no skip of its own making.
//! * *late latch in budget*: started within its window, and done by its deadline.

use crate::cause::{self, Cause, Earlier, Start};
use crate::frames::{Frame, SliceRun, Vblank, Window};
use crate::meta::ContractMeta;
use crate::stamp::SliceIndex;
use crate::timeline::Timeline;
use beamline_abi::{Generation, Nanos};
use std::collections::BTreeMap;

/// One frame that was due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Which life of the slice.
    pub generation: Generation,
    /// The vblank's sequence; 0 for slices that are not paced.
    pub seq: u64,
    /// When the frame was released: the vblank's place on the grid.
    pub release: Nanos,
    /// When it was due.
    pub deadline: Nanos,
    /// Its place in [`SliceRun::frames`]; `None` if the guest made none.
    pub frame: Option<usize>,
    /// Every job was done in time.
    pub in_budget: bool,
    /// The guest's own overrun.
    pub own_overrun: bool,
    /// The guest kept its contract.
    pub kept: bool,
    /// Whether the late latch was in budget; `None` where the contract has none.
    pub latch: Option<bool>,
    /// Completion after release, late latch apart; `None` unless all jobs are done.
    pub completion: Option<Nanos>,
    /// Why the frame was missed, or shown late: [`Cause::Present`] goes with `in_budget`.
    pub cause: Option<Cause>,
}

/// The slots of one slice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slots {
    /// By time, within the window.
    pub slots: Vec<Slot>,
    /// Frames beyond one per vblank.
    pub extra: u64,
    /// Vblanks within the window that were never emitted.
    pub vblanks_lost: u64,
}

/// The most vblanks that are filled in where sequence numbers are missing, per slice.
const MAX_FILLED: u64 = 100_000;

/// Where a frame may be expected.
#[derive(Clone, Copy)]
struct Due {
    generation: Generation,
    seq: u64,
    release: Nanos,
    emitted: Option<Nanos>,
    frame: Option<usize>,
}

/// Judges one slice. What is released before `window`, or due after it, is left out.
pub fn judge(
    slice: SliceIndex,
    run: &SliceRun,
    contract: &ContractMeta,
    timeline: &Timeline,
    window: Window,
    gpu_clock_err: Nanos,
) -> Slots {
    let mut out = Slots::default();
    let mut due = if contract.paced { grid(run, contract) } else { Vec::new() };
    place(run, contract, &mut due, &mut out.extra);
    let ctx = Ctx { slice, run, contract, timeline, gpu_clock_err, shows: shows(run) };
    let mut earlier: Option<(Generation, Earlier)> = None;
    for slot in due {
        let before = earlier.filter(|(g, _)| *g == slot.generation).map(|(_, e)| e);
        let judged = ctx.judge(&slot, before);
        if let Some(frame) = slot.frame {
            let handled = run.frames[frame].handled().unwrap_or(Nanos::MAX);
            let cause = judged.cause.filter(|_| !judged.in_budget);
            earlier = Some((slot.generation, Earlier { handled, cause }));
        }
        if judged.release.0 >= window.from_ns && judged.deadline.0 <= window.to_ns {
            out.vblanks_lost += u64::from(slot.emitted.is_none() && contract.paced);
            out.slots.push(judged);
        }
    }
    out
}

/// The vblanks of a slice, with those filled in that were never emitted.
fn grid(run: &SliceRun, contract: &ContractMeta) -> Vec<Due> {
    let mut due: Vec<Due> = Vec::new();
    let mut filled = 0;
    for (&(generation, seq), vblank) in &run.vblanks {
        let Vblank { tick: Some((time, emitted)), .. } = *vblank else { continue };
        if let Some(last) = due.last().copied().filter(|l| l.generation == generation) {
            let lost = seq - last.seq - 1;
            let span = time.saturating_sub(last.release).0;
            // Sequence numbers count periods: anything else is not a gap in the grid.
            let periods = span / contract.period().0;
            let plausible = periods <= lost.saturating_mul(2).saturating_add(2)
                && lost <= periods.saturating_mul(2).saturating_add(2);
            if lost > 0 && plausible && lost <= MAX_FILLED - filled {
                filled += lost;
                due.extend((1..=lost).map(|i| Due {
                    generation,
                    seq: last.seq + i,
                    release: Nanos(
                        last.release.0
                            + (u128::from(span) * u128::from(i) / u128::from(lost + 1)) as u64,
                    ),
                    emitted: None,
                    frame: None,
                }));
            }
        }
        due.push(Due { generation, seq, release: time, emitted: Some(emitted), frame: None });
    }
    due
}

/// Gives each frame its slot: that of the latest vblank at its release.
fn place(run: &SliceRun, contract: &ContractMeta, due: &mut Vec<Due>, extra: &mut u64) {
    let slack = Nanos(contract.period().0 / 16);
    for (index, frame) in run.frames.iter().enumerate() {
        let Some(release) = frame.release().or(frame.submitted()) else { continue };
        let key = (frame.generation, release.saturating_add(slack));
        if contract.paced {
            let after = due.partition_point(|d| (d.generation, d.release) <= key);
            let slot = after.checked_sub(1).map(|i| &mut due[i]);
            match slot.filter(|d| d.generation == frame.generation) {
                Some(slot) if slot.frame.is_none() => slot.frame = Some(index),
                _ => *extra += 1,
            }
        } else if frame.deadline() != Some(Nanos::MAX) {
            // Background work without a deadline owes nothing.
            let generation = frame.generation;
            due.push(Due { generation, seq: 0, release, emitted: None, frame: Some(index) });
        }
    }
    due.sort_by_key(|d| (d.generation, d.release));
}

/// For each life of the slice that shows frames at all, its vblanks by time.
fn shows(run: &SliceRun) -> BTreeMap<Generation, Vec<(Nanos, u64)>> {
    let mut shows: BTreeMap<_, Vec<_>> = run
        .frames
        .iter()
        .filter(|f| f.presented.is_some())
        .map(|f| (f.generation, Vec::new()))
        .collect();
    for (&(generation, seq), vblank) in &run.vblanks {
        if let (Some((time, _)), Some(list)) = (vblank.tick, shows.get_mut(&generation)) {
            list.push((time, seq));
        }
    }
    for list in shows.values_mut() {
        list.sort_unstable();
    }
    shows
}

struct Ctx<'a> {
    slice: SliceIndex,
    run: &'a SliceRun,
    contract: &'a ContractMeta,
    timeline: &'a Timeline,
    gpu_clock_err: Nanos,
    shows: BTreeMap<Generation, Vec<(Nanos, u64)>>,
}

impl Ctx<'_> {
    fn judge(&self, due: &Due, earlier: Option<Earlier>) -> Slot {
        let paced = self.contract.paced;
        let handled = self.run.first_handled(due.generation, due.seq).map(|(_, at)| at);
        let frame = due.frame.map(|i| &self.run.frames[i]);
        let promised = due.release.saturating_add(Nanos(self.contract.deadline_ns));
        // A promise is judged by the contract, not by what the scheduler made of it. Work that paces
        // itself has no grid: there the scheduler's word is the promise.
        let deadline = frame.filter(|_| !paced).and_then(Frame::deadline);
        let start = Start {
            release: due.release,
            deadline: deadline.unwrap_or(promised),
            // Without a vblank to wait for, none can be late.
            emitted: if paced { due.emitted } else { Some(due.release) },
            handled: handled.filter(|_| paced),
            earlier,
        };
        let slot = Slot {
            generation: due.generation,
            seq: due.seq,
            release: due.release,
            deadline: start.deadline,
            frame: due.frame,
            in_budget: false,
            own_overrun: false,
            kept: false,
            latch: (self.contract.late_latch_ns > 0).then_some(false),
            completion: None,
            cause: None,
        };
        if let Some(frame) = frame {
            return self.judge_frame(slot, frame, &start);
        }
        let cause = cause::of_skipped(&start, self.contract);
        Slot { cause: Some(cause), kept: !cause.is_the_guests(), ..slot }
    }

    fn judge_frame(&self, slot: Slot, frame: &Frame, start: &Start) -> Slot {
        let contract = self.contract;
        let in_budget = frame.jobs.len() >= usize::from(frame.expected)
            && frame.jobs.iter().all(|j| j.in_time(start.deadline));
        let excess = cause::gpu_excess(contract, contract.budget_ns, frame.main_jobs());
        let lateness = frame.submitted().map(|at| start.lateness(contract, at)).unwrap_or_default();
        let own_overrun = excess > Nanos::ZERO || lateness.own > Nanos::ZERO;
        let cause = if in_budget {
            self.shown_late(frame, start.deadline).then_some(Cause::Present)
        } else {
            let (cause, _) = cause::of_frame(self.slice, frame, start, contract, self.timeline);
            Some(cause)
        };
        // A frame that was missed by its guest's fault did not keep the contract, even where no single
        // term of it was exceeded: a failed job, a gap that was too long, stuffing.
        let at_fault = !in_budget && cause.is_some_and(Cause::is_the_guests);
        Slot {
            in_budget,
            own_overrun,
            kept: !own_overrun && !at_fault,
            latch: slot.latch.map(|_| self.latch_in_budget(frame, start.deadline)),
            completion: frame.done().map(|done| done.saturating_sub(start.release)),
            cause,
            ..slot
        }
    }

    fn latch_in_budget(&self, frame: &Frame, deadline: Nanos) -> bool {
        frame.late_latch().is_some_and(|latch| {
            let opens = deadline.saturating_sub(Nanos(self.contract.late_latch_ns));
            let opens = opens.saturating_sub(self.gpu_clock_err);
            latch.in_time(deadline) && latch.first_run.is_some_and(|at| at >= opens)
        })
    }

    /// Whether a frame that was complete in time missed the vblank it was made for.
    fn shown_late(&self, frame: &Frame, deadline: Nanos) -> bool {
        let Some(list) = self.shows.get(&frame.generation) else { return false };
        let slack = Nanos(self.contract.period().0 / 64);
        let due = list.partition_point(|(time, _)| time.saturating_add(slack) < deadline);
        let Some((_, seq)) = list.get(due) else { return false };
        frame.presented.is_none_or(|shown| shown.seq > *seq)
    }
}

#[cfg(test)]
#[path = "slots_tests.rs"]
mod tests;
