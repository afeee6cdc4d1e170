//! Stages 7 and 8: what a guest gets at a vblank, from the dispatcher's own thread: the timing page and the
//! interrupt. Waking another thread for it would cost more than all the rest.
//!
//! [`Beat`] is one slice's. [`Volley`] signals the vblanks that are due together by one call, which no peer
//! can hold up. What a vblank brings besides, markers and answers that waited for it, is the poster's: it is
//! woken where there is any of it ([`Gap`]).

use crate::device::pacer::PacerBeat;
use crate::device::signals::{BATCH, Signals};
use beamline_abi::pacer::TimingPage;
use beamline_abi::{FrameId, Generation, Nanos};
use beamline_latency::clock::{Clock, TscMap};
use beamline_latency::recorder::Recorder;
use beamline_latency::stamp::{SliceIndex, Stamp};
use beamline_sched::{Contract, Vblank};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What a beat is made of.
pub struct BeatParts {
    /// What the slice is promised.
    pub contract: Contract,
    /// Offset of its vblanks from the host's grid.
    pub phase: Nanos,
    /// Timing page and vblank vector.
    pub pacer: PacerBeat,
    /// This host's TSC on host time.
    pub tsc: Option<TscMap>,
}

/// One slice's vblanks as its guest sees them.
pub struct Beat {
    parts: BeatParts,
    page: TimingPage,
    generation: Generation,
    /// Resets of the pacer that were followed.
    resets: u32,
    gap: Arc<Gap>,
}

impl Beat {
    /// A beat whose guest has not come yet: it finds its contract on the page before its first vblank.
    pub fn new(mut parts: BeatParts) -> Self {
        let page = blank(&parts);
        parts.pacer.publish(&page);
        let resets = parts.pacer.shared().resets();
        Self { parts, page, generation: Generation(0), resets, gap: Arc::default() }
    }

    /// What the slice's poster has to know of its vblanks.
    pub fn gap(&self) -> Arc<Gap> {
        Arc::clone(&self.gap)
    }

    /// A vblank has come: writes the page. Whether the guest wants the interrupt.
    pub fn vblank(
        &mut self,
        vblank: Vblank,
        presented: Option<FrameId>,
        generation: Generation,
    ) -> bool {
        self.gap.vblank(vblank.time);
        self.follow_resets();
        if self.generation != generation {
            self.generation = generation;
            self.page.presented = FrameId::NONE;
        }
        let BeatParts { contract, pacer, tsc, .. } = &mut self.parts;
        if !pacer.shared().vblank_enabled() {
            return false;
        }
        self.page.vblank_seq = vblank.seq;
        self.page.vblank_time = vblank.time;
        self.page.next_vblank = vblank.next;
        self.page.deadline = vblank.time.saturating_add(contract.deadline);
        if let Some(frame) = presented {
            self.page.presented = frame;
        }
        pacer.shared().fill_tsc(&mut self.page, tsc.as_ref());
        pacer.publish(&self.page);
        true
    }

    /// The page says what holds from the next vblank on, also to a guest that has its vblanks off.
    pub fn contract(&mut self, contract: Contract, phase: Nanos) {
        (self.parts.contract, self.parts.phase) = (contract, phase);
        let blank = blank(&self.parts);
        self.page.period_num = blank.period_num;
        self.page.period_den = blank.period_den;
        self.page.budget = blank.budget;
        self.page.phase = blank.phase;
        self.page.late_latch = blank.late_latch;
        self.parts.pacer.publish(&self.page);
    }

    /// Whether this vblank has work for the poster.
    pub fn stirs_poster(&self) -> bool {
        self.gap.is_held() || self.parts.pacer.has_markers()
    }

    /// A guest that comes next finds nothing of the one before it.
    fn follow_resets(&mut self) {
        let resets = self.parts.pacer.shared().resets();
        if std::mem::replace(&mut self.resets, resets) != resets {
            self.page = blank(&self.parts);
            self.parts.pacer.publish(&self.page);
        }
    }
}

/// The timing page before the first vblank.
fn blank(parts: &BeatParts) -> TimingPage {
    let contract = &parts.contract;
    TimingPage {
        period_num: contract.period.num(),
        period_den: contract.period.den(),
        budget: contract.budget,
        phase: parts.phase,
        late_latch: contract.late_latch.map_or(Nanos::ZERO, |l| l.window),
        ..TimingPage::default()
    }
}

/// What lets the dispatcher leave a poster asleep: it says which vblank was the latest, and the poster whether
/// answers wait for one. Each side writes its own before it reads the other's, so none is missed.
#[derive(Debug, Default)]
pub struct Gap {
    latest: AtomicU64,
    held: AtomicBool,
}

impl Gap {
    /// Time of the latest vblank, ns; 0 before the first.
    pub fn latest(&self) -> Nanos {
        Nanos(self.latest.load(Ordering::SeqCst))
    }

    /// Says whether answers wait for a vblank.
    pub fn hold(&self, held: bool) {
        self.held.store(held, Ordering::SeqCst);
    }

    /// Whether answers wait for a vblank.
    pub fn is_held(&self) -> bool {
        self.held.load(Ordering::SeqCst)
    }

    /// A vblank has come.
    pub fn vblank(&self, time: Nanos) {
        self.latest.store(time.0, Ordering::SeqCst);
    }
}

/// A vblank whose interrupt is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shot {
    /// Whose.
    pub slice: SliceIndex,
    /// The slice's life.
    pub generation: Generation,
    /// Its number.
    pub seq: u64,
    /// The frame shown from this vblank on, or [`FrameId::NONE`] where it is still the one before.
    pub frame: FrameId,
}

/// The interrupts of vblanks that are due together.
pub struct Volley {
    signals: Option<Signals>,
    shots: Vec<Shot>,
    clock: Arc<dyn Clock>,
}

impl Volley {
    /// Without `signals`, each vblank is signalled by its slice's poster. `clock` is host time.
    pub fn new(signals: Option<Signals>, clock: Arc<dyn Clock>) -> Self {
        Self { signals, shots: Vec::with_capacity(BATCH), clock }
    }

    /// Takes a vblank that the guest of `beat` wants. What is not taken the poster has to signal.
    pub fn add(&mut self, beat: &Beat, shot: Shot) -> Result<(), Shot> {
        let Some(signals) = &mut self.signals else { return Err(shot) };
        // Where nobody listens there is nothing to do.
        if let Some(wire) = beat.parts.pacer.vblank_wire() {
            signals.push(wire);
            self.shots.push(shot);
        }
        Ok(())
    }

    /// Whether it has to be sent before more is added.
    pub fn is_full(&self) -> bool {
        self.shots.len() >= BATCH
    }

    /// Sends all interrupts; the poster has to send those that are `refused`.
    pub fn send(&mut self, recorder: &mut Recorder, mut refused: impl FnMut(Shot)) {
        let Some(signals) = self.signals.as_mut().filter(|_| !self.shots.is_empty()) else {
            return;
        };
        let at = self.clock.now();
        let mut failed = [false; BATCH];
        signals.send(|place, _| failed[place] = true);
        for (shot, failed) in self.shots.drain(..).zip(failed) {
            if failed {
                refused(shot);
            } else {
                let Shot { slice, generation, seq, frame } = shot;
                recorder.record(Stamp::posted(slice, generation, frame, seq, at));
            }
        }
    }
}

#[cfg(test)]
#[path = "beat_tests.rs"]
mod tests;
