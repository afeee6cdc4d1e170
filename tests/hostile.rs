//! Guests that break every rule they can: none of them costs another guest a frame. *Modelled*, in virtual
//! time, over more than 2,000 frames of the headset each.

use beamline_abi::Nanos;
use beamline_abi::frame::{MAGIC, SubmitHeader, SubmitKind, VERSION};
use beamline_abi::pacer::{BAR4_SIZE, MARKER_HEAD, MARKER_TAIL};
use beamline_abi::virtio_gpu::{CtrlHeader, cmd};
use beamline_latency::Stage;
use beamline_mdev::mediate::message::MAX_QUEUED;
use beamline_sched::PolicyKind;
use beamline_tests::{
    FLOOD, Function, GAME, Habits, Port, RAM, RAM_SIZE, Scenario, Seeded, State, VR, World,
};
use beamline_vfio_user::RegionIndex;
use std::collections::BTreeMap;
use zerocopy::IntoBytes;

/// The guest that is up to no good: on a reserved contract like the game's, so that it is owed something.
const ROGUE: usize = 3;
const ROGUE_SLICE: &str = r#"
[[slice]]
name = "rogue"
width = 256
height = 144
[slice.contract]
refresh_hz = "60"
class = "reserved"
budget_ms = 0.8
max_job_ms = 0.6
jitter_ms = 0.5
"#;
/// 2,000 frames at 90 Hz take 22.2 s.
const SPAN: Nanos = Nanos::from_secs(23);
const OTHERS: [usize; 3] = [VR, GAME, FLOOD];

fn scenario(seed: u64) -> Scenario {
    Scenario { more: ROGUE_SLICE, ..Scenario::new(PolicyKind::Beamline, seed) }
}

/// The three well-behaved guests after a second, and when judging begins.
fn world(scenario: &Scenario, rogue_job: Nanos) -> (World, Nanos) {
    let jobs = 0..3;
    let costs = jobs.fold(scenario.costs(), |c, job| c.with(ROGUE as u16, job, rogue_job));
    let mut world = scenario.with_guests(costs, &OTHERS).unwrap();
    world.run_for(Nanos::from_secs(1)).unwrap();
    let from = world.now();
    (world, from)
}

/// Every frame of the others was in time, all their stamps are there, and the flood got its minimum.
fn assert_unharmed(world: &mut World, from: Nanos, flood_before: Nanos) {
    let to = world.now();
    let flood = world.busy(FLOOD).saturating_sub(flood_before);
    let minimum = Nanos(to.saturating_sub(from).0 / 1000 * 120);
    assert!(flood >= minimum, "the flood got {flood} of {minimum}");
    let outcome = world.log();
    for slice in [VR, GAME] {
        let tally = outcome.tally(slice, from, to);
        println!("slice {slice}: {tally:?}");
        assert!(tally.due >= if slice == VR { 2000 } else { 1300 }, "{tally:?}");
        assert_eq!((tally.missed, tally.latch_missed), (0, 0), "slice {slice}: {tally:?}");
    }
    let last = to.saturating_sub(Nanos::from_millis(50));
    for slice in OTHERS {
        assert!(!matches!(world.state(slice), State::Failed(_)), "{:?}", world.state(slice));
        let incomplete = outcome.incomplete(slice, last);
        assert!(incomplete.is_empty(), "slice {slice}: {:?}", &incomplete[..1]);
    }
    let health = outcome.health(&OTHERS, Nanos::ZERO, to);
    assert!(health.is_sound(), "{health:?}");
}

#[test]
fn a_guest_that_stops_answering() {
    let (mut world, from) = world(&scenario(1), Nanos::from_micros(500));
    let flood = world.busy(FLOOD);
    world.attach(ROGUE, "scene=flood depth=8", Habits::default()).unwrap();
    world.run_for(Nanos::from_millis(250)).unwrap();
    // Mid-frame, with work under way: it takes no answer and no interrupt any more.
    world.hang(ROGUE);
    let before = world.stats(ROGUE).submitted;
    world.run_until(from.saturating_add(SPAN)).unwrap();
    assert_eq!((world.state(ROGUE), world.stats(ROGUE).submitted), (State::Hung, before));
    assert_unharmed(&mut world, from, flood);
}

