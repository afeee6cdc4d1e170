//! What the host and a renderer say to each other: one [`Head`] and a payload per packet.
//!
//! | kind | payload | fields of the head |
//! |---|---|---|
//! | `Start` | JSON of [`super::Start`] | |
//! | `Setup` | a setup stream | `token` |
//! | `Job` | `count` of [`Latched`], then a job stream | `token`: the ticket; `count` |
//! | `Capture` | | |
//! | `Ready` | the GPU's name, UTF-8 | |
//! | `Configured` | | `token`, `reason` |
//! | `Done` | | `token`, `reason`, `start`, `end`, `busy`, `estimated` |
//! | `Image` | a memfd of the pixels, where there are any | `width`, `height` |
//! | `Failed` | why, UTF-8 | |

use crate::backend::Latched;
use beamline_abi::frame::{MAX_COMMANDS, MAX_SUBMIT_BYTES};
use beamline_abi::{Nanos, Reason};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The longest packet that a renderer may get.
pub(crate) const MAX_ORDER: usize =
    size_of::<Head>() + MAX_COMMANDS * size_of::<Latched>() + MAX_SUBMIT_BYTES;
/// The longest packet that a renderer may send.
pub(crate) const MAX_REPLY: usize = size_of::<Head>() + MAX_TEXT;
/// Bytes of the longest text in a reply.
pub(crate) const MAX_TEXT: usize = 512;

/// What a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Kind {
    Start = 1,
    Setup = 2,
    Job = 3,
    Capture = 4,
    Ready = 65,
    Configured = 66,
    Done = 67,
    Image = 68,
    Failed = 69,
}

impl Kind {
    fn from_raw(raw: u32) -> Option<Self> {
        Some(match raw {
            1 => Self::Start,
            2 => Self::Setup,
            3 => Self::Job,
            4 => Self::Capture,
            65 => Self::Ready,
            66 => Self::Configured,
            67 => Self::Done,
            68 => Self::Image,
            69 => Self::Failed,
            _ => return None,
        })
    }
}

/// The start of every packet. Fields that a kind does not use are 0.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Head {
    /// See [`Kind`].
    pub(crate) kind: u32,
    /// See [`Reason`].
    pub(crate) reason: u32,
    /// The caller's token, or the ticket.
    pub(crate) token: u64,
    /// When the GPU began, ns of `CLOCK_MONOTONIC`.
    pub(crate) start: Nanos,
    /// When the GPU ended.
    pub(crate) end: Nanos,
    /// GPU time used, ns.
    pub(crate) busy: Nanos,
    /// Pixels.
    pub(crate) width: u32,
    /// Pixels.
    pub(crate) height: u32,
    /// Latched reads in the payload.
    pub(crate) count: u32,
    /// 1: `start` and `end` are not the GPU's own.
    pub(crate) estimated: u32,
}

impl Head {
    pub(crate) fn new(kind: Kind) -> Self {
        Self { kind: kind as u32, ..Self::default() }
    }

    pub(crate) fn token(kind: Kind, token: u64) -> Self {
        Self { token, ..Self::new(kind) }
    }

    #[must_use]
    pub(crate) fn result(mut self, result: Result<(), Reason>) -> Self {
        self.reason = result.err().unwrap_or(Reason::None) as u32;
        self
    }

    /// What the packet is, where the number is known.
    pub(crate) fn kind(&self) -> Option<Kind> {
        Kind::from_raw(self.kind)
    }

    /// The result, where the reason's number is known.
    pub(crate) fn reason(&self) -> Option<Result<(), Reason>> {
        Some(match Reason::from_raw(self.reason)? {
            Reason::None => Ok(()),
            reason => Err(reason),
        })
    }
}

/// A received packet.
pub(crate) struct Packet<'a> {
    pub(crate) head: Head,
    pub(crate) payload: &'a [u8],
    pub(crate) fd: Option<OwnedFd>,
}

/// What came.
pub(crate) enum Received<'a> {
    Packet(Packet<'a>),
    /// Nothing is there now.
    Nothing,
    /// The other side has closed.
    Closed,
    /// Not a packet of this protocol.
    Garbage,
}

/// Room for a packet, aligned so that latched reads can be used in place.
pub(crate) struct PacketBuffer(Vec<u64>);

impl PacketBuffer {
    pub(crate) fn new(bytes: usize) -> Self {
        Self(vec![0; bytes.div_ceil(8)])
    }

    /// Takes the next packet; waits for one if `wait`.
    pub(crate) fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        wait: bool,
    ) -> Result<Received<'_>, Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut flags = RecvFlags::CMSG_CLOEXEC;
        flags.set(RecvFlags::DONTWAIT, !wait);
        let bytes = self.0.as_mut_slice().as_mut_bytes();
        let message = loop {
            let mut iov = [IoSliceMut::new(&mut *bytes)];
            match recvmsg(socket, &mut iov, &mut control, flags) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(Received::Nothing),
                Err(Errno::CONNRESET) => return Ok(Received::Closed),
                other => break other?,
            }
        };
        let mut fd = None;
        for item in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = item {
                fd = fds.last();
            }
        }
        if message.bytes == 0 {
            return Ok(Received::Closed);
        }
        let whole = !message.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
        let bytes = &self.0.as_slice().as_bytes()[..message.bytes.min(self.0.len() * 8)];
        Ok(match Head::read_from_prefix(bytes) {
            Ok((head, payload)) if whole => Received::Packet(Packet { head, payload, fd }),
            _ => Received::Garbage,
        })
    }
}

/// Splits the payload of a `Job` packet.
pub(crate) fn split_job<'a>(head: &Head, payload: &'a [u8]) -> Option<(&'a [Latched], &'a [u8])> {
    let count = usize::try_from(head.count).ok()?;
    if count > MAX_COMMANDS {
        return None;
    }
    <[Latched]>::ref_from_prefix_with_elems(payload, count).ok()
}

/// Sends a packet; waits for room if `wait`, else answers `AGAIN` where there is none.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    head: &Head,
    payload: [&[u8]; 2],
    fd: Option<BorrowedFd<'_>>,
    wait: bool,
) -> Result<(), Errno> {
    let iov = [IoSlice::new(head.as_bytes()), IoSlice::new(payload[0]), IoSlice::new(payload[1])];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = fd.map(|fd| [fd]);
    if let Some(fds) = &fds
        && !control.push(SendAncillaryMessage::ScmRights(fds))
    {
        return Err(Errno::INVAL);
    }
    let mut flags = SendFlags::NOSIGNAL;
    flags.set(SendFlags::DONTWAIT, !wait);
    loop {
        match sendmsg(socket.as_fd(), &iov, &mut control, flags) {
            Err(Errno::INTR) => {}
            other => return other.map(|_| ()),
        }
    }
}
