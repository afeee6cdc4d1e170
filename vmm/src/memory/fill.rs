//! Filling the RAM before the guest runs, so that none of its first accesses waits for the host's memory.
#![allow(unsafe_code)] // madvise takes a raw address.

use super::MemoryError;
use rustix::mm::Advice;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use vm_memory::MmapRegion;

/// Least that one thread fills at once, and after which it looks whether to go on: bytes.
const CHUNK: u64 = 64 << 20;
/// A thread more for each of these: bytes. Smaller guests are filled before threads have started.
const PER_THREAD: u64 = 1 << 30;
/// Most threads: more of them wait for the same memory.
const MAX_THREADS: u64 = 16;
/// How often is told how far it is.
const TICK: Duration = Duration::from_millis(100);

/// How far filling has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filled {
    /// Bytes that are there.
    pub done: u64,
    /// Of so many.
    pub all: u64,
}

/// A piece of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    region: usize,
    offset: u64,
    size: u64,
}

/// Cuts regions of these sizes into pieces, each of whole pages of `page` bytes.
fn pieces(sizes: &[u64], page: u64) -> Vec<Piece> {
    let chunk = CHUNK.max(page);
    let mut pieces = Vec::new();
    for (region, size) in sizes.iter().enumerate() {
        let mut offset = 0;
        while offset < *size {
            let size = chunk.min(size - offset);
            pieces.push(Piece { region, offset, size });
            offset += size;
        }
    }
    pieces
}

/// Fills `regions`, which are made of pages of `page` bytes. `go_on` is told ten times a second how far it is, and
/// ends it by `false`. When this returns, no thread of it is left.
pub(super) fn fill(
    regions: &[Arc<MmapRegion>],
    page: u64,
    go_on: &mut dyn FnMut(Filled) -> bool,
) -> Result<(), MemoryError> {
    let sizes: Vec<u64> = regions.iter().map(|r| r.size() as u64).collect();
    let all: u64 = sizes.iter().sum();
    let pieces = pieces(&sizes, page);
    let (next, done, stop) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let failed = Mutex::new(None);
    let work = || {
        while !stop.load(Ordering::Acquire) {
            let index = next.fetch_add(1, Ordering::Relaxed) as usize;
            let Some(piece) = pieces.get(index) else { return };
            match populate(&regions[piece.region], *piece) {
                Ok(()) => {
                    done.fetch_add(piece.size, Ordering::Relaxed);
                }
                Err(error) => {
                    failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    stop.store(true, Ordering::Release);
                }
            }
        }
    };
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let threads = cpus.min(MAX_THREADS).min(all / PER_THREAD + 1);
    let interrupted = std::thread::scope(|scope| {
        // Each thread holds an end, so that the last one's end is heard at once.
        let (alive, ended) = channel::<()>();
        for _ in 0..threads {
            let alive = alive.clone();
            let body = || {
                work();
                drop(alive);
            };
            let started = std::thread::Builder::new().name("fill".into()).spawn_scoped(scope, body);
            if started.is_err() {
                // Those that run do it all; without any, this one does.
                break;
            }
        }
        drop(alive);
        while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(TICK) {
            if !go_on(Filled { done: done.load(Ordering::Relaxed), all }) {
                stop.store(true, Ordering::Release);
                return true;
            }
        }
        work();
        false
    });
    if interrupted {
        return Err(MemoryError::Interrupted);
    }
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(errno) => Err(MemoryError::Fill { size: all, source: std::io::Error::from(errno) }),
        None => Ok(()),
    }
}

fn populate(region: &MmapRegion, piece: Piece) -> Result<(), rustix::io::Errno> {
    let start = region.as_ptr().wrapping_add(piece.offset as usize);
    loop {
        // SAFETY: the piece is within the mapping, which `region` keeps; making pages present changes no byte of
        // it.
        let done = unsafe {
            rustix::mm::madvise(start.cast(), piece.size as usize, Advice::LinuxPopulateWrite)
        };
        match done {
            // A signal came for the process; the pages that are there are not made again.
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(size: usize) -> Arc<MmapRegion> {
        Arc::new(MmapRegion::new(size).unwrap())
    }

    #[test]
    fn pieces_cover_all_of_each_region_and_are_whole_pages() {
        for (sizes, page, count) in [
            (vec![CHUNK * 2 + 4096, 2 << 20], 4096, 4),
            (vec![3 << 30, 5 << 30], 1 << 30, 8),
            (vec![2 << 20], 2 << 20, 1),
            (vec![], 4096, 0),
        ] {
            let pieces = pieces(&sizes, page);
            assert_eq!(pieces.len(), count);
            for (region, size) in sizes.iter().enumerate() {
                let mut at = 0;
                for piece in pieces.iter().filter(|p| p.region == region) {
                    assert_eq!(piece.offset, at);
                    assert!(piece.offset.is_multiple_of(page) && piece.size > 0);
                    at += piece.size;
                }
                assert_eq!(at, *size);
            }
        }
    }

    /// Pages of a mapping that are there.
    fn present(region: &MmapRegion) -> usize {
        let mut pages = vec![0u8; region.size().div_ceil(4096)];
        // SAFETY: the mapping is whole and the vector has a byte for each of its pages.
        let done =
            unsafe { libc::mincore(region.as_ptr().cast(), region.size(), pages.as_mut_ptr()) };
        assert_eq!(done, 0);
        pages.iter().filter(|p| **p & 1 == 1).count()
    }

    #[test]
    fn filling_makes_every_page_present() {
        let regions = [region(5 << 20), region(1 << 20)];
        assert_eq!(present(&regions[0]), 0);
        fill(&regions, 4096, &mut |_| true).unwrap();
        assert_eq!(present(&regions[0]) + present(&regions[1]), 6 << 8);
    }

    #[test]
    fn a_mapping_that_cannot_be_written_is_an_error() {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let readonly = Arc::new(MmapRegion::build(None, 4096, libc::PROT_READ, flags).unwrap());
        let error = fill(&[readonly], 4096, &mut |_| true).unwrap_err();
        assert!(matches!(error, MemoryError::Fill { size: 4096, .. }), "{error}");
    }
}
