//! Requests (virtio 1.3, section 5.2.6): one after the other; a bad one is answered and the next served.

use super::registers::{MAX_RANGE, MAX_RANGES};
use super::{Blk, Disk, MAX_SERIAL, SECTOR, Shared};
use crate::devices::virtio::{Chain, Serve, VirtQueue};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use virtio_bindings::virtio_blk as spec;
use vm_memory::GuestMemoryMmap;

/// Bytes that are copied between disk and guest at once.
const PIECE: usize = 256 << 10;
/// Bytes of a request's header, and of a range.
const HEADER: u64 = 16;
const OK: u8 = spec::VIRTIO_BLK_S_OK as u8;
const IOERR: u8 = spec::VIRTIO_BLK_S_IOERR as u8;
const UNSUPPORTED: u8 = spec::VIRTIO_BLK_S_UNSUPP as u8;

/// What went wrong so far.
#[derive(Debug, Default)]
pub struct Counters {
    /// Requests that the host's disk failed.
    failed: AtomicU64,
    /// Requests that make no sense.
    refused: AtomicU64,
    said: AtomicBool,
}

impl Counters {
    /// Requests that the host's disk failed: it is full, or broken.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Requests that make no sense: out of range, not whole sectors, a write to a read-only disk.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

/// Why a request is not done.
enum No {
    /// It makes no sense.
    Refused,
    /// It is of a type that there is not.
    Unsupported,
    /// The disk failed it.
    Disk(io::Error),
}

impl From<crate::devices::virtio::Fault> for No {
    fn from(_: crate::devices::virtio::Fault) -> Self {
        Self::Refused
    }
}

impl From<io::Error> for No {
    fn from(e: io::Error) -> Self {
        Self::Disk(e)
    }
}

/// What the operator can do about it.
fn mend(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            " (make room where its image is; what the guest writes after that is kept)"
        }
        _ => "",
    }
}

/// Serves the queue.
pub(super) struct Requests {
    queue: VirtQueue,
    chain: Chain,
    server: Server,
}

struct Server {
    memory: Arc<GuestMemoryMmap>,
    disk: Shared,
    sectors: u64,
    readonly: bool,
    /// Every write is on the disk before it is answered.
    through: bool,
    serial: [u8; MAX_SERIAL],
    counters: Arc<Counters>,
    label: String,
    piece: Vec<u8>,
}

impl Requests {
    pub(super) fn new(
        queue: VirtQueue,
        memory: Arc<GuestMemoryMmap>,
        blk: &Blk,
        through: bool,
    ) -> Self {
        let server = Server {
            memory,
            disk: Arc::clone(&blk.disk),
            sectors: blk.shape.sectors,
            readonly: blk.shape.readonly,
            through,
            serial: blk.serial,
            counters: Arc::clone(&blk.counters),
            label: blk.label.clone(),
            piece: vec![0; PIECE],
        };
        Self { queue, chain: Chain::default(), server }
    }
}

impl Serve for Requests {
    fn kick(&mut self, _: usize) {
        let Self { queue, chain, server } = self;
        queue.serve(chain, |chain| server.request(chain));
    }
}

