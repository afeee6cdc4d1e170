//! What the guest does: read the command line, attach, draw until done.
#![allow(unsafe_code, reason = "the panic handler and the entry points have fixed names")]

use crate::boot::FIRST_VECTOR;
use crate::machine::Machine;
use crate::platform::{self, exit, line};
use beamline_guest_driver::pci::MsiTarget;
use beamline_guest_driver::scene::{Params, Player, Progress, SceneError, Targets};
use beamline_guest_driver::transport::{Transport, Wake};
use core::error::Error;
use core::fmt;

/// Exit codes of the guest.
mod code {
    pub(super) const DONE: u8 = 0;
    pub(super) const COMMAND_LINE: u8 = 1;
    pub(super) const DEVICE: u8 = 2;
    pub(super) const FAULT: u8 = 3;
    pub(super) const PANIC: u8 = 0xff;
}

/// Counters of the pacer's three vectors come first, then the vGPU's.
const CONTRACT: usize = 1;
/// See [`CONTRACT`].
const QUIESCE: usize = 2;

/// An error with its sources, on one line.
struct Chain<'a>(&'a dyn Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

/// Where the entry code goes, at privilege level 3.
pub(crate) extern "C" fn guest_main() -> ! {
    let params = match Params::parse(platform::command_line()) {
        Ok(params) => params,
        Err(error) => {
            line!("ERROR: command line: {error}");
            exit(code::COMMAND_LINE)
        }
    };
    match draw(params) {
        Ok(()) => exit(code::DONE),
        Err(error) => {
            line!("ERROR: {}", Chain(&error));
            exit(code::DEVICE)
        }
    }
}

/// An MSI to this CPU.
const fn msi(vector: u8) -> MsiTarget {
    MsiTarget { address: 0xfee0_0000, data: (FIRST_VECTOR + vector) as u32 }
}

fn draw(params: Params) -> Result<(), SceneError> {
    let mut machine = Machine::new();
    let mut arena = Machine::arena();
    let targets = Targets { pacer: [msi(0), msi(1), msi(2)], gpu: msi(3) };
    let mut player = Player::new(&mut machine, &mut arena, params, &targets)?;
    player.start(&mut machine)?;
    let requests = || platform::interrupts_of(CONTRACT) + platform::interrupts_of(QUIESCE);
    let (mut ready, mut handled) = (false, 0);
    loop {
        let now = requests();
        if now != handled {
            handled = now;
            player.on_host_request(&mut machine)?;
        }
        let progress = player.on_wake(&mut machine)?;
        if !ready && player.stats().completed + player.stats().failed > 0 {
            ready = true;
            announce(&params, &player);
        }
        match progress {
            Progress::Done => break,
            Progress::Again => continue,
            Progress::Wait => {}
        }
        if machine.wait() == Wake::Stop {
            break;
        }
    }
    player.pacer().disable(&mut machine);
    let stats = player.stats();
    line!(
        "DONE submitted={} completed={} failed={} skipped={} vblanks={} missed={} dropped_markers={} last_error={:#x}",
        stats.submitted,
        stats.completed,
        stats.failed,
        stats.skipped,
        stats.vblanks,
        stats.missed_vblanks,
        player.pacer().markers.dropped(),
        stats.last_error
    );
    Ok(())
}

fn announce(params: &Params, player: &Player) {
    let [a, b, c] = params.cost;
    line!(
        "READY scene={} slice={} generation={} size={}x{} cost={a},{b},{c} depth={}",
        params.kind.name(),
        player.pacer().slice(),
        player.pacer().generation().0,
        params.width,
        params.height,
        params.depth
    );
}

/// Where an exception of unprivileged code goes.
pub(crate) extern "C" fn guest_fault(vector: u64, error: u64, rip: u64, address: u64) -> ! {
    line!("ERROR: exception {vector}, code {error:#x}, at {rip:#x}, address {address:#x}");
    exit(code::FAULT)
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    line!("PANIC: {info}");
    exit(code::PANIC)
}
