//! A TPM 2.0 by swtpm, with the command response buffer interface ([`registers`], [`crb`]).
//!
//! ```text
//!  vCPU ── access ──► crb ── command ──► the device's thread ── data socket ──► swtpm
//!                      ▲                          │
//!                      └───────── answer ─────────┘
//! ```
//!
//! A command may take seconds, so that the thread waits for it and the guest polls. An emulator that ends, or says what
//! is no answer, leaves the guest a TPM that has failed: its status says so, and commands are answered with
//! `TPM_RC_FAILURE`.

mod command;
mod crb;
mod registers;
mod swtpm;

pub use registers::{BASE, CONTROL_AREA, SIZE};
pub use swtpm::TpmError;

use crb::{Command, Crb};
use registers::BUFFER_SIZE;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use swtpm::{PATIENCE, Swtpm};

/// The offset in the TPM's page, where `at` is in it.
pub fn offset(at: u64) -> Option<u64> {
    at.checked_sub(BASE).filter(|offset| *offset < SIZE)
}

/// The registers, which the device's thread and the vCPUs share. Nobody holds them while it waits.
#[derive(Clone)]
struct Shared(Arc<Mutex<Crb>>);

impl Shared {
    /// Every access leaves the registers sound.
    fn lock(&self) -> MutexGuard<'_, Crb> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A guest's TPM. Dropping it ends its thread, also while the emulator is at work, and leaves the emulator to the next
/// guest.
pub struct Tpm {
    crb: Shared,
    /// To the thread. One command at most is on its way.
    commands: Option<SyncSender<Command>>,
    /// Both connections to the emulator: commands first.
    cut: [UnixStream; 2],
    thread: Option<JoinHandle<()>>,
}

impl Tpm {
    /// Sets up the emulator that listens at `socket`, and switches its TPM on for the guest `name`. Takes 15 s at
    /// most; `go_on` is asked ten times a second meanwhile, and ends it by `false`.
    pub fn connect(
        name: &str,
        socket: &Path,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Self, TpmError> {
        let Swtpm { control, data, room, established } =
            swtpm::connect(socket, BUFFER_SIZE, PATIENCE, go_on)?;
        let failed = |what| move |source| TpmError::Os { what, source };
        let cut = [data.try_clone().map_err(failed("a descriptor"))?, control];
        let crb = Shared(Arc::new(Mutex::new(Crb::new(room, established))));
        let (sender, commands) = sync_channel(1);
        let (guest, shared) = (name.to_owned(), crb.clone());
        let thread = std::thread::Builder::new()
            .name(format!("tpm/{name}"))
            .spawn(move || serve(&guest, &shared, data, &commands))
            .map_err(failed("a thread"))?;
        Ok(Self { crb, commands: Some(sender), cut, thread: Some(thread) })
    }

    /// A read at `offset` in the page.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        self.crb.lock().read(offset, data);
    }

    /// A write at `offset` in the page. Returns at once, also where it starts a command.
    pub fn write(&self, offset: u64, data: &[u8]) {
        let mut crb = self.crb.lock();
        let Some(command) = crb.write(offset, data) else { return };
        let sent = self.commands.as_ref().is_some_and(|to| to.try_send(command).is_ok());
        if !sent {
            // The thread has ended, and has said why.
            crb.fail();
        }
    }
}

impl Drop for Tpm {
    fn drop(&mut self) {
        self.commands = None;
        for socket in &self.cut {
            // Fails only where the connection has ended already.
            let _ = socket.shutdown(Shutdown::Both);
        }
        if let Some(thread) = self.thread.take() {
            // A panic was reported when it happened, and the guest was told.
            let _ = thread.join();
        }
    }
}

/// However the thread ends, a command that it had is answered.
struct Guard<'a>(&'a Shared);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.0.lock().fail();
    }
}

/// The device's thread: carries out one command after the other, until there is nobody to send one or the TPM is lost.
fn serve(guest: &str, crb: &Shared, mut data: UnixStream, commands: &Receiver<Command>) {
    let _guard = Guard(crb);
    let room = crb.lock().room();
    while let Ok(Command(command)) = commands.recv() {
        match swtpm::execute(&mut data, &command, room) {
            Ok(answer) => crb.lock().complete(&answer),
            Err(e) => {
                // Where the guest is about to end, nobody sends any more, and it was cut off.
                if commands.try_recv() != Err(std::sync::mpsc::TryRecvError::Disconnected) {
                    tracing::warn!(
                        "{guest}: the TPM has failed, and the guest goes on without it: {e}"
                    );
                }
                return;
            }
        }
    }
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
