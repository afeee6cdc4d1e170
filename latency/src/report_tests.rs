use super::*;
use crate::analysis::Options;
use crate::table;
use crate::testkit::{self, MS, US, good};
use beamline_abi::Nanos;

fn report(stamps: Vec<crate::Stamp>, noise: Option<Noise>) -> RunReport {
    let log = testkit::log(stamps);
    let analysis = Analysis::new(&log, Options { warm_up: Nanos::ZERO, window: None });
    RunReport::new(&analysis, noise, Some(0.99))
}

#[test]
fn a_run_in_numbers() {
    let report = report(testkit::run(1201, &[5, 6, 9]), None);
    let vr = &report.slices[0];
    assert_eq!((vr.in_budget.hits, vr.in_budget.of), (1197, 1200));
    assert_eq!(vr.in_budget.percent, Some(99.75));
    assert_eq!((vr.in_budget_kept.hits, vr.in_budget_kept.of), (1197, 1197));
    assert_eq!((vr.skipped, vr.own_overruns, vr.max_miss_run), (3, 0, 2));
    assert_eq!(vr.causes, BTreeMap::from([(Cause::GuestCpu, 3)]));
    assert_eq!(vr.completion.p50_ns, Some(1_150 * US));
    assert_eq!(vr.completion.p999_ns, None, "1,197 frames say nothing of p99.9");
    assert_eq!(vr.gpu_busy.max_ns, Some(MS));
    assert_eq!(vr.vblank_err.p99_ns, Some(2 * US));
    let delivery = vr.irq_delivery.p99_ns.unwrap();
    assert!(delivery.abs_diff(40 * US) <= 2, "{delivery}");
    assert_eq!(vr.clock_err_ns, Some(20));
    assert_eq!(vr.late_latch, None);
    assert_eq!(vr.verdict, Some(Verdict::Met));
    assert_eq!(report.slices[1].verdict, None, "no contract, no verdict");
    assert_eq!(report.slices[1].in_budget.percent, None);
    assert!(report.health.is_sound());
}

#[test]
fn a_summary_survives_json_and_says_its_word() {
    let report = report(testkit::run(30, &[5]), None);
    let json = serde_json::to_string(&report).unwrap();
    assert!(json.contains("\"modelled\"") && json.contains("\"p99_ns\":null"), "{json}");
    assert!(json.contains("\"guest-cpu\":1"));
    let again: RunReport = serde_json::from_str(&json).unwrap();
    // Not whole: JSON rounds the last bit of a percentage.
    assert_eq!(again.slices[0].completion, report.slices[0].completion);
    assert_eq!(again.slices[0].verdict, report.slices[0].verdict);
    assert_eq!(table::table(&[again]), table::table(&[report]));
}

#[test]
fn interference_is_p99_against_p99_alone() {
    let alone = report(testkit::run(1101, &[]), None);
    let mut stamps = testkit::run(1101, &(1..=1100).collect::<Vec<_>>());
    stamps.extend((1..=1100).flat_map(|seq| {
        let job = good(seq, 0, 1);
        job.run(job.start + 1_150 * US, MS).stamps()
    }));
    let mut loaded = report(stamps, None);
    loaded.compare_alone(&alone);
    assert_eq!(loaded.slices[0].interference, Some(2.0));
    assert_eq!(loaded.slices[1].interference, None);
}

#[test]
fn a_void_run_decides_nothing() {
    let noise = Noise {
        duration_ns: 30_000_000_000,
        steal_jiffies: vec![40, 40],
        max_steal: 10,
        wake_ups: None,
    };
    let report = report(testkit::run(1201, &[]), Some(noise));
    assert!(matches!(report.slices[0].verdict, Some(Verdict::Inconclusive(Reason::Void(_)))));
    let text = table::table(&[report]);
    assert!(text.contains("VOID") && text.contains("80 jiffies"), "{text}");
}

#[test]
fn the_table_lines_up_and_says_its_word() {
    let mut named = report(testkit::run(40, &[5]), None);
    named.slices[0].name = "vr\u{1b}[2J".into();
    let text = table::table(&[named.clone(), named]);
    assert_eq!(text.matches("test (modelled, ").count(), 2);
    assert!(!text.contains('\u{1b}'));
    assert!(text.contains("guest-cpu 1") && text.contains("NA"), "{text}");
    let lines: Vec<&str> = text.lines().filter(|l| l.contains("guest-cpu")).collect();
    let head = text.lines().nth(1).unwrap();
    let column = |line: &str, word: &str| line.find(word).map(|at| line[..at].chars().count());
    assert_eq!(column(head, "causes"), column(lines[0], "guest-cpu"), "{text}");
    assert_eq!(table::table(&[]), "");
}

#[test]
fn an_empty_log_makes_an_empty_report() {
    let report = report(Vec::new(), None);
    assert_eq!(report.slices[0].in_budget, Share::default());
    assert!(matches!(report.slices[0].verdict, Some(Verdict::Inconclusive(_))));
    assert!(table::table(&[report]).contains("NA"));
}

proptest::proptest! {
    /// Whatever a log holds, it is analysed, drawn and printed.
    #[test]
    fn no_stamps_make_the_analysis_panic(
        raw in proptest::collection::vec(
            (0u16..4, 0u8..20, proptest::prelude::any::<u8>(), 0u64..4, 0u16..20, 0u16..20,
             proptest::prelude::any::<[u64; 3]>(), 0u8..4),
            0..60,
        ),
    ) {
        let stamps = raw.into_iter().map(|(slice, stage, flags, frame, job, jobs, v, shift)| {
            // Large and small numbers: both wrap-arounds and overlaps are wanted.
            let small = |n: u64| if shift == 0 { n } else { n >> (16 * shift) };
            crate::Stamp {
                slice: crate::SliceIndex(slice), stage, flags,
                generation: beamline_abi::Generation(1),
                frame: beamline_abi::FrameId(frame),
                job: beamline_abi::JobIndex(job), jobs, aux: v[0] as u32,
                time: small(v[0]), a: small(v[1]), b: small(v[2]),
            }
        });
        let mut log = testkit::log(stamps.collect());
        for late_latch_ns in [0, u64::MAX] {
            if let Some(contract) = &mut log.meta.slices[0].contract {
                contract.late_latch_ns = late_latch_ns;
                contract.period_num = 1 + late_latch_ns / 2;
            }
            let analysis = Analysis::new(&log, Options { warm_up: Nanos::ZERO, window: None });
            let report = RunReport::new(&analysis, None, Some(1.0));
            table::table(&[report]);
            crate::svg::svg(&analysis, analysis.telling_window(Nanos(100 * MS)));
            crate::trace::chrome_json(&analysis);
        }
    }
}
