//! Tables for people, JSON for machines.

use crate::stats::Summary;
use anyhow::Context;
use serde::Serialize;
use std::fmt::Write;
use std::path::PathBuf;

/// How all results of this package come about.
pub const LABEL: &str = "measured";

/// A promise and whether it was kept in this run. A missed gate is told, and fails nothing: the machine may
/// be busy.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Gate {
    /// What is promised.
    pub what: String,
    /// At most this, or at least.
    pub limit: f64,
    /// Which of the two.
    pub at_least: bool,
    /// What came out, in the same unit.
    pub value: f64,
    /// Whether it was kept.
    pub met: bool,
}

impl Gate {
    /// `value` is to be at most `limit`.
    pub fn at_most(what: impl Into<String>, limit: f64, value: f64) -> Self {
        Self { what: what.into(), limit, at_least: false, value, met: value <= limit }
    }

    /// `value` is to be at least `limit`.
    pub fn at_least(what: impl Into<String>, limit: f64, value: f64) -> Self {
        Self { what: what.into(), limit, at_least: true, value, met: value >= limit }
    }

    /// One line: `what ≤ limit unit: met (value unit)`, or `≥`.
    pub fn line(&self, unit: &str) -> String {
        let verdict = if self.met { "met" } else { "missed" };
        let sign = if self.at_least { '≥' } else { '≤' };
        // Shares of a thousand are told apart.
        let digits = if self.limit < 0.01 { 5 } else { 2 };
        let (what, limit, value) = (&self.what, self.limit, self.value);
        let limit = (limit * 1e5).round() / 1e5;
        format!("{what} {sign} {limit}{unit}: {verdict} ({value:.digits$}{unit})")
    }
}

/// A line of a table: a name, a distribution, and a remark.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// How it came out.
    #[serde(flatten)]
    pub summary: Summary,
    /// The median over that of the row it is compared with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
}

/// The table of `rows`, in µs.
pub fn table(title: &str, rows: &[Row]) -> String {
    let width = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
    let micros = |ns: u64| ns as f64 / 1e3;
    let mut text = format!(
        "{title} ({LABEL}, µs)\n{:width$}  {:>7}  {:>9}  {:>9}  {:>9}  {:>6}\n",
        "", "n", "median", "p99", "max", "ratio"
    );
    for Row { name, summary: s, ratio } in rows {
        let ratio = ratio.map_or_else(String::new, |r| format!("{r:.2}×"));
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{name:width$}  {:>7}  {:>9.2}  {:>9.2}  {:>9.2}  {ratio:>6}",
            s.count,
            micros(s.median_ns),
            micros(s.p99_ns),
            micros(s.max_ns),
        );
    }
    text
}

/// Writes `value` to `bench/<name>.json` in Cargo's target folder; answers where.
pub fn write_json(name: &str, value: &impl Serialize) -> anyhow::Result<PathBuf> {
    // A benchmark is at <target>/<profile>/deps/<name>-<hash>.
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let target = program.ancestors().nth(3).context("this program is not in a target folder")?;
    let folder = target.join("bench");
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make {}", folder.display()))?;
    let path = folder.join(format!("{name}.json"));
    let text = serde_json::to_string_pretty(value).context("cannot write the results as JSON")?;
    std::fs::write(&path, text + "\n")
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_says_what_was_promised_and_what_came_out() {
        let gate = Gate::at_most("round trip", 1.3, 1.25);
        assert_eq!(gate.line("×"), "round trip ≤ 1.3×: met (1.25×)");
        assert_eq!(
            Gate::at_most("decision", 1.0, 2.0).line(" µs"),
            "decision ≤ 1 µs: missed (2.00 µs)"
        );
        assert!(!Gate::at_most("no value", 1.0, f64::NAN).met);
    }

    #[test]
    fn a_table_names_its_kind_and_unit() {
        let summary = Summary { count: 2, min_ns: 1, median_ns: 1500, p99_ns: 2000, max_ns: 3000 };
        let text = table("trips", &[Row { name: "a".into(), summary, ratio: Some(1.0) }]);
        assert!(
            text.contains("measured, µs") && text.contains("1.50") && text.contains("1.00×"),
            "{text}"
        );
    }
}
