use super::*;
use crate::backend::SliceLimits;
use crate::device::eventfd::EventFd;
use crate::device::pacer::{Pacer, PacerConfig, PacerHandle};
use crate::mediate::message::{Post, RING};
use crate::mediate::poster::{Poster, PosterParts};
use beamline_abi::SliceId;
use beamline_abi::pacer::{control, reg, vector};
use beamline_abi::pci::{command, config as header};
use beamline_latency::clock::FakeClock;
use beamline_latency::recorder::Collector;
use beamline_latency::stamp::Stage;
use beamline_sched::Period;
use beamline_vfio_user::{Device, IrqAction, IrqIndex, RegionIndex};
use rtrb::RingBuffer;
use std::convert::Infallible;
use std::os::fd::AsFd;
use zerocopy::FromBytes;

const PHASE: Nanos = Nanos(7);

fn contract() -> Contract {
    let text = "refresh_hz = \"90\"\nclass = \"elastic\"\nbudget_ms = 1.0\nmax_job_ms = 1.0\n";
    let text = format!(
        "run_dir = \"run\"\n[gpu]\nbackend = \"model\"\n[[slice]]\nname = \"s\"\nwidth = 64\nheight = 64\n[slice.contract]\n{text}"
    );
    let path = std::path::Path::new("host.toml");
    crate::config::HostConfig::parse(&text, path).unwrap().slices[0].contract
}

/// A pacer whose guest has its vblanks on, and listens.
fn guest() -> (Pacer, Beat, PacerHandle, EventFd) {
    let now = Arc::new(|| Nanos(0));
    let config = PacerConfig { slice: SliceId([1; 16]), generation: Generation(1), now };
    let (mut pacer, beat, handle) = Pacer::new(config).unwrap();
    let parts = BeatParts { contract: contract(), phase: PHASE, pacer: beat, tsc: None };
    let beat = Beat::new(parts);
    let wire = EventFd::new().unwrap();
    let fd = wire.as_fd().try_clone_to_owned().unwrap();
    let vblank = vector::VBLANK.into();
    pacer.set_irqs(IrqIndex::MSIX, vblank, 1, IrqAction::SetEventFds(vec![fd])).unwrap();
    listen(&mut pacer);
    (pacer, beat, handle, wire)
}

fn listen(pacer: &mut Pacer) {
    let bits = command::MEMORY | command::BUS_MASTER;
    pacer.region_write(RegionIndex::CONFIG, header::COMMAND.into(), &bits.to_le_bytes()).unwrap();
    let on = control::VBLANK_ENABLE.to_le_bytes();
    pacer.region_write(RegionIndex::bar(0), reg::CONTROL.into(), &on).unwrap();
}

fn page(pacer: &mut Pacer) -> TimingPage {
    let mut bytes = [0; size_of::<TimingPage>()];
    pacer.region_read(RegionIndex::bar(2), 0, &mut bytes).unwrap();
    TimingPage::read_from_bytes(&bytes).unwrap()
}

fn vblank(seq: u64) -> Vblank {
    Vblank { seq, time: Nanos(1000 * seq), next: Nanos(1000 * (seq + 1)) }
}

fn shot(seq: u64) -> Shot {
    Shot { slice: SliceIndex(3), generation: Generation(1), seq, frame: FrameId(9) }
}

#[test]
fn a_vblank_is_on_the_page_before_its_interrupt() {
    let (mut pacer, mut beat, _handle, wire) = guest();
    assert_eq!((page(&mut pacer).vblank_seq, page(&mut pacer).phase), (0, PHASE));
    let clock = FakeClock::new(Nanos(5_003));
    let mut volley = Volley::new(Some(Signals::new().unwrap()), Arc::new(clock));
    let mut collector = Collector::new();
    let mut recorder = collector.registry().recorder(16);
    assert!(beat.vblank(vblank(5), Some(FrameId(9)), Generation(1)));
    let seen = page(&mut pacer);
    assert_eq!((seen.vblank_seq, seen.next_vblank, seen.presented), (5, Nanos(6000), FrameId(9)));
    assert_eq!(seen.deadline, Nanos(5000 + contract().deadline.0));
    assert_eq!(volley.add(&mut beat, shot(5)), Ok(()));
    assert!(!wire.take(), "not before it is sent");
    volley.send(&mut recorder, |_, sent| assert_eq!(sent, Sent::Together(Nanos(0))));
    assert!(wire.take());
    let mut stamps = vec![];
    let taken: Result<u64, Infallible> = collector.drain(|stamp| {
        stamps.push((stamp.stage(), stamp.time, stamp.a));
        Ok(())
    });
    assert_eq!((taken, stamps), (Ok(1), vec![(Some(Stage::Posted), 5_003, 5)]));
    // Another life begins with nothing presented.
    assert!(beat.vblank(vblank(6), None, Generation(2)));
    assert_eq!(page(&mut pacer).presented, FrameId::NONE);
}

/// What lets answers go says nothing of a vblank that is not on the page yet.
#[test]
fn a_vblank_is_on_the_page_before_answers_that_waited_for_it() {
    let (mut pacer, mut beat, _handle, _wire) = guest();
    let gap = beat.gap();
    let enough = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let vblanks = scope.spawn(|| {
            let mut numbers = 1..;
            while !enough.load(Ordering::Relaxed) {
                beat.vblank(vblank(numbers.next().expect("it has no end")), None, Generation(1));
            }
        });
        while gap.latest() == Nanos::ZERO && !vblanks.is_finished() {
            std::thread::yield_now();
        }
        let look = |_| {
            let latest = gap.latest();
            // The number's lower half, in one access.
            let mut seq = [0; 4];
            let at = std::mem::offset_of!(TimingPage, vblank_seq) as u64;
            pacer.region_read(RegionIndex::bar(2), at, &mut seq).unwrap();
            (latest, vblank(u32::from_le_bytes(seq).into()).time)
        };
        let early = (0..300_000).map(look).find(|(latest, on_page)| on_page < latest);
        enough.store(true, Ordering::Relaxed);
        assert_eq!(early, None, "answers are let go before their vblank is on the page");
    });
}

