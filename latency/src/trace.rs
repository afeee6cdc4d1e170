//! The GPU's timeline and the frames' verdicts in Chrome's JSON trace format, which Perfetto opens.

use crate::analysis::Analysis;
use crate::cause::Cause;
use serde_json::{Value, json};

/// The run as a trace: one process per slice; thread 0 is its time on the GPU, thread 1 its frames.
/// Times in µs of host `CLOCK_MONOTONIC`, as the format asks.
pub fn chrome_json(analysis: &Analysis<'_>) -> Value {
    let meta = &analysis.log.meta;
    let us = |ns: u64| ns as f64 / 1e3;
    let mut events = Vec::new();
    for (pid, (slice, run, judged)) in analysis.slices().enumerate() {
        let name = format!("{} ({})", slice.name, meta.label);
        events.push(json!({"ph": "M", "name": "process_name", "pid": pid,
            "args": {"name": name}}));
        for (tid, thread) in ["GPU", "frames"].into_iter().enumerate() {
            events.push(json!({"ph": "M", "name": "thread_name", "pid": pid, "tid": tid,
                "args": {"name": thread}}));
        }
        for (grid, emitted) in run.vblanks.values().filter_map(|v| v.tick) {
            let late = emitted.saturating_sub(grid).0;
            events.push(json!({"ph": "i", "s": "t", "name": "vblank", "pid": pid, "tid": 1,
                "ts": us(grid.0), "args": {"late_ns": late}}));
        }
        for slot in &judged.slots {
            let id = slot.frame.map(|i| run.frames[i].id.0);
            let length = slot.deadline.saturating_sub(slot.release).0;
            events.push(json!({"ph": "X", "pid": pid, "tid": 1, "ts": us(slot.release.0),
                "name": if slot.in_budget { "in budget" } else { "missed" }, "dur": us(length),
                "args": {"frame": id, "cause": slot.cause.map(Cause::name),
                    "own_overrun": slot.own_overrun}}));
        }
    }
    for span in analysis.timeline.spans() {
        let name = if span.late_latch { "late latch" } else { "job" };
        let ran = span.end.saturating_sub(span.start).0;
        events.push(json!({"ph": "X", "name": name, "pid": span.slice.0, "tid": 0,
            "ts": us(span.start.0), "dur": us(ran),
            "args": {"frame": span.frame.0, "job": span.job.0, "ended_by_host": span.killed}}));
    }
    json!({"traceEvents": events, "displayTimeUnit": "ms",
        "otherData": {"run": meta.run, "label": meta.label, "seed": meta.seed}})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::Options;
    use crate::testkit;
    use beamline_abi::Nanos;

    #[test]
    fn jobs_frames_and_the_label_are_in_it() {
        let log = testkit::log(testkit::run(12, &[5]));
        let options = Options { warm_up: Nanos::ZERO, window: None };
        let trace = chrome_json(&Analysis::new(&log, options));
        assert_eq!(trace["otherData"]["label"], "modelled");
        let events = trace["traceEvents"].as_array().unwrap();
        let named = |name: &str| events.iter().filter(|e| e["name"] == name).count();
        assert_eq!((named("job"), named("missed"), named("vblank")), (10, 1, 12));
    }
}