#[test]
fn a_guest_that_floods() {
    let restless = Habits { wake_delay: Nanos::from_micros(100), cpu: Nanos::from_micros(20) };
    let (mut world, from) = world(&scenario(2), Nanos::from_micros(570));
    let flood = world.busy(FLOOD);
    world.attach(ROGUE, "scene=flood depth=8", restless).unwrap();
    world.run_until(from.saturating_add(SPAN)).unwrap();
    let stats = world.stats(ROGUE);
    println!("{stats:?}");
    assert!(stats.submitted > 400_000, "it was not much of a flood: {stats:?}");
    assert!(!matches!(world.state(ROGUE), State::Failed(_)), "{:?}", world.state(ROGUE));
    assert_unharmed(&mut world, from, flood);
    // Whatever was refused left an answer in the log, too.
    let outcome = world.log();
    let of = |stage| {
        let stamps = outcome.log().stamps.iter();
        stamps.filter(|s| usize::from(s.slice.0) == ROGUE && s.stage() == Some(stage)).count()
    };
    let (doorbells, fences) = (of(Stage::Doorbell), of(Stage::Fence));
    assert!(doorbells - fences <= MAX_QUEUED, "{doorbells} found, {fences} answered");
}

#[test]
fn a_guest_that_takes_more_than_its_budget() {
    // Three jobs a frame, each as long as `max_job` allows: twice the budget of 0.8 ms.
    let (mut world, from) = world(&scenario(6), Nanos::from_micros(570));
    let flood = world.busy(FLOOD);
    world.attach(ROGUE, "scene=game depth=5", Habits::default()).unwrap();
    world.run_until(from.saturating_add(SPAN)).unwrap();
    let used = world.busy(ROGUE);
    println!("{:?}, {used} of GPU time", world.stats(ROGUE));
    assert!(used > Nanos(SPAN.0 / 1000 * 60 * 8 / 10), "it kept to its budget: {used}");
    assert_unharmed(&mut world, from, flood);
}

#[test]
fn a_guest_that_is_killed_in_mid_frame() {
    let (mut world, from) = world(&scenario(3), Nanos::from_micros(500));
    let flood = world.busy(FLOOD);
    let mut numbers = Seeded::new(3);
    let (mut lives, mut running) = (0, 0);
    while world.now() < from.saturating_add(SPAN) {
        world.attach(ROGUE, "scene=game", Habits::default()).unwrap();
        world.run_for(Nanos(40_000_000 + numbers.below(60_000_000))).unwrap();
        let stats = world.stats(ROGUE);
        assert!(stats.completed > 0, "life {lives} rendered nothing: {stats:?}");
        running += u64::from(stats.submitted > stats.completed);
        world.kill(ROGUE);
        world.run_for(Nanos(1 + numbers.below(2_000_000))).unwrap();
        assert!(!world.is_ready(ROGUE), "the renderer outlived its guest");
        lives += 1;
    }
    println!("{lives} lives, {running} ended with a frame under way");
    assert!(running > 20, "{running} of {lives} died in mid-frame");
    assert_unharmed(&mut world, from, flood);
}

#[test]
fn a_guest_that_writes_garbage() {
    for seed in [4, 5] {
        let (mut world, from) = world(&scenario(seed), Nanos::from_micros(500));
        let flood = world.busy(FLOOD);
        let mut numbers = Seeded::new(seed);
        let (mut attached, mut refused) = (0, BTreeMap::new());
        while world.now() < from.saturating_add(SPAN) {
            // A driver that runs on a machine where somebody else writes as well.
            match world.attach(ROGUE, "scene=game", Habits::default()) {
                Ok(()) => attached += 1,
                Err(error) => {
                    *refused.entry(format!("{error}")).or_insert(0) += 1;
                }
            }
            for _ in 0..numbers.below(40) {
                world.misuse(ROGUE, |port| vandalise(port, &mut numbers));
                world.run_for(Nanos(numbers.below(3_000_000))).unwrap();
            }
            if numbers.below(2) == 0 {
                world.kill(ROGUE);
            }
        }
        println!("seed {seed}: attached {attached} times, failed: {refused:?}");
        assert!(attached > 50, "garbage must not lock a slice for good");
        assert_unharmed(&mut world, from, flood);
        // And the slice is as good as new for a guest that behaves.
        world.kill(ROGUE);
        world.attach(ROGUE, "scene=game", Habits::default()).unwrap();
        world.run_for(Nanos::from_secs(1)).unwrap();
        let stats = world.stats(ROGUE);
        assert!(stats.completed >= 58 && stats.failed == 0, "{stats:?}");
    }
}

