//! Stages 1 to 9, as records: what each stage of a frame's path leaves behind for stage 10, the harness.
//!
//! | stage | `time` | `a` | `b` | `aux` |
//! |---|---|---|---|---|
//! | 1 submit | guest TSC, [`flag::RAW_TSC`] | – | – | – |
//! | 2 doorbell | chain found | – | – | – |
//! | 3 mediated | validated | bytes | – | – |
//! | 4 granted | grant | release (late latch: window opens) | deadline | predicted GPU ns, 0 if none |
//! | 5 gpu | first run | end of run | GPU busy ns | – |
//! | 6 fence | completion handled | – | [`Reason`], with [`flag::FAILED`] | – |
//! | 7 vblank | grid time | vblank sequence | emission | – |
//! | 8 posted | eventfd about to be signalled | vblank sequence | it is, at the latest | – |
//! | 9 guest | guest TSC, [`flag::RAW_TSC`] | vblank sequence | – | – |
//! | tick | grid time | vblank sequence | emission | – |
//!
//! Times are host `CLOCK_MONOTONIC` in ns unless the table says TSC. Stages 1 to 6 occur once per job, 7
//! once per presented frame; 8 and 9 are found by their vblank sequence and occur at most once for each.
//! A tick is left for every vblank, with or without a frame: it is what makes a frame *due*.

use beamline_abi::{FrameId, Generation, JobIndex, Nanos, Reason};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A slice's place in [`Meta::slices`](crate::Meta::slices).
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(transparent)]
pub struct SliceIndex(pub u16);

/// Which step of a frame's path a stamp records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Stage {
    /// The guest is about to put the job into its queue.
    Submit = 1,
    /// The host found the descriptor chain.
    Doorbell = 2,
    /// The job is copied and validated.
    Mediated = 3,
    /// The scheduler let the job run.
    Granted = 4,
    /// The job ran on the GPU.
    Gpu = 5,
    /// The completion was handled.
    Fence = 6,
    /// The frame was shown at this vblank.
    Vblank = 7,
    /// The vblank's eventfd was written.
    Posted = 8,
    /// The guest's handler saw the vblank.
    Guest = 9,
    /// A vblank was emitted, whether or not a frame was shown.
    Tick = 16,
}

impl Stage {
    /// The stages that every job passes once.
    pub const OF_A_JOB: [Self; 6] =
        [Self::Submit, Self::Doorbell, Self::Mediated, Self::Granted, Self::Gpu, Self::Fence];

    /// The stage with this number, if there is one.
    pub const fn from_raw(raw: u8) -> Option<Self> {
        Some(match raw {
            1 => Self::Submit,
            2 => Self::Doorbell,
            3 => Self::Mediated,
            4 => Self::Granted,
            5 => Self::Gpu,
            6 => Self::Fence,
            7 => Self::Vblank,
            8 => Self::Posted,
            9 => Self::Guest,
            16 => Self::Tick,
            _ => return None,
        })
    }

    /// A short name for reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Submit => "submit",
            Self::Doorbell => "doorbell",
            Self::Mediated => "mediated",
            Self::Granted => "granted",
            Self::Gpu => "gpu",
            Self::Fence => "fence",
            Self::Vblank => "vblank",
            Self::Posted => "posted",
            Self::Guest => "guest",
            Self::Tick => "tick",
        }
    }
}

/// Bits of [`Stamp::flags`].
pub mod flag {
    /// `time` is the guest's TSC and needs the slice's map.
    pub const RAW_TSC: u8 = 1 << 0;
    /// The GPU's clock was placed by bracketed reads: times of the run carry that error.
    pub const CLOCK_ESTIMATED: u8 = 1 << 1;
    /// The job did not complete: `b` says why.
    pub const FAILED: u8 = 1 << 2;
    /// The job is its frame's late latch.
    pub const LATE_LATCH: u8 = 1 << 3;
    /// Every bit that is known.
    pub const ALL: u8 = RAW_TSC | CLOCK_ESTIMATED | FAILED | LATE_LATCH;
}

/// What names a job, the same at every stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobKey {
    /// The slice.
    pub slice: SliceIndex,
    /// Which life of the slice.
    pub generation: Generation,
    /// The frame; [`FrameId::NONE`] for background work.
    pub frame: FrameId,
    /// The job's place in the frame.
    pub job: JobIndex,
    /// How many jobs the frame has; 0 where the stage cannot know.
    pub jobs: u16,
    /// The job is the frame's late latch. Stage 1 may leave this out.
    pub late_latch: bool,
}

/// One record: 48 bytes, the same in memory and in the log.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Stamp {
    /// The slice.
    pub slice: SliceIndex,
    /// See [`Stage`].
    pub stage: u8,
    /// See [`flag`].
    pub flags: u8,
    /// Which life of the slice.
    pub generation: Generation,
    /// The frame, or [`FrameId::NONE`].
    pub frame: FrameId,
    /// The job's place in the frame.
    pub job: JobIndex,
    /// How many jobs the frame has.
    pub jobs: u16,
    /// By stage: see the table above.
    pub aux: u32,
    /// By stage: see the table above.
    pub time: u64,
    /// By stage: see the table above.
    pub a: u64,
    /// By stage: see the table above.
    pub b: u64,
}
const _: () = assert!(size_of::<Stamp>() == 48);

impl Stamp {
    fn of_job(key: JobKey, stage: Stage, time: u64) -> Self {
        Self {
            slice: key.slice,
            stage: stage as u8,
            flags: if key.late_latch { flag::LATE_LATCH } else { 0 },
            generation: key.generation,
            frame: key.frame,
            job: key.job,
            jobs: key.jobs,
            time,
            ..Self::default()
        }
    }

