//! The guest driver's transport over two vfio-user connections, as a VMM would offer it to its guest.

use beamline_abi::pci::config;
use beamline_guest_driver::transport::{Arena, Gpa, Slot, Transport, Wake, Width};
use beamline_guest_linux::mapping::Mapping;
use beamline_vfio_user::client::Client;
use beamline_vfio_user::{DmaFlags, IrqIndex, RegionIndex};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

/// Bounds each answer.
const PATIENCE: Duration = Duration::from_mins(1);
/// Where a guest's memory begins, and its bytes.
const RAM: u64 = 0x10_0000;
const RAM_SIZE: u64 = 0x10_0000;
/// Where BARs are put, from here up.
const BARS: u64 = 0xe000_0000;
/// The first function's slot on bus 0.
const FIRST_SLOT: u8 = 3;
/// A wait ends after this, ms, so that its caller can look at other things.
const WAIT_MS: i64 = 100;

/// A BAR, and what of it is mapped: offset and memory.
struct Bar {
    index: RegionIndex,
    base: u64,
    size: u64,
    areas: Vec<(u64, Mapping)>,
}

struct Function {
    client: Client,
    bars: Vec<Bar>,
}

/// Both functions of a slice, and a guest's memory.
pub(crate) struct Port {
    functions: [Function; 2],
    interrupts: Vec<OwnedFd>,
    ram: Mapping,
}

impl Port {
    /// Connects to both sockets and does what a VMM does before its guest runs.
    pub(crate) fn attach(pacer: &Path, gpu: &Path) -> Self {
        let mut next = BARS;
        let mut interrupts = Vec::new();
        let mut functions =
            [pacer, gpu].map(|socket| Function::attach(socket, &mut next, &mut interrupts));
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let memory = rustix::fs::memfd_create("neighbour", flags).unwrap();
        rustix::fs::ftruncate(&memory, RAM_SIZE).unwrap();
        rustix::fs::fcntl_add_seals(&memory, SealFlags::SHRINK | SealFlags::GROW).unwrap();
        let rights = DmaFlags { read: true, write: true };
        functions[1].client.dma_map(RAM, RAM_SIZE, rights, memory.as_fd(), 0).unwrap();
        let ram = Mapping::of(&memory, 0, RAM_SIZE as usize).unwrap();
        Self { functions, interrupts, ram }
    }

    /// All of the memory.
    pub(crate) fn arena() -> Arena {
        Arena::new(Gpa(RAM), RAM_SIZE)
    }

    /// The BAR around `gpa..gpa + len`, and the offset in it.
    fn bar(&mut self, gpa: Gpa, len: u64) -> Option<(&mut Client, &Bar, u64)> {
        self.functions.iter_mut().find_map(|function| {
            let bar = function.bars.iter().find(|bar| bar.around(gpa, len))?;
            Some((&mut function.client, bar, gpa.0 - bar.base))
        })
    }

    fn function(&mut self, slot: Slot) -> Option<&mut Function> {
        self.functions.get_mut(usize::from(slot.0.checked_sub(FIRST_SLOT)?))
    }
}

impl Function {
    fn attach(socket: &Path, next: &mut u64, interrupts: &mut Vec<OwnedFd>) -> Self {
        let mut client = Client::connect(socket, PATIENCE).unwrap();
        let mut bars = Vec::new();
        for number in 0..6 {
            let index = RegionIndex::bar(number);
            let region = client.region_info(index).unwrap();
            if region.size == 0 {
                continue;
            }
            let base = next.next_multiple_of(region.size.max(0x1_0000));
            *next = base + region.size;
            let register = u64::from(config::BAR0) + 4 * u64::from(number);
            client.region_write(RegionIndex::CONFIG, register, &base.to_le_bytes()).unwrap();
            let mut areas = Vec::new();
            if let Some(mapping) = region.mapping {
                for area in mapping.areas {
                    let (at, len) = (mapping.fd_offset + area.offset, area.size as usize);
                    let memory = if mapping.write {
                        Mapping::of(&mapping.fd, at, len)
                    } else {
                        Mapping::read_only(&mapping.fd, at, len)
                    };
                    areas.push((area.offset, memory.unwrap()));
                }
            }
            bars.push(Bar { index, base, size: region.size, areas });
        }
        let first = interrupts.len();
        for _ in 0..client.irq_info(IrqIndex::MSIX).unwrap().count {
            let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
            interrupts.push(eventfd(0, flags).unwrap());
        }
        let fds: Vec<BorrowedFd<'_>> = interrupts[first..].iter().map(AsFd::as_fd).collect();
        client.set_irqs(IrqIndex::MSIX, 0, &fds).unwrap();
        Self { client, bars }
    }
}

