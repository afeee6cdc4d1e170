//! The firmware's flash, which ends at 4 GiB: its code, which nobody can write, and below it its variables.
//!
//! ```text
//!  4 GiB - code - variables        4 GiB - code           4 GiB
//!        | variables: a chip ([`chip`]) | code: read-only    |
//! ```
//!
//! The guest reads both as memory, without an exit. What it writes exits: KVM maps them read-only.

mod chip;

use crate::Gpa;
use chip::Chip;
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use vm_memory::mmap::MmapRegionError;
use vm_memory::{MmapRegion, VolatileMemory};

/// Where the flash ends.
const END: u64 = 1 << 32;
/// A block is erased as a whole, and memory slots consist of such pages: bytes.
const BLOCK: usize = 4096;
/// Most of both parts: other things of the machine are below.
const MAX: u64 = 16 << 20;

/// Why there is no flash.
#[derive(Debug, thiserror::Error)]
pub enum FlashError {
    /// A file cannot be opened.
    #[error("{what} {}: cannot be opened{hint}", path.display())]
    Open {
        /// The key of the configuration.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What may help.
        hint: &'static str,
        /// Why.
        source: io::Error,
    },
    /// It cannot be read.
    #[error("{what} {}: cannot be read", path.display())]
    Read {
        /// The key of the configuration.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no file.
    #[error("{what} {}: is no regular file", path.display())]
    Kind {
        /// The key of the configuration.
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// It is not as large as a flash can be.
    #[error("{what} {}: has {size} bytes; a flash has a multiple of {BLOCK}, and both parts at most {MAX}", path.display())]
    Size {
        /// The key of the configuration.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Its bytes.
        size: u64,
    },
    /// Another guest has these variables.
    #[error("{what} {}: is in use: another guest or program has locked it; each guest needs variables of its own", path.display())]
    InUse {
        /// The key of the configuration.
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// There is no memory for it.
    #[error("cannot map {size:#x} bytes for the firmware's flash")]
    Map {
        /// Bytes.
        size: usize,
        /// Why.
        source: MmapRegionError,
    },
}

impl FlashError {
    /// The key of the configuration that is to be mended.
    pub fn key(&self) -> &'static str {
        match self {
            Self::Open { what, .. }
            | Self::Read { what, .. }
            | Self::Kind { what, .. }
            | Self::Size { what, .. }
            | Self::InUse { what, .. } => what,
            Self::Map { .. } => CODE,
        }
    }
}

/// Key of the code, and of the variables.
const CODE: &str = "guest.firmware";
const VARIABLES: &str = "guest.variables";

/// Code and variables.
#[derive(Debug)]
pub struct Flash {
    code: Arc<MmapRegion>,
    variables: Chip,
    /// Where the variables start.
    start: u64,
    /// Where the code starts.
    code_start: u64,
}

/// A file that is opened and looked at, and its bytes.
type Opened = (File, u64);

impl Flash {
    /// Looks whether the files make a flash, and lets them go again.
    pub fn look(code: &Path, variables: &Path) -> Result<(), FlashError> {
        files(code, variables).map(drop)
    }

    /// The flash with the code in the file `code`, which is only read, and the variables in the file
    /// `variables`, which the guest writes. That file is locked for as long as this is alive.
    pub fn open(code: &Path, variables: &Path) -> Result<Self, FlashError> {
        let [opened, own] = files(code, variables)?;
        let code_bytes = contents(CODE, code, &opened)?;
        let bytes = contents(VARIABLES, variables, &own)?;
        let code_start = END - opened.1;
        let start = code_start - own.1;
        let code = region(code_bytes.len())?;
        code.as_volatile_slice().copy_from(&code_bytes);
        let view = region(bytes.len())?;
        Ok(Self { code, variables: Chip::new(bytes, own.0, view), start, code_start })
    }

    /// What the guest sees, for KVM's memory slots, all of them read-only.
    pub fn regions(&self) -> [(Gpa, Arc<MmapRegion>); 2] {
        [(Gpa(self.start), self.variables.view()), (Gpa(self.code_start), Arc::clone(&self.code))]
    }

    /// A guest's write at `at`; false where that is below the flash. The code stays as it is.
    pub fn write(&mut self, at: u64, data: &[u8]) -> bool {
        let Some(offset) = at.checked_sub(self.start).filter(|_| at < END) else { return false };
        if at < self.code_start {
            // Below 16 MiB.
            self.variables.write(offset as usize, data);
        }
        true
    }
}

/// Code and variables, of which the latter are locked. Together they have at most [`MAX`] bytes.
fn files(code: &Path, variables: &Path) -> Result<[Opened; 2], FlashError> {
    let read = OpenOptions::new().read(true).clone();
    let both = OpenOptions::new().read(true).write(true).clone();
    let install = "; Debian has it in its package ovmf";
    let copy = " for writing; make it as this guest's own copy of the variables that come with the firmware \
                (OVMF_VARS_4M.fd)";
    let code = open(CODE, code, &read, install, MAX)?;
    let own = open(VARIABLES, variables, &both, copy, MAX - code.1)?;
    lock(&own.0, variables)?;
    Ok([code, own])
}

/// A regular file of whole blocks, of at most `most` bytes.
fn open(
    what: &'static str,
    path: &Path,
    how: &OpenOptions,
    hint: &'static str,
    most: u64,
) -> Result<Opened, FlashError> {
    let refused = |source| FlashError::Open { what, path: path.into(), hint, source };
    let file = how.open(path).map_err(refused)?;
    let about = file.metadata();
    let about = about.map_err(|source| FlashError::Read { what, path: path.into(), source })?;
    if !about.is_file() {
        return Err(FlashError::Kind { what, path: path.into() });
    }
    let size = about.len();
    if size == 0 || !size.is_multiple_of(BLOCK as u64) || size > most {
        return Err(FlashError::Size { what, path: path.into(), size });
    }
    Ok((file, size))
}

/// All of its bytes: few enough to be counted in memory.
fn contents(what: &'static str, path: &Path, (file, size): &Opened) -> Result<Vec<u8>, FlashError> {
    let mut bytes = vec![0; *size as usize];
    let read = file.read_exact_at(&mut bytes, 0);
    read.map_err(|source| FlashError::Read { what, path: path.into(), source })?;
    Ok(bytes)
}

/// The lock lasts for as long as the file is open, however the process ends.
fn lock(file: &File, path: &Path) -> Result<(), FlashError> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(FlashError::InUse { what: VARIABLES, path: path.into() }),
        Err(e) => Err(FlashError::Read { what: VARIABLES, path: path.into(), source: e.into() }),
    }
}

fn region(size: usize) -> Result<Arc<MmapRegion>, FlashError> {
    MmapRegion::new(size).map(Arc::new).map_err(|source| FlashError::Map { size, source })
}

#[cfg(test)]
mod tests;
