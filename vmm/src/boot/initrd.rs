//! The initrd: as high as it may be, so that the kernel has room to unpack itself below.

use super::{BootError, INITRD, open};
use crate::Gpa;
use crate::memory::GuestRam;
use std::fs::File;
use std::path::Path;
use vm_memory::{Bytes, GuestMemoryError};

const PAGE: u64 = 4096;

/// Where an initrd lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Initrd {
    /// First address: a multiple of 4096.
    pub at: Gpa,
    /// Bytes.
    pub size: u64,
}

/// Where `size` bytes go between `after` and `end`.
fn place(size: u64, after: u64, end: u64) -> Option<Gpa> {
    let at = end.checked_sub(size)? / PAGE * PAGE;
    (at >= after).then_some(Gpa(at))
}

/// Loads the file at `path` between `after`, where the kernel ends, and `end`, which the kernel can reach.
pub(super) fn load(ram: &GuestRam, path: &Path, after: u64, end: u64) -> Result<Initrd, BootError> {
    let (mut file, size) = look(path)?;
    let read = |source| BootError::Read { what: INITRD, path: path.to_owned(), source };
    let end = end.min(ram.low_end());
    let Some(at) = place(size, after, end) else {
        return Err(BootError::LargeInitrd { path: path.to_owned(), size, after, end });
    };
    // `size` is below the RAM's, which is mapped.
    ram.memory().read_exact_volatile_from(at, &mut file, size as usize).map_err(|e| match e {
        GuestMemoryError::IOError(e) => read(e),
        // It became shorter while it was read.
        e => read(std::io::Error::other(e)),
    })?;
    Ok(Initrd { at, size })
}

/// The file and its bytes: at least one.
pub(super) fn look(path: &Path) -> Result<(File, u64), BootError> {
    let file = open(INITRD, path)?;
    let metadata = file.metadata().map_err(|source| BootError::Read {
        what: INITRD,
        path: path.to_owned(),
        source,
    })?;
    match metadata.len() {
        size if metadata.is_file() && size > 0 => Ok((file, size)),
        _ => Err(BootError::EmptyInitrd { path: path.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_placed_high_and_never_over_the_kernel() {
        assert_eq!(place(1, 0, 0x10_0000), Some(Gpa(0xf_f000)));
        assert_eq!(place(0x1001, 0, 0x10_0000), Some(Gpa(0xf_e000)));
        assert_eq!(place(0x1000, 0xf_f000, 0x10_0000), Some(Gpa(0xf_f000)));
        assert_eq!(place(0x1001, 0xf_f000, 0x10_0000), None);
        assert_eq!(place(u64::MAX, 0, 0x10_0000), None);
    }
}
