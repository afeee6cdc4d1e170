//! The results as one self-contained picture: frames in budget by policy, and who had the GPU for 100 ms.

use super::run::Result;
use super::{Call, MODEL, standing};
use beamline_latency::svg::{COLOURS, escape};
use beamline_sched::sim::outcome::{Doing, Span};
use std::fmt::Write;

const WIDTH: f64 = 1200.0;
const LEFT: f64 = 150.0;
const RIGHT: f64 = 110.0;
/// Top of the bars.
const TOP: f64 = 102.0;
const ROW: f64 = 26.0;
const BAR: f64 = 16.0;
/// The strips' stretch of time, ns.
const STRIP: u64 = 100_000_000;
const GREY: &str = "#52606d";
/// The most rectangles of a strip: a browser should open the file.
const MAX_RECTANGLES: usize = 5_000;
/// Longest name or description, in characters.
const MAX_TEXT: usize = 200;
/// The most tenants that are named below the strips.
const MAX_NAMES: usize = 8;

/// Draws the results. The strips show the first seed from the end of the warm-up on.
pub(super) fn svg(call: &Call, results: &[Result]) -> String {
    let rows = ROW * results.len() as f64;
    let strips = TOP + rows + 74.0;
    let height = strips + rows + 70.0;
    let mut out = head(call, height);
    bars(&mut out, results, rows);
    let _ = writeln!(
        out,
        "<text x=\"16\" y=\"{:.1}\" font-weight=\"600\">who had the GPU: the first {} ms, seed 1</text>",
        strips - 14.0,
        STRIP / 1_000_000
    );
    for (i, result) in results.iter().enumerate() {
        strip(&mut out, call, result, strips + ROW * i as f64);
    }
    axis(&mut out, strips, strips + rows);
    names(&mut out, call, strips + rows + 48.0);
    out += "</svg>\n";
    out
}

fn head(call: &Call, height: f64) -> String {
    let s = &call.scenario;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" font-family=\"system-ui, sans-serif\" font-size=\"12\" fill=\"#1f2933\">\n\
         <title>{0} (simulated)</title>\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <defs><pattern id=\"latch\" width=\"5\" height=\"5\" patternUnits=\"userSpaceOnUse\" \
         patternTransform=\"rotate(45)\"><rect width=\"2\" height=\"5\" fill=\"#ffffff\" \
         fill-opacity=\"0.6\"/></pattern></defs>\n\
         <text x=\"16\" y=\"28\" font-size=\"17\" font-weight=\"600\">{0}</text>\n\
         <text x=\"{1}\" y=\"28\" text-anchor=\"end\" font-size=\"13\" fill=\"{GREY}\">simulated</text>\n",
        escape(&s.name, MAX_TEXT),
        WIDTH - 16.0
    );
    let _ = writeln!(
        out,
        "<text x=\"16\" y=\"46\" fill=\"{GREY}\">{}</text>\n\
         <text x=\"16\" y=\"62\" fill=\"{GREY}\">{} seeds of {} s, {} phases, {} admission, scenario {}; \
         all but beamline: {MODEL}</text>\n\
         <text x=\"16\" y=\"{:.1}\" font-weight=\"600\">frames in budget, % of those that kept their \
         contract, with 95% intervals</text>",
        escape(&s.about, MAX_TEXT),
        call.seeds,
        s.length.0 as f64 / 1e9,
        call.phases.name(),
        if call.admission { "with" } else { "without" },
        call.hash,
        TOP - 12.0
    );
    out
}

/// Bars from 0 to 100%, since a cut axis would make small differences look large.
fn bars(out: &mut String, results: &[Result], rows: f64) {
    let x = |share: f64| LEFT + share.clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT);
    for percent in (0..=100).step_by(20) {
        let at = x(f64::from(percent) / 100.0);
        let _ = writeln!(
            out,
            "<path d=\"M{at:.2} {TOP}v{rows}\" stroke=\"#eef1f4\"/><text x=\"{at:.2}\" y=\"{:.1}\" \
             text-anchor=\"middle\" fill=\"{GREY}\">{percent}</text>",
            TOP + rows + 16.0
        );
    }
    for (i, result) in results.iter().enumerate() {
        let y = TOP + ROW * i as f64;
        label(out, result, y);
        let Some(share) = result.runs.total(|t| t.kept) else {
            let _ =
                writeln!(out, "<text x=\"{LEFT}\" y=\"{:.1}\" fill=\"{GREY}\">NA</text>", y + 17.0);
            continue;
        };
        let colour = if standing(result.policy) == MODEL { COLOURS[7] } else { COLOURS[0] };
        let _ = write!(
            out,
            "<rect x=\"{LEFT}\" y=\"{:.1}\" width=\"{:.2}\" height=\"{BAR}\" fill=\"{colour}\"/>",
            y + 5.0,
            x(share.mean) - LEFT
        );
        let mut text = format!("{:.2}", share.mean * 100.0);
        if let Some(half) = share.half {
            let (low, high) = (x(share.mean - half), x(share.mean + half));
            let _ = write!(
                out,
                "<path d=\"M{low:.2} {0:.1}H{high:.2}M{low:.2} {1:.1}v8M{high:.2} {1:.1}v8\" \
                 stroke=\"#1f2933\" stroke-width=\"1.5\"/>",
                y + 13.0,
                y + 9.0
            );
            let _ = write!(text, " ±{:.2}", half * 100.0);
        }
        let _ = writeln!(
            out,
            "<text x=\"{:.2}\" y=\"{:.1}\">{text}</text>",
            WIDTH - RIGHT + 8.0,
            y + 17.0
        );
    }
}

