//! Stages 7 and 8: what a guest gets at a vblank, from the dispatcher's own thread: the timing page and the
//! interrupt. Waking another thread for it would cost more than all the rest.
//!
//! [`Beat`] is one slice's. [`Volley`] signals the vblanks that are due together by one call. What a vblank
//! brings besides, answers that waited for it, is the poster's, which is woken where there is any ([`Gap`]),
//! and now and then for the guest's markers.
//!
//! No peer can make the call sleep, but one can make it long, by having very many threads wait for its
//! eventfd. So the call is timed ([`Lane`]): a slice that made it long has its interrupts sent by its poster,
//! each time twice as long as the time before.

use crate::device::pacer::PacerBeat;
use crate::device::signals::{BATCH, Signals};
use beamline_abi::pacer::TimingPage;
use beamline_abi::{FrameId, Generation, Nanos};
use beamline_latency::clock::{Clock, TscMap};
use beamline_latency::recorder::Recorder;
use beamline_latency::stamp::{SliceIndex, Stamp};
use beamline_sched::{Contract, Vblank};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A volley that took longer than this was held up.
const SLOW: Nanos = Nanos::from_micros(200);
/// Signals by themselves that take longer than these count: a machine that is held up for a moment can make
/// one or two of them slow.
const STRIKE: [(Nanos, u8); 3] =
    [(Nanos::from_millis(2), 4), (Nanos::from_micros(200), 2), (Nanos::from_micros(50), 1)];
/// So much of that and a slice's poster has to send them.
const STRIKES: u8 = 4;
/// Vblanks that are signalled by themselves after a volley was slow: enough to find whose fault it was.
const ALONE: u16 = 64;
/// Vblanks that the poster signals at first.
const AWAY: u32 = 1024;
/// How often that may double.
const MAX_TURNS: u8 = 16;
/// Vblanks between two times that the poster is woken for markers; it takes them whenever it is awake.
const MARKERS: u64 = 128;

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
    lane: Lane,
}

impl Beat {
    /// A beat whose guest has not come yet: it finds its contract on the page before its first vblank.
    pub fn new(mut parts: BeatParts) -> Self {
        let page = blank(&parts);
        parts.pacer.publish(&page);
        let resets = parts.pacer.shared().resets();
        Self {
            parts,
            page,
            generation: Generation(0),
            resets,
            gap: Arc::default(),
            lane: Lane::default(),
        }
    }

    /// What the slice's poster has to know of its vblanks.
    pub fn gap(&self) -> Arc<Gap> {
        Arc::clone(&self.gap)
    }

    /// Looks at all that [`Self::vblank`] needs. Where several slices are due together, looking at all of them
    /// first has the memory fetch for them at the same time.
    pub fn warm(&self) -> u64 {
        self.gap.latest.load(Ordering::Relaxed) ^ u64::from(self.parts.pacer.warm())
    }

    /// A vblank has come: writes the page. Whether the guest wants the interrupt.
    pub fn vblank(
        &mut self,
        vblank: Vblank,
        presented: Option<FrameId>,
        generation: Generation,
    ) -> bool {
        let wanted = self.turn_page(vblank, presented, generation);
        // After the page: a guest whose answer waited for this vblank finds it there.
        self.gap.vblank(vblank.time);
        wanted
    }

