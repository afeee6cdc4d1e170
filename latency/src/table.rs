//! Reports as a table for a terminal.

use crate::dist::Summary;
use crate::report::{RunReport, SliceReport};
use std::fmt::Write;

const HEAD: [&str; 13] = [
    "slice",
    "due",
    "in budget",
    "of kept",
    "late latch",
    "own overruns",
    "done p50",
    "p99",
    "p99.9 ms",
    "vblank p50",
    "p99 µs",
    "alone ×",
    "causes of misses",
];

/// All runs, one block each. NA is what was not measured, or over too few frames.
pub fn table(runs: &[RunReport]) -> String {
    let mut rows: Vec<Vec<String>> = vec![HEAD.map(String::from).to_vec()];
    let mut blocks = Vec::new();
    for run in runs {
        let slices: Vec<Vec<String>> = run.slices.iter().map(row).collect();
        blocks.push((rows.len(), slices.len()));
        rows.extend(slices);
    }
    let widths: Vec<usize> = (0..HEAD.len())
        .map(|c| rows.iter().map(|r| r[c].chars().count()).max().unwrap_or(0))
        .collect();
    let line = |row: &[String]| {
        let mut out = String::new();
        for (c, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let pad = " ".repeat(width - cell.chars().count());
            // Names and causes to the left, numbers to the right.
            let left = c == 0 || c == HEAD.len() - 1;
            let (before, after) = if left { ("", pad.as_str()) } else { (pad.as_str(), "") };
            let gap = if c == 0 { "  " } else { "   " };
            let _ = write!(out, "{gap}{before}{cell}{after}");
        }
        out.trim_end().to_owned() + "\n"
    };
    let mut out = String::new();
    for (run, (first, len)) in runs.iter().zip(blocks) {
        let seconds = run.window.to_ns.saturating_sub(run.window.from_ns) as f64 / 1e9;
        let warm_up = run.warm_up_ns as f64 / 1e9;
        let _ = writeln!(
            out,
            "{} ({}, {seconds:.1} s after {warm_up:.1} s of warm-up)",
            plain(&run.run),
            run.label
        );
        out += &line(&rows[0]);
        rows[first..first + len].iter().for_each(|r| out += &line(r));
        out += &notes(run);
        out.push('\n');
    }
    out
}

fn row(s: &SliceReport) -> Vec<String> {
    let own = if s.in_budget.of > 0 { s.own_overruns.to_string() } else { "–".into() };
    let causes = match (s.background_jobs, s.causes.is_empty()) {
        (0, _) => causes(s),
        (n, true) => format!("{n} background jobs"),
        (n, false) => format!("{}; {n} background jobs", causes(s)),
    };
    vec![
        plain(&s.name),
        s.in_budget.of.to_string(),
        s.in_budget.to_string(),
        s.in_budget_kept.to_string(),
        s.late_latch.as_ref().map_or("–".into(), ToString::to_string),
        own,
        scaled(s.completion.p50_ns, 1e6, 2),
        scaled(s.completion.p99_ns, 1e6, 2),
        scaled(s.completion.p999_ns, 1e6, 2),
        scaled(s.irq_delivery.p50_ns, 1e3, 0),
        scaled(s.irq_delivery.p99_ns, 1e3, 0),
        s.interference.map_or("NA".into(), |x| format!("{x:.2}")),
        causes,
    ]
}

fn causes(s: &SliceReport) -> String {
    if s.causes.is_empty() {
        return "–".into();
    }
    let mut list: Vec<_> = s.causes.iter().collect();
    list.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
    let words: Vec<String> = list.iter().map(|(c, n)| format!("{} {n}", c.name())).collect();
    words.join(", ")
}

fn scaled(ns: Option<u64>, unit: f64, digits: usize) -> String {
    ns.map_or("NA".into(), |ns| format!("{:.digits$}", ns as f64 / unit))
}

/// Names come from configuration files: no control character reaches the terminal.
fn plain(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(32).collect()
}

fn notes(run: &RunReport) -> String {
    let mut out = String::new();
    for s in &run.slices {
        if let Some(verdict) = &s.verdict {
            let _ = writeln!(out, "  {}: {verdict}", plain(&s.name));
        }
        if unknown_is_a_defect(s) {
            let _ = writeln!(out, "  {}: over 1% of misses have no known cause", plain(&s.name));
        }
    }
    let h = &run.health;
    if !h.is_sound() {
        let _ = writeln!(
            out,
            "  stamps: {} missing, {} double, {} dropped, {} foreign, {} implausible",
            h.missing, h.double, h.dropped, h.foreign, h.implausible
        );
        h.examples.iter().take(3).for_each(|e| {
            let _ = writeln!(out, "    {e}");
        });
    }
    if let Some(noise) = &run.noise {
        let _ = writeln!(out, "  machine: {noise}");
    }
    if let Some(why) = &run.void {
        let _ = writeln!(out, "  VOID: {why}");
    }
    out
}

/// Whether more than 1% of a slice's misses are `unknown`: a defect of the harness.
pub fn unknown_is_a_defect(s: &SliceReport) -> bool {
    let all: u64 = s.causes.values().sum();
    let unknown = s.causes.get(&crate::cause::Cause::Unknown).copied().unwrap_or(0);
    u128::from(unknown) * 100 > u128::from(all)
}

/// One line for a distribution in ms, for logs.
pub fn summary_line(s: &Summary) -> String {
    let ms = |ns| scaled(ns, 1e6, 3);
    format!(
        "n {} mean {} p50 {} p95 {} p99 {} p99.9 {} max {} ms",
        s.n,
        ms(s.mean_ns),
        ms(s.p50_ns),
        ms(s.p95_ns),
        ms(s.p99_ns),
        ms(s.p999_ns),
        ms(s.max_ns)
    )
}
