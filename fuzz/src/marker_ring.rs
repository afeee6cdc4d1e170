//! A hostile guest on the pacer: its marker ring, its registers, and the clock that a VMM tells it.

use crate::input::Input;
use beamline_abi::pacer::{
    self, BAR0_SIZE, BAR2_SIZE, BAR4_SIZE, MARKER_CAPACITY, MARKER_ENTRIES, MARKER_HEAD,
    MARKER_TAIL, Marker, TimingPage, answer, control, reg, status, vector,
};
use beamline_abi::{Generation, JobIndex, Nanos, Reason, SliceId};
use beamline_latency::clock::TscMap;
use beamline_mdev::device::pacer::{
    Answer, Pacer, PacerBeat, PacerConfig, PacerHandle, SliceState,
};
use beamline_vfio_user::{Device, RegionIndex};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use zerocopy::{FromBytes, IntoBytes};

const MAX_STEPS: usize = 64;
const REGISTERS: RegionIndex = RegionIndex::bar(0);
const TIMING: RegionIndex = RegionIndex::bar(2);
const RING: RegionIndex = RegionIndex::bar(4);
const SLICE: SliceId = SliceId(*b"0123456789abcdef");
/// A counter of 2.5 GHz.
const HOST: TscMap = TscMap {
    tsc_ref: 1_000_000,
    ns_ref: 5_000_000,
    mult: (2u64 << 32) / 5,
    err_ns: 40,
    rate_err_ns_per_s: 1_000,
};

/// Runs one life of a pacer.
pub(crate) fn run(data: &[u8]) {
    let time = Arc::new(AtomicU64::new(0));
    let clock = Arc::clone(&time);
    let config = PacerConfig {
        slice: SLICE,
        generation: Generation(1),
        now: Arc::new(move || Nanos(clock.load(Ordering::Relaxed))),
    };
    let (pacer, beat, handle) = Pacer::new(config).expect("a pacer can be made");
    let page = TimingPage::default();
    let state = SliceState::Normal;
    let mut bench = Bench { pacer, beat, handle, time, page, state, quiesce: false };
    let mut input = Input::new(data);
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        bench.step(&mut input);
        bench.check();
    }
}

struct Bench {
    pacer: Pacer,
    beat: PacerBeat,
    handle: PacerHandle,
    time: Arc<AtomicU64>,
    /// What was published last.
    page: TimingPage,
    state: SliceState,
    /// Whether the guest is asked to stop submitting.
    quiesce: bool,
}

impl Bench {
    fn step(&mut self, input: &mut Input<'_>) {
        match input.below(12) {
            0 | 1 => self.write(RING, MARKER_HEAD.into(), &input.number32().to_le_bytes()),
            2 => {
                let marker = Marker {
                    kind: input.below(4) as u32,
                    job: JobIndex(input.number16()),
                    reserved: 0,
                    id: input.number(),
                    tsc: input.number(),
                    aux: 0,
                };
                let at = u64::from(MARKER_ENTRIES) + 32 * u64::from(input.u8());
                self.write(RING, at, marker.as_bytes());
            }
            3 => {
                let at = input.number() % BAR4_SIZE;
                let data = input.bytes(255);
                self.write(RING, at, data);
            }
            4 | 5 => self.drain(),
            6 => {
                let at = input.below(0xb0) as u64;
                let data = input.bytes(32);
                self.write(REGISTERS, at, data);
            }
            7 => self.commit_tsc(input),
            8 => self.publish(input),
            9 => match input.below(4) {
                which @ 0..2 => {
                    self.state = [SliceState::Normal, SliceState::Lost][which];
                    self.handle.shared().set_state(self.state);
                    self.handle.shared().set_reason(Reason::Quota);
                }
                2 => {
                    let before = std::mem::replace(&mut self.quiesce, input.flag());
                    self.handle.shared().set_quiesce(self.quiesce);
                    let mut told = self.handle.shared().take_notices();
                    assert_eq!(told.any(|v| v == vector::QUIESCE), before != self.quiesce);
                }
                _ => self.decide(input),
            },
            10 => self.read_time(input),
            _ => {
                // The timing page is read-only memory: writes are dropped.
                let data = input.bytes(255);
                self.write(TIMING, 0, data);
                match input.below(4) {
                    0 => self.pacer.reset(),
                    1 => self.pacer.disconnected(),
                    _ => {}
                }
            }
        }
    }

