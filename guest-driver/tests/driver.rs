//! The driver's parts against the layouts, and against devices that break the rules.

mod machine;

use beamline_abi::frame::{Binding, CreateBuffer, MAX_COMMANDS, submit_flag};
use beamline_abi::pacer::{MARKER_CAPACITY, Marker, TimingPage, answer};
use beamline_abi::virtio_gpu::cmd;
use beamline_abi::{FrameId, JobIndex, Nanos, Reason};
use beamline_guest_driver::gpu::{CommandError, Commands, Gpu, GpuError, JobPlace, SLOTS};
use beamline_guest_driver::pacer::{Answer, Ask, AskError, AskLatch, Pacer, VblankPoll, host_time};
use beamline_guest_driver::pci::{self, PciError};
use beamline_guest_driver::scene::{Params, ParamsError};
use beamline_guest_driver::transport::{Arena, Gpa, Slot, Transport};
use machine::{Accept, Command, Machine, decode};
use proptest::prelude::*;

const PLACE: JobPlace =
    JobPlace { frame: FrameId(7), job: JobIndex(1), jobs: 2, flags: submit_flag::LATE_LATCH };

#[test]
fn a_job_reads_back_as_it_was_written() {
    let mut buffer = [0xaa; 1024];
    let mut c = Commands::new(&mut buffer);
    c.write_buffer(3, 16, &[1, 2, 3, 4]);
    c.latch(4, 0x1234_5678_9abc, 16);
    c.dispatch(9, [1, 2, 3], &[3, 4, 5]);
    c.present(8);
    let submission = c.finish_job(PLACE).expect("it fits");
    assert_eq!((submission.frame, submission.job), (FrameId(7), JobIndex(1)));
    let (header, commands) = decode(submission.bytes).expect("valid");
    assert_eq!((header.frame, header.job.0, header.jobs, header.flags), (FrameId(7), 1, 2, 1));
    let bindings = [3, 4, 5].iter().enumerate();
    let bindings = bindings.map(|(slot, id)| Binding { slot: slot as u32, id: *id }).collect();
    assert_eq!(
        commands[0],
        Command::Write { id: 3, offset: 16, bytes: vec![1, 2, 3, 4] },
        "padding is not part of the bytes"
    );
    assert_eq!(commands[2], Command::Dispatch { pipeline: 9, groups: [1, 2, 3], bindings });
}

#[test]
fn the_first_mistake_of_a_stream_is_the_one_reported() {
    let mut buffer = [0; 64];
    let mut c = Commands::new(&mut buffer);
    c.create_buffer(1, 5);
    c.dispatch(1, [1; 3], &[0; 9]);
    c.create_pipeline(2, "main", "far too long for what is left of the buffer");
    assert_eq!(c.finish_setup().err(), Some(CommandError::TooMany { command: 1 }));
    let mut buffer = [0; 80];
    let mut c = Commands::new(&mut buffer);
    c.create_buffer(1, 5);
    c.create_pipeline(2, "main", "far too long");
    c.destroy(1);
    let refused = c.finish_setup().err();
    assert_eq!(refused, Some(CommandError::NoRoom { command: 1, room: 80 }));
    let mut buffer = vec![0; 64 * 1024];
    let mut c = Commands::new(&mut buffer);
    (0..=MAX_COMMANDS as u32).for_each(|id| c.destroy(id));
    assert!(matches!(c.finish_setup(), Err(CommandError::TooMany { command: 256 })));
    assert!(Commands::new(&mut [0; 8]).finish_setup().is_err(), "not even the header fits");
}

