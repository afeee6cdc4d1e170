//! The pacer function: control registers (BAR0), timing page (BAR2) and marker ring (BAR4).
//!
//! | BAR | size | what | access from a guest |
//! |---|---|---|---|
//! | 0 | 16 KiB | page 0 registers, page 1 MSI-X table, page 2 MSI-X pending bits | trapped |
//! | 2 | 4 KiB | timing page, a seqlock written by the host | mapped, read-only |
//! | 4 | 16 KiB | marker ring, written by the guest without exits | mapped, read-write |

use crate::{FrameId, JobIndex, Nanos, assert_offset, assert_size};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// PCI vendor ID of Beamline's own functions. Not yet registered with the PCI-SIG.
pub const VENDOR_ID: u16 = 0xbea3;
/// PCI device ID of the pacer.
pub const DEVICE_ID: u16 = 0x0001;
/// PCI class code: base system peripheral, other.
pub const CLASS: u32 = 0x08_80_00;
/// What [`reg::MAGIC`] reads: "BLPC".
pub const MAGIC: u32 = u32::from_le_bytes(*b"BLPC");
/// Version of this layout: major in the high half, minor in the low. A driver refuses another major.
pub const VERSION: u32 = 0x0001_0001;

/// Size of BAR0 in bytes.
pub const BAR0_SIZE: u64 = 0x4000;
/// Offset of the MSI-X table in BAR0.
pub const MSIX_TABLE_OFFSET: u32 = 0x1000;
/// Offset of the MSI-X pending bits in BAR0.
pub const MSIX_PBA_OFFSET: u32 = 0x2000;
/// Size of BAR2, the timing page, in bytes.
pub const BAR2_SIZE: u64 = 0x1000;
/// Size of BAR4, the marker ring, in bytes.
pub const BAR4_SIZE: u64 = 0x4000;

/// MSI-X vectors of the pacer.
pub mod vector {
    /// A vblank has come.
    pub const VBLANK: u16 = 0;
    /// The contract has changed, or what was asked for is answered: read [`super::reg::ANSWER`] and the timing
    /// page.
    pub const CONTRACT: u16 = 1;
    /// The host asks the guest to stop submitting, or asks it no more: read [`super::reg::STATUS`].
    pub const QUIESCE: u16 = 2;
    /// How many there are.
    pub const COUNT: u16 = 3;
}

/// Byte offsets of the control registers in BAR0. All are 32 bits wide and naturally aligned; a 64-bit
/// value is a low register followed by a high one, and reading the low one latches the high one.
pub mod reg {
    /// RO. [`super::MAGIC`].
    pub const MAGIC: u32 = 0x00;
    /// RO. [`super::VERSION`].
    pub const VERSION: u32 = 0x04;
    /// RO, 64 bits. Feature bits, see [`super::feature`].
    pub const FEATURES: u32 = 0x08;
    /// RO, 128 bits. The slice ID.
    pub const SLICE_ID: u32 = 0x10;
    /// RO. The slice's generation.
    pub const GENERATION: u32 = 0x20;
    /// RO. See [`super::status`].
    pub const STATUS: u32 = 0x24;
    /// RW. See [`super::control`].
    pub const CONTROL: u32 = 0x28;
    /// RO. The latest [`crate::Reason`] for something of this slice that was refused or dropped.
    pub const REASON: u32 = 0x2c;
    /// RO. How many times [`REASON`] was set.
    pub const REASON_COUNT: u32 = 0x30;
    /// RO, 64 bits. Host `CLOCK_MONOTONIC` in ns at the read of the low half.
    pub const TIME: u32 = 0x38;
    /// WO, 64 bits. Written by a VMM before the guest runs: guest TSC minus host TSC, in ticks.
    pub const TSC_OFFSET: u32 = 0x40;
    /// WO, 64 bits. Written by a VMM: guest ticks per host tick, as a fixed-point number with 48
    /// fractional bits. 0 means 1.
    pub const TSC_SCALE: u32 = 0x48;
    /// WO. Writing 1 takes over [`TSC_OFFSET`] and [`TSC_SCALE`]: the timing page then maps the guest's
    /// TSC to host time.
    pub const TSC_COMMIT: u32 = 0x50;
    /// WO, 64 bits. The refresh period that the guest asks for, numerator in ns; with a denominator of 0 too,
    /// the period stays.
    pub const ASK_PERIOD_NUM: u32 = 0x60;
    /// WO, 64 bits. Its denominator.
    pub const ASK_PERIOD_DEN: u32 = 0x68;
    /// WO, 64 bits. GPU ns per period without the late latch; 0: the budget stays.
    pub const ASK_BUDGET: u32 = 0x70;
    /// WO, 64 bits. When a frame is due after its vblank, ns; 0: one period.
    pub const ASK_DEADLINE: u32 = 0x78;
    /// WO, 64 bits. Length of the late-latch window, ns; 0: no late latch.
    pub const ASK_LATE_LATCH: u32 = 0x80;
    /// WO, 64 bits. GPU ns of the late latch; 0: its budget stays.
    pub const ASK_LATCH_BUDGET: u32 = 0x88;
    /// WO. Writing 1 asks for the contract above. Dropped while [`ANSWER`] is [`super::answer::PENDING`].
    pub const ASK_COMMIT: u32 = 0x90;
    /// RO. See [`super::answer`].
    pub const ANSWER: u32 = 0x94;
    /// RO. The [`crate::Reason`] why the answer is not [`super::answer::GRANTED`].
    pub const ANSWER_REASON: u32 = 0x98;
    /// RO. How many answers there were since the last reset; wraps to 0 after 65,535.
    pub const ANSWER_COUNT: u32 = 0x9c;
    /// RO, 64 bits. The budget that was granted instead, or that would fit, ns; 0: none is known.
    pub const ANSWER_BUDGET: u32 = 0xa0;