    fn write(&mut self, region: RegionIndex, at: u64, data: &[u8]) {
        let size = self.pacer.region(region).size;
        let data = &data[..data.len().min((size - at) as usize)];
        if !data.is_empty() {
            self.pacer.region_write(region, at, data).expect("the region is there");
        }
    }

    fn read<const N: usize>(&mut self, region: RegionIndex, at: u64) -> [u8; N] {
        let mut bytes = [0xaa; N];
        self.pacer.region_read(region, at, &mut bytes).expect("the region is there");
        bytes
    }

    fn register(&mut self, at: u32) -> u32 {
        u32::from_le_bytes(self.read(REGISTERS, at.into()))
    }

    /// One look is bounded, and leaves a ring that is empty or was skipped.
    fn drain(&mut self) {
        let head: [u8; 4] = self.read(RING, MARKER_HEAD.into());
        let mut taken = 0;
        let drained = self.handle.markers().drain(|_, _| taken += 1);
        assert_eq!(drained.taken, taken);
        assert!(drained.taken + drained.unknown <= MARKER_CAPACITY);
        let tail: [u8; 4] = self.read(RING, MARKER_TAIL.into());
        if drained.taken + drained.unknown > 0 || drained.resynced {
            assert_eq!(head, tail, "the guest sees that all was taken");
        }
        let again = self.handle.markers().drain(|_, _| panic!("a marker comes twice"));
        assert_eq!((again.taken, again.unknown, again.resynced), (0, 0, false));
        let _ = self.handle.markers().dropped_by_guest();
    }

    /// Whatever a VMM says about the guest's clock, the page has a map that is right or none.
    fn commit_tsc(&mut self, input: &mut Input<'_>) {
        let (offset, scale) = (input.number(), input.number());
        self.write(REGISTERS, reg::TSC_OFFSET.into(), &offset.to_le_bytes());
        self.write(REGISTERS, reg::TSC_SCALE.into(), &scale.to_le_bytes());
        self.write(REGISTERS, reg::TSC_COMMIT.into(), &input.number32().to_le_bytes());
        let mut page = self.page;
        self.handle.shared().fill_tsc(&mut page, Some(&HOST));
        match (page.clock_source, self.handle.shared().guest_tsc()) {
            (0, _) => assert_eq!((page.tsc_ref, page.ns_ref, page.tsc_mult), (0, Nanos(0), 0)),
            (1, Some(guest)) => {
                assert_eq!(page.tsc_ref, guest.from_host(HOST.tsc_ref));
                assert_eq!(page.ns_ref, Nanos(HOST.ns_ref));
                assert!(page.tsc_mult > 0);
            }
            other => panic!("{other:?}"),
        }
    }

