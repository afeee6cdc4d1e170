//! A process that connects to the servers which a guest's file names, for a VMM that may make no socket any more.
//!
//! ```text
//!  beamline run                                    connector
//!  index of a port ───── one byte, a packet ─────► connects to that port's socket
//!  connection ◄────────── errno, descriptor ────── or says why not
//! ```
//!
//! It knows the paths from its arguments and takes nothing else from the VMM: whoever writes the VMM's memory gets
//! connections to those sockets, and to no others. It ends with the VMM.

use crate::confine;
use crate::failure::refused;
use anyhow::Context;
use beamline_vmm::Config;
use beamline_vmm::config::Device;
use beamline_vmm::passthrough::connect;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use std::ffi::OsString;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// This very file, also where it was replaced since.
const PROGRAM: &str = "/proc/self/exe";
/// How long the connector may take: it waits for nobody.
const ANSWER: Duration = Duration::from_secs(5);

/// The VMM's end. Dropping it ends the process.
pub(crate) struct Connector {
    /// Gone once a request was not answered: the answer that comes late would be taken for another's.
    socket: Mutex<Option<OwnedFd>>,
    /// The port of each of the process's sockets.
    ports: Vec<usize>,
}

impl Connector {
    /// Starts the process where a port of `config` needs it. Before the sandbox, which lets no program start.
    pub(crate) fn start(config: &Config, sandbox: bool) -> anyhow::Result<Option<Self>> {
        let served = config.ports.iter().enumerate().filter_map(|(port, of)| match &of.device {
            Device::VfioUser(device) => Some((port, device.socket.clone())),
            _ => None,
        });
        let (ports, paths): (Vec<usize>, Vec<PathBuf>) = served.unzip();
        if ports.is_empty() {
            return Ok(None);
        }
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .context("cannot make a pair of sockets")?;
        let limit = rustix::net::sockopt::Timeout::Recv;
        rustix::net::sockopt::set_socket_timeout(&ours, limit, Some(ANSWER))
            .context("cannot limit the wait for the connector")?;
        let mut arguments: Vec<OsString> =
            vec!["--follow".into(), std::process::id().to_string().into(), "connector".into()];
        arguments.extend((!sandbox).then(|| "--no-sandbox".into()));
        arguments.push("--".into());
        arguments.extend(paths.into_iter().map(Into::into));
        // It ends when its socket does, and this process is about to give up waiting for any.
        Command::new(PROGRAM)
            .args(arguments)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .context("cannot start the connector")?;
        Ok(Some(Self { socket: Mutex::new(Some(ours)), ports }))
    }

    /// A connection to the server of port number `port`.
    pub(crate) fn connect(&self, port: usize) -> Result<UnixStream, Errno> {
        let index = self.ports.iter().position(|p| *p == port).ok_or(Errno::NOENT)?;
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let exchange = |socket: &OwnedFd| {
            // A guest has few ports.
            send(socket.as_fd(), &[index as u8], None)?;
            receive(socket.as_fd())?.ok_or(Errno::PIPE)
        };
        let (errno, fd) = match exchange(socket.as_ref().ok_or(Errno::PIPE)?) {
            Ok(answer) => answer,
            Err(e) => {
                *socket = None;
                return Err(e);
            }
        };
        match (i32::from_le_bytes(errno), fd) {
            (0, Some(fd)) => Ok(UnixStream::from(fd)),
            (0, None) => Err(Errno::PROTO),
            (errno, _) => Err(Errno::from_raw_os_error(errno)),
        }
    }
}

/// `beamline connector`: serves the VMM at the other end of standard input until it goes away.
pub(crate) fn serve(paths: &[PathBuf], sandbox: bool) -> anyhow::Result<()> {
    if paths.len() > usize::from(u8::MAX) {
        return Err(refused("the connector takes 255 sockets at most"));
    }
    if sandbox {
        confine::connector()?;
    }
    let stdin = std::io::stdin();
    while let Some(([index, ..], _)) = receive(stdin.as_fd()).context("the VMM's request")? {
        let path = paths.get(usize::from(index)).ok_or(Errno::INVAL);
        let answer = path.and_then(|path| connect::attempt(path));
        let sent = match answer {
            Ok(stream) => send(stdin.as_fd(), &0i32.to_le_bytes(), Some(stream.as_fd())),
            Err(e) => send(stdin.as_fd(), &e.raw_os_error().to_le_bytes(), None),
        };
        match sent {
            Err(Errno::PIPE | Errno::CONNRESET) => break,
            sent => sent.context("the answer to the VMM")?,
        }
    }
    Ok(())
}

fn send(socket: BorrowedFd<'_>, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = fd.map(|fd| [fd]);
    if let Some(fds) = &fds
        && !control.push(SendAncillaryMessage::ScmRights(fds))
    {
        return Err(Errno::INVAL);
    }
    loop {
        match sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            other => return other.map(drop),
        }
    }
}

/// The first bytes of a packet, zeros behind them, and its descriptor.
type Packet = ([u8; 4], Option<OwnedFd>);

/// The next packet; `None` where the other side has gone.
fn receive(socket: BorrowedFd<'_>) -> Result<Option<Packet>, Errno> {
    let mut bytes = [0; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = loop {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        match recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            Err(Errno::CONNRESET) => return Ok(None),
            other => break other?,
        }
    };
    let fd = control.drain().find_map(|item| match item {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok((message.bytes > 0).then_some((bytes, fd)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_go_over_and_ends_are_seen() {
        let flags = SocketFlags::CLOEXEC;
        let (a, b) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let (one, mut other) = UnixStream::pair().unwrap();
        send(a.as_fd(), &0i32.to_le_bytes(), Some(one.as_fd())).unwrap();
        drop(one);
        let (errno, fd) = receive(b.as_fd()).unwrap().unwrap();
        assert_eq!(errno, [0; 4]);
        std::io::Write::write_all(&mut UnixStream::from(fd.unwrap()), b"x").unwrap();
        let mut byte = [0];
        std::io::Read::read_exact(&mut other, &mut byte).unwrap();
        assert_eq!(byte, *b"x");
        send(a.as_fd(), &[7], None).unwrap();
        assert!(matches!(receive(b.as_fd()), Ok(Some(([7, 0, 0, 0], None)))));
        drop(a);
        assert!(matches!(receive(b.as_fd()), Ok(None)));
    }
}
