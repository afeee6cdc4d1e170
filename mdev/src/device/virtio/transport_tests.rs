use super::gpu::*;
use super::queue::QueueError;
use crate::device::eventfd::EventFd;
use crate::memory::{Gpa, sealed_memfd};
use beamline_abi::pci::{capability, command, config as header};
use beamline_abi::virtio_gpu;
use beamline_abi::virtio_pci::{NO_VECTOR, cap, common, feature, ring, status};
use beamline_vfio_user::{Device, DmaFlags, DmaMap, IrqAction, IrqIndex, RegionIndex};
use proptest::prelude::*;
use rustix::fs::SealFlags;
use std::os::fd::AsFd;

const CONFIG: RegionIndex = RegionIndex::CONFIG;
const BAR: RegionIndex = RegionIndex::bar(4);
const TABLE: u64 = 0x1000;
const DRIVER: u64 = 0x2000;
const DEVICE: u64 = 0x3000;
const DATA: u64 = 0x4000;
const MEMORY: u64 = 0x8000;
const WANTED: u64 = feature::VERSION_1 | virtio_gpu::feature::VIRGL;

/// A guest's driver, written against configuration space alone.
struct Driver {
    gpu: VirtioGpu,
    handle: GpuHandle,
    common: u64,
    isr: u64,
    device: u64,
    notify: u64,
}

impl Driver {
    /// Maps memory, turns on bus mastering and finds the structures.
    fn new() -> Self {
        let (mut gpu, handle) = VirtioGpu::new(GpuConfig { contexts: true }).unwrap();
        gpu.dma_map(DmaMap {
            iova: 0,
            size: MEMORY,
            flags: DmaFlags { read: true, write: true },
            fd: Some(sealed_memfd("guest", MEMORY, SealFlags::empty()).unwrap()),
            fd_offset: 0,
        })
        .unwrap();
        let mut driver = Self { gpu, handle, common: 0, isr: 0, device: 0, notify: 0 };
        driver.master(true);
        driver.common = driver.structure(cap::COMMON);
        driver.isr = driver.structure(cap::ISR);
        driver.device = driver.structure(cap::DEVICE);
        driver.notify = driver.structure(cap::NOTIFY);
        driver
    }

    fn master(&mut self, on: bool) {
        let bits = command::MEMORY | if on { command::BUS_MASTER } else { 0 };
        self.gpu.region_write(CONFIG, header::COMMAND.into(), &bits.to_le_bytes()).unwrap();
    }

    fn read(&mut self, region: RegionIndex, at: u64, len: usize) -> u64 {
        let mut bytes = [0; 8];
        self.gpu.region_read(region, at, &mut bytes[..len]).unwrap();
        u64::from_le_bytes(bytes)
    }

    fn capability(&mut self, id: u8, cfg_type: u8) -> u64 {
        let mut at = self.read(CONFIG, header::CAPABILITIES.into(), 1);
        while at != 0 {
            let found = self.read(CONFIG, at, 1) == u64::from(id);
            if found && self.read(CONFIG, at + 3, 1) == u64::from(cfg_type) {
                return at;
            }
            at = self.read(CONFIG, at + 1, 1);
        }
        panic!("no capability {id:#x} of type {cfg_type}");
    }

    fn structure(&mut self, cfg_type: u8) -> u64 {
        let at = self.capability(capability::VENDOR, cfg_type);
        assert_eq!(self.read(CONFIG, at + u64::from(cap::BAR), 1), 4);
        self.read(CONFIG, at + u64::from(cap::OFFSET), 4)
    }

    fn get(&mut self, field: u32, len: usize) -> u64 {
        let at = self.common + u64::from(field);
        self.read(BAR, at, len)
    }

    fn set(&mut self, field: u32, len: usize, value: u64) {
        let at = self.common + u64::from(field);
        self.gpu.region_write(BAR, at, &value.to_le_bytes()[..len]).unwrap();
    }

    fn status(&mut self) -> u8 {
        self.get(common::DEVICE_STATUS, 1) as u8
    }

    fn add_status(&mut self, bit: u8) -> u8 {
        let old = self.status();
        self.set(common::DEVICE_STATUS, 1, u64::from(old | bit));
        self.status()
    }

    fn features(&mut self, features: u64) -> u8 {
        for half in 0..2 {
            self.set(common::DRIVER_FEATURE_SELECT, 4, half);
            self.set(common::DRIVER_FEATURE, 4, features >> (32 * half) & 0xffff_ffff);
        }
        self.add_status(status::FEATURES_OK)
    }

