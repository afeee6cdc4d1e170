//! One function, as its server serves it: configuration space, BARs, doorbells, vectors.

use crate::port::PortError;
use beamline_abi::pacer::{self, reg};
use beamline_abi::pci::config;
use beamline_guest_driver::transport::{Gpa, Width};
use beamline_guest_linux::mapping::Mapping;
use beamline_guest_linux::vectors::{Vectors, eventfds};
use beamline_vfio_user::client::{Client, ClientError, ClientIoFd, ClientRegion};
use beamline_vfio_user::{IrqIndex, RegionIndex, SparseArea};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr, write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Bits of a BAR that say what it is: I/O (PCI 3.0, section 6.2.5.1).
const IO: u32 = 1;
/// The two bits of its width, and what they are for 64 bits.
const WIDTH: u32 = 0b110;
const WIDE: u32 = 0b100;
/// Smallest and largest BAR that is given an address, in bytes.
const SIZES: std::ops::RangeInclusive<u64> = 0x1000..=1 << 28;

/// Where the next BAR goes, in the window that a PC has for them.
#[derive(Debug)]
pub struct Window {
    next: u64,
    end: u64,
}

impl Default for Window {
    fn default() -> Self {
        Self { next: 0xc000_0000, end: 0xfec0_0000 }
    }
}

impl Window {
    /// `size` bytes at a multiple of themselves; `size` is a power of two.
    fn take(&mut self, size: u64) -> Option<u64> {
        let start = self.next.checked_next_multiple_of(size)?;
        let end = start.checked_add(size).filter(|end| *end <= self.end)?;
        self.next = end;
        Some(start)
    }
}

/// A part of a BAR that this process has mapped.
#[derive(Debug)]
struct Area {
    at: SparseArea,
    memory: Mapping,
}

/// A BAR and where the driver thinks it is.
#[derive(Debug)]
struct Bar {
    index: RegionIndex,
    base: u64,
    size: u64,
    areas: Vec<Area>,
    bells: Vec<ClientIoFd>,
}

impl Bar {
    fn new(
        index: RegionIndex,
        base: u64,
        region: ClientRegion,
        bells: Vec<ClientIoFd>,
    ) -> Result<Self, PortError> {
        let mut areas = Vec::new();
        if let Some(mapping) = region.mapping {
            for at in mapping.areas {
                // Neither sum overflows: the client has checked them against the file's size.
                let (from, len) = (mapping.fd_offset + at.offset, at.size as usize);
                let mapped = if mapping.write {
                    Mapping::of(&mapping.fd, from, len)
                } else {
                    Mapping::read_only(&mapping.fd, from, len)
                };
                let memory = mapped.map_err(PortError::system("map a part of a BAR"))?;
                areas.push(Area { at, memory });
            }
        }
        Ok(Self { index, base, size: region.size, areas, bells })
    }

    /// The offset of `gpa..gpa + len` in it.
    fn offset(&self, gpa: Gpa, len: u64) -> Option<u64> {
        let offset = gpa.0.checked_sub(self.base)?;
        offset.checked_add(len).is_some_and(|end| end <= self.size).then_some(offset)
    }

    /// The mapped area around `offset`, and the offset in it.
    fn area(&self, offset: u64) -> Option<(&Mapping, u64)> {
        self.areas.iter().find_map(|area| {
            let within = offset.checked_sub(area.at.offset).filter(|o| *o < area.at.size)?;
            Some((&area.memory, within))
        })
    }

    /// The doorbell that a write rings.
    fn bell(&self, offset: u64, width: Width, value: u64) -> Option<&ClientIoFd> {
        self.bells.iter().find(|bell| {
            bell.offset == offset
                && (bell.size == 0 || bell.size == width.bytes())
                && bell.datamatch.is_none_or(|only| only == value)
        })
    }
}

