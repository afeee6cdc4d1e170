//! The GPU's timeline as a picture: who had the GPU when, and which frames were missed.

use crate::analysis::Analysis;
use crate::frames::Window;
use crate::timeline::Span;
use beamline_abi::Nanos;
use std::fmt::Write;

const WIDTH: f64 = 1200.0;
const LEFT: f64 = 120.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 64.0;
const LANE: f64 = 46.0;
const BAR: f64 = 22.0;
/// Told apart also by people who do not see all colours.
pub const COLOURS: [&str; 8] =
    ["#3b6fb6", "#e08a1e", "#2a9d7f", "#9467bd", "#8c6d46", "#5ab4d6", "#b8a500", "#6b7280"];
/// Longest name shown, in characters.
const MAX_NAME: usize = 64;
const MISSED: &str = "#d62839";
/// The most rectangles drawn per slice: a browser should open the file.
const MAX_RECTANGLES: usize = 5_000;

struct Scale {
    from: u64,
    per_ns: f64,
}

impl Scale {
    fn x(&self, at: Nanos) -> f64 {
        LEFT + at.0.saturating_sub(self.from) as f64 * self.per_ns
    }
}

/// Draws `window` (100 ms are readable) of a run as one self-contained SVG.
///
/// One lane per slice. A filled bar is a job on the GPU, a hatched one a late latch; grey ticks are
/// vblanks. A red band reaches from the release of a missed frame to its deadline.
pub fn svg(analysis: &Analysis<'_>, window: Window) -> String {
    let lanes = analysis.log.meta.slices.len();
    let length = window.to_ns.saturating_sub(window.from_ns).max(1);
    let scale = Scale { from: window.from_ns, per_ns: (WIDTH - LEFT - RIGHT) / length as f64 };
    let bottom = TOP + LANE * lanes as f64;
    let height = bottom + 66.0;
    let mut out = head(analysis, height);
    axis(&mut out, length, &scale, bottom);
    for lane in 0..lanes {
        draw_lane(&mut out, analysis, lane, window, &scale);
    }
    legend(&mut out, bottom + 50.0);
    out += "</svg>\n";
    out
}

fn head(analysis: &Analysis<'_>, height: f64) -> String {
    let meta = &analysis.log.meta;
    let (run, label) = (escape(&meta.run, MAX_NAME), meta.label);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         width=\"{WIDTH}\" height=\"{height}\" font-family=\"system-ui, sans-serif\" \
         font-size=\"12\" fill=\"#1f2933\">\n\
         <title>GPU timeline: {run} ({label})</title>\n\
         <defs><pattern id=\"latch\" width=\"5\" height=\"5\" patternUnits=\"userSpaceOnUse\" \
         patternTransform=\"rotate(45)\"><rect width=\"2\" height=\"5\" fill=\"#ffffff\" \
         fill-opacity=\"0.6\"/></pattern></defs>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    let _ = writeln!(
        out,
        "<text x=\"16\" y=\"28\" font-size=\"17\" font-weight=\"600\">{run}</text>\n\
         <text x=\"{}\" y=\"28\" text-anchor=\"end\" font-size=\"13\" fill=\"#52606d\">{label}</text>",
        WIDTH - RIGHT
    );
    out
}

/// A step of 1, 2 or 5 times a power of ten that gives about ten marks.
fn step(length: u64) -> u64 {
    let rough = (length / 10).max(1);
    let decade = 10_u64.pow(rough.ilog10());
    [1, 2, 5].into_iter().map(|n| n * decade).find(|&s| s >= rough).unwrap_or(decade).max(decade)
}

fn axis(out: &mut String, length: u64, scale: &Scale, bottom: f64) {
    let step = step(length);
    let digits = usize::from(step < 1_000_000);
    for at in (0..=length).step_by(usize::try_from(step).unwrap_or(usize::MAX)).take(32) {
        let x = scale.x(Nanos(scale.from.saturating_add(at)));
        let ms = at as f64 / 1e6;
        let _ = writeln!(
            out,
            "<path d=\"M{x:.2} {TOP}V{bottom}\" stroke=\"#eef1f4\"/>\
             <text x=\"{x:.2}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#52606d\">\
             {ms:.digits$}</text>",
            bottom + 18.0
        );
    }
    let _ = writeln!(
        out,
        "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#52606d\">ms</text>",
        LEFT - 12.0,
        bottom + 18.0
    );
}

fn draw_lane(
    out: &mut String,
    analysis: &Analysis<'_>,
    lane: usize,
    window: Window,
    scale: &Scale,
) {
    let y = TOP + LANE * lane as f64;
    let colour = COLOURS[lane % COLOURS.len()];
    let name = escape(&analysis.log.meta.slices[lane].name, MAX_NAME);
    let _ = writeln!(
        out,
        "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\" font-weight=\"600\" fill=\"{colour}\">\
         {name}</text>\n<path d=\"M{LEFT} {:.1}H{}\" stroke=\"#d5dbe1\"/>",
        LEFT - 12.0,
        y + LANE / 2.0 + 4.0,
        y + LANE - 4.0,
        WIDTH - RIGHT
    );
    let (from, to) = (Nanos(window.from_ns), Nanos(window.to_ns));
    let shown = |start: Nanos, end: Nanos| end > from && start < to;
    let missed = analysis.slots[lane].slots.iter().filter(|s| !s.in_budget);
    for slot in missed.filter(|s| shown(s.release, s.deadline)).take(MAX_RECTANGLES) {
        let (a, b) = (scale.x(slot.release.max(from)), scale.x(slot.deadline.min(to)));
        let cause = slot.cause.map_or("", |c| c.name());
        let _ = writeln!(
            out,
            "<rect x=\"{a:.2}\" y=\"{:.1}\" width=\"{:.2}\" height=\"{:.1}\" fill=\"{MISSED}\" \
             fill-opacity=\"0.12\"><title>missed: {cause}</title></rect>\
             <path d=\"M{b:.2} {:.1}v{:.1}\" stroke=\"{MISSED}\" stroke-width=\"2\"/>",
            y + 2.0,
            (b - a).max(0.0),
            LANE - 6.0,
            y + 2.0,
            LANE - 6.0
        );
    }
    let ticks = analysis.joined.slices[lane].vblanks.values().filter_map(|v| v.tick);
    for (grid, _) in ticks.filter(|(t, _)| window.contains(*t)).take(MAX_RECTANGLES) {
        let _ = writeln!(
            out,
            "<path d=\"M{:.2} {:.1}v9\" stroke=\"#7b8794\" stroke-width=\"1.5\"/>",
            scale.x(grid),
            y + LANE - 8.0
        );
    }
    let spans = analysis.timeline.overlapping(from, to);
    for span in spans.filter(|s| usize::from(s.slice.0) == lane).take(MAX_RECTANGLES) {
        bar(out, span, y + 8.0, colour, (from, to), scale);
    }
}

