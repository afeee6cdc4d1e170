//! Stage 2, doorbell (of a VMM that has no ioeventfd for it): from `REGION_WRITE` to mdev's device/virtio.
//!
//! Trapped reads and writes. Nothing here allocates once the buffers have grown.

use zerocopy::IntoBytes;

use super::query::{fixed, region_index};
use super::refusal::Refusal;
use super::session::State;
use crate::wire::{MultiWrite, RegionAccess, WriteMulti, size};
use crate::{Device, RegionIndex};

enum Verb {
    Read,
    Write,
}

/// That the access lies within the region and is allowed.
fn bounds(state: &State, access: &RegionAccess, verb: &Verb) -> Result<RegionIndex, Refusal> {
    let index = region_index(access.region)?;
    let region = &state.regions[index.0 as usize];
    let (allowed, word) = match verb {
        Verb::Read => (region.flags.read, "read"),
        Verb::Write => (region.flags.write, "written"),
    };
    if access.count > state.max_data {
        let (value, bound) = (u64::from(access.count), u64::from(state.max_data));
        return Err(Refusal::Range { what: "count", value, bound });
    }
    let end = access.offset.checked_add(u64::from(access.count)).filter(|&end| end <= region.size);
    if end.is_none() {
        return Err(Refusal::Range { what: "offset", value: access.offset, bound: region.size });
    }
    if !allowed {
        return Err(Refusal::Access { region: access.region, verb: word });
    }
    Ok(index)
}

pub(super) fn region_read(
    body: &[u8],
    state: &State,
    device: &mut dyn Device,
    out: &mut Vec<u8>,
) -> Result<(), Refusal> {
    let (access, _) = fixed::<RegionAccess>(body)?;
    let index = bounds(state, &access, &Verb::Read)?;
    out.extend_from_slice(access.as_bytes());
    let start = out.len();
    // Zeroed first: a device that fills too little shows no earlier message.
    out.resize(start + access.count as usize, 0);
    if access.count > 0 {
        device.region_read(index, access.offset, &mut out[start..])?;
    }
    Ok(())
}

pub(super) fn region_write(
    body: &[u8],
    state: &State,
    device: &mut dyn Device,
    out: &mut Vec<u8>,
) -> Result<(), Refusal> {
    let (access, data) = fixed::<RegionAccess>(body)?;
    if data.len() as u64 != u64::from(access.count) {
        let wanted = u64::from(size::<RegionAccess>()) + u64::from(access.count);
        return Err(Refusal::Payload { got: body.len(), wanted });
    }
    let index = bounds(state, &access, &Verb::Write)?;
    if !data.is_empty() {
        device.region_write(index, access.offset, data)?;
    }
    out.extend_from_slice(access.as_bytes());
    Ok(())
}

/// Does the writes in their order, up to the first that is refused. The reply tells how many were done; a
/// refusal of the first is an error.
pub(super) fn region_write_multi(
    body: &[u8],
    state: &State,
    device: &mut dyn Device,
    out: &mut Vec<u8>,
) -> Result<(), Refusal> {
    let (head, mut rest) = fixed::<WriteMulti>(body)?;
    let wanted = head.count.saturating_mul(u64::from(size::<MultiWrite>()));
    if rest.len() as u64 != wanted {
        let wanted = wanted.saturating_add(u64::from(size::<WriteMulti>()));
        return Err(Refusal::Payload { got: body.len(), wanted });
    }
    let mut done = 0;
    while !rest.is_empty() {
        let (write, next) = fixed::<MultiWrite>(rest)?;
        rest = next;
        match one_of_multi(&write, state, device) {
            Ok(()) => done += 1,
            Err(e) if done == 0 => return Err(e),
            Err(_) => break,
        }
    }
    out.extend_from_slice(WriteMulti { count: done }.as_bytes());
    Ok(())
}

fn one_of_multi(write: &MultiWrite, state: &State, device: &mut dyn Device) -> Result<(), Refusal> {
    let MultiWrite { offset, region, count, data } = *write;
    let data = data.get(..count as usize).ok_or(Refusal::Range {
        what: "count",
        value: u64::from(count),
        bound: 8,
    })?;
    let index = bounds(state, &RegionAccess { offset, region, count }, &Verb::Write)?;
    if !data.is_empty() {
        device.region_write(index, offset, data)?;
    }
    Ok(())
}
