//! One connection: the version, then command by command.

use std::os::fd::{AsFd, BorrowedFd};

use zerocopy::IntoBytes;

use super::maps::Maps;
use super::refusal::Refusal;
use super::{ServeError, Stop, access, query, resources};
use crate::inbox::Inbox;
use crate::socket::{Fds, Socket, SocketError, Wait};
use crate::wire::{
    self, Capabilities, DEFAULT_PEER_FDS, Header, MAX_DATA_XFER, MAX_DMA_MAPS, MAX_FDS, PAGE_SIZE,
    VersionData, command, header_flags, size,
};
use crate::{Device, RegionFlags, RegionIndex};

/// How many refusals of a connection are told at `warn`; a client can cause any number, so the rest go to
/// `debug`.
const LOUD_REFUSALS: u32 = 8;

/// Bounds of a region's trapped accesses, learnt once so that an access allocates nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RegionBounds {
    pub(super) size: u64,
    pub(super) flags: RegionFlags,
}

/// What the client said, and what it holds.
#[derive(Debug)]
pub(super) struct State {
    /// The most fds that the client takes in one message.
    pub(super) peer_fds: usize,
    /// The most bytes of one data transfer.
    pub(super) max_data: u32,
    /// `REGION_WRITE_MULTI` was agreed.
    pub(super) write_multiple: bool,
    /// DMA ranges that are mapped.
    pub(super) maps: Maps,
    /// By region index.
    pub(super) regions: [RegionBounds; RegionIndex::COUNT as usize],
}

/// What a handler leaves: a payload in the session's buffer, and descriptors for it.
pub(super) type Reply<'d> = Result<Vec<BorrowedFd<'d>>, Refusal>;

/// A connection whose version is negotiated.
pub(super) struct Session<'a> {
    socket: &'a Socket,
    stop: &'a Stop,
    wait: Wait<'a>,
    state: State,
    refusals: u32,
    inbox: Inbox,
    /// The received payload and the message to send; both reused.
    body: Vec<u8>,
    out: Vec<u8>,
    fds: Fds,
}

impl<'a> Session<'a> {
    /// Negotiates the version, which must be the client's first message.
    pub(super) fn open(socket: &'a Socket, stop: &'a Stop) -> Result<Self, ServeError> {
        let wait = Wait { stop: Some(stop.as_fd()), deadline: None, in_kernel: true };
        let (mut body, mut fds, mut out) = (Vec::new(), Fds::default(), Vec::new());
        let mut inbox = Inbox::default();
        let header =
            inbox.receive(socket, &mut body, &mut fds, wait).map_err(ServeError::Stream)?;
        require_command(&header)?;
        fds.clear();
        let outcome = if header.command == command::VERSION {
            negotiate(&body, &mut out)
        } else {
            Err(ServeError::NotVersion(command::name(header.command)))
        };
        match outcome {
            Ok(state) => {
                finish(&header, &mut out, None);
                socket.send(&out, &[], wait).map_err(ServeError::Stream)?;
                Ok(Self { socket, stop, wait, state, refusals: 0, inbox, body, out, fds })
            }
            Err(e) => {
                finish(&header, &mut out, Some(rustix::io::Errno::INVAL));
                // The client learns why if it still listens; the connection ends in any case.
                let _ = socket.send(&out, &[], wait);
                Err(e)
            }
        }
    }

    /// Asks for sizes and rights once; they do not change while a client is connected.
    pub(super) fn learn_regions(&mut self, device: &dyn Device) {
        for (index, bounds) in (0..).zip(&mut self.state.regions) {
            let info = device.region(RegionIndex(index));
            *bounds = RegionBounds { size: info.size, flags: info.flags };
        }
    }

    /// Serves commands until the stream ends.
    pub(super) fn run(&mut self, device: &mut dyn Device) -> Result<(), ServeError> {
        loop {
            // What has come before the socket was shut down can still be received.
            if self.stop.is_stopped() {
                return Err(ServeError::Stream(SocketError::Stopped));
            }
            let header = self
                .inbox
                .receive(self.socket, &mut self.body, &mut self.fds, self.wait)
                .map_err(ServeError::Stream)?;
            require_command(&header)?;
            self.answer(&header, device)?;
        }
    }

    fn answer(&mut self, header: &Header, device: &mut dyn Device) -> Result<(), ServeError> {
        start(&mut self.out);
        let reply = dispatch(
            header.command,
            &self.body,
            &mut self.fds,
            &mut self.state,
            device,
            &mut self.out,
        );
        let (fds, errno) = match reply {
            Ok(fds) => (fds, None),
            Err(refusal) => {
                self.refusals = self.refusals.saturating_add(1);
                let name = command::name(header.command);
                if self.refusals <= LOUD_REFUSALS {
                    tracing::warn!("refused {name}: {refusal}");
                } else {
                    tracing::debug!("refused {name}: {refusal}");
                }
                (Vec::new(), Some(refusal.errno()))
            }
        };
        if header.flags & header_flags::NO_REPLY != 0 {
            return Ok(());
        }
        finish(header, &mut self.out, errno);
        self.socket.send(&self.out, &fds, self.wait).map_err(ServeError::Stream)
    }
}

