//! `beamline-frames-probe PACER VGPU SECONDS WORD...`: draws frames of a scene on the slice whose functions are
//! at two PCI addresses. The words are the guest image's, such as `scene=game frames=60`.
//!
//! Prints one line of `name=value`. Fails where the slice cannot be used, or time is up.

use beamline_guest_driver::pci::MsiTarget;
use beamline_guest_driver::scene::{Params, Player, Progress, Targets};
use beamline_guest_driver::transport::{Slot, Transport, Wake};
use beamline_guest_linux::port::Port;
use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

/// The kernel fills the MSI-X tables in.
const ANY: MsiTarget = MsiTarget { address: 0, data: 0 };
/// The functions, in the order in which they are opened.
const PACER: Slot = Slot(0);
const VGPU: Slot = Slot(1);

fn main() -> ExitCode {
    beamline_guest_linux::report("frames", probe())
}

fn probe() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [pacer, vgpu, seconds, words @ ..] = &arguments[..] else {
        return Err("usage: beamline-frames-probe PACER VGPU SECONDS WORD...".into());
    };
    let words = words.join(" ");
    let params = Params::parse(&words).map_err(|error| error.to_string())?;
    let mut port = Port::open(&[pacer, vgpu], Duration::from_secs(seconds.parse()?))?;
    let done = draw(&mut port, params);
    match port.take_failure() {
        Some(failure) => Err(failure.into()),
        None => done,
    }
}

fn draw(port: &mut Port, params: Params) -> Result<(), Box<dyn Error>> {
    let mut arena = port.arena();
    let targets = Targets { pacer: [ANY; 3], gpu: ANY };
    let mut player = Player::new(port, &mut arena, params, &targets)?;
    player.start(port)?;
    let (mut asked, mut ended) = (0, false);
    while !ended {
        // Vectors 1 and 2: the host has something to say.
        let now = port.interrupts(PACER, 1) + port.interrupts(PACER, 2);
        if now != asked {
            asked = now;
            player.on_host_request(port)?;
        }
        match player.on_wake(port)? {
            Progress::Done => break,
            Progress::Again => {}
            Progress::Wait => ended = port.wait() == Wake::Stop,
        }
    }
    player.pacer().disable(port);
    let stats = player.stats();
    println!(
        "frames: slice={} submitted={} completed={} failed={} skipped={} vblanks={} missed={} \
         interrupts={} last_error={:#x}",
        player.pacer().slice(),
        stats.submitted,
        stats.completed,
        stats.failed,
        stats.skipped,
        stats.vblanks,
        stats.missed_vblanks,
        port.interrupts(VGPU, 0),
        stats.last_error,
    );
    if ended { Err("time is up".into()) } else { Ok(()) }
}
