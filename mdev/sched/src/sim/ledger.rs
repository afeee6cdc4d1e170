//! The books of the GPU's time: who had it, for what, in the time that counts.

use super::outcome::{Doing, GpuUse, MAX_SPANS, Span};
use beamline_abi::Nanos;
use std::vec::Vec;

/// Whose work it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Label {
    pub(super) tenant: u16,
    pub(super) slot: u64,
    pub(super) job: u16,
    pub(super) late_latch: bool,
}

#[derive(Debug)]
pub(super) struct Ledger {
    /// The time that counts.
    from: u64,
    to: u64,
    /// The run's start.
    start: u64,
    pub(super) gpu: GpuUse,
    /// Work by tenant, ns.
    pub(super) tenants: Vec<u64>,
    timeline: Option<Vec<Span>>,
}

impl Ledger {
    pub(super) fn new(tenants: usize, from: u64, to: u64, start: u64, timeline: bool) -> Self {
        Self {
            from,
            to,
            start,
            gpu: GpuUse::default(),
            tenants: std::vec![0; tenants],
            timeline: timeline.then(Vec::new),
        }
    }

    /// Books a stretch.
    pub(super) fn add(&mut self, from: u64, to: u64, label: Label, doing: Doing) {
        if to <= from {
            return;
        }
        let counted = to.min(self.to).saturating_sub(from.max(self.from));
        match doing {
            Doing::Work => {
                self.gpu.busy += Nanos(counted);
                self.tenants[usize::from(label.tenant)] += counted;
            }
            Doing::Switch => self.gpu.switching += Nanos(counted),
            Doing::Preempt => self.gpu.preempting += Nanos(counted),
        }
        let Some(spans) = self.timeline.as_mut().filter(|s| s.len() < MAX_SPANS) else { return };
        let Label { tenant, slot, job, late_latch } = label;
        let (from, to) = (Nanos(from - self.start), Nanos(to - self.start));
        spans.push(Span { tenant, slot, job, late_latch, doing, from, to });
    }

    /// The stretches so far; none where they were not asked for.
    #[cfg(test)]
    pub(super) fn timeline(&self) -> &[Span] {
        self.timeline.as_deref().unwrap_or_default()
    }

    pub(super) fn take_timeline(&mut self) -> Vec<Span> {
        self.timeline.take().unwrap_or_default()
    }
}
