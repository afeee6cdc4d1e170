//! Emulators for the tests: one that says what a test wants, and the real one.

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use std::io::{IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use tempfile::TempDir;

/// Where an emulator listens.
pub(super) const SOCKET: &str = "tpm.sock";

/// An emulator that serves one connection.
pub(super) struct Fake {
    folder: TempDir,
    thread: Option<JoinHandle<()>>,
}

/// What swtpm says to request `number` where all is well.
pub(super) fn good(number: u32) -> Vec<u8> {
    let words: &[u32] = match number {
        0x01 => &[0, 0xffff],
        0x04 => &[0, 0],
        0x11 => &[0, 0xf80, 0xaf8, 0x1000],
        _ => &[0],
    };
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

impl Fake {
    /// It answers each request by `control`, and hands the data socket to `data`, on a thread of its own.
    pub(super) fn start(
        control: impl Fn(u32) -> Vec<u8> + Send + 'static,
        data: impl FnOnce(UnixStream) + Send + 'static,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join(SOCKET)).unwrap();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            std::thread::scope(|scope| {
                let mut data = Some(data);
                while let Some((number, fd)) = request(&stream) {
                    if let (Some(fd), Some(data)) = (fd, data.take_if(|_| number == 0x10)) {
                        scope.spawn(move || data(UnixStream::from(fd)));
                    }
                    // The other end may have gone.
                    let _ = stream.write_all(&control(number));
                }
            });
        });
        Self { folder, thread: Some(thread) }
    }

    pub(super) fn path(&self) -> PathBuf {
        self.folder.path().join(SOCKET)
    }

    /// Waits until the connection has ended.
    pub(super) fn join(mut self) {
        self.thread.take().expect("it was started").join().expect("the emulator does not panic");
    }
}

/// The next request and what came with it; `None`: the connection has ended.
fn request(stream: &UnixStream) -> Option<(u32, Option<OwnedFd>)> {
    let mut bytes = [0; 64];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let got = recvmsg(stream, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC).ok()?;
    let fd = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let number = bytes.first_chunk().filter(|_| got.bytes >= 4)?;
    Some((u32::from_be_bytes(*number), fd))
}

/// swtpm, where this machine has it.
pub(super) struct Real {
    folder: TempDir,
    process: Child,
}

impl Real {
    /// Starts it; where it is not installed, prints that `test` is skipped.
    pub(super) fn start(test: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        // It is born with its socket, so that nobody waits for that.
        let listener = UnixListener::bind(folder.path().join(SOCKET)).unwrap();
        let started = Command::new("swtpm")
            .args(["socket", "--tpm2", "--ctrl", "type=unixio,fd=0", "--tpmstate"])
            .arg(format!("dir={}", folder.path().display()))
            .stdin(OwnedFd::from(listener))
            .stderr(Stdio::null())
            .spawn();
        match started {
            Ok(process) => Some(Self { folder, process }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                println!("skip: {test}: swtpm is not installed; `make setup` installs it");
                None
            }
            Err(e) => panic!("swtpm: {e}"),
        }
    }

    pub(super) fn path(&self) -> PathBuf {
        self.folder.path().join(SOCKET)
    }

    /// Ends it as a crash would.
    pub(super) fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        self.kill();
    }
}