    /// A request is answered once, and not after a reset.
    fn decide(&mut self, input: &mut Input<'_>) {
        for _ in 0..input.below(3) {
            let at = u64::from(reg::ASK_PERIOD_NUM) + 4 * input.below(12) as u64;
            self.write(REGISTERS, at, &input.number32().to_le_bytes());
        }
        if input.flag() {
            self.write(REGISTERS, reg::ASK_COMMIT.into(), &1u32.to_le_bytes());
            assert_eq!(self.register(reg::ANSWER), answer::PENDING);
        }
        let count = self.register(reg::ANSWER_COUNT);
        let Some((turn, _)) = self.handle.shared().take_ask() else {
            // One that was taken is answered below.
            assert_ne!(self.register(reg::ANSWER), answer::PENDING);
            return;
        };
        let _ = self.handle.shared().take_notices().count();
        assert!(self.handle.shared().awaits(turn) && self.handle.shared().take_ask().is_none());
        let reset = input.u8() < 0x20;
        if reset {
            self.pacer.reset();
        }
        let budget = Nanos(input.number());
        let (said, word) = match input.below(3) {
            0 => (Answer::Granted, answer::GRANTED),
            1 => (Answer::Reduced { reason: Reason::NoRoom, budget }, answer::REDUCED),
            _ => (Answer::Refused { reason: Reason::Ceiling, budget }, answer::REFUSED),
        };
        assert_eq!(self.handle.shared().answer(turn, said), !reset);
        assert!(!self.handle.shared().answer(turn, said), "an answer comes twice");
        let told: Vec<u16> = self.handle.shared().take_notices().collect();
        if reset {
            assert_eq!((self.register(reg::ANSWER), told.len()), (answer::NONE, 0));
            return;
        }
        assert_eq!((self.register(reg::ANSWER), told), (word, vec![vector::CONTRACT]));
        assert_eq!(self.register(reg::ANSWER_COUNT), (count + 1) & 0xffff);
        let named = if word == answer::GRANTED { 0 } else { budget.0 };
        let read: [u8; 8] = self.read(REGISTERS, reg::ANSWER_BUDGET.into());
        assert_eq!(u64::from_le_bytes(read), named);
    }

    fn publish(&mut self, input: &mut Input<'_>) {
        self.page.vblank_seq = input.number();
        self.page.vblank_time = Nanos(input.number());
        self.handle.shared().fill_tsc(&mut self.page, Some(&HOST));
        self.beat.publish(&self.page);
    }

    /// The low half latches the high one.
    fn read_time(&mut self, input: &mut Input<'_>) {
        let first = input.number();
        self.time.store(first, Ordering::Relaxed);
        let low = self.register(reg::TIME);
        self.time.store(input.number(), Ordering::Relaxed);
        let high = self.register(reg::TIME + 4);
        assert_eq!(u64::from(high) << 32 | u64::from(low), first);
    }

    fn check(&mut self) {
        assert_eq!(self.register(reg::MAGIC), pacer::MAGIC);
        assert_eq!(self.register(reg::VERSION), pacer::VERSION);
        assert_eq!(self.read::<16>(REGISTERS, reg::SLICE_ID.into()), SLICE.0);
        assert_eq!(self.register(reg::GENERATION), 1);
        assert_eq!(self.register(reg::CONTROL) & !control::VBLANK_ENABLE, 0);
        let on = self.register(reg::CONTROL) == control::VBLANK_ENABLE;
        assert_eq!(self.handle.vblank_enabled(), on);
        let wanted = match self.state {
            SliceState::Lost => status::LOST,
            SliceState::Normal if self.quiesce => status::QUIESCE,
            SliceState::Normal if on => status::RUNNING,
            SliceState::Normal => status::IDLE,
        };
        assert_eq!(self.register(reg::STATUS), wanted);
        assert_eq!(self.read::<8>(REGISTERS, BAR0_SIZE - 8), [0; 8]);
        let staged = self.read::<52>(REGISTERS, reg::ASK_PERIOD_NUM.into());
        assert_eq!(staged, [0; 52], "what is asked for is write only");
        assert!(self.register(reg::ANSWER) <= answer::REFUSED);
        assert!(Reason::from_raw(self.register(reg::ANSWER_REASON)).is_some());

        let bytes: [u8; size_of::<TimingPage>()] = self.read(TIMING, 0);
        let (page, _) = TimingPage::read_from_prefix(&bytes).expect("the page is that long");
        assert!(page.lock.is_multiple_of(2));
        let wanted = TimingPage { lock: page.lock, version: pacer::VERSION, ..self.page };
        assert_eq!(page, wanted);
        assert_eq!(self.read::<8>(TIMING, BAR2_SIZE - 8), [0; 8]);
    }
}
