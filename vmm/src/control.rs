//! A hold on a guest that was started: what someone outside can do with it.

use crate::devices::virtio::{self, Activity};
use crate::hotplug::{PlugError, Ports};
use crate::life::{Life, PauseError};
use crate::machine::SharedMachine;
use crate::memory::{DirtyError, WrittenPages};
use crate::passthrough::connect::Cutter;
use crate::pci::slot::{Leaving, SlotWatch};
use crate::vcpu::{ExitCounters, Exits};
use crate::vm::ExitReason;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// How long a stopped guest's threads may take before its functions are cut off.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a guest is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestState {
    /// Its vCPUs run, or are about to.
    Running,
    /// No vCPU runs. Devices may still answer what was asked before.
    Paused,
    /// It has ended, or is about to.
    Ended,
}

/// A hold on a guest. Clones hold the same one, and none keeps it alive. Calls may come from any thread.
#[derive(Clone)]
pub struct GuestControl {
    life: Arc<Life>,
    machine: Weak<SharedMachine>,
    exits: Arc<[Arc<ExitCounters>]>,
    cutters: Arc<[Cutter]>,
    holds: Arc<[(usize, virtio::Hold)]>,
    ports: Arc<Ports>,
    started: Instant,
}

impl GuestControl {
    pub(crate) fn new(
        life: Arc<Life>,
        machine: Weak<SharedMachine>,
        exits: Vec<Arc<ExitCounters>>,
        cutters: Vec<Cutter>,
        holds: Vec<(usize, virtio::Hold)>,
        ports: Ports,
    ) -> Self {
        let (exits, cutters, holds) = (exits.into(), cutters.into(), holds.into());
        let ports = Arc::new(ports);
        Self { life, machine, exits, cutters, holds, ports, started: Instant::now() }
    }

    /// What the guest is doing.
    pub fn state(&self) -> GuestState {
        if self.life.ends() {
            GuestState::Ended
        } else if self.life.is_paused() {
            GuestState::Paused
        } else {
            GuestState::Running
        }
    }

    /// How long ago it was started.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Takes every vCPU out of the guest and returns once none runs, after `limit` at most. A guest that is
    /// paused stays so. Its clocks go on.
    pub fn pause(&self, limit: Duration) -> Result<(), PauseError> {
        self.life.pause(limit)
    }

    /// Lets the guest go on; one that runs is left alone. False: it has ended.
    pub fn resume(&self) -> bool {
        self.life.resume()
    }

    /// Waits until the guest has ended.
    pub fn wait(&self) -> ExitReason {
        // Without a limit, only the end ends the wait.
        self.life.wait(None).unwrap_or(ExitReason::Stopped)
    }

    /// Waits until the guest has ended, at most for `limit`; `None`: it has not.
    pub fn wait_timeout(&self, limit: Duration) -> Option<ExitReason> {
        self.life.wait(Some(limit))
    }

    /// Asks the guest's threads to stop and returns at once. Any number of times.
    pub fn request_stop(&self) {
        self.life.request_end(ExitReason::Stopped);
    }

    /// Stops the guest, if it has not ended, and waits for its threads.
    pub fn stop(&self) -> ExitReason {
        self.end(ExitReason::Stopped)
    }

    /// Ends the guest as if it had reset itself, and waits for its threads. Whoever runs it may build it anew.
    pub fn reset(&self) -> ExitReason {
        self.end(ExitReason::Reset)
    }

    fn end(&self, reason: ExitReason) -> ExitReason {
        self.life.request_end(reason);
        let ended = self.life.wait(Some(PATIENCE));
        // Whoever plugs something in waits for a server no longer either.
        self.ports.cut();
        ended.unwrap_or_else(|| {
            // A vCPU waits for a server that does not answer.
            self.cutters.iter().for_each(Cutter::cut);
            self.wait()
        })
    }

    /// What can be done with device number `index` of the configuration while the guest runs.
    pub fn control(&self, index: usize) -> Option<&virtio::Control> {
        self.hold(index)?.control.as_ref()
    }

