//! swtpm's protocol (swtpm: include/swtpm/tpm_ioctl.h, and QEMU's docs/specs/tpm.rst): a control socket, by which the
//! emulator is set up, and a data socket, which carries commands and answers as they are.
//!
//! All numbers are big-endian. A request is one message: its number and what belongs to it. Its answer starts with a
//! result; 0 is success, and what was asked for follows.

use super::command::{self, HEADER};
use crate::passthrough::connect::attempt;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the emulator may take until it is set up. It may still be at work on a key for a guest that has ended; no
/// other guest waits.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);
/// How often whoever waits is asked whether to go on.
const LOOK: Duration = Duration::from_millis(100);

/// A request on the control socket.
#[derive(Clone, Copy, Debug)]
struct Request {
    number: u32,
    name: &'static str,
    /// The bit of [`GET_CAPABILITY`]'s answer that says that the emulator knows it.
    capability: u32,
}

const GET_CAPABILITY: Request = Request { number: 0x01, name: "CMD_GET_CAPABILITY", capability: 0 };
const INIT: Request = Request { number: 0x02, name: "CMD_INIT", capability: 1 << 0 };
const GET_TPMESTABLISHED: Request =
    Request { number: 0x04, name: "CMD_GET_TPMESTABLISHED", capability: 1 << 2 };
const SET_LOCALITY: Request =
    Request { number: 0x05, name: "CMD_SET_LOCALITY", capability: 1 << 3 };
const STOP: Request = Request { number: 0x0e, name: "CMD_STOP", capability: 1 << 10 };
const SET_DATAFD: Request = Request { number: 0x10, name: "CMD_SET_DATAFD", capability: 1 << 12 };
const SET_BUFFERSIZE: Request =
    Request { number: 0x11, name: "CMD_SET_BUFFERSIZE", capability: 1 << 13 };

/// Why there is no TPM.
#[derive(Debug, thiserror::Error)]
pub enum TpmError {
    /// Nobody listens.
    #[error(
        "no TPM at {}: start `swtpm socket --tpm2 --tpmstate dir=FOLDER --ctrl type=unixio,path=SOCKET` for this \
         guest first, or correct `tpm.socket`", path.display()
    )]
    Nobody {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It does not answer, or the connection broke.
    #[error(
        "the TPM at {} does not answer {request}: it has to be swtpm's control socket, and its swtpm no other guest's",
        path.display()
    )]
    Silent {
        /// The socket.
        path: PathBuf,
        /// What it was asked for.
        request: &'static str,
        /// Why.
        source: io::Error,
    },
    /// It says no.
    #[error("the TPM at {} answered {request} with error {code:#x}; its own log may say why", path.display())]
    Refused {
        /// The socket.
        path: PathBuf,
        /// What it was asked for.
        request: &'static str,
        /// Its result.
        code: u32,
    },
    /// It does not know a request.
    #[error("the TPM at {} has no {request}: use swtpm 0.7 or newer", path.display())]
    Lacks {
        /// The socket.
        path: PathBuf,
        /// What it lacks.
        request: &'static str,
    },
    /// Its commands do not fit.
    #[error(
        "the TPM at {} wants a buffer of {size} bytes: one of {} to {room} is what the guest has",
        path.display(), HEADER
    )]
    Buffer {
        /// The socket.
        path: PathBuf,
        /// Bytes.
        size: u32,
        /// The most that there is: bytes.
        room: usize,
    },
    /// Whoever waits for it has given up.
    #[error("the TPM was waited for until somebody ended that")]
    Interrupted,
    /// The operating system.
    #[error("cannot make {what} for the TPM")]
    Os {
        /// What.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// Why a command has no answer. The TPM is lost with it: nobody knows what it says next.
#[derive(Debug, thiserror::Error)]
pub(super) enum LostError {
    /// The connection.
    #[error("the connection to it broke: {0}")]
    Broken(#[from] io::Error),
    /// What it says is no answer.
    #[error(
        "it answered with something else than {HEADER} to {room} bytes that start with their own number"
    )]
    Answer {
        /// The most that there may be.
        room: usize,
    },
}

/// An emulator that is set up, with the TPM switched on.
#[derive(Debug)]
pub(super) struct Swtpm {
    /// Held open: the emulator goes back to listening when it ends.
    pub(super) control: UnixStream,
    /// Commands and answers.
    pub(super) data: UnixStream,
    /// How long those may be: bytes.
    pub(super) room: usize,
    /// A dynamic launch has happened once.
    pub(super) established: bool,
}

