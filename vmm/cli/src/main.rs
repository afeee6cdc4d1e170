//! The `beamline` command: one file per subcommand.

#![expect(
    clippy::format_push_string,
    reason = "text for people, off every path: `write!` to a String would add an error that cannot occur"
)]

mod api;
mod check;
mod client;
mod confine;
mod connector;
mod demo;
mod device;
mod doctor;
mod events;
mod failure;
mod guest;
mod host;
mod interrupts;
mod lives;
mod output;
mod ports;
mod process;
mod read;
mod renderer;
mod report;
mod run;
mod signals;
mod sim;
mod slice;
mod terminal;

use clap::{CommandFactory, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  beamline doctor                 what this machine can do, and how to mend what it cannot
  beamline demo                   three guests on one GPU: alone, fifo, unmediated, beamline
  beamline demo my.toml --json    the same with other guests; the report as JSON on stdout
  beamline demo --guests process  the same without KVM: guests are processes of the host
  beamline host host.toml         schedule a GPU and serve its slices until Ctrl-C
  beamline host host.toml --check look for mistakes in a host's file, start nothing
  beamline slice list             what a running host serves; also create, change, remove
  beamline guest new --kind vr    a guest's file to start from
  beamline run vr.toml --check    look for mistakes in a guest's file, start nothing
  beamline run vr.toml            boot that guest on the slices that a host serves
  beamline guest pause --api SOCK  also resume, stats, screenshot, type: see `beamline guest --help`
  beamline sim two-tenants --all  every policy on the same frames, simulated
  beamline report stamps.bin      judge every frame of a log, and show where its time went

Exit codes:
  0  done
  1  failed while running
  2  bad input, or something that must be there is missing (the message says how to mend it)
  3  ended by its own sandbox (the message names the system call; docs/sandbox.md)

Set BEAMLINE_LOG=debug (or info, warn, error; per module as in `beamline_mdev=debug`) for logs on stderr.";

/// One GPU, many guests, every frame in time.
#[derive(Parser)]
#[command(version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// The process that started this one, and that it must not outlive
    #[arg(long, hide = true, value_name = "PID")]
    follow: Option<i32>,
}

#[derive(Subcommand)]
enum Command {
    /// Schedule one GPU and serve its slices over vfio-user, until SIGINT or SIGTERM
    ///
    /// Prints one JSON object per line on stdout: `ready` with the sockets, `stats` twice a second, and
    /// `drained` at the end. Slices are looked at and changed over control.sock in its run_dir: see
    /// `beamline slice` and docs/control.md.
    Host {
        /// The host's configuration: GPU, CPUs, slices and their contracts
        config: PathBuf,
        /// Only look for mistakes in the configuration, and whether its contracts can be kept together
        #[arg(long)]
        check: bool,
        /// Keep all files, system calls and privileges within reach, to look for what the sandbox stops
        #[arg(long)]
        no_sandbox: bool,
    },
    /// Look at a running host's slices, and create, change and remove them
    Slice(slice::Slice),
    /// Boot one guest, until it ends or SIGINT or SIGTERM comes
    ///
    /// What the guest writes to its serial port goes to stdout, line by line. Where stdin and stdout are a
    /// terminal, that becomes the guest's console: every key is the guest's, and Ctrl-A x ends it.
    ///
    /// With --json, stdout has one JSON object per line: `started`, `paused`, `resumed`, `power-button`, `plugged`,
    /// `unplug-asked`, `unplugged`, `reset`, `powered-off`, `exited`, `stopped`, `failed`, `sandbox-violation`; the serial port goes to stderr then.
    Run(run::Run),
    /// Be one guest, without a virtual machine; started by the demo
    #[command(hide = true)]
    RunProcess(process::RunProcess),
    /// Look at a running guest and steer it, over its API; write files of new guests
    Guest(guest::Guest),
    /// Boot real guests, run them alone and together under each policy, and report on every frame
    ///
    /// Where KVM cannot be used, or --guests process asks for it, the guests are processes of the host that run the
    /// same driver and scenes over vfio-user; the first line says so.
    ///
    /// Leaves summary.json, timeline.svg and each guest's last image in the output folder. Takes under
    /// three minutes on two CPUs.
    Demo(demo::Options),
    /// Say what this machine can do: KVM, Vulkan, CPUs, real-time scheduling, sandbox; and how to mend the rest
    Doctor {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Judge every frame of a log that a host wrote, and show where its time went, stage by stage
    Report(report::Report),
    /// Simulate a scenario: who gets its frames in time under Beamline, and under models of other schedulers
    ///
    /// Virtual time over models of a GPU and of guests; every output says so. docs/scenarios.md describes the
    /// scenario files, the recorded traces and the table.
    Sim(sim::Options),
    /// Print completions for a shell
    ///
    /// For bash: beamline completions bash > ~/.local/share/bash-completion/completions/beamline
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Executes one slice's GPU work; started by the host
    #[command(hide = true)]
    Renderer {
        #[arg(long)]
        no_sandbox: bool,
    },
    /// Connects to the servers of functions that are plugged in later; started by `beamline run`
    #[command(hide = true)]
    Connector {
        #[arg(long)]
        no_sandbox: bool,
        /// Their sockets
        sockets: Vec<PathBuf>,
    },
    /// Prints the names of all Vulkan devices; started by doctor and demo
    #[command(hide = true)]
    Adapters,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::from(failure::DONE),
        Err(error) => {
            output::error(&format!("beamline: {error:#}"));
            ExitCode::from(failure::exit_code(&error))
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    if let Some(parent) = cli.follow {
        signals::follow(parent)?;
    }
    output::start_logs();
    match cli.command {
        Command::Host { config, check: true, .. } => host::check(&config),
        Command::Host { config, no_sandbox, .. } => host::host(&config, !no_sandbox),
        Command::Slice(options) => slice::slice(options),
        Command::Run(options) => run::run(&options),
        Command::RunProcess(options) => process::run(&options),
        Command::Guest(options) => guest::guest(options),
        Command::Completions { shell } => completions(shell),
        Command::Demo(options) => demo::demo(&options),
        Command::Doctor { json } => doctor::doctor(json),
        Command::Report(options) => report::report(&options),
        Command::Sim(options) => sim::sim(&options),
        Command::Renderer { no_sandbox } => renderer::renderer(!no_sandbox),
        Command::Connector { no_sandbox, sockets } => connector::serve(&sockets, !no_sandbox),
        Command::Adapters => doctor::print_adapters(),
    }
}

/// Prints what `shell` reads to complete this command.
fn completions(shell: clap_complete::Shell) -> anyhow::Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "beamline", &mut text);
    output::line(String::from_utf8(text)?.trim_end());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_tells_of_exit_codes_and_hides_the_renderer() {
        let help = Cli::command().render_help().to_string();
        assert!(help.contains("Exit codes") && help.contains("beamline run vr.toml --check"));
        assert!(!help.contains("renderer") && !help.contains("--follow"));
    }
}
