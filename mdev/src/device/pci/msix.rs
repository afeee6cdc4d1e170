//! Stage 8, posted interrupt: from a vector to the eventfd that the VMM wired to it.
//!
//! The client owns the MSI-X table and its masks; the server owns vector → eventfd. What a client writes
//! to the table through us is kept so that it reads back, and is otherwise without effect.

use arc_swap::ArcSwapOption;
use beamline_abi::pci::msix;
use beamline_vfio_user::{DeviceError, IrqAction};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Vectors of a function at most.
const MAX_VECTORS: usize = 4;
/// Retired eventfds that may wait for their last user.
const MAX_RETIRED: usize = 8;

/// Why an interrupt was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IrqError {
    /// The function has no such vector.
    #[error("vector {vector} does not exist: there are {count}")]
    NoSuchVector {
        /// The vector.
        vector: u16,
        /// How many there are.
        count: u16,
    },
    /// The write failed, though the descriptor was an eventfd.
    #[error("the eventfd of vector {vector} did not take a signal: {errno}")]
    Write {
        /// The vector.
        vector: u16,
        /// The system's error.
        errno: Errno,
    },
}

/// The eventfds of a function's vectors. Any thread may signal while another rewires.
#[derive(Debug)]
pub struct IrqTable {
    /// Beside `enabled`, in the same cache line: many tables are looked at in a row.
    slots: [ArcSwapOption<OwnedFd>; MAX_VECTORS],
    count: u16,
    /// Eventfds that are not wired any more and that another thread may still be signalling. Only the thread
    /// that serves the peer looks here.
    retired: Mutex<Vec<Arc<OwnedFd>>>,
    /// Follows the command register's bus-master bit: without it a function sends no MSIs.
    enabled: AtomicBool,
}

impl IrqTable {
    /// `count` vectors, at most 4, none wired, interrupts off.
    pub fn new(count: u16) -> Self {
        debug_assert!(usize::from(count) <= MAX_VECTORS, "no function has more");
        Self {
            slots: [const { ArcSwapOption::const_empty() }; MAX_VECTORS],
            count: count.min(MAX_VECTORS as u16),
            retired: Mutex::default(),
            enabled: AtomicBool::new(false),
        }
    }

    /// How many vectors there are.
    pub fn vectors(&self) -> u16 {
        self.count
    }

    /// Signals a vector. `false`: interrupts are off or nobody listens to this vector.
    ///
    /// The descriptor is the peer's. It was made non-blocking when it was wired, but the peer can undo
    /// that and fill the counter, so only a thread that serves this slice alone may call this.
    pub fn signal(&self, vector: u16) -> Result<bool, IrqError> {
        let slot = self
            .slots()
            .get(usize::from(vector))
            .ok_or(IrqError::NoSuchVector { vector, count: self.vectors() })?;
        if !self.enabled.load(Ordering::Acquire) {
            return Ok(false);
        }
        let fd = slot.load();
        let Some(fd) = fd.as_ref() else { return Ok(false) };
        match rustix::io::write(&**fd, &1u64.to_ne_bytes()) {
            // A full counter is a pending interrupt.
            Ok(_) | Err(Errno::AGAIN) => Ok(true),
            Err(errno) => Err(IrqError::Write { vector, errno }),
        }
    }

    /// The eventfd of a vector, where interrupts are on and somebody listens to it. Dropping it closes
    /// nothing: a peer can make that last, and the thread that serves it does it.
    pub fn wired(&self, vector: u16) -> Option<Arc<OwnedFd>> {
        let slot = self.slots().get(usize::from(vector))?;
        if self.enabled.load(Ordering::Acquire) { slot.load_full() } else { None }
    }

    fn slots(&self) -> &[ArcSwapOption<OwnedFd>] {
        &self.slots[..usize::from(self.count)]
    }

