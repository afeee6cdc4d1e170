//! The built-in scenarios are good; what is wrong in a file is named with its line and key.

use super::super::mutate::{Edit, mutate};
use super::super::{builtin, csv};
use super::*;
use crate::sim::scenario::Work;
use beamline_abi::Nanos;
use proptest::prelude::*;
use std::vec::Vec;
use std::{format, println};

const TRACE: &str = "frame,job,submit_ns,gpu_ns\n0,0,412000,1310000\n1,0,398000,1290000\n";

const GOOD: &str = r#"about = "for the tests"
victim = "game-2"
[gpu]
preemption = { full = { cost_ms = 0.05 } }
[[tenant]]
name = "game"
count = 2
[tenant.contract]
refresh_hz = "60000/1001"
class = "reserved"
budget_ms = 2.0
max_job_ms = 1.0
jitter_ms = 0.5
miss = "1/10"
late_latch = { window_ms = 2.0, budget_ms = 0.5 }
[tenant.frames]
jobs = [{ uniform = { low_ms = 0.5, high_ms = 1.0 } },
        { lognormal = { median_ms = 0.5, sigma = 0.2, at_most_ms = 1.0 } }]
late_latch = { fixed_ms = 0.4 }
[[tenant]]
name = "flood"
[tenant.contract]
refresh_hz = "60"
class = "background"
budget_ms = 0.0
max_job_ms = 5.0
[tenant.flood]
depth = 8
cost = { pareto = { scale_ms = 0.25, shape = 1.5, at_most_ms = 5.0 } }
[[tenant]]
name = "replay"
[tenant.contract]
refresh_hz = "60"
class = "elastic"
budget_ms = 2.0
max_job_ms = 2.0
[tenant.trace]
file = "replay.csv"
"#;

fn read(text: &str) -> Result<Scenario, ConfigError> {
    parse(text, "test", "test.toml", &mut |name| match name {
        "replay.csv" => Ok(TRACE.into()),
        "bad.csv" => Ok(TRACE.replace("1,0", "2,0")),
        _ => Err(format!("`{name}` cannot be read; name a file that can")),
    })
}

#[test]
fn every_built_in_scenario_is_good_and_can_be_looked_up() {
    for (name, _) in builtin::ALL {
        let s = builtin::scenario(name).unwrap();
        assert_eq!(s.name, name);
        assert!(s.victim.is_some(), "{name} names no victim");
    }
    assert_eq!(builtin::scenario("no-such"), None);
}

#[test]
fn a_good_file_means_what_it_says() {
    let s = read(GOOD).unwrap();
    let names: Vec<&str> = s.tenants.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["game-1", "game-2", "flood", "replay"]);
    assert_eq!(s.victim, Some(1));
    let c = &s.tenants[1].contract;
    assert_eq!((c.period.num(), c.period.den()), (50_050_000, 3));
    assert_eq!((c.deadline, c.budget), (Nanos(16_683_333), Nanos(2_000_000)));
    assert_eq!((c.miss.misses, c.miss.frames), (1, 10));
    let Work::Trace(trace) = &s.tenants[3].work else { panic!("{:?}", s.tenants[3].work) };
    assert_eq!(trace.frames.len(), 2);
    assert_eq!((s.length, s.warm_up), (Nanos::from_secs(60), Nanos::from_secs(1)));
}

