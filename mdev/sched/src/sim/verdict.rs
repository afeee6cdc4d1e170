//! The verdicts on one tenant's frames: which count, which were in time, and whose doing it was where they were not.

use super::outcome::{OwnCause, TenantOutcome};
use crate::contract::{Class, Contract};
use beamline_abi::Nanos;
use std::collections::VecDeque;

#[derive(Debug)]
pub(super) struct Verdicts {
    contract: Contract,
    phase: u64,
    /// Frames count whose vblank and deadline lie in this time.
    counted: (u64, u64),
    /// Missed frames in a row that kept the contract.
    run: u64,
    /// The latest missed frames, as many as the contract allows.
    missed: VecDeque<u64>,
    pub(super) out: TenantOutcome,
}

impl Verdicts {
    pub(super) fn new(name: &str, c: &Contract, phase: Nanos, counted: (u64, u64)) -> Self {
        let mut out = TenantOutcome::new(name, c);
        out.phase = phase;
        let missed = VecDeque::with_capacity(allowed_misses(c));
        Self { contract: *c, phase: phase.0, counted, run: 0, missed, out }
    }

    /// The time of a vblank.
    pub(super) fn time(&self, slot: u64) -> u64 {
        self.phase + self.contract.period.times(slot).0
    }

    pub(super) fn deadline(&self, slot: u64) -> u64 {
        self.time(slot) + self.contract.deadline.0
    }

    /// Counts a job that has left the GPU.
    pub(super) fn job_left(&mut self, now: u64, killed: bool) {
        let counts = u64::from(now >= self.counted.0);
        self.out.jobs += counts;
        self.out.killed += counts * u64::from(killed);
    }

    /// Notes a missed frame; answers whether the contract allows it: with it, at most m of the last k frames
    /// are missed.
    fn excuses(&mut self, slot: u64) -> bool {
        let allowed = allowed_misses(&self.contract);
        if allowed == 0 {
            return false;
        }
        let window = u64::from(self.contract.miss.frames);
        let full = self.missed.len() == allowed;
        let oldest = if full { self.missed.pop_front() } else { None };
        self.missed.push_back(slot);
        oldest.is_none_or(|oldest| oldest + window <= slot)
    }

    pub(super) fn counts(&self, slot: u64) -> bool {
        let (from, to) = self.counted;
        self.time(slot) >= from && self.deadline(slot) <= to
    }

    /// Counts the `stale` vblanks before `slot`, the last `kept` of which are not the tenant's own doing; the
    /// image before them stood until `now`.
    pub(super) fn count_stale(&mut self, stale: u64, kept: u64, slot: u64, now: u64) {
        for back in (1..=stale).rev() {
            let cause = (back > kept).then_some(OwnCause::Aftermath);
            self.out.stale += u64::from(self.counts(slot - back));
            self.count(slot - back, cause, false, now);
        }
    }

    /// Counts the frame of `slot`, which ended at `now`.
    pub(super) fn count(&mut self, slot: u64, cause: Option<OwnCause>, in_time: bool, now: u64) {
        if !self.counts(slot) {
            return;
        }
        self.out.frames.count(in_time);
        let excused = !in_time && self.excuses(slot);
        if let Some(cause) = cause {
            self.out.own[cause as usize].count(in_time);
            return;
        }
        self.out.kept.count(in_time);
        self.out.excused += u64::from(excused);
        self.out.completed(now.saturating_sub(self.time(slot)));
        self.run = if in_time { 0 } else { self.run + 1 };
        self.out.miss_run = self.out.miss_run.max(self.run);
    }
}

/// Misses that a contract promises to allow for, within reason: a frame beyond that many counts as missed.
fn allowed_misses(c: &Contract) -> usize {
    if c.class == Class::Reserved { c.miss.misses.min(65_536) as usize } else { 0 }
}
