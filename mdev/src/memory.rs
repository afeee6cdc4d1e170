//! Guest memory as the host sees it: a table of DMA mappings that one thread edits while others use it.
//!
//! The vfio-user thread maps and unmaps; a slice's worker and poster read and write. An access takes a
//! snapshot of the table and drops it before it returns, so [`GuestMemory::unmap`] can promise that
//! nothing touches the range once it is back: it publishes a table without the range and waits until no
//! snapshot of the old one is left.
//!
//! A file is mapped once, as a whole, however many of its ranges a client maps: behind a virtual IOMMU these
//! are single pages, and a process cannot have that many mappings.
//!
//! Guest memory is shared with a hostile guest. No reference to it exists, only copies in and out, and
//! every byte the host changes there passes through `GuestMemory::store`.

mod mapping;
#[cfg(test)]
mod tests;

use arc_swap::{ArcSwap, Guard};
use beamline_vfio_user::{DeviceError, DmaFlags, DmaMap};
pub(crate) use mapping::Mapping;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// `f_type` of hugetlbfs (linux/magic.h).
const HUGETLBFS_MAGIC: rustix::fs::FsWord = 0x9584_58f6;

/// Most mappings of one device.
pub const MAX_MAPPINGS: usize = 4096;
/// Most files of one device: each is a mapping of this process, of which the system allows some 65,000.
pub const MAX_FILES: usize = 64;
/// Most bytes of all files of one device: as many as a large guest has, and so few that those of all slices
/// leave room in this process's address space. Files of holes cost their owner nothing.
pub const MAX_FILE_BYTES: u64 = 512 << 30;

/// An address as the guest's device sees it: an I/O virtual address, which without a virtual IOMMU is a
/// guest physical one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gpa(pub u64);

impl Gpa {
    /// `bytes` further on; `None` past the end of the address space.
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }
}

impl std::fmt::Display for Gpa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Why guest memory was not mapped, unmapped, read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// No mapping holds the byte.
    #[error("guest address {at} (of {len} bytes from {start}) is not mapped for this device")]
    NotMapped {
        /// The first byte that is not mapped.
        at: Gpa,
        /// Where the access starts.
        start: Gpa,
        /// Bytes of the access.
        len: u64,
    },
    /// The mapping lacks the right, or came without a descriptor.
    #[error("guest address {at} is mapped, but not for {access} by the device")]
    Forbidden {
        /// Where.
        at: Gpa,
        /// "reading" or "writing".
        access: &'static str,
    },
    /// The access wraps around the end of the address space.
    #[error("{len} bytes from guest address {start} pass the end of the address space")]
    Wraps {
        /// Where the access starts.
        start: Gpa,
        /// Bytes of the access.
        len: u64,
    },
    /// An atomic access is not aligned to its size.
    #[error("guest address {at} is not aligned to {size} bytes")]
    Misaligned {
        /// Where.
        at: Gpa,
        /// Bytes of the access.
        size: u64,
    },
    /// A new mapping is empty or passes the end of the address space.
    #[error("a mapping of {size} bytes at {start} is empty or passes the end of the address space")]
    BadRange {
        /// Where the mapping starts.
        start: Gpa,
        /// Its bytes.
        size: u64,
    },
    /// A new mapping overlaps one that exists.
    #[error("a mapping of {size} bytes at {start} overlaps the one at {other}; unmap that first")]
    Overlap {
        /// Where the new mapping starts.
        start: Gpa,
        /// Its bytes.
        size: u64,
        /// Where the old mapping starts.
        other: Gpa,
    },
    /// There are [`MAX_MAPPINGS`] or [`MAX_FILES`] already.
    #[error("a device takes at most {MAX_MAPPINGS} mappings of {MAX_FILES} files")]
    TooMany,
    /// The files that are mapped would be longer than [`MAX_FILE_BYTES`] together.
    #[error("the files that a device maps have at most {MAX_FILE_BYTES} bytes; this one has {len}")]
    TooLarge {
        /// Bytes of the new file.
        len: u64,
    },
    /// No mapping has exactly this range.
    #[error("no mapping has exactly {size} bytes at {start}")]
    NoSuchMapping {
        /// Where it was said to start.
        start: Gpa,
        /// Its bytes.
        size: u64,
    },
    /// The descriptor is no memfd, or may shrink under us.
    #[error("the memory at {start} is not a memfd sealed with F_SEAL_SHRINK, which sharing needs")]
    NotSealed {
        /// Where the mapping starts.
        start: Gpa,
    },
    /// The memory is of huge pages that the peer can take back.
    #[error(
        "the memory at {start} is of huge pages from a memfd; share ordinary or transparent huge pages"
    )]
    HugePages {
        /// Where the mapping starts.
        start: Gpa,
    },
    /// The descriptor holds less than the mapping.
    #[error("the mapping at {start} needs {need} bytes of its memfd, which has {have}")]
    TooShort {
        /// Where the mapping starts.
        start: Gpa,
        /// Bytes needed, from the start of the memfd.
        need: u64,
        /// Bytes there.
        have: u64,
    },
    /// The system refused.
    #[error("{call} of guest memory failed: {errno}")]
    System {
        /// The call.
        call: &'static str,
        /// Its error.
        errno: Errno,
    },
}

