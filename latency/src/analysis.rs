//! Stage 10, harness: from a log to everything that is known of its frames.

use crate::frames::{self, Joined, SliceRun, Window};
use crate::log::Log;
use crate::meta::SliceMeta;
use crate::slots::{self, Slots};
use crate::stamp::{SliceIndex, Stage};
use crate::timeline::Timeline;
use beamline_abi::Nanos;

/// What to judge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Left out at the beginning, counted from the first vblank or job of the log.
    pub warm_up: Nanos,
    /// Judge this span instead; then there is no warm-up.
    pub window: Option<Window>,
}

impl Default for Options {
    /// One second of warm-up, then to the last vblank.
    fn default() -> Self {
        Self { warm_up: Nanos::from_secs(1), window: None }
    }
}

/// A log, joined and judged.
#[derive(Clone, Debug)]
pub struct Analysis<'a> {
    /// What was analysed.
    pub log: &'a Log,
    /// What was asked.
    pub options: Options,
    /// What was judged.
    pub window: Window,
    /// Frames and vblanks.
    pub joined: Joined,
    /// Who had the GPU when.
    pub timeline: Timeline,
    /// By slice; empty for slices without a contract.
    pub slots: Vec<Slots>,
}

impl<'a> Analysis<'a> {
    /// Joins and judges `log`.
    pub fn new(log: &'a Log, options: Options) -> Self {
        let window = options.window.unwrap_or_else(|| whole(log, options.warm_up));
        let longest = log.meta.slices.iter().filter_map(|s| s.contract.as_ref());
        let longest = longest.map(|c| c.deadline_ns).max().unwrap_or(0);
        // What begins in the last two deadlines may rightly be under way when the log ends.
        let to_ns = window.to_ns.saturating_sub(longest.saturating_mul(2));
        let joined = frames::join(log, Window { to_ns, ..window });
        let timeline = Timeline::new(&log.stamps);
        let gpu_err = Nanos(log.meta.gpu_clock_err_ns);
        let slots = log.meta.slices.iter().zip(&joined.slices).enumerate();
        let slots = slots
            .map(|(i, (meta, run))| match &meta.contract {
                // At most 65,536 slices have an index at all.
                Some(contract) => {
                    let slice = SliceIndex(i as u16);
                    slots::judge(slice, run, contract, &timeline, window, gpu_err)
                }
                None => Slots::default(),
            })
            .collect();
        Self { log, options, window, joined, timeline, slots }
    }

    /// Each slice with what is known of it.
    pub(crate) fn slices(&self) -> impl Iterator<Item = (&SliceMeta, &SliceRun, &Slots)> {
        let meta = self.log.meta.slices.iter();
        meta.zip(&self.joined.slices)
            .zip(&self.slots)
            .map(|((meta, run), slots)| (meta, run, slots))
    }

    /// A span of `length` that shows something: around the first missed frame, or else where judging
    /// begins.
    pub fn telling_window(&self, length: Nanos) -> Window {
        let judged = self.slots.iter().flat_map(|s| &s.slots);
        let first_miss = judged.clone().filter(|s| !s.in_budget).map(|s| s.release).min();
        let first = judged.map(|s| s.release).min();
        let from_ns = match (first_miss, first) {
            (Some(miss), Some(first)) => miss.saturating_sub(Nanos(length.0 / 3)).max(first).0,
            (_, Some(first)) => first.0,
            _ => self.timeline.spans().first().map_or(self.window.from_ns, |s| s.start.0),
        };
        Window { from_ns, to_ns: from_ns.saturating_add(length.0) }
    }
}

/// From the warm-up's end to the last vblank, or to the last job where there is none.
fn whole(log: &Log, warm_up: Nanos) -> Window {
    let times = |tick: bool| {
        let stamps = log.stamps.iter().filter(move |s| match s.stage() {
            Some(Stage::Tick) => tick,
            Some(Stage::Doorbell | Stage::Gpu) => !tick,
            _ => false,
        });
        stamps.map(|s| s.time)
    };
    let first = times(true).chain(times(false)).min().unwrap_or(0);
    let last = times(true).max().or(times(false).max()).unwrap_or(0);
    Window { from_ns: first.saturating_add(warm_up.0), to_ns: last }
}
