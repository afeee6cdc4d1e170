//! A blocking client, for a VMM.
//!
//! One command at a time: [`Client`] is used through `&mut`, so that a VMM with several threads puts it behind
//! a mutex. Every answer has a deadline, and all that a server sends is checked before it is handed on. After
//! [`ClientError::Disconnected`], [`ClientError::Timeout`] or [`ClientError::Protocol`] the connection is of no
//! more use, and every further call that asks the server something says `Disconnected`.

mod parse;
mod types;

use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use zerocopy::{FromBytes, IntoBytes};

pub use types::{ClientDeviceInfo, ClientError, ClientIoFd, ClientMapping, ClientRegion};

use crate::check::{self, CheckError};
use crate::inbox::Inbox;
use crate::socket::{Fds, Socket, SocketError, Wait};
use crate::wire::{
    self, Capabilities, DEFAULT_PEER_FDS, Header, MAX_AREAS, MAX_DATA_XFER, MAX_FDS, MAX_IO_FDS,
    PAGE_SIZE, RegionAccess, VersionData, command, dma_flags, header_flags, irq_flags, size,
};
use crate::{DmaFlags, IrqIndex, IrqInfo, RegionFlags, RegionIndex, SparseArea};

/// How long a client waits for an answer unless told otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection to a server, past its version.
#[derive(Debug)]
pub struct Client {
    socket: Socket,
    timeout: Duration,
    /// The kernel knows the timeout.
    in_kernel: bool,
    /// Cleared by what makes the stream's position unknown.
    alive: bool,
    next_id: u16,
    /// The server's `max_msg_fds`, at most [`MAX_FDS`].
    peer_fds: usize,
    /// The server's `max_data_xfer_size`, at most [`MAX_DATA_XFER`].
    max_data: usize,
    inbox: Inbox,
    /// The message to send and the received payload; both reused.
    out: Vec<u8>,
    body: Vec<u8>,
    fds: Fds,
}

impl Client {
    /// Connects to the server that listens at `path`. `timeout` bounds the connection and later each answer.
    ///
    /// # Errors
    /// [`ClientError::Connect`], and those of [`from_stream`](Self::from_stream).
    pub fn connect(path: impl AsRef<Path>, timeout: Duration) -> Result<Self, ClientError> {
        let path = path.as_ref();
        let connect = || -> rustix::io::Result<UnixStream> {
            let address = SocketAddrUnix::new(path)?;
            let socket = rustix::net::socket_with(
                AddressFamily::UNIX,
                SocketType::STREAM,
                SocketFlags::CLOEXEC,
                None,
            )?;
            // The send timeout is also what ends a connect to a server whose backlog is full.
            let limit = Some(timeout.max(Duration::from_millis(1)));
            rustix::net::sockopt::set_socket_timeout(
                &socket,
                rustix::net::sockopt::Timeout::Send,
                limit,
            )?;
            rustix::io::retry_on_intr(|| rustix::net::connect(&socket, &address))?;
            Ok(UnixStream::from(socket))
        };
        match connect() {
            Ok(stream) => Self::with_timeout(stream, timeout),
            Err(Errno::AGAIN) => Err(ClientError::Timeout("connecting")),
            Err(e) => Err(ClientError::Connect { path: path.to_owned(), source: e.into() }),
        }
    }

    /// Negotiates the version on a connected stream, with [`DEFAULT_TIMEOUT`].
    ///
    /// # Errors
    /// Those of any call; [`ClientError::Protocol`] for a version that is not spoken here.
    pub fn from_stream(stream: UnixStream) -> Result<Self, ClientError> {
        Self::with_timeout(stream, DEFAULT_TIMEOUT)
    }

    /// [`from_stream`](Self::from_stream), with another timeout.
    ///
    /// # Errors
    /// The same.
    pub fn with_timeout(stream: UnixStream, timeout: Duration) -> Result<Self, ClientError> {
        let mut client = Self {
            socket: Socket::new(stream),
            timeout,
            in_kernel: false,
            alive: true,
            next_id: 0,
            peer_fds: DEFAULT_PEER_FDS,
            max_data: MAX_DATA_XFER as usize,
            out: Vec::new(),
            inbox: Inbox::default(),
            body: Vec::new(),
            fds: Fds::default(),
        };
        client.set_timeout(timeout);
        client.negotiate()?;
        Ok(client)
    }

