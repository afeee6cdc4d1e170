//! The other end of a console.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Where a console leads, as the configuration names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// This process's standard input and output.
    Terminal,
    /// A file, which what the guest prints is appended to.
    File(PathBuf),
    /// A socket that one peer at a time connects to.
    Socket(PathBuf),
}

/// Why a console has no other end.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The file.
    #[error("{}: the console's output cannot be opened", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The socket.
    #[error("{}: the console's socket cannot be made{}", path.display(), in_the_way(source))]
    Socket {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A socket pair or a copy of a descriptor.
    #[error("a console cannot be connected")]
    Os(#[source] io::Error),
}

fn in_the_way(e: &io::Error) -> &'static str {
    match e.kind() {
        io::ErrorKind::AddrInUse => ": something is there already; remove it, or name another",
        _ => "",
    }
}

/// An opened end.
pub struct Endpoint {
    pub(super) input: Option<File>,
    pub(super) output: Option<File>,
    pub(super) listener: Option<UnixListener>,
    /// Whoever is connected, while no driver serves the port.
    peer: Mutex<Option<UnixStream>>,
    /// Only harmless text is passed on: it goes to somebody's terminal.
    pub(super) plain: bool,
    _name: Option<Name>,
}

impl Endpoint {
    /// Opens it.
    pub fn open(output: &Output) -> Result<Self, EndpointError> {
        match output {
            Output::Terminal => {
                let copy = |fd: BorrowedFd<'_>| {
                    fd.try_clone_to_owned().map(File::from).map_err(EndpointError::Os)
                };
                let (input, output) = (copy(io::stdin().as_fd())?, copy(io::stdout().as_fd())?);
                Ok(Self { input: Some(input), output: Some(output), plain: true, ..Self::none() })
            }
            Output::File(path) => {
                let file = OpenOptions::new()
                    .append(true)
                    .create(true)
                    .open(path)
                    .map_err(|source| EndpointError::File { path: path.clone(), source })?;
                Ok(Self { output: Some(file), ..Self::none() })
            }
            Output::Socket(path) => {
                let failed = |source| EndpointError::Socket { path: path.clone(), source };
                clear_away(path);
                let listener = UnixListener::bind(path).map_err(failed)?;
                listener.set_nonblocking(true).map_err(failed)?;
                let name = Some(Name(path.clone()));
                Ok(Self { listener: Some(listener), _name: name, ..Self::none() })
            }
        }
    }

    /// An end in this process: what the other stream of the pair is sent, the guest gets, and the other
    /// way round.
    pub fn stream(stream: UnixStream) -> Result<Self, EndpointError> {
        stream.set_nonblocking(true).map_err(EndpointError::Os)?;
        Ok(Self { peer: Mutex::new(Some(stream)), ..Self::none() })
    }

    fn none() -> Self {
        Self {
            input: None,
            output: None,
            listener: None,
            peer: Mutex::new(None),
            plain: false,
            _name: None,
        }
    }

    /// The peer that is connected, to be taken by who serves the port or left for the next.
    pub(super) fn peer(&self) -> MutexGuard<'_, Option<UnixStream>> {
        // It is replaced whole: a panic elsewhere leaves it sound.
        self.peer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A socket's name in the file system, removed at the end.
struct Name(PathBuf);

impl Drop for Name {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Removes a socket that nobody listens on any more: one that a VMM left which was killed.
fn clear_away(path: &Path) {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
    if is_socket
        && UnixStream::connect(path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
    {
        // Where that fails, so does what comes next, which says so.
        let _ = std::fs::remove_file(path);
    }
}
