//! The common configuration structure (virtio 1.3, section 4.1.4.3) as registers.
//!
//! ```text
//!              ACKNOWLEDGE, DRIVER       FEATURES_OK            DRIVER_OK
//!   ┌───────┐ ───────────────────► ┌───┐ ──────────► ┌────────┐ ────────► ┌─────────┐
//!   │ reset │                      │   │ refused     │ agreed │           │ serving │
//!   └───────┘ ◄── 0 from anywhere  └───┘ ◄─┘         └────────┘           └─────────┘
//!                                                       FAILED from anywhere: serves no more
//! ```

use super::super::{DeviceModel, Shared};
use beamline_abi::virtio_pci::{common as reg, feature, status};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;

/// What the transport adds to each device's features.
const TRANSPORT: u64 =
    feature::VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;
/// Bits that belong to the transport: a device's own are below 24 and from 50 on (section 6).
const RESERVED: u64 = ((1 << 50) - 1) & !((1 << 24) - 1);

/// What a write to the structure asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Effect {
    /// Nothing more.
    None,
    /// Reset the device.
    Reset,
    /// The driver is ready: start to serve.
    Start,
    /// The driver gave up: serve no more.
    Stop,
}

/// A queue as the driver sets it up.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueSetup {
    max: u16,
    pub(super) size: u16,
    pub(super) enabled: bool,
    /// Descriptor table, driver area, device area.
    areas: [u64; 3],
}

impl QueueSetup {
    pub(super) fn new(max: u16) -> Self {
        Self { max, size: max, enabled: false, areas: [0; 3] }
    }

    /// The queue, where size and areas are valid and all of it is RAM.
    pub(super) fn build(&self, memory: &GuestMemoryMmap) -> Option<Queue> {
        let mut queue = Queue::new(self.max).ok()?;
        let [table, driver, device] = self.areas.map(crate::Gpa);
        queue.try_set_size(self.size).ok()?;
        queue.try_set_desc_table_address(table).ok()?;
        queue.try_set_avail_ring_address(driver).ok()?;
        queue.try_set_used_ring_address(device).ok()?;
        queue.set_ready(true);
        queue.is_valid(memory).then_some(queue)
    }
}

/// The registers.
pub(super) struct Common {
    offered: u64,
    pub(super) accepted: u64,
    device_select: u32,
    driver_select: u32,
    status: u8,
    queue_select: u16,
    pub(super) queues: Vec<QueueSetup>,
}

impl Common {
    pub(super) fn new(device: &dyn DeviceModel) -> Self {
        let queues = device.queue_sizes().iter().map(|max| QueueSetup::new(*max)).collect();
        let offered = device.features() & !RESERVED
            | TRANSPORT & (device.ring_features() | feature::VERSION_1);
        Self {
            offered,
            accepted: 0,
            device_select: 0,
            driver_select: 0,
            status: 0,
            queue_select: 0,
            queues,
        }
    }

    /// Back to the state before the driver.
    pub(super) fn reset(&mut self) {
        (self.accepted, self.device_select, self.driver_select) = (0, 0, 0);
        (self.status, self.queue_select) = (0, 0);
        for queue in &mut self.queues {
            *queue = QueueSetup::new(queue.max);
        }
    }

    /// The device status.
    pub(super) fn status(&self, shared: &Shared) -> u8 {
        self.status | if shared.is_broken() { status::NEEDS_RESET } else { 0 }
    }

    fn queue(&self) -> Option<&QueueSetup> {
        self.queues.get(usize::from(self.queue_select))
    }

    /// Reads from `offset` on; beyond the structure, zeros.
    pub(super) fn read(&self, shared: &Shared, offset: u64, data: &mut [u8]) {
        data.fill(0);
        super::super::read_space(&self.snapshot(shared), offset, data);
    }

    /// The whole structure.
    fn snapshot(&self, shared: &Shared) -> [u8; reg::SIZE as usize] {
        let mut bytes = [0; reg::SIZE as usize];
        let mut put = |at: u32, value: u64, len: usize| {
            bytes[at as usize..][..len].copy_from_slice(&value.to_le_bytes()[..len]);
        };
        let half = |features: u64, select: u32| match select {
            0 => features & u64::from(u32::MAX),
            1 => features >> 32,
            _ => 0,
        };
        put(reg::DEVICE_FEATURE_SELECT, self.device_select.into(), 4);
        put(reg::DEVICE_FEATURE, half(self.offered, self.device_select), 4);
        put(reg::DRIVER_FEATURE_SELECT, self.driver_select.into(), 4);
        put(reg::DRIVER_FEATURE, half(self.accepted, self.driver_select), 4);
        put(reg::CONFIG_MSIX_VECTOR, shared.vector(None).into(), 2);
        put(reg::NUM_QUEUES, self.queues.len() as u64, 2);
        put(reg::DEVICE_STATUS, self.status(shared).into(), 1);
        put(reg::CONFIG_GENERATION, shared.generation().into(), 1);
        put(reg::QUEUE_SELECT, self.queue_select.into(), 2);
        // A queue that does not exist has size 0.
        let queue = self.queue().copied().unwrap_or(QueueSetup::new(0));
        let vector = shared.vector(Some(self.queue_select.into()));
        put(reg::QUEUE_SIZE, queue.size.into(), 2);
        put(reg::QUEUE_MSIX_VECTOR, vector.into(), 2);
        put(reg::QUEUE_ENABLE, queue.enabled.into(), 2);
        put(reg::QUEUE_NOTIFY_OFF, self.queue_select.into(), 2);
        put(reg::QUEUE_DESC, queue.areas[0], 8);
        put(reg::QUEUE_DRIVER, queue.areas[1], 8);
        put(reg::QUEUE_DEVICE, queue.areas[2], 8);
        bytes
    }