/// Sets up the emulator at `path` for commands of `room` bytes at most, and switches the TPM on anew: within `patience`,
/// and for as long as `go_on` says so.
pub(super) fn connect(
    path: &Path,
    room: usize,
    patience: Duration,
    go_on: &mut dyn FnMut() -> bool,
) -> Result<Swtpm, TpmError> {
    let stream =
        attempt(path).map_err(|e| TpmError::Nobody { path: path.to_owned(), source: e.into() })?;
    let mut control = Control { path, stream, deadline: Instant::now() + patience, go_on };
    let [known] = control.ask(GET_CAPABILITY, &[], None)?;
    let needed = [INIT, GET_TPMESTABLISHED, SET_LOCALITY, STOP, SET_DATAFD, SET_BUFFERSIZE];
    if let Some(lacking) = needed.iter().find(|r| known & r.capability == 0) {
        return Err(TpmError::Lacks { path: path.to_owned(), request: lacking.name });
    }
    let (data, theirs) =
        UnixStream::pair().map_err(|source| TpmError::Os { what: "a pair of sockets", source })?;
    let [] = control.ask(SET_DATAFD, &[], Some(theirs.as_fd()))?;
    // Else the end of theirs would not be seen.
    drop(theirs);
    // One that has served before is still on; its buffer is chosen while it is off.
    let [] = control.ask(STOP, &[], None)?;
    // What it has now, the least and the most that it takes.
    let [size, _, _] = control.ask(SET_BUFFERSIZE, &(room as u32).to_be_bytes(), None)?;
    let fits = |size: &usize| (HEADER..=room).contains(size);
    let Some(size) = usize::try_from(size).ok().filter(fits) else {
        return Err(TpmError::Buffer { path: path.to_owned(), size, room });
    };
    // No flags.
    let [] = control.ask(INIT, &0u32.to_be_bytes(), None)?;
    let [] = control.ask(SET_LOCALITY, &[0], None)?;
    // A byte, and three to fill up.
    let [established] = control.ask(GET_TPMESTABLISHED, &[], None)?;
    let established = established.to_be_bytes()[0] != 0;
    Ok(Swtpm { control: control.stream, data, room: size, established })
}

/// The control socket while the emulator is set up.
struct Control<'a> {
    path: &'a Path,
    stream: UnixStream,
    deadline: Instant,
    go_on: &'a mut dyn FnMut() -> bool,
}

impl Control<'_> {
    /// Asks for something, and passes `fd` with that; the `N` words that follow the result.
    fn ask<const N: usize>(
        &mut self,
        request: Request,
        body: &[u8],
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<[u32; N], TpmError> {
        let (path, name) = (self.path, request.name);
        let silent = |source: io::Error| match source.kind() {
            io::ErrorKind::Interrupted => TpmError::Interrupted,
            _ => TpmError::Silent { path: path.to_owned(), request: name, source },
        };
        let message = [&request.number.to_be_bytes()[..], body].concat();
        self.send(&message, fd).map_err(silent)?;
        match self.word().map_err(silent)? {
            0 => {}
            code => return Err(TpmError::Refused { path: path.to_owned(), request: name, code }),
        }
        let mut words = [0; N];
        for word in &mut words {
            *word = self.word().map_err(silent)?;
        }
        Ok(words)
    }

    /// Sends a message as a whole: the emulator reads one at a time.
    fn send(&self, message: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            // There is room for one.
            ancillary.push(SendAncillaryMessage::ScmRights(&fds));
        }
        let parts = [IoSlice::new(message)];
        let send = || sendmsg(&self.stream, &parts, &mut ancillary, SendFlags::NOSIGNAL);
        let sent = rustix::io::retry_on_intr(send)?;
        if sent == message.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// The next word. An emulator that sends byte by byte has no more time than one that does not.
    fn word(&mut self) -> io::Result<u32> {
        let (mut bytes, mut have) = ([0; 4], 0);
        while let Some(rest) = bytes.get_mut(have..).filter(|rest| !rest.is_empty()) {
            self.stream.set_read_timeout(Some(self.left()?.min(LOOK)))?;
            match self.stream.read(rest) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => have += n,
                // A signal has come, or it is time to look.
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                    ) =>
                {
                    if !(self.go_on)() {
                        return Err(io::ErrorKind::Interrupted.into());
                    }
                }
                Err(e) => return Err(e),
            }
        }
        Ok(u32::from_be_bytes(bytes))
    }

    /// How much of its time is left; never 0, which would mean without end.
    fn left(&self) -> io::Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }
}

/// Has the TPM carry out `command`; its answer, of `room` bytes at most. Waits for as long as that takes: whoever wants
/// to end it shuts the socket down.
pub(super) fn execute(
    data: &mut UnixStream,
    command: &[u8],
    room: usize,
) -> Result<Vec<u8>, LostError> {
    data.write_all(command)?;
    let mut header = [0; HEADER];
    data.read_exact(&mut header)?;
    let length = command::answer_length(&header, room).ok_or(LostError::Answer { room })?;
    let mut answer = header.to_vec();
    answer.resize(length, 0);
    // An answer has a header at least.
    data.read_exact(answer.get_mut(HEADER..).unwrap_or_default())?;
    Ok(answer)
}

#[cfg(test)]
#[path = "swtpm_tests.rs"]
mod tests;