/// A function that this process drives.
#[derive(Debug)]
pub struct Function {
    client: Client,
    bars: Vec<Bar>,
    pub(crate) vectors: Option<Vectors>,
    pub(crate) is_pacer: bool,
}

impl Function {
    /// Takes over the function behind `client`, and gives its BARs addresses in `window`.
    pub(crate) fn new(mut client: Client, window: &mut Window) -> Result<Self, PortError> {
        let mut bars = Vec::new();
        let mut bases = [0; 6];
        let mut number = 0;
        while number < bases.len() {
            let index = RegionIndex::bar(number as u32);
            let register = config::BAR0 + 4 * number as u16;
            let kind = config_read(&mut client, register, Width::Dword)?;
            let wide = kind & WIDTH == WIDE && number + 1 < bases.len();
            let region = client.region_info(index)?;
            if region.size != 0 && kind & IO == 0 {
                let size = region.size;
                let fits = size.is_power_of_two() && SIZES.contains(&size);
                let base = if fits { window.take(size) } else { None };
                let base = base.ok_or(PortError::Bar { bar: number as u8, size })?;
                config_write(&mut client, register, Width::Dword, base as u32)?;
                if wide {
                    config_write(&mut client, register + 4, Width::Dword, (base >> 32) as u32)?;
                }
                let bells = client.region_io_fds(index)?;
                bars.push(Bar::new(index, base, region, bells)?);
                bases[number] = base;
            }
            number += if wide { 2 } else { 1 };
        }
        let id = config_read(&mut client, config::VENDOR_ID, Width::Dword)?;
        let is_pacer = id == u32::from(pacer::DEVICE_ID) << 16 | u32::from(pacer::VENDOR_ID);
        // An answer that does not come reads as ones, which end the search.
        let read = |at, width| config_read(&mut client, at, width).unwrap_or(u32::MAX);
        let vectors = Vectors::find(read, &bases);
        let mut function = Self { client, bars, vectors, is_pacer };
        if is_pacer {
            function.tell_tsc()?;
        }
        Ok(function)
    }

    /// Tells a pacer that this guest's TSC is the host's own.
    fn tell_tsc(&mut self) -> Result<(), ClientError> {
        for (register, value) in [
            (reg::TSC_OFFSET, 0u32),
            (reg::TSC_OFFSET + 4, 0),
            (reg::TSC_SCALE, 0),
            (reg::TSC_SCALE + 4, 0),
            (reg::TSC_COMMIT, 1),
        ] {
            self.client.region_write(RegionIndex::bar(0), register.into(), &value.to_le_bytes())?;
        }
        Ok(())
    }

    /// The connection.
    pub(crate) const fn client(&mut self) -> &mut Client {
        &mut self.client
    }