impl Bar {
    fn around(&self, gpa: Gpa, len: u64) -> bool {
        let end = gpa.0.checked_add(len);
        self.base <= gpa.0 && end.is_some_and(|end| end <= self.base + self.size)
    }

    /// The mapped area around `offset..offset + len`, and the offset in it.
    fn area(&self, offset: u64, len: u64) -> Option<(&Mapping, u64)> {
        self.areas.iter().find_map(|(start, memory)| {
            let at = offset.checked_sub(*start)?;
            (at + len <= memory.len()).then_some((memory, at))
        })
    }
}

impl Transport for Port {
    fn config_read(&mut self, slot: Slot, offset: u16, width: Width) -> u32 {
        let mut bytes = [0; 4];
        let n = (width.bytes() as usize).min(4);
        let Some(function) = self.function(slot) else { return u32::MAX >> (32 - 8 * n) };
        function.client.region_read(RegionIndex::CONFIG, offset.into(), &mut bytes[..n]).unwrap();
        u32::from_le_bytes(bytes)
    }

    fn config_write(&mut self, slot: Slot, offset: u16, width: Width, value: u32) {
        let n = (width.bytes() as usize).min(4);
        let Some(function) = self.function(slot) else { return };
        let bytes = value.to_le_bytes();
        function.client.region_write(RegionIndex::CONFIG, offset.into(), &bytes[..n]).unwrap();
    }

    fn reaches(&self, gpa: Gpa, len: u64) -> bool {
        self.functions.iter().any(|function| function.bars.iter().any(|bar| bar.around(gpa, len)))
    }

    fn mmio_read(&mut self, gpa: Gpa, width: Width) -> u64 {
        let Some((client, bar, offset)) = self.bar(gpa, width.bytes()) else { return u64::MAX };
        if let Some((memory, at)) = bar.area(offset, width.bytes()) {
            return memory.read(at, width);
        }
        let mut bytes = [0; 8];
        let n = width.bytes() as usize;
        client.region_read(bar.index, offset, &mut bytes[..n]).unwrap();
        u64::from_le_bytes(bytes)
    }

    fn mmio_write(&mut self, gpa: Gpa, width: Width, value: u64) {
        let Some((client, bar, offset)) = self.bar(gpa, width.bytes()) else { return };
        if let Some((memory, at)) = bar.area(offset, width.bytes()) {
            return memory.write(at, width, value);
        }
        let bytes = value.to_le_bytes();
        client.region_write(bar.index, offset, &bytes[..width.bytes() as usize]).unwrap();
    }

    fn read(&self, gpa: Gpa, bytes: &mut [u8]) {
        for (at, byte) in (gpa.0.wrapping_sub(RAM)..).zip(bytes) {
            *byte = self.ram.read(at, Width::Byte) as u8;
        }
    }

    fn write(&mut self, gpa: Gpa, bytes: &[u8]) {
        for (at, byte) in (gpa.0.wrapping_sub(RAM)..).zip(bytes) {
            self.ram.write(at, Width::Byte, u64::from(*byte));
        }
    }

    fn load_u16(&self, gpa: Gpa) -> u16 {
        let value = self.ram.read(gpa.0.wrapping_sub(RAM), Width::Word) as u16;
        fence(Ordering::Acquire);
        value
    }

    fn store_u16(&mut self, gpa: Gpa, value: u16) {
        fence(Ordering::Release);
        self.ram.write(gpa.0.wrapping_sub(RAM), Width::Word, value.into());
    }

    fn fence(&self) {
        fence(Ordering::SeqCst);
    }

    /// A counter of nanoseconds: nobody told the host how it runs, and the pacer offers no map of it.
    fn tsc(&self) -> u64 {
        let time = clock_gettime(ClockId::Monotonic);
        time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
    }

    fn wait(&mut self) -> Wake {
        let time = Timespec { tv_sec: 0, tv_nsec: WAIT_MS * 1_000_000 };
        let mut fds: Vec<PollFd<'_>> =
            self.interrupts.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        match poll(&mut fds, Some(&time)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => panic!("poll: {errno}"),
        }
        for fd in &self.interrupts {
            // One that has not fired says so.
            let _ = rustix::io::read(fd, &mut [0; 8]);
        }
        Wake::Interrupt
    }
}
