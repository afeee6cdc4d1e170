use super::*;
use crate::analysis::{Analysis, Options};
use crate::stamp::{Stage, Stamp};
use crate::testkit::{self, Job, MS, PERIOD, US, good, shown, tick_time, vblank_seen};
use beamline_abi::Reason;

fn judged(stamps: Vec<Stamp>, contract: &ContractMeta) -> Slots {
    let mut log = testkit::log(stamps);
    log.meta.slices[0].contract = Some(contract.clone());
    let options = Options { warm_up: Nanos::ZERO, window: None };
    Analysis::new(&log, options).slots.swap_remove(0)
}

/// Ten vblanks with good frames, but for frame 5, which is `jobs`, with `others` on the GPU.
fn with_frame_five(jobs: &[Job], others: &[Stamp]) -> Slot {
    let mut stamps = testkit::run(10, &[5]);
    stamps.extend(jobs.iter().flat_map(|j| j.stamps()));
    if let Some(last) = jobs.last() {
        let seq = 5 + (last.end - tick_time(5)).div_ceil(PERIOD);
        stamps.push(shown(5, seq));
    }
    stamps.extend(others);
    let slots = judged(stamps, &testkit::contract());
    assert_eq!(slots.slots.len(), 9);
    let others = slots.slots.iter().filter(|s| s.seq != 5);
    assert!(others.clone().all(|s| s.in_budget && s.kept && s.cause.is_none()), "{slots:?}");
    slots.slots[4]
}

fn neighbour(start: u64, end: u64, predicted: Option<u64>) -> [Stamp; 2] {
    let key = testkit::key(1, 0, 0, 1);
    let (start, end) = (Nanos(start), Nanos(end));
    [
        Stamp::granted(key, start, start, end, predicted.map(Nanos)),
        Stamp::gpu(key, start, end, end - start, false),
    ]
}

fn outcome(slot: Slot) -> (bool, bool, bool, Option<Cause>) {
    (slot.in_budget, slot.own_overrun, slot.kept, slot.cause)
}

const T5: u64 = testkit::T0 + 5 * PERIOD;

#[test]
fn a_good_frame() {
    let slot = with_frame_five(&[good(5, 0, 2), good(5, 1, 2)], &[]);
    assert_eq!(outcome(slot), (true, false, true, None));
    assert_eq!(slot.completion, Some(Nanos(2_450 * US)));
}

#[test]
fn the_deadline_itself_is_in_budget() {
    let on_time = good(5, 0, 1).run(T5 + PERIOD - MS, MS);
    assert!(with_frame_five(&[on_time], &[]).in_budget);
    let late = good(5, 0, 1).run(T5 + PERIOD - MS + 1, MS);
    assert!(!with_frame_five(&[late], &[]).in_budget);
}

#[test]
fn guest_gpu_when_the_budget_is_overrun() {
    let jobs: Vec<Job> = (0..6)
        .map(|i| {
            let at = T5 + 100 * US + u64::from(i) * 1_900 * US;
            Job { submit: T5 + 90 * US, ..good(5, i, 6).run(at, 1_900 * US) }
        })
        .collect();
    assert_eq!(outcome(with_frame_five(&jobs, &[])), (false, true, false, Some(Cause::GuestGpu)));
}

#[test]
fn an_overrun_that_came_in_time_is_no_miss() {
    let slot = with_frame_five(&[good(5, 0, 1).run(T5 + 200 * US, 2 * MS + 1)], &[]);
    assert_eq!(outcome(slot), (true, true, false, None));
    let slot = with_frame_five(&[good(5, 0, 1).run(T5 + 200 * US, 2 * MS)], &[]);
    assert_eq!(outcome(slot), (true, false, true, None));
}

#[test]
fn guest_cpu_when_it_submits_too_late() {
    let late = Job { submit: T5 + 9_500 * US, ..good(5, 0, 1).run(T5 + 9_600 * US, MS) };
    let slot = with_frame_five(&[late], &[]);
    assert_eq!(outcome(slot), (false, true, false, Some(Cause::GuestCpu)));
    let skipped = with_frame_five(&[], &[]);
    assert_eq!(outcome(skipped), (false, false, false, Some(Cause::GuestCpu)));
}

#[test]
fn guest_cpu_when_a_later_job_comes_too_late() {
    let second = Job { submit: T5 + 9 * MS, ..good(5, 1, 2).run(T5 + 9_200 * US, MS) };
    let slot = with_frame_five(&[good(5, 0, 2), second], &[]);
    assert_eq!(outcome(slot), (false, false, false, Some(Cause::GuestCpu)));
}

#[test]
fn neighbour_when_its_job_was_already_running() {
    let other = neighbour(T5 - MS, T5 + 9_500 * US, None);
    let slot = with_frame_five(&[good(5, 0, 1).run(T5 + 9_600 * US, MS)], &other);
    assert_eq!(outcome(slot), (false, false, true, Some(Cause::Neighbour)));
}

