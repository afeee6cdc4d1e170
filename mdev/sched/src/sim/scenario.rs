//! What is simulated: a GPU, the tenants with their contracts, and what their guests do. Plain, checked data.

use super::cost::Cost;
use crate::contract::{Class, Contract};
use crate::kind::PolicyKind;
use crate::policy::{GpuCaps, Preemption};
use crate::validate;
use beamline_abi::Nanos;
use std::string::{String, ToString};
use std::sync::Arc;
use std::vec::Vec;
use std::{fmt, format};

/// Most tenants of a scenario.
pub const MAX_TENANTS: usize = 4_096;
/// Most jobs of a frame, without its late latch.
pub const MAX_JOBS: usize = 15;
/// Most jobs that a flood keeps queued.
pub const MAX_FLOOD: u32 = 256;
/// The shortest job: below it, what is simulated is the simulator.
pub const MIN_JOB: Nanos = Nanos::from_micros(1);
/// The longest run: an hour of virtual time.
pub const MAX_LENGTH: Nanos = Nanos::from_secs(3_600);

/// A scenario.
#[derive(Clone, Debug, PartialEq)]
pub struct Scenario {
    /// Its name.
    pub name: String,
    /// What it shows, in a line.
    pub about: String,
    /// What the GPU can do.
    pub caps: GpuCaps,
    /// How long beyond its contract's `max_job` a job may run on the GPU before it is killed, ns.
    pub kill_grace: Nanos,
    /// Virtual time that counts, ns.
    pub length: Nanos,
    /// Virtual time before that, which does not, ns.
    pub warm_up: Nanos,
    /// Who shares the GPU.
    pub tenants: Vec<Tenant>,
    /// The tenant (an index) whose p99 is compared with its p99 alone.
    pub victim: Option<usize>,
    /// For the qualified density: the tenants that are added in turn, over and over, to `tenants`.
    pub density: Option<Vec<Tenant>>,
}

/// A tenant: what it is promised, and what it does.
#[derive(Clone, Debug, PartialEq)]
pub struct Tenant {
    /// Its name.
    pub name: String,
    /// What it is promised.
    pub contract: Contract,
    /// What its guest does.
    pub work: Work,
    /// Offset of its vblanks from the host's grid, where it is not the host's to choose, ns.
    pub phase: Option<Nanos>,
}

/// What a guest does.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// A frame per vblank.
    Frames(Frames),
    /// Jobs that belong to no frame, as many as it may keep queued.
    Flood(Flood),
    /// Recorded frames, over and over.
    Trace(Arc<Trace>),
}

/// Frames: after the vblank the guest wakes and submits the first job; after each job's end it works for `gap` and
/// submits the next one; after the last one's it posts the late latch, if it has one.
///
/// With video encode, the encode job is the late latch: it follows the frame's jobs, in a window
/// of its own. An encoder that runs beside the frames is a second tenant.
#[derive(Clone, Debug, PartialEq)]
pub struct Frames {
    /// GPU time of the jobs, in order: 1 to [`MAX_JOBS`].
    pub jobs: Vec<Cost>,
    /// GPU time of the late latch; present where the contract has one.
    pub late_latch: Option<Cost>,
    /// From the vblank to the first job.
    pub wake: Cost,
    /// CPU time between the end of a job and the next one.
    pub gap: Cost,
    /// Stretches of frames that cost more.
    pub scene_change: Option<SceneChange>,
    /// Single frames that cost more.
    pub overrun: Option<Overrun>,
}

/// Every `every_frames` frames, `lasts_frames` in a row cost `factor` as much. Where the first stretch
/// begins differs by tenant and seed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SceneChange {
    /// Distance from one stretch's beginning to the next one's, 2 to 1,000,000.
    pub every_frames: u32,
    /// Length of a stretch, 1 to `every_frames` − 1.
    pub lasts_frames: u32,
    /// Above 0, at most 100.
    pub factor: f64,
}

/// A frame costs `factor` as much with probability `chance`: 1 for a tenant that always overruns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Overrun {
    /// Above 0, at most 1.
    pub chance: f64,
    /// Above 0, at most 100.
    pub factor: f64,
}

/// Jobs that belong to no frame: compute, or a neighbour that saturates the GPU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Flood {
    /// Jobs queued or running at once, 1 to [`MAX_FLOOD`].
    pub depth: u32,
    /// GPU time of a job.
    pub cost: Cost,
    /// Where it comes in bursts: `None` for always.
    pub burst: Option<Burst>,
}

/// A flood that submits for `on`, then nothing for `off`, in turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Burst {
    /// At least 1 ms.
    pub on: Nanos,
    /// At least 1 ms.
    pub off: Nanos,
}

