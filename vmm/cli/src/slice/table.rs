//! Slices for people.

use beamline_mdev::host::api::json::{AskedJson, SliceJson};
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
    line("guest", guest(slice));
    if let Some(ceiling) = &slice.ceiling {
        line("ceiling", contract(ceiling));
    }
    if let Some(asked) = &slice.asked {
        line("asked", told(asked));
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
    let changing = if slice.changing { ", changing" } else { "" };
    let quiesce = match slice.quiesce.as_deref() {
        None => String::new(),
        Some("asked") => ", asked to quiesce".into(),
        Some(word) => format!(", {word}"),
    };
    format!("{}{changing}{quiesce}", slice.state)
}

/// Whether the guest may choose, and at which rates.
fn guest(slice: &SliceJson) -> String {
    match &slice.guest_hz {
        Some(rates) => format!("{}, {} to {} Hz", slice.guest_contract, rates.min, rates.max),
        None => slice.guest_contract.clone(),
    }
}

/// `90 Hz, 4 ms: reduced (ceiling); 3.5 ms fit`.
fn told(asked: &AskedJson) -> String {
    let hz = asked.refresh_hz.as_ref().map(|hz| format!("{hz} Hz"));
    let ms = |ms: Option<f64>, what: &str| ms.map(|ms| format!("{ms} ms{what}"));
    let what: Vec<String> = [
        hz,
        ms(asked.budget_ms, ""),
        ms(asked.deadline_ms, " deadline"),
        ms(asked.window_ms, " window"),
        ms(asked.latch_budget_ms, " late latch"),
    ]
    .into_iter()
    .flatten()
    .collect();
    let why = asked.reason.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
    let fits = asked.fits_budget_ms.map(|ms| format!("; {ms} ms fit")).unwrap_or_default();
    let what = if what.is_empty() { "nothing else".into() } else { what.join(", ") };
    format!("{what}: {}{why}{fits}", asked.answer)
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
    use beamline_mdev::host::api::json::RatesJson;

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
        let slice = SliceJson {
            quiesce: Some("quiesced".into()),
            guest_contract: "within".into(),
            guest_hz: Some(RatesJson { min: "30".into(), max: "120".into() }),
            asked: Some(AskedJson {
                refresh_hz: Some("120".into()),
                budget_ms: Some(3.5),
                answer: "reduced".into(),
                reason: Some("no-room".into()),
                fits_budget_ms: Some(2.25),
                ..AskedJson::default()
            }),
            ..slice
        };
        let all = show(&slice);
        for line in [
            "rendering, changing, quiesced",
            "within, 30 to 120 Hz",
            "120 Hz, 3.5 ms: reduced (no-room); 2.25 ms fit",
        ] {
            assert!(all.contains(line), "no {line} in {all}");
        }
        for word in
            ["p.sock", "g.sock", "window_ms 1.0", "12, of which 1 late", "phased", "5 passed over"]
        {
            assert!(all.contains(word), "no {word} in {all}");
        }
    }
}
