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

use super::queue::{MAX_QUEUE_SIZE, Queue, QueueLayout, Signal};
use crate::device::eventfd::EventFd;
use crate::device::gate::Gate;
use crate::device::pci::bar::Bar;
use crate::device::pci::config::{Identity, Msix};
use crate::device::pci::msix::{IrqError, IrqTable};
use crate::device::pci::{Function, PciError, trapped};
use crate::memory::{Gpa, GuestMemory};
use beamline_abi::pci::capability;
use beamline_abi::virtio_pci::{
    DEVICE_ID_BASE, NO_VECTOR, VENDOR_ID, cap, common, feature, status,
};
use beamline_vfio_user::{
    Device, DeviceError, DeviceInfo, DmaMap, IoFd, IrqAction, IrqIndex, IrqInfo, RegionIndex,
    RegionInfo,
};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Queues of a device.
pub const QUEUES: usize = 2;
/// Vectors: one for configuration changes, one per queue.
const VECTORS: u16 = QUEUES as u16 + 1;
/// The slot of the configuration vector among the vectors, after those of the queues.
const CONFIG_SLOT: usize = QUEUES;

/// The device goes through the platform's address translation (6): what it is given are I/O virtual
/// addresses.
const ACCESS_PLATFORM: u64 = 1 << 33;
/// `cfg_type` of access through configuration space (4.1.4.9).
const CAP_PCI_CFG: u8 = 5;
/// Bytes of that capability: a virtio capability and four bytes of data.
const PCI_CFG_SIZE: usize = 20;

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

/// The queues of a driver that is ready.
pub struct QueueSet {
    /// Which life of the device they belong to, see [`VirtioHandle::epoch`].
    pub epoch: u64,
    /// The features agreed on.
    pub features: u64,
    queues: [Option<Queue>; QUEUES],
}

impl QueueSet {
    /// Takes queue `index`, once, if the driver enabled it.
    pub fn take(&mut self, index: u16) -> Option<Queue> {
        self.queues.get_mut(usize::from(index))?.take()
    }
}

/// What the device model and the slice's threads share.
struct Shared {
    memory: Arc<GuestMemory>,
    irqs: Arc<IrqTable>,
    kicks: [EventFd; QUEUES],
    wake: EventFd,
    /// Vectors of the queues, then of configuration changes.
    vectors: Arc<[AtomicU16]>,
    isr: Arc<AtomicU8>,
    needs_reset: AtomicBool,
    /// Raised at every DRIVER_OK and at every reset of a device that was ready.
    epoch: AtomicU64,
    /// Queues that nobody has taken yet.
    ready: Mutex<Option<QueueSet>>,
}

impl Shared {
    /// Sets DEVICE_NEEDS_RESET and tells the driver.
    fn fail(&self) -> Result<bool, IrqError> {
        self.needs_reset.store(true, Ordering::Release);
        match self.vectors[CONFIG_SLOT].load(Ordering::Acquire) {
            NO_VECTOR => {
                self.isr.fetch_or(2, Ordering::Release);
                Ok(false)
            }
            vector => self.irqs.signal(vector),
        }
    }

    fn ready(&self) -> MutexGuard<'_, Option<QueueSet>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The slice's side of a virtio device. A clone is the same device.
#[derive(Clone)]
pub struct VirtioHandle(Arc<Shared>);

impl VirtioHandle {
    /// The guest's memory.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.0.memory
    }

    /// The doorbell of a queue; `None` where there is no such queue. To be taken before the queue is
    /// looked at.
    pub fn kick(&self, queue: u16) -> Option<&EventFd> {
        self.0.kicks.get(usize::from(queue))
    }

    /// Readable when the driver became ready or the device was reset. To be taken before
    /// [`VirtioHandle::take_queues`].
    pub fn wake(&self) -> &EventFd {
        &self.0.wake
    }

    /// Which life of the device this is: work that began in another one is stale.
    pub fn epoch(&self) -> u64 {
        self.0.epoch.load(Ordering::Acquire)
    }

    /// The queues of a driver that became ready since the last call. Queues taken earlier are dead then.
    pub fn take_queues(&self) -> Option<QueueSet> {
        self.0.ready().take()
    }

