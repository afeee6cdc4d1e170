//! The socket file that clients connect to.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FileType, Mode};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::{End, ServeError, Stop, serve};
use crate::Device;
use crate::socket::{SocketError, Wait};

/// Why a path cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another server answers there.
    #[error("{}: another server listens here; stop it or choose another path", .0.display())]
    InUse(PathBuf),
    /// Something that is not a socket is there.
    #[error("{}: exists and is not a socket; choose another path", .0.display())]
    NotSocket(PathBuf),
    /// A system call failed.
    #[error("{}: {call} failed: {errno}", path.display())]
    Io {
        /// The socket's path.
        path: PathBuf,
        /// Which call.
        call: &'static str,
        /// What the kernel said.
        errno: Errno,
    },
}

/// A listening socket. Its file, which only its owner may open, goes when this is dropped.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    path: PathBuf,
    /// Device and inode of the socket file, so that a successor's file is not removed.
    identity: (u64, u64),
}

impl Listener {
    /// Listens at `path`. A socket file that a dead server left is replaced; a live server's is not.
    ///
    /// # Errors
    /// See [`ListenError`].
    pub fn bind(path: &Path) -> Result<Self, ListenError> {
        let fail = |call| move |errno| ListenError::Io { path: path.to_owned(), call, errno };
        let address =
            SocketAddrUnix::new(path).map_err(fail("making an address of at most 107 bytes"))?;
        remove_stale(path, &address)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(fail("socket"))?;
        rustix::net::bind(&socket, &address).map_err(fail("bind"))?;
        let stat = rustix::fs::lstat(path).map_err(fail("lstat"))?;
        let listener = Self { socket, path: path.to_owned(), identity: (stat.st_dev, stat.st_ino) };
        // Before `listen`, nobody can have connected under the wider mode.
        rustix::fs::chmod(path, Mode::RUSR | Mode::WUSR).map_err(fail("chmod"))?;
        rustix::net::listen(&listener.socket, 1).map_err(fail("listen"))?;
        Ok(listener)
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The next client; `None`: stopped.
    ///
    /// # Errors
    /// [`ServeError::Accept`]: the kernel's.
    pub fn accept(&self, stop: &Stop) -> Result<Option<UnixStream>, ServeError> {
        let wait = Wait { stop: Some(stop.as_fd()), ..Wait::default() };
        loop {
            match wait.until(self.socket.as_fd(), PollFlags::IN) {
                Ok(()) => {}
                Err(SocketError::Stopped) => return Ok(None),
                Err(e) => return Err(ServeError::Stream(e)),
            }
            match rustix::net::accept_with(&self.socket, SocketFlags::CLOEXEC) {
                Ok(fd) => return Ok(Some(UnixStream::from(fd))),
                Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => {}
                // Others have used up what it takes; they will give some back.
                Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                    if rest(stop) {
                        return Ok(None);
                    }
                }
                Err(e) => return Err(ServeError::Accept(e)),
            }
        }
    }

    /// Serves one client after the other until `stop`. A client whose connection has to be ended is logged,
    /// and the next is served.
    ///
    /// # Errors
    /// [`ServeError::Accept`] and failures to wait: this listener is of no more use.
    pub fn serve(&self, device: &mut dyn Device, stop: &Stop) -> Result<(), ServeError> {
        while let Some(stream) = self.accept(stop)? {
            match serve(stream, device, stop) {
                Ok(End::Disconnected) => {}
                Ok(End::Stopped) => break,
                Err(e) => tracing::warn!("{}: connection ended: {e}", self.path.display()),
            }
        }
        Ok(())
    }
}

/// For who waits for clients in a way of their own.
impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let ours = rustix::fs::lstat(&self.path)
            .is_ok_and(|stat| (stat.st_dev, stat.st_ino) == self.identity);
        if ours && let Err(e) = rustix::fs::unlink(&self.path) {
            tracing::warn!("{}: the socket file stays behind: {e}", self.path.display());
        }
    }
}

/// Waits a while; `true`: stopped.
fn rest(stop: &Stop) -> bool {
    let time = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    let mut fds = [PollFd::new(stop, PollFlags::IN)];
    matches!(rustix::event::poll(&mut fds, Some(&time)), Ok(n) if n > 0)
}

fn remove_stale(path: &Path, address: &SocketAddrUnix) -> Result<(), ListenError> {
    let fail = |call| move |errno| ListenError::Io { path: path.to_owned(), call, errno };
    match rustix::fs::lstat(path) {
        Err(Errno::NOENT) => return Ok(()),
        Err(e) => return Err(fail("lstat")(e)),
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Socket => {
            return Err(ListenError::NotSocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(fail("socket"))?;
    match rustix::net::connect(&probe, address) {
        // Nobody listens: its server died without removing it.
        Err(Errno::CONNREFUSED) => rustix::fs::unlink(path).map_err(fail("unlink")),
        Err(Errno::NOENT) => Ok(()),
        // Connected, or the backlog is full: somebody listens.
        Ok(()) | Err(Errno::AGAIN) => Err(ListenError::InUse(path.to_owned())),
        Err(e) => Err(fail("connect")(e)),
    }
}