    /// Its socket.
    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.client.as_fd()
    }

    /// Reads configuration space.
    pub(crate) fn config_read(&mut self, offset: u16, width: Width) -> Result<u32, ClientError> {
        config_read(&mut self.client, offset, width)
    }

    /// Writes configuration space; where that switches MSI-X on, its vectors become eventfds.
    pub(crate) fn config_write(
        &mut self,
        offset: u16,
        width: Width,
        value: u32,
    ) -> Result<(), PortError> {
        config_write(&mut self.client, offset, width, value)?;
        let Some(vectors) = self.vectors.as_mut().filter(|v| v.is_control(offset)) else {
            return Ok(());
        };
        let Some(wanted) = vectors.starts(value) else { return Ok(()) };
        let events = eventfds(wanted).map_err(PortError::system("make eventfds"))?;
        let fds: Vec<_> = events.iter().map(AsFd::as_fd).collect();
        self.client.set_irqs(IrqIndex::MSIX, 0, &fds)?;
        vectors.switch_on(events);
        Ok(())
    }

    /// Whether `gpa..gpa + len` is in a BAR.
    pub(crate) fn reaches(&self, gpa: Gpa, len: u64) -> bool {
        self.bars.iter().any(|bar| bar.offset(gpa, len).is_some())
    }

    /// Reads device memory; `None` where that is not this function's.
    pub(crate) fn read(&mut self, gpa: Gpa, width: Width) -> Option<Result<u64, ClientError>> {
        let (bar, offset) = at(&self.bars, gpa, width)?;
        if let Some((memory, within)) = bar.area(offset) {
            return Some(Ok(memory.read(within, width)));
        }
        let mut value = [0; 8];
        let bytes = &mut value[..width.bytes() as usize];
        let read = self.client.region_read(bar.index, offset, bytes);
        Some(read.map(|()| u64::from_le_bytes(value)))
    }

    /// Writes device memory; `None` where that is not this function's.
    pub(crate) fn write(
        &mut self,
        gpa: Gpa,
        width: Width,
        value: u64,
    ) -> Option<Result<(), PortError>> {
        let (bar, offset) = at(&self.bars, gpa, width)?;
        if self.vectors.as_mut().is_some_and(|v| v.take_write(gpa)) {
            return Some(Ok(()));
        }
        if let Some((memory, within)) = bar.area(offset) {
            memory.write(within, width, value);
            return Some(Ok(()));
        }
        if let Some(bell) = bar.bell(offset, width, value) {
            return Some(ring(&bell.fd).map_err(PortError::system("ring a doorbell")));
        }
        let bytes = &value.to_le_bytes()[..width.bytes() as usize];
        Some(self.client.region_write(bar.index, offset, bytes).map_err(Into::into))
    }
}

/// Rings a doorbell, unless its count is at its end: then a write would wait for the server, which has been told.
fn ring(bell: &OwnedFd) -> Result<(), Errno> {
    let mut room = [PollFd::new(bell, PollFlags::OUT)];
    if retry_on_intr(|| poll(&mut room, Some(&Timespec::default())))? == 0 {
        return Ok(());
    }
    write(bell, &1u64.to_ne_bytes()).map(drop)
}

fn at(bars: &[Bar], gpa: Gpa, width: Width) -> Option<(&Bar, u64)> {
    bars.iter().find_map(|bar| Some((bar, bar.offset(gpa, width.bytes())?)))
}

fn config_read(client: &mut Client, offset: u16, width: Width) -> Result<u32, ClientError> {
    let mut value = [0; 4];
    let bytes = &mut value[..width.bytes().min(4) as usize];
    client.region_read(RegionIndex::CONFIG, offset.into(), bytes)?;
    Ok(u32::from_le_bytes(value))
}

fn config_write(
    client: &mut Client,
    offset: u16,
    width: Width,
    value: u32,
) -> Result<(), ClientError> {
    let bytes = &value.to_le_bytes()[..width.bytes().min(4) as usize];
    client.region_write(RegionIndex::CONFIG, offset.into(), bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_doorbell_that_nobody_hears_holds_nobody_up() {
        let bell = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        ring(&bell).unwrap();
        // The largest count there is.
        write(&bell, &(u64::MAX - 2).to_ne_bytes()).unwrap();
        ring(&bell).unwrap();
        let mut count = [0; 8];
        rustix::io::read(&bell, &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), u64::MAX - 1);
    }

    #[test]
    fn bars_lie_apart_and_at_multiples_of_their_size() {
        let mut window = Window::default();
        assert_eq!(window.take(0x1000), Some(0xc000_0000));
        assert_eq!(window.take(0x1_0000), Some(0xc001_0000));
        assert_eq!(window.take(0x1000), Some(0xc002_0000));
        assert_eq!(window.take(1 << 28), Some(0xd000_0000));
        assert_eq!(window.take(1 << 28), Some(0xe000_0000));
        // What is left holds only less.
        assert_eq!(window.take(1 << 28), None);
        assert_eq!(window.take(0x1000), Some(0xf000_0000));
    }
}