    fn queue(&mut self, index: u64, table: u64) {
        self.set(common::QUEUE_SELECT, 2, index);
        assert_eq!(self.get(common::QUEUE_SIZE, 2), 256);
        self.set(common::QUEUE_SIZE, 2, 8);
        self.set(common::QUEUE_MSIX_VECTOR, 2, index + 1);
        self.set(common::QUEUE_DESC, 8, table);
        self.set(common::QUEUE_DRIVER, 4, DRIVER);
        self.set(common::QUEUE_DRIVER + 4, 4, 0);
        self.set(common::QUEUE_DEVICE, 8, DEVICE);
        self.set(common::QUEUE_ENABLE, 2, 1);
    }

    /// All of it, up to a device that runs.
    fn start(&mut self) {
        self.set(common::DEVICE_STATUS, 1, 0);
        assert_eq!(self.status(), 0);
        self.add_status(status::ACKNOWLEDGE);
        self.add_status(status::DRIVER);
        assert_ne!(self.features(WANTED) & status::FEATURES_OK, 0);
        self.set(common::CONFIG_MSIX_VECTOR, 2, 0);
        self.queue(0, TABLE);
        assert_eq!(self.get(common::QUEUE_ENABLE, 2), 1);
        self.add_status(status::DRIVER_OK);
    }

    fn wire(&mut self, vector: u32) -> EventFd {
        let wire = EventFd::new().unwrap();
        let fd = wire.as_fd().try_clone_to_owned().unwrap();
        self.gpu.set_irqs(IrqIndex::MSIX, vector, 1, IrqAction::SetEventFds(vec![fd])).unwrap();
        wire
    }

    /// One descriptor, one buffer that the device writes.
    fn offer(&mut self) {
        let memory = self.handle.memory();
        let mut entry = [0; 16];
        entry[..8].copy_from_slice(&DATA.to_le_bytes());
        entry[8] = 64;
        entry[12] = ring::DESC_WRITE as u8;
        memory.write(Gpa(TABLE), &entry).unwrap();
        memory.write_u16_release(Gpa(DRIVER + 2), 1).unwrap();
    }
}

#[test]
fn a_driver_brings_the_device_up() {
    let mut driver = Driver::new();
    let irq = driver.wire(1);
    assert_eq!(driver.read(CONFIG, 0, 4), 0x1050_1af4);
    assert_eq!(driver.get(common::NUM_QUEUES, 2), 2);
    driver.set(common::DEVICE_FEATURE_SELECT, 4, 1);
    assert_eq!(driver.get(common::DEVICE_FEATURE, 4), 0b11);
    driver.set(common::DEVICE_FEATURE_SELECT, 4, 0);
    assert_eq!(driver.get(common::DEVICE_FEATURE, 4), 0b1_0011);
    let device = driver.device;
    assert_eq!(driver.read(BAR, device + 8, 8), 1 << 32 | 1, "one scanout, one capset");

    driver.start();
    assert!(driver.handle.wake().take());
    assert_eq!(driver.handle.epoch(), 1);
    let mut set = driver.handle.take_queues().unwrap();
    assert!(driver.handle.take_queues().is_none());
    assert_eq!((set.epoch, set.features), (1, WANTED));
    assert!(set.take(1).is_none(), "not enabled");
    let mut queue = set.take(0).unwrap();
    assert!(set.take(0).is_none() && set.take(9).is_none());

    driver.offer();
    let notify = driver.notify;
    driver.gpu.region_write(BAR, notify, &[0, 0]).unwrap();
    assert!(driver.handle.kick(0).unwrap().take());
    assert!(!driver.handle.kick(1).unwrap().take());
    assert!(driver.handle.kick(2).is_none());
    let chain = queue.avail.pop().unwrap().unwrap();
    assert!(queue.used.complete(&chain.reply(), b"answer").unwrap());
    assert_eq!(queue.used.interrupt(), Ok(true));
    assert!(irq.take());
}

#[test]
fn a_display_without_contexts_has_blobs() {
    let mut driver = Driver::new();
    driver.gpu = VirtioGpu::new(GpuConfig { contexts: false }).unwrap().0;
    assert_eq!(driver.get(common::DEVICE_FEATURE, 4), 0b1010);
    let device = driver.device;
    assert_eq!(driver.read(BAR, device + 8, 8), 1, "one scanout, no capset");
}

