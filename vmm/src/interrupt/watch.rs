//! What a guest's interrupts have cost so far: KVM's counters beside the vblanks that came.
//!
//! KVM counts exits, and does not count what an irqfd signals. So vblanks are taken from the timing page of the
//! guest's pacer, which its host counts up at each one. Both are looked at every now and then; what KVM counted
//! between two looks belongs to the *paced* time where vblanks came in between, so that a guest's boot, and its
//! end without a host, are left out of the exits per vblank.

use crate::interrupt::stats::{Counts, StatsError, VmStats};
use beamline_abi::pacer::TimingPage;
use std::mem::offset_of;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use vm_memory::{Bytes, MmapRegion, VolatileMemory, VolatileSlice};

/// How often a page is read again that its host is just writing.
const ATTEMPTS: usize = 64;

/// A pacer's timing page, as the guest sees it. Its file is sealed against shrinking, which `passthrough::bar` has
/// checked.
#[derive(Debug)]
pub(crate) struct TimingView(Arc<MmapRegion>);

impl TimingView {
    /// The page that `region` starts with; `None` where it is too small for one.
    pub(crate) fn new(region: Arc<MmapRegion>) -> Option<Self> {
        (region.size() >= size_of::<TimingPage>()).then_some(Self(region))
    }

    /// The latest vblank's number; `None` where there was none yet, or the host keeps the page locked.
    fn vblank(&self) -> Option<u64> {
        let page: VolatileSlice<'_> = self.0.get_slice(0, size_of::<TimingPage>()).ok()?;
        let lock = || page.load::<u32>(offset_of!(TimingPage, lock), Ordering::Acquire).ok();
        for _ in 0..ATTEMPTS {
            let before = lock()?;
            let seq =
                page.load::<u64>(offset_of!(TimingPage, vblank_seq), Ordering::Acquire).ok()?;
            fence(Ordering::Acquire);
            if before.is_multiple_of(2) && lock()? == before {
                return Some(seq).filter(|seq| *seq > 0);
            }
            std::hint::spin_loop();
        }
        None
    }
}

/// What came in a while.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// How long it was.
    pub time: Duration,
    /// Vblanks of all the guest's pacers.
    pub vblanks: u64,
    /// What KVM counted, of all vCPUs.
    pub counts: Counts,
}

/// What a guest's interrupts have cost.
#[derive(Debug)]
pub struct Report {
    /// Since the guest was started.
    pub all: Cost,
    /// While vblanks came; `None`: none has.
    pub paced: Option<Cost>,
    /// Why there are no counters.
    pub missing: Option<String>,
}

/// One look.
#[derive(Clone, Debug)]
struct Look {
    at: Instant,
    counts: Counts,
    vblanks: Vec<Option<u64>>,
}

#[derive(Debug)]
struct State {
    first: Look,
    last: Look,
    vblanks: u64,
    paced: Option<Cost>,
    missing: Option<String>,
}

/// Looks at a guest's counters.
#[derive(Debug)]
pub(crate) struct Watch {
    stats: Option<VmStats>,
    pages: Vec<TimingView>,
    state: Mutex<State>,
}

impl Watch {
    /// Starts to look: what came before does not count.
    pub(crate) fn start(stats: Result<VmStats, StatsError>, pages: Vec<TimingView>) -> Self {
        let (stats, missing) = match stats {
            Ok(stats) => (Some(stats), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let (first, failed) = look(stats.as_ref(), &pages);
        let missing = missing.or(failed);
        let last = first.clone();
        let state = Mutex::new(State { first, last, vblanks: 0, paced: None, missing });
        Self { stats, pages, state }
    }

    /// Looks now.
    pub(crate) fn sample(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (now, failed) = look(self.stats.as_ref(), &self.pages);
        if state.missing.is_none() {
            state.missing = failed;
        }
        state.take(now);
    }

    /// What has come up to the latest look.
    pub(crate) fn report(&self) -> Report {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let all = Cost {
            time: state.last.at.saturating_duration_since(state.first.at),
            vblanks: state.vblanks,
            counts: state.last.counts.since(state.first.counts),
        };
        Report { all, paced: state.paced, missing: state.missing.clone() }
    }
}

fn look(stats: Option<&VmStats>, pages: &[TimingView]) -> (Look, Option<String>) {
    let (counts, failed) = match stats.map(VmStats::read) {
        Some(Ok(counts)) => (counts, None),
        Some(Err(error)) => (Counts::default(), Some(error.to_string())),
        None => (Counts::default(), None),
    };
    let vblanks = pages.iter().map(TimingView::vblank).collect();
    (Look { at: Instant::now(), counts, vblanks }, failed)
}

impl State {
    fn take(&mut self, now: Look) {
        let last = std::mem::replace(&mut self.last, now);
        let now = &self.last;
        // A pacer that was reset starts again from 1, or has been blanked: that while is left out.
        let came: u64 = last
            .vblanks
            .iter()
            .zip(&now.vblanks)
            .filter_map(|(before, now)| (*now)?.checked_sub((*before)?))
            .fold(0, u64::saturating_add);
        if came == 0 {
            return;
        }
        self.vblanks = self.vblanks.saturating_add(came);
        let counts = now.counts.since(last.counts);
        let (time, vblanks) = (now.at.saturating_duration_since(last.at), came);
        self.paced = Some(match self.paced {
            None => Cost { time, vblanks, counts },
            Some(paced) => Cost {
                time: paced.time + time,
                vblanks: paced.vblanks.saturating_add(vblanks),
                counts: paced.counts.and(counts),
            },
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interrupt::stats::Counter;

    fn look_at(ms: u64, base: Instant, exits: u64, seq: Option<u64>) -> Look {
        let counts = Counts::default().with(Counter::Exits, exits);
        Look { at: base + Duration::from_millis(ms), counts, vblanks: vec![seq] }
    }

    #[test]
    fn exits_are_held_against_vblanks_only_while_they_come() {
        let base = Instant::now();
        let at = |ms, exits, seq| look_at(ms, base, exits, seq);
        let first = at(0, 10, None);
        let mut state =
            State { first: first.clone(), last: first, vblanks: 0, paced: None, missing: None };
        // It boots, which costs much; then 90 vblanks come twice, a reset in between, and then the host is gone.
        for look in [
            at(100, 1000, None),
            at(200, 2000, Some(1)),
            at(1200, 2180, Some(91)),
            at(1300, 2900, Some(3)),
            at(2300, 3080, Some(93)),
            at(2400, 9000, None),
            at(2500, 9999, None),
        ] {
            state.take(look);
        }
        let paced = state.paced.unwrap();
        assert_eq!((paced.vblanks, paced.time), (180, Duration::from_secs(2)));
        assert_eq!(paced.counts.get(Counter::Exits), Some(360));
    }

    #[test]
    fn a_page_is_read_whole_or_not_at_all() {
        let region = Arc::new(MmapRegion::<()>::new(4096).unwrap());
        let view = TimingView::new(Arc::clone(&region)).unwrap();
        let page = region.get_slice(0, 4096).unwrap();
        assert_eq!(view.vblank(), None, "no vblank yet");
        page.write_obj(77u64, offset_of!(TimingPage, vblank_seq)).unwrap();
        assert_eq!(view.vblank(), Some(77));
        // A host that never ends its write does not hold the reader up.
        page.write_obj(3u32, offset_of!(TimingPage, lock)).unwrap();
        assert_eq!(view.vblank(), None);
        let small = Arc::new(MmapRegion::<()>::new(64).unwrap());
        assert!(TimingView::new(small).is_none());
    }
}
