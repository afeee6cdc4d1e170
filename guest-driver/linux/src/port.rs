//! The driver's transport over functions that this process has opened through vfio-pci.
//!
//! Functions have the slots 0 and up, in the order in which they were opened. BARs are found by the addresses
//! in configuration space. The kernel owns the MSI-X table: what the driver writes there only says which
//! vectors it wants, and they become eventfds when it switches MSI-X on.

use crate::mapping::{Mapping, Shared};
use crate::vectors::Vectors;
use crate::vfio::{Container, Device, VfioError};
use beamline_abi::pci::config;
use beamline_guest_driver::transport::{Arena, Gpa, Slot, Transport, Wake, Width};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

/// Where devices see the shared memory: out of the way of interrupts' and of reserved addresses.
const SHARED: Gpa = Gpa(0x1000_0000);
/// Bytes of it.
const SHARED_SIZE: usize = 1 << 20;

/// A BAR and where the driver thinks it is.
#[derive(Debug)]
struct Bar {
    base: u64,
    memory: Mapping,
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
        let read = |offset, width: Width| device.config_read(offset, width.bytes() as usize);
        let vectors = Vectors::find(read, &table_bars);
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

/// Functions, shared memory and interrupts of this process.
#[derive(Debug)]
pub struct Port {
    functions: Vec<Function>,
    shared: Shared,
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
        let shared = Shared::new(shared, SHARED);
        let end = Instant::now() + patience;
        Ok(Self { functions, shared, end, failure: None, _container: container })
    }

    /// The shared memory, to be handed out once.
    pub const fn arena(&self) -> Arena {
        self.shared.arena()
    }

    /// How many interrupts of a vector this process has been told of.
    pub fn interrupts(&self, slot: Slot, vector: u16) -> u64 {
        self.functions
            .get(usize::from(slot.0))
            .and_then(|f| f.vectors.as_ref())
            .map_or(0, |vectors| vectors.count(vector))
    }

    /// What went wrong where the driver could not be told.
    pub fn take_failure(&mut self) -> Option<VfioError> {
        self.failure.take()
    }

    /// Whether something went wrong where the driver could not be told.
    pub const fn failed(&self) -> bool {
        self.failure.is_some()
    }

    /// Counts what has come.
    fn collect(&mut self) -> bool {
        let mut any = false;
        for vectors in self.functions.iter_mut().filter_map(|f| f.vectors.as_mut()) {
            any |= vectors.collect();
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
        let Some(vectors) = function.vectors.as_mut().filter(|v| v.is_control(offset)) else {
            function.device.config_write(offset, width.bytes() as usize, value);
            return;
        };
        let Some(wanted) = vectors.starts(value) else { return };
        match function.device.enable_msix(wanted) {
            Ok(events) => vectors.switch_on(events),
            Err(error) => self.failure = Some(error),
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
            if function.vectors.as_mut().is_some_and(|v| v.take_write(gpa)) {
                return;
            }
            if let Some((memory, offset)) = function.bar(gpa, width.bytes()) {
                memory.write(offset, width, value);
                return;
            }
        }
    }

    fn read(&self, gpa: Gpa, bytes: &mut [u8]) {
        self.shared.read(gpa, bytes);
    }

    fn write(&mut self, gpa: Gpa, bytes: &[u8]) {
        self.shared.write(gpa, bytes);
    }

    fn load_u16(&self, gpa: Gpa) -> u16 {
        self.shared.load_u16(gpa)
    }

    fn store_u16(&mut self, gpa: Gpa, value: u16) {
        self.shared.store_u16(gpa, value);
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
                .flat_map(Vectors::events)
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

/// This CPU's time-stamp counter.
#[allow(unsafe_code, reason = "an instruction")]
pub fn tsc() -> u64 {
    // SAFETY: user space may read the counter; Linux does not forbid it unless a process asks for that.
    unsafe { core::arch::x86_64::_rdtsc() }
}