#[test]
fn prediction_when_the_neighbours_job_was_thought_short() {
    let other = neighbour(T5 - MS, T5 + 9_500 * US, Some(MS));
    let slot = with_frame_five(&[good(5, 0, 1).run(T5 + 9_600 * US, MS)], &other);
    assert_eq!(slot.cause, Some(Cause::Prediction));
    // Its own job, started late because it was thought short.
    let job = Job { predicted: 100 * US, ..good(5, 0, 1).run(T5 + 8_700 * US, 1_900 * US) };
    assert_ne!(with_frame_five(&[job], &[]).cause, Some(Cause::Prediction), "mostly waiting");
}

#[test]
fn scheduler_wait_when_others_went_first_or_nothing_ran() {
    let others: Vec<Stamp> =
        (1..9).flat_map(|i| neighbour(T5 + i * MS, T5 + (i + 1) * MS, None)).collect();
    let late = good(5, 0, 1).run(T5 + 9_600 * US, MS);
    for others in [&others[..], &[]] {
        let slot = with_frame_five(&[late], others);
        assert_eq!(outcome(slot), (false, false, true, Some(Cause::SchedulerWait)));
    }
}

#[test]
fn irq_late_when_the_vblank_came_late() {
    let swap = |mut stamps: Vec<Stamp>| {
        stamps.retain(|s| !(s.stage >= 8 && s.a == 5));
        stamps.extend(vblank_seen(5, 9 * MS));
        stamps
    };
    // Submitted as soon as the vblank was there.
    let mut stamps = swap(testkit::run(10, &[5]));
    let job = Job { submit: T5 + 9_200 * US, ..good(5, 0, 1).run(T5 + 9_300 * US, MS) };
    stamps.extend(job.stamps());
    let slot = judged(stamps, &testkit::contract()).slots[4];
    assert_eq!(outcome(slot), (false, false, true, Some(Cause::IrqLate)));
    // Skipped.
    let slot = judged(swap(testkit::run(10, &[5])), &testkit::contract()).slots[4];
    assert_eq!(outcome(slot), (false, false, true, Some(Cause::IrqLate)));
}

#[test]
fn a_vblank_that_was_never_emitted_is_due_all_the_same() {
    let mut stamps = testkit::run(10, &[5, 6]);
    stamps.retain(|s| !(s.stage >= 8 && (s.a == 5 || s.a == 6)));
    let slots = judged(stamps, &testkit::contract());
    assert_eq!((slots.slots.len(), slots.vblanks_lost), (9, 2));
    for seq in [5, 6] {
        let slot = slots.slots[seq as usize - 1];
        assert_eq!((slot.seq, slot.release), (seq, Nanos(tick_time(seq))));
        assert_eq!(outcome(slot), (false, false, true, Some(Cause::IrqLate)));
    }
}

#[test]
fn sequence_numbers_that_no_grid_explains_are_not_filled_in() {
    let mut stamps = testkit::run(4, &[]);
    let far = Stamp::tick(
        crate::SliceIndex(0),
        Generation(1),
        u64::MAX,
        Nanos(tick_time(5)),
        Nanos(tick_time(5)),
    );
    stamps.push(far);
    assert_eq!(judged(stamps, &testkit::contract()).vblanks_lost, 0);
}

#[test]
fn present_when_it_was_complete_but_shown_a_vblank_later() {
    let mut stamps = testkit::run(10, &[]);
    stamps.retain(|s| !(s.stage == Stage::Vblank as u8 && s.frame.0 == 5));
    let never = judged(stamps.clone(), &testkit::contract()).slots[4];
    assert_eq!(outcome(never), (true, false, true, Some(Cause::Present)));
    stamps.push(shown(5, 7));
    let late = judged(stamps, &testkit::contract()).slots[4];
    assert_eq!(outcome(late), (true, false, true, Some(Cause::Present)));
}

#[test]
fn a_slot_lost_to_the_frame_before_has_that_frames_cause() {
    // Frame 5 is blocked by a neighbour until after vblank 6 has passed; the guest skips 6.
    let mut stamps = testkit::run(10, &[5, 6]);
    stamps.extend(neighbour(T5 - MS, T5 + 12 * MS, None));
    stamps.extend(good(5, 0, 1).run(T5 + 12_100 * US, MS).stamps());
    let slots = judged(stamps, &testkit::contract()).slots;
    assert_eq!(outcome(slots[4]), (false, false, true, Some(Cause::Neighbour)));
    assert_eq!(outcome(slots[5]), (false, false, true, Some(Cause::Neighbour)));
}

