//! What both sides ask of the other's file descriptors and ranges before they use them.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{OFlags, SealFlags};
use rustix::io::Errno;

use crate::SparseArea;
use crate::wire::{MAX_AREAS, PAGE_SIZE};

/// Why a file descriptor or a range is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CheckError {
    /// Not an eventfd.
    #[error("the fd is {0:?}, an eventfd is needed")]
    NotEventFd(String),
    /// The kernel would not tell what it is.
    #[error("the fd cannot be examined: {0}")]
    Examine(Errno),
    /// Not a memfd.
    #[error(
        "the fd is not a memfd: only memory from memfd_create with MFD_ALLOW_SEALING can be shared"
    )]
    NotMemfd,
    /// It could shrink under a mapping, which would kill the process that touches it.
    #[error("the memfd is not sealed against shrinking: add F_SEAL_SHRINK before it is shared")]
    NotSealed,
    /// It ends too soon.
    #[error("the memfd has {size:#x} bytes, the range ends at {end:#x}")]
    TooSmall {
        /// Bytes of the memfd.
        size: u64,
        /// Bytes that would be needed.
        end: u64,
    },
    /// It cannot be mapped with the right that is asked for.
    #[error("the memfd cannot be mapped for {0}: its open mode or its seals forbid it")]
    Access(&'static str),
    /// Not a multiple of the page size.
    #[error("{what} {value:#x} is not a multiple of {PAGE_SIZE:#x}")]
    Unaligned {
        /// Which value.
        what: &'static str,
        /// The value.
        value: u64,
    },
    /// A range of no bytes.
    #[error("the size is 0")]
    Empty,
    /// The end of a range is beyond 64 bits.
    #[error("{start:#x} + {size:#x} overflows")]
    Overflow {
        /// The start.
        start: u64,
        /// Bytes.
        size: u64,
    },
    /// Too many areas.
    #[error("{0} areas, at most {MAX_AREAS} can be mapped")]
    TooManyAreas(usize),
    /// An area leaves its region.
    #[error("the area at {offset:#x} of {size:#x} bytes leaves the region of {region:#x} bytes")]
    Outside {
        /// Its start.
        offset: u64,
        /// Its bytes.
        size: u64,
        /// Bytes of the region.
        region: u64,
    },
    /// Two areas overlap.
    #[error("the areas at {0:#x} and {1:#x} overlap")]
    Overlap(u64, u64),
}

/// The end of a page-aligned range that is not empty.
pub(crate) fn page_range(what: &'static str, start: u64, size: u64) -> Result<u64, CheckError> {
    if size == 0 {
        return Err(CheckError::Empty);
    }
    if !start.is_multiple_of(PAGE_SIZE) {
        return Err(CheckError::Unaligned { what, value: start });
    }
    if !size.is_multiple_of(PAGE_SIZE) {
        return Err(CheckError::Unaligned { what: "the size", value: size });
    }
    start.checked_add(size).ok_or(CheckError::Overflow { start, size })
}

/// The last byte of a page-aligned range that is not empty. It may end where the address space ends.
pub(crate) fn last_of_range(what: &'static str, start: u64, size: u64) -> Result<u64, CheckError> {
    // One page less ends inside, and has the same alignment.
    match size.checked_sub(PAGE_SIZE) {
        None | Some(0) => page_range(what, start, size).map(|end| end - 1),
        Some(less) => {
            let end = page_range(what, start, less)?;
            end.checked_add(PAGE_SIZE - 1).ok_or(CheckError::Overflow { start, size })
        }
    }
}

/// That `fd` is an eventfd: anything else could block, or do more than count, when it is written.
pub(crate) fn eventfd(fd: BorrowedFd<'_>) -> Result<(), CheckError> {
    // No system call tells the kinds of anonymous inode apart; their names in /proc do, and cannot be
    // imitated by a file, whose name starts with a slash.
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let name = rustix::fs::readlink(path, Vec::new()).map_err(CheckError::Examine)?;
    if name.as_bytes() == b"anon_inode:[eventfd]" {
        Ok(())
    } else {
        Err(CheckError::NotEventFd(name.to_string_lossy().into_owned()))
    }
}

/// Whether `fd` could be mapped shared and for writing.
pub(crate) fn can_map_for_writing(fd: BorrowedFd<'_>) -> Result<bool, CheckError> {
    let mode = rustix::fs::fcntl_getfl(fd).map_err(CheckError::Examine)? & OFlags::RWMODE;
    let seals = rustix::fs::fcntl_get_seals(fd).map_err(|_| CheckError::NotMemfd)?;
    Ok(mode == OFlags::RDWR && !seals.intersects(SealFlags::WRITE | SealFlags::FUTURE_WRITE))
}