    fn turn_page(
        &mut self,
        vblank: Vblank,
        presented: Option<FrameId>,
        generation: Generation,
    ) -> bool {
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

    /// Whether vblank `seq` has work for the poster.
    pub fn stirs_poster(&self, seq: u64) -> bool {
        self.gap.is_held()
            || (seq.is_multiple_of(MARKERS) && self.parts.pacer.shared().vblank_enabled())
    }

    /// Takes into account how its interrupt went.
    pub fn judge(&mut self, sent: Sent) {
        self.lane.judge(sent);
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

/// Who sends a slice's interrupts.
#[derive(Debug, Default)]
struct Lane {
    /// Vblanks that are still signalled by themselves.
    alone: u16,
    /// What counted among those.
    strikes: u8,
    /// Vblanks that are still the poster's.
    away: u32,
    /// How often it was sent away.
    turns: u8,
}

impl Lane {
    fn judge(&mut self, sent: Sent) {
        match sent {
            Sent::Together(took) => {
                if took > SLOW {
                    (self.alone, self.strikes) = (ALONE, 0);
                }
            }
            Sent::Alone(took) => {
                self.alone = self.alone.saturating_sub(1);
                let strike = STRIKE.iter().find(|(bound, _)| took > *bound);
                self.strikes += strike.map_or(0, |(_, count)| *count);
                if self.strikes >= STRIKES {
                    (self.alone, self.strikes) = (0, 0);
                    self.away = AWAY << self.turns;
                    self.turns = (self.turns + 1).min(MAX_TURNS);
                }
            }
            Sent::Refused => {}
        }
    }
}

/// What became of a vblank's interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It went with others, which took this long together.
    Together(Nanos),
    /// It went by itself.
    Alone(Nanos),
    /// It did not go: its poster has to send it.
    Refused,
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

/// An interrupt on its way.
struct Loaded {
    shot: Shot,
    wire: Arc<OwnedFd>,
    /// It goes by itself.
    alone: bool,
}

/// The interrupts of vblanks that are due together.
pub struct Volley {
    signals: Option<Signals>,
    shots: Vec<Loaded>,
    clock: Arc<dyn Clock>,
}

impl Volley {
    /// Without `signals`, each vblank is signalled by its slice's poster. `clock` is host time.
    pub fn new(signals: Option<Signals>, clock: Arc<dyn Clock>) -> Self {
        Self { signals, shots: Vec::with_capacity(BATCH), clock }
    }

    /// Takes a vblank that the guest of `beat` wants. What is not taken the poster has to signal.
    pub fn add(&mut self, beat: &mut Beat, shot: Shot) -> Result<(), Shot> {
        let lane = &mut beat.lane;
        if lane.away > 0 {
            lane.away -= 1;
            return Err(shot);
        }
        if self.signals.is_none() || self.is_full() {
            return Err(shot);
        }
        // Where nobody listens there is nothing to do.
        if let Some(wire) = beat.parts.pacer.vblank_wire() {
            self.shots.push(Loaded { shot, wire, alone: lane.alone > 0 });
        }
        Ok(())
    }

    /// Whether it has to be sent before more is added.
    fn is_full(&self) -> bool {
        self.shots.len() >= BATCH
    }

    /// Sends all interrupts. `told` is told of each; [`Beat::judge`] wants to know.
    pub fn send(&mut self, recorder: &mut Recorder, mut told: impl FnMut(Shot, Sent)) {
        let Some(signals) = self.signals.as_mut().filter(|_| !self.shots.is_empty()) else {
            return;
        };
        let mut began = self.clock.now();
        for part in self.shots.chunk_by(|before, next| !before.alone && !next.alone) {
            let mut failed = [false; BATCH];
            let wires = part.iter().map(|loaded| loaded.wire.as_fd());
            signals.send(wires, |place, _| failed[place] = true);
            let ended = self.clock.now();
            let (times, took) = ((began, ended), ended.saturating_sub(began));
            began = ended;
            for (Loaded { shot, alone, .. }, failed) in part.iter().zip(failed) {
                let Shot { slice, generation, seq, frame } = *shot;
                if failed {
                    told(*shot, Sent::Refused);
                    continue;
                }
                recorder.record(Stamp::posted(slice, generation, frame, seq, times));
                told(*shot, if *alone { Sent::Alone(took) } else { Sent::Together(took) });
            }
        }
        self.shots.clear();
    }
}

#[cfg(test)]
#[path = "beat_tests.rs"]
mod tests;
