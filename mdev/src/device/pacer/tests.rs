use super::*;
use beamline_abi::pacer::{Marker, MarkerKind, answer, reg, vector};
use beamline_abi::pci::config as header;
use beamline_abi::{FrameId, JobIndex};
use proptest::prelude::*;
use std::sync::atomic::{AtomicBool, AtomicU64};
use zerocopy::{FromBytes, IntoBytes};

fn parts() -> (Pacer, PacerBeat, PacerHandle, Arc<AtomicU64>) {
    let time = Arc::new(AtomicU64::new(0));
    let clock = Arc::clone(&time);
    let config = PacerConfig {
        slice: SliceId(*b"0123456789abcdef"),
        generation: Generation(7),
        now: Arc::new(move || Nanos(clock.load(Ordering::Relaxed))),
    };
    let (pacer, beat, handle) = Pacer::new(config).unwrap();
    (pacer, beat, handle, time)
}

fn pacer() -> (Pacer, PacerHandle, Arc<AtomicU64>) {
    let (pacer, _, handle, time) = parts();
    (pacer, handle, time)
}

fn read(pacer: &mut Pacer, bar: RegionIndex, at: u32, len: usize) -> u64 {
    let mut bytes = [0; 8];
    pacer.region_read(bar, at.into(), &mut bytes[..len]).unwrap();
    u64::from_le_bytes(bytes)
}

fn write32(pacer: &mut Pacer, bar: RegionIndex, at: u32, value: u32) {
    pacer.region_write(bar, at.into(), &value.to_le_bytes()).unwrap();
}

#[test]
fn identity_registers_read_at_any_width() {
    let (mut pacer, handle, _) = pacer();
    assert_eq!(read(&mut pacer, REGISTERS_BAR, reg::MAGIC, 4), u64::from(pacer::MAGIC));
    assert_eq!(read(&mut pacer, REGISTERS_BAR, reg::VERSION, 4), 0x1_0001);
    assert_eq!(read(&mut pacer, REGISTERS_BAR, reg::FEATURES, 8), 7);
    let mut id = [0; 16];
    pacer.region_read(REGISTERS_BAR, reg::SLICE_ID.into(), &mut id).unwrap();
    assert_eq!(&id, b"0123456789abcdef");
    assert_eq!(read(&mut pacer, REGISTERS_BAR, reg::SLICE_ID + 1, 1), u64::from(b'1'));
    assert_eq!(read(&mut pacer, REGISTERS_BAR, reg::MAGIC + 2, 4), 0x0001_4350, "unaligned");
    assert_eq!(read(&mut pacer, REGISTERS_BAR, reg::GENERATION, 4), 7);
    handle.shared().set_generation(Generation(8));
    assert_eq!(read(&mut pacer, REGISTERS_BAR, reg::GENERATION, 4), 8);
    let mut all = vec![0xff; pacer::BAR0_SIZE as usize];
    pacer.region_read(REGISTERS_BAR, 0, &mut all).unwrap();
    assert_eq!(all[..4], *b"BLPC");
    assert_eq!(all[0x100c], 1, "the first vector is masked");
    assert_eq!(all[0x2000..], [0; 0x2000]);
}

#[test]
fn time_is_latched_by_its_low_half() {
    let (mut pacer, _handle, time) = pacer();
    time.store(0x1_ffff_fff0, Ordering::Relaxed);
    assert_eq!(read(&mut pacer, REGISTERS_BAR, reg::TIME, 4), 0xffff_fff0);
    time.store(0x2_0000_0010, Ordering::Relaxed);
    assert_eq!(read(&mut pacer, REGISTERS_BAR, reg::TIME + 4, 4), 1);
    assert_eq!(read(&mut pacer, REGISTERS_BAR, reg::TIME, 8), 0x2_0000_0010);
}

