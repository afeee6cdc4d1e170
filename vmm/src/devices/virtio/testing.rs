//! A driver for the tests: what Linux's does, over the real registers and real rings in memfd memory, with
//! an eventfd in the place of KVM on each side.

use super::{DeviceModel, Transport};
use crate::Gpa;
use crate::interrupt::{Gsi, MsiMessage, Routes};
use crate::pci::{PciFunction, Wiring};
use crate::platform::{Doorbell, PlatformError, Slot};
use crate::testing::{memfd, signal, take};
use beamline_abi::pci::{capability, command, config, msix};
use beamline_abi::virtio_pci::{cap, common, feature, status};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use vm_memory::{Bytes, FileOffset, GuestMemoryMmap, MmapRegion};

/// RAM of the tests' guest: two regions with a hole in between.
pub(crate) const RAM: u64 = 8 << 20;
pub(crate) const HIGH: u64 = 64 << 20;
pub(crate) const HIGH_RAM: u64 = 1 << 20;
/// Where BAR0 is.
const BAR: u64 = 0xc000_0000;
/// Bounds a wait that cannot end otherwise.
const PATIENCE: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };

pub(crate) fn memory() -> Arc<GuestMemoryMmap> {
    let file = |size| Some(FileOffset::new(File::from(memfd(size, true)), 0));
    let ranges =
        [(Gpa(0), RAM as usize, file(RAM)), (Gpa(HIGH), HIGH_RAM as usize, file(HIGH_RAM))];
    Arc::new(GuestMemoryMmap::from_ranges_with_files(ranges).unwrap())
}

/// Stands for KVM.
#[derive(Default)]
pub(crate) struct TestWiring {
    routes: Routes,
    messages: HashMap<u32, MsiMessage>,
    irqfds: HashMap<u32, OwnedFd>,
    pub(crate) bells: Vec<(Doorbell, OwnedFd)>,
    /// Refuses ioeventfds, so that kicks trap.
    pub(crate) no_bells: bool,
}

impl TestWiring {
    /// The irqfd of the vector whose message has this data.
    pub(crate) fn vector(&self, data: u32) -> Option<&OwnedFd> {
        let gsi =
            self.messages.iter().find(|(gsi, m)| m.data == data && self.irqfds.contains_key(gsi));
        gsi.and_then(|(gsi, _)| self.irqfds.get(gsi))
    }
}

impl Wiring for TestWiring {
    fn add_memory(&mut self, _: Gpa, _: Arc<MmapRegion>, _: bool) -> Result<Slot, PlatformError> {
        Err(PlatformError::Slots)
    }

    fn remove_memory(&mut self, _: Slot) -> Result<(), PlatformError> {
        Ok(())
    }

    fn attach_irqfd(&mut self, event: BorrowedFd<'_>, gsi: Gsi) -> Result<(), PlatformError> {
        let old = self.irqfds.insert(gsi.number(), event.try_clone_to_owned().unwrap());
        assert!(old.is_none(), "an irqfd is attached once");
        Ok(())
    }

    fn detach_irqfd(&mut self, _: BorrowedFd<'_>, gsi: Gsi) -> Result<(), PlatformError> {
        assert!(self.irqfds.remove(&gsi.number()).is_some(), "it was attached");
        Ok(())
    }

    fn attach_doorbell(
        &mut self,
        event: BorrowedFd<'_>,
        bell: Doorbell,
    ) -> Result<(), PlatformError> {
        if self.no_bells {
            return Err(PlatformError::Slots);
        }
        self.bells.push((bell, event.try_clone_to_owned().unwrap()));
        Ok(())
    }

    fn detach_doorbell(&mut self, _: BorrowedFd<'_>, bell: Doorbell) -> Result<(), PlatformError> {
        let before = self.bells.len();
        self.bells.retain(|(b, _)| *b != bell);
        assert_eq!(self.bells.len() + 1, before, "it was attached");
        Ok(())
    }

    fn take_gsi(&mut self) -> Result<Gsi, PlatformError> {
        Ok(self.routes.take()?)
    }

    fn give_gsi(&mut self, gsi: Gsi) {
        self.messages.remove(&gsi.number());
        self.routes.give(gsi);
    }

    fn route(&mut self, gsi: Gsi, message: MsiMessage) -> Result<(), PlatformError> {
        self.messages.insert(gsi.number(), message);
        Ok(())
    }
}

/// The driver's half of a queue.
pub(crate) struct Ring {
    pub(crate) index: u16,
    pub(crate) size: u16,
    pub(crate) table: u64,
    pub(crate) driver: u64,
    pub(crate) device: u64,
    next: u16,
    made: u16,
    seen: u16,
}

