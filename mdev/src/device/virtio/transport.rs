//! Stage 2, doorbell: virtio over PCI (virtio 1.3, section 4.1), modern interface only.
//!
//! Everything lies in BAR4, each structure on a page of its own:
//!
//! | offset | what |
//! |---|---|
//! | 0x0000 | common configuration |
//! | 0x1000 | ISR status |
//! | 0x2000 | device configuration |
//! | 0x3000 | notifications: one address of 4 bytes per queue, an ioeventfd each |
//! | 0x4000 | MSI-X table |
//! | 0x5000 | MSI-X pending bits |
//!
//! Device status, as the driver moves it (2.1):
//!
//! ```text
//!  reset ─► ACKNOWLEDGE ─► DRIVER ─► FEATURES_OK ─► DRIVER_OK
//!    ▲                               (offered ones)  (queues are handed to the worker)
//!    └── writing 0, FLR, disconnect: the gate shuts, both halves of every queue are dead ──┘
//! ```

mod capabilities;
mod common;
mod handle;

use super::queue::{Queue, Signal};
use crate::device::eventfd::EventFd;
use crate::device::gate::Gate;
use crate::device::pci::bar::Bar;
use crate::device::pci::config::{Identity, Msix};
use crate::device::pci::{Function, PciError, trapped};
use crate::memory::{Gpa, GuestMemory};
use beamline_abi::virtio_pci::{DEVICE_ID_BASE, NO_VECTOR, VENDOR_ID};
use beamline_vfio_user::{
    Device, DeviceError, DeviceInfo, DmaMap, IoFd, IrqAction, IrqIndex, IrqInfo, RegionIndex,
    RegionInfo,
};
use capabilities::add_capabilities;
use common::Setup;
use handle::Shared;
pub use handle::{QueueSet, VirtioHandle};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Queues of a device.
pub const QUEUES: usize = 2;
/// Vectors: one for configuration changes, one per queue.
const VECTORS: u16 = QUEUES as u16 + 1;
/// The slot of the configuration vector among the vectors, after those of the queues.
const CONFIG_SLOT: usize = QUEUES;

/// The device goes through the platform's address translation (6): what it is given are I/O virtual
/// addresses.
const ACCESS_PLATFORM: u64 = 1 << 33;

const BAR: RegionIndex = RegionIndex::bar(4);
const BAR_SIZE: u64 = 0x1_0000;
const PAGE: u64 = 0x1000;
const NOTIFY_MULTIPLIER: u64 = 4;

/// The structures of the BAR, in the order of their pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Page {
    Common,
    Isr,
    Device,
    Notify,
    Table,
    Pending,
}

impl Page {
    const fn offset(self) -> u64 {
        self as u64 * PAGE
    }

    fn at(offset: u64) -> Option<Self> {
        [Self::Common, Self::Isr, Self::Device, Self::Notify, Self::Table, Self::Pending]
            .into_iter()
            .find(|page| page.offset() == offset - offset % PAGE)
    }
}

/// What a virtio device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioIdentity {
    /// The virtio device type.
    pub device_type: u16,
    /// PCI class code.
    pub class: u32,
    /// Queues, at most [`QUEUES`].
    pub queues: u16,
}

/// What differs between virtio devices.
pub trait DeviceSpecific: Send {
    /// What it is.
    fn identity(&self) -> VirtioIdentity;
    /// Features of its own.
    fn features(&self) -> u64;
    /// Reads device configuration from `offset`; bytes past its end are left as they are.
    fn read_config(&self, offset: usize, out: &mut [u8]);
    /// Writes device configuration.
    fn write_config(&mut self, offset: usize, data: &[u8]);
    /// Back to the state after power-up.
    fn reset(&mut self);
}

/// A virtio device as a PCI function.
pub struct VirtioPci<D> {
    function: Function,
    device: D,
    queue_count: usize,
    setup: Setup,
    shared: Arc<Shared>,
    /// Of the queues that were handed out last.
    gate: Option<Arc<Gate>>,
    /// Where the capability for access through configuration space is.
    pci_cfg: usize,
}

