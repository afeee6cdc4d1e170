//! Whole scenes on a machine of models: attach, set up, draw, drain.

mod machine;

use beamline_abi::frame::{Present, SubmitKind, submit_flag};
use beamline_abi::pacer::{MarkerKind, status};
use beamline_abi::virtio_gpu::cmd;
use beamline_guest_driver::scene::{Params, Player, Progress, SceneError};
use beamline_guest_driver::transport::{Transport, Wake};
use machine::{Accept, Command, Host, Machine};

fn player<H: Host>(m: &mut Machine<H>, line: &str) -> Result<Player, SceneError> {
    let params = Params::parse(line).expect("a valid line");
    let mut arena = Machine::<H>::arena();
    let mut player = Player::new(m, &mut arena, params, &Machine::<H>::targets())?;
    player.start(m)?;
    Ok(player)
}

/// Runs until the scene is done.
fn finish<H: Host>(m: &mut Machine<H>, player: &mut Player) {
    loop {
        match player.on_wake(m).expect("the scene works") {
            Progress::Done => return,
            Progress::Again => {}
            Progress::Wait => assert_eq!(m.wait(), Wake::Interrupt, "the scene never ends"),
        }
    }
}

#[test]
fn vr_submits_two_jobs_a_vblank_and_latches_the_second() {
    let mut m = Machine::new(Accept::default());
    let mut p = player(&mut m, "scene=vr frames=20").expect("attaches");
    finish(&mut m, &mut p);
    assert_eq!((p.stats().completed, p.stats().failed, p.stats().skipped), (20, 0, 0));
    let jobs: Vec<_> =
        m.host.seen.iter().filter(|(h, _)| h.kind == SubmitKind::Job as u16).collect();
    assert_eq!(jobs.len(), 40);
    for (i, (header, commands)) in jobs.iter().enumerate() {
        let late = i % 2 == 1;
        assert_eq!((header.frame.0, header.job.0), (i as u64 / 2 + 1, i as u16 % 2));
        assert_eq!((header.jobs, header.flags == submit_flag::LATE_LATCH), (2, late));
        assert_eq!(commands.iter().any(|c| matches!(c, Command::Latch(_))), late);
        assert_eq!(commands.iter().any(|c| matches!(c, Command::Present(_))), late);
    }
    assert_eq!(m.control, 1);
    assert_eq!(m.msix_enabled, [true, true]);
}

#[test]
fn every_job_and_vblank_leaves_one_marker() {
    let mut m = Machine::new(Accept::default());
    let mut p = player(&mut m, "scene=game frames=10").expect("attaches");
    finish(&mut m, &mut p);
    let markers = m.markers();
    let of = |kind| markers.iter().filter(move |x| x.kind == kind as u32);
    let jobs: Vec<_> = of(MarkerKind::Submit).map(|x| (x.id, x.job.0)).collect();
    let wanted: Vec<_> = (1..=10).flat_map(|f| (0..3).map(move |j| (f, j))).collect();
    assert_eq!(jobs, wanted);
    let vblanks: Vec<_> = of(MarkerKind::Vblank).map(|x| x.id).collect();
    assert!(vblanks.windows(2).all(|w| w[0] < w[1]) && vblanks.len() >= 10);
    assert!(markers.windows(2).all(|w| w[0].tsc < w[1].tsc));
}

#[test]
fn flood_fills_its_depth_without_vblanks_and_presents_now_and_then() {
    let mut m = Machine::new(Accept::default());
    m.vblanks = false;
    let mut p = player(&mut m, "scene=flood frames=200 depth=5").expect("attaches");
    let kicks = m.kicks;
    assert_eq!(p.on_wake(&mut m), Ok(Progress::Wait));
    assert_eq!((p.stats().submitted, m.kicks - kicks), (5, 1), "one kick for all");
    finish(&mut m, &mut p);
    assert_eq!(p.stats().completed, 200);
    let shown: Vec<_> = (m.host.seen.iter())
        .flat_map(|(_, commands)| commands)
        .filter_map(|c| if let Command::Present(p) = c { Some(*p) } else { None })
        .collect();
    let present = |image| Present { image, scanout: 0 };
    assert_eq!(shown, [present(2), present(3), present(2)]);
}

#[test]
fn a_frame_that_does_not_fit_is_skipped_and_counted() {
    let mut m = Machine::new(Accept::default());
    let mut p = player(&mut m, "scene=vr").expect("attaches");
    m.finish = false;
    for _ in 0..6 {
        let _ = m.wait();
        assert_eq!(p.on_wake(&mut m), Ok(Progress::Wait));
    }
    assert_eq!((p.stats().submitted, p.stats().skipped), (2, 4));
    m.finish = true;
    let _ = m.wait();
    assert_eq!(p.on_wake(&mut m), Ok(Progress::Wait));
    assert_eq!((p.stats().submitted, p.stats().completed), (3, 2));
}

