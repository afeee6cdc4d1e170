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

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use zerocopy::IntoBytes;

use crate::wire::{Header, MAX_FDS, MAX_MESSAGE, size};

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

/// Payloads up to this are received together with their header.
const LIKELY_BODY: usize = 512;

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

    /// Waits for a message, and receives its header. The size is checked; the rest is not. `fds` gets what
    /// came with it.
    pub(crate) fn receive_header(
        &self,
        fds: &mut Fds,
        wait: Wait<'_>,
    ) -> Result<Header, SocketError> {
        let mut header = Header::default();
        if !wait.in_kernel {
            // Polling first, also under load, is what lets a stop end a busy connection.
            wait.until(self.0.as_fd(), PollFlags::IN)?;
        }
        self.receive_exact(header.as_mut_bytes(), true, fds, wait)?;
        check_size(&header)
    }

    /// Receives the one message that is due, header and payload at once where they have come together.
    /// More than one is an error. `body`'s memory is reused.
    pub(crate) fn receive_only(
        &self,
        body: &mut Vec<u8>,
        fds: &mut Fds,
        wait: Wait<'_>,
    ) -> Result<Header, SocketError> {
        let mut header = Header::default();
        if !wait.in_kernel {
            wait.until(self.0.as_fd(), PollFlags::IN)?;
        }
        body.resize(LIKELY_BODY, 0);
        let mut iov = [IoSliceMut::new(header.as_mut_bytes()), IoSliceMut::new(body)];
        let got = self.receive(&mut iov, fds, wait)?;
        if got == 0 {
            return Err(SocketError::Closed);
        }
        let of_header = got.min(size_of::<Header>());
        self.receive_exact(&mut header.as_mut_bytes()[of_header..], false, fds, wait)?;
        let header = check_size(&header)?;
        let (of_body, due) = (got - of_header, header.size as usize - size_of::<Header>());
        if of_body > due {
            return Err(SocketError::Surplus(of_body - due));
        }
        body.resize(due, 0);
        self.receive_exact(&mut body[of_body..], false, fds, wait)?;
        Ok(header)
    }

    /// Receives what follows `header` into `body`, whose memory is reused.
    pub(crate) fn receive_body(
        &self,
        header: &Header,
        body: &mut Vec<u8>,
        fds: &mut Fds,
        wait: Wait<'_>,
    ) -> Result<(), SocketError> {
        // The header was checked when it was received; a second check costs nothing and needs no trust.
        let length = header.size.checked_sub(size::<Header>()).filter(|&n| n <= MAX_MESSAGE);
        let length = length.ok_or(SocketError::Size(header.size))?;
        body.resize(length as usize, 0);
        self.receive_exact(body, false, fds, wait)
    }

    fn receive_exact(
        &self,
        buffer: &mut [u8],
        starts_message: bool,
        fds: &mut Fds,
        wait: Wait<'_>,
    ) -> Result<(), SocketError> {
        let mut done = 0;
        while done < buffer.len() {
            let got = self.receive(&mut [IoSliceMut::new(&mut buffer[done..])], fds, wait)?;
            if got == 0 {
                let left = buffer.len() - done;
                let clean = starts_message && done == 0;
                return Err(if clean { SocketError::Closed } else { SocketError::Cut(left) });
            }
            done += got;
        }
        Ok(())
    }

    /// Receives what is there, once something is; 0 bytes: the peer has closed.
    fn receive(
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
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let first = done == 0 && !fds.is_empty();
            if first && !control.push(SendAncillaryMessage::ScmRights(fds)) {
                return Err(SocketError::Io(Errno::TOOMANYREFS));
            }
            let iov = [IoSlice::new(&message[done..])];
            match sendmsg(&self.0, &iov, &mut control, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(sent) => done += sent,
                Err(Errno::AGAIN) => wait.until(self.0.as_fd(), PollFlags::OUT)?,
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(SocketError::Closed),
                Err(e) => return Err(SocketError::Io(e)),
            }
        }
        Ok(())
    }
}