    /// Tells the driver that the device needs a reset: after a [`super::queue::QueueError`].
    pub fn fail(&self) -> Result<bool, IrqError> {
        self.0.fail()
    }
}

/// What the driver has set for a queue.
#[derive(Clone, Copy, Debug)]
struct QueueSetup {
    size: u16,
    enabled: bool,
    descriptors: u64,
    driver: u64,
    device: u64,
}

impl Default for QueueSetup {
    fn default() -> Self {
        Self { size: MAX_QUEUE_SIZE, enabled: false, descriptors: 0, driver: 0, device: 0 }
    }
}

/// What the driver has set for the device.
#[derive(Clone, Copy, Debug, Default)]
struct Setup {
    status: u8,
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    queue_select: u16,
    queues: [QueueSetup; QUEUES],
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

    fn offered(&self) -> u64 {
        self.device.features() | feature::VERSION_1 | ACCESS_PLATFORM
    }

    fn status(&self) -> u8 {
        let needs_reset = self.shared.needs_reset.load(Ordering::Acquire);
        self.setup.status | if needs_reset { status::NEEDS_RESET } else { 0 }
    }

    /// Takes the driver's new status.
    fn set_status(&mut self, new: u8) {
        if new == 0 {
            self.reset_virtio();
            return;
        }
        let old = self.setup.status;
        // Bits are only ever added (2.1.1); DEVICE_NEEDS_RESET is ours.
        let mut added = new & !old & !status::NEEDS_RESET;
        if old & status::FAILED != 0 {
            return;
        }
        if added & status::FEATURES_OK != 0 && !self.features_agreed() {
            added &= !status::FEATURES_OK;
        }
        let now = old | added;
        if added & status::DRIVER_OK != 0 && now & status::FEATURES_OK == 0 {
            added &= !status::DRIVER_OK;
        }
        self.setup.status = old | added;
        if added & status::DRIVER_OK != 0 {
            self.start();
        }
    }

    fn features_agreed(&self) -> bool {
        let wanted = self.setup.driver_features;
        wanted & !self.offered() == 0 && wanted & feature::VERSION_1 != 0
    }

