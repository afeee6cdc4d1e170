//! The modelled GPU: one engine that runs one job at a time, in the order of their grants within a level.
//!
//! Changing from one tenant to another takes `switch_cost`. How a running job makes room:
//!
//! * [`Preemption::None`]: it runs to its end.
//! * [`Preemption::Levels`]: once a job of a higher level is granted, the lower one keeps the GPU for `grain` at
//!   most, then waits as the first of its level and goes on by itself.
//! * [`Preemption::Full`]: a job that is asked back stops at once and is off the GPU after `cost`; granted again,
//!   it first takes `cost` to go on.
//!
//! A bound named "the longest" is always taken in full: what holds here holds on a GPU that is quicker.

use super::ledger::{Label, Ledger};
use super::outcome::Doing;
use crate::policy::{GpuCaps, Preemption};
use std::collections::VecDeque;

/// A granted job.
#[derive(Clone, Copy, Debug)]
pub(super) struct Granted {
    pub(super) ticket: u32,
    pub(super) label: Label,
    pub(super) level: u8,
    /// Work until its end, ns.
    pub(super) left: u64,
    /// Part of it has run before this grant, or before a higher level took the GPU.
    pub(super) begun: bool,
    /// Work since this grant, ns.
    pub(super) ran: u64,
}

/// A granted job that leaves the GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// At its end.
    Done { ticket: u32, ran: u64 },
    /// Asked back.
    Off { ticket: u32, ran: u64 },
}

#[derive(Clone, Copy, Debug)]
struct Active {
    job: Granted,
    /// The job's work begins at `work`, after the switch (until `switched`) and the cost of going on.
    from: u64,
    switched: u64,
    work: u64,
    /// It is asked back, and off at this time.
    off: Option<u64>,
}

impl Active {
    fn end(&self) -> u64 {
        self.off.unwrap_or(self.work + self.job.left)
    }
}

#[derive(Debug)]
pub(super) struct Gpu {
    switch_cost: u64,
    preemption: Preemption,
    active: Option<Active>,
    /// Granted and waiting: higher levels first, then in order.
    waiting: VecDeque<Granted>,
    /// When a higher level takes the GPU from the active job.
    takeover: Option<u64>,
    last_tenant: Option<u16>,
    pub(super) ledger: Ledger,
}

impl Gpu {
    pub(super) fn new(caps: &GpuCaps, max_jobs: usize, ledger: Ledger) -> Self {
        Self {
            switch_cost: caps.switch_cost.0,
            preemption: caps.preemption,
            active: None,
            waiting: VecDeque::with_capacity(max_jobs),
            takeover: None,
            last_tenant: None,
            ledger,
        }
    }

    /// When something happens next by itself.
    pub(super) fn next_event(&self) -> Option<u64> {
        let end = self.active.as_ref()?.end();
        Some(self.takeover.map_or(end, |t| t.min(end)))
    }

    pub(super) fn grant(&mut self, now: u64, job: Granted) {
        let at = self.waiting.iter().position(|w| w.level < job.level);
        self.waiting.insert(at.unwrap_or(self.waiting.len()), job);
        match &self.active {
            None => self.start(now),
            Some(active) => {
                if let Preemption::Levels { grain, .. } = self.preemption
                    && job.level > active.job.level
                {
                    let at = now + grain.0;
                    self.takeover = Some(self.takeover.map_or(at, |t| t.min(at)));
                }
            }
        }
    }

    /// Asks a granted job back.
    pub(super) fn preempt(&mut self, now: u64, ticket: u32) -> Option<Left> {
        let Preemption::Full { cost } = self.preemption else {
            debug_assert!(false, "job {ticket} was asked back, which this GPU cannot do");
            return None;
        };
        if let Some(mut active) = self.active.filter(|a| a.job.ticket == ticket && a.off.is_none())
        {
            self.stop(&mut active, now);
            let off = now + cost.0;
            self.ledger.add(now, off, active.job.label, Doing::Preempt);
            active.off = Some(off);
            self.active = Some(active);
            return None;
        }
        let at = self.waiting.iter().position(|w| w.ticket == ticket)?;
        let job = self.waiting.remove(at)?;
        Some(Left::Off { ticket, ran: job.ran })
    }

    /// What leaves the GPU by `now`, one job per call; to be called until it answers `None`.
    pub(super) fn poll(&mut self, now: u64) -> Option<Left> {
        loop {
            let mut active = self.active?;
            let end = active.end();
            if end <= now {
                self.active = None;
                self.takeover = None;
                let ticket = active.job.ticket;
                let left = if active.off.is_some() {
                    Left::Off { ticket, ran: active.job.ran }
                } else {
                    self.stop(&mut active, end);
                    Left::Done { ticket, ran: active.job.ran }
                };
                self.start(end);
                return Some(left);
            }
            let at = self.takeover.filter(|&t| t <= now)?;
            self.takeover = None;
            self.stop(&mut active, at);
            let first = self.waiting.iter().position(|w| w.level <= active.job.level);
            self.waiting.insert(first.unwrap_or(self.waiting.len()), active.job);
            self.active = None;
            self.start(at);
        }
    }

    /// Books what the active job has done until the run's end.
    pub(super) fn finish(&mut self, now: u64) {
        if let Some(mut active) = self.active.take().filter(|a| a.off.is_none()) {
            self.stop(&mut active, now);
        }
    }

    fn start(&mut self, now: u64) {
        let Some(job) = self.waiting.pop_front() else { return };
        let switch = if self.last_tenant == Some(job.label.tenant) { 0 } else { self.switch_cost };
        self.last_tenant = Some(job.label.tenant);
        let resume = match self.preemption {
            Preemption::Full { cost } if job.begun => cost.0,
            _ => 0,
        };
        let switched = now + switch;
        let work = switched + resume;
        self.active = Some(Active { job, from: now, switched, work, off: None });
    }

