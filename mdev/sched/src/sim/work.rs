//! The modelled guests: what each asks for at a vblank, and whether that keeps its contract.
//!
//! What a tenant draws for a vblank follows from the seed, the tenant and the vblank alone, so that every policy
//! is given the same frames, whatever it made of those before.

use super::cost::{Cost, Numbers};
use super::outcome::OwnCause;
use super::scenario::{Flood, Frames, MAX_JOBS, Trace, Work};
use crate::contract::{Class, Contract};
use crate::demand;
use crate::policy::GpuCaps;

/// Names of the independent streams of numbers.
const FRAMES: u64 = 1;
const SCENE: u64 = 2;
const FLOOD: u64 = 3;
const PHASE: u64 = 4;

/// When a frame's jobs are submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Timing {
    /// The first at `times[0]` after the vblank, each other one `times[i]` after the end of the one before.
    Following,
    /// At `times[i]` after the vblank.
    Recorded,
}

/// What a guest asks for at one vblank. All times in ns.
#[derive(Clone, Copy, Debug)]
pub(super) struct Demand {
    pub(super) timing: Timing,
    pub(super) jobs: u16,
    pub(super) costs: [u64; MAX_JOBS],
    pub(super) times: [u64; MAX_JOBS],
    pub(super) late_latch: Option<u64>,
}

impl Demand {
    const fn none(timing: Timing, jobs: usize) -> Self {
        Self {
            timing,
            jobs: jobs as u16,
            costs: [0; MAX_JOBS],
            times: [0; MAX_JOBS],
            late_latch: None,
        }
    }

    fn jobs(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.costs.iter().copied().zip(self.times).take(usize::from(self.jobs))
    }

    /// Pauses between the jobs, each at most what it would be if the GPU ran every job at once.
    fn pauses(&self) -> impl Iterator<Item = u64> + '_ {
        let mut end = 0;
        self.jobs().enumerate().filter_map(move |(i, (cost, time))| {
            let pause = match self.timing {
                Timing::Following => time,
                Timing::Recorded => time.saturating_sub(end),
            };
            end = end.max(time) + cost;
            (i > 0).then_some(pause)
        })
    }
}

/// The frames of a tenant, drawn and judged.
#[derive(Debug)]
pub(super) struct Source<'a> {
    work: &'a Work,
    keys: [u64; 2],
    /// The first vblank of the run.
    first: u64,
    scene_offset: u64,
}

impl<'a> Source<'a> {
    pub(super) fn new(work: &'a Work, seed: u64, tenant: usize, first: u64) -> Self {
        let keys = [seed, tenant as u64];
        let scene_offset = Numbers::of([keys[0], keys[1], SCENE]).next_number() >> 1;
        Self { work, keys, first, scene_offset }
    }

    /// What the guest asks for at vblank `slot`; `None` for a flood.
    pub(super) fn at(&self, slot: u64) -> Option<Demand> {
        match self.work {
            Work::Frames(frames) => Some(self.frame(frames, slot)),
            Work::Trace(trace) => Some(self.recorded(trace, slot)),
            Work::Flood(_) => None,
        }
    }

    fn frame(&self, frames: &Frames, slot: u64) -> Demand {
        let mut numbers = Numbers::of([self.keys[0], self.keys[1], FRAMES, slot]);
        let mut demand = Demand::none(Timing::Following, frames.jobs.len());
        let mut factor = 1.0;
        if let Some(s) = frames.scene_change {
            let place = self.scene_offset.wrapping_add(slot) % u64::from(s.every_frames);
            if place < u64::from(s.lasts_frames) {
                factor *= s.factor;
            }
        }
        if let Some(o) = frames.overrun
            && numbers.unit() < o.chance
        {
            factor *= o.factor;
        }
        demand.times[0] = numbers.draw(&frames.wake);
        for (i, cost) in frames.jobs.iter().enumerate() {
            demand.costs[i] = scaled(numbers.draw(cost), factor);
            if i > 0 {
                demand.times[i] = numbers.draw(&frames.gap);
            }
        }
        demand.late_latch = frames.late_latch.as_ref().map(|cost| numbers.draw(cost));
        demand
    }

    fn recorded(&self, trace: &Trace, slot: u64) -> Demand {
        let index = (slot - self.first) % trace.frames.len() as u64;
        let frame = &trace.frames[index as usize];
        let mut demand = Demand::none(Timing::Recorded, frame.jobs.len());
        for (i, job) in frame.jobs.iter().enumerate() {
            demand.costs[i] = job.cost.0;
            demand.times[i] = job.submit.0;
        }
        demand.late_latch = frame.late_latch.map(|l| l.0);
        demand
    }
}

fn scaled(cost: u64, factor: f64) -> u64 {
    ((cost as f64 * factor) as u64).max(1)
}

/// A flood's jobs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Jobs<'a> {
    flood: &'a Flood,
    numbers: Numbers,
    /// Where in its bursts the run begins.
    offset: u64,
}

impl<'a> Jobs<'a> {
    pub(super) fn new(flood: &'a Flood, seed: u64, tenant: usize) -> Self {
        let mut numbers = Numbers::of([seed, tenant as u64, FLOOD]);
        let offset = flood.burst.map_or(0, |b| numbers.next_number() % (b.on.0 + b.off.0));
        Self { flood, numbers, offset }
    }

