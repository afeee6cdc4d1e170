//! `beamline sim` as a script sees it: what it prints and writes, and what it says to bad input.

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const BUILT_IN: [&str; 9] = [
    "two-tenants",
    "noisy-neighbour",
    "vr-late-latch",
    "mixed-rates",
    "encode-beside-game",
    "hog",
    "overload",
    "admission-edge",
    "density",
];

const SCENARIO: &str = r#"about = "one game, recorded"
victim = "game"
seconds = 2
warm_up_s = 0.1
[[tenant]]
name = "game"
[tenant.contract]
refresh_hz = "60"
class = "reserved"
budget_ms = 4.0
max_job_ms = 2.0
jitter_ms = 0.5
[tenant.trace]
file = "game.csv"
"#;

const TRACE: &str = "frame,job,submit_ns,gpu_ns\n0,0,200000,1500000\n1,0,300000,1700000\n";

fn sim(arguments: &[&str], folder: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_beamline"));
    command.arg("sim").args(arguments).current_dir(folder).stdin(Stdio::null());
    command.output().unwrap()
}

/// stdout of a command that must succeed.
fn good(arguments: &[&str], folder: &Path) -> String {
    let out = sim(arguments, folder);
    assert!(out.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
    assert!(out.stderr.is_empty(), "{arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

fn folder_with(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

#[test]
fn every_built_in_scenario_is_listed_and_runs() {
    let folder = tempfile::tempdir().unwrap();
    let list = good(&["--list"], folder.path());
    for name in BUILT_IN {
        assert!(list.lines().any(|l| l.starts_with(name)), "{name} is not in: {list}");
        let arguments = [name, "--seconds", "1", "--seeds", "2", "--json"];
        let report: Value = serde_json::from_str(&good(&arguments, folder.path())).unwrap();
        assert_eq!(report["label"], "simulated");
        assert_eq!(report["seeds"], serde_json::json!([1, 2]));
        let policies = report["policies"].as_array().unwrap();
        let names: Vec<&str> = policies.iter().filter_map(|p| p["policy"].as_str()).collect();
        assert_eq!(names, ["beamline", "fifo"], "{name}");
        for policy in policies {
            let tenants = policy["tenants"].as_array().unwrap();
            assert!(tenants.iter().any(|t| t["frames"]["due"].as_u64() > Some(50)), "{name}");
            for t in tenants.iter().filter(|t| t["refused"].is_null() && t["class"] == "reserved") {
                assert!(t["jobs"].as_u64() > Some(0), "{name}: {} did nothing", t["name"]);
            }
        }
    }
}

#[test]
fn a_recorded_trace_is_replayed_from_beside_its_scenario() {
    let folder = folder_with(&[("game.csv", TRACE)]);
    std::fs::create_dir(folder.path().join("sub")).unwrap();
    std::fs::write(folder.path().join("game.toml"), SCENARIO).unwrap();
    let report: Value =
        serde_json::from_str(&good(&["../game.toml", "--json"], &folder.path().join("sub")))
            .unwrap();
    assert_eq!(report["scenario"]["name"], "game");
    let game = &report["policies"][0]["tenants"][0];
    let (frames, gpu) = (game["frames"]["due"].as_u64().unwrap(), game["gpu"]["mean"].as_f64());
    // 120 frames in 2 s, by 5 seeds, of 1.6 ms on average.
    assert!((595..=605).contains(&frames), "{frames}");
    assert!((gpu.unwrap() - 0.096).abs() < 0.001, "{gpu:?}");
}

#[test]
fn the_same_seeds_give_the_same_bytes_and_other_scenarios_another_hash() {
    let folder = tempfile::tempdir().unwrap();
    let run = |n: &str| {
        let (svg, trace) = (format!("{n}.svg"), format!("{n}.json"));
        let stdout = good(
            &[
                "two-tenants",
                "--seconds",
                "2",
                "--seeds",
                "3",
                "--phases",
                "random",
                "--json",
                "--plot",
                &svg,
                "--trace",
                &trace,
            ],
            folder.path(),
        );
        let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
        (stdout, read(&svg), read(&trace))
    };
    let first = run("a");
    assert_eq!(first, run("b"));
    let report: Value = serde_json::from_str(&first.0).unwrap();
    let other = good(&["hog", "--seconds", "1", "--seeds", "1", "--json"], folder.path());
    let other: Value = serde_json::from_str(&other).unwrap();
    assert_ne!(report["scenario"]["hash"], other["scenario"]["hash"]);
    assert_eq!(report["scenario"]["hash"].as_str().map(str::len), Some(16));
}

#[test]
fn every_output_says_that_it_is_simulated_and_what_the_baselines_are() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = [
        "two-tenants",
        "--seconds",
        "2",
        "--seeds",
        "2",
        "--all",
        "--plot",
        "p.svg",
        "--trace",
        "t.json",
    ];
    let table = good(&arguments, folder.path());
    for words in
        ["(simulated)", "seeds 1 to 2", "scenario ", "fifo", "model of documented behaviour"]
    {
        assert!(table.contains(words), "no `{words}` in: {table}");
    }
    let svg = std::fs::read_to_string(folder.path().join("p.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
    assert!(svg.contains(">simulated</text>") && svg.contains("model of documented behaviour"));
    assert!(svg.contains("headset: job of vblank"), "nobody had the GPU");
    let trace = std::fs::read_to_string(folder.path().join("t.json")).unwrap();
    let trace: Value = serde_json::from_str(&trace).unwrap();
    assert_eq!(trace["otherData"]["label"], "simulated");
    let events = trace["traceEvents"].as_array().unwrap();
    let named = |name: &str| events.iter().filter(|e| e["name"] == name).count();
    assert!(named("job") > 100 && named("late latch") > 50);
    assert!(events.iter().any(|e| {
        e["args"]["name"].as_str().is_some_and(|n| n.contains("model of documented behaviour"))
    }));
}

#[test]
fn bad_input_ends_with_2_and_says_where() {
    let edit = |from: &str, to: &str| SCENARIO.replacen(from, to, 1);
    let folder = folder_with(&[
        ("game.csv", TRACE),
        ("hole.csv", &TRACE.replace("1,0", "3,0")),
        ("cut.csv", &TRACE[..TRACE.len() - 3]),
        ("order.csv", &format!("{TRACE}0,0,1,1000\n")),
        ("good.toml", SCENARIO),
        ("key.toml", &edit("about", "abuot")),
        ("unit.toml", &edit("budget_ms = 4.0", "budget_ms = \"4\"")),
        ("zero.toml", &edit("budget_ms = 4.0", "budget_ms = 0")),
        ("negative.toml", &edit("jitter_ms = 0.5", "jitter_ms = -0.5")),
        ("overflow.toml", &edit("max_job_ms = 2.0", "max_job_ms = 1e300")),
        ("infeasible.toml", &edit("budget_ms = 4.0", "budget_ms = 16.6").replace("0.5", "0.05")),
        ("contradictory.toml", &edit("jitter_ms = 0.5", "jitter_ms = 16")),
        ("hole.toml", &edit("game.csv", "hole.csv")),
        ("cut.toml", &edit("game.csv", "cut.csv")),
        ("order.toml", &edit("game.csv", "order.csv")),
        ("missing.toml", &edit("game.csv", "missing.csv")),
    ]);
    for (arguments, words) in [
        (&["no-such"][..], &["`no-such`", "built in are: two-tenants"][..]),
        (&[], &["SCENARIO"]),
        (&["good.toml", "--policy", "best"], &["best", "use one of: beamline, fifo"]),
        (&["good.toml", "--phases", "none"], &["none", "synchronous, random, assigned"]),
        (&["good.toml", "--seeds", "0"], &["--seeds", "1..=1000"]),
        (&["good.toml", "--seconds", "nan"], &["--seconds", "0.1 to 3600"]),
        (&["key.toml"], &["key.toml:1: abuot: unknown field"]),
        (&["unit.toml"], &["unit.toml:10: tenant[0].contract.budget_ms: invalid type"]),
        (&["zero.toml"], &["zero.toml:10: tenant[0].contract.budget_ms: budget is 0 ns"]),
        (&["negative.toml"], &["negative.toml:12: tenant[0].contract.jitter_ms: -0.5 is out of"]),
        (&["overflow.toml"], &["overflow.toml:11: tenant[0].contract.max_job_ms:", "use 0 to"]),
        (
            &["infeasible.toml"],
            &["infeasible.toml:7: tenant[0].contract:", "a GPU of its own", "fits"],
        ),
        (
            &["contradictory.toml"],
            &["contradictory.toml:12: tenant[0].contract.jitter_ms:", "at most"],
        ),
        (&["hole.toml"], &["hole.csv:3: frame:", "frame 1 must follow"]),
        (&["cut.toml"], &["cut.csv:3: row:", "cut off"]),
        (&["order.toml"], &["order.csv:4: frame:", "in order"]),
        (&["missing.toml"], &["missing.toml:14: tenant[0].trace.file:", "cannot be read"]),
        (&["."], &[".: cannot be read"]),
    ] {
        let out = sim(arguments, folder.path());
        let text = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{arguments:?}: {text}");
        assert!(out.stdout.is_empty());
        for word in words {
            assert!(text.contains(word), "{arguments:?}: no `{word}` in: {text}");
        }
    }
}

#[test]
fn ctrl_c_ends_a_long_run() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_beamline"))
        .args(["sim", "density", "--seconds", "3600", "--seeds", "1000", "--json"])
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Until it has taken SIGINT over, the signal would kill it.
    let status = format!("/proc/{}/status", child.id());
    let ready = |text: &str| {
        let caught = text.lines().find_map(|l| l.strip_prefix("SigCgt:"));
        caught.and_then(|c| u64::from_str_radix(c.trim(), 16).ok()).is_some_and(|c| c & 2 != 0)
    };
    while !ready(&std::fs::read_to_string(&status).unwrap()) {
        assert!(child.try_wait().unwrap().is_none(), "ended by itself");
        std::thread::yield_now();
    }
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let out = child.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert!(out.stdout.is_empty());
    assert!(String::from_utf8_lossy(&out.stderr).contains("stopped by a signal"));
}