    const _: () = {
        // 64-bit values are aligned, and nothing overlaps.
        let wide = [
            FEATURES,
            TIME,
            TSC_OFFSET,
            TSC_SCALE,
            ASK_PERIOD_NUM,
            ASK_PERIOD_DEN,
            ASK_BUDGET,
            ASK_DEADLINE,
            ASK_LATE_LATCH,
            ASK_LATCH_BUDGET,
            ANSWER_BUDGET,
        ];
        let mut n = 0;
        while n < wide.len() {
            assert!(wide[n].is_multiple_of(8) && (n == 0 || wide[n] >= wide[n - 1] + 8));
            n += 1;
        }
        assert!(TSC_COMMIT + 4 <= ASK_PERIOD_NUM && ASK_LATCH_BUDGET + 8 == ASK_COMMIT);
        assert!(ASK_COMMIT + 4 == ANSWER && ANSWER + 4 == ANSWER_REASON);
        assert!(ANSWER_REASON + 4 == ANSWER_COUNT && ANSWER_COUNT + 4 == ANSWER_BUDGET);
        assert!(ANSWER_BUDGET + 8 <= super::MSIX_TABLE_OFFSET);
    };
}

/// Bits of [`reg::FEATURES`].
pub mod feature {
    /// The timing page maps the guest's TSC to host time.
    pub const TSC_MAP: u64 = 1 << 0;
    /// The marker ring is consumed.
    pub const MARKERS: u64 = 1 << 1;
    /// A guest can ask for another contract.
    pub const CONTRACT_ASK: u64 = 1 << 2;
}

/// Values of [`reg::ANSWER`].
pub mod answer {
    /// Nothing was asked for since the last reset.
    pub const NONE: u32 = 0;
    /// The host has not decided yet.
    pub const PENDING: u32 = 1;
    /// The contract becomes what was asked for.
    pub const GRANTED: u32 = 2;
    /// The contract becomes what was asked for, with less.
    pub const REDUCED: u32 = 3;
    /// The contract stays as it is.
    pub const REFUSED: u32 = 4;
}

/// Values of [`reg::STATUS`].
pub mod status {
    /// Vblanks are off.
    pub const IDLE: u32 = 0;
    /// Vblanks are delivered.
    pub const RUNNING: u32 = 1;
    /// The host asks the guest to stop submitting.
    pub const QUIESCE: u32 = 2;
    /// The slice's GPU contexts are lost; a new context brings it back.
    pub const LOST: u32 = 3;
}