#[test]
fn a_reset_leaves_a_blank_page_and_no_interrupts() {
    let (mut pacer, mut beat, _handle, wire) = guest();
    assert!(beat.vblank(vblank(5), Some(FrameId(9)), Generation(1)));
    pacer.reset();
    assert!(!beat.vblank(vblank(6), Some(FrameId(10)), Generation(1)));
    let blank = page(&mut pacer);
    assert_eq!((blank.vblank_seq, blank.presented, blank.phase), (0, FrameId::NONE, PHASE));
    assert!(blank.period_num > 0);
    // Vblanks on, but no bus mastering: the page is written, nothing is sent, and no stamp is made.
    let on = control::VBLANK_ENABLE.to_le_bytes();
    pacer.region_write(RegionIndex::bar(0), reg::CONTROL.into(), &on).unwrap();
    let mut volley = Volley::new(Some(Signals::new().unwrap()), Arc::new(FakeClock::new(Nanos(0))));
    let mut collector = Collector::new();
    assert!(beat.vblank(vblank(7), None, Generation(1)));
    assert_eq!(volley.add(&mut beat, shot(7)), Ok(()));
    volley.send(&mut collector.registry().recorder(16), |shot, _| panic!("{shot:?}"));
    assert!(!wire.take());
    let none: Result<u64, Infallible> = collector.drain(|_| Ok(()));
    assert_eq!((none, page(&mut pacer).vblank_seq), (Ok(0), 7));
}

/// A volley takes more vblanks than one call to the system does.
#[test]
fn a_full_volley_is_sent_whole() {
    let mut guests: Vec<_> = (0..BATCH).map(|_| guest()).collect();
    let mut volley = Volley::new(Some(Signals::new().unwrap()), Arc::new(FakeClock::new(Nanos(0))));
    for (_, beat, ..) in &mut guests {
        assert!(!volley.is_full());
        assert_eq!(volley.add(beat, shot(1)), Ok(()));
    }
    assert!(volley.is_full());
    let mut sent = 0;
    volley.send(&mut Recorder::off(), |_, _| sent += 1);
    assert_eq!(sent, BATCH);
    assert!(!volley.is_full() && guests.iter().all(|(.., wire)| wire.take()));
}

/// Where the system has no asynchronous I/O the poster signals.
#[test]
fn without_signals_the_poster_sends_the_interrupt() {
    let (_pacer, mut beat, handle, wire) = guest();
    let mut volley = Volley::new(None, Arc::new(FakeClock::new(Nanos(0))));
    assert!(beat.vblank(vblank(1), None, Generation(1)));
    assert_eq!(volley.add(&mut beat, shot(1)), Err(shot(1)));
    let (mut post, posts) = RingBuffer::new(RING);
    let (_answers, answers) = RingBuffer::new(RING);
    let mut poster = Poster::new(PosterParts {
        index: SliceIndex(3),
        slice: SliceId([1; 16]),
        period: Period::from_hz(90, 1).unwrap(),
        display: (64, 64),
        limits: SliceLimits { memory: 0, max_resources: 0 },
        pacer: handle,
        gap: beat.gap(),
        posts,
        answers,
        clock: Arc::new(FakeClock::new(Nanos(0))),
        recorder: Recorder::off(),
    });
    post.push(Post::Vblank { shot: shot(1), signal: false }).unwrap();
    poster.step();
    assert!(!wire.take(), "the dispatcher has sent it");
    post.push(Post::Vblank { shot: shot(2), signal: true }).unwrap();
    poster.step();
    assert!(wire.take());
}

/// One whose interrupts take long is found among those it is sent with, and goes to its poster, each time for
/// longer; the others stay.
#[test]
fn a_slow_eventfd_is_left_to_its_poster() {
    let (mut good, mut bad) = (Lane::default(), Lane::default());
    let mut slow = 0;
    for turn in 0..3 {
        for lane in [&mut good, &mut bad] {
            lane.judge(Sent::Together(Nanos::from_millis(5)));
        }
        while good.alone > 0 {
            good.judge(Sent::Alone(Nanos::from_micros(2)));
        }
        while bad.away == 0 {
            bad.judge(Sent::Alone(Nanos::from_micros(60)));
            slow += 1;
        }
        assert_eq!((good.away, bad.away, bad.alone), (0, AWAY << turn, 0));
        bad.away = 0;
    }
    assert_eq!(slow, 3 * u32::from(STRIKES));
    // Far longer than any vblank has to take: once is enough.
    bad.judge(Sent::Together(SLOW + Nanos(1)));
    bad.judge(Sent::Alone(Nanos::from_millis(20)));
    assert_eq!(bad.away, AWAY << 3);
}

#[test]
fn a_slice_that_was_sent_away_comes_back() {
    let (_pacer, mut beat, _handle, wire) = guest();
    let mut volley = Volley::new(Some(Signals::new().unwrap()), Arc::new(FakeClock::new(Nanos(0))));
    beat.judge(Sent::Alone(Nanos::from_millis(20)));
    for seq in 0..u64::from(AWAY) {
        assert_eq!(volley.add(&mut beat, shot(seq)), Err(shot(seq)));
    }
    assert_eq!(volley.add(&mut beat, shot(7)), Ok(()));
    volley.send(&mut Recorder::off(), |_, _| {});
    assert!(wire.take());
}
