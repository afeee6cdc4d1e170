//! One line per frame that was due, as CSV.
//!
//! `Application`, `TimeInMs` and `GPUBusy` mean what PresentMon's columns of these names mean; all else has
//! a name of its own. Times in ms; `NA` is what was not measured.

use crate::analysis::Analysis;
use std::fmt::Write;

const HEAD: &str = "Application,TimeInMs,GPUBusy,label,frame,vblank,deadline_slack_ms,\
                    completion_ms,gpu_wait_ms,in_budget,own_overrun,late_latch,presented_vblank,cause\n";

/// The judged frames of all slices. `TimeInMs` is the release, from the beginning of what was judged.
pub fn frames(analysis: &Analysis<'_>) -> String {
    let mut out = String::from(HEAD);
    let label = analysis.log.meta.label;
    for (slice, run, judged) in analysis.slices() {
        let name = quoted(&slice.name);
        for slot in &judged.slots {
            let frame = slot.frame.map(|i| &run.frames[i]);
            let done = frame.and_then(crate::frames::Frame::done);
            let slack = done.map(|d| (slot.deadline.0 as f64 - d.0 as f64) / 1e6);
            let since = slot.release.0.saturating_sub(analysis.window.from_ns);
            let _ = writeln!(
                out,
                "{name},{:.6},{},{label},{},{},{},{},{},{},{},{},{},{}",
                since as f64 / 1e6,
                ms(frame.map(|f| f.busy().as_millis_f64())),
                word(frame.map(|f| f.id.0)),
                slot.seq,
                ms(slack),
                ms(slot.completion.map(beamline_abi::Nanos::as_millis_f64)),
                ms(frame.map(|f| f.gpu_wait().as_millis_f64())),
                u8::from(slot.in_budget),
                u8::from(slot.own_overrun),
                word(slot.latch.map(u8::from)),
                word(frame.and_then(|f| Some(f.presented?.seq))),
                slot.cause.map_or("NA", |c| c.name()),
            );
        }
    }
    out
}

fn ms(value: Option<f64>) -> String {
    value.map_or("NA".into(), |v| format!("{v:.6}"))
}

fn word(value: Option<impl ToString>) -> String {
    value.map_or("NA".into(), |v| v.to_string())
}

/// Names come from configuration files: quoted, one line, and no formula for a spreadsheet.
fn quoted(name: &str) -> String {
    let name: String = name.chars().filter(|c| !c.is_control()).collect();
    let name = name.trim_start_matches(['=', '+', '-', '@']);
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::Options;
    use crate::testkit;
    use beamline_abi::Nanos;

    #[test]
    fn a_line_per_due_frame() {
        let mut log = testkit::log(testkit::run(6, &[2]));
        log.meta.slices[0].name = "=v\"r\n".into();
        let analysis = Analysis::new(&log, Options { warm_up: Nanos::ZERO, window: None });
        let text = frames(&analysis);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 1 + 5);
        let columns = lines[0].split(',').count();
        assert!(lines.iter().all(|l| l.split(',').count() == columns), "{text}");
        assert_eq!(
            lines[1],
            "\"v\"\"r\",0.000000,1.000000,modelled,1,1,8.850000,1.150000,0.050000,1,0,NA,2,NA"
        );
        assert!(lines[2].ends_with("modelled,NA,2,NA,NA,NA,0,0,NA,NA,guest-cpu"), "{text}");
    }
}
