//! The driver's transport over functions that other processes serve.
//!
//! Functions have the slots 0 and up, in the order in which they were given. A server that goes away ends the guest, as
//! its devices would not come back.

use crate::function::{Function, Window};
use beamline_abi::pacer::vector;
use beamline_guest_driver::guest::Machine;
use beamline_guest_driver::transport::{Arena, Gpa, Slot, Transport, Wake, Width};
use beamline_guest_linux::mapping::{Mapping, Shared};
use beamline_guest_linux::port::tsc;
use beamline_guest_linux::vectors::Vectors;
use beamline_vfio_user::DmaFlags;
use beamline_vfio_user::client::{Client, ClientError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{Ordering, fence};

/// Where functions see the shared memory.
const SHARED: Gpa = Gpa(0x1000_0000);
/// Bytes of it: as much as the freestanding image has. Only what is used takes memory.
const SHARED_SIZE: usize = 8 << 20;
/// What a poll says of a connection whose other end has closed.
const ENDED: PollFlags = PollFlags::RDHUP.union(PollFlags::HUP).union(PollFlags::ERR);

/// Why functions cannot be driven, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// A function has a BAR that cannot be placed.
    #[error(
        "BAR{bar} has {size:#x} bytes: there is room for powers of two from 4 KiB to 256 MiB, 1 GiB in all"
    )]
    Bar {
        /// Which.
        bar: u8,
        /// Its bytes.
        size: u64,
    },
    /// A server went away.
    #[error("the server of a function has ended, and its devices with it")]
    Gone,
    /// A request failed.
    #[error("a request to the server of a function failed")]
    Client(#[from] ClientError),
    /// The operating system refused.
    #[error("cannot {what}: {errno}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Its answer.
        errno: Errno,
    },
}

impl PortError {
    pub(crate) fn system(what: &'static str) -> impl Fn(Errno) -> Self {
        move |errno| Self::System { what, errno }
    }
}

/// Functions, shared memory and interrupts of this process.
#[derive(Debug)]
pub struct Port {
    functions: Vec<Function>,
    shared: Shared,
    /// Becomes readable when the guest is to end.
    stop: OwnedFd,
    failure: Option<PortError>,
}

impl Port {
    /// Takes over the functions behind `clients`, until `stop` becomes readable.
    ///
    /// # Errors
    /// What a server or the operating system refuses.
    pub fn new(clients: Vec<Client>, stop: OwnedFd) -> Result<Self, PortError> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let make = || -> Result<_, Errno> {
            let memory = memfd_create("guest", flags)?;
            ftruncate(&memory, SHARED_SIZE as u64)?;
            // A server maps only what cannot be taken from under it.
            fcntl_add_seals(&memory, SealFlags::SHRINK | SealFlags::GROW)?;
            Ok((Mapping::of(&memory, 0, SHARED_SIZE)?, memory))
        };
        let (mapping, memory) = make().map_err(PortError::system("make the guest's memory"))?;
        let mut window = Window::default();
        let mut functions = Vec::new();
        for client in clients {
            let mut function = Function::new(client, &mut window)?;
            let flags = DmaFlags { read: true, write: true };
            let client = function.client();
            client.dma_map(SHARED.0, SHARED_SIZE as u64, flags, memory.as_fd(), 0)?;
            functions.push(function);
        }
        let shared = Shared::new(mapping, SHARED);
        Ok(Self { functions, shared, stop, failure: None })
    }

    /// The shared memory, to be handed out once.
    pub const fn arena(&self) -> Arena {
        self.shared.arena()
    }

    /// What went wrong where the driver could not be told.
    pub const fn take_failure(&mut self) -> Option<PortError> {
        self.failure.take()
    }

    /// Keeps the first failure: those behind it follow from it. What a server refuses is the driver's mistake, and
    /// as on a bus nobody is told.
    fn note<T>(&mut self, result: Result<T, PortError>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(PortError::Client(ClientError::Refused { .. })) => None,
            Err(error) => {
                self.failure.get_or_insert(match error {
                    PortError::Client(ClientError::Disconnected(_)) => PortError::Gone,
                    other => other,
                });
                None
            }
        }
    }

    /// Waits for something to happen, or for `limit`; whether the guest goes on.
    fn poll(&self, limit: Option<&Timespec>) -> Result<bool, PortError> {
        let mut fds = vec![PollFd::new(&self.stop, PollFlags::IN)];
        let sockets = self.functions.iter().map(Function::socket);
        fds.extend(sockets.map(|socket| PollFd::from_borrowed_fd(socket, PollFlags::RDHUP)));
        let vectors = self.functions.iter().filter_map(|f| f.vectors.as_ref());
        let events = vectors.flat_map(Vectors::events);
        fds.extend(events.map(|event| PollFd::new(event, PollFlags::IN)));
        match poll(&mut fds, limit) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(true),
            Err(errno) => return Err(PortError::system("wait for an interrupt")(errno)),
        }
        if !fds[0].revents().is_empty() {
            return Ok(false);
        }
        let mut sockets = fds[1..].iter().take(self.functions.len());
        if sockets.any(|socket| socket.revents().intersects(ENDED)) {
            return Err(PortError::Gone);
        }
        Ok(true)
    }
}