#[test]
fn doorbells_are_one_eventfd_per_queue() {
    let mut driver = Driver::new();
    let notify = driver.notify;
    let doorbells: Vec<_> = driver
        .gpu
        .io_fds(BAR)
        .iter()
        .map(|io| (io.offset - notify, io.size, io.fd.try_clone_to_owned().unwrap()))
        .collect();
    assert!(driver.gpu.io_fds(CONFIG).is_empty());
    assert_eq!(doorbells.iter().map(|d| (d.0, d.1)).collect::<Vec<_>>(), [(0, 2), (4, 2)]);
    rustix::io::write(&doorbells[1].2, &1u64.to_ne_bytes()).unwrap();
    assert!(driver.handle.kick(1).unwrap().take());
    assert!(!driver.handle.kick(0).unwrap().take());
    driver.set(common::QUEUE_SELECT, 2, 1);
    assert_eq!(driver.get(common::QUEUE_NOTIFY_OFF, 2), 1);
}

#[test]
fn features_must_be_offered_ones_and_modern() {
    let mut driver = Driver::new();
    assert_eq!(driver.features(feature::VERSION_1 | 1 << 20) & status::FEATURES_OK, 0);
    assert_eq!(driver.features(0) & status::FEATURES_OK, 0);
    assert_eq!(driver.add_status(status::DRIVER_OK) & status::DRIVER_OK, 0);
    assert_ne!(driver.features(WANTED) & status::FEATURES_OK, 0);
    driver.set(common::DRIVER_FEATURE_SELECT, 4, 0);
    driver.set(common::DRIVER_FEATURE, 4, 0);
    assert_eq!(driver.get(common::DRIVER_FEATURE, 4), 1, "fixed by FEATURES_OK");
}

#[test]
fn bad_queue_set_up_asks_for_a_reset() {
    let mut driver = Driver::new();
    let config_irq = driver.wire(0);
    driver.set(common::CONFIG_MSIX_VECTOR, 2, 0);
    driver.queue(0, TABLE);
    assert_eq!(driver.get(common::QUEUE_ENABLE, 2), 0, "before FEATURES_OK");
    driver.features(WANTED);
    driver.set(common::QUEUE_SIZE, 2, 7);
    driver.set(common::QUEUE_SIZE, 2, 512);
    assert_eq!(driver.get(common::QUEUE_SIZE, 2), 8, "only powers of two up to 256");
    driver.set(common::QUEUE_DESC, 8, TABLE + 1);
    driver.set(common::QUEUE_ENABLE, 2, 1);
    assert_eq!(driver.get(common::QUEUE_ENABLE, 2), 0);
    assert_ne!(driver.status() & status::NEEDS_RESET, 0);
    assert!(config_irq.take());
    driver.set(common::DEVICE_STATUS, 1, 0);
    assert_eq!(driver.status(), 0);
    assert_eq!(driver.get(common::CONFIG_MSIX_VECTOR, 2), u64::from(NO_VECTOR));

    driver.set(common::QUEUE_SELECT, 2, 2);
    assert_eq!(driver.get(common::QUEUE_SIZE, 2), 0, "there is no such queue");
    driver.set(common::QUEUE_MSIX_VECTOR, 2, 1);
    assert_eq!(driver.get(common::QUEUE_MSIX_VECTOR, 2), u64::from(NO_VECTOR));
    driver.set(common::CONFIG_MSIX_VECTOR, 2, 3);
    assert_eq!(driver.get(common::CONFIG_MSIX_VECTOR, 2), u64::from(NO_VECTOR));
}

#[test]
fn every_reset_kills_the_queues() {
    type Reset = fn(&mut Driver);
    let resets: [Reset; 4] = [
        |driver| driver.set(common::DEVICE_STATUS, 1, 0),
        |driver| driver.gpu.reset(),
        |driver| {
            let at = driver.capability(capability::EXPRESS, 0);
            driver.gpu.region_write(CONFIG, at + 8, &0x8000u16.to_le_bytes()).unwrap();
        },
        |driver| driver.gpu.disconnected(),
    ];
    for reset in resets {
        let mut driver = Driver::new();
        driver.start();
        driver.offer();
        let mut queue = driver.handle.take_queues().unwrap().take(0).unwrap();
        assert!(driver.handle.wake().take());
        let chain = queue.avail.pop().unwrap().unwrap();
        reset(&mut driver);
        assert!(driver.handle.wake().take());
        assert_eq!(driver.handle.epoch(), 2);
        assert!(driver.handle.take_queues().is_none());
        assert_eq!(queue.used.complete(&chain.reply(), b"late"), Err(QueueError::Closed));
        assert_eq!(queue.avail.pop(), Err(QueueError::Closed));
        assert_eq!(driver.status(), 0);
    }
}

#[test]
fn a_device_comes_up_again_after_a_reset() {
    let mut driver = Driver::new();
    driver.start();
    driver.start();
    let set = driver.handle.take_queues().unwrap();
    assert_eq!((set.epoch, driver.handle.epoch()), (3, 3));
}

