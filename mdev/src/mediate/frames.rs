//! Stage 4, schedule: which vblank a frame belongs to, and which frame a vblank shows.

use beamline_abi::frame::MAX_FRAMES;
use beamline_abi::{FrameId, JobIndex, Nanos, Reason};

/// A frame between its first job and its vblank.
#[derive(Clone, Copy, Debug)]
struct Tracked {
    frame: FrameId,
    slot: u64,
    jobs: u16,
    /// Bit per job that was placed.
    seen: u16,
    done: u16,
    failed: bool,
    presents: bool,
    /// When the last of its jobs so far left the GPU.
    ended: Nanos,
}

impl Tracked {
    fn complete(&self) -> bool {
        self.done == self.jobs
    }
}

/// The unfinished frames of one slice.
#[derive(Clone, Debug, Default)]
pub struct Frames {
    tracked: [Option<Tracked>; MAX_FRAMES],
    newest: FrameId,
    last_slot: Option<u64>,
    /// The frame shown last.
    shown: FrameId,
}

/// A job as the frames see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameJob {
    /// Its frame.
    pub frame: FrameId,
    /// Its place in the frame.
    pub job: JobIndex,
    /// Jobs of the frame, at most 16.
    pub jobs: u16,
    /// It shows an image.
    pub presents: bool,
}

/// What sets the rate of a slice's frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// One frame per vblank, at most `depth` vblanks ahead.
    Vblank {
        /// How many.
        depth: u8,
    },
    /// The guest itself: several frames may begin at one vblank.
    Own,
}

/// A frame to be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Which.
    pub frame: FrameId,
    /// The vblank that started it.
    pub slot: u64,
}

impl Frames {
    /// Gives a job its vblank. `current` is the latest vblank; the first job of a frame takes the first
    /// vblank from there that no earlier frame has, as far ahead as `pace` allows.
    pub fn place(&mut self, job: FrameJob, current: u64, pace: Pace) -> Result<u64, Reason> {
        let FrameJob { frame, job, jobs, presents } = job;
        let bit = 1u16.checked_shl(u32::from(job.0)).ok_or(Reason::Malformed)?;
        if let Some(t) = self.tracked.iter_mut().flatten().find(|t| t.frame == frame) {
            if t.jobs != jobs || t.seen & bit != 0 {
                return Err(Reason::Malformed);
            }
            t.seen |= bit;
            t.presents |= presents;
            return Ok(t.slot);
        }
        if frame <= self.newest {
            return Err(Reason::StaleFrame);
        }
        let slot = match self.last_slot {
            Some(last) if pace != Pace::Own => current.max(last + 1),
            _ => current,
        };
        if let Pace::Vblank { depth } = pace
            && slot > current + u64::from(depth)
        {
            return Err(Reason::Quota);
        }
        let free = self.room().ok_or(Reason::Quota)?;
        let ended = Nanos::ZERO;
        *free =
            Some(Tracked { frame, slot, jobs, seen: bit, done: 0, failed: false, presents, ended });
        self.newest = frame;
        self.last_slot = Some(slot);
        Ok(slot)
    }

    /// A free entry, if need be that of the oldest frame that nothing is running for: its other jobs were
    /// refused or never came.
    fn room(&mut self) -> Option<&mut Option<Tracked>> {
        let key = |t: &Option<Tracked>| t.map(|t| t.frame);
        let idle = |t: &Option<Tracked>| t.is_none_or(|t| u32::from(t.done) == t.seen.count_ones());
        self.tracked.iter_mut().filter(|t| idle(t)).min_by_key(|t| key(t))
    }

    /// A job of the frame left the GPU at `at`. A frame with a failed job is never shown.
    pub fn job_done(&mut self, frame: FrameId, ok: bool, at: Nanos) {
        for entry in &mut self.tracked {
            if let Some(t) = entry
                && t.frame == frame
            {
                t.done += 1;
                t.failed |= !ok;
                t.ended = t.ended.max(at);
                // A newer one may have been shown while its last job ran.
                if t.complete() && (t.failed || !t.presents || t.frame < self.shown) {
                    *entry = None;
                }
                return;
            }
        }
    }

    /// At the vblank whose time is `at`: takes the newest frame that was complete by then, and forgets
    /// those that it overtakes.
    pub fn show(&mut self, at: Nanos) -> Option<Shown> {
        let newest = self
            .tracked
            .iter()
            .flatten()
            .filter(|t| t.complete() && t.ended <= at)
            .max_by_key(|t| t.frame)?;
        let shown = Shown { frame: newest.frame, slot: newest.slot };
        self.shown = shown.frame;
        for entry in &mut self.tracked {
            if entry.is_some_and(|t| t.complete() && t.frame <= shown.frame) {
                *entry = None;
            }
        }
        Some(shown)
    }

