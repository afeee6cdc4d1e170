//! The VMM's own virtio functions: configuration space, registers, MSI-X, and their queues, those of a disk above all.
//! Kicks are served within the write, so that an input does the same each time.

mod disk;
mod endpoints;
mod links;

use crate::fds::Open;
use crate::function::{DEVICE_CONFIG, Function};
use crate::input::Input;
use beamline_abi::pci::config;
use beamline_abi::virtio_pci::{common, ring, status};
use beamline_vmm::Gpa;
use beamline_vmm::devices::virtio::balloon::Balloon;
use beamline_vmm::devices::virtio::blk::Blk;
use beamline_vmm::devices::virtio::input::{Event, Input as InputDevice, InputSender, kind};
use beamline_vmm::devices::virtio::rng::Rng;
use beamline_vmm::devices::virtio::{DeviceModel, Transport};
use disk::Memory;
use links::Link;
use std::sync::Arc;
use vm_memory::{Bytes, GuestMemoryMmap};

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
const BAR_SIZE: u64 = 0x4000;

/// The function, and a driver's idea of its queue.
struct Guest {
    function: Function,
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
        let function = Function::new(function);
        let mut this =
            Self { function, memory, sender, link, features, id: 0, available: 0, mapped: false };
        this.id = this.function.config(config::VENDOR_ID);
        this
    }

    /// Brings the first queue up, as a driver does. The others are where the input put them.
    fn start(&mut self) {
        self.function.enable();
        let now = self.function.agree(u64::from(self.features) | 1 << 32);
        assert_ne!(now & status::FEATURES_OK, 0, "features are agreed on");
        // Every queue shares the rings: a driver that does so harms itself alone.
        for queue in 0..self.function.read(common::NUM_QUEUES.into(), 2) {
            self.function.set_queue(queue, SIZE.into(), [TABLE, DRIVER, DEVICE]);
            assert_eq!(self.function.read(common::QUEUE_ENABLE.into(), 2), 1);
        }
        self.available = 0;
        self.put(DRIVER, &[0; 6 + 2 * SIZE as usize]);
        self.put(DEVICE, &[0; 6 + 8 * SIZE as usize]);
        let now = self.function.go();
        assert_eq!(now & (status::DRIVER_OK | status::NEEDS_RESET), status::DRIVER_OK, "it starts");
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
                self.function.write(input.number() % BAR_SIZE, len, input.number());
            }
            1 => {
                let len = 1 << input.below(4);
                self.function.read(input.number() % BAR_SIZE, len);
            }
            2 => {
                let offset = input.u16() % 64 * 4;
                let value = input.number32().to_le_bytes();
                self.function.set_config(offset, &value);
                assert_eq!(self.function.config(config::VENDOR_ID), self.id, "what it is stays");
            }
            3 => {
                self.function.config(input.u16() % 64 * 4);
            }
            4 => self.function.write(DEVICE_CONFIG + u64::from(input.u8()), 1, input.u8().into()),
            5 | 6 => self.descriptor(
                input.u8().into(),
                Self::place(input),
                input.number32(),
                input.u8().into(),
                input.u8().into(),
            ),
            7 => self.offer(input.u8().into()),
            8 => self.function.kick(u64::from(input.u8() % 4)),
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
            self.function.transport.look();
        }
    }

    /// An address near something.
    fn place(input: &mut Input<'_>) -> u64 {
        let base = [0, TABLE, DRIVER, DEVICE, HEADER, DATA, RAM, HIGH];
        base[input.below(base.len())].wrapping_add(input.number())
    }

    fn toggle_map(&mut self) {
        if self.mapped {
            self.function.unmap();
        } else {
            self.function.map();
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
        self.function.kick(0);
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
        self.function.kick(u64::from(!receive));
        self.function.transport.look();
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
        self.function.kick(0);
    }

    /// Whatever happened, a reset makes it right, and the device serves again.
    fn finish(mut self) {
        if self.mapped {
            self.toggle_map();
        }
        assert!(self.function.wiring.hears_nothing(), "KVM listens nowhere");
        self.start();
        if let Some(link) = self.link.take() {
            self.passes_both_ways(&link);
        } else {
            self.serves();
        }
        self.function.reset();
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
            self.function.kick(0);
            self.function.transport.look();
        }
        link.drain();
        self.start();
        link.send(&text);
        self.put(DATA, &[0xff; 16]);
        self.descriptor(0, DATA, 16, ring::DESC_WRITE, 0);
        self.offer(0);
        self.function.kick(0);
        self.function.transport.look();
        let mut came = [0; 16];
        self.memory.read_slice(&mut came, Gpa(DATA)).expect("it is RAM");
        assert_eq!(came[12..], *b"text", "what comes is received");
        self.start();
        self.put(HEADER, &text);
        self.descriptor(0, HEADER, 16, 0, 0);
        self.offer(0);
        self.function.kick(1);
        self.function.transport.look();
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
        self.function.kick(0);
        let now = self.function.status();
        assert_eq!(now & status::NEEDS_RESET, 0, "a good request is served");
        if self.id >> 16 == BLK {
            let mut answer = [0xff];
            self.memory.read_slice(&mut answer, Gpa(HEADER + 16)).expect("it is RAM");
            assert_eq!(answer, [0], "the first sector can be read");
        }
    }
}