#[test]
fn a_missed_vblank_is_counted_and_costs_one_frame() {
    let mut m = Machine::new(Accept::default());
    let mut p = player(&mut m, "scene=vr").expect("attaches");
    let _ = m.wait();
    assert_eq!(p.on_wake(&mut m), Ok(Progress::Wait));
    (0..3).for_each(|_| m.next_vblank());
    let _ = m.wait();
    assert_eq!(p.on_wake(&mut m), Ok(Progress::Wait));
    assert_eq!((p.stats().vblanks, p.stats().missed_vblanks, p.stats().submitted), (2, 3, 2));
}

#[test]
fn a_timing_page_in_change_asks_for_another_look() {
    let mut m = Machine::new(Accept::default());
    let mut p = player(&mut m, "scene=vr").expect("attaches");
    m.next_vblank();
    // Each torn read moves the lock, so some tries see it odd and the others see it change.
    m.torn.set(9 * 17 + 1);
    assert_eq!(p.on_wake(&mut m), Ok(Progress::Wait), "a few torn reads are read again");
    assert_eq!(p.stats().vblanks, 1);
    m.next_vblank();
    m.torn.set(1_000_000);
    assert_eq!(p.on_wake(&mut m), Ok(Progress::Again));
    m.torn.set(0);
    assert_eq!(p.on_wake(&mut m), Ok(Progress::Wait));
    assert_eq!(p.stats().vblanks, 2);
}

/// Drops every third job.
#[derive(Default)]
struct Drops(u32);

impl Host for Drops {
    fn run(&mut self, submission: &[u8], _: &[u8]) -> u32 {
        let (header, _) = machine::decode(submission).expect("valid");
        self.0 += u32::from(header.kind == SubmitKind::Job as u16);
        if self.0 % 3 == 2 { cmd::RESP_ERR_UNSPEC } else { cmd::RESP_OK_NODATA }
    }
}

#[test]
fn failed_jobs_fail_their_frame_and_nothing_else() {
    let mut m = Machine::new(Drops::default());
    let mut p = player(&mut m, "scene=vr frames=30").expect("attaches");
    finish(&mut m, &mut p);
    // Of six jobs in three frames, the second and the fifth are dropped.
    assert_eq!((p.stats().completed, p.stats().failed), (10, 20));
    assert_eq!(p.stats().last_error, cmd::RESP_ERR_UNSPEC);
}

#[test]
fn a_quiesced_scene_submits_nothing_until_it_may() {
    let mut m = Machine::new(Accept::default());
    let mut p = player(&mut m, "scene=vr").expect("attaches");
    m.pacer_status = status::QUIESCE;
    p.on_host_request(&mut m).expect("quiesce is no error");
    let _ = m.wait();
    assert_eq!(p.on_wake(&mut m), Ok(Progress::Wait));
    assert_eq!((p.stats().vblanks, p.stats().submitted), (1, 0));
    m.pacer_status = status::RUNNING;
    p.on_host_request(&mut m).expect("running is no error");
    let _ = m.wait();
    assert_eq!(p.on_wake(&mut m), Ok(Progress::Wait));
    assert_eq!(p.stats().submitted, 1);
    m.pacer_status = status::LOST;
    assert!(matches!(p.on_host_request(&mut m), Err(SceneError::Lost { .. })));
}

#[test]
fn a_scene_that_starts_on_a_quiesced_slice_waits() {
    let mut m = Machine::new(Accept::default());
    m.pacer_status = status::QUIESCE;
    let mut p = player(&mut m, "scene=flood").expect("attaches");
    assert_eq!(p.on_wake(&mut m), Ok(Progress::Wait));
    assert_eq!(p.stats().submitted, 0);
    m.pacer_status = status::RUNNING;
    p.on_host_request(&mut m).expect("running is no error");
    assert_eq!(p.on_wake(&mut m), Ok(Progress::Wait));
    assert!(p.stats().submitted > 0);
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let mut m = Machine::new(Accept::default());
    m.gpu_slice = [1; 16];
    assert!(matches!(player(&mut m, "scene=vr"), Err(SceneError::Unpaired { .. })));
    let mut m = Machine::new(Accept::default());
    m.max_queued_jobs = 2;
    let refused = player(&mut m, "scene=game");
    assert!(matches!(refused, Err(SceneError::Queue { queued: 2, jobs: 3 })));
    let mut m = Machine::new(Accept::default());
    m.waits = 3;
    assert!(matches!(player(&mut m, "scene=game"), Err(SceneError::Gpu(_))), "the wait can end");
}

#[test]
fn the_queue_works_past_the_wrap_of_its_indices() {
    let mut m = Machine::new(Accept::default());
    m.vblanks = false;
    let mut p = player(&mut m, "scene=flood frames=70000 depth=8").expect("attaches");
    finish(&mut m, &mut p);
    assert_eq!(p.stats().completed, 70_000);
    // Nobody consumed markers meanwhile: the rest was dropped, and counted.
    let dropped = p.pacer().markers.dropped();
    assert_eq!((m.markers().len(), dropped), (256, 70_000 - 256));
}