    /// What device number `index` of the configuration has done so far; `None` for one that another process
    /// serves.
    pub fn activity(&self, index: usize) -> Option<Activity> {
        Some(self.hold(index)?.activity())
    }

    fn hold(&self, index: usize) -> Option<&virtio::Hold> {
        self.holds.iter().find(|(i, _)| *i == index).map(|(_, hold)| hold)
    }

    /// What is in root port number `port` of the configuration.
    pub fn port(&self, port: usize) -> Option<&SlotWatch> {
        self.ports.watch(port)
    }

    /// Plugs the device of root port number `port` in. One that another process serves needs a `connection` to it, which
    /// may wait for that server's answers; no other device takes one. The guest's driver sees it a moment later.
    pub fn plug(&self, port: usize, connection: Option<UnixStream>) -> Result<(), PlugError> {
        self.ports.plug(port, connection, |slot, function| {
            let machine = self.machine.upgrade().ok_or(PlugError::Ended)?;
            Ok(machine.lock().bus.root_port(slot)?.plug(function)?)
        })
    }

    /// Asks the guest to let go what is plugged into root port number `port`; where it is `forced`, takes it out at once.
    /// Nothing of it is mapped and wired once it is gone.
    pub fn unplug(&self, port: usize, forced: bool) -> Result<Leaving, PlugError> {
        let slot = self.ports.slot(port)?;
        if forced {
            // A vCPU may wait for its server, with the machine's lock.
            self.ports.cut_one(port);
        }
        let machine = self.machine.upgrade().ok_or(PlugError::Ended)?;
        Ok(machine.lock().unplug(slot, forced)?)
    }

    /// Has KVM log which pages of the RAM the guest's vCPUs write from now on. Until the log is stopped, the first write
    /// to a page after each look costs an exit inside KVM. What others write into the RAM's memfd is not seen: the
    /// functions' servers, vhost, and this process' own devices.
    ///
    /// # Errors
    /// [`DirtyError::Started`] where the guest's writes are logged already, [`DirtyError::Refused`] where KVM cannot.
    pub fn start_dirty_log(&self) -> Result<(), DirtyError> {
        self.machine.upgrade().ok_or(DirtyError::Ended)?.lock().start_dirty_log()
    }

    /// The pages that were written since the last look, or since the log's start. The log is empty then. A guest that
    /// is paused writes none; of one that runs, a write during the look is in this answer or in the next.
    ///
    /// # Errors
    /// [`DirtyError::Off`] where no log was started; [`DirtyError::Refused`] where KVM could not tell, which ends the log.
    pub fn written_pages(&self) -> Result<WrittenPages, DirtyError> {
        self.machine.upgrade().ok_or(DirtyError::Ended)?.lock().written_pages()
    }

    /// Ends the log and forgets what is in it.
    ///
    /// # Errors
    /// [`DirtyError::Off`] where no log was started.
    pub fn stop_dirty_log(&self) -> Result<(), DirtyError> {
        self.machine.upgrade().ok_or(DirtyError::Ended)?.lock().stop_dirty_log()
    }

    /// Types `bytes` on the guest's serial port. Returns how many were taken: 4096 wait at most until the
    /// guest reads them. A guest that has ended takes all.
    pub fn type_in(&self, bytes: &[u8]) -> usize {
        self.machine.upgrade().map_or(bytes.len(), |m| m.lock().serial.type_in(bytes))
    }

    /// Presses the power button: a guest that listens shuts down.
    pub fn press_power_button(&self) {
        if let Some(machine) = self.machine.upgrade() {
            machine.lock().press_power_button();
        }
    }

    /// How often the guest exited to this process so far.
    pub fn exits(&self) -> Exits {
        self.exits_of_each().into_iter().fold(Exits::default(), std::ops::Add::add)
    }

    /// [`Self::exits`] of each vCPU.
    pub fn exits_of_each(&self) -> Vec<Exits> {
        self.exits.iter().map(|e| e.read()).collect()
    }
}
