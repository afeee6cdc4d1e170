//! The whole guest, for every platform that runs the scenes: attach, draw until done, and say so.

use crate::pci::MsiTarget;
use crate::scene::{Params, Player, Progress, SceneError, Stats, Targets};
use crate::transport::{Arena, Transport, Wake};
use core::error::Error;
use core::fmt;

/// A platform that also counts interrupts by what they are for.
pub trait Machine: Transport {
    /// How many interrupts of the pacer's vectors 1 and 2 have come: a new contract, a request to quiesce.
    fn host_requests(&self) -> u64;

    /// Whether the platform wants the guest to give up, asked where it goes on without a wait: a host that never comes
    /// to an end would keep it from ever hearing so.
    fn is_over(&mut self) -> bool {
        false
    }
}

/// Draws the scene of `params` until its frames are done or the platform stops the guest. The lines go to
/// `say`: `READY ...` once the first frame is done, `DONE ...` at the end.
pub fn draw<M: Machine>(
    machine: &mut M,
    arena: &mut Arena,
    params: Params,
    targets: &Targets,
    say: &mut impl fmt::Write,
) -> Result<Stats, SceneError> {
    let mut player = Player::new(machine, arena, params, targets)?;
    player.start(machine)?;
    let (mut ready, mut handled) = (false, 0);
    loop {
        let now = machine.host_requests();
        if now != handled {
            handled = now;
            player.on_host_request(machine)?;
        }
        let progress = player.on_wake(machine)?;
        if !ready && player.stats().completed + player.stats().failed > 0 {
            ready = true;
            announce(&params, &player, say);
        }
        match progress {
            Progress::Done => break,
            Progress::Again if machine.is_over() => break,
            Progress::Wait if machine.wait() == Wake::Stop => break,
            Progress::Again | Progress::Wait => {}
        }
    }
    player.pacer().disable(machine);
    let stats = *player.stats();
    // Nobody to tell is no reason to fail.
    let _ = writeln!(
        say,
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
    Ok(stats)
}

fn announce(params: &Params, player: &Player, say: &mut impl fmt::Write) {
    let [a, b, c] = params.cost;
    let _ = writeln!(
        say,
        "READY scene={} slice={} generation={} size={}x{} cost={a},{b},{c} depth={}",
        params.kind.name(),
        player.pacer().slice(),
        player.pacer().generation().0,
        params.width,
        params.height,
        params.depth
    );
}

impl Targets {
    /// From what each of four messages says: the pacer's three vectors, then the vGPU's.
    pub fn each(message: impl Fn(u8) -> MsiTarget) -> Self {
        Self { pacer: [message(0), message(1), message(2)], gpu: message(3) }
    }
}

/// An error with its sources, on one line.
pub struct Chain<'a>(pub &'a dyn Error);

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
