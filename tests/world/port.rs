//! What one guest sees of the machine: the functions of its slice, its memory and its interrupts. Takes the
//! place of a VMM: it assigns BARs, maps memory, hands out eventfds and says how the guest's TSC runs.

use super::host::PacerSides;
use super::tsc;
use super::{WorldError, system};
use beamline_abi::pacer::reg;
use beamline_abi::pci::config;
use beamline_abi::{Generation, Nanos, SliceId};
use beamline_guest_driver::pci::MsiTarget;
use beamline_guest_driver::scene::Targets;
use beamline_guest_driver::transport::{Arena, Gpa, Slot, Transport, Wake, Width};
use beamline_latency::{Clock, FakeClock, GuestTsc};
use beamline_mdev::device::pacer::{Pacer, PacerConfig};
use beamline_mdev::device::virtio::gpu::{GpuConfig, GpuHandle, VirtioGpu};
use beamline_mdev::memory::{Gpa as HostGpa, GuestMemory};
use beamline_vfio_user::{Device, DmaFlags, DmaMap, IrqAction, IrqIndex, RegionIndex};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{MemfdFlags, SealFlags};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Where a guest's memory begins.
pub const RAM: u64 = 0x10_0000;
/// Its bytes.
pub const RAM_SIZE: u64 = 0x10_0000;
/// Where BARs are put, from here up.
const BARS: u64 = 0xe000_0000;
/// The functions' slots on bus 0.
const SLOTS: [u8; 2] = [3, 4];
/// A write to shared memory that is longer is a command stream: recording one takes CPU time. All else
/// that the driver writes (descriptors, headers, a pose) is shorter.
const STREAM: usize = 64;

/// One of the two functions of a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    /// The pacer.
    Pacer = 0,
    /// The vGPU.
    Gpu = 1,
}

/// A BAR that has an address.
#[derive(Clone, Copy, Debug)]
struct Window {
    function: Function,
    bar: u32,
    start: u64,
    size: u64,
}

/// The guest's end of one slice.
pub struct Port {
    pacer: Pacer,
    gpu: VirtioGpu,
    /// The guest's own view of its memory, whatever the device may reach.
    ram: GuestMemory,
    memory: OwnedFd,
    windows: Vec<Window>,
    /// By vector: the pacer's, then the vGPU's.
    interrupts: Vec<OwnedFd>,
    pacer_vectors: usize,
    clock: FakeClock,
    tsc: GuestTsc,
    /// CPU time per command stream.
    pub(super) cpu: Nanos,
    /// How far the guest's CPU is ahead of the world's clock: work it has done since it woke.
    pub(super) ahead: Nanos,
    /// A doorbell is held back until the CPU time before it has passed.
    doorbell: Option<(u64, Width, u64)>,
    /// The vGPU was written to: its worker has something to look at.
    pub(super) stirred: bool,
}

/// Which interrupts were taken.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Taken {
    /// Any at all.
    pub(super) any: bool,
    /// The pacer's vectors for a changed contract or a request.
    pub(super) request: bool,
}

impl Port {
    /// The functions of slice `slice`, and the handles of its host threads.
    pub(super) fn new(
        index: usize,
        slice: SliceId,
        clock: &FakeClock,
    ) -> Result<(Self, PacerSides, GpuHandle), WorldError> {
        let time = clock.clone();
        let config =
            PacerConfig { slice, generation: Generation(0), now: Arc::new(move || time.now()) };
        let device = |what| move |error| WorldError::Device { what, source: error };
        let (pacer, beat, poster) = Pacer::new(config).map_err(device("pacer"))?;
        let (gpu, gpu_handle) =
            VirtioGpu::new(GpuConfig { contexts: true }).map_err(device("vGPU"))?;
        let memory = sealed_memory()?;
        let ram = GuestMemory::new();
        ram.map(dma_map(&memory)?).map_err(|e| WorldError::Refused(e.to_string()))?;
        let port = Self {
            pacer,
            gpu,
            ram,
            memory,
            windows: Vec::new(),
            interrupts: Vec::new(),
            pacer_vectors: 0,
            clock: clock.clone(),
            tsc: tsc::of_guest(index),
            cpu: Nanos::ZERO,
            ahead: Nanos::ZERO,
            doorbell: None,
            stirred: false,
        };
        Ok((port, (beat, poster), gpu_handle))
    }

