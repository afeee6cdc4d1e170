//! `mark`: stamps a marker, which the host logs with its own time.

use crate::open;
use beamline_abi::{FrameId, JobIndex};
use clap::Args;
use std::error::Error;
use std::process::ExitCode;

#[derive(Args)]
pub(crate) struct Arguments {
    /// The frame
    #[arg(long, value_name = "ID")]
    frame: u64,
    /// The job of that frame
    #[arg(long, value_name = "N", default_value_t = 0)]
    job: u16,
}

pub(crate) fn run(pacer: Option<&str>, arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    let mut paced = open(pacer, Some(30))?;
    // The host looks at the ring at vblanks.
    paced.pacer.enable(&mut paced.port);
    let (frame, job) = (FrameId(arguments.frame), JobIndex(arguments.job));
    paced.pacer.markers.submit(&mut paced.port, frame, job);
    let dropped = paced.pacer.markers.dropped();
    // Closing the function resets it, so that the host gets two vblanks to look.
    let seen = [paced.next_vblank(), paced.next_vblank()];
    paced.pacer.disable(&mut paced.port);
    if dropped > 0 || seen.iter().any(Option::is_none) {
        return Err(crate::ended(&mut paced, "the host did not take the marker"));
    }
    println!("marked frame {} job {}", arguments.frame, arguments.job);
    Ok(ExitCode::SUCCESS)
}