impl<D: DeviceSpecific> VirtioPci<D> {
    /// The function of `device`, and the handle for its slice's threads.
    pub fn from_device(device: D) -> Result<(Self, VirtioHandle), PciError> {
        let id = device.identity();
        let identity = Identity {
            vendor: VENDOR_ID,
            device: DEVICE_ID_BASE + id.device_type,
            class: id.class,
            revision: 1,
            subsystem_vendor: VENDOR_ID,
            subsystem: DEVICE_ID_BASE + id.device_type,
        };
        let msix = Msix {
            vectors: VECTORS,
            bar: 4,
            table: Page::Table.offset() as u32,
            pba: Page::Pending.offset() as u32,
        };
        let mut function = Function::new(&identity, &[Bar::registers(4, BAR_SIZE)], msix)?;
        let pci_cfg = add_capabilities(&mut function)?;
        let eventfd =
            || EventFd::new().map_err(|errno| PciError::System { call: "eventfd", errno });
        let shared = Arc::new(Shared {
            memory: Arc::new(GuestMemory::new()),
            irqs: Arc::clone(&function.irqs),
            kicks: [eventfd()?, eventfd()?],
            wake: eventfd()?,
            vectors: (0..VECTORS).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            isr: Arc::new(AtomicU8::new(0)),
            needs_reset: AtomicBool::new(false),
            epoch: AtomicU64::new(0),
            ready: Mutex::new(None),
        });
        let handle = VirtioHandle(Arc::clone(&shared));
        let model = Self {
            function,
            device,
            queue_count: usize::from(id.queues).min(QUEUES),
            setup: Setup::default(),
            shared,
            gate: None,
            pci_cfg,
        };
        Ok((model, handle))
    }

    /// Hands the enabled queues to the worker.
    fn start(&mut self) {
        let gate = Arc::new(Gate::default());
        if !self.function.config.bus_master() {
            gate.pause();
        }
        let mut queues = [const { None }; QUEUES];
        for (index, queue) in self.setup.queues.iter().enumerate().filter(|(_, q)| q.enabled) {
            // Enabled queues were checked when they were enabled.
            queues[index] = queue.layout().map(|layout| {
                let signal = Signal {
                    irqs: Arc::clone(&self.shared.irqs),
                    vectors: Arc::clone(&self.shared.vectors),
                    queue: index,
                    isr: Arc::clone(&self.shared.isr),
                };
                Queue::new(layout, Arc::clone(&self.shared.memory), Arc::clone(&gate), signal)
            });
        }
        let epoch = self.shared.epoch.fetch_add(1, Ordering::AcqRel) + 1;
        let features = self.setup.driver_features;
        *self.shared.ready() = Some(QueueSet { epoch, features, queues });
        self.gate = Some(gate);
        self.shared.wake.signal();
    }

    /// Back to the state after power-up, of virtio. When it returns, no half of a queue touches guest
    /// memory any more.
    fn reset_virtio(&mut self) {
        if let Some(gate) = self.gate.take() {
            gate.close();
            *self.shared.ready() = None;
            self.shared.epoch.fetch_add(1, Ordering::AcqRel);
            self.shared.wake.signal();
        }
        self.setup = Setup::default();
        self.device.reset();
        for vector in self.shared.vectors.iter() {
            vector.store(NO_VECTOR, Ordering::Release);
        }
        self.shared.isr.store(0, Ordering::Release);
        self.shared.needs_reset.store(false, Ordering::Release);
    }

    fn kick(&self, queue: usize) {
        if let Some(kick) = self.shared.kicks.get(queue).filter(|_| queue < self.queue_count) {
            kick.signal();
        }
    }

    fn set_bus_master(&self, on: bool) {
        match &self.gate {
            Some(gate) if on => {
                gate.resume();
                // Kicks that came meanwhile found the gate shut.
                (0..self.queue_count).for_each(|queue| self.kick(queue));
            }
            Some(gate) => gate.pause(),
            None => {}
        }
    }