#[test]
fn control_status_and_reason() {
    let (mut pacer, handle, _) = pacer();
    let status = |pacer: &mut Pacer| read(pacer, REGISTERS_BAR, reg::STATUS, 4) as u32;
    assert_eq!(status(&mut pacer), status::IDLE);
    assert!(!handle.vblank_enabled());
    write32(&mut pacer, REGISTERS_BAR, reg::CONTROL, u32::MAX);
    assert!(handle.vblank_enabled() && handle.wake().take());
    assert_eq!(read(&mut pacer, REGISTERS_BAR, reg::CONTROL, 4), 1, "unknown bits are dropped");
    assert_eq!(status(&mut pacer), status::RUNNING);
    handle.shared().set_state(SliceState::Lost);
    assert_eq!(status(&mut pacer), status::LOST);
    handle.shared().set_state(SliceState::Normal);
    handle.shared().set_reason(Reason::Quota);
    handle.shared().set_reason(Reason::Shader);
    assert_eq!(read(&mut pacer, REGISTERS_BAR, reg::REASON, 8), 2 << 32 | 6);
    handle.shared().set_state(SliceState::Lost);
    handle.shared().forget_faults();
    assert_eq!(read(&mut pacer, REGISTERS_BAR, reg::REASON, 8), 0);
    assert_eq!(status(&mut pacer), status::LOST, "the context is lost until it ends");
    handle.shared().set_state(SliceState::Normal);

    pacer.region_write(REGISTERS_BAR, reg::CONTROL.into(), &[0]).unwrap();
    assert!(handle.vblank_enabled(), "a narrow write is dropped");
    write32(&mut pacer, REGISTERS_BAR, reg::MAGIC, 0);
    assert_eq!(read(&mut pacer, REGISTERS_BAR, reg::MAGIC, 4), u64::from(pacer::MAGIC));

    pacer.reset();
    assert!(!handle.vblank_enabled() && handle.wake().take());
    assert_eq!(handle.shared().resets(), 1);
}

#[test]
fn a_function_level_reset_comes_through_configuration_space() {
    let (mut pacer, handle, _) = pacer();
    write32(&mut pacer, REGISTERS_BAR, reg::CONTROL, 1);
    let mut at = read(&mut pacer, RegionIndex::CONFIG, header::CAPABILITIES.into(), 1) as u32;
    while read(&mut pacer, RegionIndex::CONFIG, at, 1) != 0x10 {
        at = read(&mut pacer, RegionIndex::CONFIG, at + 1, 1) as u32;
    }
    pacer.region_write(RegionIndex::CONFIG, u64::from(at) + 8, &0x8000u16.to_le_bytes()).unwrap();
    assert!(!handle.vblank_enabled());
    assert_eq!(handle.shared().resets(), 1);
}

#[test]
fn vblanks_reach_the_wired_vector() {
    let (mut pacer, handle, _) = pacer();
    let wire = EventFd::new().unwrap();
    let fd = wire.as_fd().try_clone_to_owned().unwrap();
    pacer.set_irqs(IrqIndex::MSIX, 0, 1, IrqAction::SetEventFds(vec![fd])).unwrap();
    pacer.region_write(RegionIndex::CONFIG, header::COMMAND.into(), &6u16.to_le_bytes()).unwrap();
    assert_eq!(handle.signal(vector::VBLANK), Ok(true));
    assert!(wire.take());
    assert_eq!(handle.signal(vector::QUIESCE), Ok(false));
    assert!(handle.signal(vector::COUNT).is_err());
    pacer.disconnected();
    assert_eq!(handle.signal(vector::VBLANK), Ok(false));
}

#[test]
fn the_peer_cannot_write_the_timing_page() {
    let (pacer, _handle, _) = pacer();
    let region = pacer.region(TIMING_BAR);
    assert!(!region.flags.write);
    let mapping = region.mapping.unwrap();
    assert!(!mapping.write);
    assert!(crate::memory::Mapping::new(mapping.fd, 0, 4096, true).is_err());
    assert!(crate::memory::Mapping::new(mapping.fd, 0, 4096, false).is_ok());
    assert!(rustix::io::write(mapping.fd, &[1]).is_err());
    assert!(rustix::fs::ftruncate(mapping.fd, 0).is_err());
}

#[test]
fn published_fields_are_where_the_layout_says() {
    let (mut pacer, mut beat, ..) = parts();
    let page = TimingPage {
        vblank_seq: 5,
        vblank_time: Nanos(123),
        presented: FrameId(9),
        clock_err: 4,
        clock_source: 1,
        ..TimingPage::default()
    };
    beat.publish(&page);
    let mut bytes = [0; size_of::<TimingPage>()];
    pacer.region_read(TIMING_BAR, 0, &mut bytes).unwrap();
    let seen = TimingPage::read_from_bytes(&bytes).unwrap();
    assert_eq!(seen, TimingPage { lock: 4, version: pacer::VERSION, ..page });
}

