//! Stage 4, schedule: one tenant of the frame-contract policy: what it may use, and when its work is due.

use crate::budget::{Minimum, Server};
use crate::contract::{Class, Contract};
use crate::demand;
use crate::policy::{GpuCaps, JobSpec};
use crate::predict::Predictor;
use beamline_abi::Nanos;

/// Which queue a tenant's first job is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Nothing,
    Waiting,
    Reserved,
    Slack,
    Aside,
}

/// By how much a tenant's deadlines are put off.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Delay {
    /// The busy period of reserved work in which it counts.
    busy: u64,
    by: u64,
}

#[derive(Debug)]
pub(crate) struct Tenant {
    pub(crate) contract: Contract,
    pub(crate) place: Place,
    /// What its frames, its late latch and its minimum may still use.
    pub(crate) frames: Server,
    pub(crate) late: Server,
    pub(crate) minimum: Minimum,
    pub(crate) predictor: Predictor,
    /// When the current period ends.
    pub(crate) period_end: u64,
    /// Declared pauses left in the current frame.
    pub(crate) pauses: u64,
    /// When the next job of the current frame has to come, and the frame it belongs to.
    pub(crate) resume_by: Option<(u64, u64)>,
    frame_delay: Delay,
    late_delay: Delay,
    /// Weighted GPU time received as slack.
    pub(crate) virtual_time: u64,
}

impl Tenant {
    pub(crate) fn new(contract: &Contract, caps: &GpuCaps) -> Self {
        let late = contract.late_latch.map_or(0, |l| l.budget.0);
        Self {
            contract: *contract,
            place: Place::Nothing,
            frames: Server::new(demand::frame_budget(contract, caps), contract.max_job.0),
            late: Server::new(
                if late == 0 { 0 } else { late.saturating_add(caps.switch_cost.0) },
                0,
            ),
            minimum: Minimum::new(contract.budget.0),
            predictor: Predictor::new(contract),
            period_end: 0,
            pauses: 0,
            resume_by: None,
            frame_delay: Delay::default(),
            late_delay: Delay::default(),
            virtual_time: 0,
        }
    }

    /// Which line of virtual time it stands in.
    pub(crate) fn line(&self) -> usize {
        usize::from(self.contract.class != Class::Background)
    }

    /// Whether the late-latch budget pays for this job.
    pub(crate) fn is_late(&self, job: &JobSpec) -> bool {
        job.late_latch && self.contract.late_latch.is_some()
    }

    /// Whether this job runs as reserved work.
    pub(crate) fn pays(&self, job: &JobSpec) -> bool {
        if self.contract.class != Class::Reserved {
            return false;
        }
        let expected = self.expected(job).0;
        if self.is_late(job) {
            let left = self.late.left(job.slot);
            // A fresh account is never too small: what a late latch goes beyond it, its frames repay.
            left > 0 && (self.frames.debt() == 0 || left >= expected.min(self.late.capacity()))
        } else {
            self.frames.pays(job.slot, expected)
        }
    }

    /// When the job is due for its order among the others; work without a deadline is due with the frame
    /// it delays. A tenant in debt that has let a deadline pass has itself to blame: its job counts as
    /// released at `now`, so that the accounts of its late frames never come all at once.
    pub(crate) fn deadline(&self, job: &JobSpec, busy: u64, now: u64) -> u64 {
        let latest = self.period_end.saturating_add(self.contract.deadline.0);
        let delay = if self.is_late(job) { self.late_delay } else { self.frame_delay };
        let by = if delay.busy == busy { delay.by } else { 0 };
        let due = job.deadline.0.min(latest).saturating_add(by);
        if due <= now && self.frames.debt() > 0 { now.saturating_add(self.span(job)) } else { due }
    }

    /// Puts deadlines off where a job comes later than the contract says: it then counts as released now.
    pub(crate) fn note_arrival(&mut self, job: &JobSpec, first: bool, busy: u64) {
        let late = self.is_late(job);
        let start = job.arrival.max(job.release).0;
        let c = &self.contract;
        let (in_time, span) = if late {
            let window = c.late_latch.map_or(0, |l| l.window.0);
            (job.release.0, window)
        } else {
            let span = c.main_deadline().saturating_sub(c.jitter).0;
            let release = job.release.saturating_add(c.jitter).0;
            match self.resume_by {
                Some((slot, by)) if slot == job.slot && job.job.0 > 0 => (by.max(release), span),
                // It follows another one that still waits or runs.
                _ if !first => (u64::MAX, span),
                _ => (release, span),
            }
        };
        if start > in_time {
            self.put_off(job, start, span, busy);
        }
    }

    /// The jobs behind one that was beyond its budget count as released only now: they had to wait for
    /// their own tenant.
    pub(crate) fn note_own_delay(&mut self, head: &JobSpec, now: u64, busy: u64) {
        let c = &self.contract;
        let (release, span) = if self.is_late(head) {
            (head.release.0, c.late_latch.map_or(0, |l| l.window.0))
        } else {
            let release = head.release.saturating_add(c.jitter).0;
            (release, c.main_deadline().saturating_sub(c.jitter).0)
        };
        if now > release {
            self.put_off(head, now, span, busy);
        }
    }

    /// Puts the tenant's deadlines off as if `job` had been released at `start`, `span` before it is due.
    fn put_off(&mut self, job: &JobSpec, start: u64, span: u64, busy: u64) {
        let by = start.saturating_add(span).saturating_sub(job.deadline.0);
        let delay = if self.is_late(job) { &mut self.late_delay } else { &mut self.frame_delay };
        let before = if delay.busy == busy { delay.by } else { 0 };
        *delay = Delay { busy, by: by.max(before) };
    }

    /// From a job's latest release that the contract allows to its deadline.
    fn span(&self, job: &JobSpec) -> u64 {
        let c = &self.contract;
        if self.is_late(job) {
            c.late_latch.map_or(0, |l| l.window.0)
        } else {
            c.main_deadline().saturating_sub(c.jitter).0
        }
    }

    pub(crate) fn expected(&self, job: &JobSpec) -> Nanos {
        self.predictor.expected(job.job.0, job.jobs, self.is_late(job))
    }

    pub(crate) fn charge(&mut self, job: &JobSpec, cost: u64) {
        match self.contract.class {
            // Its own budget; what goes beyond is repaid by the tenant's frames.
            Class::Reserved if self.is_late(job) => {
                let beyond = self.late.pay(job.slot, cost);
                self.frames.owe(beyond);
            }
            Class::Reserved => self.frames.charge(job.slot, cost),
            Class::Background => self.minimum.charge(cost),
            Class::Elastic => {}
        }
    }
}
