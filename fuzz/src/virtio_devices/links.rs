//! Devices with something at their other end: a network card on a wire, a console with a peer.

use crate::input::Input;
use beamline_vmm::devices::virtio::DeviceModel;
use beamline_vmm::devices::virtio::console::{Console, Endpoint};
use beamline_vmm::devices::virtio::net::{Mac, Net, Port};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send};
use std::io;
use std::os::unix::net::UnixStream;

/// virtio 1.3, section 5.1.6: what is in front of each frame.
const HEADER: usize = 12;
/// More than any frame that a tap takes.
const LARGEST: usize = 72 << 10;

/// A tap's place: each packet is a frame.
struct Wire(OwnedFd);

impl Port for Wire {
    fn fd(&self) -> &OwnedFd {
        &self.0
    }

    fn set_offloads(&self, _: u64) -> io::Result<()> {
        Ok(())
    }
}

/// The other end.
pub(super) enum Link {
    /// Of a network card.
    Wire(OwnedFd),
    /// Of a console.
    Peer(UnixStream),
}

/// A network card and the other end of its wire.
pub(super) fn net() -> (Box<dyn DeviceModel>, Link) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .expect("sockets can be made");
    (Box::new(Net::new("fuzz", Wire(ours), Mac::derived("fuzz", 0))), Link::Wire(theirs))
}

/// A console and its peer.
pub(super) fn console() -> (Box<dyn DeviceModel>, Link) {
    let (ours, theirs) = UnixStream::pair().expect("sockets can be made");
    theirs.set_nonblocking(true).expect("a socket can be made so");
    let endpoint = Endpoint::stream(ours).expect("a stream is taken");
    (Box::new(Console::new(endpoint)), Link::Peer(theirs))
}

impl Link {
    /// Sends what the input says, or looks what came.
    pub(super) fn step(&self, input: &mut Input<'_>) {
        if input.flag() {
            let bytes = input.bytes(255).to_vec();
            let len = if input.flag() { bytes.len() } else { input.number() as usize % LARGEST };
            let mut frame = bytes;
            frame.resize(len, 0x5a);
            self.send(&frame);
        } else {
            self.drain();
        }
    }

    /// What does not fit is lost. Nothing is no frame: it would be the wire's end.
    pub(super) fn send(&self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let _ = match self {
            Self::Wire(fd) => send(fd, bytes, SendFlags::NOSIGNAL),
            Self::Peer(stream) => send(stream, bytes, SendFlags::NOSIGNAL),
        };
    }

    /// What came; a card passes only on what has a header.
    pub(super) fn receive(&self) -> Option<Vec<u8>> {
        let mut to = vec![0; LARGEST + 1];
        let got = match self {
            Self::Wire(fd) => recv(fd, &mut *to, RecvFlags::DONTWAIT),
            Self::Peer(stream) => recv(stream, &mut *to, RecvFlags::DONTWAIT),
        };
        let len = match got {
            Ok((len, _)) => len,
            Err(Errno::AGAIN) => return None,
            Err(e) => panic!("the other end cannot be read: {e}"),
        };
        let least = if matches!(self, Self::Wire(_)) { HEADER + 1 } else { 1 };
        assert!((least..=LARGEST).contains(&len), "{len} bytes came");
        to.truncate(len);
        Some(to)
    }

    /// Leaves nothing under way in either direction that a good request would have to wait for.
    pub(super) fn drain(&self) {
        while self.receive().is_some() {}
    }
}