/// That `fd` is a memfd which holds bytes up to `end` and always will.
pub(crate) fn memfd(fd: BorrowedFd<'_>, end: u64) -> Result<(), CheckError> {
    let seals = rustix::fs::fcntl_get_seals(fd).map_err(|_| CheckError::NotMemfd)?;
    if !seals.contains(SealFlags::SHRINK) {
        return Err(CheckError::NotSealed);
    }
    // The seal comes first: only after it is the size a lower bound for ever.
    let stat = rustix::fs::fstat(fd).map_err(CheckError::Examine)?;
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    if end > size {
        return Err(CheckError::TooSmall { size, end });
    }
    let mode = rustix::fs::fcntl_getfl(fd.as_fd()).map_err(CheckError::Examine)? & OFlags::RWMODE;
    if mode == OFlags::WRONLY {
        return Err(CheckError::Access("reading"));
    }
    Ok(())
}

/// That `areas` are page-aligned, inside a region of `region` bytes and apart from each other.
/// Gives where the last one ends.
pub(crate) fn areas(region: u64, areas: &[SparseArea]) -> Result<u64, CheckError> {
    if areas.len() > MAX_AREAS {
        return Err(CheckError::TooManyAreas(areas.len()));
    }
    let mut last = 0;
    for (i, area) in areas.iter().enumerate() {
        let end = page_range("the area's offset", area.offset, area.size)?;
        if end > region {
            return Err(CheckError::Outside { offset: area.offset, size: area.size, region });
        }
        for other in areas.iter().take(i) {
            // Neither sum overflows: `page_range` accepted both.
            if area.offset < other.offset + other.size && other.offset < end {
                return Err(CheckError::Overlap(other.offset, area.offset));
            }
        }
        last = last.max(end);
    }
    Ok(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::EventfdFlags;
    use rustix::fs::MemfdFlags;

    #[test]
    fn only_eventfds_pass_as_eventfds() {
        let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        assert_eq!(eventfd(event.as_fd()), Ok(()));
        let memory = rustix::fs::memfd_create("anon_inode:[eventfd]", MemfdFlags::CLOEXEC).unwrap();
        assert!(matches!(eventfd(memory.as_fd()), Err(CheckError::NotEventFd(_))));
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        assert!(matches!(eventfd(reader.as_fd()), Err(CheckError::NotEventFd(_))));
    }

    #[test]
    fn a_memfd_must_be_sealed_and_large_enough() {
        let fd =
            rustix::fs::memfd_create("m", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&fd, 8192).unwrap();
        assert_eq!(memfd(fd.as_fd(), 8192), Err(CheckError::NotSealed));
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK).unwrap();
        assert_eq!(memfd(fd.as_fd(), 8192), Ok(()));
        assert_eq!(memfd(fd.as_fd(), 8193), Err(CheckError::TooSmall { size: 8192, end: 8193 }));
        assert_eq!(can_map_for_writing(fd.as_fd()), Ok(true));
        rustix::fs::fcntl_add_seals(&fd, SealFlags::FUTURE_WRITE).unwrap();
        assert_eq!(can_map_for_writing(fd.as_fd()), Ok(false));

        let file = tempfile::tempfile().unwrap();
        file.set_len(8192).unwrap();
        let refused = memfd(file.as_fd(), 0);
        assert!(
            matches!(refused, Err(CheckError::NotMemfd | CheckError::NotSealed)),
            "{refused:?}"
        );
    }

    #[test]
    fn areas_must_be_aligned_inside_and_apart() {
        let area = |offset, size| SparseArea { offset, size };
        assert_eq!(areas(0x4000, &[area(0x3000, 0x1000), area(0, 0x1000)]), Ok(0x4000));
        assert_eq!(areas(0x4000, &[]), Ok(0));
        assert_eq!(areas(0x4000, &[area(0, 0)]), Err(CheckError::Empty));
        assert!(matches!(areas(0x4000, &[area(4, 0x1000)]), Err(CheckError::Unaligned { .. })));
        assert!(matches!(areas(0x4000, &[area(0, 4)]), Err(CheckError::Unaligned { .. })));
        assert!(matches!(areas(0x4000, &[area(0x1000, 0x4000)]), Err(CheckError::Outside { .. })));
        let far = u64::MAX - 0xfff;
        assert!(matches!(areas(u64::MAX, &[area(far, 0x1000)]), Err(CheckError::Overflow { .. })));
        assert_eq!(
            areas(0x4000, &[area(0, 0x2000), area(0x1000, 0x1000)]),
            Err(CheckError::Overlap(0, 0x1000))
        );
        let many: Vec<_> = (0..17).map(|i| area(i * 0x1000, 0x1000)).collect();
        assert_eq!(areas(u64::MAX, &many), Err(CheckError::TooManyAreas(17)));
    }
}