/// One act of vandalism on registers, configuration space, the marker ring, queues or submissions.
fn vandalise(port: &mut Port, numbers: &mut Seeded) {
    for _ in 0..=numbers.below(8) {
        match numbers.below(9) {
            0 => registers(port, numbers),
            1 => configuration(port, numbers),
            2 => marker_ring(port, numbers),
            3 => memory(port, numbers, RAM_SIZE),
            // The queue lies at the arena's start: descriptors, then the rings.
            4 | 5 => memory(port, numbers, 2048),
            6 => submission(port, numbers),
            7 => doorbells(port, numbers),
            _ => {
                port.set_dma(numbers.below(2) == 0).expect("mapping its own memory works");
            }
        }
    }
}

fn bytes(numbers: &mut Seeded, most: u64) -> Vec<u8> {
    (0..=numbers.below(most)).map(|_| numbers.bits() as u8).collect()
}

fn registers(port: &mut Port, numbers: &mut Seeded) {
    let (function, bar, page) = if numbers.below(2) == 0 {
        (Function::Pacer, 0, numbers.below(4) * 0x1000)
    } else {
        (Function::Gpu, 4, numbers.below(16) * 0x1000)
    };
    let width = 1 << numbers.below(4);
    let offset = page + numbers.below(0x80) / width * width;
    let mut data = vec![0; width as usize];
    port.region_read(function, RegionIndex::bar(bar), offset, &mut data);
    let data = u64::from(numbers.bits()).to_le_bytes();
    port.region_write(function, RegionIndex::bar(bar), offset, &data[..width as usize]);
}

fn configuration(port: &mut Port, numbers: &mut Seeded) {
    let function = if numbers.below(2) == 0 { Function::Pacer } else { Function::Gpu };
    let offset = numbers.below(0x100);
    let data = bytes(numbers, 8);
    port.region_write(function, RegionIndex::CONFIG, offset, &data);
}

fn marker_ring(port: &mut Port, numbers: &mut Seeded) {
    let offset = match numbers.below(3) {
        0 => MARKER_HEAD.into(),
        1 => MARKER_TAIL.into(),
        _ => numbers.below(BAR4_SIZE),
    };
    let data = bytes(numbers, 128);
    port.region_write(Function::Pacer, RegionIndex::bar(4), offset, &data);
}

fn memory(port: &mut Port, numbers: &mut Seeded, within: u64) {
    let at = RAM + numbers.below(within);
    let data = bytes(numbers, 64);
    port.scribble(at, &data);
}

/// A request that is nearly right, put over whatever lies in the first request buffers.
fn submission(port: &mut Port, numbers: &mut Seeded) {
    let types =
        [cmd::SUBMIT_3D, cmd::CTX_CREATE, cmd::CTX_DESTROY, cmd::GET_CAPSET, numbers.bits()];
    let type_ = types[numbers.below(types.len() as u64) as usize];
    let (flags, fence_id) = (numbers.below(4) as u32, u64::from(numbers.bits()));
    let ctx_id = numbers.below(3) as u32;
    let head = CtrlHeader { type_, flags, fence_id, ctx_id, ..CtrlHeader::default() };
    let kinds = [SubmitKind::Setup as u16, SubmitKind::Job as u16, numbers.bits() as u16];
    let submit = SubmitHeader {
        magic: MAGIC,
        version: VERSION,
        kind: kinds[numbers.below(3) as usize],
        frame: beamline_abi::FrameId(numbers.below(1 << 40)),
        job: beamline_abi::JobIndex(numbers.below(20) as u16),
        jobs: numbers.below(20) as u16,
        flags: numbers.below(3) as u32,
        commands: numbers.below(5) as u32,
        bytes: numbers.below(512) as u32,
    };
    let size = (size_of::<SubmitHeader>() as u32 + submit.bytes).to_le_bytes();
    let tail = bytes(numbers, 512);
    let request =
        [head.as_bytes(), size.as_slice(), &[0; 4], submit.as_bytes(), tail.as_slice()].concat();
    // Request buffers are page-aligned and 16 KiB long.
    port.scribble(RAM + 0x1000 + 0x4000 * numbers.below(16), &request);
}

fn doorbells(port: &mut Port, numbers: &mut Seeded) {
    for _ in 0..numbers.below(200) {
        let queue = numbers.below(4);
        let data = (queue as u16).to_le_bytes();
        port.region_write(Function::Gpu, RegionIndex::bar(4), 0x3000 + 4 * queue, &data);
    }
}
