//! The driver's transport over functions that this process has opened through vfio-pci.
//!
//! Functions have the slots 0 and up, in the order in which they were opened. BARs are found by the addresses
//! in configuration space. The kernel owns the MSI-X table: what the driver writes there only says which
//! vectors it wants, and they become eventfds when it switches MSI-X on.

use crate::mapping::Mapping;
use crate::vfio::{Container, Device, VfioError};
use beamline_abi::pci::{capability, config, msix};
use beamline_guest_driver::transport::{Arena, Gpa, Slot, Transport, Wake, Width};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, read};
use std::os::fd::OwnedFd;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

/// Where devices see the shared memory: out of the way of interrupts' and of reserved addresses.
const SHARED: Gpa = Gpa(0x1000_0000);
/// Bytes of it.
const SHARED_SIZE: usize = 1 << 20;
/// Longest list of capabilities.
const MAX_CAPABILITIES: usize = 48;

/// A BAR and where the driver thinks it is.
#[derive(Debug)]
struct Bar {
    base: u64,
    memory: Mapping,
}

/// MSI-X of one function.
#[derive(Debug)]
struct Vectors {
    /// Offset of message control in configuration space.
    control: u16,
    /// Addresses of the table.
    table: std::ops::Range<u64>,
    /// Vectors from 0 on that the driver has asked for.
    wanted: u32,
    events: Vec<OwnedFd>,
    counts: Vec<u64>,
}

#[derive(Debug)]
struct Function {
    device: Device,
    bars: Vec<Bar>,
    vectors: Option<Vectors>,
}

impl Function {
    fn open(container: &Container, address: &str) -> Result<Self, VfioError> {
        let device = Device::open(container, address)?;
        let mut bars = Vec::new();
        let mut table_bars = [0; 6];
        let mut index = 0;
        while index < 6 {
            let register = config::BAR0 + 4 * index as u16;
            let low = device.config_read(register, 4);
            let wide = low & 0b111 == 0b100 && index < 5;
            let high = if wide { device.config_read(register + 4, 4) } else { 0 };
            let base = u64::from(high) << 32 | u64::from(low & !0xf);
            if low & 1 == 0
                && base != 0
                && let Some(memory) = device.map_bar(index)?
            {
                table_bars[index as usize] = base;
                bars.push(Bar { base, memory });
            }
            index += if wide { 2 } else { 1 };
        }
        let vectors = find_capability(&device, capability::MSIX).map(|at| {
            let table = device.config_read(at + msix::TABLE, 4);
            let count = u64::from(device.config_read(at + msix::CONTROL, 2) & 0x7ff) + 1;
            let bar = table_bars.get((table & 7) as usize).copied().unwrap_or(0);
            let start = bar + u64::from(table & !7);
            let table = start..start + count * u64::from(msix::ENTRY_SIZE);
            let control = at + msix::CONTROL;
            Vectors { control, table, wanted: 0, events: Vec::new(), counts: Vec::new() }
        });
        Ok(Self { device, bars, vectors })
    }

    /// The BAR around `gpa..gpa + len`, and the offset in it.
    fn bar(&self, gpa: Gpa, len: u64) -> Option<(&Mapping, u64)> {
        self.bars.iter().find_map(|bar| {
            let offset = gpa.0.checked_sub(bar.base)?;
            let inside = offset.checked_add(len).is_some_and(|end| end <= bar.memory.len());
            inside.then_some((&bar.memory, offset))
        })
    }
}

fn find_capability(device: &Device, wanted: u8) -> Option<u16> {
    let mut at = device.config_read(config::CAPABILITIES, 1) as u16 & 0xfc;
    for _ in 0..MAX_CAPABILITIES {
        if at == 0 {
            return None;
        }
        let head = device.config_read(at, 2);
        if head as u8 == wanted {
            return Some(at);
        }
        at = (head >> 8) as u16 & 0xfc;
    }
    None
}

/// Functions, shared memory and interrupts of this process.
#[derive(Debug)]
pub struct Port {
    functions: Vec<Function>,
    shared: Mapping,
    /// When waiting has no more sense.
    end: Instant,
    failure: Option<VfioError>,
    // Last: the address space goes after the devices in it.
    _container: Container,
}

impl Port {
    /// Opens the functions at `addresses`, for as long as `patience`.
    ///
    /// # Errors
    /// What VFIO refuses.
    pub fn open(addresses: &[&str], patience: Duration) -> Result<Self, VfioError> {
        let container = Container::open()?;
        let functions = addresses
            .iter()
            .map(|address| Function::open(&container, address))
            .collect::<Result<_, _>>()?;
        let shared = Mapping::anonymous(SHARED_SIZE)
            .map_err(|errno| VfioError { what: "mapping shared memory".into(), errno })?;
        container.map(&shared, SHARED.0)?;
        let end = Instant::now() + patience;
        Ok(Self { functions, shared, end, failure: None, _container: container })
    }

    /// The shared memory, to be handed out once.
    pub const fn arena(&self) -> Arena {
        Arena::new(SHARED, SHARED_SIZE as u64)
    }