proptest! {
    #[test]
    fn any_setup_reads_back(sizes in prop::collection::vec(1u64..1 << 40, 0..8), wgsl in "\\PC{0,40}") {
        let mut buffer = [0; 4096];
        let mut c = Commands::new(&mut buffer);
        for (id, size) in sizes.iter().enumerate() {
            c.create_buffer(id as u32, *size);
        }
        c.create_pipeline(99, "main", &wgsl);
        let (header, commands) = decode(c.finish_setup().expect("fits").bytes).expect("valid");
        prop_assert_eq!((header.frame, header.jobs), (FrameId::NONE, 0));
        for ((id, size), command) in sizes.iter().enumerate().zip(&commands) {
            let size = size.next_multiple_of(16);
            let wanted = CreateBuffer { id: id as u32, reserved: 0, size };
            prop_assert_eq!(command, &Command::Buffer(wanted));
        }
        let wanted = Command::Pipeline { id: 99, entry: "main".into(), wgsl };
        prop_assert_eq!(commands.last(), Some(&wanted));
    }

    #[test]
    fn no_command_line_panics(line in "(scene=(vr|game|flood))?( (cost2?|depth|width|frames|x)=?[0-9a-z]{0,22})*") {
        let _ = Params::parse(&line).map_err(|e| e.to_string());
    }
}

#[test]
fn command_lines_are_read_or_refused_with_the_word() {
    let p = Params::parse("scene=game cost=1 cost3=9 height=90 frames=5 depth=5").expect("valid");
    assert_eq!((p.cost[0], p.cost[2], p.height, p.frames, p.depth), (1, 9, 90, 5, 5));
    assert_eq!(Params::parse("cost=1"), Err(ParamsError::Scene));
    assert_eq!(Params::parse("scene=vr fast"), Err(ParamsError::Unknown("fast")));
    let (word, min, max) = ("depth=6", 1, 5);
    assert_eq!(Params::parse("scene=game depth=6"), Err(ParamsError::Range { word, min, max }));
}

#[test]
fn tsc_maps_to_host_time_with_an_offset_and_before_the_reference() {
    let page = TimingPage {
        tsc_ref: 1_000_000_000_000,
        ns_ref: Nanos(5_000_000),
        tsc_mult: 1 << 31, // half a ns a tick
        clock_source: 1,
        ..TimingPage::default()
    };
    assert_eq!(host_time(&page, 1_000_000_002_000), Some(Nanos(5_001_000)));
    assert_eq!(host_time(&page, 999_999_998_000), Some(Nanos(4_999_000)));
    assert_eq!(host_time(&page, 0), None, "before the host's clock began");
    assert_eq!(host_time(&TimingPage { clock_source: 0, ..page }, page.tsc_ref), None);
    // The host's reference lies before the guest's counter began: 4,000 ticks below 0.
    let early = TimingPage { tsc_ref: 4_000u64.wrapping_neg(), ..page };
    assert_eq!(host_time(&early, 2_000), Some(Nanos(5_003_000)));
    let wild = TimingPage { tsc_mult: u64::MAX, tsc_ref: 0, ..page };
    assert_eq!(host_time(&wild, u64::MAX), None, "nonsense is no time, and no panic");
}

#[test]
fn the_marker_ring_wraps_drops_when_full_and_goes_on() {
    let mut m = Machine::new(Accept::default());
    let targets = Machine::<Accept>::targets().pacer;
    let mut pacer = Pacer::attach(&mut m, Slot(0), &targets).expect("attaches");
    let mark = |id| Marker { kind: 1, id, ..Marker::default() };
    let capacity = u64::from(MARKER_CAPACITY);
    for round in 0..3 {
        (0..capacity + 10).for_each(|i| pacer.markers.push(&mut m, &mark(round * 1000 + i)));
        let ids: Vec<_> = m.markers().iter().map(|marker| marker.id).collect();
        assert_eq!(ids, (0..capacity).map(|i| round * 1000 + i).collect::<Vec<_>>());
    }
    assert_eq!(pacer.markers.dropped(), 30);
}

#[test]
fn a_vblank_is_seen_once() {
    let mut m = Machine::new(Accept::default());
    let targets = Machine::<Accept>::targets().pacer;
    let mut pacer = Pacer::attach(&mut m, Slot(0), &targets).expect("attaches");
    assert_eq!(pacer.poll_vblank(&mut m), VblankPoll::None);
    m.next_vblank();
    assert!(matches!(pacer.poll_vblank(&mut m), VblankPoll::New(v) if (v.seq, v.missed) == (1, 0)));
    assert_eq!(pacer.poll_vblank(&mut m), VblankPoll::None);
    // A sequence that goes back is the host's mistake; it is not a vblank.
    m.timing.vblank_seq = 0;
    assert_eq!(pacer.poll_vblank(&mut m), VblankPoll::None);
}