#[test]
fn every_fault_is_named_with_line_and_key() {
    for (from, to, line, key, words) in [
        ("about", "abuot", 1, "abuot", "unknown field"),
        ("count = 2", "count = \"2\"", 7, "tenant[0].count", "invalid type"),
        ("count = 2", "count = 0", 7, "tenant[0].count", "must be 1 to 4096"),
        ("count = 2", "count = 5000", 7, "tenant[0].count", "must be 1 to 4096"),
        ("count = 2", "count = -1", 7, "tenant[0].count", "invalid value"),
        ("[gpu]", "[gpu", 3, "", "expected"),
        ("about = \"for the tests\"", "about = \"\"", 1, "about", "one line"),
        ("full = {", "half = {", 4, "gpu.preemption.half", "expected one of"),
        ("cost_ms = 0.05", "cost_ms = 5000.0", 4, "gpu.preemption.full.cost_ms", "must be 0 ns to"),
        ("cost_ms = 0.05", "cost_ms = nan", 4, "gpu.preemption.full.cost_ms", "out of range"),
        ("game-2", "game", 2, "victim", "there are: game-1, game-2"),
        ("game-2", "flood", 2, "victim", "has no frames"),
        ("\"60000/1001\"", "\"0\"", 9, "tenant[0].contract.refresh_hz", "write \"90\""),
        ("\"60000/1001\"", "\"1/0\"", 9, "tenant[0].contract.refresh_hz", "write \"90\""),
        (
            "class = \"reserved\"",
            "class = \"best\"",
            10,
            "tenant[0].contract.class",
            "unknown variant",
        ),
        ("class = \"reserved\"", "", 8, "tenant[0].contract", "missing field `class`"),
        ("budget_ms = 2.0", "budget_ms = 0", 11, "tenant[0].contract.budget_ms", "more than 0"),
        ("budget_ms = 2.0", "budget_ms = -1", 11, "tenant[0].contract.budget_ms", "out of range"),
        (
            "budget_ms = 2.0",
            "budget_ms = 1e300",
            11,
            "tenant[0].contract.budget_ms",
            "out of range",
        ),
        (
            "budget_ms = 2.0",
            "budget_ms = 16",
            11,
            "tenant[0].contract.budget_ms",
            "at most 14.683 ms",
        ),
        ("budget_ms = 2.0", "budget_ms = 14.1", 8, "tenant[0].contract", "a GPU of its own"),
        (
            "max_job_ms = 1.0",
            "max_job_ms = 0.4",
            12,
            "tenant[0].contract.max_job_ms",
            "at least 500",
        ),
        ("jitter_ms = 0.5", "jitter_ms = 15", 13, "tenant[0].contract.jitter_ms", "at most"),
        ("\"1/10\"", "\"10/10\"", 14, "tenant[0].contract.miss", "m-in-k"),
        (
            "window_ms = 2.0",
            "window_ms = 17",
            15,
            "tenant[0].contract.late_latch.window_ms",
            "below",
        ),
        ("low_ms = 0.5, ", "", 17, "tenant[0].frames.jobs[0].uniform", "missing field `low_ms`"),
        (
            "low_ms = 0.5",
            "low_ms = 1.5",
            17,
            "tenant[0].frames.jobs[0].uniform.high_ms",
            "must be 1.500",
        ),
        (
            "sigma = 0.2",
            "sigma = -0.2",
            18,
            "tenant[0].frames.jobs[1].lognormal.sigma",
            "must be 0",
        ),
        ("late_latch = { fixed_ms = 0.4 }", "", 16, "tenant[0].frames.late_latch", "is missing"),
        ("name = \"flood\"", "name = \"game-1\"", 21, "tenant[1].name", "its own name"),
        ("name = \"flood\"", "name = \"a b\"", 21, "tenant[1].name", "letters, digits"),
        (
            "class = \"background\"",
            "class = \"reserved\"",
            25,
            "tenant[1].contract.budget_ms",
            "reserved",
        ),
        ("depth = 8", "depth = 0", 28, "tenant[1].flood.depth", "must be 1 to"),
        ("depth = 8", "depht = 8", 28, "tenant[1].flood.depht", "unknown field"),
        (
            "scale_ms = 0.25",
            "scale_ms = 0",
            29,
            "tenant[1].flood.cost.pareto.scale_ms",
            "must be 1.000 µs",
        ),
        ("[tenant.trace]\nfile = \"replay.csv\"", "", 30, "tenant[2]", "exactly one of"),
        ("replay.csv", "none.csv", 38, "tenant[2].trace.file", "cannot be read"),
    ] {
        let text = GOOD.replacen(from, to, 1);
        assert_ne!(text, GOOD, "{from} is not there");
        let error = read(&text).expect_err(to);
        let said = format!("{error}");
        let place = if key.is_empty() { String::new() } else { format!("{key}: ") };
        assert!(said.starts_with(&format!("test.toml:{line}: {place}")), "{from} → {to}: {said}");
        assert!(said.contains(words), "no `{words}` in: {said}");
    }
}

#[test]
fn a_trace_that_is_wrong_is_named_itself() {
    let error = read(&GOOD.replace("replay.csv", "bad.csv")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "bad.csv:3: frame: is 2 after 0: there is a hole; frame 1 must follow"
    );
}

proptest! {
    #[test]
    fn a_damaged_scenario_never_panics_and_is_read_or_refused_in_its_own_lines(
        which in 0..=builtin::ALL.len(),
        edits in prop::collection::vec((any::<u32>(), any::<u8>(), 0u8..4), 1..12),
    ) {
        let good = builtin::ALL.get(which).map_or(GOOD, |(_, text)| *text);
        let text = mutate(good, &edits);
        if let Err(ConfigError::Syntax { line, .. } | ConfigError::Value { line, .. }) = read(&text) {
            prop_assert!((1..=text.lines().count() + 1).contains(&line), "line {line}");
        }
    }
}

/// For as long as `BEAMLINE_FUZZ_SECONDS` says (600 where it says nothing), both parsers.
#[test]
#[ignore = "takes ten minutes: cargo test -p beamline-sched --features sim --release -- --ignored fuzz"]
fn fuzz_both_parsers() {
    let seconds = std::env::var("BEAMLINE_FUZZ_SECONDS").ok().and_then(|s| s.parse().ok());
    let end = std::time::Instant::now() + std::time::Duration::from_secs(seconds.unwrap_or(600));
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut texts: Vec<String> = builtin::ALL.iter().map(|(_, t)| (*t).into()).collect();
    texts.push(GOOD.into());
    let good: Vec<String> = texts.clone();
    let (mut runs, mut taken, mut traces_taken) = (0u64, 0u64, 0u64);
    while std::time::Instant::now() < end {
        let i = next() as usize % texts.len();
        let edits: Vec<Edit> = (0..=next() % 6)
            .map(|_| {
                let n = next();
                ((n >> 32) as u32, (n >> 8) as u8, n as u8 % 4)
            })
            .collect();
        let text = mutate(&texts[i], &edits);
        let outcome = read(&text);
        taken += u64::from(outcome.is_ok());
        // What was taken although it was changed is changed further, for a while.
        let fresh = next() % 16 == 0 || outcome.is_err();
        texts[i] = if fresh { good[i].clone() } else { text };
        let trace = mutate(TRACE, &edits);
        traces_taken += u64::from(csv::parse(&trace, "t.csv").is_ok());
        runs += 1;
    }
    println!("{runs} scenarios ({taken} taken) and {runs} traces ({traces_taken} taken), no panic");
    assert!(taken > 0 && traces_taken > 0 && taken < runs && traces_taken < runs);
}
