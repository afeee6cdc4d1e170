//! A hostile VMM: any bytes and descriptors into our vfio-user server.
//!
//! The device behind it is one that believes every promise which [`Device`] makes to it, and looks whether
//! it is kept.

use crate::fds::{Open, Pool, eventfd, memfd, send};
use crate::input::Input;
use beamline_vfio_user::server::{End, Stop, serve};
use beamline_vfio_user::wire::{self, Header, MAX_DMA_MAPS, PAGE_SIZE, command, header_flags};
use beamline_vfio_user::{
    Device, DeviceError, DeviceInfo, DmaMap, IoFd, IrqAction, IrqIndex, IrqInfo, RegionFlags,
    RegionIndex, RegionInfo, RegionMapping, SparseArea,
};
use rustix::fs::SealFlags;
use std::collections::BTreeMap;
use std::io::Read;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use zerocopy::{FromBytes, IntoBytes};

/// All replies must fit into the socket, because nobody reads them before the end.
const MAX_MESSAGES: usize = 32;
const MAX_RAW: usize = 256;
const REGISTERS: u64 = 1024;
const CONFIG: u64 = 256;
const PAGES: u64 = 0x4000;
const VECTORS: u32 = 8;

thread_local! {
    static FIXED: (Pool, Stop, OwnedFd, OwnedFd) = (
        Pool::new(),
        Stop::new().expect("an eventfd can be made"),
        memfd(SealFlags::SHRINK),
        eventfd(),
    );
}

/// Runs one connection from its first byte to its end.
pub(crate) fn run(data: &[u8]) {
    FIXED.with(|(pool, stop, pages, bell)| {
        let open = Open::now();
        let (ours, theirs) = UnixStream::pair().expect("a socket pair can be made");
        let sent = send_all(&mut Input::new(data), &ours, pool);
        ours.shutdown(Shutdown::Write).expect("our half can be closed");
        let mut device = Probe { pages, bell, maps: BTreeMap::new(), gone: false };
        let end = serve(theirs, &mut device, stop);
        assert!(device.maps.is_empty(), "the device was not told that its client is gone");
        let replies = receive_all(ours);
        if sent.exact && matches!(end, Ok(End::Disconnected)) && device.gone {
            let answered: Vec<_> = replies.iter().map(|reply| (reply.id, reply.command)).collect();
            assert_eq!(answered, sent.due, "every command is answered once and in its order");
        }
        open.check();
    });
}

/// What was sent.
struct Sent {
    /// IDs and numbers of the commands that are to be answered.
    due: Vec<(u16, u16)>,
    /// Only whole commands were sent, all of them.
    exact: bool,
}

fn send_all(input: &mut Input<'_>, socket: &UnixStream, pool: &Pool) -> Sent {
    let mut sent = Sent { due: Vec::new(), exact: true };
    let mut raw_left = MAX_RAW;
    hello(input, socket, pool, &mut sent);
    for id in 1..MAX_MESSAGES as u16 {
        if input.is_empty() {
            break;
        }
        let op = input.u8();
        let kinds: &[u8] = if op & 0x80 != 0 { input.bytes(crate::fds::MOST) } else { &[] };
        if op & 0x60 == 0x60 {
            let bytes = input.bytes(raw_left);
            raw_left -= bytes.len();
            sent.exact = false;
            send(socket, bytes, pool, kinds);
            continue;
        }
        let number = u16::from(op & 0x1f);
        let no_reply = op & 0x40 != 0;
        let mut body = fields(input, number);
        body.extend_from_slice(input.bytes(255));
        let flags = if no_reply { header_flags::NO_REPLY } else { 0 };
        sent.exact &= put(socket, pool, id, number, flags, &body, kinds);
        // A version that comes first is answered whatever its flags say: nothing follows without one.
        if !no_reply || (sent.due.is_empty() && number == command::VERSION) {
            sent.due.push((id, number));
        }
    }
    sent
}