/// A buffer of a chain.
#[derive(Clone, Copy)]
pub(crate) enum Part {
    /// The device reads it.
    Out(u64, u32),
    /// The device writes it.
    In(u64, u32),
}

/// The driver.
pub(crate) struct Driver {
    pub(crate) function: Transport,
    pub(crate) wiring: TestWiring,
    pub(crate) memory: Arc<GuestMemoryMmap>,
    caps: HashMap<u8, (u64, u32)>,
    msix: u16,
    notify_step: u64,
    free: u64,
}

impl Driver {
    /// Finds the device, turns it on and enables MSI-X, as a kernel does before its driver probes.
    pub(crate) fn new(device: impl DeviceModel + 'static) -> Self {
        let memory = memory();
        Self::over(
            Transport::new("test".into(), Box::new(device), Arc::clone(&memory)).unwrap(),
            memory,
        )
    }

    pub(crate) fn over(function: Transport, memory: Arc<GuestMemoryMmap>) -> Self {
        let mut this = Self {
            function,
            wiring: TestWiring::default(),
            memory,
            caps: HashMap::new(),
            msix: 0,
            notify_step: 0,
            free: 0x1_0000,
        };
        this.find_capabilities();
        this.set_config(config::COMMAND, (command::MEMORY | command::BUS_MASTER).into());
        this.function.map(&mut this.wiring, 0, Gpa(BAR));
        this.enable_msix();
        this
    }

    fn find_capabilities(&mut self) {
        let mut at = self.config(config::CAPABILITIES) as u16 & 0xff;
        while at != 0 {
            let word = self.config(at);
            match word as u8 {
                capability::VENDOR => {
                    let kind = (word >> 24) as u8;
                    let offset = self.config(at + cap::OFFSET);
                    let length = self.config(at + cap::LENGTH);
                    if kind == cap::NOTIFY {
                        self.notify_step = self.config(at + cap::NOTIFY_MULTIPLIER).into();
                    }
                    self.caps.insert(kind, (offset.into(), length));
                }
                capability::MSIX => self.msix = at,
                other => panic!("capability {other:#x}"),
            }
            at = (word >> 8) as u16 & 0xff;
        }
    }

    /// Vector n is delivered as message n.
    pub(crate) fn enable_msix(&mut self) {
        let at = self.msix;
        let vectors = (self.config(at) >> 16 & 0x7ff) + 1;
        let table = u64::from(self.config(at + msix::TABLE) & !7);
        for vector in 0..vectors {
            let entry = table + u64::from(vector) * 16;
            self.write(entry, &0xfee0_0000u32.to_le_bytes());
            self.write(entry + 4, &0u32.to_le_bytes());
            self.write(entry + 8, &vector.to_le_bytes());
            self.write(entry + 12, &0u32.to_le_bytes());
        }
        self.set_config(at, u32::from(msix::CONTROL_ENABLE) << 16);
    }

    pub(crate) fn disable_msix(&mut self) {
        self.set_config(self.msix, 0);
    }

    pub(crate) fn config(&mut self, offset: u16) -> u32 {
        let mut word = [0; 4];
        self.function.config_read(offset, &mut word);
        u32::from_le_bytes(word)
    }

    pub(crate) fn set_config(&mut self, offset: u16, value: u32) {
        let _ = self.function.config_write(&mut self.wiring, offset, &value.to_le_bytes());
    }