/// Calls the handler of `command`.
fn dispatch<'d>(
    number: u16,
    body: &[u8],
    fds: &mut Fds,
    state: &mut State,
    device: &'d mut dyn Device,
    out: &mut Vec<u8>,
) -> Reply<'d> {
    let takes_fds = matches!(number, command::DMA_MAP | command::DEVICE_SET_IRQS);
    if fds.surplus || (!takes_fds && !fds.list.is_empty()) {
        let wanted = if takes_fds { MAX_FDS as u32 } else { 0 };
        return Err(Refusal::Fds { got: fds.list.len(), surplus: fds.surplus, wanted });
    }
    match number {
        command::VERSION => return Err(Refusal::VersionAgain),
        command::DEVICE_GET_INFO => query::device_info(body, device, out)?,
        command::DEVICE_GET_REGION_INFO => return query::region_info(body, device, out),
        command::DEVICE_GET_REGION_IO_FDS => return query::region_io_fds(body, state, device, out),
        command::DEVICE_GET_IRQ_INFO => query::irq_info(body, device, out)?,
        command::DEVICE_SET_IRQS => resources::set_irqs(body, &mut fds.list, device)?,
        command::DMA_MAP => resources::dma_map(body, &mut fds.list, state, device)?,
        command::DMA_UNMAP => resources::dma_unmap(body, state, device, out)?,
        command::REGION_READ => access::region_read(body, state, device, out)?,
        command::REGION_WRITE => access::region_write(body, state, device, out)?,
        command::REGION_WRITE_MULTI if state.write_multiple => {
            access::region_write_multi(body, state, device, out)?;
        }
        command::DEVICE_RESET if device.info().resettable => device.reset(),
        other => return Err(Refusal::Command(other)),
    }
    Ok(Vec::new())
}

fn require_command(header: &Header) -> Result<(), ServeError> {
    match header.flags & header_flags::TYPE_MASK {
        header_flags::COMMAND => Ok(()),
        other => Err(ServeError::NotCommand(other)),
    }
}

/// Leaves room for the header.
fn start(out: &mut Vec<u8>) {
    out.clear();
    out.resize(size_of::<Header>(), 0);
}

/// Fills in the header of the reply to `request`; an error has no payload.
fn finish(request: &Header, out: &mut Vec<u8>, errno: Option<rustix::io::Errno>) {
    if errno.is_some() || out.len() < size_of::<Header>() {
        start(out);
    }
    let header = Header {
        id: request.id,
        command: request.command,
        size: out.len() as u32,
        flags: header_flags::REPLY | if errno.is_some() { header_flags::ERROR } else { 0 },
        error: errno.map_or(0, |e| e.raw_os_error().unsigned_abs()),
    };
    out[..size::<Header>() as usize].copy_from_slice(header.as_bytes());
}

/// The reply's version and capabilities. As the specification asks, only what the client named is answered.
fn negotiate(body: &[u8], out: &mut Vec<u8>) -> Result<State, ServeError> {
    let refuse = |e: wire::VersionError| match e {
        wire::VersionError::Json(e) => {
            ServeError::Version(format!("its JSON is not understood: {e}"))
        }
        e => ServeError::Version(e.to_string()),
    };
    let (version, data) = wire::parse_version(body).map_err(refuse)?;
    if version.major != wire::MAJOR {
        let what =
            format!("{}.{} is not spoken here, {}.x is", version.major, version.minor, wire::MAJOR);
        return Err(ServeError::Version(what));
    }
    let theirs = data.capabilities;
    let max_data = match theirs.max_data_xfer_size {
        None => MAX_DATA_XFER,
        Some(n) => u32::try_from(n).unwrap_or(u32::MAX).min(MAX_DATA_XFER),
    };
    let peer_fds = theirs.max_msg_fds.map_or(DEFAULT_PEER_FDS, |n| n.min(MAX_FDS as u64) as usize);
    let ours = Capabilities {
        max_msg_fds: theirs.max_msg_fds.map(|_| MAX_FDS as u64),
        max_data_xfer_size: theirs.max_data_xfer_size.map(|_| u64::from(MAX_DATA_XFER)),
        max_dma_maps: theirs.max_dma_maps.map(|n| n.min(u64::from(MAX_DMA_MAPS))),
        pgsizes: theirs.pgsizes.map(|_| PAGE_SIZE),
        write_multiple: theirs.write_multiple,
    };
    start(out);
    let version = wire::Version { major: wire::MAJOR, minor: version.minor.min(wire::MINOR) };
    wire::write_version(out, version, &VersionData { capabilities: ours }).map_err(refuse)?;
    let write_multiple = theirs.write_multiple == Some(true);
    let regions = [RegionBounds::default(); RegionIndex::COUNT as usize];
    Ok(State { peer_fds, max_data, write_multiple, maps: Maps::default(), regions })
}
