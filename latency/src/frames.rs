//! Stage 10, harness: joins stamps to frames and vblanks, and says which stamps are missing or double.

use crate::clock::TscMap;
use crate::log::Log;
use crate::stamp::{SliceIndex, Stage, Stamp, flag};
use beamline_abi::frame::MAX_JOBS_PER_FRAME;
use beamline_abi::{FrameId, Generation, JobIndex, Nanos, Reason};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One job of a frame. Times are host ns; `None` where the stamp is missing or could not be placed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Job {
    /// Its place in the frame.
    pub index: JobIndex,
    /// It is the frame's late latch.
    pub late_latch: bool,
    /// Stage 1. The guest's own word: never later than `doorbell`.
    pub submit: Option<Nanos>,
    /// Stage 2.
    pub doorbell: Option<Nanos>,
    /// Stage 3.
    pub mediated: Option<Nanos>,
    /// Stage 4.
    pub granted: Option<Nanos>,
    /// When it was released: its vblank, or the opening of the late-latch window.
    pub release: Option<Nanos>,
    /// When it was due, as the scheduler saw it.
    pub deadline: Option<Nanos>,
    /// What the scheduler reckoned it would cost.
    pub predicted: Option<Nanos>,
    /// Stage 5: its first run.
    pub first_run: Option<Nanos>,
    /// Stage 5: its end.
    pub done: Option<Nanos>,
    /// Stage 5: GPU time.
    pub busy: Option<Nanos>,
    /// Stage 6.
    pub fence: Option<Nanos>,
    /// Stage 6: why it did not complete.
    pub failed: Option<Reason>,
    seen: u16,
}

impl Job {
    /// When it reached the host, or left the guest where that is known.
    pub fn arrived(&self) -> Option<Nanos> {
        self.submit.or(self.doorbell).or(self.mediated)
    }

    /// Whether it completed by `deadline`.
    pub fn in_time(&self, deadline: Nanos) -> bool {
        self.failed.is_none() && self.done.is_some_and(|done| done <= deadline)
    }
}

/// Where and when a frame was shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Presented {
    /// The vblank's sequence.
    pub seq: u64,
    /// Its place on the grid.
    pub grid: Nanos,
    /// When it was emitted.
    pub emitted: Nanos,
}

/// One frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// Which life of the slice.
    pub generation: Generation,
    /// Its name.
    pub id: FrameId,
    /// Its jobs, by index.
    pub jobs: Vec<Job>,
    /// How many jobs it should have.
    pub expected: u16,
    /// Stage 7.
    pub presented: Option<Presented>,
}

impl Frame {
    /// Its jobs without the late latch.
    pub fn main_jobs(&self) -> impl Iterator<Item = &Job> + Clone {
        self.jobs.iter().filter(|j| !j.late_latch)
    }
    /// Its late latch.
    pub fn late_latch(&self) -> Option<&Job> {
        self.jobs.iter().find(|j| j.late_latch)
    }
    /// When it was released, as the scheduler saw it.
    pub fn release(&self) -> Option<Nanos> {
        self.main_jobs().find_map(|j| j.release)
    }
    /// When it was due, as the scheduler saw it.
    pub fn deadline(&self) -> Option<Nanos> {
        self.jobs.iter().filter_map(|j| j.deadline).max()
    }
    /// When its first job left the guest.
    pub fn submitted(&self) -> Option<Nanos> {
        self.main_jobs().next().and_then(Job::arrived)
    }
    /// When the last of its jobs, late latch apart, was done; `None` unless all are.
    pub fn done(&self) -> Option<Nanos> {
        let all = self.main_jobs().count() + usize::from(self.late_latch().is_some())
            >= usize::from(self.expected);
        let mut last = None;
        for job in self.main_jobs() {
            last = last.max(Some(job.done.filter(|_| job.failed.is_none())?));
        }
        last.filter(|_| all)
    }
    /// When the host had handled the last completion, well or not.
    pub fn handled(&self) -> Option<Nanos> {
        self.jobs.iter().map(|j| j.fence).try_fold(Nanos::ZERO, |last, f| Some(last.max(f?)))
    }
    /// GPU time of its jobs, late latch apart.
    pub fn busy(&self) -> Nanos {
        sum(self.main_jobs().filter_map(|j| j.busy))
    }
    /// First run minus arrival, over its jobs, late latch apart.
    pub fn gpu_wait(&self) -> Nanos {
        sum(self.main_jobs().filter_map(|j| Some(j.first_run?.saturating_sub(j.arrived()?))))
    }
    /// The first time that anything is known of it on the host.
    fn first_seen(&self) -> Option<Nanos> {
        self.jobs.iter().filter_map(|j| j.doorbell.or(j.mediated).or(j.granted)).min()
    }
}

