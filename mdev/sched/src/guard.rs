//! Stage 4, schedule: the releases of reserved work that are known, and what they forbid to other work.
//!
//! Each reserved tenant has two entries: the release of its next frame, and the opening of its next
//! late-latch window. An entry forbids in two ways:
//! * *soft* ([`Guard::Release`](crate::Guard::Release) only): other work must end before the release, and
//!   none starts until the frame has come or its jitter has passed; reserved work that is due later gives
//!   way as long as that does it no harm;
//! * *hard* (always): other work, even at its longest, must end within the entry's tolerance after the
//!   release, which is the blocking that the demand test found harmless.
//!
//! Both are heaps by time, so a decision looks at two entries, however many tenants there are.

use crate::heap::IndexedHeap;
use alloc::{vec, vec::Vec};

/// Frames ahead of the newest vblank that a slot number may name: beyond a contract's depth it is wrong.
const AHEAD: u64 = 8;

/// Which of a tenant's entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Frame = 0,
    LateLatch = 1,
}

/// How an entry behaves, from the contract.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rule {
    /// Whether the release itself is kept free.
    pub(crate) soft: bool,
    /// How long after its release the work may still come, ns.
    pub(crate) hold: u64,
    /// Between releases, ns: at least 1.
    pub(crate) period: u64,
    /// Blocking after the release that does no harm, ns.
    pub(crate) tolerance: u64,
    /// From the release to the deadline of its work, ns.
    pub(crate) span: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    armed: bool,
    rule: Rule,
    /// The vblank whose work is awaited.
    slot: u64,
    release: u64,
    hold_until: u64,
    /// A slot and its release on the tenant's grid, to reckon later ones from.
    origin: (u64, u64),
    /// The newest slot whose work has come, plus one.
    seen: u64,
}

impl Entry {
    fn release_of(&self, slot: u64) -> u64 {
        let k = slot.saturating_sub(self.origin.0);
        self.origin.1.saturating_add(k.saturating_mul(self.rule.period))
    }
    fn await_slot(&mut self, slot: u64) {
        self.slot = slot;
        self.release = self.release_of(slot);
        self.hold_until = self.release.saturating_add(self.rule.hold);
    }
}

/// A reserved job, if it started now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    /// Since when it might have run.
    pub(crate) release: u64,
    /// When it is expected to end.
    pub(crate) end: u64,
    /// When it is due.
    pub(crate) deadline: u64,
    /// The longest that another tenant's job may hold it up beyond that.
    pub(crate) blocking: u64,
}

/// What other work has to keep clear of, as of one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Horizon {
    /// Expected ends are to be no later than this.
    pub(crate) soft: u64,
    /// Worst-case ends are to be no later than this.
    pub(crate) hard: u64,
    /// When the nearer of the two entries lets go, if nothing comes.
    pub(crate) until: u64,
}

/// An entry that forbids.
#[derive(Clone, Copy, Debug)]
struct Nearest {
    entry: usize,
    /// What is to be kept clear of.
    key: u64,
    /// When it lets go, if nothing comes.
    until: u64,
}

#[derive(Debug)]
pub(crate) struct Guards {
    entries: Vec<Entry>,
    soft: IndexedHeap<u64>,
    hard: IndexedHeap<u64>,
}

impl Guards {
    pub(crate) fn new(max_tenants: usize) -> Self {
        let n = 2 * max_tenants;
        Self {
            entries: vec![Entry::default(); n],
            soft: IndexedHeap::new(n),
            hard: IndexedHeap::new(n),
        }
    }

    fn index(tenant: usize, kind: Kind) -> usize {
        2 * tenant + kind as usize
    }

    /// Sets the rule of an entry; it forbids nothing before the first vblank.
    pub(crate) fn set_rule(&mut self, tenant: usize, kind: Kind, rule: Rule) {
        let i = Self::index(tenant, kind);
        if let Some(e) = self.entries.get_mut(i) {
            *e = Entry { rule: Rule { period: rule.period.max(1), ..rule }, ..Entry::default() };
            self.file(i);
        }
    }

    /// Changes what an entry tolerates.
    pub(crate) fn set_tolerance(&mut self, tenant: usize, kind: Kind, tolerance: u64) {
        let i = Self::index(tenant, kind);
        if let Some(e) = self.entries.get_mut(i) {
            e.rule.tolerance = tolerance;
            self.file(i);
        }
    }

    /// Takes both entries of a tenant out.
    pub(crate) fn remove(&mut self, tenant: usize) {
        for kind in [Kind::Frame, Kind::LateLatch] {
            let i = Self::index(tenant, kind);
            if let Some(e) = self.entries.get_mut(i) {
                *e = Entry::default();
                self.file(i);
            }
        }
    }