/// The first message: mostly a version, since nothing follows without one.
fn hello(input: &mut Input<'_>, socket: &UnixStream, pool: &Pool, sent: &mut Sent) {
    let body: &[u8] = match input.below(5) {
        0 => {
            b"\0\0\x01\0{\"capabilities\":{\"max_msg_fds\":16,\"write_multiple\":true,\"pgsizes\":4096}}\0"
        }
        1 => b"\0\0\0\0",
        2 => b"\0\0\0\0{\"capabilities\":{\"max_msg_fds\":0,\"max_data_xfer_size\":64}}\0",
        3 => input.bytes(255),
        _ => return,
    };
    sent.exact &= put(socket, pool, 0, command::VERSION, 0, body, &[]);
    sent.due.push((0, command::VERSION));
}

fn put(
    socket: &UnixStream,
    pool: &Pool,
    id: u16,
    command: u16,
    flags: u32,
    body: &[u8],
    kinds: &[u8],
) -> bool {
    let size = (size_of::<Header>() + body.len()) as u32;
    let header = Header { id, command, size, flags, error: 0 };
    send(socket, &[header.as_bytes(), body].concat(), pool, kinds)
}

/// The fields of a command, of the right widths.
pub(crate) fn fields(input: &mut Input<'_>, number: u16) -> Vec<u8> {
    let widths: &[usize] = match number {
        command::DMA_MAP => &[4, 4, 8, 8, 8],
        command::DMA_UNMAP => &[4, 4, 8, 8],
        command::DEVICE_GET_INFO
        | command::DEVICE_GET_REGION_IO_FDS
        | command::DEVICE_GET_IRQ_INFO => &[4, 4, 4, 4],
        command::DEVICE_GET_REGION_INFO => &[4, 4, 4, 4, 8, 8],
        command::DEVICE_SET_IRQS => &[4, 4, 4, 4, 4],
        command::REGION_READ | command::REGION_WRITE => &[8, 4, 4],
        command::REGION_WRITE_MULTI => &[8, 8, 4, 4, 8],
        _ => &[],
    };
    let mut bytes = Vec::new();
    for width in widths {
        bytes.extend_from_slice(&input.number().to_ne_bytes()[..*width]);
    }
    bytes
}

/// Every reply: a whole message of a size that is allowed, and an error without a payload.
fn receive_all(mut socket: UnixStream) -> Vec<Header> {
    let mut bytes = Vec::new();
    // A server that ends a connection with bytes unread resets it; what it sent before is still there.
    let _ = socket.read_to_end(&mut bytes);
    let mut replies = Vec::new();
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        let (header, _) = Header::read_from_prefix(rest).expect("a reply has a whole header");
        assert_eq!(header.flags & header_flags::TYPE_MASK, header_flags::REPLY);
        assert!((16..=wire::MAX_MESSAGE).contains(&header.size), "{header:?}");
        let failed = header.flags & header_flags::ERROR != 0;
        assert_eq!(failed, header.error != 0, "{header:?}");
        assert!(!failed || header.size == 16, "{header:?}");
        rest = rest.get(header.size as usize..).expect("a reply is as long as it says");
        replies.push(header);
    }
    replies
}

/// BAR0 and configuration space: trapped. BAR2: written or mapped, not read. 8 MSI-X vectors, a doorbell.
struct Probe<'a> {
    pages: &'a OwnedFd,
    bell: &'a OwnedFd,
    maps: BTreeMap<u64, u64>,
    gone: bool,
}

impl Probe<'_> {
    fn check_access(&self, index: RegionIndex, offset: u64, len: usize, write: bool) {
        assert!(index.0 < RegionIndex::COUNT && len > 0);
        let region = self.region(index);
        let end = offset.checked_add(len as u64).expect("an access does not wrap");
        assert!(end <= region.size, "{index:?} {offset:#x} {len:#x}");
        assert!(if write { region.flags.write } else { region.flags.read });
    }
}

