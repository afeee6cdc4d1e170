//! What the device is: its regions, doorbells and interrupts.

use std::os::fd::{AsRawFd, BorrowedFd};

use zerocopy::IntoBytes;

use super::refusal::Refusal;
use super::session::{Reply, State};
use crate::check;
use crate::wire::{
    Area, CapHeader, DeviceInfo, IoFd, IrqInfo, MAX_IO_FDS, RegionInfo, RegionIoFds, SparseHeader,
    device_flags, io_fd, irq_flags, region_flags, size, take,
};
use crate::{Device, IrqIndex, RegionIndex, RegionMapping};

/// The fixed fields of a command.
pub(super) fn fixed<T: zerocopy::FromBytes>(body: &[u8]) -> Result<(T, &[u8]), Refusal> {
    take(body).ok_or(Refusal::Payload { got: body.len(), wanted: u64::from(size::<T>()) })
}

/// That the client left room for the fixed fields of the reply.
pub(super) fn room<T>(argsz: u32) -> Result<(), Refusal> {
    let wanted = size::<T>();
    if argsz < wanted { Err(Refusal::ArgSize { got: argsz, wanted }) } else { Ok(()) }
}

pub(super) fn region_index(index: u32) -> Result<RegionIndex, Refusal> {
    if index < RegionIndex::COUNT {
        Ok(RegionIndex(index))
    } else {
        let (value, bound) = (u64::from(index), u64::from(RegionIndex::COUNT));
        Err(Refusal::Range { what: "region", value, bound })
    }
}

pub(super) fn irq_index(index: u32) -> Result<IrqIndex, Refusal> {
    if index < IrqIndex::COUNT {
        Ok(IrqIndex(index))
    } else {
        let (value, bound) = (u64::from(index), u64::from(IrqIndex::COUNT));
        Err(Refusal::Range { what: "interrupt index", value, bound })
    }
}

pub(super) fn device_info(
    body: &[u8],
    device: &dyn Device,
    out: &mut Vec<u8>,
) -> Result<(), Refusal> {
    let (ask, _) = fixed::<DeviceInfo>(body)?;
    room::<DeviceInfo>(ask.argsz)?;
    let reset = if device.info().resettable { device_flags::RESET } else { 0 };
    let reply = DeviceInfo {
        argsz: size::<DeviceInfo>(),
        flags: device_flags::PCI | reset,
        num_regions: RegionIndex::COUNT,
        num_irqs: IrqIndex::COUNT,
    };
    out.extend_from_slice(reply.as_bytes());
    Ok(())
}

pub(super) fn irq_info(body: &[u8], device: &dyn Device, out: &mut Vec<u8>) -> Result<(), Refusal> {
    let (ask, _) = fixed::<IrqInfo>(body)?;
    room::<IrqInfo>(ask.argsz)?;
    let count = device.irq(irq_index(ask.index)?).count;
    // Vectors may be set one by one, none masks itself: only the eventfd flag is due.
    let flags = if count > 0 { irq_flags::INFO_EVENTFD } else { 0 };
    let reply = IrqInfo { argsz: size::<IrqInfo>(), flags, index: ask.index, count };
    out.extend_from_slice(reply.as_bytes());
    Ok(())
}

pub(super) fn region_info<'d>(body: &[u8], device: &'d dyn Device, out: &mut Vec<u8>) -> Reply<'d> {
    let (ask, _) = fixed::<RegionInfo>(body)?;
    room::<RegionInfo>(ask.argsz)?;
    let info = device.region(region_index(ask.index)?);
    let mut reply = RegionInfo {
        argsz: size::<RegionInfo>(),
        index: ask.index,
        size: info.size,
        ..RegionInfo::default()
    };
    reply.flags |= if info.flags.read { region_flags::READ } else { 0 };
    reply.flags |= if info.flags.write { region_flags::WRITE } else { 0 };
    let Some(mapping) = info.mapping.filter(|m| offered(ask.index, info.size, info.flags.write, m))
    else {
        out.extend_from_slice(reply.as_bytes());
        return Ok(Vec::new());
    };
    reply.flags |= region_flags::MMAP | region_flags::CAPS;
    reply.offset = mapping.fd_offset;
    reply.cap_offset = size::<RegionInfo>();
    let areas = mapping.areas.len() as u32;
    reply.argsz += size::<CapHeader>() + size::<SparseHeader>() + areas * size::<Area>();
    out.extend_from_slice(reply.as_bytes());
    // With too little room the client gets the size that it needs, and asks again.
    if reply.argsz <= ask.argsz {
        let cap = CapHeader { id: region_flags::CAP_SPARSE_MMAP, version: 1, next: 0 };
        out.extend_from_slice(cap.as_bytes());
        out.extend_from_slice(SparseHeader { nr_areas: areas, reserved: 0 }.as_bytes());
        for area in &mapping.areas {
            out.extend_from_slice(Area { offset: area.offset, size: area.size }.as_bytes());
        }
    }
    Ok(vec![mapping.fd])
}

