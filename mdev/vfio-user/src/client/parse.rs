//! Checks what a server sends, and turns it into the client's types.

use super::{
    AsFd, CheckError, ClientDeviceInfo, ClientIoFd, ClientMapping, ClientRegion, DEFAULT_PEER_FDS,
    Fds, FromBytes, Header, IrqIndex, IrqInfo, MAX_DATA_XFER, MAX_FDS, MAX_IO_FDS, RegionAccess,
    RegionFlags, RegionIndex, SparseArea, check, header_flags, size, wire,
};
use crate::wire::{io_fd, region_flags};

/// The most regions and interrupt indexes that a server may claim; a PCI function has 9 and 5.
const MAX_INDEXES: u32 = 64;
/// The smallest `max_data_xfer_size` that leaves every register access whole.
const MIN_DATA_XFER: u64 = 8;

/// What is wrong with a reply.
#[derive(Debug, thiserror::Error)]
pub(super) enum Bad {
    #[error("the reply answers another message: ID {0}, command {1}")]
    Answers(u16, u16),
    #[error("the message is not a reply: flags {0:#x}")]
    NotReply(u32),
    #[error("descriptors came that do not belong to the reply")]
    Fds,
    #[error("the descriptor that the reply names is missing")]
    NoFd,
    #[error("the payload of {got} bytes is not the expected {wanted}")]
    Payload { got: usize, wanted: u64 },
    #[error("argsz is {0}, more than was offered or less than the fields take")]
    ArgSize(u32),
    #[error("the reply is about {got}, {asked} was asked for")]
    Index { got: u32, asked: u32 },
    #[error("the range in the reply is not the one that was asked for")]
    Range,
    #[error("the device is not a PCI function: flags {0:#x}")]
    NotPci(u32),
    #[error("{0} {1} are more than a PCI function has")]
    TooMany(u32, &'static str),
    #[error("the capabilities at {0} lie outside the reply or form a loop")]
    Caps(u32),
    #[error(
        "the doorbell at {offset:#x} of {size} bytes is not one of the region of {region:#x} bytes"
    )]
    Doorbell { offset: u64, size: u64, region: u64 },
    #[error("version {0}.{1} is not spoken here")]
    Version(u16, u16),
    #[error(transparent)]
    VersionData(#[from] wire::VersionError),
    #[error("max_data_xfer_size {0} is too small for a register")]
    DataSize(u64),
    #[error(transparent)]
    Check(#[from] CheckError),
    #[error("a descriptor could not be copied: {0}")]
    Copy(std::io::Error),
}

pub(super) fn header(ask: &Header, reply: &Header, fds: &Fds) -> Result<(), Bad> {
    if reply.flags & header_flags::TYPE_MASK != header_flags::REPLY {
        return Err(Bad::NotReply(reply.flags));
    }
    if (reply.id, reply.command) != (ask.id, ask.command) {
        return Err(Bad::Answers(reply.id, reply.command));
    }
    let failed = reply.flags & header_flags::ERROR != 0;
    if failed && reply.size != size::<Header>() {
        return Err(Bad::Payload { got: reply.size as usize, wanted: 16 });
    }
    if fds.surplus || (failed && !fds.list.is_empty()) {
        return Err(Bad::Fds);
    }
    Ok(())
}

fn fixed<T: FromBytes>(body: &[u8]) -> Result<(T, &[u8]), Bad> {
    wire::take(body).ok_or(Bad::Payload { got: body.len(), wanted: u64::from(size::<T>()) })
}

fn same_index(got: u32, asked: u32) -> Result<(), Bad> {
    if got == asked { Ok(()) } else { Err(Bad::Index { got, asked }) }
}

/// The server's `max_msg_fds` and `max_data_xfer_size`.
pub(super) fn version(body: &[u8]) -> Result<(usize, usize), Bad> {
    let (version, data) = wire::parse_version(body)?;
    if version.major != wire::MAJOR || version.minor > wire::MINOR {
        return Err(Bad::Version(version.major, version.minor));
    }
    let caps = data.capabilities;
    let fds = caps.max_msg_fds.map_or(DEFAULT_PEER_FDS, |n| n.clamp(1, MAX_FDS as u64) as usize);
    let data = caps.max_data_xfer_size.unwrap_or(u64::from(MAX_DATA_XFER));
    if data < MIN_DATA_XFER {
        return Err(Bad::DataSize(data));
    }
    Ok((fds, data.min(u64::from(MAX_DATA_XFER)) as usize))
}

pub(super) fn device_info(body: &[u8]) -> Result<ClientDeviceInfo, Bad> {
    let (info, _) = fixed::<wire::DeviceInfo>(body)?;
    if info.flags & wire::device_flags::PCI == 0 {
        return Err(Bad::NotPci(info.flags));
    }
    if info.num_regions > MAX_INDEXES {
        return Err(Bad::TooMany(info.num_regions, "regions"));
    }
    if info.num_irqs > MAX_INDEXES {
        return Err(Bad::TooMany(info.num_irqs, "interrupt indexes"));
    }
    Ok(ClientDeviceInfo {
        resettable: info.flags & wire::device_flags::RESET != 0,
        num_regions: info.num_regions,
        num_irqs: info.num_irqs,
    })
}

pub(super) fn irq_info(index: IrqIndex, body: &[u8]) -> Result<IrqInfo, Bad> {
    let (info, _) = fixed::<wire::IrqInfo>(body)?;
    same_index(info.index, index.0)?;
    if info.count > wire::MAX_VECTORS {
        return Err(Bad::TooMany(info.count, "vectors"));
    }
    Ok(IrqInfo { count: info.count })
}

pub(super) fn region_info(
    index: RegionIndex,
    body: &[u8],
    fds: &mut Fds,
) -> Result<ClientRegion, Bad> {
    let (info, _) = fixed::<wire::RegionInfo>(body)?;
    same_index(info.index, index.0)?;
    // Enough was offered for every reply that is accepted.
    if info.argsz as usize != body.len() {
        return Err(Bad::ArgSize(info.argsz));
    }
    let flags = RegionFlags {
        read: info.flags & region_flags::READ != 0,
        write: info.flags & region_flags::WRITE != 0,
    };
    let mut region = ClientRegion { size: info.size, flags, mapping: None };
    if info.flags & region_flags::MMAP == 0 {
        return if fds.list.is_empty() { Ok(region) } else { Err(Bad::Fds) };
    }
    if fds.list.len() > 1 {
        return Err(Bad::Fds);
    }
    let fd = fds.list.pop().ok_or(Bad::NoFd)?;
    let areas = match sparse_areas(&info, body)? {
        Some(areas) => areas,
        None => vec![SparseArea { offset: 0, size: info.size }],
    };
    let last = check::areas(info.size, &areas)?;
    if areas.is_empty() {
        return Ok(region);
    }
    // Also finds a base that is not aligned, and a sum that overflows.
    let end = check::page_range("the region's offset in the fd", info.offset, last)?;
    check::memfd(fd.as_fd(), end)?;
    let write = flags.write && check::can_map_for_writing(fd.as_fd())?;
    region.mapping = Some(ClientMapping { fd, fd_offset: info.offset, write, areas });
    Ok(region)
}

/// The areas of the sparse-mmap capability; `None`: there is none, the whole region can be mapped.
fn sparse_areas(info: &wire::RegionInfo, body: &[u8]) -> Result<Option<Vec<SparseArea>>, Bad> {
    if info.flags & region_flags::CAPS == 0 {
        return Ok(None);
    }
    let mut at = info.cap_offset;
    // Capabilities may only follow each other upwards, which ends every chain.
    let mut least = size::<wire::RegionInfo>();
    while at != 0 {
        if at < least {
            return Err(Bad::Caps(at));
        }
        let (cap, rest) =
            body.get(at as usize..).and_then(wire::take::<wire::CapHeader>).ok_or(Bad::Caps(at))?;
        if cap.id == region_flags::CAP_SPARSE_MMAP {
            return areas(rest).map(Some);
        }
        least = at.saturating_add(size::<wire::CapHeader>());
        at = cap.next;
    }
    Ok(None)
}

fn areas(bytes: &[u8]) -> Result<Vec<SparseArea>, Bad> {
    let (head, mut rest) = fixed::<wire::SparseHeader>(bytes)?;
    if head.nr_areas as usize > wire::MAX_AREAS {
        return Err(CheckError::TooManyAreas(head.nr_areas as usize).into());
    }
    let mut areas = Vec::with_capacity(head.nr_areas as usize);
    for _ in 0..head.nr_areas {
        let (area, next) = fixed::<wire::Area>(rest)?;
        areas.push(SparseArea { offset: area.offset, size: area.size });
        rest = next;
    }
    Ok(areas)
}

/// The doorbells that this client understands; what it does not, it leaves to `REGION_WRITE`.
pub(super) fn region_io_fds(
    index: RegionIndex,
    region: u64,
    body: &[u8],
    fds: &Fds,
) -> Result<Vec<ClientIoFd>, Bad> {
    let (head, mut rest) = fixed::<wire::RegionIoFds>(body)?;
    same_index(head.index, index.0)?;
    if head.count as usize > MAX_IO_FDS {
        return Err(Bad::TooMany(head.count, "doorbells"));
    }
    let wanted = u64::from(head.count) * u64::from(size::<wire::IoFd>());
    if rest.len() as u64 != wanted || head.argsz as usize != body.len() {
        return Err(Bad::Payload { got: rest.len(), wanted });
    }
    for fd in &fds.list {
        check::eventfd(fd.as_fd())?;
    }
    let mut doorbells = Vec::with_capacity(head.count as usize);
    for _ in 0..head.count {
        let (entry, next) = fixed::<wire::IoFd>(rest)?;
        rest = next;
        if entry.kind != io_fd::TYPE_IOEVENTFD || entry.flags & !io_fd::FLAG_DATAMATCH != 0 {
            continue;
        }
        doorbells.push(doorbell(&entry, region, fds)?);
    }
    Ok(doorbells)
}

fn doorbell(entry: &wire::IoFd, region: u64, fds: &Fds) -> Result<ClientIoFd, Bad> {
    let wire::IoFd { offset, size, .. } = *entry;
    let matches = entry.flags & io_fd::FLAG_DATAMATCH != 0;
    let end = offset.checked_add(size.max(1)).filter(|&end| end <= region);
    // KVM matches a value only where it knows how wide the write is.
    let width = matches!(size, 1 | 2 | 4 | 8) || (size == 0 && !matches);
    if end.is_none() || !width {
        return Err(Bad::Doorbell { offset, size, region });
    }
    let fd = fds.list.get(entry.fd_index as usize).ok_or(Bad::NoFd)?;
    let fd = fd.try_clone().map_err(Bad::Copy)?;
    Ok(ClientIoFd { offset, size, fd, datamatch: matches.then_some(entry.datamatch) })
}

/// The data of a region access's reply, `data` bytes.
pub(super) fn access<'b>(ask: &RegionAccess, body: &'b [u8], data: usize) -> Result<&'b [u8], Bad> {
    let (reply, rest) = fixed::<RegionAccess>(body)?;
    if reply != *ask {
        return Err(Bad::Range);
    }
    if rest.len() != data {
        let wanted = u64::from(size::<RegionAccess>()) + data as u64;
        return Err(Bad::Payload { got: body.len(), wanted });
    }
    Ok(rest)
}

pub(super) fn dma_unmap(ask: &wire::DmaUnmap, body: &[u8]) -> Result<(), Bad> {
    let (reply, _) = fixed::<wire::DmaUnmap>(body)?;
    if (reply.address, reply.size) == (ask.address, ask.size) { Ok(()) } else { Err(Bad::Range) }
}