fn bar(
    out: &mut String,
    span: &Span,
    y: f64,
    colour: &str,
    (from, to): (Nanos, Nanos),
    scale: &Scale,
) {
    let (a, b) = (scale.x(span.start.max(from)), scale.x(span.end.min(to)));
    let ran = span.end.saturating_sub(span.start);
    let what = match (span.killed, span.late_latch) {
        (true, _) => "ended by the host",
        (_, true) => "late latch",
        _ => "job",
    };
    let colour = if span.killed { MISSED } else { colour };
    let place = format!(
        "x=\"{a:.2}\" y=\"{y:.1}\" width=\"{:.2}\" height=\"{BAR}\" rx=\"1.5\"",
        (b - a).max(0.8)
    );
    let _ = write!(
        out,
        "<rect {place} fill=\"{colour}\"><title>{what} {} of {}: {ran}</title></rect>",
        span.job.0, span.frame
    );
    if span.late_latch {
        let _ = write!(out, "<rect {place} fill=\"url(#latch)\" pointer-events=\"none\"/>");
    }
    out.push('\n');
}

fn legend(out: &mut String, y: f64) {
    let box_y = y - 10.0;
    let tick_y = y - 9.0;
    let _ = writeln!(
        out,
        "<g fill=\"#52606d\"><rect x=\"{LEFT}\" y=\"{box_y:.1}\" width=\"16\" height=\"11\" \
         fill=\"{0}\"/><text x=\"142\" y=\"{y:.1}\">job on the GPU</text>\
         <rect x=\"260\" y=\"{box_y:.1}\" width=\"16\" height=\"11\" fill=\"{0}\"/>\
         <rect x=\"260\" y=\"{box_y:.1}\" width=\"16\" height=\"11\" fill=\"url(#latch)\"/>\
         <text x=\"282\" y=\"{y:.1}\">late latch</text>\
         <path d=\"M380 {tick_y:.1}v9\" stroke=\"#7b8794\" stroke-width=\"1.5\"/>\
         <text x=\"390\" y=\"{y:.1}\">vblank</text>\
         <rect x=\"470\" y=\"{box_y:.1}\" width=\"16\" height=\"11\" fill=\"{MISSED}\" \
         fill-opacity=\"0.12\"/><path d=\"M486 {box_y:.1}v11\" stroke=\"{MISSED}\" \
         stroke-width=\"2\"/><text x=\"492\" y=\"{y:.1}\">missed frame, to its deadline</text></g>",
        COLOURS[0]
    );
}

/// Text as SVG shows it. Names come from files: nothing in them is markup, and none is longer than `most`
/// characters.
pub fn escape(text: &str, most: usize) -> String {
    let mut out = String::new();
    for c in text.chars().filter(|c| !c.is_control()).take(most) {
        match c {
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '&' => out += "&amp;",
            '"' => out += "&quot;",
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::Options;
    use crate::testkit::{self, MS};

    fn drawn(name: &str) -> String {
        let mut log = testkit::log(testkit::run(12, &[5]));
        log.meta.slices[0].name = name.into();
        let options = Options { warm_up: Nanos::ZERO, window: None };
        let analysis = Analysis::new(&log, options);
        svg(&analysis, analysis.telling_window(Nanos(100 * MS)))
    }

    #[test]
    fn a_missed_frame_is_drawn_in_red_with_its_cause() {
        let picture = drawn("vr");
        assert_eq!(picture.matches("<title>missed: guest-cpu</title>").count(), 1);
        assert!(picture.contains(">modelled</text>"));
        assert!(picture.contains("<title>job 0 of frame 4: 1.000 ms</title>"), "{picture}");
        assert!(picture.starts_with("<svg") && picture.ends_with("</svg>\n"));
    }

    #[test]
    fn a_name_cannot_be_markup() {
        let picture = drawn("<script>\u{7}&");
        assert!(!picture.contains("<script") && picture.contains("&lt;script&gt;&amp;"));
    }

    #[test]
    fn marks_are_round_numbers() {
        assert_eq!(step(100 * MS), 10 * MS);
        assert_eq!(step(30 * MS), 5 * MS);
        assert_eq!(step(1), 1);
        assert!(step(u64::MAX) > 0);
    }

    #[test]
    fn an_empty_log_is_an_empty_picture() {
        let log = testkit::log(Vec::new());
        let analysis = Analysis::new(&log, Options::default());
        for window in [Window::ALL, Window { from_ns: 5, to_ns: 5 }] {
            assert!(svg(&analysis, window).ends_with("</svg>\n"));
        }
    }
}
