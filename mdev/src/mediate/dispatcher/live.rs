//! Stage 4, schedule: slices that come, change and go while the others run.
//!
//! Admission has taken place elsewhere: here a decision is only carried out, in a time that is bounded, and
//! without touching another slice. A contract changes at one of its slice's own vblanks, so that each frame
//! has one contract:
//!
//! ```text
//!            next vblank                     arrived, and `hold` over
//!   First ──────────────────▶ Arriving ───────────────────────────────▶ (none)
//!     │                       an interim contract, or the new one        the new contract
//!     └──────────────────────────────────────────────────────────────▶ (none)
//! ```

use super::{Dispatcher, Life, Slice, SliceLink, tenant};
use crate::mediate::message::{MAX_QUEUED, Post};
use beamline_abi::{Nanos, Reason};
use beamline_sched::{Contract, Ticket};
use std::cmp::Reverse;
use std::sync::atomic::Ordering;

/// What becomes of a slice's contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// What the slice is promised in the end.
    pub contract: Contract,
    /// Where its vblanks go.
    pub way: Way,
    /// What holds on the way, where the promise begins with the arrival only.
    pub interim: Option<Contract>,
    /// How long the interim lasts at least after the last frame of the old contract was due.
    pub hold: Nanos,
}

/// Where a slice's vblanks go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// They stay where they are.
    Stay,
    /// To this phase, by lengthened periods.
    Slew(Nanos),
    /// To the new period's grid at this phase, after one longer period.
    Restart(Nanos),
}

/// How far a change has come.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stage {
    /// It begins at the next vblank.
    First(Change),
    /// It is over once the vblanks have arrived and this time has come; then this holds.
    Arriving(Nanos, Contract),
}

impl Dispatcher {
    /// Takes a slice into a place that is free; gives it back where there is no such place.
    pub fn add(&mut self, index: u16, link: SliceLink) -> Result<(), Box<SliceLink>> {
        match self.slices.get_mut(usize::from(index)) {
            Some(place @ None) => {
                self.vblanks.push(Reverse((link.grid.next_time(), index)));
                *place = Some(Slice::new(index, link));
                self.top = self.top.max(usize::from(index) + 1);
                Ok(())
            }
            _ => Err(Box::new(link)),
        }
    }

    /// Ends a slice: its context, its jobs on the GPU and in the queue, its vblanks. What is left is for
    /// another thread to drop.
    pub fn remove(&mut self, index: u16, now: Nanos) -> Option<SliceLink> {
        self.detach(usize::from(index), now);
        self.wake_posters();
        self.vblanks.retain(|Reverse((_, other))| *other != index);
        let slice = self.slices.get_mut(usize::from(index))?.take()?;
        self.top = self.slices.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
        Some(slice.link)
    }

    /// Begins to change a slice's contract; [`SliceCounters::changing`](super::SliceCounters) is cleared at
    /// the end. A change before has to be over.
    pub fn change(&mut self, index: u16, change: Change) {
        let Some(slice) = self.slice_mut(usize::from(index)) else { return };
        let grid = &mut slice.link.grid;
        match change.way {
            Way::Stay => {}
            Way::Slew(to) => {
                if let Err(error) = grid.slew(to) {
                    tracing::error!(slice = index, %error, "the vblanks stay where they are");
                }
            }
            Way::Restart(phase) => grid.restart(phase, change.contract.period),
        }
        let next = grid.next_time();
        slice.change = Some(Stage::First(change));
        self.vblanks.retain(|Reverse((_, other))| *other != index);
        self.vblanks.push(Reverse((next, index)));
    }

    /// What a change has to do at the vblank of a slice at `time`; `before` is the vblank before it.
    pub(super) fn follow_change(&mut self, index: usize, before: u64, time: Nanos) {
        let Some(slice) = self.slice_mut(index) else { return };
        let Some(stage) = slice.change else { return };
        let arrived = !slice.link.grid.is_slewing();
        match stage {
            Stage::First(Change { contract, interim, hold, .. }) => {
                let due = slice.link.grid.time(before).saturating_add(slice.link.contract.deadline);
                let until = if interim.is_some() { due.saturating_add(hold) } else { time };
                slice.change = Some(Stage::Arriving(until, contract));
                (slice.told, slice.untold) = (contract, true);
                self.switch(index, interim.unwrap_or(contract));
                self.settle(index, arrived && until <= time);
            }
            Stage::Arriving(until, contract) if arrived && until <= time => {
                if slice.link.contract != contract {
                    self.switch(index, contract);
                }
                self.settle(index, true);
            }
            Stage::Arriving(..) => {}
        }
    }

    fn settle(&mut self, index: usize, over: bool) {
        if over && let Some(slice) = self.slice_mut(index) {
            slice.change = None;
            slice.link.counters.changing.store(false, Ordering::Release);
        }
    }

    /// From here on the slice has this contract, and a budget of its own. Its queued jobs leave the policy
    /// until [`Dispatcher::requeue`].
    fn switch(&mut self, index: usize, contract: Contract) {
        let Some(slice) = self.slices.get_mut(index).and_then(Option::as_mut) else { return };
        slice.link.contract = contract;
        if slice.life == Life::Detached {
            return;
        }
        let mut left = slice.jobs;
        for n in 0..self.jobs.capacity() {
            if left == 0 {
                break;
            }
            let Some(entry) = self.jobs.get(n).filter(|e| usize::from(e.slice) == index) else {
                continue;
            };
            if entry.running.is_none() && self.requeued.len() < MAX_QUEUED {
                self.requeued.push((entry.order, Ticket(n)));
            }
            left -= 1;
        }
        self.requeued.sort_unstable();
        self.policy.admit(tenant(index), &slice.link.contract);
    }

    /// Gives the jobs that a switch took out of the policy back to it, in their order. Frames ahead of the
    /// vblank have the new contract's times; those before it keep theirs.
    pub(super) fn requeue(&mut self, index: usize, now: Nanos) {
        let mut requeued = std::mem::take(&mut self.requeued);
        for (_, ticket) in requeued.drain(..) {
            let Some(Some(slice)) = self.slices.get(index) else { break };
            let Some(entry) = self.jobs.get_mut(ticket.0) else { continue };
            if entry.slot >= slice.vblank {
                (entry.release, entry.deadline) =
                    slice.link.bounds(entry.slot, entry.key.late_latch);
            }
            let spec = entry.spec(ticket);
            if self.policy.submit(spec).is_err() {
                self.finish(ticket, now, now, Err(Reason::Quota));
            }
        }
        self.requeued = requeued;
    }

    /// Lets the guest know of a change; the interrupt comes as soon as its poster has room.
    pub(super) fn tell_contract(&mut self, index: usize) {
        let Some(slice) = self.slice_mut(index).filter(|slice| slice.untold) else { return };
        slice.link.beat.contract(slice.told, slice.link.grid.phase());
        let told = self.post(index, Post::Contract);
        if let Some(slice) = self.slice_mut(index) {
            slice.untold = !told;
        }
    }
}