    /// A vblank came: frame `slot` was released at `time`, the next will be at `next`.
    pub(crate) fn frame_vblank(&mut self, tenant: usize, slot: u64, time: u64, next: u64) {
        let i = Self::index(tenant, Kind::Frame);
        let Some(e) = self.entries.get_mut(i) else {
            return;
        };
        e.armed = true;
        e.origin = (slot.saturating_add(1), next);
        if e.seen > slot {
            e.await_slot(slot.saturating_add(1));
        } else {
            e.slot = slot;
            e.release = time;
            e.hold_until = time.saturating_add(e.rule.hold);
        }
        self.file(i);
    }

    /// A vblank came: the late-latch window of frame `slot` opens at `opening`.
    pub(crate) fn late_latch_vblank(&mut self, tenant: usize, slot: u64, opening: u64) {
        let i = Self::index(tenant, Kind::LateLatch);
        let Some(e) = self.entries.get_mut(i) else {
            return;
        };
        e.armed = true;
        e.origin = (slot, opening);
        e.await_slot(slot);
        if e.seen > slot {
            e.hold_until = opening;
        }
        self.file(i);
    }

    /// Work of frame `slot` is queued since `arrival`, to be released at `release`.
    pub(crate) fn arrived(
        &mut self,
        tenant: usize,
        kind: Kind,
        slot: u64,
        release: u64,
        arrival: u64,
    ) {
        let i = Self::index(tenant, kind);
        let Some(e) = self.entries.get_mut(i) else {
            return;
        };
        if !e.armed || slot < e.slot || slot > e.origin.0.saturating_add(AHEAD) {
            return;
        }
        e.seen = e.seen.max(slot.saturating_add(1));
        if release > arrival {
            // Posted ahead: the release stays guarded, and from then on the queue speaks for itself. An
            // earlier slot that is awaited meanwhile stays the nearer guard.
            if slot == e.slot {
                e.release = release;
                e.hold_until = release;
            }
        } else {
            e.await_slot(slot.saturating_add(1));
        }
        self.file(i);
    }

    /// What must be kept clear at `now`; by work of the tenant `own`, if one is named: its own releases wait for
    /// it in any case.
    pub(crate) fn horizon(&mut self, own: Option<usize>, now: u64) -> Horizon {
        let soft = self.nearest(own, now, false);
        let hard = self.nearest(own, now, true);
        let key = |n: &Option<Nearest>| n.as_ref().map_or(u64::MAX, |n| n.key);
        let until = |n: &Option<Nearest>| n.as_ref().map_or(u64::MAX, |n| n.until);
        Horizon { soft: key(&soft), hard: key(&hard), until: until(&soft).min(until(&hard)) }
    }

    /// Until when a reserved job of `tenant` had better wait: it would run from now to its end over a release
    /// that is kept free and whose work is due before it, and waiting, with the longest job of any other
    /// tenant on top, is within the blocking that the demand test found harmless to it.
    pub(crate) fn give_way(
        &mut self,
        tenant: usize,
        kind: Kind,
        job: Span,
        now: u64,
    ) -> Option<u64> {
        let tolerance = self.entries.get(Self::index(tenant, kind))?.rule.tolerance;
        let nearest = self.nearest(Some(tenant), now, false)?;
        let span = self.entries[nearest.entry].rule.span;
        let sooner = nearest.key.saturating_add(span) < job.deadline;
        let worst = nearest.until.saturating_add(job.blocking);
        let harmless = worst <= job.release.saturating_add(tolerance);
        (job.end > nearest.key && sooner && harmless).then_some(nearest.until)
    }

    /// The nearest entry that is not of the tenant `own`, after moving on those whose work did not come in time.
    fn nearest(&mut self, own: Option<usize>, now: u64, hard: bool) -> Option<Nearest> {
        loop {
            let heap = if hard { &self.hard } else { &self.soft };
            let (entry, key) = match own {
                None => heap.peek()?,
                // Two entries at most are its own.
                Some(t) => heap.least(|i| i / 2 != t)?,
            };
            let e = &mut self.entries[entry];
            if e.hold_until > now || e.hold_until == u64::MAX {
                return Some(Nearest { entry, key, until: e.hold_until });
            }
            // One step where vblanks come as they should; the division where they have stopped.
            let missed = (now - e.hold_until) / e.rule.period;
            let slot = e.slot.saturating_add(1).saturating_add(missed);
            e.await_slot(slot);
            if e.hold_until <= now {
                // A posted release off the grid, or a slewed period: the next vblank sets it right.
                e.release = now.saturating_add(e.rule.period);
                e.hold_until = e.release.saturating_add(e.rule.hold);
            }
            self.file(entry);
        }
    }

    fn file(&mut self, i: usize) {
        let Some(e) = self.entries.get(i) else {
            return;
        };
        if e.armed && e.rule.soft {
            self.soft.set(i, e.release);
        } else {
            self.soft.remove(i);
        }
        if e.armed {
            self.hard.set(i, e.release.saturating_add(e.rule.tolerance));
        } else {
            self.hard.remove(i);
        }
    }
}
