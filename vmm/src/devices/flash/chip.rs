//! A flash chip that speaks what UEFI firmware uses of Intel's command set: program, erase, status.
//!
//! ```text
//!            program, erase
//!  Command ──────────────────► Program | Erase
//!     ▲                              │
//!     └──────────────────────────────┘ data, confirmation
//! ```
//!
//! Between commands the chip shows its contents (array) or its status, at every address. The guest reads a
//! memory of its own, the view, which is filled with the one or the other when that changes: so reading takes
//! no exit, and no memory slot comes or goes. Identifiers, the CFI query, buffered writes and locks are missing.

use super::BLOCK;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use vm_memory::{MmapRegion, VolatileMemory};

/// Commands (data sheets of Intel's StrataFlash).
mod command {
    pub(super) const PROGRAM: u8 = 0x10;
    pub(super) const PROGRAM_OTHER: u8 = 0x40;
    pub(super) const ERASE: u8 = 0x20;
    pub(super) const ERASE_CONFIRM: u8 = 0xd0;
    pub(super) const CLEAR_STATUS: u8 = 0x50;
    pub(super) const READ_STATUS: u8 = 0x70;
}

/// Bits of the status. It is 0 after it was cleared and until something is done, by which firmware tells this
/// chip, as QEMU has it, from memory.
mod status {
    pub(super) const READY: u8 = 1 << 7;
    pub(super) const ERASE_FAILED: u8 = 1 << 5;
    pub(super) const PROGRAM_FAILED: u8 = 1 << 4;
}

/// What an erased byte is.
const ERASED: u8 = 0xff;

/// What the next write is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Command,
    Program,
    EraseConfirm,
}

/// What the view is filled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shown {
    Array,
    Status(u8),
}

/// The chip.
#[derive(Debug)]
pub(super) struct Chip {
    bytes: Vec<u8>,
    file: File,
    view: Arc<MmapRegion>,
    next: Next,
    status: u8,
    shown: Shown,
    /// Something was written to the file that may not be on its medium yet.
    unsynced: bool,
    /// The log has a line about the file: a guest could have it grow without end.
    complained: bool,
}

impl Chip {
    /// A chip with the contents `bytes`, which are those of `file`, and a view of the same size.
    pub(super) fn new(bytes: Vec<u8>, file: File, view: Arc<MmapRegion>) -> Self {
        view.as_volatile_slice().copy_from(&bytes);
        Self {
            bytes,
            file,
            view,
            next: Next::Command,
            status: 0,
            shown: Shown::Array,
            unsynced: false,
            complained: false,
        }
    }

    /// What the guest reads.
    pub(super) fn view(&self) -> Arc<MmapRegion> {
        Arc::clone(&self.view)
    }

    /// A write at `offset`, which is within the chip; what reaches beyond its end is dropped.
    pub(super) fn write(&mut self, offset: usize, data: &[u8]) {
        let Some(first) = data.first() else { return };
        match std::mem::replace(&mut self.next, Next::Command) {
            Next::Command => self.command(*first),
            Next::Program => {
                let room = self.bytes.len().saturating_sub(offset);
                let data = &data[..data.len().min(room)];
                self.store(offset, data, status::PROGRAM_FAILED);
            }
            Next::EraseConfirm if *first == command::ERASE_CONFIRM => {
                self.store(offset / BLOCK * BLOCK, &[ERASED; BLOCK], status::ERASE_FAILED);
            }
            // Not confirmed: both bits say that the sequence was wrong.
            Next::EraseConfirm => {
                self.status |= status::ERASE_FAILED | status::PROGRAM_FAILED | status::READY;
                self.show(Shown::Status(self.status));
            }
        }
    }

    fn command(&mut self, command: u8) {
        let shown = match command {
            command::PROGRAM | command::PROGRAM_OTHER => {
                self.next = Next::Program;
                Shown::Status(self.status)
            }
            command::ERASE => {
                self.next = Next::EraseConfirm;
                Shown::Status(self.status)
            }
            command::READ_STATUS => Shown::Status(self.status),
            command::CLEAR_STATUS => {
                self.status = 0;
                Shown::Array
            }
            // Reading the array, by either of its numbers, and what this chip does not know.
            _ => Shown::Array,
        };
        if shown == Shown::Array {
            self.sync();
        }
        self.show(shown);
    }

    /// Puts `data` at `at`, in the file first. Programming sets bits, too: so does the chip that this firmware
    /// knows.
    fn store(&mut self, at: usize, data: &[u8], failed: u8) {
        self.status |= status::READY;
        match self.bytes.get_mut(at..at + data.len()) {
            Some(to) => match self.file.write_all_at(data, at as u64) {
                Ok(()) => {
                    to.copy_from_slice(data);
                    self.unsynced = true;
                }
                Err(e) => self.failed(&e, failed),
            },
            None => self.failed(&io::ErrorKind::InvalidInput.into(), failed),
        }
        self.show(Shown::Status(self.status));
    }

    fn failed(&mut self, error: &io::Error, bit: u8) {
        self.status |= bit;
        self.complain("cannot be written", error);
    }

    fn complain(&mut self, what: &str, error: &io::Error) {
        if !std::mem::replace(&mut self.complained, true) {
            tracing::warn!("the guest's firmware variables {what}: {error}");
        }
    }

    /// What was written is on the medium when the guest reads the array again: firmware relies on an order of
    /// its writes, by which it finds its way after a loss of power.
    fn sync(&mut self) {
        if std::mem::take(&mut self.unsynced)
            && let Err(e) = self.file.sync_data()
        {
            self.complain("may not outlive a loss of power", &e);
        }
    }

    fn show(&mut self, shown: Shown) {
        if std::mem::replace(&mut self.shown, shown) == shown {
            return;
        }
        let view = self.view.as_volatile_slice();
        match shown {
            Shown::Array => view.copy_from(&self.bytes),
            Shown::Status(value) => {
                let fill = [value; BLOCK];
                for at in (0..self.bytes.len()).step_by(BLOCK) {
                    // The view has as many blocks as the chip.
                    if let Ok(block) = view.subslice(at, BLOCK) {
                        block.copy_from(&fill);
                    }
                }
            }
        }
    }
}