/// Whether a mapping can be offered. The wire has one write flag for trapped and mapped access alike, so that
/// a writable region's read-only mapping must be read-only by its fd.
fn offered(region: u32, size: u64, region_write: bool, mapping: &RegionMapping<'_>) -> bool {
    if mapping.areas.is_empty() {
        return false;
    }
    let safe = || -> Result<bool, check::CheckError> {
        let last = check::areas(size, &mapping.areas)?;
        let end = mapping
            .fd_offset
            .checked_add(last)
            .ok_or(check::CheckError::Overflow { start: mapping.fd_offset, size: last })?;
        check::memfd(mapping.fd, end)?;
        Ok(mapping.write || !region_write || !check::can_map_for_writing(mapping.fd)?)
    };
    match safe() {
        Ok(true) => true,
        Ok(false) => {
            tracing::warn!(
                "region {region} is not offered for mapping: its memfd needs F_SEAL_FUTURE_WRITE"
            );
            false
        }
        Err(e) => {
            tracing::warn!("region {region} is not offered for mapping: {e}");
            false
        }
    }
}

pub(super) fn region_io_fds<'d>(
    body: &[u8],
    state: &State,
    device: &'d dyn Device,
    out: &mut Vec<u8>,
) -> Reply<'d> {
    let (ask, _) = fixed::<RegionIoFds>(body)?;
    room::<RegionIoFds>(ask.argsz)?;
    if ask.flags != 0 {
        return Err(Refusal::Flags(ask.flags));
    }
    let doorbells = device.io_fds(region_index(ask.index)?);
    let (entries, fds) = io_fd_entries(&doorbells, state.peer_fds);
    let argsz = size::<RegionIoFds>() + entries.len() as u32 * size::<IoFd>();
    let reply = RegionIoFds { argsz, flags: 0, index: ask.index, count: entries.len() as u32 };
    out.extend_from_slice(reply.as_bytes());
    if argsz > ask.argsz {
        return Ok(Vec::new());
    }
    for entry in &entries {
        out.extend_from_slice(entry.as_bytes());
    }
    Ok(fds)
}

/// The sub-regions, and each descriptor once. Doorbells whose descriptor no longer fits into the message are
/// left out: writes to them come as `REGION_WRITE`.
fn io_fd_entries<'d>(
    doorbells: &[crate::IoFd<'d>],
    most: usize,
) -> (Vec<IoFd>, Vec<BorrowedFd<'d>>) {
    let mut entries = Vec::new();
    let mut fds: Vec<BorrowedFd<'d>> = Vec::new();
    for bell in doorbells.iter().take(MAX_IO_FDS) {
        let known = fds.iter().position(|fd| fd.as_raw_fd() == bell.fd.as_raw_fd());
        if known.is_none() && fds.len() >= most {
            continue;
        }
        let index = known.unwrap_or_else(|| {
            fds.push(bell.fd);
            fds.len() - 1
        });
        entries.push(IoFd {
            offset: bell.offset,
            size: bell.size,
            fd_index: index as u32,
            kind: io_fd::TYPE_IOEVENTFD,
            flags: if bell.datamatch.is_some() { io_fd::FLAG_DATAMATCH } else { 0 },
            padding: 0,
            datamatch: bell.datamatch.unwrap_or(0),
        });
    }
    (entries, fds)
}