    /// How many interrupts of a vector this process has been told of.
    pub fn interrupts(&self, slot: Slot, vector: u16) -> u64 {
        self.functions
            .get(usize::from(slot.0))
            .and_then(|f| f.vectors.as_ref()?.counts.get(usize::from(vector)).copied())
            .unwrap_or(0)
    }

    /// What went wrong where the driver could not be told.
    pub fn take_failure(&mut self) -> Option<VfioError> {
        self.failure.take()
    }

    /// Whether something went wrong where the driver could not be told.
    pub const fn failed(&self) -> bool {
        self.failure.is_some()
    }

    /// The offset of a shared access; beyond the end for what is not shared, so that it is dropped.
    fn shared_offset(gpa: Gpa) -> u64 {
        gpa.0.wrapping_sub(SHARED.0)
    }

    /// Counts what has come.
    fn collect(&mut self) -> bool {
        let mut any = false;
        for vectors in self.functions.iter_mut().filter_map(|f| f.vectors.as_mut()) {
            for (event, count) in vectors.events.iter().zip(&mut vectors.counts) {
                let mut more = [0; 8];
                if matches!(read(event, &mut more), Ok(8)) {
                    *count += u64::from_ne_bytes(more);
                    any = true;
                }
            }
        }
        any
    }
}

impl Transport for Port {
    fn config_read(&mut self, slot: Slot, offset: u16, width: Width) -> u32 {
        let ones = u32::MAX >> (32 - 8 * width.bytes().min(4));
        let Some(function) = self.functions.get(usize::from(slot.0)) else { return ones };
        function.device.config_read(offset, width.bytes() as usize) & ones
    }

    fn config_write(&mut self, slot: Slot, offset: u16, width: Width, value: u32) {
        let Some(function) = self.functions.get_mut(usize::from(slot.0)) else { return };
        let Some(vectors) = function.vectors.as_mut().filter(|v| v.control == offset) else {
            function.device.config_write(offset, width.bytes() as usize, value);
            return;
        };
        if value & u32::from(msix::CONTROL_ENABLE) != 0 && vectors.events.is_empty() {
            match function.device.enable_msix(vectors.wanted) {
                Ok(events) => {
                    vectors.counts = vec![0; events.len()];
                    vectors.events = events;
                }
                Err(error) => self.failure = Some(error),
            }
        }
    }

    fn reaches(&self, gpa: Gpa, len: u64) -> bool {
        self.functions.iter().any(|f| f.bar(gpa, len).is_some())
    }

    fn mmio_read(&mut self, gpa: Gpa, width: Width) -> u64 {
        let found = self.functions.iter().find_map(|f| f.bar(gpa, width.bytes()));
        found.map_or(u64::MAX, |(memory, offset)| memory.read(offset, width))
    }

    fn mmio_write(&mut self, gpa: Gpa, width: Width, value: u64) {
        for function in &mut self.functions {
            if let Some(vectors) = function.vectors.as_mut().filter(|v| v.table.contains(&gpa.0)) {
                let entry = (gpa.0 - vectors.table.start) / u64::from(msix::ENTRY_SIZE);
                vectors.wanted = vectors.wanted.max(entry as u32 + 1);
                return;
            }
            if let Some((memory, offset)) = function.bar(gpa, width.bytes()) {
                memory.write(offset, width, value);
                return;
            }
        }
    }

    fn read(&self, gpa: Gpa, bytes: &mut [u8]) {
        for (at, byte) in (Self::shared_offset(gpa)..).zip(bytes) {
            *byte = self.shared.read(at, Width::Byte) as u8;
        }
    }

    fn write(&mut self, gpa: Gpa, bytes: &[u8]) {
        for (at, byte) in (Self::shared_offset(gpa)..).zip(bytes) {
            self.shared.write(at, Width::Byte, u64::from(*byte));
        }
    }

    fn load_u16(&self, gpa: Gpa) -> u16 {
        let value = self.shared.read(Self::shared_offset(gpa), Width::Word) as u16;
        fence(Ordering::Acquire);
        value
    }

    fn store_u16(&mut self, gpa: Gpa, value: u16) {
        fence(Ordering::Release);
        self.shared.write(Self::shared_offset(gpa), Width::Word, value.into());
    }

    fn fence(&self) {
        fence(Ordering::SeqCst);
    }

    fn tsc(&self) -> u64 {
        tsc()
    }

    fn wait(&mut self) -> Wake {
        while self.failure.is_none() {
            if self.collect() {
                return Wake::Interrupt;
            }
            let left = self.end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Wake::Stop;
            }
            let timeout =
                Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            let mut events: Vec<PollFd<'_>> = self
                .functions
                .iter()
                .filter_map(|f| f.vectors.as_ref())
                .flat_map(|v| &v.events)
                .map(|event| PollFd::new(event, PollFlags::IN))
                .collect();
            match poll(&mut events, Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => {
                    self.failure =
                        Some(VfioError { what: "waiting for an interrupt".into(), errno });
                }
            }
        }
        Wake::Stop
    }
}

#[allow(unsafe_code, reason = "an instruction")]
fn tsc() -> u64 {
    // SAFETY: user space may read the counter; Linux does not forbid it unless a process asks for that.
    unsafe { core::arch::x86_64::_rdtsc() }
}