#[test]
fn stuffing_when_the_frame_before_was_well_and_still_under_way() {
    // Two periods of time for each frame: frame 5 uses them, is in time, and the guest skips 6.
    let contract = ContractMeta { deadline_ns: 2 * PERIOD, ..testkit::contract() };
    let mut stamps = testkit::run(12, &[5, 6]);
    let job = good(5, 0, 1).run(T5 + 12 * MS, MS);
    stamps.extend(Job { deadline: T5 + 2 * PERIOD, ..job }.stamps());
    let slots = judged(stamps, &contract).slots;
    assert!(slots[4].in_budget);
    assert_eq!(outcome(slots[5]), (false, false, false, Some(Cause::Stuffing)));
}

#[test]
fn a_job_ended_for_its_length_is_the_guests_own() {
    let job = good(5, 0, 1);
    let mut stamps = testkit::run(10, &[5]);
    stamps.extend(&job.stamps()[..4]);
    stamps.push(Stamp::failed(job.key, Nanos(T5 + 3 * MS), Reason::JobTooLong));
    let slot = judged(stamps, &testkit::contract()).slots[4];
    assert_eq!(outcome(slot), (false, false, false, Some(Cause::GuestGpu)));
}

fn with_latch(start: u64, len: u64) -> Slot {
    let contract =
        ContractMeta { late_latch_ns: 2 * MS, late_latch_budget_ns: MS, ..testkit::contract() };
    let mut stamps = testkit::run(10, &[5]);
    stamps.extend(good(5, 0, 2).stamps());
    let mut latch = good(5, 1, 2).run(start, len);
    latch.key.late_latch = true;
    latch.release = T5 + PERIOD - 2 * MS;
    stamps.extend(latch.stamps());
    stamps.push(shown(5, 6 + u64::from(start + len > T5 + PERIOD)));
    judged(stamps, &contract).slots[4]
}

#[test]
fn a_late_latch_starts_in_its_window_and_ends_by_the_vblank() {
    let good = with_latch(T5 + 8 * MS, 2 * MS);
    assert_eq!((good.latch, good.in_budget), (Some(true), true));
    assert_eq!(good.completion, Some(Nanos(1_150 * US)), "the latch is reported apart");
    let early = with_latch(T5 + 8 * MS - 1, MS);
    assert_eq!((early.latch, early.in_budget), (Some(false), true));
    let late = with_latch(T5 + 9_500 * US, 500 * US + 1);
    assert_eq!((late.latch, late.in_budget), (Some(false), false));
    assert_eq!(late.cause, Some(Cause::SchedulerWait));
}

#[test]
fn main_jobs_may_end_in_the_window_but_answer_for_the_latch() {
    let contract =
        ContractMeta { late_latch_ns: 2 * MS, late_latch_budget_ns: MS, ..testkit::contract() };
    let slot = |latch_start: u64| {
        let mut stamps = testkit::run(10, &[5]);
        let mut main = good(5, 0, 2).run(T5 + 8_050 * US, MS);
        main.deadline = T5 + 8 * MS;
        stamps.extend(main.stamps());
        stamps.extend(neighbour(T5 - MS, T5 + 8 * MS, None));
        let mut latch = good(5, 1, 2).run(latch_start, 500 * US);
        latch.key.late_latch = true;
        stamps.extend(latch.stamps());
        stamps.push(shown(5, 6));
        judged(stamps, &contract).slots[4]
    };
    assert_eq!(outcome(slot(T5 + 9_100 * US)), (true, false, true, None));
    let late = slot(T5 + 9_600 * US);
    assert_eq!(outcome(late), (false, false, true, Some(Cause::Neighbour)));
}

#[test]
fn background_without_a_deadline_owes_nothing() {
    let contract = ContractMeta { paced: false, ..testkit::contract() };
    let mut job = good(5, 0, 1);
    (job.release, job.deadline) = (0, u64::MAX);
    let mut stamps = job.stamps();
    stamps.extend((1..10).flat_map(testkit::vblank));
    assert_eq!(judged(stamps, &contract).slots, []);
}

#[test]
fn slices_that_are_not_paced_owe_what_they_submit() {
    let contract = ContractMeta { paced: false, ..testkit::contract() };
    let slots = judged(testkit::run(10, &[5, 6]), &contract);
    assert_eq!(slots.slots.len(), 7);
    assert!(slots.slots.iter().all(|s| s.in_budget));
}

#[test]
fn a_second_frame_for_one_vblank_is_extra() {
    let mut stamps = testkit::run(10, &[5]);
    stamps.extend(good(5, 0, 1).stamps());
    let mut second = good(5, 0, 1);
    second.key.frame.0 = 500;
    stamps.extend(second.stamps());
    let slots = judged(stamps, &testkit::contract());
    assert_eq!((slots.extra, slots.slots.len()), (1, 9));
}

#[test]
fn warm_up_is_left_out() {
    let log = testkit::log(testkit::run(10, &[1, 2]));
    let warm_up = Nanos(2 * PERIOD);
    let analysis = Analysis::new(&log, Options { warm_up, window: None });
    assert_eq!(analysis.slots[0].slots.len(), 7);
    assert!(analysis.slots[0].slots.iter().all(|s| s.in_budget));
}
