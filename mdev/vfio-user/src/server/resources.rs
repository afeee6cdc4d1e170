//! What the client lends the device: eventfds and guest memory.

use std::os::fd::{AsFd, OwnedFd};

use zerocopy::IntoBytes;

use super::query::{fixed, irq_index, room};
use super::refusal::Refusal;
use super::session::State;
use crate::wire::{DmaMap, DmaUnmap, IrqSet, dma_flags, irq_flags, size};
use crate::{Device, DeviceError, DmaFlags, IrqAction, IrqIndex, check};

pub(super) fn set_irqs(
    body: &[u8],
    fds: &mut Vec<OwnedFd>,
    device: &mut dyn Device,
) -> Result<(), Refusal> {
    let (set, data) = fixed::<IrqSet>(body)?;
    room::<IrqSet>(set.argsz)?;
    let index = irq_index(set.index)?;
    let vectors = u64::from(device.irq(index).count);
    let end = u64::from(set.start) + u64::from(set.count);
    if end > vectors {
        return Err(Refusal::Range { what: "the end of the vectors", value: end, bound: vectors });
    }
    let kind = set.flags & (irq_flags::DATA_NONE | irq_flags::DATA_BOOL | irq_flags::DATA_EVENTFD);
    match set.flags & !kind {
        irq_flags::ACTION_TRIGGER => {}
        irq_flags::ACTION_MASK | irq_flags::ACTION_UNMASK => {
            // The client owns MSI-X masks, and no index here masks itself.
            return Err(Refusal::Unsupported("masking by SET_IRQS"));
        }
        _ => return Err(Refusal::Flags(set.flags)),
    }
    if kind != irq_flags::DATA_EVENTFD && !fds.is_empty() {
        return Err(Refusal::Fds { got: fds.len(), surplus: false, wanted: 0 });
    }
    match kind {
        irq_flags::DATA_EVENTFD => set_eventfds(&set, index, std::mem::take(fds), device),
        irq_flags::DATA_NONE if set.count == 0 && set.start != 0 => Err(Refusal::Range {
            what: "the start of no vectors",
            value: u64::from(set.start),
            bound: 0,
        }),
        irq_flags::DATA_NONE if set.count == 0 => {
            Ok(device.set_irqs(index, 0, 0, IrqAction::Clear)?)
        }
        irq_flags::DATA_NONE => {
            Ok(device.set_irqs(index, set.start, set.count, IrqAction::Trigger)?)
        }
        irq_flags::DATA_BOOL => trigger_chosen(&set, index, data, device),
        _ => Err(Refusal::Flags(set.flags)),
    }
}

fn set_eventfds(
    set: &IrqSet,
    index: IrqIndex,
    fds: Vec<OwnedFd>,
    device: &mut dyn Device,
) -> Result<(), Refusal> {
    if set.count == 0 {
        // `Clear` with no count would clear the whole index, which is not what this asks for.
        return Err(Refusal::Range { what: "the count of eventfds", value: 0, bound: 1 });
    }
    if fds.is_empty() {
        return Ok(device.set_irqs(index, set.start, set.count, IrqAction::Clear)?);
    }
    if fds.len() as u64 != u64::from(set.count) {
        return Err(Refusal::Fds { got: fds.len(), surplus: false, wanted: set.count });
    }
    for fd in &fds {
        check::eventfd(fd.as_fd())?;
    }
    Ok(device.set_irqs(index, set.start, set.count, IrqAction::SetEventFds(fds))?)
}

fn trigger_chosen(
    set: &IrqSet,
    index: IrqIndex,
    chosen: &[u8],
    device: &mut dyn Device,
) -> Result<(), Refusal> {
    if chosen.len() as u64 != u64::from(set.count) {
        let wanted = u64::from(size::<IrqSet>()) + u64::from(set.count);
        return Err(Refusal::Payload { got: size_of::<IrqSet>() + chosen.len(), wanted });
    }
    for (vector, _) in (set.start..).zip(chosen).filter(|(_, chosen)| **chosen != 0) {
        device.set_irqs(index, vector, 1, IrqAction::Trigger)?;
    }
    Ok(())
}

pub(super) fn dma_map(
    body: &[u8],
    fds: &mut Vec<OwnedFd>,
    state: &mut State,
    device: &mut dyn Device,
) -> Result<(), Refusal> {
    let (map, _) = fixed::<DmaMap>(body)?;
    room::<DmaMap>(map.argsz)?;
    if map.flags & !(dma_flags::READ | dma_flags::WRITE) != 0 {
        return Err(Refusal::Flags(map.flags));
    }
    let last = check::page_range("the address", map.address, map.size)? - 1;
    if fds.len() > 1 {
        return Err(Refusal::Fds { got: fds.len(), surplus: false, wanted: 1 });
    }
    let flags = DmaFlags {
        read: map.flags & dma_flags::READ != 0,
        write: map.flags & dma_flags::WRITE != 0,
    };
    let fd = fds.pop();
    if let Some(fd) = &fd {
        // The mapping must be page-aligned and inside the memfd, now and for ever.
        let end = check::page_range("the fd's offset", map.offset, map.size)?;
        check::memfd(fd.as_fd(), end)?;
        if flags.write && !check::can_map_for_writing(fd.as_fd())? {
            return Err(check::CheckError::Access("writing").into());
        }
    }
    if state.maps.is_full() {
        return Err(Refusal::TooManyMaps(state.maps.len()));
    }
    if let Some(other) = state.maps.overlap(map.address, last) {
        let (start, size) = (map.address, map.size);
        let what = format!("{size:#x} bytes at {start:#x} overlap the mapping at {other:#x}");
        return Err(DeviceError::Exists(what).into());
    }
    device.dma_map(crate::DmaMap {
        iova: map.address,
        size: map.size,
        flags,
        fd,
        fd_offset: map.offset,
    })?;
    state.maps.insert(map.address, last);
    Ok(())
}

pub(super) fn dma_unmap(
    body: &[u8],
    state: &mut State,
    device: &mut dyn Device,
    out: &mut Vec<u8>,
) -> Result<(), Refusal> {
    let (unmap, _) = fixed::<DmaUnmap>(body)?;
    room::<DmaUnmap>(unmap.argsz)?;
    match unmap.flags {
        0 => {
            let last = check::last_of_range("the address", unmap.address, unmap.size)?;
            let inside = state.maps.within(unmap.address, last).map_err(Refusal::Cut)?;
            for (start, size) in inside {
                device.dma_unmap(start, size)?;
                state.maps.remove(start);
            }
        }
        dma_flags::UNMAP_ALL if unmap.address == 0 && unmap.size == 0 => {
            device.dma_unmap_all();
            state.maps.clear();
        }
        flags => return Err(Refusal::Flags(flags)),
    }
    out.extend_from_slice(unmap.as_bytes());
    Ok(())
}
