//! `clock`: this guest's clock, mapped to the host's time by the timing page, beside the pacer's own.

use crate::{ended, open};
use beamline_guest_driver::pacer::host_time;
use beamline_guest_driver::transport::Transport;
use clap::Args;
use serde_json::json;
use std::error::Error;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

/// Between two comparisons.
const PAUSE: Duration = Duration::from_millis(10);

#[derive(Args)]
pub(crate) struct Arguments {
    /// How many comparisons, a hundred a second
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..))]
    samples: u32,
    /// A JSON object
    #[arg(long)]
    json: bool,
}

/// Each time lies between two reads of the register, which take a while: the map is wrong where it says
/// otherwise by more than the error that it states.
pub(crate) fn run(pacer: Option<&str>, arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    let mut paced = open(pacer, Some(60))?;
    paced.pacer.enable(&mut paced.port);
    // The page is whole from the first vblank on.
    let page = paced.next_vblank().ok_or_else(|| ended(&mut paced, "no vblank came"))?.timing;
    paced.pacer.disable(&mut paced.port);
    let (mut worst, mut narrowest) = (0, u64::MAX);
    for _ in 0..arguments.samples {
        let before = paced.register_time().0;
        let tsc = paced.port.tsc();
        let after = paced.register_time().0;
        let Some(mapped) = host_time(&page, tsc) else {
            return Err("this VMM does not tell how the guest's clock runs: there is no map".into());
        };
        worst = worst.max(before.saturating_sub(mapped.0)).max(mapped.0.saturating_sub(after));
        narrowest = narrowest.min(after.saturating_sub(before));
        std::thread::sleep(PAUSE);
    }
    let (error, samples) = (page.clock_err, arguments.samples);
    let mut out = std::io::stdout().lock();
    if arguments.json {
        let said = json!({
            "samples": samples, "error_ns": error, "outside_ns": worst, "bracket_ns": narrowest,
            "tsc_ref": page.tsc_ref, "ns_ref": page.ns_ref.0, "tsc_mult": page.tsc_mult,
        });
        writeln!(out, "{said}")?;
    } else {
        writeln!(
            out,
            "{samples} times mapped, {worst} ns outside of what the pacer says at worst; stated error \
             {error} ns, told apart within {narrowest} ns"
        )?;
    }
    Ok(if worst > error.into() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
