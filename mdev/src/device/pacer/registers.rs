//! The control registers in page 0 of BAR0 ([`beamline_abi::pacer::reg`]).
//!
//! | offset | name | access |
//! |---|---|---|
//! | 0x00 | MAGIC, VERSION, FEATURES, SLICE_ID, GENERATION, STATUS | RO |
//! | 0x28 | CONTROL | RW |
//! | 0x2c | REASON, REASON_COUNT | RO |
//! | 0x38 | TIME; its low half latches the high one | RO |
//! | 0x40 | TSC_OFFSET, TSC_SCALE, TSC_COMMIT | WO |
//! | 0x60 | ASK_PERIOD_NUM, _DEN, ASK_BUDGET, ASK_DEADLINE, ASK_LATE_LATCH, ASK_LATCH_BUDGET, ASK_COMMIT | WO |
//! | 0x94 | ANSWER, ANSWER_REASON, ANSWER_COUNT, ANSWER_BUDGET; its low half latches the high one | RO |
//!
//! A register is 32 bits wide. Narrower and unaligned reads see its bytes; such writes are dropped.

use super::{Ask, Now, PacerShared};
use beamline_abi::SliceId;
use beamline_abi::pacer::{self, control, feature, reg};
use beamline_latency::clock::GuestTsc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The features of this host.
const FEATURES: u64 = feature::TSC_MAP | feature::MARKERS | feature::CONTRACT_ASK;

pub(super) struct Registers {
    slice: SliceId,
    now: Now,
    shared: Arc<PacerShared>,
    /// The high half of the TIME that was read last.
    time_high: u32,
    /// What TSC_COMMIT will take over.
    staged: GuestTsc,
    /// What ASK_COMMIT will ask for.
    ask: Ask,
    /// The high half of the ANSWER_BUDGET that was read last.
    budget_high: u32,
}

impl Registers {
    pub(super) fn new(slice: SliceId, now: Now, shared: Arc<PacerShared>) -> Self {
        Self {
            slice,
            now,
            shared,
            time_high: 0,
            staged: GuestTsc::default(),
            ask: Ask::default(),
            budget_high: 0,
        }
    }

    pub(super) fn reset(&mut self) {
        self.time_high = 0;
        self.staged = GuestTsc::default();
        self.ask = Ask::default();
        self.budget_high = 0;
    }

    /// Reads each register that the access touches once, in order.
    pub(super) fn read(&mut self, offset: u32, data: &mut [u8]) {
        let mut at = offset;
        let mut rest = data;
        while !rest.is_empty() {
            let skip = (at % 4) as usize;
            let value = self.read32(at - at % 4).to_le_bytes();
            let len = rest.len().min(4 - skip);
            let (part, more) = rest.split_at_mut(len);
            part.copy_from_slice(&value[skip..skip + len]);
            rest = more;
            at += len as u32;
        }
    }

    /// Writes whole registers; anything else is dropped.
    pub(super) fn write(&mut self, offset: u32, data: &[u8]) {
        if !offset.is_multiple_of(4) {
            return;
        }
        let (words, _) = data.as_chunks::<4>();
        for (register, word) in (offset..).step_by(4).zip(words) {
            self.write32(register, u32::from_le_bytes(*word));
        }
    }

    fn read32(&mut self, register: u32) -> u32 {
        let shared = &self.shared;
        match register {
            reg::MAGIC => pacer::MAGIC,
            reg::VERSION => pacer::VERSION,
            reg::FEATURES => FEATURES as u32,
            FEATURES_HIGH => (FEATURES >> 32) as u32,
            reg::SLICE_ID..SLICE_ID_END => {
                let (words, _) = self.slice.0.as_chunks::<4>();
                let word = words.get((register - reg::SLICE_ID) as usize / 4);
                word.map_or(0, |word| u32::from_le_bytes(*word))
            }
            reg::GENERATION => shared.generation.load(Ordering::Acquire),
            reg::STATUS => shared.status(),
            reg::CONTROL => shared.control.load(Ordering::Relaxed),
            reg::REASON => shared.reason.load(Ordering::Relaxed),
            reg::REASON_COUNT => shared.reason_count.load(Ordering::Acquire),
            reg::TIME => {
                let now = (self.now)().0;
                self.time_high = (now >> 32) as u32;
                now as u32
            }
            TIME_HIGH => self.time_high,
            reg::ANSWER => shared.desk.stand().answer(),
            reg::ANSWER_REASON => shared.desk.stand().reason(),
            reg::ANSWER_COUNT => shared.desk.stand().count().into(),
            reg::ANSWER_BUDGET => {
                let budget = shared.desk.budget().0;
                self.budget_high = (budget >> 32) as u32;
                budget as u32
            }
            ANSWER_BUDGET_HIGH => self.budget_high,
            _ => 0,
        }
    }

    fn write32(&mut self, register: u32, value: u32) {
        match register {
            reg::CONTROL => {
                let known = value & control::VBLANK_ENABLE;
                self.shared.control.store(known, Ordering::Release);
                self.shared.wake.signal();
            }
            reg::TSC_OFFSET => set_low(&mut self.staged.offset, value),
            TSC_OFFSET_HIGH => set_high(&mut self.staged.offset, value),
            reg::TSC_SCALE => set_low(&mut self.staged.scale, value),
            TSC_SCALE_HIGH => set_high(&mut self.staged.scale, value),
            reg::TSC_COMMIT if value == 1 => {
                self.shared.tsc.store(Some(Arc::new(self.staged)));
                self.shared.wake.signal();
            }
            reg::ASK_PERIOD_NUM..reg::ASK_COMMIT => self.stage(register, value),
            reg::ASK_COMMIT if value == 1 => self.shared.desk.commit(self.ask),
            _ => {}
        }
    }

    /// Sets half of a value that ASK_COMMIT will ask for.
    fn stage(&mut self, register: u32, value: u32) {
        let ask = &mut self.ask;
        let staged = match register & !7 {
            reg::ASK_PERIOD_NUM => &mut ask.period_num,
            reg::ASK_PERIOD_DEN => &mut ask.period_den,
            reg::ASK_BUDGET => &mut ask.budget.0,
            reg::ASK_DEADLINE => &mut ask.deadline.0,
            reg::ASK_LATE_LATCH => &mut ask.late_latch.0,
            _ => &mut ask.latch_budget.0,
        };
        if register.is_multiple_of(8) { set_low(staged, value) } else { set_high(staged, value) }
    }
}

const FEATURES_HIGH: u32 = reg::FEATURES + 4;
const SLICE_ID_END: u32 = reg::SLICE_ID + 16;
const TIME_HIGH: u32 = reg::TIME + 4;
const ANSWER_BUDGET_HIGH: u32 = reg::ANSWER_BUDGET + 4;
const TSC_OFFSET_HIGH: u32 = reg::TSC_OFFSET + 4;
const TSC_SCALE_HIGH: u32 = reg::TSC_SCALE + 4;

fn set_low(value: &mut u64, low: u32) {
    *value = *value & !u64::from(u32::MAX) | u64::from(low);
}

fn set_high(value: &mut u64, high: u32) {
    *value = *value & u64::from(u32::MAX) | u64::from(high) << 32;
}