    /// Writes a register; accesses of another width than the register's are dropped (4.1.3.1), except
    /// halves of the 64-bit ones.
    pub(super) fn write(
        &mut self,
        device: &dyn DeviceModel,
        shared: &Shared,
        memory: &GuestMemoryMmap,
        offset: u64,
        data: &[u8],
    ) -> Effect {
        let mut bytes = [0; 8];
        for (to, from) in bytes.iter_mut().zip(data) {
            *to = *from;
        }
        let value = u64::from_le_bytes(bytes);
        let Ok(offset) = u32::try_from(offset) else { return Effect::None };
        match (offset, data.len()) {
            (reg::DEVICE_FEATURE_SELECT, 4) => self.device_select = value as u32,
            (reg::DRIVER_FEATURE_SELECT, 4) => self.driver_select = value as u32,
            (reg::DRIVER_FEATURE, 4) => self.accept(value),
            (reg::CONFIG_MSIX_VECTOR, 2) => shared.set_vector(None, value as u16),
            (reg::DEVICE_STATUS, 1) => return self.set_status(device, shared, value as u8),
            (reg::QUEUE_SELECT, 2) => self.queue_select = value as u16,
            (reg::QUEUE_MSIX_VECTOR, 2) => {
                shared.set_vector(Some(self.queue_select.into()), value as u16);
            }
            (reg::QUEUE_SIZE..reg::SIZE, len) => {
                self.set_queue(shared, memory, offset, len, value);
            }
            _ => {}
        }
        Effect::None
    }

    /// The driver's features count until they are agreed on.
    fn accept(&mut self, value: u64) {
        if self.status & status::FEATURES_OK != 0 {
            return;
        }
        let low = u64::from(u32::MAX);
        match self.driver_select {
            0 => self.accepted = self.accepted & !low | value,
            1 => self.accepted = self.accepted & low | value << 32,
            _ => {}
        }
    }

    fn set_status(&mut self, device: &dyn DeviceModel, shared: &Shared, value: u8) -> Effect {
        const READY: u8 = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        if value == 0 {
            return Effect::Reset;
        }
        // A driver must not clear a bit (section 2.1.1).
        if self.status & !value != 0 {
            return Effect::None;
        }
        let set = value & !self.status;
        self.status |= set & (status::ACKNOWLEDGE | status::DRIVER | status::FAILED);
        if set & status::FEATURES_OK != 0 && self.agrees(device) {
            self.status |= status::FEATURES_OK;
        }
        if self.status & status::FAILED != 0 {
            return Effect::Stop;
        }
        let start = set & status::DRIVER_OK != 0 && self.status & READY == READY;
        if start && !shared.is_broken() {
            self.status |= status::DRIVER_OK;
            return Effect::Start;
        }
        Effect::None
    }

    fn agrees(&self, device: &dyn DeviceModel) -> bool {
        self.accepted & !self.offered == 0
            && self.accepted & feature::VERSION_1 != 0
            && device.accepts(self.accepted)
    }

    /// Writes a register of the selected queue, which is fixed once the queue is enabled.
    fn set_queue(
        &mut self,
        shared: &Shared,
        memory: &GuestMemoryMmap,
        offset: u32,
        len: usize,
        value: u64,
    ) {
        let started = self.status & status::DRIVER_OK != 0;
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else { return };
        if queue.enabled || started {
            return;
        }
        match (offset, len) {
            (reg::QUEUE_SIZE, 2) => {
                let size = value as u16;
                if size.is_power_of_two() && size <= queue.max {
                    queue.size = size;
                }
            }
            (reg::QUEUE_ENABLE, 2) if value == 1 => {
                queue.enabled = queue.build(memory).is_some();
                if !queue.enabled {
                    shared.needs_reset();
                }
            }
            (reg::QUEUE_DESC..reg::SIZE, 4 | 8) => {
                let at = offset - reg::QUEUE_DESC;
                let area = &mut queue.areas[(at / 8) as usize];
                match (at % 8, len) {
                    (0, 8) => *area = value,
                    (0, _) => *area = *area >> 32 << 32 | value,
                    (4, 4) => *area = *area & u64::from(u32::MAX) | value << 32,
                    _ => {}
                }
            }
            _ => {}
        }
    }
}
