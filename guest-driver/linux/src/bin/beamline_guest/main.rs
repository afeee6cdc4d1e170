//! `beamline-guest`: what a Linux guest can do with its pacer, from a shell.

mod clock;
mod contract;
mod mark;
mod pace;

use beamline_guest_linux::paced::Paced;
use clap::{Parser, Subcommand};
use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  beamline-guest pace                              print each vblank
  beamline-guest pace --count 300 --json           300 of them, a JSON object per line
  beamline-guest contract --rate 90 --budget-ms 3  ask the host for another contract
  beamline-guest clock                             how well this guest's clock maps to the host's
  beamline-guest mark --frame 7                    stamp a marker for frame 7

The pacer must be bound to vfio-pci, behind an IOMMU; where it is not, the message says how to mend it.

Exit codes:
  0  done
  1  failed, or the host refused";

/// The pacer of this guest's slice
#[derive(Parser)]
#[command(name = "beamline-guest", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// The pacer's PCI address, where there are several
    #[arg(long, global = true, value_name = "ADDRESS")]
    pacer: Option<String>,
}

#[derive(Subcommand)]
enum Command {
    /// Print the contract, and each vblank with its number and time
    Pace(pace::Arguments),
    /// Ask the host for another contract, and print its answer
    Contract(contract::Arguments),
    /// Compare this guest's clock, as the timing page maps it to the host's, with the pacer's
    Clock(clock::Arguments),
    /// Stamp a marker for a frame, as a driver does before it submits a job
    Mark(mark::Arguments),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let pacer = cli.pacer.as_deref();
    let result = match cli.command {
        Command::Pace(arguments) => pace::run(pacer, &arguments),
        Command::Contract(arguments) => contract::run(pacer, &arguments),
        Command::Clock(arguments) => clock::run(pacer, &arguments),
        Command::Mark(arguments) => mark::run(pacer, &arguments),
    };
    match result {
        // Whoever read it has gone.
        Err(error) if is_broken_pipe(&*error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("beamline-guest: {error}");
            ExitCode::FAILURE
        }
        Ok(code) => code,
    }
}

fn is_broken_pipe(error: &(dyn Error + 'static)) -> bool {
    let error = error.downcast_ref::<std::io::Error>();
    error.is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}

/// Opens the pacer; waits end `seconds` from now, or in some years.
fn open(pacer: Option<&str>, seconds: Option<u32>) -> Result<Paced, Box<dyn Error>> {
    let patience = Duration::from_secs(seconds.unwrap_or(u32::MAX / 2).into());
    Ok(Paced::open(pacer, patience)?)
}

/// Why a wait has ended.
fn ended(paced: &mut Paced, what: &str) -> Box<dyn Error> {
    match paced.port.take_failure() {
        Some(failure) => failure.into(),
        None => format!("time is up: {what}").into(),
    }
}

/// Nanoseconds as milliseconds, for people.
fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}
