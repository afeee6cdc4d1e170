//! One of the VMM's virtio functions, as a driver reaches it: configuration space, registers, and a KVM that counts what
//! is attached.

use beamline_abi::pci::{command, config};
use beamline_abi::virtio_pci::{common, status};
use beamline_vmm::Gpa;
use beamline_vmm::devices::virtio::Transport;
use beamline_vmm::interrupt::{Gsi, MsiMessage};
use beamline_vmm::pci::{PciFunction, Wiring};
use beamline_vmm::platform::{Doorbell, PlatformError, Slot};
use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use vm_memory::MmapRegion;

/// Where kicks are written in the BAR, and where the device's own registers are.
const NOTIFY: u64 = 0x2000;
pub(crate) const DEVICE_CONFIG: u64 = 0x1000;
/// The status in which a driver sets queues up.
const OK: u8 = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;

/// Stands for KVM, and counts what is attached.
#[derive(Default)]
pub(crate) struct Counting {
    irqfds: HashMap<u32, usize>,
    bells: Vec<Doorbell>,
    gsis: u32,
}

impl Counting {
    /// KVM listens for no doorbell.
    pub(crate) fn hears_nothing(&self) -> bool {
        self.bells.is_empty()
    }

    /// How many irqfds and doorbells are attached.
    pub(crate) fn attached(&self) -> usize {
        self.irqfds.len() + self.bells.len()
    }
}

impl Wiring for Counting {
    fn add_memory(&mut self, _: Gpa, _: Arc<MmapRegion>, _: bool) -> Result<Slot, PlatformError> {
        Err(PlatformError::Slots)
    }
    fn remove_memory(&mut self, _: Slot) -> Result<(), PlatformError> {
        Ok(())
    }
    fn attach_irqfd(&mut self, _: BorrowedFd<'_>, gsi: Gsi) -> Result<(), PlatformError> {
        let count = self.irqfds.entry(gsi.number()).or_default();
        *count += 1;
        assert_eq!(*count, 1, "an irqfd is attached once");
        Ok(())
    }
    fn detach_irqfd(&mut self, _: BorrowedFd<'_>, gsi: Gsi) -> Result<(), PlatformError> {
        assert_eq!(self.irqfds.remove(&gsi.number()), Some(1), "it was attached");
        Ok(())
    }
    fn attach_doorbell(&mut self, _: BorrowedFd<'_>, bell: Doorbell) -> Result<(), PlatformError> {
        assert!(!self.bells.contains(&bell), "KVM listens once");
        self.bells.push(bell);
        Ok(())
    }
    fn detach_doorbell(&mut self, _: BorrowedFd<'_>, bell: Doorbell) -> Result<(), PlatformError> {
        let before = self.bells.len();
        self.bells.retain(|b| *b != bell);
        assert_eq!(self.bells.len() + 1, before, "it was attached");
        Ok(())
    }
    fn take_gsi(&mut self) -> Result<Gsi, PlatformError> {
        self.gsis += 1;
        Ok(Gsi::pin(self.gsis))
    }
    fn give_gsi(&mut self, gsi: Gsi) {
        assert!(!self.irqfds.contains_key(&gsi.number()), "its irqfd is detached");
    }
    fn route(&mut self, _: Gsi, _: MsiMessage) -> Result<(), PlatformError> {
        Ok(())
    }
}

/// The function.
pub(crate) struct Function {
    pub(crate) transport: Transport,
    pub(crate) wiring: Counting,
}

impl Function {
    pub(crate) fn new(transport: Transport) -> Self {
        Self { transport, wiring: Counting::default() }
    }

    pub(crate) fn config(&mut self, offset: u16) -> u32 {
        let mut word = [0; 4];
        self.transport.config_read(offset, &mut word);
        u32::from_le_bytes(word)
    }

    pub(crate) fn set_config(&mut self, offset: u16, data: &[u8]) {
        let _ = self.transport.config_write(&mut self.wiring, offset, data);
    }

    pub(crate) fn read(&mut self, offset: u64, len: usize) -> u64 {
        let mut bytes = [0; 8];
        self.transport.bar_read(0, offset, &mut bytes[..len]);
        u64::from_le_bytes(bytes)
    }

    pub(crate) fn write(&mut self, offset: u64, len: usize, value: u64) {
        self.transport.bar_write(&mut self.wiring, 0, offset, &value.to_le_bytes()[..len]);
    }

    /// Has its BAR mapped.
    pub(crate) fn map(&mut self) {
        self.transport.map(&mut self.wiring, 0, Gpa(0xc000_0000));
    }

    pub(crate) fn unmap(&mut self) {
        self.transport.unmap(&mut self.wiring, 0);
    }

    /// Lets it reach memory.
    pub(crate) fn enable(&mut self) {
        let master = command::MEMORY | command::BUS_MASTER;
        self.set_config(config::COMMAND, &master.to_le_bytes());
    }

    pub(crate) fn status(&mut self) -> u8 {
        self.read(common::DEVICE_STATUS.into(), 1) as u8
    }

    pub(crate) fn reset(&mut self) {
        self.write(common::DEVICE_STATUS.into(), 1, 0);
        assert_eq!(self.status(), 0, "a reset resets, whatever is behind the device");
    }

    /// Resets it and agrees on features; what the status is then.
    pub(crate) fn agree(&mut self, features: u64) -> u8 {
        self.reset();
        self.write(common::DEVICE_STATUS.into(), 1, 3);
        for half in [0, 1] {
            self.write(common::DRIVER_FEATURE_SELECT.into(), 4, half);
            self.write(common::DRIVER_FEATURE.into(), 4, features >> (32 * half) & 0xffff_ffff);
        }
        self.write(common::DEVICE_STATUS.into(), 1, OK.into());
        self.status()
    }

    /// Sets a queue up: where its table and its two rings are.
    pub(crate) fn set_queue(&mut self, queue: u64, size: u64, [table, driver, device]: [u64; 3]) {
        self.write(common::QUEUE_SELECT.into(), 2, queue);
        self.write(common::QUEUE_SIZE.into(), 2, size);
        self.write(common::QUEUE_DESC.into(), 8, table);
        self.write(common::QUEUE_DRIVER.into(), 8, driver);
        self.write(common::QUEUE_DEVICE.into(), 8, device);
        self.write(common::QUEUE_ENABLE.into(), 2, 1);
    }

    /// Starts the device on what was agreed; what the status is then.
    pub(crate) fn go(&mut self) -> u8 {
        self.write(common::DEVICE_STATUS.into(), 1, (OK | status::DRIVER_OK).into());
        self.status()
    }

    pub(crate) fn kick(&mut self, queue: u64) {
        self.write(NOTIFY + 4 * queue, 2, 0);
    }
}