/// Recorded frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// Where it comes from.
    pub name: String,
    /// In order; frame `k` is what the guest does at its `k`-th vblank, from the start again after the last.
    pub frames: Vec<TraceFrame>,
}

/// A recorded frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceFrame {
    /// Its jobs in order: 1 to [`MAX_JOBS`].
    pub jobs: Vec<TraceJob>,
    /// GPU time of its late latch, ns; present where the contract has one.
    pub late_latch: Option<Nanos>,
}

/// A recorded job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceJob {
    /// When it was submitted after the frame's vblank, ns. It is submitted then, whatever became of the job
    /// before it.
    pub submit: Nanos,
    /// GPU time, ns.
    pub cost: Nanos,
}

/// Where the vblanks lie of tenants that have no `phase` of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Phases {
    /// All at the same time.
    Synchronous,
    /// Anywhere, by the seed.
    Random,
    /// Where Beamline would put them: [`crate::phase`].
    #[default]
    Assigned,
}

impl Phases {
    /// Each of them.
    pub const ALL: [Self; 3] = [Self::Synchronous, Self::Random, Self::Assigned];

    /// The name in configuration and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Synchronous => "synchronous",
            Self::Random => "random",
            Self::Assigned => "assigned",
        }
    }
}

/// How a scenario is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Who decides.
    pub policy: PolicyKind,
    /// Where the vblanks lie.
    pub phases: Phases,
    /// Whether tenants that admission refuses are left out, and counted.
    pub admission: bool,
    /// Of everything that is drawn. What a tenant draws for a vblank depends on nothing else, so that
    /// policies are compared on the same frames.
    pub seed: u64,
    /// Whether to record who had the GPU when.
    pub timeline: bool,
}

/// What is wrong with a scenario.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScenarioError {
    /// The field, as a path: `tenants[2].work.jobs[0].sigma`.
    pub field: String,
    /// What it is, and what would be right.
    pub problem: String,
}

impl ScenarioError {
    /// An error at `field`.
    pub fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { field: field.into(), problem: problem.into() }
    }
}

impl fmt::Display for ScenarioError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.field, self.problem)
    }
}

impl core::error::Error for ScenarioError {}

fn within<T: Copy + PartialOrd + fmt::Display>(
    field: impl Into<String>,
    value: T,
    least: T,
    most: T,
) -> Result<(), ScenarioError> {
    if least <= value && value <= most {
        return Ok(());
    }
    Err(ScenarioError::new(field, format!("is {value}; it must be {least} to {most}")))
}

impl Scenario {
    /// Checks every field. The engine runs nothing that has not passed.
    pub fn check(&self) -> Result<(), ScenarioError> {
        within("length", self.length, Nanos::from_millis(1), MAX_LENGTH)?;
        within("warm_up", self.warm_up, Nanos::ZERO, MAX_LENGTH)?;
        within("kill_grace", self.kill_grace, Nanos::ZERO, Nanos::from_secs(10))?;
        caps(&self.caps)?;
        if self.tenants.is_empty() && self.density.is_none() {
            let problem = "is empty; at least one tenant must share the GPU";
            return Err(ScenarioError::new("tenants", problem));
        }
        within("tenants.len", self.tenants.len(), 0, MAX_TENANTS)?;
        for (i, t) in self.tenants.iter().enumerate() {
            t.check(&format!("tenants[{i}]"))?;
        }
        if let Some(victim) = self.victim.filter(|&v| v >= self.tenants.len()) {
            let problem = format!("is {victim}; there are {} tenants", self.tenants.len());
            return Err(ScenarioError::new("victim", problem));
        }
        if let Some(density) = &self.density {
            within("density.len", density.len(), 1, MAX_TENANTS)?;
            for (i, t) in density.iter().enumerate() {
                t.check(&format!("density[{i}]"))?;
            }
        }
        Ok(())
    }
}

fn caps(c: &GpuCaps) -> Result<(), ScenarioError> {
    let most = Nanos::from_millis(100);
    within("caps.in_flight", c.in_flight, 1, 64)?;
    within("caps.switch_cost", c.switch_cost, Nanos::ZERO, most)?;
    within("caps.guard_margin", c.guard_margin, Nanos::ZERO, most)?;
    match c.preemption {
        Preemption::None => Ok(()),
        Preemption::Levels { levels, grain } => {
            within("caps.preemption.levels", levels, 2, u8::MAX)?;
            within("caps.preemption.grain", grain, Nanos::ZERO, most)
        }
        Preemption::Full { cost } => within("caps.preemption.cost", cost, Nanos::ZERO, most),
    }
}