    /// Takes the work that was done until `now` off the job, and books it.
    fn stop(&mut self, active: &mut Active, now: u64) {
        let label = active.job.label;
        self.ledger.add(active.from, active.switched.min(now), label, Doing::Switch);
        self.ledger.add(active.switched.min(now), active.work.min(now), label, Doing::Preempt);
        self.ledger.add(active.work.min(now), now, label, Doing::Work);
        let ran = now.saturating_sub(active.work);
        active.job.left -= ran;
        active.job.ran += ran;
        active.job.begun |= ran > 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use beamline_abi::Nanos;
    use std::vec;
    use std::vec::Vec;

    fn gpu(preemption: Preemption) -> Gpu {
        let caps = GpuCaps {
            in_flight: 4,
            ahead: 0,
            switch_cost: Nanos(10),
            guard_margin: Nanos::ZERO,
            preemption,
        };
        Gpu::new(&caps, 8, Ledger::new(4, 0, 100_000, 0, true))
    }

    fn job(ticket: u32, tenant: u16, level: u8, left: u64) -> Granted {
        let label = Label { tenant, slot: 0, job: 0, late_latch: false };
        Granted { ticket, label, level, left, begun: false, ran: 0 }
    }

    /// Runs until nothing is left; answers what left when.
    fn drain(gpu: &mut Gpu) -> Vec<(u64, Left)> {
        let mut out = vec![];
        while let Some(now) = gpu.next_event() {
            while let Some(left) = gpu.poll(now) {
                out.push((now, left));
            }
        }
        out
    }

    fn spans(gpu: &Gpu) -> Vec<(u16, Doing, u64, u64)> {
        gpu.ledger.timeline().iter().map(|s| (s.tenant, s.doing, s.from.0, s.to.0)).collect()
    }

    #[test]
    fn without_preemption_jobs_run_in_order_and_switches_cost() {
        let mut gpu = gpu(Preemption::None);
        for (ticket, tenant) in [(0, 0), (1, 1), (2, 1)] {
            gpu.grant(0, job(ticket, tenant, 0, 100));
        }
        let done = |at, ticket| (at, Left::Done { ticket, ran: 100 });
        assert_eq!(drain(&mut gpu), [done(110, 0), done(220, 1), done(320, 2)]);
        assert_eq!(
            spans(&gpu),
            [
                (0, Doing::Switch, 0, 10),
                (0, Doing::Work, 10, 110),
                (1, Doing::Switch, 110, 120),
                (1, Doing::Work, 120, 220),
                (1, Doing::Work, 220, 320),
            ]
        );
    }

    #[test]
    fn a_higher_level_takes_the_gpu_within_the_grain_and_the_lower_goes_on() {
        let mut gpu = gpu(Preemption::Levels { levels: 2, grain: Nanos(20) });
        gpu.grant(0, job(0, 0, 0, 100));
        assert_eq!(gpu.poll(50), None);
        gpu.grant(50, job(1, 1, 1, 30));
        // 0 has run from 10 to 70; 1 runs from 80 to 110; 0 again from 120, with 40 left.
        let done = |at, ticket, ran| (at, Left::Done { ticket, ran });
        assert_eq!(drain(&mut gpu), [done(110, 1, 30), done(160, 0, 100)]);
        assert_eq!(gpu.ledger.gpu.busy, Nanos(130));
        assert_eq!(gpu.ledger.gpu.switching, Nanos(30));
    }

    #[test]
    fn a_job_that_ends_within_the_grain_is_not_taken_off() {
        let mut gpu = gpu(Preemption::Levels { levels: 2, grain: Nanos(20) });
        gpu.grant(0, job(0, 0, 0, 100));
        gpu.grant(95, job(1, 1, 1, 30));
        let done = |at, ticket, ran| (at, Left::Done { ticket, ran });
        assert_eq!(drain(&mut gpu), [done(110, 0, 100), done(150, 1, 30)]);
    }

    #[test]
    fn a_job_that_is_asked_back_pays_on_the_way_out_and_in() {
        let mut gpu = gpu(Preemption::Full { cost: Nanos(5) });
        gpu.grant(0, job(0, 0, 0, 100));
        assert_eq!(gpu.preempt(40, 0), None);
        assert_eq!(drain(&mut gpu), [(45, Left::Off { ticket: 0, ran: 30 })]);
        gpu.grant(45, job(1, 1, 0, 20));
        gpu.grant(45, Granted { begun: true, ..job(0, 0, 0, 70) });
        // 1: switch to 55, work to 75. 0: switch to 85, go on at 90, work to 160.
        assert_eq!(
            drain(&mut gpu),
            [(75, Left::Done { ticket: 1, ran: 20 }), (160, Left::Done { ticket: 0, ran: 70 })]
        );
        assert_eq!(gpu.ledger.gpu.busy, Nanos(120));
        assert_eq!(gpu.ledger.gpu.preempting, Nanos(10));
        assert_eq!(gpu.ledger.gpu.switching, Nanos(30));
    }

    #[test]
    fn a_job_that_waits_on_the_gpu_is_back_at_once() {
        let mut gpu = gpu(Preemption::Full { cost: Nanos(5) });
        gpu.grant(0, job(0, 0, 0, 100));
        gpu.grant(0, job(1, 1, 0, 100));
        assert_eq!(gpu.preempt(40, 1), Some(Left::Off { ticket: 1, ran: 0 }));
        assert_eq!(drain(&mut gpu), [(110, Left::Done { ticket: 0, ran: 100 })]);
    }
}
