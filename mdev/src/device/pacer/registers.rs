//! The control registers in page 0 of BAR0 ([`beamline_abi::pacer::reg`]).
//!
//! | offset | name | access |
//! |---|---|---|
//! | 0x00 | MAGIC, VERSION, FEATURES, SLICE_ID, GENERATION, STATUS | RO |
//! | 0x28 | CONTROL | RW |
//! | 0x2c | REASON, REASON_COUNT | RO |
//! | 0x38 | TIME; its low half latches the high one | RO |
//! | 0x40 | TSC_OFFSET, TSC_SCALE, TSC_COMMIT | WO |
//!
//! A register is 32 bits wide. Narrower and unaligned reads see its bytes; such writes are dropped.

use super::{Now, PacerShared};
use beamline_abi::SliceId;
use beamline_abi::pacer::{self, control, feature, reg};
use beamline_latency::clock::GuestTsc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The features of this host.
const FEATURES: u64 = feature::TSC_MAP | feature::MARKERS;

pub(super) struct Registers {
    slice: SliceId,
    now: Now,
    shared: Arc<PacerShared>,
    /// The high half of the TIME that was read last.
    time_high: u32,
    /// What TSC_COMMIT will take over.
    staged: GuestTsc,
}

impl Registers {
    pub(super) fn new(slice: SliceId, now: Now, shared: Arc<PacerShared>) -> Self {
        Self { slice, now, shared, time_high: 0, staged: GuestTsc::default() }
    }

    pub(super) fn reset(&mut self) {
        self.time_high = 0;
        self.staged = GuestTsc::default();
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
            _ => {}
        }
    }
}

const FEATURES_HIGH: u32 = reg::FEATURES + 4;
const SLICE_ID_END: u32 = reg::SLICE_ID + 16;
const TIME_HIGH: u32 = reg::TIME + 4;
const TSC_OFFSET_HIGH: u32 = reg::TSC_OFFSET + 4;
const TSC_SCALE_HIGH: u32 = reg::TSC_SCALE + 4;

fn set_low(value: &mut u64, low: u32) {
    *value = *value & !u64::from(u32::MAX) | u64::from(low);
}

fn set_high(value: &mut u64, high: u32) {
    *value = *value & u64::from(u32::MAX) | u64::from(high) << 32;
}