    fn read_bar(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let mut at = offset;
        let mut rest = data;
        while !rest.is_empty() {
            let within = at % PAGE;
            let len = rest.len().min((PAGE - within) as usize);
            let (part, more) = rest.split_at_mut(len);
            match Page::at(at) {
                Some(Page::Common) => self.read_common(within as usize, part),
                Some(Page::Isr) if within == 0 => {
                    part[0] = self.shared.isr.swap(0, Ordering::AcqRel);
                }
                Some(Page::Device) => self.device.read_config(within as usize, part),
                Some(Page::Table) => self.function.msix.read_table(within, part),
                _ => {}
            }
            rest = more;
            at += len as u64;
        }
    }

    fn write_bar(&mut self, offset: u64, data: &[u8]) {
        let within = offset % PAGE;
        match Page::at(offset) {
            Some(Page::Common) => self.write_common(within as u32, data),
            Some(Page::Device) => self.device.write_config(within as usize, data),
            Some(Page::Notify) => self.kick((within / NOTIFY_MULTIPLIER) as usize),
            Some(Page::Table) => self.function.msix.write_table(within, data),
            _ => {}
        }
    }
}

impl<D: DeviceSpecific> Device for VirtioPci<D> {
    fn info(&self) -> DeviceInfo {
        DeviceInfo { resettable: true }
    }

    fn region(&self, index: RegionIndex) -> RegionInfo<'_> {
        match index {
            RegionIndex::CONFIG => Function::config_region(),
            BAR => trapped(BAR_SIZE),
            _ => RegionInfo::default(),
        }
    }

    fn irq(&self, index: IrqIndex) -> IrqInfo {
        self.function.irq(index)
    }

    fn io_fds(&self, index: RegionIndex) -> Vec<IoFd<'_>> {
        if index != BAR {
            return Vec::new();
        }
        let kicks = self.shared.kicks.iter().take(self.queue_count).enumerate();
        kicks
            .map(|(queue, kick)| IoFd {
                offset: Page::Notify.offset() + queue as u64 * NOTIFY_MULTIPLIER,
                // A driver writes the queue's number, 16 bits (4.1.5.2).
                size: 2,
                fd: kick.as_fd(),
                datamatch: None,
            })
            .collect()
    }

    fn region_read(
        &mut self,
        index: RegionIndex,
        offset: u64,
        data: &mut [u8],
    ) -> Result<(), DeviceError> {
        match index {
            RegionIndex::CONFIG => self.read_config(offset, data),
            BAR => self.read_bar(offset, data),
            _ => return Err(no_region(index)),
        }
        Ok(())
    }

    fn region_write(
        &mut self,
        index: RegionIndex,
        offset: u64,
        data: &[u8],
    ) -> Result<(), DeviceError> {
        match index {
            RegionIndex::CONFIG => self.write_config(offset, data),
            BAR => self.write_bar(offset, data),
            _ => return Err(no_region(index)),
        }
        Ok(())
    }

    fn set_irqs(
        &mut self,
        index: IrqIndex,
        start: u32,
        count: u32,
        action: IrqAction,
    ) -> Result<(), DeviceError> {
        self.function.set_irqs(index, start, count, action)
    }

    fn dma_map(&mut self, map: DmaMap) -> Result<(), DeviceError> {
        Ok(self.shared.memory.map(map)?)
    }

    fn dma_unmap(&mut self, iova: u64, size: u64) -> Result<(), DeviceError> {
        Ok(self.shared.memory.unmap(Gpa(iova), size)?)
    }

    fn dma_unmap_all(&mut self) {
        self.shared.memory.unmap_all();
    }

    fn reset(&mut self) {
        self.reset_virtio();
        self.function.reset();
    }

    fn disconnected(&mut self) {
        self.reset();
        self.function.irqs.clear();
        self.shared.memory.unmap_all();
    }
}

fn no_region(index: RegionIndex) -> DeviceError {
    DeviceError::Invalid(format!("a virtio function has BAR4 and config, not region {}", index.0))
}