#[test]
fn bus_mastering_off_stops_dma_and_interrupts() {
    let mut driver = Driver::new();
    let irq = driver.wire(1);
    driver.start();
    driver.offer();
    let mut queue = driver.handle.take_queues().unwrap().take(0).unwrap();
    driver.master(false);
    assert_eq!(queue.avail.pop(), Err(QueueError::Paused));
    assert_eq!(queue.used.interrupt(), Ok(false));
    driver.master(true);
    assert!(driver.handle.kick(0).unwrap().take(), "a kick, since one may have been missed");
    assert!(queue.avail.pop().unwrap().is_some());
    assert_eq!(queue.used.interrupt(), Ok(true));
    assert!(irq.take());
}

#[test]
fn unmapped_memory_is_out_of_the_queues_reach() {
    let mut driver = Driver::new();
    driver.start();
    driver.offer();
    let mut queue = driver.handle.take_queues().unwrap().take(0).unwrap();
    assert!(driver.gpu.dma_unmap(0, MEMORY / 2).is_err());
    driver.gpu.dma_unmap(0, MEMORY).unwrap();
    assert!(matches!(queue.avail.pop(), Err(QueueError::Memory(_))));
    let config_irq = driver.wire(0);
    assert_eq!(driver.handle.fail(), Ok(true));
    assert!(config_irq.take());
    assert_ne!(driver.status() & status::NEEDS_RESET, 0);
}

#[test]
fn isr_is_for_drivers_without_vectors_and_clears_on_read() {
    let mut driver = Driver::new();
    driver.start();
    let queue = driver.handle.take_queues().unwrap().take(0).unwrap();
    driver.set(common::QUEUE_SELECT, 2, 0);
    driver.set(common::QUEUE_MSIX_VECTOR, 2, u64::from(NO_VECTOR));
    driver.set(common::CONFIG_MSIX_VECTOR, 2, u64::from(NO_VECTOR));
    assert_eq!(queue.used.interrupt(), Ok(false));
    assert_eq!(driver.handle.fail(), Ok(false));
    let isr = driver.isr;
    assert_eq!(driver.read(BAR, isr, 4), 3);
    assert_eq!(driver.read(BAR, isr, 1), 0);
}

#[test]
fn the_bar_can_be_reached_through_configuration_space() {
    let mut driver = Driver::new();
    let at = driver.capability(capability::VENDOR, 5);
    let set = |driver: &mut Driver, offset: u64, value: u32| {
        driver.gpu.region_write(CONFIG, at + offset, &value.to_le_bytes()).unwrap();
    };
    assert_eq!(driver.read(CONFIG, at + 16, 4), 0);
    driver.gpu.region_write(CONFIG, at + u64::from(cap::BAR), &[4]).unwrap();
    set(&mut driver, cap::OFFSET.into(), common::NUM_QUEUES);
    set(&mut driver, cap::LENGTH.into(), 2);
    assert_eq!(driver.read(CONFIG, at + 16, 4), 2);
    set(&mut driver, cap::OFFSET.into(), common::QUEUE_SELECT);
    set(&mut driver, 16, 1);
    assert_eq!(driver.get(common::QUEUE_SELECT, 2), 1);
    set(&mut driver, cap::OFFSET.into(), u32::MAX);
    set(&mut driver, 16, 7);
    set(&mut driver, cap::LENGTH.into(), 3);
    set(&mut driver, 16, 7);
    assert_eq!(driver.get(common::QUEUE_SELECT, 2), 1);
}

proptest! {
    /// Any access inside a region is answered; none panics, whatever state it leads to.
    #[test]
    fn any_access_is_answered(accesses in proptest::collection::vec(
        (0u8..8, any::<u16>(), 0usize..12, any::<bool>(), any::<u64>()),
        1..200,
    )) {
        let mut driver = Driver::new();
        for (place, offset, len, write, value) in accesses {
            // Mostly the common structure, where the state is.
            let (index, offset) = match place {
                0 => (CONFIG, u64::from(offset % 4096)),
                1 => (BAR, u64::from(offset)),
                2 => (BAR, 0x2000 + u64::from(offset % 32)),
                _ => (BAR, u64::from(offset % 0x40)),
            };
            let len = len.min((driver.gpu.region(index).size - offset) as usize);
            let mut bytes = [0u8; 12];
            bytes[..8].copy_from_slice(&value.to_le_bytes());
            if write {
                driver.gpu.region_write(index, offset, &bytes[..len]).unwrap();
            } else {
                driver.gpu.region_read(index, offset, &mut bytes[..len]).unwrap();
            }
            if let Some(mut queue) = driver.handle.take_queues().and_then(|mut set| set.take(0)) {
                let _ = queue.avail.pop();
            }
        }
    }
}