impl Transport for Port {
    fn config_read(&mut self, slot: Slot, offset: u16, width: Width) -> u32 {
        let ones = u32::MAX >> (32 - 8 * width.bytes().min(4));
        let Some(function) = self.functions.get_mut(usize::from(slot.0)) else { return ones };
        let read = function.config_read(offset, width).map_err(Into::into);
        self.note(read).unwrap_or(ones) & ones
    }

    fn config_write(&mut self, slot: Slot, offset: u16, width: Width, value: u32) {
        let Some(function) = self.functions.get_mut(usize::from(slot.0)) else { return };
        let written = function.config_write(offset, width, value);
        self.note(written);
    }

    fn reaches(&self, gpa: Gpa, len: u64) -> bool {
        self.functions.iter().any(|f| f.reaches(gpa, len))
    }

    fn mmio_read(&mut self, gpa: Gpa, width: Width) -> u64 {
        match self.functions.iter_mut().find_map(|f| f.read(gpa, width)) {
            Some(read) => self.note(read.map_err(Into::into)).unwrap_or(u64::MAX),
            None => u64::MAX,
        }
    }

    fn mmio_write(&mut self, gpa: Gpa, width: Width, value: u64) {
        if let Some(written) = self.functions.iter_mut().find_map(|f| f.write(gpa, width, value)) {
            self.note(written);
        }
    }

    fn read(&self, gpa: Gpa, bytes: &mut [u8]) {
        self.shared.read(gpa, bytes);
    }

    fn write(&mut self, gpa: Gpa, bytes: &[u8]) {
        self.shared.write(gpa, bytes);
    }

    fn load_u16(&self, gpa: Gpa) -> u16 {
        self.shared.load_u16(gpa)
    }

    fn store_u16(&mut self, gpa: Gpa, value: u16) {
        self.shared.store_u16(gpa, value);
    }

    fn fence(&self) {
        fence(Ordering::SeqCst);
    }

    fn tsc(&self) -> u64 {
        tsc()
    }

    fn wait(&mut self) -> Wake {
        while self.failure.is_none() {
            // First, also where interrupts never cease.
            let waited = self.poll(None);
            match self.note(waited) {
                Some(true) => {}
                Some(false) | None => break,
            }
            let vectors = self.functions.iter_mut().filter_map(|f| f.vectors.as_mut());
            // All of them, not only up to the first that has something.
            if vectors.fold(false, |any, vectors| vectors.collect() | any) {
                return Wake::Interrupt;
            }
        }
        Wake::Stop
    }
}

impl Machine for Port {
    fn host_requests(&self) -> u64 {
        let pacers = self.functions.iter().filter(|f| f.is_pacer);
        let vectors = pacers.filter_map(|f| f.vectors.as_ref());
        let counts = vectors.flat_map(|v| [v.count(vector::CONTRACT), v.count(vector::QUIESCE)]);
        // Only that it has changed matters, and a server may count as it likes.
        counts.fold(0, u64::wrapping_add)
    }

    fn is_over(&mut self) -> bool {
        let looked = self.poll(Some(&Timespec::default()));
        self.note(looked) != Some(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pipe::pipe;

    #[test]
    fn a_signal_ends_a_wait_and_a_guest_that_never_waits() {
        let (stop, signal) = pipe().unwrap();
        let mut port = Port::new(Vec::new(), stop).unwrap();
        assert!(!port.is_over());
        rustix::io::write(&signal, &[0]).unwrap();
        assert!(port.is_over());
        assert_eq!(port.wait(), Wake::Stop);
        assert!(port.take_failure().is_none());
    }

    #[test]
    fn nothing_answers_where_no_function_is() {
        let (stop, _signal) = pipe().unwrap();
        let mut port = Port::new(Vec::new(), stop).unwrap();
        assert_eq!(port.config_read(Slot(3), 0, Width::Word), 0xffff);
        assert_eq!(port.mmio_read(Gpa(0xc000_0000), Width::Dword), u64::MAX);
        port.mmio_write(Gpa(0xc000_0000), Width::Dword, 1);
        port.write(SHARED, &[1, 2]);
        assert_eq!(port.load_u16(SHARED), 0x0201);
        assert_eq!(port.load_u16(SHARED.at(SHARED_SIZE as u64)), u16::MAX);
    }
}