/// STATUS, the vectors that the poster is to signal, ANSWER.
fn told(pacer: &mut Pacer, handle: &PacerHandle) -> (u32, Vec<u16>, u32) {
    let register = |pacer: &mut Pacer, at| read(pacer, REGISTERS_BAR, at, 4) as u32;
    let notices = handle.shared().take_notices().collect();
    (register(pacer, reg::STATUS), notices, register(pacer, reg::ANSWER))
}

#[test]
fn a_guest_is_asked_to_stop_until_it_may_go_on_whatever_it_resets() {
    let (mut pacer, handle, _) = pacer();
    let shared = Arc::clone(handle.shared());
    write32(&mut pacer, REGISTERS_BAR, reg::CONTROL, 1);
    handle.wake().take();
    shared.set_quiesce(true);
    assert!(handle.wake().take(), "the poster is woken");
    let quiesce = vec![vector::QUIESCE];
    assert_eq!(told(&mut pacer, &handle), (status::QUIESCE, quiesce.clone(), answer::NONE));
    shared.set_quiesce(true);
    assert_eq!(told(&mut pacer, &handle).1, vec![0; 0], "nothing has changed");
    // A context that is lost, and the new one after it.
    shared.set_state(SliceState::Lost);
    assert_eq!(told(&mut pacer, &handle).0, status::LOST);
    shared.set_state(SliceState::Normal);
    pacer.reset();
    assert_eq!(told(&mut pacer, &handle).0, status::QUIESCE);
    pacer.disconnected();
    assert_eq!(told(&mut pacer, &handle).0, status::QUIESCE);
    shared.set_quiesce(false);
    assert_eq!(told(&mut pacer, &handle), (status::IDLE, quiesce, answer::NONE));
}

fn stage(pacer: &mut Pacer, at: u32, value: u64) {
    pacer.region_write(REGISTERS_BAR, at.into(), &value.to_le_bytes()).unwrap();
}

#[test]
fn what_a_guest_stages_is_asked_once_and_its_answer_is_read() {
    let (mut pacer, handle, _) = pacer();
    let shared = Arc::clone(handle.shared());
    let wake = EventFd::new().unwrap();
    shared.listen(wake.clone());
    let values = [
        (reg::ASK_PERIOD_NUM, 1_000_000_000),
        (reg::ASK_PERIOD_DEN, 90),
        (reg::ASK_BUDGET, 0x1_0000_0002),
        (reg::ASK_DEADLINE, 3),
        (reg::ASK_LATE_LATCH, 0x4_0000_0000),
        (reg::ASK_LATCH_BUDGET, 5),
    ];
    for (at, value) in values {
        stage(&mut pacer, at, value);
    }
    write32(&mut pacer, REGISTERS_BAR, reg::ASK_COMMIT, 2);
    assert!(!shared.has_ask() && !wake.take(), "only 1 commits");
    write32(&mut pacer, REGISTERS_BAR, reg::ASK_COMMIT, 1);
    assert!(shared.has_ask() && wake.take());
    assert_eq!(read(&mut pacer, REGISTERS_BAR, reg::ASK_BUDGET, 8), 0, "write only");
    // A flood of others while it is pending changes nothing, and wakes nobody.
    for n in 0..10_000 {
        stage(&mut pacer, reg::ASK_BUDGET, n);
        write32(&mut pacer, REGISTERS_BAR, reg::ASK_COMMIT, 1);
    }
    assert!(!wake.take());
    assert_eq!(told(&mut pacer, &handle), (status::IDLE, vec![], answer::PENDING));
    let (turn, ask) = shared.take_ask().unwrap();
    let wanted = Ask {
        period_num: 1_000_000_000,
        period_den: 90,
        budget: Nanos(0x1_0000_0002),
        deadline: Nanos(3),
        late_latch: Nanos(0x4_0000_0000),
        latch_budget: Nanos(5),
    };
    assert_eq!(ask, wanted);
    let budget = Nanos(0x7_0000_0001);
    assert!(shared.answer(turn, Answer::Reduced { reason: Reason::NoRoom, budget }));
    assert_eq!(told(&mut pacer, &handle), (status::IDLE, vec![vector::CONTRACT], answer::REDUCED));
    let answers = read(&mut pacer, REGISTERS_BAR, reg::ANSWER_REASON, 8);
    assert_eq!(answers, 1 << 32 | Reason::NoRoom as u64);
    assert_eq!(read(&mut pacer, REGISTERS_BAR, reg::ANSWER_BUDGET, 8), budget.0);
    // What was staged last stays staged.
    write32(&mut pacer, REGISTERS_BAR, reg::ASK_COMMIT, 1);
    assert_eq!(shared.take_ask().map(|(_, ask)| ask.budget), Some(Nanos(9_999)));
}