    /// How long each answer may take from now on.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
        self.in_kernel = self.socket.set_timeout(timeout);
    }

    /// What the device is.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn device_info(&mut self) -> Result<ClientDeviceInfo, ClientError> {
        let ask = wire::DeviceInfo { argsz: size::<wire::DeviceInfo>(), ..Default::default() };
        self.begin(&ask);
        self.call(command::DEVICE_GET_INFO, &[])?;
        self.checked(command::DEVICE_GET_INFO, |client| parse::device_info(&client.body))
    }

    /// What a region is.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn region_info(&mut self, index: RegionIndex) -> Result<ClientRegion, ClientError> {
        let room = size::<wire::CapHeader>()
            + size::<wire::SparseHeader>()
            + MAX_AREAS as u32 * size::<wire::Area>();
        let argsz = size::<wire::RegionInfo>() + room;
        self.begin(&wire::RegionInfo { argsz, index: index.0, ..Default::default() });
        self.call_with_fds(command::DEVICE_GET_REGION_INFO)?;
        self.checked(command::DEVICE_GET_REGION_INFO, |client| {
            parse::region_info(index, &client.body, &mut client.fds)
        })
    }

    /// The doorbells of a region. A server that has none, or does not serve the command, gives an empty list.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn region_io_fds(&mut self, index: RegionIndex) -> Result<Vec<ClientIoFd>, ClientError> {
        let region = self.region_info(index)?.size;
        let argsz = size::<wire::RegionIoFds>() + MAX_IO_FDS as u32 * size::<wire::IoFd>();
        self.begin(&wire::RegionIoFds { argsz, index: index.0, ..Default::default() });
        match self.call_with_fds(command::DEVICE_GET_REGION_IO_FDS) {
            Err(ClientError::Refused { errno, .. }) if errno == Errno::OPNOTSUPP.raw_os_error() => {
                return Ok(Vec::new());
            }
            other => other?,
        }
        self.checked(command::DEVICE_GET_REGION_IO_FDS, |client| {
            parse::region_io_fds(index, region, &client.body, &client.fds)
        })
    }

    /// What an interrupt index is.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn irq_info(&mut self, index: IrqIndex) -> Result<IrqInfo, ClientError> {
        let argsz = size::<wire::IrqInfo>();
        self.begin(&wire::IrqInfo { argsz, index: index.0, ..Default::default() });
        self.call(command::DEVICE_GET_IRQ_INFO, &[])?;
        self.checked(command::DEVICE_GET_IRQ_INFO, |client| parse::irq_info(index, &client.body))
    }

    /// Reads `data.len()` bytes at `offset` of a region; longer reads than the server takes are split.
    ///
    /// # Errors
    /// See [`ClientError`]; `data` may be filled in part.
    pub fn region_read(
        &mut self,
        index: RegionIndex,
        offset: u64,
        data: &mut [u8],
    ) -> Result<(), ClientError> {
        require_range(command::REGION_READ, offset, data.len())?;
        let mut at = offset;
        for part in data.chunks_mut(self.max_data) {
            let ask = RegionAccess { offset: at, region: index.0, count: part.len() as u32 };
            self.begin(&ask);
            self.call(command::REGION_READ, &[])?;
            self.checked(command::REGION_READ, |client| {
                let bytes = parse::access(&ask, &client.body, part.len())?;
                part.copy_from_slice(bytes);
                Ok(())
            })?;
            at += part.len() as u64;
        }
        Ok(())
    }

    /// Writes `data` at `offset` of a region; longer writes than the server takes are split.
    ///
    /// # Errors
    /// See [`ClientError`]; `data` may be written in part.
    pub fn region_write(
        &mut self,
        index: RegionIndex,
        offset: u64,
        data: &[u8],
    ) -> Result<(), ClientError> {
        require_range(command::REGION_WRITE, offset, data.len())?;
        let mut at = offset;
        for part in data.chunks(self.max_data) {
            let ask = RegionAccess { offset: at, region: index.0, count: part.len() as u32 };
            self.begin(&ask);
            self.out.extend_from_slice(part);
            self.call(command::REGION_WRITE, &[])?;
            self.checked(command::REGION_WRITE, |client| {
                parse::access(&ask, &client.body, 0).map(|_| ())
            })?;
            at += part.len() as u64;
        }
        Ok(())
    }

    /// Signals `fds`, eventfds, for the vectors from `start` on.
    ///
    /// # Errors
    /// See [`ClientError`]; the fds go in portions of what the server takes, so that some may be set.
    pub fn set_irqs(
        &mut self,
        index: IrqIndex,
        start: u32,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), ClientError> {
        let mut at = start;
        for part in fds.chunks(self.peer_fds) {
            let flags = irq_flags::DATA_EVENTFD | irq_flags::ACTION_TRIGGER;
            self.irq_command(flags, index, at, part.len() as u32, part)?;
            at = at.saturating_add(part.len() as u32);
        }
        Ok(())
    }

    /// Forgets the eventfds of `count` vectors from `start` on; with both 0, of the whole index.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn clear_irqs(
        &mut self,
        index: IrqIndex,
        start: u32,
        count: u32,
    ) -> Result<(), ClientError> {
        let data = if count == 0 { irq_flags::DATA_NONE } else { irq_flags::DATA_EVENTFD };
        self.irq_command(data | irq_flags::ACTION_TRIGGER, index, start, count, &[])
    }

    /// Has the device signal `count` vectors from `start` on, once.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn trigger_irqs(
        &mut self,
        index: IrqIndex,
        start: u32,
        count: u32,
    ) -> Result<(), ClientError> {
        if count == 0 {
            // On the wire that would clear the whole index.
            return Ok(());
        }
        let flags = irq_flags::DATA_NONE | irq_flags::ACTION_TRIGGER;
        self.irq_command(flags, index, start, count, &[])
    }

    fn irq_command(
        &mut self,
        flags: u32,
        index: IrqIndex,
        start: u32,
        count: u32,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), ClientError> {
        let argsz = size::<wire::IrqSet>();
        self.begin(&wire::IrqSet { argsz, flags, index: index.0, start, count });
        self.call(command::DEVICE_SET_IRQS, fds)
    }

    /// Lends guest memory to the device: `size` bytes of `fd`, a memfd sealed against shrinking, from
    /// `fd_offset` on, at `iova`. All three are page-aligned.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn dma_map(
        &mut self,
        iova: u64,
        size: u64,
        flags: DmaFlags,
        fd: BorrowedFd<'_>,
        fd_offset: u64,
    ) -> Result<(), ClientError> {
        require_page_range(command::DMA_MAP, iova, size)?;
        let read = if flags.read { dma_flags::READ } else { 0 };
        let write = if flags.write { dma_flags::WRITE } else { 0 };
        let argsz = wire::size::<wire::DmaMap>();
        let flags = read | write;
        self.begin(&wire::DmaMap { argsz, flags, offset: fd_offset, address: iova, size });
        self.call(command::DMA_MAP, &[fd])
    }

    /// Takes back exactly a range that was lent. When it returns, the device no longer uses it.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn dma_unmap(&mut self, iova: u64, size: u64) -> Result<(), ClientError> {
        require_page_range(command::DMA_UNMAP, iova, size)?;
        let argsz = wire::size::<wire::DmaUnmap>();
        let ask = wire::DmaUnmap { argsz, flags: 0, address: iova, size };
        self.begin(&ask);
        self.call(command::DMA_UNMAP, &[])?;
        self.checked(command::DMA_UNMAP, |client| parse::dma_unmap(&ask, &client.body))
    }

    /// Resets the function.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn reset(&mut self) -> Result<(), ClientError> {
        self.begin(&());
        self.call(command::DEVICE_RESET, &[])
    }

    fn negotiate(&mut self) -> Result<(), ClientError> {
        let name = command::name(command::VERSION);
        let ours = Capabilities {
            max_msg_fds: Some(MAX_FDS as u64),
            max_data_xfer_size: Some(u64::from(MAX_DATA_XFER)),
            max_dma_maps: Some(u64::from(wire::MAX_DMA_MAPS)),
            pgsizes: Some(PAGE_SIZE),
            write_multiple: None,
        };
        self.begin(&());
        let version = wire::Version { major: wire::MAJOR, minor: wire::MINOR };
        wire::write_version(&mut self.out, version, &VersionData { capabilities: ours })
            .map_err(|e| ClientError::Invalid { command: name, what: e.to_string() })?;
        self.call(command::VERSION, &[])?;
        let (peer_fds, max_data) =
            self.checked(command::VERSION, |client| parse::version(&client.body))?;
        (self.peer_fds, self.max_data) = (peer_fds, max_data);
        Ok(())
    }

    /// Starts the message to send with room for its header, and `fields`.
    fn begin(&mut self, fields: &(impl IntoBytes + zerocopy::Immutable)) {
        self.out.clear();
        self.out.resize(size_of::<Header>(), 0);
        self.out.extend_from_slice(fields.as_bytes());
    }

    /// [`call_with_fds`](Self::call_with_fds) for commands whose replies bring no descriptors.
    fn call(&mut self, number: u16, fds: &[BorrowedFd<'_>]) -> Result<(), ClientError> {
        self.exchange(number, fds)?;
        self.checked(
            number,
            |client| {
                if client.fds.list.is_empty() { Ok(()) } else { Err(parse::Bad::Fds) }
            },
        )
    }

    fn call_with_fds(&mut self, number: u16) -> Result<(), ClientError> {
        self.exchange(number, &[])
    }

    /// Sends the message that was begun, and receives its reply into `body` and `fds`.
    fn exchange(&mut self, number: u16, fds: &[BorrowedFd<'_>]) -> Result<(), ClientError> {
        let name = command::name(number);
        if !self.alive {
            return Err(ClientError::Disconnected(name));
        }
        self.next_id = self.next_id.wrapping_add(1);
        let ask = Header {
            id: self.next_id,
            command: number,
            size: self.out.len() as u32,
            flags: header_flags::COMMAND,
            error: 0,
        };
        self.out[..size_of::<Header>()].copy_from_slice(ask.as_bytes());
        self.fds.clear();
        let received = self.transfer(fds);
        let reply = received.map_err(|e| {
            self.hang_up();
            match e {
                SocketError::Closed | SocketError::Cut(_) | SocketError::Stopped => {
                    ClientError::Disconnected(name)
                }
                SocketError::Timeout => ClientError::Timeout(name),
                SocketError::Io(errno) => ClientError::Io { command: name, errno },
                SocketError::Size(_) | SocketError::Surplus(_) => {
                    ClientError::Protocol { command: name, what: e.to_string() }
                }
            }
        })?;
        self.checked(number, |client| parse::header(&ask, &reply, &client.fds))?;
        if reply.flags & header_flags::ERROR != 0 {
            let errno = i32::try_from(reply.error).unwrap_or(0);
            return Err(ClientError::Refused { command: name, errno });
        }
        Ok(())
    }

    fn transfer(&mut self, fds: &[BorrowedFd<'_>]) -> Result<Header, SocketError> {
        let deadline = Instant::now().checked_add(self.timeout);
        let wait = Wait { stop: None, deadline, in_kernel: self.in_kernel };
        self.socket.send(&self.out, fds, wait)?;
        // One command at a time, so one reply: a server that says more is out of step.
        let reply = self.inbox.receive(&self.socket, &mut self.body, &mut self.fds, wait)?;
        match self.inbox.left() {
            0 => Ok(reply),
            surplus => Err(SocketError::Surplus(surplus)),
        }
    }

    /// Ends the connection. A server that is there still hears of it, and gives back what it had: guest memory above
    /// all.
    pub fn hang_up(&mut self) {
        self.alive = false;
        // It fails where the server has hung up.
        let _ = self.socket.stream().shutdown(Shutdown::Both);
    }

    /// Turns what `read` finds wrong with a reply into an error that ends the connection.
    fn checked<T>(
        &mut self,
        number: u16,
        read: impl FnOnce(&mut Self) -> Result<T, parse::Bad>,
    ) -> Result<T, ClientError> {
        read(self).map_err(|bad| {
            self.hang_up();
            self.fds.clear();
            ClientError::Protocol { command: command::name(number), what: bad.to_string() }
        })
    }
}

/// The connection, for a poll that waits for the server's end. Nothing else may be done with it.
impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.stream().as_fd()
    }
}

fn require_range(number: u16, offset: u64, length: usize) -> Result<(), ClientError> {
    if offset.checked_add(length as u64).is_some() {
        return Ok(());
    }
    let what = format!("{offset:#x} + {length:#x} overflows");
    Err(ClientError::Invalid { command: command::name(number), what })
}

fn require_page_range(number: u16, start: u64, size: u64) -> Result<(), ClientError> {
    check::page_range("the address", start, size)
        .map(|_| ())
        .map_err(|e| ClientError::Invalid { command: command::name(number), what: e.to_string() })
}

#[cfg(test)]
mod tests;