    fn of_vblank(
        slice: SliceIndex,
        generation: Generation,
        stage: Stage,
        seq: u64,
        time: u64,
    ) -> Self {
        Self { slice, stage: stage as u8, generation, time, a: seq, ..Self::default() }
    }

    /// Stage 1: the guest's marker says it submitted at `tsc`, by its own counter.
    #[must_use]
    pub fn submit(key: JobKey, tsc: u64) -> Self {
        let mut stamp = Self::of_job(key, Stage::Submit, tsc);
        stamp.flags |= flag::RAW_TSC;
        stamp
    }

    /// Stage 2: the chain was found.
    #[must_use]
    pub fn doorbell(key: JobKey, at: Nanos) -> Self {
        Self::of_job(key, Stage::Doorbell, at.0)
    }

    /// Stage 3: `bytes` of the job were copied and validated.
    #[must_use]
    pub fn mediated(key: JobKey, at: Nanos, bytes: u64) -> Self {
        Self { a: bytes, ..Self::of_job(key, Stage::Mediated, at.0) }
    }

    /// Stage 4: granted. `release` is the vblank that released the frame, or the opening of the window
    /// for a late latch; `predicted` is the cost the scheduler reckoned with.
    #[must_use]
    pub fn granted(
        key: JobKey,
        at: Nanos,
        release: Nanos,
        deadline: Nanos,
        predicted: Option<Nanos>,
    ) -> Self {
        let aux = predicted.map_or(0, |p| u32::try_from(p.0).unwrap_or(u32::MAX));
        Self { a: release.0, b: deadline.0, aux, ..Self::of_job(key, Stage::Granted, at.0) }
    }

    /// Stage 5: the job ran from `start` to `end` and kept the GPU for `busy`. `estimated` says that the
    /// GPU's clock was placed by bracketed reads.
    #[must_use]
    pub fn gpu(key: JobKey, start: Nanos, end: Nanos, busy: Nanos, estimated: bool) -> Self {
        let mut stamp = Self { a: end.0, b: busy.0, ..Self::of_job(key, Stage::Gpu, start.0) };
        if estimated {
            stamp.flags |= flag::CLOCK_ESTIMATED;
        }
        stamp
    }

    /// Stage 6: the completion was handled.
    #[must_use]
    pub fn fence(key: JobKey, at: Nanos) -> Self {
        Self::of_job(key, Stage::Fence, at.0)
    }

    /// Stage 6: the job was refused, dropped or ended.
    #[must_use]
    pub fn failed(key: JobKey, at: Nanos, reason: Reason) -> Self {
        let mut stamp = Self { b: reason as u64, ..Self::of_job(key, Stage::Fence, at.0) };
        stamp.flags |= flag::FAILED;
        stamp
    }

    /// Stage 7: `frame` was shown at vblank `seq`, whose place on the grid is `grid`.
    #[must_use]
    pub fn vblank(
        slice: SliceIndex,
        generation: Generation,
        frame: FrameId,
        seq: u64,
        grid: Nanos,
        emitted: Nanos,
    ) -> Self {
        let stamp = Self::of_vblank(slice, generation, Stage::Vblank, seq, grid.0);
        Self { frame, b: emitted.0, ..stamp }
    }

    /// Stage 8: the eventfd of vblank `seq` was signalled, in a call from `began` to `ended` that may have been
    /// for others too.
    #[must_use]
    pub fn posted(
        slice: SliceIndex,
        generation: Generation,
        frame: FrameId,
        seq: u64,
        (began, ended): (Nanos, Nanos),
    ) -> Self {
        let stamp = Self::of_vblank(slice, generation, Stage::Posted, seq, began.0);
        Self { frame, b: ended.0, ..stamp }
    }

    /// Stage 9: the guest's marker says its handler saw vblank `seq` at `tsc`.
    #[must_use]
    pub fn guest(slice: SliceIndex, generation: Generation, seq: u64, tsc: u64) -> Self {
        let mut stamp = Self::of_vblank(slice, generation, Stage::Guest, seq, tsc);
        stamp.flags |= flag::RAW_TSC;
        stamp
    }

    /// Vblank `seq` was emitted.
    #[must_use]
    pub fn tick(
        slice: SliceIndex,
        generation: Generation,
        seq: u64,
        grid: Nanos,
        emitted: Nanos,
    ) -> Self {
        let stamp = Self::of_vblank(slice, generation, Stage::Tick, seq, grid.0);
        Self { b: emitted.0, ..stamp }
    }

    /// The stage, if its number is known.
    pub const fn stage(&self) -> Option<Stage> {
        Stage::from_raw(self.stage)
    }

    /// Whether all of `bits` are set.
    pub const fn has(&self, bits: u8) -> bool {
        self.flags & bits == bits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stage_survives_its_number() {
        for stage in Stage::OF_A_JOB {
            assert_eq!(Stage::from_raw(stage as u8), Some(stage));
        }
        assert_eq!(Stage::from_raw(0), None);
        assert_eq!(Stage::from_raw(10), None);
    }

    #[test]
    fn a_prediction_too_long_for_its_field_saturates() {
        let long = Some(Nanos::from_secs(60));
        let stamp = Stamp::granted(JobKey::default(), Nanos::ZERO, Nanos::ZERO, Nanos::ZERO, long);
        assert_eq!(stamp.aux, u32::MAX);
    }
}