impl Device for Probe<'_> {
    fn info(&self) -> DeviceInfo {
        DeviceInfo { resettable: true }
    }

    fn region(&self, index: RegionIndex) -> RegionInfo<'_> {
        assert!(index.0 < RegionIndex::COUNT);
        let trapped = |size, read, write| RegionInfo {
            size,
            flags: RegionFlags { read, write },
            mapping: None,
        };
        match index.0 {
            0 => trapped(REGISTERS, true, true),
            2 => RegionInfo {
                mapping: Some(RegionMapping {
                    fd: self.pages.as_fd(),
                    fd_offset: 0,
                    write: true,
                    areas: vec![
                        SparseArea { offset: 0, size: PAGE_SIZE },
                        SparseArea { offset: 2 * PAGE_SIZE, size: PAGE_SIZE },
                    ],
                }),
                ..trapped(PAGES, false, true)
            },
            7 => trapped(CONFIG, true, false),
            _ => RegionInfo::default(),
        }
    }

    fn irq(&self, index: IrqIndex) -> IrqInfo {
        assert!(index.0 < IrqIndex::COUNT);
        IrqInfo { count: if index == IrqIndex::MSIX { VECTORS } else { 0 } }
    }

    fn io_fds(&self, index: RegionIndex) -> Vec<IoFd<'_>> {
        let bell = IoFd { offset: 8, size: 4, fd: self.bell.as_fd(), datamatch: Some(1) };
        if index.0 == 0 { vec![bell, IoFd { offset: 16, datamatch: None, ..bell }] } else { vec![] }
    }

    fn region_read(
        &mut self,
        index: RegionIndex,
        offset: u64,
        data: &mut [u8],
    ) -> Result<(), DeviceError> {
        self.check_access(index, offset, data.len(), false);
        assert!(data.iter().all(|byte| *byte == 0), "an earlier message shows");
        Ok(())
    }

    fn region_write(
        &mut self,
        index: RegionIndex,
        offset: u64,
        data: &[u8],
    ) -> Result<(), DeviceError> {
        self.check_access(index, offset, data.len(), true);
        if offset == 4 { Err(DeviceError::Unsupported("offset 4")) } else { Ok(()) }
    }

    fn set_irqs(
        &mut self,
        index: IrqIndex,
        start: u32,
        count: u32,
        action: IrqAction,
    ) -> Result<(), DeviceError> {
        let end = start.checked_add(count).expect("vectors do not wrap");
        assert!(end <= self.irq(index).count);
        match action {
            IrqAction::SetEventFds(fds) => {
                assert_eq!(fds.len(), count as usize);
                for fd in fds {
                    let name = format!("/proc/self/fd/{}", fd.as_raw_fd());
                    let name = std::fs::read_link(name).expect("an open descriptor has a name");
                    assert_eq!(name.to_str(), Some("anon_inode:[eventfd]"));
                }
            }
            IrqAction::Clear => assert!(count > 0 || start == 0),
            IrqAction::Trigger => assert!(count > 0),
        }
        Ok(())
    }

    fn dma_map(&mut self, map: DmaMap) -> Result<(), DeviceError> {
        let DmaMap { iova, size, fd, fd_offset, flags } = map;
        assert!(size > 0 && size.is_multiple_of(PAGE_SIZE) && iova.is_multiple_of(PAGE_SIZE));
        let end = iova.checked_add(size).expect("a mapping does not wrap");
        if let Some(fd) = fd {
            assert!(fd_offset.is_multiple_of(PAGE_SIZE));
            let fd_end = fd_offset.checked_add(size).expect("a mapping ends in its memfd");
            let stat = rustix::fs::fstat(&fd).expect("a descriptor can be looked at");
            assert!(fd_end <= stat.st_size as u64);
            let seals = rustix::fs::fcntl_get_seals(&fd).expect("it is a memfd");
            assert!(seals.contains(SealFlags::SHRINK));
            assert!(!flags.write || !seals.intersects(SealFlags::WRITE | SealFlags::FUTURE_WRITE));
        }
        let below = self.maps.range(..end).next_back();
        if below.is_some_and(|(start, size)| start + size > iova) {
            return Err(DeviceError::Exists("it overlaps".into()));
        }
        self.maps.insert(iova, size);
        assert!(self.maps.len() <= MAX_DMA_MAPS as usize);
        Ok(())
    }

    fn dma_unmap(&mut self, iova: u64, size: u64) -> Result<(), DeviceError> {
        assert!(size > 0 && iova.checked_add(size).is_some());
        if self.maps.get(&iova) != Some(&size) {
            return Err(DeviceError::NotFound("no such mapping".into()));
        }
        self.maps.remove(&iova);
        Ok(())
    }

    fn dma_unmap_all(&mut self) {
        self.maps.clear();
    }

    fn reset(&mut self) {
        assert!(!self.gone);
    }

    fn disconnected(&mut self) {
        assert!(!std::mem::replace(&mut self.gone, true), "told twice");
        self.maps.clear();
    }
}
