//! Serves a [`Device`] to one client at a time.
//!
//! ```text
//! bind → accept → VERSION → commands … → disconnected
//! ```
//!
//! A command that is wrong is answered with an errno and the connection goes on; a stream that is wrong ends
//! the connection. Either way the device's owner goes on.

mod access;
mod listener;
mod maps;
mod query;
mod refusal;
mod resources;
mod session;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rustix::event::EventfdFlags;
use rustix::io::Errno;

pub use listener::{ListenError, Listener};

use crate::Device;
use crate::socket::{Socket, SocketError};
use session::Session;

/// Ends every `serve` that watches it, from any thread. It stays stopped.
#[derive(Clone, Debug)]
pub struct Stop(Arc<OwnedFd>);

impl Stop {
    /// A handle that has not stopped anything.
    ///
    /// # Errors
    /// The kernel's, where it has no descriptor to give.
    pub fn new() -> std::io::Result<Self> {
        let fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(Arc::new(fd)))
    }

    /// Stops.
    pub fn stop(&self) {
        // The only failure is a full counter, and then it is stopped already.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }
}

impl AsFd for Stop {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// How a connection came to a good end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The client closed it.
    Disconnected,
    /// The stop handle ended it.
    Stopped,
}

/// Why a connection was ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The stream broke off or made no sense.
    #[error("the client's stream: {0}")]
    Stream(SocketError),
    /// The first message was not `VERSION`.
    #[error("the client's first message is {0}, VERSION is needed")]
    NotVersion(&'static str),
    /// The version was refused.
    #[error("the client's version: {0}")]
    Version(String),
    /// A reply came where a command was due.
    #[error("the client sent a message of type {0}, a command (0) was due")]
    NotCommand(u32),
    /// The listening socket failed.
    #[error("waiting for a client failed: {0}")]
    Accept(Errno),
}

/// Serves `device` on `stream` until the client leaves, makes no sense, or `stop` says so. Whatever the end,
/// [`Device::disconnected`] was called when this returns, if the client had got as far as a version.
///
/// # Errors
/// Why the connection had to be ended. The device can be served again.
pub fn serve(stream: UnixStream, device: &mut dyn Device, stop: &Stop) -> Result<End, ServeError> {
    let socket = Socket::new(stream);
    let result = match Session::open(&socket, stop) {
        Ok(mut session) => {
            session.learn_regions(device);
            let result = session.run(device);
            device.disconnected();
            result
        }
        Err(e) => Err(e),
    };
    match result {
        Ok(()) | Err(ServeError::Stream(SocketError::Closed)) => Ok(End::Disconnected),
        Err(ServeError::Stream(SocketError::Stopped)) => Ok(End::Stopped),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests;