impl Server {
    /// Serves a request; returns how many bytes were written to its buffer.
    fn request(&mut self, chain: &Chain) -> u32 {
        // Without a byte for the status nothing can be said.
        let Some(room) = chain.writable().checked_sub(1) else { return 0 };
        let disk = Arc::clone(&self.disk);
        // A panic while it was held was reported; the disk has no state that it could have left half done.
        let mut disk = disk.lock().unwrap_or_else(PoisonError::into_inner);
        let (status, written) = match self.serve(&mut **disk, chain, room) {
            Ok(written) => (OK, written),
            Err(No::Refused) => {
                self.counters.refused.fetch_add(1, Ordering::Relaxed);
                (IOERR, 0)
            }
            Err(No::Unsupported) => (UNSUPPORTED, 0),
            Err(No::Disk(e)) => {
                self.counters.failed.fetch_add(1, Ordering::Relaxed);
                if !self.counters.said.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        "{}: the host's disk failed a request: {e}{}; the guest sees an I/O error, and \
                         further ones are only counted",
                        self.label,
                        mend(&e)
                    );
                }
                (IOERR, 0)
            }
        };
        match chain.write(&self.memory, room, &[status]) {
            Ok(()) => written + 1,
            Err(_) => 0,
        }
    }

    /// Does it; returns the bytes of data written to the guest.
    fn serve(&mut self, disk: &mut dyn Disk, chain: &Chain, room: u64) -> Result<u32, No> {
        let header: [u8; HEADER as usize] = chain.array(&self.memory, 0)?;
        let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let sector = u64::from_le_bytes([8, 9, 10, 11, 12, 13, 14, 15].map(|i: usize| header[i]));
        let data = chain.readable() - HEADER;
        match kind {
            spec::VIRTIO_BLK_T_IN => {
                let at = self.place(sector, room)?;
                self.read(disk, chain, at, room)?;
                // A chain is shorter than 4 GiB.
                Ok(room as u32)
            }
            spec::VIRTIO_BLK_T_OUT => {
                self.must_be_writable()?;
                let at = self.place(sector, data)?;
                self.write(disk, chain, at, data)?;
                self.settle(disk)
            }
            spec::VIRTIO_BLK_T_FLUSH => {
                disk.flush()?;
                Ok(0)
            }
            spec::VIRTIO_BLK_T_GET_ID => {
                let len = room.min(MAX_SERIAL as u64);
                chain.write(&self.memory, 0, &self.serial[..len as usize])?;
                Ok(len as u32)
            }
            spec::VIRTIO_BLK_T_DISCARD | spec::VIRTIO_BLK_T_WRITE_ZEROES => {
                self.must_be_writable()?;
                self.ranges(disk, chain, data, kind == spec::VIRTIO_BLK_T_WRITE_ZEROES)?;
                self.settle(disk)
            }
            _ => Err(No::Unsupported),
        }
    }

    fn must_be_writable(&self) -> Result<(), No> {
        if self.readonly { Err(No::Refused) } else { Ok(()) }
    }

    fn settle(&self, disk: &mut dyn Disk) -> Result<u32, No> {
        if self.through {
            disk.flush()?;
        }
        Ok(0)
    }

    /// Where `len` bytes from `sector` on are: whole sectors within the disk.
    fn place(&self, sector: u64, len: u64) -> Result<u64, No> {
        let end = sector.checked_add(len / SECTOR).filter(|end| *end <= self.sectors);
        if !len.is_multiple_of(SECTOR) || end.is_none() {
            return Err(No::Refused);
        }
        Ok(sector * SECTOR)
    }

    fn read(&mut self, disk: &mut dyn Disk, chain: &Chain, at: u64, len: u64) -> Result<(), No> {
        let mut done = 0;
        while done < len {
            let now = (len - done).min(PIECE as u64);
            let piece = &mut self.piece[..now as usize];
            disk.read(at + done, piece)?;
            chain.write(&self.memory, done, piece)?;
            done += now;
        }
        Ok(())
    }

    fn write(&mut self, disk: &mut dyn Disk, chain: &Chain, at: u64, len: u64) -> Result<(), No> {
        let mut done = 0;
        while done < len {
            let now = (len - done).min(PIECE as u64);
            let piece = &mut self.piece[..now as usize];
            chain.read(&self.memory, HEADER + done, piece)?;
            disk.write(at + done, piece)?;
            done += now;
        }
        Ok(())
    }

    /// Discards ranges or fills them with zeroes. All are checked before the first is touched.
    fn ranges(&self, disk: &mut dyn Disk, chain: &Chain, data: u64, zero: bool) -> Result<(), No> {
        let count = data / 16;
        if !data.is_multiple_of(16) || count == 0 || count > MAX_RANGES {
            return Err(No::Refused);
        }
        let mut ranges = [(0, 0, false); MAX_RANGES as usize];
        for (n, range) in (0..count).zip(&mut ranges) {
            let r: [u8; 16] = chain.array(&self.memory, HEADER + n * 16)?;
            let sector = u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|i: usize| r[i]));
            let sectors = u32::from_le_bytes([r[8], r[9], r[10], r[11]]);
            let flags = u32::from_le_bytes([r[12], r[13], r[14], r[15]]);
            let unmap = flags & spec::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
            // A discard has no flags; other bits are reserved, and their request is not supported.
            if flags & !spec::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 || unmap && !zero {
                return Err(No::Unsupported);
            }
            if sectors > MAX_RANGE {
                return Err(No::Refused);
            }
            let len = u64::from(sectors) * SECTOR;
            *range = (self.place(sector, len)?, len, unmap);
        }
        for (at, len, unmap) in ranges.into_iter().take(count as usize).filter(|r| r.1 > 0) {
            if zero {
                disk.zero(at, len, unmap)?;
            } else {
                disk.discard(at, len)?;
            }
        }
        Ok(())
    }
}
