//! An ELF image's program headers (System V ABI, "Program Header"), looked at before the loader takes them at their
//! word: a loader reads what each of them says, however often and however long that is.

use super::map::IMAGE_START;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Most program headers. Kernels have fewer than ten.
const MOST_HEADERS: u16 = 64;
/// Most bytes of a segment with notes. Kernels have some hundred.
const MOST_NOTES: u64 = 64 << 10;
/// Bytes of the file's header and of a program header.
const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
/// Types: a segment to be loaded, and one with notes.
const LOAD: u32 = 1;
const NOTE: u32 = 4;

/// What is wrong with an image's program headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadersError {
    /// There are too many.
    #[error("it has {count} program headers; {MOST_HEADERS} are the most that are read")]
    Count {
        /// How many.
        count: u16,
    },
    /// Notes without end.
    #[error(
        "it has {size:#x} bytes of notes in a segment; {MOST_NOTES:#x} are the most that are read"
    )]
    Notes {
        /// Bytes.
        size: u64,
    },
    /// More to load than there is room for.
    #[error("its segments have more bytes than the {ram:#x} of RAM that they go to")]
    Bytes {
        /// RAM below the PCI window: bytes.
        ram: u64,
    },
    /// A segment is where no image can be.
    #[error("its segment of {size:#x} bytes at {at:#x} goes beyond 4 GiB, and an image is below")]
    Address {
        /// First address.
        at: u64,
        /// Bytes.
        size: u64,
    },
}

/// Where an image's segments are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// The lowest address; `u64::MAX` where there is no segment.
    pub(super) start: u64,
    /// The address behind the highest one, with the zeroes that the file does not have. The loader leaves out
    /// segments that consist of those.
    pub(super) end: u64,
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |b| u32::from_le_bytes(*b))
}

fn long(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |b| u64::from_le_bytes(*b))
}

/// Reads all of `to`; false where the file ends before that. The loader says what that means.
fn read(file: &File, to: &mut [u8], at: u64) -> io::Result<bool> {
    match file.read_exact_at(to, at) {
        Ok(()) => Ok(true),
        // An offset beyond all files is one too.
        Err(e)
            if matches!(e.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidInput) =>
        {
            Ok(false)
        }
        Err(e) => Err(e),
    }
}

/// Looks at the program headers of `file`, for `ram` bytes of RAM below the PCI window.
pub(super) fn look(file: &File, ram: u64) -> io::Result<Result<Extent, HeadersError>> {
    let mut extent = Extent { start: u64::MAX, end: IMAGE_START };
    let mut header = [0; HEADER];
    if !read(file, &mut header, 0)? {
        return Ok(Ok(extent));
    }
    let count = word(&header, 56) as u16;
    if count > MOST_HEADERS {
        return Ok(Err(HeadersError::Count { count }));
    }
    let mut loaded = 0u64;
    let mut at = long(&header, 32);
    for _ in 0..count {
        let mut header = [0; PROGRAM_HEADER];
        if !read(file, &mut header, at)? {
            break;
        }
        // The file has what is there, and files end far below the last offset.
        at += PROGRAM_HEADER as u64;
        let (start, bytes) = (long(&header, 24), long(&header, 32));
        let size = bytes.max(long(&header, 40));
        match word(&header, 0) {
            NOTE if bytes > MOST_NOTES => return Ok(Err(HeadersError::Notes { size: bytes })),
            LOAD if size > 0 => {
                let Some(end) = start.checked_add(size).filter(|end| *end <= 1 << 32) else {
                    return Ok(Err(HeadersError::Address { at: start, size }));
                };
                loaded = loaded.saturating_add(bytes);
                extent.start = extent.start.min(start);
                extent.end = extent.end.max(end);
            }
            _ => {}
        }
    }
    if loaded > ram {
        return Ok(Err(HeadersError::Bytes { ram }));
    }
    Ok(Ok(extent))
}

#[cfg(test)]
#[path = "elf_tests.rs"]
mod tests;
