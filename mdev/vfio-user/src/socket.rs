//! Whole messages over a Unix stream socket, with their file descriptors.
//!
//! Nothing here waits without end: a server's waits end when its stop fd is readable or its socket is shut
//! down, a client's at its deadline. Sizes are bounded before a buffer grows, and descriptors beyond the bound are closed.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::wire::{MAX_FDS, MAX_MESSAGE};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, send, sendmsg,
};

/// Why a message did not pass. After any of these the stream's position is unknown, so that it must end.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SocketError {
    /// The peer closed the connection between two messages.
    #[error("the peer closed the connection")]
    Closed,
    /// The peer closed the connection inside a message.
    #[error("the peer closed the connection inside a message: {0} more bytes were due")]
    Cut(usize),
    /// The stop fd became readable.
    #[error("stopped")]
    Stopped,
    /// The deadline passed.
    #[error("the peer did not answer in time")]
    Timeout,
    /// Bytes follow the one message that was due.
    #[error("{0} bytes came after the one message that was due")]
    Surplus(usize),
    /// A header claims a size that no message has.
    #[error("a message claims {0} bytes; messages have 16 to {MAX_MESSAGE}")]
    Size(u32),
    /// The socket failed.
    #[error("the socket failed: {0}")]
    Io(Errno),
}

/// What ends a wait early.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wait<'a> {
    /// Readable: give up.
    pub(crate) stop: Option<BorrowedFd<'a>>,
    /// Later than this: give up.
    pub(crate) deadline: Option<Instant>,
    /// A receiving call may wait in the kernel, which saves a poll: who stops also shuts the socket down, and
    /// what has a deadline has set the socket's timeout.
    pub(crate) in_kernel: bool,
}

impl Wait<'_> {
    /// That there is time left: a peer that sends byte by byte keeps every single wait short.
    pub(crate) fn check(&self) -> Result<(), SocketError> {
        match self.deadline {
            Some(deadline) if deadline <= Instant::now() => Err(SocketError::Timeout),
            _ => Ok(()),
        }
    }

    /// Waits until `fd` has one of `events`, or has failed, which the next call on it will tell.
    pub(crate) fn until(&self, fd: BorrowedFd<'_>, events: PollFlags) -> Result<(), SocketError> {
        loop {
            let timeout = match self.deadline {
                None => None,
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    // A deadline beyond what a timespec holds is none.
                    Timespec::try_from(left).ok()
                }
            };
            let stop = self.stop.unwrap_or(fd);
            let mut fds = [
                PollFd::from_borrowed_fd(fd, events),
                PollFd::from_borrowed_fd(stop, PollFlags::IN),
            ];
            let watched = if self.stop.is_some() { 2 } else { 1 };
            match poll(&mut fds[..watched], timeout.as_ref()) {
                Ok(0) => return Err(SocketError::Timeout),
                Ok(_) if watched == 2 && !fds[1].revents().is_empty() => {
                    return Err(SocketError::Stopped);
                }
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(e) => return Err(SocketError::Io(e)),
            }
        }
    }
}

/// The descriptors of one message, at most [`MAX_FDS`].
#[derive(Debug, Default)]
pub(crate) struct Fds {
    /// In the order in which they were sent.
    pub(crate) list: Vec<OwnedFd>,
    /// There were more; they are closed.
    pub(crate) surplus: bool,
}

impl Fds {
    /// Closes all.
    pub(crate) fn clear(&mut self) {
        self.list.clear();
        self.surplus = false;
    }

    /// Takes those of `other`, which has none then.
    pub(crate) fn append(&mut self, other: &mut Self) {
        self.surplus |= std::mem::take(&mut other.surplus);
        other.list.drain(..).for_each(|fd| self.push(fd));
    }

    fn push(&mut self, fd: OwnedFd) {
        if self.list.len() < MAX_FDS {
            self.list.push(fd);
        } else {
            self.surplus = true;
        }
    }
}