impl From<MemoryError> for DeviceError {
    fn from(error: MemoryError) -> Self {
        let text = error.to_string();
        match error {
            MemoryError::Overlap { .. } => Self::Exists(text),
            MemoryError::TooMany => Self::Limit(text),
            MemoryError::NoSuchMapping { .. } => Self::NotFound(text),
            _ => Self::Invalid(text),
        }
    }
}

/// A file of guest memory, mapped from its start.
struct File {
    /// Device and inode. The mapping keeps the inode, so that its number means no other file. Were a client to
    /// make two files with one number, it would confuse nobody's memory but its own.
    id: (u64, u64),
    len: u64,
    write: bool,
    mapping: Mapping,
}

/// A part of a file.
#[derive(Clone)]
struct Part {
    file: Arc<File>,
    offset: u64,
}

/// One mapping. `start < end`.
#[derive(Clone)]
struct Range {
    start: u64,
    end: u64,
    flags: DmaFlags,
    /// `None`: the client gave no descriptor, so the range is known but out of reach.
    memory: Option<Part>,
}

/// The mappings, sorted by address, without overlap.
#[derive(Clone, Default)]
struct Table {
    ranges: Vec<Range>,
}

impl Table {
    /// Calls `each` with memory, offset in it, and bytes, for every part of the access in order.
    fn visit(
        &self,
        start: Gpa,
        len: u64,
        write: bool,
        mut each: impl FnMut(&Mapping, usize, usize),
    ) -> Result<(), MemoryError> {
        let end = start.0.checked_add(len).ok_or(MemoryError::Wraps { start, len })?;
        let mut at = start.0;
        let first = self.ranges.partition_point(|r| r.end <= at);
        let mut ranges = self.ranges[first..].iter();
        while at < end {
            let range = ranges
                .next()
                .filter(|range| range.start <= at)
                .ok_or(MemoryError::NotMapped { at: Gpa(at), start, len })?;
            let right = if write { range.flags.write } else { range.flags.read };
            let memory = range.memory.as_ref().filter(|_| right).ok_or({
                MemoryError::Forbidden {
                    at: Gpa(at),
                    access: if write { "writing" } else { "reading" },
                }
            })?;
            let part = range.end.min(end) - at;
            let offset = memory.offset + (at - range.start);
            each(&memory.file.mapping, offset as usize, part as usize);
            at += part;
        }
        Ok(())
    }

    /// The files that are mapped, each once.
    fn files(&self) -> Vec<&Arc<File>> {
        let mut files: Vec<&Arc<File>> = Vec::new();
        for part in self.ranges.iter().filter_map(|r| r.memory.as_ref()) {
            if !files.iter().any(|file| Arc::ptr_eq(file, &part.file)) {
                files.push(&part.file);
            }
        }
        files
    }

    /// `map`'s part of `fd`, which must not be able to shrink: reading past its end would kill us.
    fn part(&self, fd: BorrowedFd<'_>, map: &DmaMap) -> Result<Part, MemoryError> {
        let checked = check_sealed(fd, map)?;
        let fits = |file: &&Arc<File>| {
            file.id == checked.id && file.write == map.flags.write && file.len >= checked.need
        };
        let files = self.files();
        let file = match files.iter().find(|file| fits(file)) {
            Some(file) => Arc::clone(file),
            None if files.len() >= MAX_FILES => return Err(MemoryError::TooMany),
            None => {
                let (len, write) = (checked.len, map.flags.write);
                let mapped: u64 = files.iter().map(|file| file.len).sum();
                if len > MAX_FILE_BYTES - mapped {
                    return Err(MemoryError::TooLarge { len });
                }
                let mapping = Mapping::new(fd, 0, len as usize, write)
                    .map_err(|errno| MemoryError::System { call: "mmap", errno })?;
                Arc::new(File { id: checked.id, len, write, mapping })
            }
        };
        Ok(Part { file, offset: map.fd_offset })
    }
}