#[test]
fn a_contract_is_asked_for_and_each_answer_is_seen_once() {
    let mut m = Machine::new(Accept::default());
    let targets = Machine::<Accept>::targets().pacer;
    let mut pacer = Pacer::attach(&mut m, Slot(0), &targets).expect("attaches");
    assert_eq!(pacer.poll_answer(&mut m), None);
    let latch = AskLatch { window: Nanos(0x3_0000_0001), budget: None };
    let ask = Ask {
        period: Some((100_000_000, 9)),
        budget: Some(Nanos(4_000_000)),
        deadline: None,
        late_latch: Some(latch),
    };
    assert_eq!(pacer.ask(&mut m, &ask), Ok(()));
    let wanted = [100_000_000, 0, 9, 0, 4_000_000, 0, 0, 0, 1, 3, 0, 0];
    assert_eq!(m.asked.values().copied().collect::<Vec<_>>(), wanted, "all is staged anew");
    assert_eq!((m.commits, pacer.poll_answer(&mut m)), (1, None));
    m.answer[0] = answer::PENDING;
    assert_eq!(pacer.ask(&mut m, &Ask::default()), Err(AskError::Pending));
    let no_room = Reason::NoRoom as u32;
    m.answer = [answer::REDUCED, no_room, 1, 5, 1];
    let (reason, budget) = (Some(Reason::NoRoom), Nanos(0x1_0000_0005));
    assert_eq!(pacer.poll_answer(&mut m), Some(Answer::Reduced { reason, budget }));
    assert_eq!(pacer.poll_answer(&mut m), None, "it was seen");
    assert_eq!(pacer.ask(&mut m, &Ask::default()), Ok(()));
    assert!(m.asked.values().all(|word| *word == 0), "nothing is left of the one before");
    m.answer = [answer::REFUSED, 999, 2, 0, 0];
    let refused = Answer::Refused { reason: None, fits: None };
    assert_eq!(pacer.poll_answer(&mut m), Some(refused));
    // After a reset of the function the count begins anew.
    m.answer = [answer::NONE, 0, 0, 0, 0];
    assert_eq!(pacer.ask(&mut m, &Ask::default()), Ok(()));
    m.answer = [answer::GRANTED, 0, 1, 0, 0];
    assert_eq!(pacer.poll_answer(&mut m), Some(Answer::Granted));
    m.pacer_features = 3;
    assert_eq!(pacer.ask(&mut m, &ask), Err(AskError::Unsupported));
    assert_eq!(m.commits, 3);
}

#[test]
fn pci_functions_are_found_and_broken_lists_refused() {
    let mut m = Machine::new(Accept::default());
    let found = pci::find(&mut m, 0x1af4, 0x1050, Slot(0)).expect("there is a vGPU");
    assert_eq!(found.slot(), Slot(4));
    assert!(found.bar(&m, 0, 0x1000, 16).is_ok());
    assert!(found.bar(&m, 0, u64::MAX, 16).is_err(), "an offset beyond the address space");
    assert!(found.bar(&m, 1, 0, 4).is_err(), "the upper half of BAR0");
    assert!(found.bar(&m, 2, 0, 4).is_err(), "an I/O BAR");
    assert!(found.bar(&m, 9, 0, 4).is_err(), "no such BAR");
    let none = pci::find(&mut m, 0x1af4, 0x1050, Slot(5)).err();
    assert_eq!(none, Some(PciError::Missing { vendor: 0x1af4, device: 0x1050 }));
    m.config[0][0x41] = 0x40;
    assert!(matches!(found_pacer(&mut m), Ok(())), "MSI-X is found before the loop");
    m.config[0][0x40] = 0x05;
    assert!(matches!(found_pacer(&mut m), Err(PciError::Capability { slot: 3, .. })));
}

fn found_pacer(m: &mut Machine<Accept>) -> Result<(), PciError> {
    pci::find(m, 0xbea3, 1, Slot(0)).map(|_| ())
}

