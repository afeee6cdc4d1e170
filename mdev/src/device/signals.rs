//! Stage 8, posted interrupt: signals eventfds of peers from a thread that serves all slices.
//!
//! A `write` to an eventfd waits where its counter is full and its owner has made it blocking, and both are
//! the peer's to choose at any moment. The kernel's own `eventfd_signal` never sleeps. It is reached through
//! asynchronous I/O: an operation with `IOCB_FLAG_RESFD` signals an eventfd when it is over, and a read of
//! nothing from an empty memory file is over before `io_submit` returns. Measured on a virtual machine that
//! costs about a microsecond, and less for several together; waking a thread that may be held up, 30.
//!
//! It walks the list of those who wait for the eventfd, though, and that list is the peer's. Whoever sends
//! has to look how long it took: see [`beat`](crate::mediate::beat).
#![allow(unsafe_code)] // io_setup, io_submit, io_getevents and io_destroy have no safe wrapper.

use rustix::fs::{MemfdFlags, OFlags};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;

/// Eventfds that are signalled with one call at most: few, so that the first does not wait for the last.
pub const BATCH: usize = 4;
/// Operations that the kernel remembers until their ends are taken. It rounds up.
const EVENTS: usize = 32;
const IOCB_CMD_PREAD: u16 = 0;
const IOCB_FLAG_RESFD: u32 = 1 << 0;

/// `struct io_event` of `linux/aio_abi.h`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct IoEvent {
    data: u64,
    obj: u64,
    res: i64,
    res2: i64,
}

/// A way to signal eventfds, several together.
pub struct Signals {
    context: libc::c_ulong,
    nothing: OwnedFd,
    /// Operations whose ends have not been taken.
    unread: usize,
}

impl Signals {
    /// Fails where the system has no asynchronous I/O left (`fs.aio-max-nr`) or was built without.
    pub fn new() -> io::Result<Self> {
        let nothing = rustix::fs::memfd_create("beamline-nothing", MemfdFlags::CLOEXEC)?;
        // Reads need not be noted; they are where that is refused.
        let _ = rustix::fs::fcntl_setfl(&nothing, OFlags::RDWR | OFlags::NOATIME);
        let mut context: libc::c_ulong = 0;
        // SAFETY: `context` is a valid place for the result and 0, as io_setup(2) asks.
        let result =
            unsafe { libc::syscall(libc::SYS_io_setup, EVENTS as libc::c_uint, &raw mut context) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { context, nothing, unread: 0 })
    }

    /// Signals `fds`, [`BATCH`] of them at most, in their order. `refused` is told the place of each that the kernel
    /// did not signal: one that is no eventfd.
    pub fn send<'a>(
        &mut self,
        fds: impl Iterator<Item = BorrowedFd<'a>>,
        mut refused: impl FnMut(usize, Errno),
    ) {
        let mut control = [(); BATCH].map(|()| operation(&self.nothing));
        let mut pointers = [ptr::null_mut::<libc::iocb>(); BATCH];
        let mut count = 0;
        for ((control, pointer), fd) in control.iter_mut().zip(&mut pointers).zip(fds) {
            control.aio_resfd = fd.as_raw_fd() as u32;
            *pointer = ptr::from_mut(control);
            count += 1;
        }
        let mut done = 0;
        while done < count {
            if self.unread + count > EVENTS {
                self.take_ends();
            }
            match self.submit(&mut pointers[done..count]) {
                Ok(taken) => done += taken,
                Err(Errno::INTR) => {}
                Err(errno) => {
                    refused(done, errno);
                    done += 1;
                }
            }
        }
    }

    /// At least one, or an error that is the first one's.
    fn submit(&mut self, operations: &mut [*mut libc::iocb]) -> Result<usize, Errno> {
        // SAFETY: each pointer is one to an iocb that lives in the caller's frame; the kernel copies it in the
        // call. The buffer is empty, so nothing is written. The descriptors are open: the caller of `send` lends them.
        let result = unsafe {
            libc::syscall(
                libc::SYS_io_submit,
                self.context,
                operations.len() as libc::c_long,
                operations.as_mut_ptr(),
            )
        };
        match usize::try_from(result) {
            Ok(0) => Err(Errno::AGAIN),
            Ok(taken) => {
                self.unread += taken;
                Ok(taken)
            }
            Err(_) => Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)),
        }
    }

    /// Makes room in the kernel for more operations. All are over, so this does not wait.
    fn take_ends(&mut self) {
        let mut events = [IoEvent::default(); EVENTS];
        // SAFETY: `events` has room for as many as are asked for; a null timeout with a minimum of 0 does not
        // wait.
        let taken = unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                self.context,
                0 as libc::c_long,
                EVENTS as libc::c_long,
                events.as_mut_ptr(),
                ptr::null_mut::<libc::timespec>(),
            )
        };
        self.unread -= usize::try_from(taken).unwrap_or(0).min(self.unread);
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // SAFETY: the context is this object's own and is not used any more.
        let _ = unsafe { libc::syscall(libc::SYS_io_destroy, self.context) };
    }
}

fn operation(nothing: &OwnedFd) -> libc::iocb {
    // SAFETY: all of `iocb` is integers, for which zero is a value.
    let mut operation: libc::iocb = unsafe { std::mem::zeroed() };
    operation.aio_lio_opcode = IOCB_CMD_PREAD;
    operation.aio_fildes = nothing.as_raw_fd() as u32;
    operation.aio_flags = IOCB_FLAG_RESFD;
    operation
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use std::os::fd::AsFd;
    use std::time::Duration;

    fn count(fd: &OwnedFd) -> u64 {
        let mut count = [0; 8];
        rustix::io::read(fd, &mut count).map_or(0, |_| u64::from_ne_bytes(count))
    }

    fn wire() -> OwnedFd {
        eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
    }

    #[test]
    fn each_is_signalled_once_however_many_there_are() {
        let mut signals = Signals::new().unwrap();
        let wires = [(); BATCH].map(|()| wire());
        for _ in 0..10 * EVENTS {
            signals.send(wires.iter().map(AsFd::as_fd), |at, errno| panic!("{at}: {errno}"));
            assert!(wires.iter().all(|fd| count(fd) == 1));
        }
    }

    #[test]
    fn what_is_no_eventfd_is_told_and_the_others_are_signalled() {
        let mut signals = Signals::new().unwrap();
        let file = rustix::fs::memfd_create("no eventfd", MemfdFlags::CLOEXEC).unwrap();
        let wires = [wire(), file, wire()];
        let mut refused = vec![];
        signals.send(wires.iter().map(AsFd::as_fd), |at, errno| refused.push((at, errno)));
        assert_eq!(refused, [(1, Errno::INVAL)]);
        assert_eq!((count(&wires[0]), count(&wires[2])), (1, 1));
    }

    /// The peer fills the counter and makes the eventfd blocking: a write would wait for ever.
    #[test]
    fn a_full_counter_holds_nobody_up() {
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let full = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
            rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).unwrap();
            let mut signals = Signals::new().unwrap();
            signals.send(std::iter::once(full.as_fd()), |at, errno| panic!("{at}: {errno}"));
            tell.send(()).unwrap();
        });
        told.recv_timeout(Duration::from_secs(20)).expect("the signal waits for the peer");
    }
}
