//! Who had the GPU when, from the stamps of stages 4 to 6.

use crate::stamp::{SliceIndex, Stage, Stamp, flag};
use beamline_abi::{FrameId, Generation, JobIndex, Nanos};

/// One stay of a job on the GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Whose.
    pub slice: SliceIndex,
    /// Which life of the slice.
    pub generation: Generation,
    /// The frame; [`FrameId::NONE`] for background work.
    pub frame: FrameId,
    /// The job.
    pub job: JobIndex,
    /// It is a late latch.
    pub late_latch: bool,
    /// First run.
    pub start: Nanos,
    /// End of run, not before `start`.
    pub end: Nanos,
    /// What the scheduler reckoned with, if it said so.
    pub predicted: Option<Nanos>,
    /// It was ended by the host, not by itself: `start` is then its grant, or the end of the job
    /// before it.
    pub killed: bool,
}

/// What happened on the GPU while a job waited for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wait {
    /// Another slice's job was running when the wait began.
    pub blocked: Nanos,
    /// The part of such blocking that is beyond what the scheduler had predicted for the blocker.
    pub beyond_prediction: Nanos,
    /// Jobs of other slices that were started during the wait.
    pub overtaken: Nanos,
    /// Jobs of other frames of the same slice.
    pub own: Nanos,
    /// Nothing ran.
    pub idle: Nanos,
}

/// All stays, by start.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    spans: Vec<Span>,
    /// For each span the latest end of it and all before it.
    latest_end: Vec<Nanos>,
}

/// The most spans looked at for one wait: a real GPU holds a handful at once.
const MAX_OVERLAP: usize = 4096;

type Name = (SliceIndex, Generation, FrameId, JobIndex);

fn name(s: &Stamp) -> Name {
    (s.slice, s.generation, s.frame, s.job)
}

impl Timeline {
    /// Takes the stays out of a log's stamps. A job that was ended before it left a stamp of stage 5
    /// counts from its grant, or from the end of its slice's job before it, to its failed fence; one that was in
    /// line behind it does not count.
    pub fn new(stamps: &[Stamp]) -> Self {
        let pick = |stage: Stage| stamps.iter().filter(move |s| s.stage == stage as u8);
        let mut grants: Vec<&Stamp> = pick(Stage::Granted).collect();
        grants.sort_by_key(|s| (name(s), s.time));
        let grant_before = |s: &Stamp| -> Option<&Stamp> {
            let after = grants.partition_point(|g| (name(g), g.time) <= (name(s), s.time));
            let grant = grants[after.checked_sub(1)?];
            (name(grant) == name(s)).then_some(grant)
        };
        let mut runs: Vec<(Name, u64)> = pick(Stage::Gpu).map(|s| (name(s), s.time)).collect();
        runs.sort_unstable();

        let mut spans: Vec<Span> = pick(Stage::Gpu)
            .map(|s| {
                let predicted = grant_before(s).filter(|g| g.aux > 0).map(|g| Nanos(g.aux.into()));
                Span::of(s, s.time, s.a, predicted, false)
            })
            .collect();
        let killed = pick(Stage::Fence).filter(|s| s.has(flag::FAILED)).filter_map(|s| {
            let grant = grant_before(s)?;
            let next = runs.partition_point(|r| *r < (name(s), grant.time));
            let left_a_run = runs.get(next).is_some_and(|r| r.0 == name(s) && r.1 <= s.time);
            (!left_a_run).then(|| Span::of(s, grant.time, s.time, None, true))
        });
        let killed = first_in_line(&spans, killed.collect());
        spans.extend(killed);
        Self::from_spans(spans)
    }

    /// A timeline of these stays, in any order.
    pub fn from_spans(mut spans: Vec<Span>) -> Self {
        spans.sort_by_key(|s| s.start);
        let mut latest = Nanos::ZERO;
        let latest_end = spans
            .iter()
            .map(|s| {
                latest = latest.max(s.end);
                latest
            })
            .collect();
        Self { spans, latest_end }
    }

    /// All stays, by start.
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// The stays that overlap `from..to`, latest first.
    pub fn overlapping(&self, from: Nanos, to: Nanos) -> impl Iterator<Item = &Span> {
        let before = self.spans.partition_point(|s| s.start < to);
        (0..before)
            .rev()
            .take_while(move |&i| self.latest_end[i] > from)
            .take(MAX_OVERLAP)
            .map(|i| &self.spans[i])
            .filter(move |s| s.end > from)
    }

    /// Accounts for `from..to`, which a job of `slice` and `frame` spent waiting.
    pub fn wait(&self, slice: SliceIndex, frame: FrameId, from: Nanos, to: Nanos) -> Wait {
        let mut wait = Wait::default();
        let mut taken = Nanos::ZERO;
        for span in self.overlapping(from, to) {
            let overlap = span.end.min(to).saturating_sub(span.start.max(from));
            taken = taken.saturating_add(overlap);
            let add = |sum: &mut Nanos, n: Nanos| *sum = sum.saturating_add(n);
            if span.slice == slice {
                if span.frame != frame {
                    add(&mut wait.own, overlap);
                }
            } else if span.start <= from {
                let ran = span.end.saturating_sub(span.start);
                let beyond = span.predicted.map_or(Nanos::ZERO, |p| ran.saturating_sub(p));
                let beyond = beyond.min(overlap);
                add(&mut wait.beyond_prediction, beyond);
                add(&mut wait.blocked, overlap.saturating_sub(beyond));
            } else {
                add(&mut wait.overtaken, overlap);
            }
        }
        wait.idle = to.saturating_sub(from).saturating_sub(taken);
        wait
    }
}