    pub(crate) fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.function.bar_read(0, offset, data);
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) {
        self.function.bar_write(&mut self.wiring, 0, offset, data);
    }

    /// Reads a register of the common configuration.
    pub(crate) fn get(&mut self, register: u32, len: usize) -> u64 {
        let mut bytes = [0; 8];
        let at = self.caps[&cap::COMMON].0 + u64::from(register);
        self.read(at, &mut bytes[..len]);
        u64::from_le_bytes(bytes)
    }

    pub(crate) fn set(&mut self, register: u32, len: usize, value: u64) {
        let at = self.caps[&cap::COMMON].0 + u64::from(register);
        self.write(at, &value.to_le_bytes()[..len]);
    }

    pub(crate) fn status(&mut self) -> u8 {
        self.get(common::DEVICE_STATUS, 1) as u8
    }

    pub(crate) fn isr(&mut self) -> u8 {
        let mut isr = [0];
        self.read(self.caps[&cap::ISR].0, &mut isr);
        isr[0]
    }

    /// Reads the device's configuration as Linux does: again where its generation changed.
    pub(crate) fn device_config(&mut self, offset: u64, data: &mut [u8]) {
        loop {
            let before = self.get(common::CONFIG_GENERATION, 1);
            self.read(self.caps[&cap::DEVICE].0 + offset, data);
            if self.get(common::CONFIG_GENERATION, 1) == before {
                return;
            }
        }
    }

    pub(crate) fn set_device_config(&mut self, offset: u64, data: &[u8]) {
        self.write(self.caps[&cap::DEVICE].0 + offset, data);
    }

    /// The features that are offered.
    pub(crate) fn offered(&mut self) -> u64 {
        self.set(common::DEVICE_FEATURE_SELECT, 4, 0);
        let low = self.get(common::DEVICE_FEATURE, 4);
        self.set(common::DEVICE_FEATURE_SELECT, 4, 1);
        low | self.get(common::DEVICE_FEATURE, 4) << 32
    }

    pub(crate) fn reset(&mut self) {
        self.set(common::DEVICE_STATUS, 1, 0);
        assert_eq!(self.status(), 0, "a reset is over when the status reads 0");
    }

    /// Resets, and agrees on `wanted` of what is offered; whether the device took it.
    pub(crate) fn negotiate(&mut self, wanted: u64) -> bool {
        self.reset();
        self.set(common::DEVICE_STATUS, 1, status::ACKNOWLEDGE.into());
        self.set(common::DEVICE_STATUS, 1, (status::ACKNOWLEDGE | status::DRIVER).into());
        for select in 0..2u32 {
            self.set(common::DRIVER_FEATURE_SELECT, 4, select.into());
            self.set(common::DRIVER_FEATURE, 4, wanted >> (32 * select) & 0xffff_ffff);
        }
        let ok = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        self.set(common::DEVICE_STATUS, 1, ok.into());
        self.status() & status::FEATURES_OK != 0
    }

    /// Resets and agrees on everything that is offered, or on these bits of it.
    pub(crate) fn agree(&mut self, mask: u64) {
        let offered = self.offered();
        assert!(self.negotiate(offered & mask | feature::VERSION_1));
    }

    /// Sets up queue `index` with its vector: vector 0 is for configuration changes.
    pub(crate) fn queue(&mut self, index: u16, size: u16) -> Ring {
        self.set(common::CONFIG_MSIX_VECTOR, 2, 0);
        self.set(common::QUEUE_SELECT, 2, index.into());
        assert!(self.get(common::QUEUE_SIZE, 2) >= u64::from(size));
        let ring = Ring {
            index,
            size,
            table: self.room(16 * u64::from(size)),
            driver: self.room(6 + 2 * u64::from(size)),
            device: self.room(6 + 8 * u64::from(size)),
            next: 0,
            made: 0,
            seen: 0,
        };
        self.set(common::QUEUE_SIZE, 2, size.into());
        self.set(common::QUEUE_MSIX_VECTOR, 2, u64::from(index) + 1);
        assert_eq!(self.get(common::QUEUE_MSIX_VECTOR, 2), u64::from(index) + 1);
        self.set(common::QUEUE_DESC, 8, ring.table);
        self.set(common::QUEUE_DRIVER, 4, ring.driver & 0xffff_ffff);
        self.set(common::QUEUE_DRIVER + 4, 4, ring.driver >> 32);
        self.set(common::QUEUE_DEVICE, 8, ring.device);
        self.set(common::QUEUE_ENABLE, 2, 1);
        assert_eq!(self.get(common::QUEUE_ENABLE, 2), 1);
        ring
    }

    /// The driver is ready.
    pub(crate) fn ready(&mut self) {
        let status = self.status() | status::DRIVER_OK;
        self.set(common::DEVICE_STATUS, 1, status.into());
        assert_eq!(self.status(), status);
    }

    /// Zeroed guest memory that nothing else uses.
    pub(crate) fn room(&mut self, len: u64) -> u64 {
        let at = self.free;
        self.free += len.next_multiple_of(4096);
        assert!(self.free <= RAM);
        self.memory.write_slice(&vec![0; len as usize], Gpa(at)).unwrap();
        at
    }

    /// What was taken by [`Self::room`] from `at` on is free again.
    pub(crate) fn forget(&mut self, at: u64) {
        self.free = at;
    }

    /// Guest memory with these bytes.
    pub(crate) fn bytes(&mut self, data: &[u8]) -> u64 {
        let at = self.room(data.len() as u64);
        self.memory.write_slice(data, Gpa(at)).unwrap();
        at
    }

    pub(crate) fn look(&self, at: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.memory.read_slice(&mut data, Gpa(at)).unwrap();
        data
    }

    pub(crate) fn descriptor(
        &self,
        table: u64,
        index: u16,
        at: u64,
        len: u32,
        flags: u16,
        next: u16,
    ) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&at.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.memory.write_slice(&bytes, Gpa(table + 16 * u64::from(index))).unwrap();
    }

    /// Makes a chain available without a kick; returns its head.
    pub(crate) fn add(&self, ring: &mut Ring, parts: &[Part]) -> u16 {
        let head = ring.next % ring.size;
        for (n, part) in parts.iter().enumerate() {
            let index = ring.next % ring.size;
            ring.next += 1;
            let (at, len, mut flags) = match *part {
                Part::Out(at, len) => (at, len, 0),
                Part::In(at, len) => (at, len, 2),
            };
            let last = n + 1 == parts.len();
            if !last {
                flags |= 1;
            }
            self.descriptor(ring.table, index, at, len, flags, ring.next % ring.size);
        }
        self.offer(ring, head);
        head
    }

    /// Makes the chain from `head` on available.
    pub(crate) fn offer(&self, ring: &mut Ring, head: u16) {
        let slot = ring.driver + 4 + 2 * u64::from(ring.made % ring.size);
        self.memory.write_obj(head, Gpa(slot)).unwrap();
        ring.made = ring.made.wrapping_add(1);
        self.memory
            .store(ring.made, Gpa(ring.driver + 2), std::sync::atomic::Ordering::Release)
            .unwrap();
    }

    /// Writes the queue's notify address: KVM, where it listens, takes the write.
    pub(crate) fn kick(&mut self, ring: &Ring) {
        let at = self.caps[&cap::NOTIFY].0 + u64::from(ring.index) * self.notify_step;
        match self.wiring.bells.iter().find(|(bell, _)| bell.at.0 == BAR + at) {
            Some((_, event)) => signal(event),
            None => self.write(at, &ring.index.to_le_bytes()),
        }
    }

    /// The buffer at which the device wants a kick, where event indices are in use: buffers are counted from 0 on.
    pub(crate) fn kick_wanted_at(&self, ring: &Ring) -> u16 {
        let event = ring.device + 4 + 8 * u64::from(ring.size);
        self.memory.load(Gpa(event), std::sync::atomic::Ordering::Acquire).unwrap()
    }

    /// What the device has used next, if it has.
    pub(crate) fn used(&self, ring: &mut Ring) -> Option<(u16, u32)> {
        let order = std::sync::atomic::Ordering::Acquire;
        let index: u16 = self.memory.load(Gpa(ring.device + 2), order).unwrap();
        if index == ring.seen {
            return None;
        }
        let at = ring.device + 4 + 8 * u64::from(ring.seen % ring.size);
        ring.seen = ring.seen.wrapping_add(1);
        let element: [u32; 2] =
            [self.memory.read_obj(Gpa(at)).unwrap(), self.memory.read_obj(Gpa(at + 4)).unwrap()];
        // The next buffer is wanted with an interrupt, where event indices are in use.
        let event = ring.driver + 4 + 2 * u64::from(ring.size);
        self.memory.write_obj(ring.seen, Gpa(event)).unwrap();
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        Some((element[0] as u16, element[1]))
    }

    /// Waits for the interrupt of `vector`.
    pub(crate) fn wait_vector(&self, vector: u32) {
        let event = self.wiring.vector(vector).expect("the vector is live");
        let mut fds = [PollFd::new(event, PollFlags::IN)];
        assert_eq!(poll(&mut fds, Some(&PATIENCE)), Ok(1), "vector {vector} comes");
        take(event);
    }

    /// Waits until the device has used a buffer; it must interrupt for it.
    pub(crate) fn wait(&self, ring: &mut Ring) -> (u16, u32) {
        loop {
            if let Some(used) = self.used(ring) {
                return used;
            }
            self.wait_vector(u32::from(ring.index) + 1);
        }
    }

    /// One request: the chain, a kick, the wait.
    pub(crate) fn run(&mut self, ring: &mut Ring, parts: &[Part]) -> u32 {
        let head = self.add(ring, parts);
        self.kick(ring);
        let (used, len) = self.wait(ring);
        assert_eq!(used, head);
        len
    }
}

/// Waits until this process has `count` threads whose name starts so. A new thread names itself, and one
/// that was joined stays in the list for a moment.
pub(crate) fn until_threads(prefix: &str, count: usize) {
    let named = || {
        std::fs::read_dir("/proc/self/task")
            .unwrap()
            .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok())
            .filter(|name| name.starts_with(prefix))
            .count()
    };
    let start = std::time::Instant::now();
    while named() != count {
        assert!(start.elapsed().as_secs() < 60, "{} threads, not {count}", named());
        std::thread::yield_now();
    }
}
