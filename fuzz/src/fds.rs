//! Descriptors of every kind that a peer may send, and a look at whether any was kept.

use rustix::event::EventfdFlags;
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Bytes of every memfd that is sent.
pub(crate) const MEMFD_SIZE: u64 = 0x4000;
/// The most descriptors of one message.
pub(crate) const MOST: usize = 24;

/// One descriptor of each kind.
pub(crate) struct Pool([OwnedFd; 8]);

impl Pool {
    pub(crate) fn new() -> Self {
        let (reader, writer) = rustix::pipe::pipe().expect("a pipe can be made");
        Self([
            eventfd(),
            memfd(SealFlags::SHRINK),
            memfd(SealFlags::empty()),
            memfd(SealFlags::SHRINK | SealFlags::FUTURE_WRITE),
            memfd(SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE),
            reader,
            writer,
            rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                .expect("/dev/null can be opened"),
        ])
    }

    /// Kind `kind`, whatever the number.
    pub(crate) fn get(&self, kind: u8) -> BorrowedFd<'_> {
        self.0[usize::from(kind) % self.0.len()].as_fd()
    }
}

pub(crate) fn eventfd() -> OwnedFd {
    rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
        .expect("an eventfd can be made")
}

/// Whether the eventfd was signalled since it was last asked.
pub(crate) fn was_signalled(fd: &OwnedFd) -> bool {
    rustix::io::read(fd, &mut [0; 8]).is_ok()
}

pub(crate) fn memfd(seals: SealFlags) -> OwnedFd {
    sized_memfd(MEMFD_SIZE, seals)
}

pub(crate) fn sized_memfd(size: u64, seals: SealFlags) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = rustix::fs::memfd_create("fuzz", flags).expect("a memfd can be made");
    rustix::fs::ftruncate(&fd, size).expect("a memfd has a size");
    rustix::fs::fcntl_add_seals(&fd, seals).expect("a new memfd can be sealed");
    fd
}

/// Sends `bytes` with descriptors of these kinds, without waiting; whether all of it went.
pub(crate) fn send(socket: impl AsFd, bytes: &[u8], pool: &Pool, kinds: &[u8]) -> bool {
    let fds: Vec<BorrowedFd<'_>> = kinds.iter().take(MOST).map(|kind| pool.get(*kind)).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return false;
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags) == Ok(bytes.len())
}

/// Looks whether descriptors are closed again: the lowest free number is the same at the end.
///
/// Only for targets that run alone in their process, as they do in the fuzzer and in the replay.
pub(crate) struct Open(i32);

impl Open {
    pub(crate) fn now() -> Self {
        Self(eventfd().as_raw_fd())
    }

    pub(crate) fn check(self) {
        assert_eq!(eventfd().as_raw_fd(), self.0, "descriptors were left open");
    }
}