    /// Whether interrupts are on; who asks soon afterwards for a [`wired`](Self::wired) eventfd waits less.
    pub(crate) fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Acquire)
    }

    /// Turns all interrupts on or off.
    pub(crate) fn set_enabled(&self, on: bool) {
        self.enabled.store(on, Ordering::Release);
    }

    /// Forgets every eventfd. A thread that a full counter holds up in `signal` goes on.
    pub(crate) fn clear(&self) {
        for slot in self.slots() {
            if let Some(fd) = slot.swap(None) {
                empty(&fd);
                self.retire(fd);
            }
        }
    }

    /// Closes an eventfd once nobody is signalling it: now, or when the next one is retired.
    fn retire(&self, fd: Arc<OwnedFd>) {
        // A panic while it was held has left a list that is as good as any.
        let mut retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        retired.push(fd);
        loop {
            // It is in no slot any more, so nobody can come to hold it who does not yet.
            retired.retain(|fd| Arc::strong_count(fd) > 1);
            if retired.len() <= MAX_RETIRED {
                return;
            }
            // A signal takes microseconds; the peer that rewires so fast waits.
            std::thread::yield_now();
        }
    }

    /// Carries out a `SET_IRQS`.
    pub(crate) fn set(&self, start: u32, count: u32, action: IrqAction) -> Result<(), DeviceError> {
        let bad = || {
            DeviceError::Invalid(format!(
                "{count} MSI-X vectors from {start}: there are {}",
                self.count
            ))
        };
        let end = start.checked_add(count).ok_or_else(bad)?;
        let slots = self.slots().get(start as usize..end as usize).ok_or_else(bad)?;
        match action {
            IrqAction::SetEventFds(fds) => {
                if fds.len() != slots.len() {
                    return Err(DeviceError::Invalid(format!(
                        "{} eventfds for {count} vectors: each vector takes one",
                        fds.len()
                    )));
                }
                fds.iter().try_for_each(check_eventfd)?;
                for (slot, fd) in slots.iter().zip(fds) {
                    set_nonblocking(&fd)?;
                    if let Some(old) = slot.swap(Some(Arc::new(fd))) {
                        self.retire(old);
                    }
                }
            }
            IrqAction::Clear if count == 0 => self.clear(),
            IrqAction::Clear => {
                for old in slots.iter().filter_map(|slot| slot.swap(None)) {
                    self.retire(old);
                }
            }
            IrqAction::Trigger => {
                for vector in start..end {
                    self.signal(vector as u16).map_err(|e| DeviceError::Invalid(e.to_string()))?;
                }
            }
        }
        Ok(())
    }
}

/// Takes the count of an eventfd, if there is one.
fn empty(fd: &OwnedFd) {
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    if matches!(poll(&mut fds, Some(&at_once)), Ok(1)) {
        // Readable, so this does not wait unless the peer takes the count meanwhile; it is leaving.
        let _ = rustix::io::read(fd, &mut [0; 8]);
    }
}

/// Anything else may do what its peer likes when it is written or closed.
fn check_eventfd(fd: &OwnedFd) -> Result<(), DeviceError> {
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let kind = rustix::fs::readlink(link, Vec::new()).map_err(|errno| {
        DeviceError::Invalid(format!("an eventfd cannot be looked at: {errno}"))
    })?;
    if kind.as_bytes() == b"anon_inode:[eventfd]" {
        Ok(())
    } else {
        let kind = kind.to_string_lossy();
        Err(DeviceError::Invalid(format!(
            "an interrupt's descriptor is `{kind}`: it has to be an eventfd"
        )))
    }
}

fn set_nonblocking(fd: &OwnedFd) -> Result<(), DeviceError> {
    rustix::fs::fcntl_getfl(fd)
        .and_then(|flags| rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK))
        .map_err(|errno| DeviceError::Invalid(format!("an eventfd's flags cannot be set: {errno}")))
}

/// The MSI-X table and pending bits as memory.
#[derive(Debug)]
pub(crate) struct MsixPages {
    table: Vec<u8>,
}

impl MsixPages {
    pub(crate) fn new(vectors: u16) -> Self {
        let mut pages = Self { table: vec![0; usize::from(vectors) * msix::ENTRY_SIZE as usize] };
        pages.reset();
        pages
    }

    /// Every vector masked.
    pub(crate) fn reset(&mut self) {
        self.table.fill(0);
        for entry in self.table.chunks_exact_mut(msix::ENTRY_SIZE as usize) {
            entry[12] = msix::ENTRY_MASKED as u8;
        }
    }

    /// Reads the table's page from `offset` in it; the pending bits' page is all zero.
    pub(crate) fn read_table(&self, offset: u64, out: &mut [u8]) {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.table.len());
        for (to, from) in out.iter_mut().zip(&self.table[start..]) {
            *to = *from;
        }
    }

    /// Writes the table's page; what lies past the entries is dropped.
    pub(crate) fn write_table(&mut self, offset: u64, data: &[u8]) {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.table.len());
        for (to, from) in self.table[start..].iter_mut().zip(data) {
            *to = *from;
        }
    }
}
