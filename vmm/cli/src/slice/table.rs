//! Slices for people.

use beamline_mdev::host::api::json::SliceJson;
use serde_json::{Map, Value};

/// One line per slice.
pub(super) fn list(slices: &[SliceJson]) -> String {
    let head = ["NAME", "STATE", "CONTRACT", "PHASE ms", "FRAMES", "LATE", "FAILED", "BUSY ms"];
    let mut rows: Vec<[String; 8]> = vec![head.map(String::from)];
    for slice in slices {
        rows.push([
            slice.name.clone(),
            state(slice),
            contract(&slice.contract),
            format!("{:.3}", slice.phase_ms),
            slice.stats.frames.to_string(),
            slice.stats.late.to_string(),
            slice.stats.failed.to_string(),
            format!("{:.1}", slice.stats.busy_ms),
        ]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..head.len()).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            // Words to the left, numbers to the right.
            match column {
                0..3 => line.push_str(&format!("{cell:<width$}  ")),
                _ => line.push_str(&format!("{cell:>width$}  ")),
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// All of one slice.
pub(super) fn show(slice: &SliceJson) -> String {
    let mut text = String::new();
    let mut line = |key: &str, value: String| text.push_str(&format!("{key:<12} {value}\n"));
    line("name", slice.name.clone());
    line("state", state(slice));
    line("display", format!("{} × {}", slice.width, slice.height));
    line("memory", slice.memory.clone());
    for (key, value) in &slice.contract {
        line(key, plain(value));
    }
    line("phase_ms", slice.phase_ms.to_string());
    line("proof", slice.proof.clone());
    line("pacer", slice.pacer.display().to_string());
    line("gpu", slice.gpu.display().to_string());
    let stats = &slice.stats;
    line("frames", format!("{}, of which {} late", stats.frames, stats.late));
    line("jobs", format!("{}, and {} that failed", stats.jobs, stats.failed));
    line("busy_ms", stats.busy_ms.to_string());
    line("vblanks", format!("{} passed over", stats.skipped_vblanks));
    text
}

fn state(slice: &SliceJson) -> String {
    let more = if slice.changing { ", changing" } else { "" };
    format!("{}{more}", slice.state)
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Object(keys) => {
            let keys: Vec<String> = keys.iter().map(|(k, v)| format!("{k} {}", plain(v))).collect();
            keys.join(", ")
        }
        other => other.to_string(),
    }
}

/// `90 Hz reserved, 2 ms + 0.5 ms`.
fn contract(keys: &Map<String, Value>) -> String {
    let key = |key: &str| keys.get(key).map(plain).unwrap_or_default();
    let latch = keys.get("late_latch").and_then(|latch| latch.get("budget_ms"));
    let latch = latch.map(|budget| format!(" + {} ms", plain(budget))).unwrap_or_default();
    format!("{} Hz {}, {} ms{latch}", key("refresh_hz"), key("class"), key("budget_ms"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_line_up_and_leave_nothing_out() {
        let slice: SliceJson = serde_json::from_value(serde_json::json!({
            "name": "a-long-name", "width": 1, "height": 2, "memory": "64M",
            "contract": {
                "refresh_hz": "90", "class": "reserved", "budget_ms": 2.5,
                "late_latch": { "window_ms": 1.0, "budget_ms": 0.5 },
            },
            "phase_ms": 1.5, "proof": "phased", "pacer": "p.sock", "gpu": "g.sock",
            "state": "rendering", "changing": true,
            "stats": { "frames": 12, "late": 1, "jobs": 24, "failed": 2, "busy_ms": 30.25, "skipped_vblanks": 5 },
        }))
        .unwrap();
        let text = list(std::slice::from_ref(&slice));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0].find("STATE"), lines[1].find("rendering, changing"));
        assert!(lines[1].contains("90 Hz reserved, 2.5 ms + 0.5 ms"), "{text}");
        let all = show(&slice);
        for word in
            ["p.sock", "g.sock", "window_ms 1.0", "12, of which 1 late", "phased", "5 passed over"]
        {
            assert!(all.contains(word), "no {word} in {all}");
        }
    }
}
