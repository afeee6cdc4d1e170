//! The other end of a connection that the VMM makes: a socket to be found at, and what comes with a message.

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

/// Most descriptors that come with one message.
const MOST_FDS: usize = 16;

/// Where one peer is found. Dropping it takes the name away.
pub(crate) struct Place {
    listener: UnixListener,
    pub(crate) path: PathBuf,
}

impl Place {
    pub(crate) fn new() -> Self {
        let name = format!("beamline-fuzz-{}.sock", std::process::id());
        let path = std::env::temp_dir().join(name);
        // One is left over where the process that had this number was killed.
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).expect("a socket can be bound");
        Self { listener, path }
    }

    /// Runs `act`, which connects, beside `serve`, which has the other end. What each of them says.
    pub(crate) fn meet<A, B: Send>(
        &self,
        act: impl FnOnce() -> A,
        serve: impl FnOnce(UnixStream) -> B + Send,
    ) -> (A, B) {
        std::thread::scope(|scope| {
            let other = scope.spawn(|| serve(self.listener.accept().expect("somebody connects").0));
            let result = act();
            (result, other.join().expect("it does not panic"))
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Somebody else may have taken it away.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The next bytes, at most as many as `to` has, and what came with them; `None`: the connection has ended.
pub(crate) fn receive(stream: &UnixStream, to: &mut [u8]) -> Option<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(to)];
    let receive = || recvmsg(stream, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC);
    let got = rustix::io::retry_on_intr(receive).ok()?.bytes;
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(more) = message {
            fds.extend(more);
        }
    }
    (got > 0).then_some((got, fds))
}
