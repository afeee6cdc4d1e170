use super::*;
use beamline_abi::{FrameId, Generation, JobIndex};
use beamline_latency::frames::Window;
use beamline_latency::noise::Noise;
use beamline_latency::{ContractMeta, JobKey, Label, Log, Meta, SliceIndex, SliceMeta, Stamp};

const MS: u64 = 1_000_000;

/// A log of the built-in demo's slices: `vr_busy` of GPU time per VR frame, due after 11 ms, and one
/// background job of 2 ms in every 16 ms.
fn outcome(vr_busy: u64, frames: u64) -> Outcome {
    let contract = |paced, class: &str| ContractMeta {
        period_num: 11 * MS,
        period_den: 1,
        deadline_ns: 11 * MS,
        budget_ns: 3 * MS,
        max_job_ns: 3 * MS,
        gap_ns: 0,
        jitter_ns: MS,
        late_latch_ns: 0,
        late_latch_budget_ns: 0,
        paced,
        class: class.into(),
    };
    let slice = |name: &str, paced, class: &str| SliceMeta {
        name: name.into(),
        contract: Some(contract(paced, class)),
        guest_tsc: None,
    };
    let meta = Meta {
        label: Label::Modelled,
        run: "fifo".into(),
        slices: vec![slice("vr", true, "reserved"), slice("flood", false, "background")],
        tsc: None,
        gpu_clock_err_ns: 0,
        seed: 1,
        config_hash: String::new(),
    };
    let mut stamps = Vec::new();
    let mut job = |slice: u16, frame: u64, release: u64, busy: u64| {
        let key = JobKey {
            slice: SliceIndex(slice),
            generation: Generation(1),
            frame: FrameId(frame),
            job: JobIndex(0),
            jobs: 1,
            late_latch: false,
        };
        let (at, end) = (Nanos(release), Nanos(release + busy));
        stamps.push(Stamp::doorbell(key, at));
        stamps.push(Stamp::mediated(key, at, 1));
        stamps.push(Stamp::granted(key, at, at, Nanos(release + 11 * MS), None));
        stamps.push(Stamp::gpu(key, at, end, Nanos(busy), false));
        stamps.push(Stamp::fence(key, end));
    };
    for n in 1..=frames {
        job(0, n, n * 11 * MS, vr_busy);
    }
    for n in 0..frames * 11 / 16 {
        job(1, n + 1, n * 16 * MS, 2 * MS);
    }
    for n in 1..=frames {
        let (grid, g) = (Nanos(n * 11 * MS), Generation(1));
        stamps.push(Stamp::tick(SliceIndex(0), g, n, grid, grid));
    }
    Outcome {
        log: Log { meta, stamps, dropped: 0 },
        window: Window { from_ns: 0, to_ns: (frames + 2) * 11 * MS },
        noise: Noise { duration_ns: 1_000_000_000, max_steal: 10, ..Noise::default() },
        others: Others { percent: 0.0 },
        interrupts: Vec::new(),
        files: super::super::files::RunFiles { folder: "x".into(), sockets: "y".into() },
    }
}

/// The built-in demo without its game and without a late latch.
fn demo() -> Demo {
    let mut demo = Demo::load(None).unwrap();
    demo.guests.remove(1);
    demo.guests[0].contract.late_latch_window_ms = None;
    demo
}

fn judged(outcome: &Outcome, demo: &Demo) -> Judged {
    let guests: Vec<&Guest> = demo.guests.iter().collect();
    judge(outcome, &analyse(outcome), &guests, demo, Duration::from_millis(1500), 0)
}

fn verdict_of<'a>(promises: &'a [Promise], start: &str) -> &'a PromiseResult {
    &promises.iter().find(|p| p.promise.starts_with(start)).unwrap().results[0]
}

#[test]
fn frames_in_time_keep_the_promise_and_late_ones_break_it() {
    let demo = demo();
    let good = judged(&outcome(2 * MS, 1200), &demo);
    assert_eq!(good.report.warm_up_ns, 1_500_000_000);
    let promises_kept = promises(&demo, std::slice::from_ref(&good));
    assert_eq!(verdict_of(&promises_kept, "vr: 99%").verdict, Verdict::Met);

    let bad = judged(&outcome(12 * MS, 1200), &demo);
    let broken = promises(&demo, std::slice::from_ref(&bad));
    assert_eq!(verdict_of(&broken, "vr: 99%").verdict, Verdict::Missed);
    assert_eq!(verdict_of(&broken, "vr: 99%").seen, "0.00%");
}

#[test]
fn too_few_frames_are_no_verdict() {
    let demo = demo();
    let few = judged(&outcome(2 * MS, 50), &demo);
    let promises = promises(&demo, &[few]);
    for start in ["vr: 99%", "vr: p99"] {
        let verdict = &verdict_of(&promises, start).verdict;
        assert!(matches!(verdict, Verdict::Inconclusive(_)), "{start}: {verdict:?}");
    }
}

#[test]
fn interference_is_held_against_the_run_alone() {
    let demo = demo();
    let alone = judged(&outcome(2 * MS, 1200), &demo);
    for (busy, expected) in [(2 * MS, Verdict::Met), (3 * MS, Verdict::Missed)] {
        let mut run = judged(&outcome(busy, 1200), &demo);
        run.report.compare_alone(&alone.report);
        let promises = promises(&demo, &[run]);
        assert_eq!(verdict_of(&promises, "vr: p99").verdict, expected);
    }
}

#[test]
fn background_is_held_against_its_declared_minimum() {
    let mut demo = demo();
    let run = outcome(2 * MS, 1200);
    // 2 ms in 16 ms are 2.08 ms in a period of 16.67 ms.
    for (minimum, expected) in [(2.0, Verdict::Met), (2.2, Verdict::Missed)] {
        demo.guests[1].contract.budget_ms = Some(minimum);
        let judged = judged(&run, &demo);
        let promises = promises(&demo, &[judged]);
        assert_eq!(verdict_of(&promises, "flood:").verdict, expected, "{minimum}");
    }
}

#[test]
fn a_void_run_has_no_verdict() {
    let demo = demo();
    for (steal, others) in [(1000, 0.0), (0, 1000.0)] {
        let mut run = outcome(2 * MS, 1200);
        run.noise.steal_jiffies = vec![steal];
        run.others = Others { percent: others };
        let judged = judged(&run, &demo);
        let of_slice = judged.report.slices[0].verdict.clone().unwrap();
        assert!(matches!(of_slice, Verdict::Inconclusive(Reason::Void(_))), "{of_slice:?}");
        for promise in promises(&demo, &[judged]) {
            let verdict = &promise.results[0].verdict;
            assert!(matches!(verdict, Verdict::Inconclusive(Reason::Void(_))), "{verdict:?}");
        }
    }
}
