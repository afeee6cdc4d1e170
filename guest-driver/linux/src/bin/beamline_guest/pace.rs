//! `pace`: each vblank, as it comes.

use crate::{ended, ms, open};
use beamline_abi::pacer::{TimingPage, vector};
use beamline_guest_driver::pacer::Vblank;
use beamline_guest_driver::transport::{Transport, Wake};
use clap::Args;
use serde_json::json;
use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

#[derive(Args)]
pub(crate) struct Arguments {
    /// End after so many vblanks
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Give up after so many seconds
    #[arg(long, value_name = "S")]
    seconds: Option<u32>,
    /// A JSON object per line
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(pacer: Option<&str>, arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    let mut paced = open(pacer, arguments.seconds)?;
    let mut out = std::io::stdout().lock();
    let (slice, generation) = (paced.pacer.slice(), paced.pacer.generation().0);
    if arguments.json {
        let slice = slice.to_string();
        let head = json!({ "pacer": paced.address(), "slice": slice, "generation": generation });
        writeln!(out, "{head}")?;
    } else {
        writeln!(out, "pacer {}, slice {slice}, generation {generation}", paced.address())?;
    }
    paced.pacer.enable(&mut paced.port);
    let (mut seen, mut missed) = (0, 0);
    let mut told = None;
    while arguments.count.is_none_or(|count| seen < count) {
        let Some(vblank) = paced.next_vblank() else { break };
        let page = vblank.timing;
        let now = paced.now(&page).0;
        let late = now.saturating_sub(page.vblank_time.0);
        (seen, missed) = (seen + 1, missed + vblank.missed);
        if told != Some(contract(&page)) {
            told = Some(contract(&page));
            say_contract(&mut out, &page, arguments.json)?;
        }
        say(&mut out, &vblank, late, arguments.json)?;
    }
    // The page is written before the interrupt comes, so the last one may still be under way.
    while paced.interrupts(vector::VBLANK) < seen && paced.port.wait() != Wake::Stop {}
    paced.pacer.disable(&mut paced.port);
    let interrupts = paced.interrupts(vector::VBLANK);
    if arguments.json {
        let tail = json!({ "seen": seen, "missed": missed, "interrupts": interrupts });
        writeln!(out, "{tail}")?;
    } else {
        writeln!(out, "seen {seen}, missed {missed}, interrupts {interrupts}")?;
    }
    match arguments.count {
        Some(count) if seen < count => {
            Err(ended(&mut paced, &format!("{seen} of {count} vblanks came")))
        }
        None if paced.port.failed() => Err(ended(&mut paced, "")),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// What of the page is the contract's.
fn contract(page: &TimingPage) -> [u64; 5] {
    [page.period_num, page.period_den, page.budget.0, page.late_latch.0, page.phase.0]
}

fn say_contract(out: &mut impl Write, page: &TimingPage, json: bool) -> std::io::Result<()> {
    let hz = page.period_den as f64 * 1e9 / page.period_num as f64;
    if json {
        let contract = json!({
            "period_ns": [page.period_num, page.period_den],
            "budget_ns": page.budget.0,
            "late_latch_ns": page.late_latch.0,
            "phase_ns": page.phase.0,
            "clock_error_ns": (page.clock_source != 0).then_some(page.clock_err),
        });
        return writeln!(out, "{}", json!({ "contract": contract }));
    }
    let latch = match page.late_latch.0 {
        0 => "no late latch".to_owned(),
        window => format!("late latch {:.3} ms before a vblank", ms(window)),
    };
    let clock = match page.clock_source {
        0 => "no map of this guest's clock".to_owned(),
        _ => format!("clock mapped within {} ns", page.clock_err),
    };
    writeln!(
        out,
        "contract: {hz:.3} Hz, {:.3} ms of GPU time per frame, {latch}, phase {:.3} ms; {clock}",
        ms(page.budget.0),
        ms(page.phase.0),
    )
}

fn say(out: &mut impl Write, vblank: &Vblank, late: u64, json: bool) -> std::io::Result<()> {
    let page = &vblank.timing;
    if json {
        let line = json!({
            "vblank": vblank.seq,
            "missed": vblank.missed,
            "time_ns": page.vblank_time.0,
            "seen_after_ns": late,
            "next_ns": page.next_vblank.0,
            "deadline_ns": page.deadline.0,
            "presented": page.presented.0,
        });
        return writeln!(out, "{line}");
    }
    let (s, ns) = (page.vblank_time.0 / 1_000_000_000, page.vblank_time.0 % 1_000_000_000);
    let missed = match vblank.missed {
        0 => String::new(),
        missed => format!(", {missed} missed before it"),
    };
    writeln!(out, "vblank {} at {s}.{ns:09} s, seen {:.3} ms later{missed}", vblank.seq, ms(late))
}
