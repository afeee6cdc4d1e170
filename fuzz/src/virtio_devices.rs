//! The VMM's own virtio functions: configuration space, registers, MSI-X, and their queues, those of a disk above all.
//! Kicks are served within the write, so that an input does the same each time.

mod disk;
mod endpoints;
mod links;

use crate::fds::Open;
use crate::input::Input;
use beamline_abi::pci::{command, config};
use beamline_abi::virtio_pci::{common, ring, status};
use beamline_vmm::Gpa;
use beamline_vmm::devices::virtio::balloon::Balloon;
use beamline_vmm::devices::virtio::blk::Blk;
use beamline_vmm::devices::virtio::input::{Event, Input as InputDevice, InputSender, kind};
use beamline_vmm::devices::virtio::rng::Rng;
use beamline_vmm::devices::virtio::{DeviceModel, Transport};
use beamline_vmm::interrupt::{Gsi, MsiMessage};
use beamline_vmm::pci::{PciFunction, Wiring};
use beamline_vmm::platform::{Doorbell, PlatformError, Slot};
use disk::Memory;
use links::Link;
use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use vm_memory::{Bytes, GuestMemoryMmap, MmapRegion};

/// Two regions of RAM with a hole between.
const RAM: u64 = 64 << 10;
const HIGH: u64 = 128 << 10;
/// Where the one queue that the driver sets up is, and its size.
const TABLE: u64 = 0x1000;
const DRIVER: u64 = 0x2000;
const DEVICE: u64 = 0x3000;
const SIZE: u16 = 16;
/// Where requests are made up.
const HEADER: u64 = 0x4000;
const DATA: u64 = 0x5000;
/// Most steps of an input.
const STEPS: usize = 200;
/// PCI device IDs.
const NET: u32 = 0x1041;
const BLK: u32 = 0x1042;
const CONSOLE: u32 = 0x1043;
const IOMMU: u32 = 0x1057;
/// VIRTIO_NET_F_MRG_RXBUF: a frame may be spread.
const MERGE: u32 = 1 << 15;
const NOTIFY: u64 = 0x2000;
const BAR_SIZE: u64 = 0x4000;
const DEVICE_CONFIG: u64 = 0x1000;

/// Stands for KVM, and counts what is attached.
#[derive(Default)]
pub(crate) struct Counting {
    irqfds: HashMap<u32, usize>,
    bells: Vec<Doorbell>,
    gsis: u32,
}

impl Counting {
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

/// The function, and a driver's idea of its queue.
struct Guest {
    function: Transport,
    wiring: Counting,
    memory: Arc<GuestMemoryMmap>,
    sender: Option<InputSender>,
    link: Option<Link>,
    /// What the driver agrees to, of the lower half.
    features: u32,
    id: u32,
    available: u16,
    mapped: bool,
}

/// Runs one life of a function.
pub(crate) fn run(bytes: &[u8]) {
    let open = Open::now();
    let mut input = Input::new(bytes);
    let mut guest = Guest::new(input.u8());
    if input.flag() {
        guest.start();
    }
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        guest.step(&mut input);
    }
    guest.finish();
    open.check();
}

