//! The common configuration structure (virtio 1.3, section 4.1.4.3) and the device status (2.1).

use super::{ACCESS_PLATFORM, CONFIG_SLOT, DeviceSpecific, QUEUES, VECTORS, VirtioPci};
use crate::device::virtio::queue::{MAX_QUEUE_SIZE, QueueLayout};
use crate::memory::Gpa;
use beamline_abi::virtio_pci::{NO_VECTOR, common, feature, status};
use std::sync::atomic::Ordering;

/// What the driver has set for a queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueSetup {
    pub(super) size: u16,
    pub(super) enabled: bool,
    pub(super) descriptors: u64,
    pub(super) driver: u64,
    pub(super) device: u64,
}

impl Default for QueueSetup {
    fn default() -> Self {
        Self { size: MAX_QUEUE_SIZE, enabled: false, descriptors: 0, driver: 0, device: 0 }
    }
}

/// What the driver has set for the device.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Setup {
    pub(super) status: u8,
    pub(super) device_feature_select: u32,
    pub(super) driver_feature_select: u32,
    pub(super) driver_features: u64,
    pub(super) queue_select: u16,
    pub(super) queues: [QueueSetup; QUEUES],
}

impl QueueSetup {
    pub(super) fn layout(&self) -> Option<QueueLayout> {
        QueueLayout::new(self.size, Gpa(self.descriptors), Gpa(self.driver), Gpa(self.device)).ok()
    }
}

impl<D: DeviceSpecific> VirtioPci<D> {
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

    /// Copies from an image of the whole structure: any width and alignment is answered.
    pub(super) fn read_common(&self, offset: usize, data: &mut [u8]) {
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
    pub(super) fn write_common(&mut self, offset: u32, data: &[u8]) {
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
}