/// Bits of [`reg::CONTROL`].
pub mod control {
    /// Deliver vblanks.
    pub const VBLANK_ENABLE: u32 = 1 << 0;
}

/// The timing page. The host writes it under a seqlock: `lock` is odd while it writes. A reader copies
/// the fields, and takes the copy only where `lock` was even and unchanged around it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct TimingPage {
    /// Odd while the host writes.
    pub lock: u32,
    /// [`VERSION`].
    pub version: u32,
    /// Number of the latest vblank, from 1.
    pub vblank_seq: u64,
    /// Its time on the absolute grid: host ns.
    pub vblank_time: Nanos,
    /// The refresh period in ns, numerator and denominator.
    pub period_num: u64,
    /// See `period_num`.
    pub period_den: u64,
    /// The next vblank's time on the absolute grid: host ns.
    pub next_vblank: Nanos,
    /// When the frame that starts at the latest vblank is due: host ns.
    pub deadline: Nanos,
    /// GPU time per period that the contract grants: ns.
    pub budget: Nanos,
    /// Offset of this slice's grid from the host's common grid: ns.
    pub phase: Nanos,
    /// How long before a vblank the late-latch window opens: ns; 0 without late latch.
    pub late_latch: Nanos,
    /// The frame shown since the latest vblank.
    pub presented: FrameId,
    /// TSC map, valid where `clock_source` is not 0:
    /// `host_ns = ns_ref + ((guest_tsc - tsc_ref) * tsc_mult >> 32)`.
    pub tsc_ref: u64,
    /// See `tsc_ref`.
    pub ns_ref: Nanos,
    /// See `tsc_ref`: ns per tick with 32 fractional bits.
    pub tsc_mult: u64,
    /// Bound on the map's error: ns.
    pub clock_err: u32,
    /// 0: no map. 1: the map rests on what the VMM wrote.
    pub clock_source: u32,
}
assert_size!(TimingPage, 120);
assert_offset!(TimingPage, vblank_seq, 8);
assert_offset!(TimingPage, presented, 80);
assert_offset!(TimingPage, clock_err, 112);

/// Entries of the marker ring: a power of two.
pub const MARKER_CAPACITY: u32 = 256;
/// Offset of the first [`Marker`] in BAR4.
pub const MARKER_ENTRIES: u32 = 0x80;
/// Offset of the producer's index (`u32`, free running, written by the guest).
pub const MARKER_HEAD: u32 = 0x00;
/// Offset of the guest's count of markers that found no room (`u32`).
pub const MARKER_DROPPED: u32 = 0x04;
/// Offset of the consumer's index (`u32`, free running, written by the host).
pub const MARKER_TAIL: u32 = 0x40;
const _: () = assert!(MARKER_CAPACITY.is_power_of_two());
const _: () = assert!(MARKER_ENTRIES as u64 + MARKER_CAPACITY as u64 * 32 <= BAR4_SIZE);

/// One entry of the marker ring: something the guest saw, with its own clock.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Marker {
    /// See [`MarkerKind`].
    pub kind: u32,
    /// The job, for [`MarkerKind::Submit`].
    pub job: JobIndex,
    /// Zero.
    pub reserved: u16,
    /// The frame, for [`MarkerKind::Submit`]; the vblank sequence for [`MarkerKind::Vblank`].
    pub id: u64,
    /// The guest's TSC at that moment.
    pub tsc: u64,
    /// Free for the guest's own use.
    pub aux: u64,
}
assert_size!(Marker, 32);

/// What a [`Marker`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MarkerKind {
    /// Stage 1: the guest is about to put this job into its queue.
    Submit = 1,
    /// Stage 9: the guest's handler saw this vblank.
    Vblank = 2,
}

impl MarkerKind {
    /// The kind with this number, if there is one.
    pub const fn from_raw(raw: u32) -> Option<Self> {
        match raw {
            1 => Some(Self::Submit),
            2 => Some(Self::Vblank),
            _ => None,
        }
    }
}
