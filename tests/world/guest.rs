//! One guest: the driver's own frame loop, woken by interrupts, on a CPU that takes time.
//!
//! ```text
//!            interrupt            `wake_delay` over            doorbell rung
//!   Idle ───────────────▶ Waking ─────────────────▶ Recording ──────────────▶ Idle
//!    │                                 └──▶ Idle (nothing to submit)
//!    ├── hang() ──▶ Hung                the scene cannot go on ──▶ Failed
//!    └── unplugged ──▶ Absent
//! ```

use super::WorldError;
use super::port::Port;
use beamline_abi::Nanos;
use beamline_guest_driver::scene::{Player, Progress, SceneError};

/// Looks at the devices that one wake takes at most; a scene that wants more is woken again.
const MAX_LOOKS: usize = 256;

/// How a guest behaves.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    /// From an interrupt to the first instruction of its handler.
    pub wake_delay: Nanos,
    /// CPU time to record one job.
    pub cpu: Nanos,
}

impl Default for Habits {
    /// 100 µs to wake, 50 µs per job.
    fn default() -> Self {
        Self { wake_delay: Nanos::from_micros(100), cpu: Nanos::from_micros(50) }
    }
}

/// What a guest is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// No guest is attached.
    Absent,
    /// It waits for an interrupt.
    Idle,
    /// Its CPU gets the interrupt at this time.
    Waking(Nanos),
    /// Its CPU works on a frame until then, and rings the doorbell.
    Recording(Nanos),
    /// It never does anything again, though its devices live on.
    Hung,
    /// Its scene gave up, for this reason.
    Failed(SceneError),
}

/// A guest and its end of the slice.
pub(super) struct Guest {
    pub(super) port: Port,
    pub(super) player: Option<Box<Player>>,
    pub(super) habits: Habits,
    pub(super) state: State,
}

impl Guest {
    /// When it does something next.
    pub(super) fn next(&self) -> Nanos {
        match self.state {
            State::Waking(at) | State::Recording(at) => at,
            State::Absent | State::Idle | State::Hung | State::Failed(_) => Nanos::MAX,
        }
    }

    /// Does what is due at `now`.
    pub(super) fn run(&mut self, now: Nanos) {
        match self.state {
            State::Recording(at) if at <= now => {
                self.port.ring();
                self.state = State::Idle;
            }
            State::Waking(at) if at <= now => self.wake(now),
            _ => {}
        }
    }

    fn wake(&mut self, now: Nanos) {
        let taken = self.port.take_interrupts();
        let Some(player) = &mut self.player else {
            self.state = State::Idle;
            return;
        };
        self.port.cpu = self.habits.cpu;
        let result = look(player, &mut self.port, taken.request);
        self.port.cpu = Nanos::ZERO;
        self.state = match result {
            Err(error) => State::Failed(error),
            // Whatever was recorded before the error stays unannounced.
            Ok(()) if self.port.has_doorbell() => {
                State::Recording(now.saturating_add(self.port.ahead))
            }
            Ok(()) => State::Idle,
        };
        if self.state == State::Idle {
            self.port.ahead = Nanos::ZERO;
        }
    }

    /// Notices an interrupt that waits.
    pub(super) fn notice(&mut self, now: Nanos) -> Result<(), WorldError> {
        if self.state == State::Idle && self.port.interrupted()? {
            self.state = State::Waking(now.saturating_add(self.habits.wake_delay));
        }
        Ok(())
    }
}

/// One wake of a scene.
fn look(player: &mut Player, port: &mut Port, request: bool) -> Result<(), SceneError> {
    if request {
        player.on_host_request(port)?;
    }
    for _ in 0..MAX_LOOKS {
        match player.on_wake(port)? {
            Progress::Again => {}
            Progress::Wait | Progress::Done => break,
        }
    }
    Ok(())
}
