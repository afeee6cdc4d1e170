//! Messages one after the other: what has come together is received together, in one call where it is short.

use std::io::IoSliceMut;

use zerocopy::FromBytes;

use crate::socket::{Fds, Socket, SocketError, Wait};
use crate::wire::{Header, MAX_MESSAGE, size};

/// Bytes that are received at once; what is longer goes to where it belongs without a copy.
const AHEAD: usize = 4096;
const HEADER: usize = size_of::<Header>();

/// What was received of a stream and not taken yet.
#[derive(Debug)]
pub(crate) struct Inbox {
    /// At `start..end`.
    ahead: Box<[u8; AHEAD]>,
    start: usize,
    end: usize,
    /// The descriptors that came with the last of these bytes. The kernel ends a call after bytes that have
    /// any, and they belong to the first of the bytes that were sent with them: they are those of the
    /// message that was the last to begin.
    fds: Fds,
}

impl Default for Inbox {
    fn default() -> Self {
        Self { ahead: Box::new([0; AHEAD]), start: 0, end: 0, fds: Fds::default() }
    }
}

impl Inbox {
    /// Bytes that came after the message that was taken last.
    pub(crate) fn left(&self) -> usize {
        self.end - self.start
    }

    /// Waits for the next message. Its payload goes to `body`, whose memory is reused, and its descriptors to
    /// `fds`, in place of what is there. The header's size is checked; the rest is not.
    ///
    /// # Errors
    /// After any the stream is of no use.
    pub(crate) fn receive(
        &mut self,
        socket: &Socket,
        body: &mut Vec<u8>,
        fds: &mut Fds,
        wait: Wait<'_>,
    ) -> Result<Header, SocketError> {
        fds.clear();
        let header = self.header(socket, fds, wait)?;
        if header.size < size::<Header>() || header.size > MAX_MESSAGE {
            return Err(SocketError::Size(header.size));
        }
        self.start += HEADER;
        let length = header.size as usize - HEADER;
        let here = &self.ahead[self.start..self.end];
        let here = &here[..here.len().min(length)];
        body.clear();
        body.extend_from_slice(here);
        self.start += here.len();
        if self.left() == 0 {
            fds.append(&mut self.fds);
        }
        let done = body.len();
        if done < length {
            body.resize(length, 0);
            socket.receive_exact(&mut body[done..], fds, wait)?;
        }
        Ok(header)
    }

    /// Receives until a header is there.
    fn header(
        &mut self,
        socket: &Socket,
        fds: &mut Fds,
        wait: Wait<'_>,
    ) -> Result<Header, SocketError> {
        if self.left() < HEADER {
            // The start of this message alone is left, or nothing.
            fds.append(&mut self.fds);
            self.ahead.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.left());
            if !wait.in_kernel {
                // Polling first, also under load, is what lets a stop end a busy connection.
                socket.wait_for_input(wait)?;
            }
        }
        loop {
            if let Ok((header, _)) = Header::read_from_prefix(&self.ahead[self.start..self.end]) {
                return Ok(header);
            }
            if self.left() > 0 {
                wait.check()?;
            }
            fds.append(&mut self.fds);
            let room = &mut self.ahead[self.end..];
            let got = socket.receive(&mut [IoSliceMut::new(room)], &mut self.fds, wait)?;
            if got == 0 {
                let clean = self.left() == 0;
                let cut = SocketError::Cut(HEADER - self.left());
                return Err(if clean { SocketError::Closed } else { cut });
            }
            self.end += got;
        }
    }
}

#[cfg(test)]
mod tests;
