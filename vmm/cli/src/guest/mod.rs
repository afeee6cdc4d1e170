//! `beamline guest`: looks at a running guest and steers it over its API, and writes files of new ones.

mod act;
mod new;
mod show;

use crate::client::Client;
use crate::failure::refused;
use crate::output;
use beamline_vmm::Config;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  beamline guest new --kind gaming --disk game.img -o game.toml   a file to start from
  beamline run game.toml --check                                  look at it, start nothing
  beamline run game.toml --api game/api.sock                      run it
  beamline guest show --api game/api.sock                         what it is and does
  beamline guest pause --api game/api.sock                        until `resume`
  beamline guest type --api game/api.sock --enter 'systemctl poweroff'
  beamline guest key --api game/api.sock ctrl+alt+delete
  beamline guest do --api game/api.sock gamepad '[{\"tap\": \"south\"}]'
  beamline guest screenshot --api game/api.sock --out now.png
  beamline guest balloon --api game/api.sock 1G                   ask for 1 GiB of its memory
  beamline guest writes --api game/api.sock                       how much of its memory it writes in a second
  beamline guest plug --api game/api.sock scratch                 the device of [[port]] scratch; also unplug
  beamline guest power-button --api game/api.sock                 it shuts down, if it listens
  beamline guest stop --api game/api.sock                         end it at once
  beamline guest schema > guest.schema.json                       for editors

Exit codes: 0 done; 1 the guest or its host could not do it; 2 refused, or nobody answers there.
docs/guest.md describes the file, the API behind these commands, and `beamline run --json`.";

/// What is asked of a guest.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Guest {
    /// The guest's API socket: what `beamline run --api`, or [api] in its file, named
    #[arg(long, global = true, value_name = "SOCKET")]
    api: Option<PathBuf>,
    /// Print JSON, also of a refusal
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// What the guest is, its devices, and what it is doing
    Show,
    /// Exits of each vCPU, interrupts of each device, the balloon
    Stats,
    #[command(flatten)]
    Act(act::Act),
    /// Write a guest's file to start from, with comments that explain it
    New(new::New),
    /// Print the JSON schema of a guest's file
    Schema,
}

/// Runs the subcommand.
pub(crate) fn guest(options: Guest) -> anyhow::Result<()> {
    let Guest { api, json, command } = options;
    let client = || match api {
        Some(socket) => Ok(Client::of_guest(socket, json)),
        None => Err(refused(
            "--api: name the guest's socket, as `beamline run --api` or [api] in its file has it",
        )),
    };
    match command {
        Command::Show => show::show(&client()?, json),
        Command::Stats => show::stats(&client()?, json),
        Command::Act(act) => act.run(&client()?, json),
        Command::New(new) => new::new(&new),
        Command::Schema => output::json(&Config::schema()),
    }
}