/// That a message can be as long as its header says.
fn check_size(header: &Header) -> Result<Header, SocketError> {
    if header.size < size::<Header>() || header.size > MAX_MESSAGE {
        return Err(SocketError::Size(header.size));
    }
    Ok(*header)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn pair() -> (Socket, Socket) {
        let (a, b) = UnixStream::pair().unwrap();
        (Socket::new(a), Socket::new(b))
    }

    fn event() -> OwnedFd {
        rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap()
    }

    #[test]
    fn a_message_in_two_parts_arrives_whole_with_the_fds_of_both() {
        let (a, b) = pair();
        let header = Header { id: 7, command: 1, size: 20, flags: 0, error: 0 };
        let bytes = header.as_bytes();
        let (first, second) = (event(), event());
        a.send(&bytes[..5], &[first.as_fd()], Wait::default()).unwrap();
        let rest = [&bytes[5..], b"body"].concat();
        a.send(&rest, &[second.as_fd()], Wait::default()).unwrap();

        let (mut fds, mut body) = (Fds::default(), Vec::new());
        let got = b.receive_header(&mut fds, Wait::default()).unwrap();
        b.receive_body(&got, &mut body, &mut fds, Wait::default()).unwrap();
        assert_eq!((got, body.as_slice()), (header, &b"body"[..]));
        assert_eq!((fds.list.len(), fds.surplus), (2, false));
        for fd in &fds.list {
            let flags = rustix::io::fcntl_getfd(fd).unwrap();
            assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        }
    }

    #[test]
    fn surplus_fds_are_closed_and_told() {
        let (a, b) = pair();
        let header = Header { size: 16, ..Header::default() };
        let event = event();
        let many = [event.as_fd(); MAX_FDS];
        a.send(&header.as_bytes()[..8], &many, Wait::default()).unwrap();
        a.send(&header.as_bytes()[8..], &many, Wait::default()).unwrap();
        let mut fds = Fds::default();
        b.receive_header(&mut fds, Wait::default()).unwrap();
        assert_eq!((fds.list.len(), fds.surplus), (MAX_FDS, true));
    }

    #[test]
    fn a_close_between_messages_differs_from_one_inside() {
        let (a, b) = pair();
        drop(a);
        let mut fds = Fds::default();
        assert_eq!(b.receive_header(&mut fds, Wait::default()), Err(SocketError::Closed));

        let (mut a, b) = UnixStream::pair().unwrap();
        a.write_all(&[1; 10]).unwrap();
        drop(a);
        let got = Socket::new(b).receive_header(&mut fds, Wait::default());
        assert_eq!(got, Err(SocketError::Cut(6)));
    }

    #[test]
    fn sizes_are_bounded_before_anything_is_allocated() {
        for bad in [0, 15, MAX_MESSAGE + 1, u32::MAX] {
            let (a, b) = pair();
            let header = Header { size: bad, ..Header::default() };
            a.send(header.as_bytes(), &[], Wait::default()).unwrap();
            let got = b.receive_header(&mut Fds::default(), Wait::default());
            assert_eq!(got, Err(SocketError::Size(bad)));
        }
    }

    #[test]
    fn a_stop_and_a_deadline_end_waits_for_input_and_for_room() {
        let (_a, b) = pair();
        let stop = event();
        rustix::io::write(&stop, &1u64.to_ne_bytes()).unwrap();
        let stopped = Wait { stop: Some(stop.as_fd()), ..Wait::default() };
        let soon = Some(Instant::now() + Duration::from_millis(1));
        let late = Wait { deadline: soon, ..Wait::default() };
        let mut fds = Fds::default();
        assert_eq!(b.receive_header(&mut fds, stopped), Err(SocketError::Stopped));
        assert_eq!(b.receive_header(&mut fds, late), Err(SocketError::Timeout));
        // More than any socket buffer holds, and nobody reads.
        let flood = vec![0; 64 << 20];
        assert_eq!(b.send(&flood, &[], stopped), Err(SocketError::Stopped));
        assert_eq!(b.send(&flood, &[], late), Err(SocketError::Timeout));
    }

    #[test]
    fn a_large_message_passes_through_a_small_socket_buffer() {
        let (a, b) = pair();
        let message: Vec<u8> = {
            let header = Header { size: MAX_MESSAGE, ..Header::default() };
            let mut bytes = header.as_bytes().to_vec();
            bytes.resize(MAX_MESSAGE as usize, 0x5a);
            bytes
        };
        std::thread::scope(|scope| {
            scope.spawn(|| a.send(&message, &[], Wait::default()).unwrap());
            let (mut fds, mut body) = (Fds::default(), Vec::new());
            let header = b.receive_header(&mut fds, Wait::default()).unwrap();
            b.receive_body(&header, &mut body, &mut fds, Wait::default()).unwrap();
            assert_eq!(body, message[16..]);
        });
    }

    #[test]
    fn the_only_message_comes_at_once_or_in_parts_and_nothing_after_it() {
        for body in [0, 20, LIKELY_BODY, LIKELY_BODY + 1, 70_000] {
            for cut in [1, 16, 17] {
                let (a, b) = pair();
                let header = Header { size: 16 + body as u32, ..Header::default() };
                let bytes = [header.as_bytes(), &vec![0x5a; body]].concat();
                let fd = event();
                let (mut fds, mut got) = (Fds::default(), Vec::new());
                let later = Some(Instant::now() + Duration::from_secs(20));
                for in_kernel in [false, true] {
                    fds.clear();
                    let wait = Wait { deadline: later, in_kernel, ..Wait::default() };
                    std::thread::scope(|scope| {
                        scope.spawn(|| {
                            let (now, later) = bytes.split_at(cut.min(bytes.len()));
                            a.send(now, &[fd.as_fd()], wait).unwrap();
                            a.send(later, &[], wait).unwrap();
                        });
                        assert_eq!(b.receive_only(&mut got, &mut fds, wait), Ok(header));
                    });
                    assert_eq!((got.as_slice(), fds.list.len()), (&bytes[16..], 1));
                }
            }
        }
        let (a, b) = pair();
        let header = Header { size: 20, ..Header::default() };
        a.send(&[header.as_bytes(), &[0; 7]].concat(), &[], Wait::default()).unwrap();
        let got = b.receive_only(&mut Vec::new(), &mut Fds::default(), Wait::default());
        assert_eq!(got, Err(SocketError::Surplus(3)));
    }

    #[test]
    fn a_wait_in_the_kernel_ends_at_the_deadline() {
        let (_a, b) = pair();
        assert!(b.set_timeout(Duration::ZERO));
        let wait = Wait { deadline: Some(Instant::now()), in_kernel: true, ..Wait::default() };
        let got = b.receive_only(&mut Vec::new(), &mut Fds::default(), wait);
        assert_eq!(got, Err(SocketError::Timeout));
    }
}