impl Tenant {
    /// Checks every field; `path` names the tenant.
    pub fn check(&self, path: &str) -> Result<(), ScenarioError> {
        let c = &self.contract;
        validate::contract(c).map_err(|e| {
            ScenarioError::new(format!("{path}.contract"), format!("is wrong: {e}"))
        })?;
        if let Some(phase) = self.phase {
            let most = c.period.floor().saturating_sub(Nanos(1));
            within(format!("{path}.phase"), phase, Nanos::ZERO, most)?;
        }
        let work = format!("{path}.work");
        match &self.work {
            Work::Frames(frames) => frames.check(&work, c),
            Work::Flood(flood) => flood.check(&work, c),
            Work::Trace(trace) => trace.check(&work, c),
        }
    }
}

fn late_latch(path: &str, has: bool, c: &Contract) -> Result<(), ScenarioError> {
    let problem = match (has, c.late_latch.is_some()) {
        (true, false) => "is there, but the contract has none; give the contract one, or drop it",
        (false, true) => "is missing, but the contract has one; give it a cost",
        _ => return Ok(()),
    };
    Err(ScenarioError::new(format!("{path}.late_latch"), problem))
}

impl Frames {
    fn check(&self, path: &str, c: &Contract) -> Result<(), ScenarioError> {
        within(format!("{path}.jobs.len"), self.jobs.len(), 1, MAX_JOBS)?;
        for (i, job) in self.jobs.iter().enumerate() {
            job.check(&format!("{path}.jobs[{i}]"), MIN_JOB)?;
        }
        late_latch(path, self.late_latch.is_some(), c)?;
        if let Some(cost) = &self.late_latch {
            cost.check(&format!("{path}.late_latch"), MIN_JOB)?;
        }
        self.wake.check(&format!("{path}.wake"), Nanos::ZERO)?;
        self.gap.check(&format!("{path}.gap"), Nanos::ZERO)?;
        if let Some(s) = self.scene_change {
            let path = format!("{path}.scene_change");
            within(format!("{path}.every_frames"), s.every_frames, 2, 1_000_000)?;
            within(format!("{path}.lasts_frames"), s.lasts_frames, 1, s.every_frames - 1)?;
            within(format!("{path}.factor"), s.factor, 0.001, 100.0)?;
        }
        if let Some(o) = self.overrun {
            within(format!("{path}.overrun.chance"), o.chance, 0.0, 1.0)?;
            within(format!("{path}.overrun.factor"), o.factor, 0.001, 100.0)?;
        }
        Ok(())
    }
}

impl Flood {
    fn check(&self, path: &str, c: &Contract) -> Result<(), ScenarioError> {
        if c.class == Class::Reserved {
            let problem =
                "is a flood, which has no frames to reserve for; make the contract's class \
                           elastic or background"
                    .to_string();
            return Err(ScenarioError::new(path, problem));
        }
        within(format!("{path}.depth"), self.depth, 1, MAX_FLOOD)?;
        self.cost.check(&format!("{path}.cost"), MIN_JOB)?;
        if let Some(burst) = self.burst {
            let (least, most) = (Nanos::from_millis(1), MAX_LENGTH);
            within(format!("{path}.burst.on"), burst.on, least, most)?;
            within(format!("{path}.burst.off"), burst.off, least, most)?;
        }
        Ok(())
    }
}

impl Trace {
    fn check(&self, path: &str, c: &Contract) -> Result<(), ScenarioError> {
        if self.frames.is_empty() {
            return Err(ScenarioError::new(path, "has no frames; record at least one"));
        }
        let most = Nanos::from_secs(10);
        // Names are made only for what is wrong: a trace may have a million frames.
        for (k, frame) in self.frames.iter().enumerate() {
            let at = |rest: &str| format!("{path}.frames[{k}]{rest}");
            if !(1..=MAX_JOBS).contains(&frame.jobs.len()) {
                within(at(".jobs.len"), frame.jobs.len(), 1, MAX_JOBS)?;
            }
            let mut before = Nanos::ZERO;
            for (i, job) in frame.jobs.iter().enumerate() {
                if !(before..=most).contains(&job.submit) || !(MIN_JOB..=most).contains(&job.cost) {
                    within(at(&format!(".jobs[{i}].submit")), job.submit, before, most)?;
                    within(at(&format!(".jobs[{i}].cost")), job.cost, MIN_JOB, most)?;
                }
                before = job.submit;
            }
            if frame.late_latch.is_some() != c.late_latch.is_some() {
                late_latch(&at(""), frame.late_latch.is_some(), c)?;
            }
            if let Some(cost) = frame.late_latch.filter(|l| !(MIN_JOB..=most).contains(l)) {
                within(at(".late_latch"), cost, MIN_JOB, most)?;
            }
        }
        Ok(())
    }
}
