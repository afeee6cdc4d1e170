//! Finding a function's server, which may start after the VMM.

use beamline_vfio_user::client::{Client, ClientError};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a server may take for an answer. The vCPU waits for it.
const ANSWER: Duration = Duration::from_secs(5);
/// Pause between two attempts. A socket that does not exist yet cannot be waited for.
const PAUSE: Duration = Duration::from_millis(10);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody listens.
    #[error(
        "no server answered at {} within {} ms; start `beamline host` for this guest first, or correct \
         the device's `socket`", path.display(), timeout.as_millis()
    )]
    Nobody {
        /// The socket.
        path: PathBuf,
        /// How long was waited.
        timeout: Duration,
        /// The last attempt's error.
        source: std::io::Error,
    },
    /// The socket cannot be used.
    #[error("{}: cannot be connected to", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The server is there and says nothing.
    #[error(
        "{}: its server said nothing for {} s, as it does where another guest has the function: a slice's functions \
         serve one guest at a time; stop that guest, or name another slice's `socket`", path.display(), ANSWER.as_secs()
    )]
    Busy {
        /// The socket.
        path: PathBuf,
    },
    /// The server does not speak vfio-user.
    #[error("{}: the server does not agree on vfio-user", path.display())]
    Protocol {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: ClientError,
    },
}

/// Cuts a connection from outside: a vCPU that waits for an answer goes on at once.
#[derive(Debug)]
pub struct Cutter(UnixStream);

impl Cutter {
    /// Cuts it. The function is lost to the guest.
    pub fn cut(&self) {
        // Fails only where the connection has ended already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// Connects to the server at `path`, trying again until `timeout` is over.
pub fn connect(path: &Path, timeout: Duration) -> Result<(Client, Cutter), ConnectError> {
    let deadline = Instant::now() + timeout;
    loop {
        match attempt(path) {
            Ok(stream) => return speak(path, stream),
            // Not there yet, left over from a dead server, or too busy to accept.
            Err(e @ (Errno::NOENT | Errno::CONNREFUSED | Errno::AGAIN)) => {
                if Instant::now() >= deadline {
                    let path = path.to_owned();
                    return Err(ConnectError::Nobody { path, timeout, source: e.into() });
                }
                std::thread::sleep(PAUSE);
            }
            Err(e) => {
                return Err(ConnectError::Socket { path: path.to_owned(), source: e.into() });
            }
        }
    }
}

/// Agrees on the protocol's version over a connected stream; `path` is its name in messages.
pub fn speak(path: &Path, stream: UnixStream) -> Result<(Client, Cutter), ConnectError> {
    let cutter = stream
        .try_clone()
        .map_err(|source| ConnectError::Socket { path: path.to_owned(), source })?;
    let client = Client::with_timeout(stream, ANSWER).map_err(|source| match source {
        ClientError::Timeout(_) => ConnectError::Busy { path: path.to_owned() },
        source => ConnectError::Protocol { path: path.to_owned(), source },
    })?;
    Ok((client, Cutter(cutter)))
}

/// One attempt, which does not wait for a server that is too busy to accept.
pub fn attempt(path: &Path) -> rustix::io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &address)?;
    rustix::io::ioctl_fionbio(&socket, false)?;
    Ok(UnixStream::from(socket))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_server_is_named_with_a_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vr-gpu.sock");
        let e = connect(&path, Duration::ZERO).unwrap_err();
        assert!(matches!(e, ConnectError::Nobody { .. }));
        let text = e.to_string();
        assert!(text.contains("vr-gpu.sock") && text.contains("beamline host"), "{text}");
        let long = dir.path().join("x".repeat(200));
        assert!(matches!(connect(&long, Duration::ZERO), Err(ConnectError::Socket { .. })));
    }
}