#[test]
fn resets_and_disconnects_drop_what_was_asked() {
    for end in [Pacer::reset, Pacer::disconnected] {
        let (mut pacer, handle, _) = pacer();
        let shared = Arc::clone(handle.shared());
        let commit = |pacer: &mut Pacer| write32(pacer, REGISTERS_BAR, reg::ASK_COMMIT, 1);
        stage(&mut pacer, reg::ASK_BUDGET, 7);
        commit(&mut pacer);
        let (turn, _) = shared.take_ask().unwrap();
        assert!(shared.awaits(turn));
        end(&mut pacer);
        assert!(!shared.awaits(turn) && !shared.answer(turn, Answer::Granted));
        assert_eq!(told(&mut pacer, &handle), (status::IDLE, vec![], answer::NONE));
        // One that nobody had taken yet, and nothing staged is left.
        commit(&mut pacer);
        end(&mut pacer);
        assert_eq!(shared.take_ask(), None);
        commit(&mut pacer);
        assert_eq!(shared.take_ask().map(|(_, ask)| ask), Some(Ask::default()));
    }
}

/// Every word of a published page is derived from its number: a torn copy does not add up.
#[test]
fn a_seqlock_reader_never_sees_a_torn_page() {
    let (pacer, mut beat, ..) = parts();
    let fd = pacer.region(TIMING_BAR).mapping.unwrap().fd.try_clone_to_owned().unwrap();
    let view = crate::memory::Mapping::new(fd.as_fd(), 0, 4096, false).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut good = 0u32;
            while good < 2000 || !stop.load(Ordering::Relaxed) {
                let lock = view.load_u32(0).unwrap();
                let words: [u64; 10] = std::array::from_fn(|n| view.load_u64(8 + 8 * n).unwrap());
                std::sync::atomic::fence(Ordering::Acquire);
                if lock.is_multiple_of(2) && lock == view.load_u32(0).unwrap() {
                    assert_eq!(words, [words[0]; 10]);
                    good += 1;
                }
            }
        });
        for n in 0..200_000 {
            let time = Nanos(n);
            beat.publish(&TimingPage {
                vblank_seq: n,
                vblank_time: time,
                period_num: n,
                period_den: n,
                next_vblank: time,
                deadline: time,
                budget: time,
                phase: time,
                late_latch: time,
                presented: FrameId(n),
                ..TimingPage::default()
            });
        }
        stop.store(true, Ordering::Relaxed);
        reader.join().unwrap();
    });
}

fn put_marker(pacer: &mut Pacer, slot: u32, marker: &Marker) {
    let at = u64::from(pacer::MARKER_ENTRIES) + u64::from(slot % pacer::MARKER_CAPACITY) * 32;
    pacer.region_write(MARKER_BAR, at, marker.as_bytes()).unwrap();
}

#[test]
fn markers_are_drained_in_order_and_checked() {
    let (mut pacer, mut handle, _) = pacer();
    let marker =
        |kind, id| Marker { kind, job: JobIndex(1), id, tsc: 100 + id, ..Marker::default() };
    put_marker(&mut pacer, 0, &marker(1, 10));
    put_marker(&mut pacer, 1, &marker(77, 11));
    put_marker(&mut pacer, 2, &marker(2, 12));
    write32(&mut pacer, MARKER_BAR, pacer::MARKER_HEAD, 3);
    let mut seen = Vec::new();
    let drained = handle.markers().drain(|kind, marker| seen.push((kind, marker.id, marker.tsc)));
    assert_eq!(drained, Drained { taken: 2, unknown: 1, resynced: false });
    assert_eq!(seen, [(MarkerKind::Submit, 10, 110), (MarkerKind::Vblank, 12, 112)]);
    assert_eq!(read(&mut pacer, MARKER_BAR, pacer::MARKER_TAIL, 4), 3);
    assert_eq!(handle.markers().drain(|_, _| ()), Drained::default());
}

