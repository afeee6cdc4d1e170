//! A vhost-user server (QEMU: docs/interop/vhost-user.rst), which answers right until it does not.

use crate::fds::eventfd;
use crate::input::Input;
use crate::peer::receive;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

const GET_FEATURES: u32 = 1;
const SET_VRING_CALL: u32 = 13;
const GET_VRING_BASE: u32 = 11;
const GET_PROTOCOL_FEATURES: u32 = 15;
/// Flags of a message: version 1, a reply, and an answer is wanted.
const REPLY: u32 = 1 | 4;
const NEED_REPLY: u32 = 8;
/// Bytes of a message's head, and most of its body here.
const HEAD: usize = 12;
const MOST: usize = 4096;
/// Most descriptors that it keeps.
const KEPT: usize = 64;

/// A server, and what it makes of its requests.
pub(super) struct Server {
    features: u64,
    protocol: u64,
    deeds: Vec<u8>,
    kept: Vec<OwnedFd>,
}

impl Server {
    pub(super) fn new(input: &mut Input<'_>) -> Self {
        // A server that cannot be used is one that is not looked at for long.
        let features =
            if input.u8() < 0xf0 { input.u64() | 1 << 30 | 1 << 32 } else { input.u64() };
        let protocol = if input.flag() { 1 << 3 } else { input.u64() };
        Self { features, protocol, deeds: input.bytes(120).to_vec(), kept: Vec::new() }
    }

    fn next(&mut self) -> u8 {
        if self.deeds.is_empty() { 0 } else { self.deeds.remove(0) }
    }

    /// Serves until somebody hangs up. It is never silent where it is waited for: that takes seconds, and the unit
    /// tests have it.
    pub(super) fn run(mut self, mut stream: UnixStream) {
        let mut head = [0; HEAD];
        while let Some((len, fds)) = receive(&stream, &mut head) {
            // A message's descriptors come with its first byte.
            if stream.read_exact(&mut head[len..]).is_err() {
                return;
            }
            let word = |at: usize| {
                u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]])
            };
            let (request, flags, size) = (word(0), word(4), word(8) as usize);
            assert!(size <= MOST, "a request of {size} bytes");
            let mut body = vec![0; size];
            if stream.read_exact(&mut body).is_err() {
                return;
            }
            self.keep(request, fds);
            let answer = match request {
                GET_FEATURES => Some(self.features.to_le_bytes().to_vec()),
                GET_PROTOCOL_FEATURES => Some(self.protocol.to_le_bytes().to_vec()),
                GET_VRING_BASE => Some([&body[..4], &[0; 4]].concat()),
                _ if flags & NEED_REPLY != 0 => Some(vec![0; 8]),
                _ => None,
            };
            if !self.answer(&stream, request, answer) {
                // The other end may have gone already.
                let _ = stream.shutdown(Shutdown::Both);
                return;
            }
        }
    }

    /// Keeps what it got, and signals a vector at once, whether its ring runs or not.
    fn keep(&mut self, request: u32, fds: Vec<OwnedFd>) {
        if request == SET_VRING_CALL {
            for fd in &fds {
                let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
            }
        }
        self.kept.extend(fds);
        self.kept.truncate(KEPT);
    }

    /// Answers, perhaps wrong; whether it goes on.
    fn answer(&mut self, stream: &UnixStream, request: u32, answer: Option<Vec<u8>>) -> bool {
        let deed = self.next();
        let Some(body) = answer else { return deed < 0xfc };
        let mut message = [request, REPLY, body.len() as u32].map(u32::to_le_bytes).concat();
        message.extend(body);
        let mut fds = Vec::new();
        let mut goes_on = true;
        match deed {
            0xf8.. => return false,
            0xf0.. => {
                // A part of it.
                message.truncate(usize::from(self.next()) % message.len());
                goes_on = false;
            }
            0xe0.. => {
                // Behind it, what may be taken for the next one.
                let count = usize::from(self.next());
                message.extend((0..count).map(|_| self.next()));
                goes_on = false;
            }
            0xd0.. => fds = (0..deed % 5).map(|_| eventfd()).collect(),
            0xc0.. => {
                let at = usize::from(self.next()) % message.len();
                message[at] ^= self.next();
                // Who takes a wrong length at its word would wait for the rest.
                goes_on = at >= HEAD;
            }
            _ => {}
        }
        send(stream, &message, &fds) && goes_on
    }
}

fn send(stream: &UnixStream, message: &[u8], fds: &[OwnedFd]) -> bool {
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
        return false;
    }
    sendmsg(stream, &[IoSlice::new(message)], &mut ancillary, SendFlags::NOSIGNAL).is_ok()
}