    fn features_fixed(&self) -> bool {
        self.setup.status & status::FEATURES_OK != 0
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

    /// Copies from an image of the whole structure: any width and alignment is answered.
    fn read_common(&self, offset: usize, data: &mut [u8]) {
        let image = self.common_image();
        for (to, from) in data.iter_mut().zip(image.iter().skip(offset)) {
            *to = *from;
        }
    }

    fn common_image(&self) -> [u8; common::SIZE as usize] {
        let setup = &self.setup;
        let half = |features: u64, select: u32| match select {
            0 => features as u32,
            1 => (features >> 32) as u32,
            _ => 0,
        };
        let mut image = [0; common::SIZE as usize];
        let mut put = |at: u32, bytes: &[u8]| {
            image[at as usize..][..bytes.len()].copy_from_slice(bytes);
        };
        put(common::DEVICE_FEATURE_SELECT, &setup.device_feature_select.to_le_bytes());
        let offered = half(self.offered(), setup.device_feature_select);
        put(common::DEVICE_FEATURE, &offered.to_le_bytes());
        put(common::DRIVER_FEATURE_SELECT, &setup.driver_feature_select.to_le_bytes());
        let wanted = half(setup.driver_features, setup.driver_feature_select);
        put(common::DRIVER_FEATURE, &wanted.to_le_bytes());
        put(common::CONFIG_MSIX_VECTOR, &self.vector(CONFIG_SLOT).to_le_bytes());
        put(common::NUM_QUEUES, &(self.queue_count as u16).to_le_bytes());
        put(common::DEVICE_STATUS, &[self.status()]);
        put(common::QUEUE_SELECT, &setup.queue_select.to_le_bytes());
        put(common::QUEUE_MSIX_VECTOR, &NO_VECTOR.to_le_bytes());
        let selected = usize::from(setup.queue_select);
        // Of a queue that does not exist the size reads 0 (4.1.4.3.1).
        if let Some(queue) = setup.queues.get(selected).filter(|_| selected < self.queue_count) {
            put(common::QUEUE_SIZE, &queue.size.to_le_bytes());
            put(common::QUEUE_MSIX_VECTOR, &self.vector(selected).to_le_bytes());
            put(common::QUEUE_ENABLE, &u16::from(queue.enabled).to_le_bytes());
            put(common::QUEUE_NOTIFY_OFF, &setup.queue_select.to_le_bytes());
            put(common::QUEUE_DESC, &queue.descriptors.to_le_bytes());
            put(common::QUEUE_DRIVER, &queue.driver.to_le_bytes());
            put(common::QUEUE_DEVICE, &queue.device.to_le_bytes());
        }
        image
    }

    /// Writes of a field's own width, and of the halves of 64-bit fields; others are dropped (4.1.3.1).
    fn write_common(&mut self, offset: u32, data: &[u8]) {
        let mut bytes = [0; 8];
        for (to, from) in bytes.iter_mut().zip(data) {
            *to = *from;
        }
        let value = u64::from_le_bytes(bytes);
        match (offset, data.len()) {
            (common::DEVICE_FEATURE_SELECT, 4) => self.setup.device_feature_select = value as u32,
            (common::DRIVER_FEATURE_SELECT, 4) => self.setup.driver_feature_select = value as u32,
            (common::DRIVER_FEATURE, 4) => self.set_features(value as u32),
            (common::CONFIG_MSIX_VECTOR, 2) => self.set_vector(CONFIG_SLOT, value as u16),
            (common::DEVICE_STATUS, 1) => self.set_status(value as u8),
            (common::QUEUE_SELECT, 2) => self.setup.queue_select = value as u16,
            (common::QUEUE_MSIX_VECTOR, 2) => {
                let selected = usize::from(self.setup.queue_select);
                if selected < self.queue_count {
                    self.set_vector(selected, value as u16);
                }
            }
            (common::QUEUE_ENABLE, 2) if value == 1 => self.enable_queue(),
            _ => self.set_queue(offset, data.len(), value),
        }
    }

    fn set_features(&mut self, value: u32) {
        if self.features_fixed() {
            return;
        }
        let features = &mut self.setup.driver_features;
        match self.setup.driver_feature_select {
            0 => *features = *features & !u64::from(u32::MAX) | u64::from(value),
            1 => *features = *features & u64::from(u32::MAX) | u64::from(value) << 32,
            _ => {}
        }
    }

    fn vector(&self, slot: usize) -> u16 {
        self.shared.vectors.get(slot).map_or(NO_VECTOR, |v| v.load(Ordering::Acquire))
    }

    /// A vector that does not exist reads back as none (4.1.5.1.2).
    fn set_vector(&self, slot: usize, vector: u16) {
        let vector = if vector < VECTORS { vector } else { NO_VECTOR };
        if let Some(place) = self.shared.vectors.get(slot) {
            place.store(vector, Ordering::Release);
        }
    }

    /// The selected queue, while the driver may still change it.
    fn open_queue(&mut self) -> Option<&mut QueueSetup> {
        let selected = usize::from(self.setup.queue_select);
        let open = selected < self.queue_count && self.setup.status & status::DRIVER_OK == 0;
        self.setup.queues.get_mut(selected).filter(|queue| open && !queue.enabled)
    }

    fn set_queue(&mut self, offset: u32, len: usize, value: u64) {
        let Some(queue) = self.open_queue() else { return };
        if (offset, len) == (common::QUEUE_SIZE, 2) {
            let size = value as u16;
            if size.is_power_of_two() && size <= MAX_QUEUE_SIZE {
                queue.size = size;
            }
            return;
        }
        let field = match offset & !7 {
            common::QUEUE_DESC => &mut queue.descriptors,
            common::QUEUE_DRIVER => &mut queue.driver,
            common::QUEUE_DEVICE => &mut queue.device,
            _ => return,
        };
        match (offset & 7, len) {
            (0, 8) => *field = value,
            (0, 4) => *field = *field & !u64::from(u32::MAX) | value,
            (4, 4) => *field = *field & u64::from(u32::MAX) | value << 32,
            _ => {}
        }
    }

    fn enable_queue(&mut self) {
        let agreed = self.features_fixed();
        let Some(queue) = self.open_queue().filter(|_| agreed) else { return };
        if queue.layout().is_some() {
            queue.enabled = true;
        } else {
            // The driver sees the status and the queue still disabled; a lost interrupt changes neither.
            let _ = self.shared.fail();
        }
    }

    /// Access through configuration space: the structure names BAR, offset and length; its data field is
    /// the register. `None` where the driver set something else.
    fn pci_cfg_target(&self) -> Option<(u64, usize)> {
        let mut window = [0; PCI_CFG_SIZE];
        self.function.config.read(self.pci_cfg as u64, &mut window);
        let u32_at = |at: usize| {
            window[at..].first_chunk::<4>().map_or(0, |bytes| u32::from_le_bytes(*bytes))
        };
        let (offset, len) = (u32_at(cap::OFFSET.into()), u32_at(cap::LENGTH.into()));
        let fits = matches!(len, 1 | 2 | 4)
            && offset.is_multiple_of(len)
            && u64::from(offset) + u64::from(len) <= BAR_SIZE
            && u32::from(window[usize::from(cap::BAR)]) == BAR.0;
        fits.then_some((offset.into(), len as usize))
    }

    /// Whether an access to configuration space touches that data field.
    fn touches_pci_cfg(&self, offset: u64, len: usize) -> bool {
        let data = (self.pci_cfg + 16) as u64;
        offset < data + 4 && data < offset.saturating_add(len as u64)
    }

    fn read_config(&mut self, offset: u64, data: &mut [u8]) {
        if self.touches_pci_cfg(offset, data.len())
            && let Some((at, len)) = self.pci_cfg_target()
        {
            let mut value = [0; 4];
            self.read_bar(at, &mut value[..len]);
            self.function.config.put(self.pci_cfg + 16, &value);
        }
        self.function.config.read(offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let effect = self.function.write_config(offset, data);
        if effect.reset {
            self.reset();
            return;
        }
        if let Some(on) = effect.bus_master {
            self.set_bus_master(on);
        }
        if self.touches_pci_cfg(offset, data.len())
            && let Some((at, len)) = self.pci_cfg_target()
        {
            let mut value = [0; 4];
            self.function.config.read((self.pci_cfg + 16) as u64, &mut value);
            self.write_bar(at, &value[..len]);
        }
    }
}

impl QueueSetup {
    fn layout(&self) -> Option<QueueLayout> {
        QueueLayout::new(self.size, Gpa(self.descriptors), Gpa(self.driver), Gpa(self.device)).ok()
    }
}

/// Appends virtio's capabilities (4.1.4); where the one for access through configuration space is.
fn add_capabilities(function: &mut Function) -> Result<usize, PciError> {
    let body = |cfg_type: u8, size: usize, bar: u8, offset: u64, length: u32| {
        let mut body = [0; PCI_CFG_SIZE];
        body[0] = capability::VENDOR;
        body[2] = size as u8;
        body[usize::from(cap::CFG_TYPE)] = cfg_type;
        body[usize::from(cap::BAR)] = bar;
        body[usize::from(cap::OFFSET)..][..4].copy_from_slice(&(offset as u32).to_le_bytes());
        body[usize::from(cap::LENGTH)..][..4].copy_from_slice(&length.to_le_bytes());
        body
    };
    let page = PAGE as u32;
    for (kind, at, length) in [
        (cap::COMMON, Page::Common, common::SIZE),
        (cap::ISR, Page::Isr, 1),
        (cap::DEVICE, Page::Device, page),
    ] {
        let body = body(kind, 16, BAR.0 as u8, at.offset(), length);
        function.config.add_capability(&body[..16], &[])?;
    }
    let mut notify = body(cap::NOTIFY, 20, BAR.0 as u8, Page::Notify.offset(), page);
    notify[usize::from(cap::NOTIFY_MULTIPLIER)..]
        .copy_from_slice(&(NOTIFY_MULTIPLIER as u32).to_le_bytes());
    function.config.add_capability(&notify, &[])?;
    let mut mask = [0; PCI_CFG_SIZE];
    mask[usize::from(cap::BAR)] = 0xff;
    mask[usize::from(cap::OFFSET)..].fill(0xff);
    function.config.add_capability(&body(CAP_PCI_CFG, PCI_CFG_SIZE, 0, 0, 0), &mask)
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