pub(crate) fn sum(times: impl Iterator<Item = Nanos>) -> Nanos {
    times.fold(Nanos::ZERO, Nanos::saturating_add)
}

/// A guest's handler that did not run within this many vblanks is not looked for any further.
const LOOK_AHEAD: usize = 64;

/// One vblank of a slice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vblank {
    /// Its place on the grid and its emission, from its tick.
    pub tick: Option<(Nanos, Nanos)>,
    /// Stage 8.
    pub posted: Option<Nanos>,
    /// Stage 9, as host time.
    pub handled: Option<Nanos>,
    /// Stage 9 left a stamp, whether or not it could be placed.
    pub marked: bool,
}

/// All of one slice.
#[derive(Clone, Debug, Default)]
pub struct SliceRun {
    /// Its frames, by generation and name.
    pub frames: Vec<Frame>,
    /// Its vblanks, by generation and sequence.
    pub vblanks: BTreeMap<(Generation, u64), Vblank>,
    /// GPU jobs without a frame.
    pub background_jobs: u64,
    /// GPU time of those.
    pub background_busy: Nanos,
    /// Error bound of its guest times; `None` where they cannot be placed.
    pub clock_err: Option<Nanos>,
}

impl SliceRun {
    /// The first vblank at or after `seq` that the guest's handler saw, and when.
    pub fn first_handled(&self, generation: Generation, seq: u64) -> Option<(u64, Nanos)> {
        self.vblanks
            .range((generation, seq)..=(generation, u64::MAX))
            .take(LOOK_AHEAD)
            .find_map(|((_, s), v)| Some((*s, v.handled?)))
    }
}

/// A span of host time: what begins outside it is not judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// First ns.
    pub from_ns: u64,
    /// Last ns.
    pub to_ns: u64,
}

impl Window {
    /// Everything.
    pub const ALL: Self = Self { from_ns: 0, to_ns: u64::MAX };
    /// Whether `at` lies within.
    pub fn contains(&self, at: Nanos) -> bool {
        (self.from_ns..=self.to_ns).contains(&at.0)
    }
}

/// What is wrong with the measurement itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Stamps that should be there.
    pub missing: u64,
    /// Stamps that were there already.
    pub double: u64,
    /// Stamps that found no room while recording.
    pub dropped: u64,
    /// Stamps of a stage, a slice or a job that cannot be.
    pub foreign: u64,
    /// Guest times that cannot be: after the host had seen what they announce.
    pub implausible: u64,
    /// The first few of these, in words.
    pub examples: Vec<String>,
}

impl Health {
    /// Whether every stamp was there, once.
    pub fn is_sound(&self) -> bool {
        self.missing + self.double + self.dropped + self.foreign + self.implausible == 0
    }

    fn example(&mut self, text: impl FnOnce() -> String) {
        if self.examples.len() < 16 {
            self.examples.push(text());
        }
    }
}

/// A log, joined.
#[derive(Clone, Debug, Default)]
pub struct Joined {
    /// By [`SliceIndex`].
    pub slices: Vec<SliceRun>,
    /// What is wrong with the stamps.
    pub health: Health,
}

type Frames = BTreeMap<(SliceIndex, Generation, FrameId), (Frame, BTreeMap<JobIndex, Job>)>;

struct Joiner<'a> {
    log: &'a Log,
    maps: Vec<Option<TscMap>>,
    frames: Frames,
    out: Joined,
}

/// Joins the stamps of `log`. Missing stamps are counted for frames that begin in `complete`.
pub fn join(log: &Log, complete: Window) -> Joined {
    let slices = log.meta.slices.len();
    let mut joiner = Joiner {
        log,
        maps: (0..slices).map(|i| log.meta.guest_map(i).ok()).collect(),
        frames: BTreeMap::new(),
        out: Joined { slices: vec![SliceRun::default(); slices], ..Joined::default() },
    };
    joiner.out.health.dropped = log.dropped;
    for stamp in &log.stamps {
        joiner.add(stamp);
    }
    joiner.finish(complete)
}