    /// Does what a VMM does before its guest runs, at first or after a reboot of the guest: that leaves the
    /// functions as they are.
    pub(super) fn plug(&mut self) -> Result<(), WorldError> {
        let refused = |e: beamline_vfio_user::DeviceError| WorldError::Refused(e.to_string());
        self.ahead = Nanos::ZERO;
        self.doorbell = None;
        self.assign_bars();
        self.set_dma(true)?;
        self.interrupts.clear();
        for function in [Function::Pacer, Function::Gpu] {
            let count = self.device(function).irq(IrqIndex::MSIX).count;
            let mut theirs = Vec::new();
            for _ in 0..count {
                let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
                    .map_err(system("make an eventfd"))?;
                theirs.push(rustix::io::dup(&fd).map_err(system("duplicate an eventfd"))?);
                self.interrupts.push(fd);
            }
            let set = IrqAction::SetEventFds(theirs);
            self.device(function).set_irqs(IrqIndex::MSIX, 0, count, set).map_err(refused)?;
            if function == Function::Pacer {
                self.pacer_vectors = self.interrupts.len();
            }
        }
        let GuestTsc { offset, scale } = self.tsc;
        for (register, value) in [
            (reg::TSC_OFFSET, offset as u32),
            (reg::TSC_OFFSET + 4, (offset >> 32) as u32),
            (reg::TSC_SCALE, scale as u32),
            (reg::TSC_SCALE + 4, (scale >> 32) as u32),
            (reg::TSC_COMMIT, 1),
        ] {
            self.region_write(
                Function::Pacer,
                RegionIndex::bar(0),
                register.into(),
                &value.to_le_bytes(),
            );
        }
        Ok(())
    }

    /// The VMM is gone.
    pub(super) fn unplug(&mut self) {
        self.pacer.disconnected();
        self.gpu.disconnected();
        self.windows.clear();
        self.interrupts.clear();
        self.doorbell = None;
        self.stirred = true;
    }

    fn assign_bars(&mut self) {
        self.windows.clear();
        let mut next = BARS;
        for function in [Function::Pacer, Function::Gpu] {
            for bar in 0..6 {
                let size = self.device(function).region(RegionIndex::bar(bar)).size;
                if size == 0 {
                    continue;
                }
                let start = next.next_multiple_of(size.max(0x1_0000));
                next = start + size;
                self.windows.push(Window { function, bar, start, size });
                let register = u64::from(config::BAR0) + 4 * u64::from(bar);
                let address = start.to_le_bytes();
                self.region_write(function, RegionIndex::CONFIG, register, &address);
            }
        }
    }

    fn device(&mut self, function: Function) -> &mut dyn Device {
        match function {
            Function::Pacer => &mut self.pacer,
            Function::Gpu => &mut self.gpu,
        }
    }

    /// Reads a region as a VMM would for its guest; all ones where the device refuses.
    pub fn region_read(
        &mut self,
        function: Function,
        region: RegionIndex,
        offset: u64,
        data: &mut [u8],
    ) {
        let size = self.device(function).region(region).size;
        let fits = offset.checked_add(data.len() as u64).is_some_and(|end| end <= size);
        if !fits || self.device(function).region_read(region, offset, data).is_err() {
            data.fill(0xff);
        }
    }

