//! Stage 10, harness: how long each step of the path took, per slice and place in the frame.

use crate::analysis::Analysis;
use crate::dist::{Samples, Summary};
use crate::frames::Job;
use beamline_abi::Nanos;
use serde::Serialize;
use std::fmt::Write;

/// One step of one slice's path.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// The slice.
    pub slice: String,
    /// The job's place in its frame; `None` for the steps of a vblank.
    pub job: Option<u16>,
    /// From which stage to which.
    pub step: &'static str,
    /// How long it took, ns.
    pub took: Summary,
}

type Times = fn(&Job) -> (Option<Nanos>, Option<Nanos>);

/// The steps of a job, in the order of the path. A job that was held for its release waits from then on; one in line on
/// the GPU behind its slice's own waits for that from its grant on.
const OF_A_JOB: [(&str, Times); 5] = [
    ("1 submit → 2 found", |j| (j.submit, j.doorbell)),
    ("released → 4 granted", |j| (j.mediated.max(j.release), j.granted)),
    ("4 granted → 5 first run", |j| (j.granted, j.first_run)),
    ("5 first run → end", |j| (j.first_run, j.done)),
    ("5 end → 6 fence", |j| (j.done, j.fence)),
];

/// Every step that left stamps, over the judged frames.
pub fn steps(analysis: &Analysis<'_>) -> Vec<Step> {
    let mut steps = Vec::new();
    for (slice, run, _) in analysis.slices() {
        let places = run.frames.iter().map(|f| f.jobs.len()).max().unwrap_or(0) as u16;
        let mut add = |job, step, samples: Samples| {
            if !samples.is_empty() {
                steps.push(Step { slice: slice.name.clone(), job, step, took: samples.summary() });
            }
        };
        for place in 0..places {
            for (step, times) in OF_A_JOB {
                let jobs = run.frames.iter().flat_map(|f| &f.jobs).filter(|j| j.index.0 == place);
                add(Some(place), step, jobs.filter_map(|j| between(times(j))).collect());
            }
        }
        let vblanks = || run.vblanks.values();
        let late =
            vblanks().filter_map(|v| v.tick.and_then(|(grid, at)| between((Some(grid), Some(at)))));
        add(None, "7 grid → emitted", late.collect());
        let posted = vblanks().filter_map(|v| between((v.tick.map(|(_, at)| at), v.posted)));
        add(None, "7 emitted → 8 posted", posted.collect());
        let handled = vblanks().filter_map(|v| between((v.posted, v.handled)));
        add(None, "8 posted → 9 guest", handled.collect());
    }
    steps
}

fn between((from, to): (Option<Nanos>, Option<Nanos>)) -> Option<u64> {
    Some(to?.saturating_sub(from?).0)
}

/// The steps as a table for a terminal, in µs. NA: over too few samples.
pub fn table(analysis: &Analysis<'_>) -> String {
    let mut out = format!(
        "{:<10} {:>3}  {:<24} {:>8} {:>10} {:>10} {:>10}   µs ({})\n",
        "slice", "job", "step", "n", "p50", "p99", "max", analysis.log.meta.label
    );
    let micros = |ns: Option<u64>| ns.map_or("NA".to_owned(), |n| format!("{:.1}", n as f64 / 1e3));
    for s in steps(analysis) {
        let job = s.job.map_or("–".to_owned(), |j| j.to_string());
        let (p50, p99, max) = (micros(s.took.p50_ns), micros(s.took.p99_ns), micros(s.took.max_ns));
        let name: String = s.slice.chars().filter(|c| !c.is_control()).collect();
        let _ = writeln!(
            out,
            "{name:<10} {job:>3}  {:<24} {:>8} {p50:>10} {p99:>10} {max:>10}",
            s.step, s.took.n
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::Options;
    use crate::frames::Window;
    use crate::log::Log;
    use crate::meta::{ContractMeta, Label, Meta, SliceMeta};
    use crate::stamp::{JobKey, Stamp};
    use beamline_abi::{FrameId, JobIndex};

    #[test]
    fn a_held_job_waits_from_its_release() {
        let contract = ContractMeta {
            period_num: 10_000_000,
            period_den: 1,
            deadline_ns: 10_000_000,
            budget_ns: 1_000_000,
            max_job_ns: 1_000_000,
            gap_ns: 0,
            jitter_ns: 0,
            late_latch_ns: 0,
            late_latch_budget_ns: 0,
            paced: false,
            class: String::new(),
        };
        let slice = SliceMeta { name: "s".into(), contract: Some(contract), guest_tsc: None };
        let meta = Meta {
            label: Label::Modelled,
            run: "r".into(),
            slices: vec![slice],
            tsc: None,
            gpu_clock_err_ns: 0,
            seed: 0,
            config_hash: String::new(),
        };
        let key = JobKey { frame: FrameId(1), job: JobIndex(0), jobs: 1, ..JobKey::default() };
        let at = |us: u64| Nanos::from_micros(us);
        let stamps = vec![
            Stamp::doorbell(key, at(100)),
            Stamp::mediated(key, at(100), 8),
            Stamp::granted(key, at(530), at(500), at(9_000), None),
            Stamp::gpu(key, at(600), at(900), at(300), false),
            Stamp::fence(key, at(950)),
        ];
        let log = Log { meta, stamps, dropped: 0 };
        let window = Some(Window { from_ns: 0, to_ns: 100_000_000 });
        let analysis = Analysis::new(&log, Options { window, ..Options::default() });
        let took = |name: &str| {
            steps(&analysis).iter().find(|s| s.step == name).and_then(|s| s.took.max_ns)
        };
        assert_eq!(took("released → 4 granted"), Some(30_000));
        assert_eq!(took("4 granted → 5 first run"), Some(70_000));
        assert_eq!(took("5 end → 6 fence"), Some(50_000));
        assert_eq!(took("1 submit → 2 found"), None, "the guest's clock is not known");
        assert!(table(&analysis).contains("modelled"));
    }
}