impl Joiner<'_> {
    fn add(&mut self, stamp: &Stamp) {
        let known = usize::from(stamp.slice.0) < self.out.slices.len();
        match stamp.stage() {
            Some(_) if !known => self.foreign(stamp),
            None => self.foreign(stamp),
            Some(Stage::Tick | Stage::Posted | Stage::Guest) => self.add_vblank(stamp),
            Some(Stage::Vblank) => self.add_presented(stamp),
            Some(stage) if stamp.frame == FrameId::NONE => {
                let slice = &mut self.out.slices[usize::from(stamp.slice.0)];
                if stage == Stage::Gpu {
                    slice.background_jobs += 1;
                    slice.background_busy = slice.background_busy.saturating_add(Nanos(stamp.b));
                }
            }
            Some(_) if usize::from(stamp.job.0.max(stamp.jobs)) > MAX_JOBS_PER_FRAME => {
                self.foreign(stamp);
            }
            Some(stage) => self.add_job(stamp, stage),
        }
    }

    fn foreign(&mut self, s: &Stamp) {
        self.out.health.foreign += 1;
        self.out.health.example(|| {
            format!(
                "no such stage, slice or job: stage {}, slice {}, {}, job {} of {}",
                s.stage, s.slice.0, s.frame, s.job.0, s.jobs
            )
        });
    }

    fn double(&mut self, s: &Stamp, stage: Stage) {
        self.out.health.double += 1;
        let slice = &self.log.meta.slices[usize::from(s.slice.0)].name;
        self.out.health.example(|| match stage {
            Stage::Tick | Stage::Posted | Stage::Guest => {
                format!("double: {} of {slice}, vblank {}", stage.name(), s.a)
            }
            _ => format!("double: {} of {slice}, {}, job {}", stage.name(), s.frame, s.job.0),
        });
    }

    /// The stamp's time on the host's clock.
    fn place(&mut self, s: &Stamp) -> Option<Nanos> {
        if !s.has(flag::RAW_TSC) {
            return Some(Nanos(s.time));
        }
        let index = usize::from(s.slice.0);
        let map = self.maps.get(index).copied().flatten()?;
        let at = map.to_ns(s.time);
        let err = &mut self.out.slices[index].clock_err;
        *err = (*err).max(Some(map.err_at(at)));
        Some(at)
    }

    fn add_vblank(&mut self, s: &Stamp) {
        let at = self.place(s);
        let slice = &mut self.out.slices[usize::from(s.slice.0)];
        let vblank = slice.vblanks.entry((s.generation, s.a)).or_default();
        let (stage, taken) = match s.stage() {
            Some(Stage::Tick) => (Stage::Tick, vblank.tick.is_some()),
            Some(Stage::Posted) => (Stage::Posted, vblank.posted.is_some()),
            _ => (Stage::Guest, vblank.marked),
        };
        if taken {
            self.double(s, stage);
            return;
        }
        match stage {
            Stage::Tick => vblank.tick = Some((Nanos(s.time), Nanos(s.b))),
            Stage::Posted => vblank.posted = at,
            _ => {
                vblank.handled = at;
                vblank.marked = true;
            }
        }
    }

    fn frame(&mut self, s: &Stamp) -> &mut (Frame, BTreeMap<JobIndex, Job>) {
        let key = (s.slice, s.generation, s.frame);
        let entry = self.frames.entry(key).or_default();
        entry.0.generation = s.generation;
        entry.0.id = s.frame;
        entry
    }

    fn add_presented(&mut self, s: &Stamp) {
        let shown = Presented { seq: s.a, grid: Nanos(s.time), emitted: Nanos(s.b) };
        let frame = &mut self.frame(s).0;
        if frame.presented.is_some() {
            self.double(s, Stage::Vblank);
        } else {
            frame.presented = Some(shown);
        }
    }

    fn add_job(&mut self, s: &Stamp, stage: Stage) {
        let at = self.place(s);
        let (frame, jobs) = self.frame(s);
        frame.expected = frame.expected.max(s.jobs).max(s.job.0 + 1);
        let job = jobs.entry(s.job).or_default();
        job.index = s.job;
        job.late_latch |= s.has(flag::LATE_LATCH);
        let bit = 1 << stage as u8;
        if job.seen & bit != 0 {
            self.double(s, stage);
            return;
        }
        job.seen |= bit;
        match stage {
            Stage::Submit => job.submit = at,
            Stage::Doorbell => job.doorbell = at,
            Stage::Mediated => job.mediated = at,
            Stage::Granted => {
                job.granted = at;
                job.release = Some(Nanos(s.a));
                job.deadline = Some(Nanos(s.b)).filter(|d| d.0 > 0);
                job.predicted = Some(Nanos(s.aux.into())).filter(|p| p.0 > 0);
            }
            Stage::Gpu => {
                job.first_run = at;
                job.done = Some(Nanos(s.a.max(s.time)));
                job.busy = Some(Nanos(s.b));
            }
            _ => {
                job.fence = at;
                if s.has(flag::FAILED) {
                    let reason = u32::try_from(s.b).ok().and_then(Reason::from_raw);
                    job.failed = Some(reason.unwrap_or(Reason::None));
                }
            }
        }
    }

    fn finish(mut self, complete: Window) -> Joined {
        for ((slice, ..), (mut frame, jobs)) in std::mem::take(&mut self.frames) {
            frame.jobs = jobs.into_values().collect();
            for job in &mut frame.jobs {
                self.check_submit(slice, job);
            }
            if frame.first_seen().is_some_and(|at| complete.contains(at)) {
                self.check_complete(slice, &frame);
            }
            self.out.slices[usize::from(slice.0)].frames.push(frame);
        }
        self.out
    }

    /// A guest may say anything: a submission after its own doorbell is clamped within the clocks' error
    /// and dropped beyond it.
    fn check_submit(&mut self, slice: SliceIndex, job: &mut Job) {
        let (Some(submit), Some(doorbell)) = (job.submit, job.doorbell) else { return };
        let err = self.out.slices[usize::from(slice.0)].clock_err.unwrap_or_default();
        if submit <= doorbell {
            return;
        }
        job.submit = (submit <= doorbell.saturating_add(err)).then_some(doorbell);
        if job.submit.is_none() {
            self.out.health.implausible += 1;
            self.out.health.example(|| {
                let late = submit.saturating_sub(doorbell);
                format!("slice {}: a job left the guest {late} after its doorbell", slice.0)
            });
        }
    }

    fn check_complete(&mut self, slice: SliceIndex, frame: &Frame) {
        let meta = &self.log.meta.slices[usize::from(slice.0)];
        let marks = meta.guest_tsc.is_some();
        let health = &mut self.out.health;
        let mut missing = |what: String| {
            health.missing += 1;
            health.example(|| format!("missing: {what} of {}, {}", meta.name, frame.id));
        };
        for index in 0..frame.expected {
            let job = frame.jobs.iter().find(|j| j.index.0 == index);
            let Some(job) = job else {
                missing(format!("job {index}"));
                continue;
            };
            for stage in Stage::OF_A_JOB {
                // A job that failed may never have been granted, nor have run.
                let excused = match stage {
                    Stage::Submit => !marks,
                    Stage::Mediated | Stage::Granted | Stage::Gpu => job.failed.is_some(),
                    _ => false,
                };
                if job.seen & (1 << stage as u8) == 0 && !excused {
                    missing(format!("{} of job {index}", stage.name()));
                }
            }
        }
        let Some(shown) = frame.presented else { return };
        let run = &self.out.slices[usize::from(slice.0)];
        let vblank = run.vblanks.get(&(frame.generation, shown.seq));
        if vblank.is_none_or(|v| v.posted.is_none()) {
            missing(format!("posted at vblank {}", shown.seq));
        }
        let after = (frame.generation, shown.seq)..=(frame.generation, u64::MAX);
        if marks && !run.vblanks.range(after).take(LOOK_AHEAD).any(|(_, v)| v.marked) {
            missing(format!("guest at vblank {}", shown.seq));
        }
    }
}

#[cfg(test)]
#[path = "frames_tests.rs"]
mod tests;