#[test]
fn a_senseless_producer_is_resynchronised_and_a_reset_empties_the_ring() {
    let (mut pacer, mut handle, _) = pacer();
    write32(&mut pacer, MARKER_BAR, pacer::MARKER_HEAD, 5000);
    write32(&mut pacer, MARKER_BAR, pacer::MARKER_TAIL, 4999);
    let drained = handle.markers().drain(|_, _| panic!("nothing is valid here"));
    assert_eq!(drained, Drained { resynced: true, ..Drained::default() });
    assert_eq!(read(&mut pacer, MARKER_BAR, pacer::MARKER_TAIL, 4), 5000);
    assert_eq!(handle.markers().resyncs(), 1);

    write32(&mut pacer, MARKER_BAR, pacer::MARKER_HEAD, 5000 + pacer::MARKER_CAPACITY);
    let drained = handle.markers().drain(|_, _| ());
    assert_eq!(drained.unknown, pacer::MARKER_CAPACITY);

    pacer.reset();
    assert_eq!(read(&mut pacer, MARKER_BAR, pacer::MARKER_HEAD, 8), 0);
    assert_eq!(read(&mut pacer, MARKER_BAR, pacer::MARKER_TAIL, 4), 0);
    assert_eq!(handle.markers().drain(|_, _| ()), Drained::default());
}

#[test]
fn a_committed_tsc_reaches_the_page_as_one() {
    let (mut pacer, handle, _) = pacer();
    let host = TscMap { tsc_ref: 1000, ns_ref: 1, mult: 1 << 32, err_ns: 3, rate_err_ns_per_s: 0 };
    let mut page = TimingPage::default();
    handle.shared().fill_tsc(&mut page, Some(&host));
    assert_eq!(page.clock_source, 0);

    let offset = 0xdead_beef_0000_0001u64;
    pacer.region_write(REGISTERS_BAR, reg::TSC_OFFSET.into(), &offset.to_le_bytes()).unwrap();
    write32(&mut pacer, REGISTERS_BAR, reg::TSC_SCALE + 4, 1 << 17);
    assert_eq!(handle.shared().guest_tsc(), None);
    write32(&mut pacer, REGISTERS_BAR, reg::TSC_COMMIT, 1);
    assert!(handle.wake().take());
    assert_eq!(handle.shared().guest_tsc(), Some(GuestTsc { offset, scale: 1 << 49 }));
    handle.shared().fill_tsc(&mut page, Some(&host));
    assert_eq!(page.clock_source, 1);
    assert_eq!(page.tsc_ref, 2000u64.wrapping_add(offset));
    assert_eq!(page.tsc_mult, 1 << 31);
    pacer.reset();
    assert!(handle.shared().guest_tsc().is_some());
    pacer.disconnected();
    assert_eq!(handle.shared().guest_tsc(), None);
}

proptest! {
    /// Any access inside a region is answered; none panics.
    #[test]
    fn any_access_is_answered(accesses in proptest::collection::vec(
        (prop_oneof![Just(0u32), Just(2), Just(4), Just(7)], any::<u16>(), 0usize..64, any::<bool>(), any::<u8>()),
        1..64,
    )) {
        let (mut pacer, mut handle, _) = pacer();
        for (region, offset, len, write, byte) in accesses {
            let index = RegionIndex(region);
            let size = pacer.region(index).size;
            let offset = u64::from(offset) % size;
            let len = len.min((size - offset) as usize);
            if write {
                pacer.region_write(index, offset, &vec![byte; len]).unwrap();
            } else {
                pacer.region_read(index, offset, &mut vec![0; len]).unwrap();
            }
            handle.markers().drain(|_, _| ());
        }
    }
}
