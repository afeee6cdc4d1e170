//! The demo's end: the promises as a table, and timelines of several runs as one picture.

use super::judge::Promise;
use beamline_latency::verdict::Verdict;

/// The promises as a table for a terminal: one row each, one column per run.
pub(crate) fn promise_table(promises: &[Promise], label: &str) -> String {
    let Some(first) = promises.first() else { return String::new() };
    let mut rows = vec![
        std::iter::once(format!("promise ({label})"))
            .chain(first.results.iter().map(|r| r.run.clone()))
            .collect::<Vec<_>>(),
    ];
    for promise in promises {
        let cells = promise.results.iter().map(|r| format!("{} {}", word(&r.verdict), r.seen));
        rows.push(std::iter::once(promise.promise.clone()).chain(cells).collect());
    }
    let mut notes: Vec<String> = Vec::new();
    for result in promises.iter().flat_map(|p| &p.results) {
        if let Verdict::Inconclusive(_) = result.verdict {
            let note = format!("  {}: {}", result.run, result.verdict);
            if !notes.contains(&note) {
                notes.push(note);
            }
        }
    }
    aligned(&rows) + &notes.join("\n") + if notes.is_empty() { "" } else { "\n" }
}

fn word(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Met => "met",
        Verdict::Missed => "MISSED",
        Verdict::Inconclusive(_) => "inconclusive",
    }
}

/// Columns to the left, as wide as they need.
fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| {
        rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let pad = width - cell.chars().count();
            line += &format!("  {cell}{:pad$}", "");
        }
        out += line.trim_end();
        out.push('\n');
    }
    out
}

/// Several SVG documents, as [`beamline_latency::svg::svg`] makes them, below each other in one.
pub(crate) fn stacked(documents: &[String]) -> String {
    let mut top = 0.0;
    let mut width: f64 = 0.0;
    let mut body = String::new();
    for document in documents {
        let size = |key| attribute(document, key).unwrap_or(0.0);
        width = width.max(size("width"));
        // Only the outermost element moves; the rest is drawn within it.
        body += &document.replacen("<svg ", &format!("<svg y=\"{top}\" "), 1);
        top += size("height");
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {top}\" width=\"{width}\" \
         height=\"{top}\">\n{body}</svg>\n"
    )
}

/// The number of an attribute of the first element.
fn attribute(document: &str, key: &str) -> Option<f64> {
    let head = document.split_once('>')?.0;
    let (_, value) = head.split_once(&format!(" {key}=\""))?;
    value.split_once('"')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::judge::PromiseResult;
    use super::*;
    use beamline_latency::verdict::Reason;

    #[test]
    fn promises_line_up_under_their_runs() {
        let result = |run: &str, seen: &str, verdict| PromiseResult {
            run: run.into(),
            seen: seen.into(),
            verdict,
        };
        let few = Verdict::Inconclusive(Reason::TooFewFrames { seen: 5, needed: 1000 });
        let promises = [
            Promise {
                promise: "vr: 99% of frames".into(),
                results: vec![
                    result("fifo", "91.00%", Verdict::Missed),
                    result("beamline", "99.90%", Verdict::Met),
                ],
            },
            Promise {
                promise: "vr: p99".into(),
                results: vec![result("fifo", "NA", few.clone()), result("beamline", "NA", few)],
            },
        ];
        let text = promise_table(&promises, "measured");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0].find("fifo"), lines[1].find("MISSED"));
        assert_eq!(lines[0].find("beamline"), lines[1].find("met 99.90%"));
        assert!(lines[0].contains("(measured)"));
        assert_eq!(lines[3], "  fifo: inconclusive: 5 frames due, 1000 needed");
        assert_eq!(lines.len(), 5);
        assert_eq!(promise_table(&[], "measured"), "");
    }

    #[test]
    fn pictures_are_stacked_by_their_heights() {
        let one =
            "<svg xmlns=\"x\" viewBox=\"0 0 100 40\" width=\"100\" height=\"40\"><a/></svg>\n";
        let two = "<svg xmlns=\"x\" viewBox=\"0 0 90 25.5\" width=\"90\" height=\"25.5\"></svg>\n";
        let all = stacked(&[one.into(), two.into()]);
        assert!(all.contains("viewBox=\"0 0 100 65.5\""), "{all}");
        assert!(all.contains("<svg y=\"0\" ") && all.contains("<svg y=\"40\" "), "{all}");
        assert_eq!(all.matches("</svg>").count(), 3);
    }
}