fn label(out: &mut String, result: &Result, y: f64) {
    let _ = writeln!(
        out,
        "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\" font-weight=\"600\">{}<title>{}</title></text>",
        LEFT - 12.0,
        y + 17.0,
        result.policy,
        standing(result.policy)
    );
}

fn strip(out: &mut String, call: &Call, result: &Result, y: f64) {
    label(out, result, y);
    let from = call.scenario.warm_up.0;
    let scale = (WIDTH - LEFT - RIGHT) / STRIP as f64;
    let x = |at: u64| LEFT + at.saturating_sub(from).min(STRIP) as f64 * scale;
    let _ = writeln!(
        out,
        "<rect x=\"{LEFT}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{BAR}\" fill=\"#f3f5f7\"/>",
        y + 5.0,
        WIDTH - LEFT - RIGHT
    );
    let spans = &result.runs.sum.timeline;
    let shown = |s: &&Span| s.to.0 > from && s.from.0 < from + STRIP && s.doing == Doing::Work;
    for span in spans.iter().filter(shown).take(MAX_RECTANGLES) {
        let tenant = usize::from(span.tenant);
        let name = call.scenario.tenants.get(tenant).map_or("", |t| t.name.as_str());
        let what = if span.late_latch { "late latch" } else { "job" };
        let place = format!(
            "x=\"{:.2}\" y=\"{:.1}\" width=\"{:.2}\" height=\"{BAR}\"",
            x(span.from.0),
            y + 5.0,
            (x(span.to.0) - x(span.from.0)).max(0.4)
        );
        let _ = write!(
            out,
            "<rect {place} fill=\"{}\"><title>{}: {what} of vblank {}, {}</title></rect>",
            COLOURS[tenant % COLOURS.len()],
            escape(name, MAX_TEXT),
            span.slot,
            span.to.saturating_sub(span.from)
        );
        if span.late_latch {
            let _ = write!(out, "<rect {place} fill=\"url(#latch)\" pointer-events=\"none\"/>");
        }
    }
    out.push('\n');
}

fn axis(out: &mut String, top: f64, bottom: f64) {
    for ms in (0..=100).step_by(10) {
        let at = LEFT + f64::from(ms) / 100.0 * (WIDTH - LEFT - RIGHT);
        let _ = writeln!(
            out,
            "<path d=\"M{at:.2} {top}V{bottom}\" stroke=\"#1f2933\" stroke-opacity=\"0.08\"/>\
             <text x=\"{at:.2}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"{GREY}\">{ms} ms</text>",
            bottom + 16.0
        );
    }
}

fn names(out: &mut String, call: &Call, y: f64) {
    let tenants = &call.scenario.tenants;
    let mut x = LEFT;
    for (i, tenant) in tenants.iter().take(MAX_NAMES).enumerate() {
        let _ = writeln!(
            out,
            "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"14\" height=\"11\" fill=\"{}\"/>\
             <text x=\"{:.1}\" y=\"{y:.1}\" fill=\"{GREY}\">{}</text>",
            y - 10.0,
            COLOURS[i % COLOURS.len()],
            x + 19.0,
            escape(&tenant.name, MAX_TEXT)
        );
        x += 44.0 + 7.0 * tenant.name.chars().count() as f64;
    }
    let more = tenants.len().saturating_sub(MAX_NAMES);
    let rest = if more > 0 { format!("and {more} more; ") } else { String::new() };
    let _ = writeln!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" fill=\"{GREY}\">{rest}hatched: late latch</text>"
    );
}