impl Guest {
    fn new(which: u8) -> Self {
        let ranges = [(Gpa(0), RAM as usize), (Gpa(HIGH), 4096)];
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&ranges).expect("RAM can be mapped"));
        let (mut sender, mut link, mut features) = (None, None, 0);
        let device: Box<dyn DeviceModel> = match which {
            0xc0.. => Box::new(endpoints::iommu()),
            0x80.. if which % 4 == 3 => {
                let (device, other) = links::console();
                link = Some(other);
                device
            }
            0x80.. => {
                let (device, other) = links::net();
                link = Some(other);
                features = if which.is_multiple_of(2) { MERGE } else { 0 };
                device
            }
            _ => match which % 8 {
                5 => Box::new(Rng),
                6 => Box::new(Balloon::new()),
                7 => {
                    let device = InputDevice::new(kind::gamepad()).expect("an eventfd can be made");
                    sender = Some(device.sender());
                    Box::new(device)
                }
                disk => Box::new(Blk::new("fuzz", Box::new(Memory::new(disk == 4)), "serial")),
            },
        };
        let function = Transport::new("fuzz".to_owned(), device, Arc::clone(&memory));
        let function = function.expect("eventfds can be made").inline();
        let wiring = Counting::default();
        let mut this = Self {
            function,
            wiring,
            memory,
            sender,
            link,
            features,
            id: 0,
            available: 0,
            mapped: false,
        };
        this.id = this.config(config::VENDOR_ID);
        this
    }

    fn config(&mut self, offset: u16) -> u32 {
        let mut word = [0; 4];
        self.function.config_read(offset, &mut word);
        u32::from_le_bytes(word)
    }

    fn set_config(&mut self, offset: u16, data: &[u8]) {
        let _ = self.function.config_write(&mut self.wiring, offset, data);
    }

    fn read(&mut self, offset: u64, len: usize) -> u64 {
        let mut bytes = [0; 8];
        self.function.bar_read(0, offset, &mut bytes[..len]);
        u64::from_le_bytes(bytes)
    }

    fn write(&mut self, offset: u64, len: usize, value: u64) {
        self.function.bar_write(&mut self.wiring, 0, offset, &value.to_le_bytes()[..len]);
    }

    /// Brings the first queue up, as a driver does. The others are where the input put them.
    fn start(&mut self) {
        let master = command::MEMORY | command::BUS_MASTER;
        self.set_config(config::COMMAND, &master.to_le_bytes());
        self.write(common::DEVICE_STATUS.into(), 1, 0);
        assert_eq!(self.read(common::DEVICE_STATUS.into(), 1), 0, "a reset resets");
        self.write(common::DEVICE_STATUS.into(), 1, 3);
        for (half, features) in [self.features, 1].into_iter().enumerate() {
            self.write(common::DRIVER_FEATURE_SELECT.into(), 4, half as u64);
            self.write(common::DRIVER_FEATURE.into(), 4, features.into());
        }
        let ok = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        self.write(common::DEVICE_STATUS.into(), 1, ok.into());
        assert_eq!(
            self.read(common::DEVICE_STATUS.into(), 1),
            u64::from(ok),
            "features are agreed on"
        );
        // Every queue shares the rings: a driver that does so harms itself alone.
        for queue in 0..self.read(common::NUM_QUEUES.into(), 2) {
            self.write(common::QUEUE_SELECT.into(), 2, queue);
            self.write(common::QUEUE_SIZE.into(), 2, SIZE.into());
            self.write(common::QUEUE_DESC.into(), 8, TABLE);
            self.write(common::QUEUE_DRIVER.into(), 8, DRIVER);
            self.write(common::QUEUE_DEVICE.into(), 8, DEVICE);
            self.write(common::QUEUE_ENABLE.into(), 2, 1);
            assert_eq!(self.read(common::QUEUE_ENABLE.into(), 2), 1);
        }
        self.available = 0;
        self.put(DRIVER, &[0; 6 + 2 * SIZE as usize]);
        self.put(DEVICE, &[0; 6 + 8 * SIZE as usize]);
        self.write(common::DEVICE_STATUS.into(), 1, (ok | status::DRIVER_OK).into());
        let now = self.read(common::DEVICE_STATUS.into(), 1);
        assert_eq!(now, u64::from(ok | status::DRIVER_OK), "the device starts");
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, Gpa(at)).expect("it is RAM");
    }

    fn descriptor(&self, index: u16, at: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = [0; ring::DESC_SIZE as usize];
        bytes[..8].copy_from_slice(&at.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.put(TABLE + ring::DESC_SIZE * u64::from(index % SIZE), &bytes);
    }

    fn offer(&mut self, head: u16) {
        self.put(DRIVER + 4 + 2 * u64::from(self.available % SIZE), &head.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        self.put(DRIVER + 2, &self.available.to_le_bytes());
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.below(14) {
            0 => {
                let len = 1 << input.below(4);
                self.write(input.number() % BAR_SIZE, len, input.number());
            }
            1 => {
                let len = 1 << input.below(4);
                self.read(input.number() % BAR_SIZE, len);
            }
            2 => {
                let offset = input.u16() % 64 * 4;
                let value = input.number32().to_le_bytes();
                self.set_config(offset, &value);
                assert_eq!(self.config(config::VENDOR_ID), self.id, "what it is stays");
            }
            3 => {
                self.config(input.u16() % 64 * 4);
            }
            4 => self.write(DEVICE_CONFIG + u64::from(input.u8()), 1, input.u8().into()),
            5 | 6 => self.descriptor(
                input.u8().into(),
                Self::place(input),
                input.number32(),
                input.u8().into(),
                input.u8().into(),
            ),
            7 => self.offer(input.u8().into()),
            8 => self.write(NOTIFY + 4 * u64::from(input.u8() % 4), 2, 0),
            9 => {
                let at = Self::place(input) % (RAM - 256);
                let bytes = input.bytes(255).to_vec();
                self.put(at, &bytes);
            }
            10 => self.request(input),
            11 => self.start(),
            12 => self.toggle_map(),
            _ => self.host_acts(input),
        }
    }

    /// What the host's side does.
    fn host_acts(&mut self, input: &mut Input<'_>) {
        if let Some(sender) = &self.sender {
            let event = Event { kind: input.u8().into(), code: input.u16(), value: -1 };
            // It is full after a thousand.
            let _ = sender.send(&[event]);
        }
        if let Some(link) = &self.link {
            link.step(input);
            self.function.look();
        }
    }

    /// An address near something.
    fn place(input: &mut Input<'_>) -> u64 {
        let base = [0, TABLE, DRIVER, DEVICE, HEADER, DATA, RAM, HIGH];
        base[input.below(base.len())].wrapping_add(input.number())
    }

    fn toggle_map(&mut self) {
        if self.mapped {
            self.function.unmap(&mut self.wiring, 0);
        } else {
            self.function.map(&mut self.wiring, 0, Gpa(0xc000_0000));
        }
        self.mapped = !self.mapped;
    }

    /// A request that is mostly right.
    fn request(&mut self, input: &mut Input<'_>) {
        match self.id >> 16 {
            IOMMU => return self.iommu_request(input),
            NET | CONSOLE => return self.buffers(input),
            _ => {}
        }
        let mut header = [0; 16];
        header[0] = input.u8() % 16;
        header[8..].copy_from_slice(&input.number().to_le_bytes());
        self.put(HEADER, &header);
        let (len, back) = (input.number32(), input.flag());
        let flags = if back { ring::DESC_WRITE } else { 0 };
        self.descriptor(0, HEADER, 16, ring::DESC_NEXT, 1);
        self.descriptor(1, Self::place(input), len, ring::DESC_NEXT | flags, 2);
        self.descriptor(2, HEADER + 16, 1, ring::DESC_WRITE, 0);
        self.offer(0);
        self.write(NOTIFY, 2, 0);
    }

    /// A frame or a text that goes out, or room for what comes.
    fn buffers(&mut self, input: &mut Input<'_>) {
        let (receive, second) = (input.flag(), input.flag());
        let flags = if receive { ring::DESC_WRITE } else { 0 };
        let more = if second { ring::DESC_NEXT } else { 0 };
        self.put(HEADER, &[0; 12]);
        self.descriptor(0, HEADER, input.u8().into(), flags | more, 1);
        self.descriptor(1, Self::place(input), input.number32(), flags, 0);
        self.offer(0);
        self.write(NOTIFY + 4 * u64::from(!receive), 2, 0);
        self.function.look();
    }

    /// Of few domains, endpoints and pages, so that they meet.
    fn iommu_request(&mut self, input: &mut Input<'_>) {
        let (kind, domain) = (input.below(7), input.below(3) as u8);
        let (first, pages) = (input.below(16) as u64 * 4096, input.below(4) as u64 * 4096);
        let (endpoint, flags) = (input.u8() % 4 * 8, input.u8() % 8);
        let mut request = vec![kind as u8, 0, 0, 0, domain, 0, 0, 0];
        if matches!(kind, 3 | 4) {
            request.extend(first.to_le_bytes());
            request.extend(first.wrapping_add(pages).wrapping_sub(1).to_le_bytes());
        }
        match kind {
            3 => {
                request.extend((input.number() & !0xfff).to_le_bytes());
                request.extend([flags, 0, 0, 0]);
            }
            4 => {}
            5 => request[4] = endpoint,
            _ => request.extend([endpoint, 0, 0, 0, flags & 1]),
        }
        request.resize(72, 0);
        self.put(HEADER, &request);
        self.descriptor(0, HEADER, request.len() as u32, ring::DESC_NEXT, 1);
        self.descriptor(1, HEADER + 128, 4 + 24 * u32::from(kind == 5), ring::DESC_WRITE, 0);
        self.offer(0);
        self.write(NOTIFY, 2, 0);
    }

    /// Whatever happened, a reset makes it right, and the device serves again.
    fn finish(mut self) {
        if self.mapped {
            self.toggle_map();
        }
        assert!(self.wiring.bells.is_empty(), "KVM listens nowhere");
        self.start();
        if let Some(link) = self.link.take() {
            self.passes_both_ways(&link);
        } else {
            self.serves();
        }
        self.write(common::DEVICE_STATUS.into(), 1, 0);
        let shared = Arc::downgrade(&self.memory);
        drop(self);
        assert!(shared.upgrade().is_none(), "nobody has the guest's memory any more");
    }

    /// Four bytes behind room for a header come in, and go out again.
    fn passes_both_ways(&mut self, link: &Link) {
        let text = [[0; 12].as_slice(), b"text"].concat();
        // What was under way: the device has read it, or does so now.
        for _ in 0..2 * STEPS {
            self.descriptor(0, DATA, 0x8000, ring::DESC_WRITE, 0);
            self.offer(0);
            self.write(NOTIFY, 2, 0);
            self.function.look();
        }
        link.drain();
        self.start();
        link.send(&text);
        self.put(DATA, &[0xff; 16]);
        self.descriptor(0, DATA, 16, ring::DESC_WRITE, 0);
        self.offer(0);
        self.write(NOTIFY, 2, 0);
        self.function.look();
        let mut came = [0; 16];
        self.memory.read_slice(&mut came, Gpa(DATA)).expect("it is RAM");
        assert_eq!(came[12..], *b"text", "what comes is received");
        self.start();
        self.put(HEADER, &text);
        self.descriptor(0, HEADER, 16, 0, 0);
        self.offer(0);
        self.write(NOTIFY + 4, 2, 0);
        self.function.look();
        assert_eq!(link.receive().as_deref(), Some(text.as_slice()), "what is sent goes out");
    }

    /// A good request of a disk, which harms no other device.
    fn serves(&mut self) {
        self.descriptor(0, HEADER, 16, ring::DESC_NEXT, 1);
        self.descriptor(1, DATA, 512, ring::DESC_WRITE | ring::DESC_NEXT, 2);
        self.descriptor(2, HEADER + 16, 1, ring::DESC_WRITE, 0);
        self.put(HEADER, &[0; 16]);
        self.put(HEADER + 16, &[0xff]);
        self.offer(0);
        self.write(NOTIFY, 2, 0);
        let now = self.read(common::DEVICE_STATUS.into(), 1);
        assert_eq!(now as u8 & status::NEEDS_RESET, 0, "a good request is served");
        if self.id >> 16 == BLK {
            let mut answer = [0xff];
            self.memory.read_slice(&mut answer, Gpa(HEADER + 16)).expect("it is RAM");
            assert_eq!(answer, [0], "the first sector can be read");
        }
    }
}