    /// Forgets everything: a new life of the slice.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(f: &mut Frames, frame: u64, job: u16, current: u64) -> Result<u64, Reason> {
        let job =
            FrameJob { frame: FrameId(frame), job: JobIndex(job), jobs: 2, presents: job == 1 };
        f.place(job, current, Pace::Vblank { depth: 2 })
    }

    #[test]
    fn frames_take_vblanks_in_order_and_ahead_within_depth() {
        let mut f = Frames::default();
        assert_eq!(place(&mut f, 1, 0, 10), Ok(10));
        assert_eq!(place(&mut f, 1, 1, 10), Ok(10));
        assert_eq!(place(&mut f, 2, 0, 10), Ok(11));
        assert_eq!(place(&mut f, 3, 0, 10), Ok(12));
        assert_eq!(place(&mut f, 4, 0, 10), Err(Reason::Quota));
        assert_eq!(place(&mut f, 4, 0, 20), Ok(20), "late frames take the current vblank");
    }

    #[test]
    fn a_job_twice_a_changed_count_and_an_old_frame_are_refused() {
        let mut f = Frames::default();
        place(&mut f, 5, 0, 1).unwrap();
        assert_eq!(place(&mut f, 5, 0, 1), Err(Reason::Malformed));
        let changed = FrameJob { frame: FrameId(5), job: JobIndex(1), jobs: 3, presents: false };
        assert_eq!(f.place(changed, 1, Pace::Own), Err(Reason::Malformed));
        assert_eq!(place(&mut f, 4, 0, 1), Err(Reason::StaleFrame));
    }

    #[test]
    fn the_newest_complete_frame_is_shown_once() {
        let mut f = Frames::default();
        for frame in 1..=2 {
            for job in 0..2 {
                place(&mut f, frame, job, frame).unwrap();
                f.job_done(FrameId(frame), true, Nanos(frame));
            }
        }
        assert_eq!(f.show(Nanos(2)), Some(Shown { frame: FrameId(2), slot: 2 }));
        assert_eq!(f.show(Nanos(2)), None);
    }

    #[test]
    fn an_older_frame_is_never_shown_after_a_newer_one() {
        let mut f = Frames::default();
        place(&mut f, 1, 0, 1).unwrap();
        for job in 0..2 {
            place(&mut f, 2, job, 1).unwrap();
            f.job_done(FrameId(2), true, Nanos(1));
        }
        place(&mut f, 1, 1, 1).unwrap();
        assert_eq!(f.show(Nanos(2)).map(|s| s.frame), Some(FrameId(2)));
        f.job_done(FrameId(1), true, Nanos(3));
        f.job_done(FrameId(1), true, Nanos(4));
        assert_eq!(f.show(Nanos(9)), None);
        assert!(f.tracked.iter().all(Option::is_none));
    }

    #[test]
    fn a_frame_that_ended_after_a_vblank_waits_for_the_next() {
        let mut f = Frames::default();
        for job in 0..2 {
            place(&mut f, 1, job, 1).unwrap();
            f.job_done(FrameId(1), true, Nanos(100));
        }
        assert_eq!(f.show(Nanos(99)), None);
        assert_eq!(f.show(Nanos(100)).map(|s| s.frame), Some(FrameId(1)));
    }

    #[test]
    fn frames_whose_jobs_never_come_do_not_fill_the_table() {
        let mut f = Frames::default();
        for frame in 1..100 {
            assert_eq!(place(&mut f, frame, 0, frame), Ok(frame));
            f.job_done(FrameId(frame), true, Nanos(frame));
        }
        // Frames that run are never given up for a new one.
        let mut f = Frames::default();
        for frame in 1..=MAX_FRAMES as u64 {
            place(&mut f, frame, 0, frame).unwrap();
        }
        assert_eq!(place(&mut f, 50, 0, 50), Err(Reason::Quota));
    }

    #[test]
    fn a_failed_frame_is_never_shown() {
        let mut f = Frames::default();
        for job in 0..2 {
            place(&mut f, 1, job, 1).unwrap();
            f.job_done(FrameId(1), job == 0, Nanos(1));
        }
        assert_eq!(f.show(Nanos(9)), None);
        assert!(f.tracked.iter().all(Option::is_none));
    }
}