/// Of the jobs of a slice that were killed together, the one that was on the GPU, from when the job before it had
/// left it.
fn first_in_line(ran: &[Span], mut killed: Vec<Span>) -> Vec<Span> {
    let life = |s: &Span| (s.slice, s.generation);
    let mut ends: Vec<_> = ran.iter().map(|s| (life(s), s.end)).collect();
    ends.sort_unstable();
    killed.sort_by_key(|s| (life(s), s.end, s.start));
    killed.dedup_by_key(|s| (life(s), s.end));
    for span in &mut killed {
        let before = ends.partition_point(|end| *end <= (life(span), span.end));
        if let Some((_, end)) = ends[..before].last().filter(|(owner, _)| *owner == life(span)) {
            span.start = span.start.max(*end);
        }
    }
    killed
}

impl Span {
    fn of(s: &Stamp, start: u64, end: u64, predicted: Option<Nanos>, killed: bool) -> Self {
        Self {
            slice: s.slice,
            generation: s.generation,
            frame: s.frame,
            job: s.job,
            late_latch: s.has(flag::LATE_LATCH),
            start: Nanos(start),
            end: Nanos(end.max(start)),
            predicted,
            killed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::{MS, key};
    use beamline_abi::Reason;

    fn run(slice: u16, frame: u64, start: u64, end: u64, predicted: Option<u64>) -> [Stamp; 2] {
        let k = key(slice, frame, 0, 1);
        let (start, end) = (Nanos(start), Nanos(end));
        [
            Stamp::granted(k, start, start, end, predicted.map(Nanos)),
            Stamp::gpu(k, start, end, end - start, false),
        ]
    }

    #[test]
    fn a_wait_is_split_by_who_ran() {
        let stamps: Vec<Stamp> = [
            run(1, 0, 0, 4 * MS, Some(3 * MS)),
            run(2, 5, 4 * MS, 5 * MS, None),
            run(0, 8, 5 * MS, 6 * MS, None),
        ]
        .concat();
        let timeline = Timeline::new(&stamps);
        let wait = timeline.wait(SliceIndex(0), FrameId(9), Nanos(MS), Nanos(8 * MS));
        assert_eq!(
            wait,
            Wait {
                blocked: Nanos(2 * MS),
                beyond_prediction: Nanos(MS),
                overtaken: Nanos(MS),
                own: Nanos(MS),
                idle: Nanos(2 * MS),
            }
        );
    }

    #[test]
    fn a_long_span_is_found_behind_short_ones() {
        let mut stamps = run(1, 0, 0, 100, None).to_vec();
        for i in 1..50 {
            stamps.extend(run(2, i, i, i + 1, None));
        }
        let timeline = Timeline::new(&stamps);
        let seen: Vec<_> = timeline.overlapping(Nanos(90), Nanos(95)).collect();
        assert_eq!(seen.len(), 1);
        assert_eq!(seen[0].end, Nanos(100));
    }

    #[test]
    fn a_job_that_was_killed_had_the_gpu_from_its_grant() {
        let k = key(1, 0, 0, 1);
        let grant = |t| Stamp::granted(k, Nanos(t), Nanos(t), Nanos(t), None);
        let stamps = [
            grant(10),
            Stamp::gpu(k, Nanos(11), Nanos(12), Nanos(1), false),
            grant(20),
            Stamp::failed(k, Nanos(45), Reason::JobTooLong),
        ];
        let timeline = Timeline::new(&stamps);
        assert_eq!(timeline.spans().len(), 2);
        let last = timeline.spans()[1];
        assert_eq!((last.start, last.end, last.killed), (Nanos(20), Nanos(45), true));
    }

    #[test]
    fn of_jobs_that_were_killed_together_the_first_had_the_gpu() {
        let granted =
            |frame, at| Stamp::granted(key(1, frame, 0, 1), Nanos(at), Nanos(at), Nanos(at), None);
        let failed = |frame| Stamp::failed(key(1, frame, 0, 1), Nanos(45), Reason::JobTooLong);
        let mut stamps = run(1, 0, 10, 24, None).to_vec();
        // Another slice's end is not theirs.
        stamps.extend(run(2, 0, 24, 40, None));
        stamps.extend([granted(1, 20), granted(2, 26), failed(1), failed(2)]);
        let timeline = Timeline::new(&stamps);
        let killed: Vec<_> = timeline.spans().iter().filter(|s| s.killed).collect();
        assert_eq!(killed.len(), 1);
        assert_eq!((killed[0].frame, killed[0].start), (FrameId(1), Nanos(24)));
        assert_eq!(killed[0].end, Nanos(45));
    }
}
