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

use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::EventfdFlags;
use rustix::io::Errno;

pub use listener::{ListenError, Listener};

use crate::Device;
use crate::socket::{Socket, SocketError};
use session::Session;

/// Ends every `serve` that watches it, from any thread. It stays stopped.
#[derive(Clone, Debug)]
pub struct Stop(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Readable once it is stopped.
    fd: OwnedFd,
    stopped: AtomicBool,
    /// What is served now, and to be shut down: a call that receives waits in the kernel.
    served: Mutex<Vec<Arc<UnixStream>>>,
}

impl Stop {
    /// A handle that has not stopped anything.
    ///
    /// # Errors
    /// The kernel's, where it has no descriptor to give.
    pub fn new() -> std::io::Result<Self> {
        let fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let (stopped, served) = (AtomicBool::new(false), Mutex::default());
        Ok(Self(Arc::new(Inner { fd, stopped, served })))
    }

    /// Stops.
    pub fn stop(&self) {
        self.0.stopped.store(true, Ordering::SeqCst);
        // The only failure is a full counter, and then it is stopped already.
        let _ = rustix::io::write(&self.0.fd, &1u64.to_ne_bytes());
        for stream in &*self.served() {
            // It fails only for a connection that has ended.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn is_stopped(&self) -> bool {
        self.0.stopped.load(Ordering::SeqCst)
    }

    fn served(&self) -> MutexGuard<'_, Vec<Arc<UnixStream>>> {
        self.0.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a stop shut `stream` down until the guard is dropped. The caller looks at
    /// [`is_stopped`](Self::is_stopped) after this, since a stop may have come before.
    fn watch<'a>(&'a self, stream: &'a Arc<UnixStream>) -> Watched<'a> {
        self.served().push(Arc::clone(stream));
        Watched { stop: self, stream }
    }
}

/// A connection that a stop shuts down.
struct Watched<'a> {
    stop: &'a Stop,
    stream: &'a Arc<UnixStream>,
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        self.stop.served().retain(|stream| !Arc::ptr_eq(stream, self.stream));
    }
}

impl AsFd for Stop {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
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
    let _watched = stop.watch(socket.stream());
    if stop.is_stopped() {
        return Ok(End::Stopped);
    }
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
        // Whatever a socket says that was shut down.
        Err(ServeError::Stream(_)) if stop.is_stopped() => Ok(End::Stopped),
        Ok(()) | Err(ServeError::Stream(SocketError::Closed)) => Ok(End::Disconnected),
        Err(ServeError::Stream(SocketError::Stopped)) => Ok(End::Stopped),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests;
