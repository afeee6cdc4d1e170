use super::*;
use crate::testkit::{self, PERIOD, US, good, key, tick_time};

fn joined(stamps: Vec<Stamp>) -> Joined {
    join(&testkit::log(stamps), Window::ALL)
}

#[test]
fn a_whole_run_is_sound_and_in_host_time() {
    let joined = joined(testkit::run(10, &[]));
    assert!(joined.health.is_sound(), "{:?}", joined.health);
    let frames = &joined.slices[0].frames;
    assert_eq!(frames.len(), 9);
    let (frame, want) = (&frames[3], good(4, 0, 1));
    assert_eq!(frame.id, FrameId(4));
    // Through a counter with an offset below zero and twice the rate.
    let submitted = frame.submitted().unwrap().0;
    assert!(submitted.abs_diff(want.submit) <= 2, "{submitted} {}", want.submit);
    assert_eq!(frame.release(), Some(Nanos(tick_time(4))));
    assert_eq!(frame.done(), Some(Nanos(want.end)));
    assert_eq!(frame.busy(), Nanos(want.end - want.start));
    assert_eq!(frame.handled(), Some(Nanos(want.end + 20 * US)));
    assert_eq!(frame.presented.unwrap().seq, 5);
    assert!(frame.gpu_wait().0.abs_diff(50 * US) <= 2);
    let (seq, handled) = joined.slices[0].first_handled(Generation(1), 7).unwrap();
    assert_eq!(seq, 7);
    assert!(handled.0.abs_diff(tick_time(7) + 45 * US) <= 2);
}

#[test]
fn each_missing_stamp_is_noticed() {
    let whole = testkit::run(4, &[]);
    let frame_two = |s: &Stamp| s.frame == FrameId(2) && (1..=6).contains(&s.stage);
    for stage in Stage::OF_A_JOB {
        let mut stamps = whole.clone();
        stamps.retain(|s| !(frame_two(s) && s.stage == stage as u8));
        let health = joined(stamps).health;
        assert_eq!((health.missing, health.double), (1, 0), "{stage:?}");
        let text = format!("missing: {} of job 0 of vr, frame 2", stage.name());
        assert_eq!(health.examples, [text]);
    }
}

#[test]
fn a_presented_frame_needs_its_post_and_its_handler() {
    let whole = testkit::run(6, &[]);
    let without = |stage: Stage, from: u64| {
        let mut stamps = whole.clone();
        stamps.retain(|s| !(s.stage == stage as u8 && s.a >= from));
        joined(stamps).health.missing
    };
    assert_eq!(without(Stage::Posted, 6), 1);
    assert_eq!(without(Stage::Guest, 6), 1);
    // A handler that ran for a later vblank stands for the ones before.
    let mut coalesced = whole.clone();
    coalesced.retain(|s| !(s.stage == Stage::Guest as u8 && s.a == 4));
    assert!(joined(coalesced).health.is_sound());
}

#[test]
fn a_whole_job_that_never_came_is_missing_once() {
    let mut stamps = testkit::run(3, &[2]);
    stamps.extend(good(2, 0, 2).stamps());
    let joined = joined(stamps);
    assert_eq!(joined.health.missing, 1);
    assert_eq!(joined.slices[0].frames[1].done(), None, "one of two jobs is not a frame");
}

#[test]
fn each_double_stamp_is_noticed_and_the_first_counts() {
    let whole = testkit::run(4, &[]);
    for &stamp in &whole {
        let mut stamps = whole.clone();
        let again = Stamp { time: stamp.time + PERIOD, ..stamp };
        stamps.push(again);
        let doubled = joined(stamps);
        assert_eq!((doubled.health.double, doubled.health.missing), (1, 0), "{stamp:?}");
        assert_eq!(doubled.slices[0].frames, joined(whole.clone()).slices[0].frames);
    }
}

#[test]
fn a_failed_job_needs_neither_grant_nor_run() {
    let job = good(1, 0, 1);
    let stamps = job.stamps();
    let failed = Stamp::failed(job.key, Nanos(job.end), Reason::Quota);
    let joined = joined(vec![stamps[0], stamps[1], failed]);
    assert!(joined.health.is_sound(), "{:?}", joined.health);
    assert_eq!(joined.slices[0].frames[0].jobs[0].failed, Some(Reason::Quota));
}

#[test]
fn a_guest_that_submits_after_its_doorbell_is_not_believed() {
    let job = good(1, 0, 1);
    let mut stamps = job.stamps();
    let tsc = |at| testkit::guest_tsc().from_host(at);
    stamps[0] = Stamp::submit(job.key, tsc(job.submit + 50 * US));
    let liar = joined(stamps.clone());
    assert_eq!(liar.health.implausible, 1);
    assert_eq!(liar.slices[0].frames[0].jobs[0].submit, None);
    // Within the clock's error it is an error of the clock.
    stamps[0] = Stamp::submit(job.key, tsc(job.submit + 10 * US + 15));
    let close = joined(stamps);
    assert!(close.health.is_sound());
    let clamped = close.slices[0].frames[0].jobs[0];
    assert_eq!(clamped.submit, clamped.doorbell);
}

#[test]
fn what_cannot_be_is_counted_and_left_out() {
    let mut foreign = good(1, 0, 1).stamps();
    for stamp in &mut foreign {
        stamp.slice = SliceIndex(9);
    }
    foreign.push(Stamp { stage: 200, ..Stamp::default() });
    foreign.push(Stamp { jobs: 500, ..good(1, 0, 1).stamps()[1] });
    let joined = joined(foreign);
    assert_eq!(joined.health.foreign, 8);
    assert!(joined.slices.iter().all(|s| s.frames.is_empty()));
}

#[test]
fn background_jobs_are_counted_and_need_no_stamps() {
    let k = key(1, 0, 0, 1);
    let gpu = |at| Stamp::gpu(k, Nanos(at), Nanos(at + 5), Nanos(5), false);
    let joined = joined(vec![gpu(10), gpu(20)]);
    assert!(joined.health.is_sound());
    assert_eq!(joined.slices[1].background_jobs, 2);
    assert_eq!(joined.slices[1].background_busy, Nanos(10));
}

#[test]
fn frames_outside_the_window_may_be_incomplete() {
    let stamps = vec![good(5, 0, 1).stamps()[1]];
    let to_ns = tick_time(5);
    let joined = join(&testkit::log(stamps), Window { from_ns: 0, to_ns });
    assert!(joined.health.is_sound());
}
