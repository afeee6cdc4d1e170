//! A GPU in virtual time: who runs when, in each class of preemption. Every cost that a class allows is met
//! in full half of the time, and in part otherwise.

use crate::policy::{GpuCaps, Preemption};
use crate::sim_tests::Numbers;
use alloc::vec::Vec;

#[derive(Clone, Copy, Debug)]
struct Run {
    ticket: u32,
    tenant: u16,
    level: u8,
    /// Its own work since its latest grant, ns.
    cost: u64,
    /// What is left of it, with what it takes to begin, ns; while it does not run.
    rest: u64,
    /// When it leaves the GPU; `None` while it waits below or behind others.
    end: Option<u64>,
    /// It was asked back, and leaves after this much of its own work.
    stops: Option<u64>,
}

/// A job that has left the GPU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Left {
    pub(crate) ticket: u32,
    /// Its own work since its latest grant, ns.
    pub(crate) ran: u64,
    pub(crate) done: bool,
}

#[derive(Debug)]
pub(crate) struct Gpu {
    caps: GpuCaps,
    /// In the order of their grants.
    runs: Vec<Run>,
    last_tenant: Option<u16>,
    numbers: Numbers,
}

impl Gpu {
    pub(crate) fn new(caps: GpuCaps, seed: u64) -> Self {
        Self { caps, runs: Vec::new(), last_tenant: None, numbers: Numbers::new(seed) }
    }

    /// All of `most` half of the time.
    fn draw(&mut self, most: u64) -> u64 {
        if self.numbers.upto(1) == 0 { most } else { self.numbers.upto(most) }
    }

    /// Takes a job of `cost` ns; `resumes`: it has run before.
    pub(crate) fn grant(
        &mut self,
        now: u64,
        ticket: u32,
        tenant: u16,
        level: u8,
        cost: u64,
        resumes: bool,
    ) {
        let at_once = |runs: &[Run], above: bool| {
            runs.iter().filter(|r| (r.level > 0) == above).count()
                < usize::from(self.caps.in_flight)
        };
        match self.caps.preemption {
            Preemption::None => {
                // More than `in_flight` only of one tenant, which is alone.
                let ahead = self.runs.len() < usize::from(self.caps.in_flight + self.caps.ahead)
                    && self.runs.iter().all(|r| r.tenant == tenant);
                assert!(level == 0 && (at_once(&self.runs, false) || ahead));
            }
            Preemption::Full { .. } => assert!(level == 0 && self.runs.is_empty()),
            Preemption::Levels { levels, .. } => {
                assert!(level < levels);
                assert!(level > 0 || at_once(&self.runs, false));
                assert!(level == 0 || self.runs.iter().all(|r| r.level == 0));
            }
        }
        let overhead = match self.caps.preemption {
            Preemption::Full { cost } if resumes => self.draw(cost.0),
            _ => 0,
        };
        let rest = overhead + cost;
        self.runs.push(Run { ticket, tenant, level, cost, rest, end: None, stops: None });
        self.settle(now);
    }

    /// Asks a job back.
    pub(crate) fn ask_back(&mut self, now: u64, ticket: u32) {
        let Preemption::Full { cost } = self.caps.preemption else {
            panic!("this GPU gives no job back");
        };
        let delay = self.draw(cost.0);
        let ends_first = self.numbers.upto(1) == 0;
        let run = self.runs.iter_mut().find(|r| r.ticket == ticket).expect("it runs");
        assert!(run.stops.is_none(), "asked back twice");
        let end = run.end.expect("it runs");
        if end - now <= delay && ends_first {
            return;
        }
        let begun = end - run.cost;
        run.stops = Some(now.saturating_sub(begun).min(run.cost));
        run.end = Some(now + delay);
    }

    /// When the next job leaves.
    pub(crate) fn next(&self) -> Option<u64> {
        self.runs.iter().filter_map(|r| r.end).min()
    }

    /// A job that leaves at `now`.
    pub(crate) fn left(&mut self, now: u64) -> Option<Left> {
        let i = self.runs.iter().position(|r| r.end == Some(now))?;
        let run = self.runs.remove(i);
        let ran = run.stops.unwrap_or(run.cost);
        Some(Left { ticket: run.ticket, ran, done: run.stops.is_none() })
    }

    /// Gives the GPU to the first job of the highest level, if another one has it.
    pub(crate) fn settle(&mut self, now: u64) {
        let highest = self.runs.iter().map(|r| r.level).max();
        let top = self.runs.iter().position(|r| Some(r.level) == highest);
        let Some(top) = top.filter(|&i| self.runs[i].end.is_none()) else {
            return;
        };
        let grain = match self.caps.preemption {
            Preemption::Levels { grain, .. } => grain.0,
            _ => 0,
        };
        let mut start = now;
        for i in 0..self.runs.len() {
            let Some(end) = self.runs[i].end else { continue };
            let gone = now + self.draw(grain);
            if end <= gone {
                start = start.max(end);
            } else {
                start = start.max(gone);
                self.runs[i].rest = end - gone;
                self.runs[i].end = None;
            }
        }
        let run = &mut self.runs[top];
        if self.last_tenant != Some(run.tenant) {
            start += self.caps.switch_cost.0;
        }
        self.last_tenant = Some(run.tenant);
        run.end = Some(start + run.rest);
    }
}