/// A connected socket.
#[derive(Debug)]
pub(crate) struct Socket(Arc<UnixStream>);

impl Socket {
    /// Takes over a connected stream, blocking or not.
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self(Arc::new(stream))
    }

    /// The stream itself, for who may have to shut it down.
    pub(crate) fn stream(&self) -> &Arc<UnixStream> {
        &self.0
    }

    /// Bounds how long the kernel lets a receiving call wait; whether it does.
    pub(crate) fn set_timeout(&self, timeout: Duration) -> bool {
        // The kernel takes 0 for no bound.
        let limit = timeout.max(Duration::from_millis(1));
        let kind = rustix::net::sockopt::Timeout::Recv;
        rustix::net::sockopt::set_socket_timeout(&self.0, kind, Some(limit)).is_ok()
    }

    /// Waits until something can be received, or the connection has ended.
    pub(crate) fn wait_for_input(&self, wait: Wait<'_>) -> Result<(), SocketError> {
        wait.until(self.0.as_fd(), PollFlags::IN)
    }

    /// Fills `buffer` with the rest of a message.
    pub(crate) fn receive_exact(
        &self,
        buffer: &mut [u8],
        fds: &mut Fds,
        wait: Wait<'_>,
    ) -> Result<(), SocketError> {
        let mut done = 0;
        while done < buffer.len() {
            wait.check()?;
            let got = self.receive(&mut [IoSliceMut::new(&mut buffer[done..])], fds, wait)?;
            if got == 0 {
                return Err(SocketError::Cut(buffer.len() - done));
            }
            done += got;
        }
        Ok(())
    }

    /// Receives what is there, once something is; 0 bytes: the peer has closed.
    pub(crate) fn receive(
        &self,
        iov: &mut [IoSliceMut<'_>],
        fds: &mut Fds,
        wait: Wait<'_>,
    ) -> Result<usize, SocketError> {
        let mut flags = RecvFlags::CMSG_CLOEXEC;
        flags.set(RecvFlags::DONTWAIT, !wait.in_kernel);
        loop {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let received = match recvmsg(&self.0, iov, &mut control, flags) {
                Ok(received) => received,
                // Nothing is there, or came within the socket's timeout.
                Err(Errno::AGAIN) => {
                    wait.until(self.0.as_fd(), PollFlags::IN)?;
                    continue;
                }
                Err(Errno::INTR) => continue,
                Err(Errno::CONNRESET) => return Err(SocketError::Closed),
                Err(e) => return Err(SocketError::Io(e)),
            };
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    rights.for_each(|fd| fds.push(fd));
                }
            }
            // The kernel closed what did not fit, or what this process had no room for.
            fds.surplus |= received.flags.contains(ReturnFlags::CTRUNC);
            return Ok(received.bytes);
        }
    }

    /// Sends one whole message; the descriptors, at most [`MAX_FDS`], travel with its first byte.
    pub(crate) fn send(
        &self,
        message: &[u8],
        fds: &[BorrowedFd<'_>],
        wait: Wait<'_>,
    ) -> Result<(), SocketError> {
        let mut done = 0;
        while done < message.len() {
            let rest = &message[done..];
            // Without descriptors there is a shorter way into the kernel.
            let sent = if done == 0 && !fds.is_empty() {
                self.send_with(rest, fds)
            } else {
                send(&self.0, rest, SEND)
            };
            match sent {
                Ok(sent) => done += sent,
                Err(Errno::AGAIN) => wait.until(self.0.as_fd(), PollFlags::OUT)?,
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(SocketError::Closed),
                Err(e) => return Err(SocketError::Io(e)),
            }
        }
        Ok(())
    }

    fn send_with(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<usize, Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(Errno::TOOMANYREFS);
        }
        sendmsg(&self.0, &[IoSlice::new(bytes)], &mut control, SEND)
    }
}

/// A peer that does not read ends no thread and no process.
const SEND: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);

#[cfg(test)]
mod tests;