    /// Writes a region as a VMM would for its guest; what the device refuses is dropped.
    pub fn region_write(
        &mut self,
        function: Function,
        region: RegionIndex,
        offset: u64,
        data: &[u8],
    ) {
        let info = self.device(function).region(region);
        let fits = offset.checked_add(data.len() as u64).is_some_and(|end| end <= info.size);
        // A server answers these two itself.
        if fits && info.flags.write {
            // A refusal is the device's answer to a guest, who hears of nothing.
            let _ = self.device(function).region_write(region, offset, data);
            self.stirred |= function == Function::Gpu;
        }
    }

    /// Takes the device's view of the guest's memory away, or gives it back, whatever is under way.
    pub fn set_dma(&mut self, on: bool) -> Result<(), WorldError> {
        let refused = |e: beamline_vfio_user::DeviceError| WorldError::Refused(e.to_string());
        self.gpu.dma_unmap_all();
        if on {
            self.gpu.dma_map(dma_map(&self.memory)?).map_err(refused)?;
        }
        Ok(())
    }

    /// Overwrites guest memory, as a guest can at any time.
    pub fn scribble(&mut self, at: u64, bytes: &[u8]) {
        // A range that leaves the memory is not the guest's to write.
        let _ = self.ram.write(HostGpa(at), bytes);
    }

    /// Whether an interrupt waits.
    pub(super) fn interrupted(&self) -> Result<bool, WorldError> {
        let mut fds: Vec<_> =
            self.interrupts.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let ready = poll(&mut fds, Some(&now)).map_err(system("look at eventfds"))?;
        Ok(ready > 0)
    }

    /// Takes every interrupt that waits.
    pub(super) fn take_interrupts(&mut self) -> Taken {
        let mut taken = Taken::default();
        for (vector, fd) in self.interrupts.iter().enumerate() {
            let mut count = [0; 8];
            if rustix::io::read(fd, &mut count).is_ok() {
                taken.any = true;
                taken.request |= (1..self.pacer_vectors).contains(&vector);
            }
        }
        taken
    }

    /// The doorbell that waits for the guest's CPU, if one does.
    pub(super) fn has_doorbell(&self) -> bool {
        self.doorbell.is_some()
    }

    /// The guest's CPU has got to its doorbell.
    pub(super) fn ring(&mut self) {
        self.ahead = Nanos::ZERO;
        if let Some((gpa, width, value)) = self.doorbell.take() {
            self.mmio_out(gpa, width, value);
        }
    }

    /// The arena that a driver gets: all of the memory.
    pub(super) fn arena() -> Arena {
        Arena::new(Gpa(RAM), RAM_SIZE)
    }

    /// Where the driver's interrupts go: nobody looks at that here, the eventfds are what counts.
    pub(super) fn targets() -> Targets {
        let msi = |data| MsiTarget { address: 0xfee0_0000, data };
        Targets { pacer: [msi(0x40), msi(0x41), msi(0x42)], gpu: msi(0x43) }
    }

    fn window(&self, gpa: u64, len: u64) -> Option<Window> {
        let end = gpa.checked_add(len)?;
        let mut windows = self.windows.iter();
        windows.find(|w| w.start <= gpa && end <= w.start + w.size).copied()
    }

    fn mmio_out(&mut self, gpa: u64, width: Width, value: u64) {
        let bytes = value.to_le_bytes();
        let len = width.bytes();
        if let Some(w) = self.window(gpa, len) {
            let region = RegionIndex::bar(w.bar);
            self.region_write(w.function, region, gpa - w.start, &bytes[..len as usize]);
        }
    }

    /// Whether a write rings a doorbell: the vGPU's notify structure is 16 bits wide per queue, and no other
    /// 16-bit write happens once the driver is set up.
    fn is_doorbell(&self, gpa: u64, width: Width) -> bool {
        let gpu = self.window(gpa, width.bytes()).is_some_and(|w| w.function == Function::Gpu);
        gpu && width == Width::Word && self.ahead > Nanos::ZERO
    }