/// The memory of one guest, as far as its VMM maps it for a device.
pub struct GuestMemory {
    table: ArcSwap<Table>,
    /// Held by the one thread that changes the table; accesses never take it.
    edit: Mutex<()>,
}

impl Default for GuestMemory {
    fn default() -> Self {
        Self::new()
    }
}

impl GuestMemory {
    /// Memory without a mapping.
    pub fn new() -> Self {
        Self { table: ArcSwap::default(), edit: Mutex::new(()) }
    }

    /// `size` bytes at address 0, backed by a memfd of its own: for tests. `size` is rounded up to pages.
    pub fn for_test(size: usize) -> Result<Self, MemoryError> {
        let size = (size.max(1) as u64).next_multiple_of(4096);
        let memory = Self::new();
        memory.map(DmaMap {
            iova: 0,
            size,
            flags: DmaFlags { read: true, write: true },
            fd: Some(sealed_memfd("beamline-test", size, SealFlags::empty())?),
            fd_offset: 0,
        })?;
        Ok(memory)
    }

    /// Adds a mapping. Without a descriptor the range is known but every access to it fails.
    #[expect(clippy::needless_pass_by_value, reason = "takes the descriptor over and closes it")]
    pub fn map(&self, map: DmaMap) -> Result<(), MemoryError> {
        let (start, size) = (Gpa(map.iova), map.size);
        let end = map
            .iova
            .checked_add(size)
            .filter(|_| size > 0)
            .ok_or(MemoryError::BadRange { start, size })?;
        let _edit = self.lock();
        let mut table = Table::clone(&self.table.load());
        if table.ranges.len() >= MAX_MAPPINGS {
            return Err(MemoryError::TooMany);
        }
        if let Some(other) = table.ranges.iter().find(|r| r.start < end && map.iova < r.end) {
            return Err(MemoryError::Overlap { start, size, other: Gpa(other.start) });
        }
        let memory = match &map.fd {
            Some(fd) => Some(table.part(fd.as_fd(), &map)?),
            None => None,
        };
        let place = table.ranges.partition_point(|r| r.start < map.iova);
        table.ranges.insert(place, Range { start: map.iova, end, flags: map.flags, memory });
        self.publish(table);
        Ok(())
    }

    /// Removes the mapping made with exactly this range. When it returns, no access to it is under way
    /// and none will come.
    pub fn unmap(&self, start: Gpa, size: u64) -> Result<(), MemoryError> {
        let _edit = self.lock();
        let mut table = Table::clone(&self.table.load());
        let place = table
            .ranges
            .iter()
            .position(|r| r.start == start.0 && r.end - r.start == size)
            .ok_or(MemoryError::NoSuchMapping { start, size })?;
        table.ranges.remove(place);
        self.publish(table);
        Ok(())
    }

    /// Removes every mapping, with the same promise.
    pub fn unmap_all(&self) {
        let _edit = self.lock();
        self.publish(Table::default());
    }

    /// Copies guest memory from `at` into `out`.
    pub fn read(&self, at: Gpa, out: &mut [u8]) -> Result<(), MemoryError> {
        let mut done = 0;
        self.snapshot().visit(at, out.len() as u64, false, |memory, offset, len| {
            memory.read(offset, &mut out[done..done + len]);
            done += len;
        })
    }

    /// Copies `data` into guest memory at `at`: all of it, or nothing where a part is out of reach.
    pub fn write(&self, at: Gpa, data: &[u8]) -> Result<(), MemoryError> {
        let mut done = 0;
        self.store(at, data.len() as u64, |memory, offset, len| {
            memory.write(offset, &data[done..done + len]);
            done += len;
        })
    }

    /// Whether the device may read, or with `write` write, all of `len` bytes from `at`.
    pub fn check(&self, at: Gpa, len: u64, write: bool) -> Result<(), MemoryError> {
        self.snapshot().visit(at, len, write, |_, _, _| {})
    }

    /// Reads a little-endian `u16` in one access that later reads do not overtake.
    pub fn read_u16(&self, at: Gpa) -> Result<u16, MemoryError> {
        self.load(at, 2, |memory, offset| memory.load_u16(offset).map(u16::from_le))
    }