    pub(super) fn cost(&mut self) -> u64 {
        self.numbers.draw(&self.flood.cost)
    }

    /// When a job that could be submitted `since` ns after the run's start is.
    pub(super) fn next(&self, since: u64) -> u64 {
        let Some(burst) = self.flood.burst else { return since };
        let cycle = burst.on.0 + burst.off.0;
        let place = (since + self.offset) % cycle;
        if place < burst.on.0 { since } else { since + (cycle - place) }
    }
}

/// A phase anywhere in a period.
pub(super) fn random_phase(period: u64, seed: u64, tenant: usize) -> u64 {
    Numbers::of([seed, tenant as u64, PHASE]).next_number() % period.max(1)
}

/// Keeps account of whether a tenant's own demand keeps its contract, as if nobody else were there.
#[derive(Debug)]
pub(super) struct Judge {
    contract: Contract,
    /// The contract's jobs per frame: what admission charges switches and pauses for.
    jobs: u64,
    switch: u64,
    longest: u64,
    debt: u64,
    last: u64,
}

impl Judge {
    /// `grace`: how much longer than `max_job` a job may run, ns.
    pub(super) fn new(contract: &Contract, caps: &GpuCaps, grace: u64, first: u64) -> Self {
        Self {
            contract: *contract,
            jobs: demand::jobs_per_frame(contract),
            switch: caps.switch_cost.0,
            longest: contract.max_job.0.saturating_add(grace),
            debt: 0,
            last: first,
        }
    }

    /// Judges the frame of vblank `slot`. `disturbed`: one before it left the contract and is still under way.
    pub(super) fn judge(&mut self, slot: u64, d: &Demand, disturbed: bool) -> Option<OwnCause> {
        let c = self.contract;
        if c.class != Class::Reserved {
            return None;
        }
        // Every vblank since the last frame has repaid up to a budget; this one's still counts as withheld.
        let passed = (slot - self.last).saturating_sub(1);
        self.last = slot;
        self.debt = self.debt.saturating_sub(c.budget.0.saturating_mul(passed));
        let owes = self.debt > 0;
        let withheld = self.debt.min(c.budget.0);
        let cut = |cost: u64| cost.min(self.longest);
        let switches = u64::from(d.jobs).saturating_sub(self.jobs) * self.switch;
        let need = d.jobs().map(|(cost, _)| cut(cost)).sum::<u64>() + switches;
        let late_need = d.late_latch.map_or(0, cut);
        let late_budget = c.late_latch.map_or(0, |l| l.budget.0);
        let beyond =
            need.saturating_sub(c.budget.0 - withheld) + late_need.saturating_sub(late_budget);
        let most = c.budget.max(c.max_job).0;
        self.debt = (self.debt - withheld).saturating_add(beyond).min(most);

        let longest = d.jobs().map(|(cost, _)| cost).max().unwrap_or(0);
        if longest.max(d.late_latch.unwrap_or(0)) > c.max_job.0 {
            return Some(OwnCause::MaxJob);
        }
        if need > c.budget.0 || late_need > late_budget {
            return Some(OwnCause::Budget);
        }
        if d.times[0] > c.jitter.0 {
            return Some(OwnCause::Jitter);
        }
        let allowed = (self.jobs - 1).saturating_mul(c.gap.0);
        let (sum, most) = d.pauses().fold((0, 0), |(sum, most), p| (sum + p, p.max(most)));
        if sum > allowed || most > c.gap.0 {
            return Some(OwnCause::Gap);
        }
        (owes || disturbed).then_some(OwnCause::Aftermath)
    }
}

/// Mean demand of a tenant, as a share of the GPU: frames with their late latch and a switch per job, without
/// scene changes' and overruns' place in time; `None` for a flood, which takes what it gets.
pub fn mean_demand(work: &Work, contract: &Contract, caps: &GpuCaps) -> Option<f64> {
    let period = contract.period.num() as f64 / contract.period.den() as f64;
    let switch = caps.switch_cost.0 as f64;
    let per_frame = match work {
        Work::Flood(_) => return None,
        Work::Frames(f) => {
            let scene = f.scene_change.map_or(1.0, |s| {
                let share = f64::from(s.lasts_frames) / f64::from(s.every_frames);
                1.0 + share * (s.factor - 1.0)
            });
            let overrun = f.overrun.map_or(1.0, |o| 1.0 + o.chance * (o.factor - 1.0));
            let jobs: f64 = f.jobs.iter().map(Cost::mean).sum();
            let late = f.late_latch.as_ref().map_or(0.0, |l| l.mean() + switch);
            jobs * scene * overrun + late + switch
        }
        Work::Trace(t) => {
            let frame = |f: &super::scenario::TraceFrame| {
                let jobs: f64 = f.jobs.iter().map(|j| j.cost.0 as f64).sum();
                jobs + f.late_latch.map_or(0.0, |l| l.0 as f64 + switch)
            };
            t.frames.iter().map(frame).sum::<f64>() / t.frames.len() as f64 + switch
        }
    };
    Some(per_frame / period)
}