    fn at(slot: Slot) -> Option<Function> {
        match slot.0 {
            n if n == SLOTS[0] => Some(Function::Pacer),
            n if n == SLOTS[1] => Some(Function::Gpu),
            _ => None,
        }
    }
}

impl Transport for Port {
    fn config_read(&mut self, slot: Slot, offset: u16, width: Width) -> u32 {
        let mut bytes = [0; 4];
        let n = (width.bytes() as usize).min(4);
        match Self::at(slot) {
            Some(function) => {
                self.region_read(function, RegionIndex::CONFIG, offset.into(), &mut bytes[..n]);
            }
            None => bytes[..n].fill(0xff),
        }
        u32::from_le_bytes(bytes)
    }

    fn config_write(&mut self, slot: Slot, offset: u16, width: Width, value: u32) {
        let n = (width.bytes() as usize).min(4);
        if let Some(function) = Self::at(slot) {
            let bytes = value.to_le_bytes();
            self.region_write(function, RegionIndex::CONFIG, offset.into(), &bytes[..n]);
        }
    }

    fn reaches(&self, gpa: Gpa, len: u64) -> bool {
        self.window(gpa.0, len).is_some()
    }

    fn mmio_read(&mut self, gpa: Gpa, width: Width) -> u64 {
        let mut bytes = [0; 8];
        let n = width.bytes() as usize;
        match self.window(gpa.0, width.bytes()) {
            Some(w) => {
                let region = RegionIndex::bar(w.bar);
                self.region_read(w.function, region, gpa.0 - w.start, &mut bytes[..n]);
            }
            None => bytes[..n].fill(0xff),
        }
        u64::from_le_bytes(bytes)
    }

    fn mmio_write(&mut self, gpa: Gpa, width: Width, value: u64) {
        if self.is_doorbell(gpa.0, width) {
            self.doorbell = Some((gpa.0, width, value));
        } else {
            self.mmio_out(gpa.0, width, value);
        }
    }

    fn read(&self, gpa: Gpa, bytes: &mut [u8]) {
        if self.ram.read(HostGpa(gpa.0), bytes).is_err() {
            bytes.fill(0xff);
        }
    }

    fn write(&mut self, gpa: Gpa, bytes: &[u8]) {
        if bytes.len() > STREAM {
            self.ahead += self.cpu;
        }
        self.scribble(gpa.0, bytes);
    }

    fn load_u16(&self, gpa: Gpa) -> u16 {
        self.ram.read_u16(HostGpa(gpa.0)).unwrap_or(u16::MAX)
    }

    fn store_u16(&mut self, gpa: Gpa, value: u16) {
        // As for `scribble`.
        let _ = self.ram.write_u16_release(HostGpa(gpa.0), value);
    }

    fn fence(&self) {
        // One thread: its accesses are in order.
    }

    fn tsc(&self) -> u64 {
        tsc::read(self.tsc, self.clock.now().saturating_add(self.ahead))
    }

    /// A guest that runs in events never waits: only [`super::Attaching`] does.
    fn wait(&mut self) -> Wake {
        Wake::Stop
    }
}

/// Guest memory as a VMM makes it.
fn sealed_memory() -> Result<OwnedFd, WorldError> {
    let fd = rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .map_err(system("make guest memory"))?;
    rustix::fs::ftruncate(&fd, RAM_SIZE).map_err(system("size guest memory"))?;
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW)
        .map_err(system("seal guest memory"))?;
    Ok(fd)
}

fn dma_map(memory: &OwnedFd) -> Result<DmaMap, WorldError> {
    let fd = rustix::io::dup(memory).map_err(system("duplicate guest memory"))?;
    Ok(DmaMap {
        iova: RAM,
        size: RAM_SIZE,
        flags: DmaFlags { read: true, write: true },
        fd: Some(fd),
        fd_offset: 0,
    })
}