    /// Reads a little-endian `u32` in one access that later reads do not overtake.
    pub fn read_u32(&self, at: Gpa) -> Result<u32, MemoryError> {
        self.load(at, 4, |memory, offset| memory.load_u32(offset).map(u32::from_le))
    }

    /// Reads a little-endian `u64` in one access that later reads do not overtake.
    pub fn read_u64(&self, at: Gpa) -> Result<u64, MemoryError> {
        self.load(at, 8, |memory, offset| memory.load_u64(offset).map(u64::from_le))
    }

    /// Writes a little-endian `u16` in one access that no earlier write is seen after.
    pub fn write_u16_release(&self, at: Gpa, value: u16) -> Result<(), MemoryError> {
        aligned(at, 2)?;
        self.store(at, 2, |memory, offset, _| memory.store_u16(offset, value.to_le()))
    }

    fn load<T: Default>(
        &self,
        at: Gpa,
        size: u64,
        read: impl Fn(&Mapping, usize) -> Option<T>,
    ) -> Result<T, MemoryError> {
        aligned(at, size)?;
        let mut value = None;
        // Mappings are whole pages, so an aligned value lies in one.
        self.snapshot().visit(at, size, false, |memory, offset, _| value = read(memory, offset))?;
        value.ok_or(MemoryError::Misaligned { at, size })
    }

    /// The one way by which the host changes guest memory.
    fn store(
        &self,
        at: Gpa,
        len: u64,
        each: impl FnMut(&Mapping, usize, usize),
    ) -> Result<(), MemoryError> {
        let table = self.snapshot();
        table.visit(at, len, true, |_, _, _| {})?;
        table.visit(at, len, true, each)
    }

    /// A snapshot; to be dropped at the end of one bounded access, because `publish` waits for it.
    fn snapshot(&self) -> Guard<Arc<Table>> {
        self.table.load()
    }

    /// Replaces the table and returns once nobody uses the old one.
    fn publish(&self, table: Table) {
        let old = self.table.swap(Arc::new(table));
        // `swap` turned every outstanding snapshot into a counted reference.
        while Arc::strong_count(&old) > 1 {
            std::thread::yield_now();
        }
        // The count is read without ordering: order the readers' last accesses before what follows.
        fence(Ordering::Acquire);
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.edit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn aligned(at: Gpa, size: u64) -> Result<(), MemoryError> {
    if at.0.is_multiple_of(size) { Ok(()) } else { Err(MemoryError::Misaligned { at, size }) }
}

/// What is known of a descriptor that passed.
struct Checked {
    id: (u64, u64),
    /// Bytes of the file.
    len: u64,
    /// Where `map`'s part of it ends.
    need: u64,
}

/// That `fd` holds `map`'s part and always will.
fn check_sealed(fd: BorrowedFd<'_>, map: &DmaMap) -> Result<Checked, MemoryError> {
    let start = Gpa(map.iova);
    let seals = rustix::fs::fcntl_get_seals(fd).map_err(|_| MemoryError::NotSealed { start })?;
    if !seals.contains(SealFlags::SHRINK) {
        return Err(MemoryError::NotSealed { start });
    }
    let stat =
        rustix::fs::fstat(fd).map_err(|errno| MemoryError::System { call: "fstat", errno })?;
    // A hole punched into huge pages gives up their reservation: touching it may kill us.
    let system =
        rustix::fs::fstatfs(fd).map_err(|errno| MemoryError::System { call: "fstatfs", errno })?;
    if system.f_type == HUGETLBFS_MAGIC {
        return Err(MemoryError::HugePages { start });
    }
    let have = u64::try_from(stat.st_size).unwrap_or(0);
    let need = map.fd_offset.saturating_add(map.size);
    if need > have {
        return Err(MemoryError::TooShort { start, need, have });
    }
    Ok(Checked { id: (stat.st_dev, stat.st_ino), len: have, need })
}

/// A memfd of `size` bytes that can neither shrink nor grow, with `more` seals that a caller wants before
/// anybody else sees it.
pub(crate) fn sealed_memfd(name: &str, size: u64, more: SealFlags) -> Result<OwnedFd, MemoryError> {
    let system = |call| move |errno| MemoryError::System { call, errno };
    let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .map_err(system("memfd_create"))?;
    rustix::fs::ftruncate(&fd, size).map_err(system("ftruncate"))?;
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | more)
        .map_err(system("fcntl(F_ADD_SEALS)"))?;
    Ok(fd)
}