/// A vGPU and a marker ring, ready.
fn attach(m: &mut Machine<Accept>) -> (Gpu, Pacer) {
    let targets = Machine::<Accept>::targets();
    let pacer = Pacer::attach(m, Slot(0), &targets.pacer).expect("attaches");
    let mut arena = Machine::<Accept>::arena();
    (Gpu::attach(m, &mut arena, Slot(0), targets.gpu).expect("attaches"), pacer)
}

fn send(m: &mut Machine<Accept>, gpu: &mut Gpu, pacer: &mut Pacer) -> Result<u64, GpuError> {
    let mut buffer = [0; 64];
    let mut c = Commands::new(&mut buffer);
    c.present(1);
    let submission = c.finish_job(PLACE).expect("fits");
    gpu.submit(m, &mut pacer.markers, &submission).map(|fence| fence.0)
}

#[test]
fn every_slot_can_be_in_flight_and_comes_back() {
    let mut m = Machine::new(Accept::default());
    let (mut gpu, mut pacer) = attach(&mut m);
    for round in 0..3 {
        let fences: Vec<_> = (0..SLOTS)
            .map(|_| send(&mut m, &mut gpu, &mut pacer).expect("there is room"))
            .collect();
        assert_eq!(send(&mut m, &mut gpu, &mut pacer), Err(GpuError::Full));
        gpu.kick(&mut m);
        while m.finish_one() {}
        for fence in fences {
            let done = gpu.poll(&mut m).expect("works").expect("done");
            assert_eq!((done.fence.0, done.frame, done.is_ok()), (fence, FrameId(7), true));
        }
        assert_eq!((gpu.poll(&mut m), gpu.free_slots()), (Ok(None), SLOTS), "round {round}");
    }
}

#[test]
fn a_device_that_breaks_the_queue_is_an_error_and_no_panic() {
    // What the device writes into the used ring: an element and how far the index moves.
    let cases: [(u32, u32, u16); 5] =
        [(0, 24, 33), (1, 24, 1), (2, 24, 1), (4000, 24, 1), (0, 23, 1)];
    for (id, len, by) in cases {
        let mut m = Machine::new(Accept::default());
        let (mut gpu, mut pacer) = attach(&mut m);
        send(&mut m, &mut gpu, &mut pacer).expect("there is room");
        m.break_used(id, len, by);
        let broken = gpu.poll(&mut m);
        let wanted = if by == 1 {
            Err(GpuError::Used { id, len })
        } else {
            Err(GpuError::Queue(beamline_guest_driver::gpu::QueueBroken { ahead: 33, size: 32 }))
        };
        assert_eq!(broken, wanted);
    }
}

#[test]
fn an_answer_that_names_no_fence_is_not_success() {
    let mut m = Machine::new(Accept::default());
    let (mut gpu, mut pacer) = attach(&mut m);
    send(&mut m, &mut gpu, &mut pacer).expect("there is room");
    // The chain comes back, but nothing was written into the answer.
    m.break_used(0, 24, 1);
    let done = gpu.poll(&mut m).expect("works").expect("done");
    assert_eq!(done.response, 0);
    assert!(!done.is_ok());
    assert_ne!(done.response, cmd::RESP_OK_NODATA);
}

#[test]
fn the_arena_aligns_zeroes_and_refuses() {
    let mut m = Machine::new(Accept::default());
    m.write(Gpa(machine::RAM), &[0xff; 4096]);
    let mut arena = Arena::new(Gpa(machine::RAM + 8), 1024);
    let first = arena.alloc(&mut m, 300, 64).expect("fits");
    assert_eq!(first, Gpa(machine::RAM + 64));
    let mut bytes = [1; 300];
    m.read(first, &mut bytes);
    assert_eq!(bytes, [0; 300]);
    let refused = arena.alloc(&mut m, 1024, 64).expect_err("does not fit");
    assert_eq!((refused.wanted, refused.short), (1024, 384 + 1024 - 1032));
    assert!(arena.alloc(&mut m, u64::MAX, 4096).is_err());
}
