//! Who had the GPU when, in Chrome's JSON trace format, which Perfetto opens.

use super::run::Result;
use super::{Call, standing};
use beamline_sched::sim::outcome::Doing;
use serde_json::{Value, json};

/// The longest stretch that is written, ns: viewers should open the file.
const LENGTH: u64 = 10_000_000_000;

/// The first seed's first seconds after warm-up: one process per policy, one thread per tenant. Times in µs of
/// virtual time, as the format asks.
pub(super) fn chrome_json(call: &Call, results: &[Result]) -> Value {
    let us = |ns: u64| ns as f64 / 1e3;
    let (from, to) = (call.scenario.warm_up.0, call.scenario.warm_up.0.saturating_add(LENGTH));
    let mut events = Vec::new();
    for (pid, result) in results.iter().enumerate() {
        let name = format!("{} (simulated; {})", result.policy, standing(result.policy));
        events.push(json!({"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}}));
        for (tid, tenant) in call.scenario.tenants.iter().enumerate() {
            events.push(json!({"ph": "M", "name": "thread_name", "pid": pid, "tid": tid,
                "args": {"name": tenant.name}}));
        }
        let spans = &result.runs.sum.timeline;
        for span in spans.iter().filter(|s| s.to.0 > from && s.from.0 < to) {
            let name = match (span.doing, span.late_latch) {
                (Doing::Work, false) => "job",
                (Doing::Work, true) => "late latch",
                (Doing::Switch, _) => "switch",
                (Doing::Preempt, _) => "preempt",
            };
            events.push(json!({"ph": "X", "name": name, "pid": pid, "tid": span.tenant,
                "ts": us(span.from.0), "dur": us(span.to.0 - span.from.0),
                "args": {"vblank": span.slot, "job": span.job}}));
        }
    }
    json!({"traceEvents": events, "displayTimeUnit": "ms",
        "otherData": {"label": "simulated", "scenario": call.scenario.name, "hash": call.hash,
            "seed": 1, "phases": call.phases.name(), "admission": call.admission}})
}
