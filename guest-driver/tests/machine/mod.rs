//! A machine with one slice, in one thread: the driver's `Transport` over small models of the two functions.
//!
//! Work is done when the guest waits: the host finishes what was submitted, and one vblank comes. The
//! models know only what the driver needs; they are strict where the driver must be right.
#![allow(dead_code, reason = "each test binary uses a part")]

mod stream;

pub(crate) use stream::{Command, decode};

use beamline_abi::frame::{CAPSET_ID, FrameCapset, SubmitHeader};
use beamline_abi::pacer::{
    DEVICE_ID, MAGIC, MARKER_CAPACITY, MARKER_ENTRIES, MARKER_HEAD, MARKER_TAIL, Marker,
    TimingPage, VENDOR_ID, VERSION, reg,
};
use beamline_abi::pci::{config, msix, status};
use beamline_abi::virtio_gpu::{CapsetInfo, CmdSubmit, CtrlHeader, FLAG_FENCE, cmd};
use beamline_abi::virtio_pci::{self, cap, common};
use beamline_abi::{FrameId, Nanos};
use beamline_guest_driver::pci::MsiTarget;
use beamline_guest_driver::scene::Targets;
use beamline_guest_driver::transport::{Arena, Gpa, Slot, Transport, Wake, Width};
use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use zerocopy::{FromBytes, IntoBytes};

pub(crate) const RAM: u64 = 0x20_0000;
pub(crate) const RAM_SIZE: usize = 1 << 20;
const PACER: u64 = 0xe000_0000;
const TIMING: u64 = 0xe001_0000;
const RING: u64 = 0xe002_0000;
const GPU: u64 = 0xe010_0000;
const NOTIFY: u64 = GPU + 0x1000;
const NOTIFY_MULTIPLIER: u32 = 4;
const DEVICE: u64 = GPU + 0x2000;
const GPU_MSIX: u64 = GPU + 0x4000;
const QUEUE_MAX: u16 = 256;
pub(crate) const SLICE: [u8; 16] = *b"a slice's own ID";

/// What runs the submissions of a guest.
pub(crate) trait Host {
    /// Runs a submission; `ram` is guest memory from [`RAM`] on. Answers the response's type.
    fn run(&mut self, submission: &[u8], ram: &[u8]) -> u32;
}

/// Takes everything.
#[derive(Default)]
pub(crate) struct Accept {
    pub(crate) seen: Vec<(SubmitHeader, Vec<Command>)>,
}

impl Host for Accept {
    fn run(&mut self, submission: &[u8], _: &[u8]) -> u32 {
        self.seen.push(decode(submission).expect("the driver sends valid streams"));
        cmd::RESP_OK_NODATA
    }
}

#[derive(Default)]
struct Queue {
    size: u16,
    enabled: bool,
    vector: u16,
    addresses: [u64; 3],
    seen: u16,
    used: u16,
}

pub(crate) struct Machine<H> {
    pub(crate) host: H,
    pub(crate) timing: TimingPage,
    /// Torn reads that the timing page still has to offer.
    pub(crate) torn: Cell<u32>,
    pub(crate) max_queued_jobs: u32,
    pub(crate) gpu_slice: [u8; 16],
    /// Waits that are still allowed.
    pub(crate) waits: u32,
    /// Vblanks come with a wait.
    pub(crate) vblanks: bool,
    /// Jobs end with a wait.
    pub(crate) finish: bool,
    pub(crate) pacer_status: u32,
    /// The pacer's registers from ASK_PERIOD_NUM on, and how often ASK_COMMIT was written.
    pub(crate) asked: BTreeMap<u32, u32>,
    pub(crate) commits: u32,
    /// What ANSWER to ANSWER_BUDGET's high half read.
    pub(crate) answer: [u32; 5],
    pub(crate) pacer_features: u32,
    pub(crate) kicks: u32,
    pub(crate) control: u32,
    pub(crate) msix_enabled: [bool; 2],
    pub(crate) msix_entries: Vec<(u64, u64)>,
    pub(crate) config: [[u8; 256]; 2],
    pub(crate) ram: Vec<u8>,
    pub(crate) ring: Vec<u8>,
    selects: [u64; 3],
    features: u64,
    device_status: u8,
    queue: Queue,
    pending: VecDeque<u16>,
    tsc: Cell<u64>,
}

impl<H: Host> Machine<H> {
    pub(crate) fn new(host: H) -> Self {
        Self {
            host,
            timing: TimingPage { version: VERSION, ..TimingPage::default() },
            torn: Cell::new(0),
            max_queued_jobs: 16,
            gpu_slice: SLICE,
            waits: 10_000,
            vblanks: true,
            finish: true,
            pacer_status: 0,
            asked: BTreeMap::new(),
            commits: 0,
            answer: [0; 5],
            pacer_features: 7,
            kicks: 0,
            control: 0,
            msix_enabled: [false; 2],
            msix_entries: Vec::new(),
            config: [pacer_config(), gpu_config()],
            ram: vec![0; RAM_SIZE],
            ring: vec![0; beamline_abi::pacer::BAR4_SIZE as usize],
            selects: [0; 3],
            features: 0,
            device_status: 0,
            queue: Queue::default(),
            pending: VecDeque::new(),
            tsc: Cell::new(1_000_000),
        }
    }

    pub(crate) fn arena() -> Arena {
        Arena::new(Gpa(RAM), RAM_SIZE as u64)
    }

    pub(crate) fn targets() -> Targets {
        let msi = |data| MsiTarget { address: 0xfee0_0000, data };
        Targets { pacer: [msi(0x40), msi(0x41), msi(0x42)], gpu: msi(0x43) }
    }

    /// Consumes the marker ring, as the host does.
    pub(crate) fn markers(&mut self) -> Vec<Marker> {
        let index = |ring: &[u8], at: u32| {
            u32::read_from_bytes(&ring[at as usize..at as usize + 4]).expect("4 bytes")
        };
        let (head, mut tail) = (index(&self.ring, MARKER_HEAD), index(&self.ring, MARKER_TAIL));
        let mut markers = Vec::new();
        while tail != head {
            let at = MARKER_ENTRIES as usize + (tail % MARKER_CAPACITY) as usize * 32;
            markers.push(Marker::read_from_bytes(&self.ring[at..at + 32]).expect("32 bytes"));
            tail = tail.wrapping_add(1);
        }
        self.ring[MARKER_TAIL as usize..][..4].copy_from_slice(&tail.to_le_bytes());
        markers
    }

    pub(crate) fn next_vblank(&mut self) {
        self.timing.vblank_seq += 1;
        self.timing.vblank_time = Nanos(self.timing.vblank_seq * 11_111_111);
        self.timing.lock += 2;
    }

    fn at(gpa: u64, len: usize) -> usize {
        let at = gpa.checked_sub(RAM).expect("below shared memory") as usize;
        assert!(at + len <= RAM_SIZE, "{gpa:#x} is beyond shared memory");
        at
    }

    fn ram<T: FromBytes>(&self, gpa: u64) -> T {
        let at = Self::at(gpa, size_of::<T>());
        T::read_from_bytes(&self.ram[at..at + size_of::<T>()]).expect("the size of the type")
    }

    fn put(&mut self, gpa: u64, bytes: &[u8]) {
        let at = Self::at(gpa, bytes.len());
        self.ram[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Takes what the guest made available.
    fn take_available(&mut self) {
        let [_, avail, _] = self.queue.addresses;
        while self.queue.seen != self.ram::<u16>(avail + 2) {
            let entry = avail + 4 + 2 * u64::from(self.queue.seen % self.queue.size);
            self.pending.push_back(self.ram(entry));
            self.queue.seen = self.queue.seen.wrapping_add(1);
        }
    }

    /// Finishes the oldest request.
    pub(crate) fn finish_one(&mut self) -> bool {
        let Some(head) = self.pending.pop_front() else { return false };
        let [desc, _, used] = self.queue.addresses;
        let descriptor = |i: u16| desc + 16 * u64::from(i);
        let (addr, len): (u64, u32) = (self.ram(descriptor(head)), self.ram(descriptor(head) + 8));
        let (flags, next): (u16, u16) =
            (self.ram(descriptor(head) + 12), self.ram(descriptor(head) + 14));
        assert_eq!(flags, virtio_pci::ring::DESC_NEXT);
        let answer_addr: u64 = self.ram(descriptor(next));
        let answer_flags: u16 = self.ram(descriptor(next) + 12);
        assert_eq!(answer_flags, virtio_pci::ring::DESC_WRITE);
        let at = Self::at(addr, len as usize);
        let request = self.ram[at..at + len as usize].to_vec();
        let answer = self.answer(&request);
        self.put(answer_addr, &answer);
        let entry = used + 4 + 8 * u64::from(self.queue.used % self.queue.size);
        self.put(entry, [u32::from(head), answer.len() as u32].as_bytes());
        self.queue.used = self.queue.used.wrapping_add(1);
        self.put(used + 2, &self.queue.used.to_le_bytes());
        true
    }

    /// Puts an element into the used ring and moves the index, whatever is in flight.
    pub(crate) fn break_used(&mut self, id: u32, len: u32, by: u16) {
        let [_, _, used] = self.queue.addresses;
        let entry = used + 4 + 8 * u64::from(self.queue.used % self.queue.size);
        self.put(entry, [id, len].as_bytes());
        self.queue.used = self.queue.used.wrapping_add(by);
        self.put(used + 2, &self.queue.used.to_le_bytes());
    }

    fn answer(&mut self, request: &[u8]) -> Vec<u8> {
        let (header, body) = CtrlHeader::read_from_prefix(request).expect("a header");
        let head = |type_| CtrlHeader { type_, ..CtrlHeader::default() }.as_bytes().to_vec();
        match header.type_ {
            cmd::GET_CAPSET_INFO => {
                let index = u32::from(body[0]);
                let capset_id = if index == 1 { CAPSET_ID } else { 2 };
                let (capset_max_version, capset_max_size, padding) = (1, 48, 0);
                let info = CapsetInfo { capset_id, capset_max_version, capset_max_size, padding };
                [head(cmd::RESP_OK_CAPSET_INFO), info.as_bytes().to_vec()].concat()
            }
            cmd::GET_CAPSET => {
                let capset = FrameCapset {
                    version: 1,
                    max_resources: 64,
                    memory: 64 << 20,
                    max_queued_jobs: self.max_queued_jobs,
                    max_submit_bytes: 128 * 1024,
                    slice_id: self.gpu_slice,
                    ..FrameCapset::default()
                };
                [head(cmd::RESP_OK_CAPSET), capset.as_bytes().to_vec()].concat()
            }
            cmd::CTX_CREATE => head(cmd::RESP_OK_NODATA),
            cmd::SUBMIT_3D => {
                let (submit, stream) = CmdSubmit::read_from_prefix(body).expect("a submit body");
                assert_eq!((submit.size as usize, header.flags), (stream.len(), FLAG_FENCE));
                let type_ = self.host.run(stream, &self.ram);
                let (flags, fence_id) = (header.flags, header.fence_id);
                CtrlHeader { type_, flags, fence_id, ..CtrlHeader::default() }.as_bytes().to_vec()
            }
            other => panic!("request {other:#x}"),
        }
    }

    fn common_read(&self, register: u32) -> u64 {
        match register {
            common::DEVICE_FEATURE => {
                (1 << 32 | 0b1_0011u64) >> (32 * self.selects[0]) & 0xffff_ffff
            }
            common::DEVICE_STATUS => self.device_status.into(),
            common::QUEUE_SIZE => self.queue.size.into(),
            common::QUEUE_MSIX_VECTOR => self.queue.vector.into(),
            common::QUEUE_NOTIFY_OFF => 3,
            other => panic!("read of common configuration {other:#x}"),
        }
    }

    fn common_write(&mut self, register: u32, value: u64) {
        match register {
            common::DEVICE_FEATURE_SELECT => self.selects[0] = value,
            common::DRIVER_FEATURE_SELECT => self.selects[1] = value,
            common::DRIVER_FEATURE => self.features |= value << (32 * self.selects[1]),
            common::DEVICE_STATUS => {
                if value == 0 {
                    self.queue = Queue { size: QUEUE_MAX, ..Queue::default() };
                }
                self.device_status = value as u8;
            }
            common::CONFIG_MSIX_VECTOR => assert_eq!(value, 0xffff),
            common::QUEUE_SELECT => assert_eq!(value, 0),
            common::QUEUE_SIZE => self.queue.size = value as u16,
            common::QUEUE_MSIX_VECTOR => self.queue.vector = value as u16,
            common::QUEUE_ENABLE => {
                assert_eq!(self.features, 1 << 32 | 0b1_0001, "features before queues");
                self.queue.enabled = true;
            }
            common::QUEUE_DESC..common::SIZE => {
                let (which, shift) = ((register - 0x20) / 8, register % 8 * 8);
                self.queue.addresses[which as usize] |= value << shift;
            }
            other => panic!("write of common configuration {other:#x}"),
        }
    }

    fn pacer_read(&self, register: u32) -> u64 {
        u64::from(match register {
            reg::MAGIC => MAGIC,
            reg::VERSION => VERSION,
            reg::SLICE_ID..reg::GENERATION => {
                let at = (register - reg::SLICE_ID) as usize;
                u32::from_le_bytes([SLICE[at], SLICE[at + 1], SLICE[at + 2], SLICE[at + 3]])
            }
            reg::FEATURES => self.pacer_features,
            reg::STATUS => self.pacer_status,
            reg::ANSWER..0xa8 => self.answer[(register - reg::ANSWER) as usize / 4],
            _ => 0,
        })
    }
}

impl<H: Host> Transport for Machine<H> {
    fn config_read(&mut self, slot: Slot, offset: u16, width: Width) -> u32 {
        let Some(config) = self.config.get(usize::from(slot.0).wrapping_sub(3)) else {
            return u32::MAX;
        };
        let mut bytes = [0; 4];
        let n = width.bytes() as usize;
        bytes[..n].copy_from_slice(&config[usize::from(offset)..][..n]);
        u32::from_le_bytes(bytes)
    }

    fn config_write(&mut self, slot: Slot, offset: u16, width: Width, value: u32) {
        let function = usize::from(slot.0) - 3;
        if offset == 0x40 + msix::CONTROL {
            self.msix_enabled[function] = value & u32::from(msix::CONTROL_ENABLE) != 0;
        }
        let n = width.bytes() as usize;
        self.config[function][usize::from(offset)..][..n]
            .copy_from_slice(&value.to_le_bytes()[..n]);
    }

    fn reaches(&self, gpa: Gpa, len: u64) -> bool {
        gpa.0 + len <= 1 << 32
    }

    fn mmio_read(&mut self, gpa: Gpa, width: Width) -> u64 {
        match gpa.0 {
            PACER..TIMING => self.pacer_read((gpa.0 - PACER) as u32),
            TIMING..RING => {
                let mut page = self.timing;
                if self.torn.get() > 0 {
                    self.torn.set(self.torn.get() - 1);
                    page.lock = self.torn.get();
                }
                let mut bytes = [0; 8];
                let at = (gpa.0 - TIMING) as usize;
                let n = width.bytes() as usize;
                bytes[..n].copy_from_slice(&page.as_bytes()[at..at + n]);
                u64::from_le_bytes(bytes)
            }
            RING..GPU => {
                let mut bytes = [0; 8];
                let n = width.bytes() as usize;
                bytes[..n].copy_from_slice(&self.ring[(gpa.0 - RING) as usize..][..n]);
                u64::from_le_bytes(bytes)
            }
            GPU..NOTIFY => self.common_read((gpa.0 - GPU) as u32),
            DEVICE..GPU_MSIX if gpa.0 == DEVICE + 12 => 2,
            other => panic!("device read of {other:#x}"),
        }
    }

    fn mmio_write(&mut self, gpa: Gpa, width: Width, value: u64) {
        let n = width.bytes() as usize;
        match gpa.0 {
            PACER..TIMING if gpa.0 - PACER == u64::from(reg::CONTROL) => {
                self.control = value as u32;
            }
            PACER..TIMING if gpa.0 - PACER == u64::from(reg::ASK_COMMIT) => {
                assert_eq!(value, 1);
                self.commits += 1;
            }
            PACER..TIMING if (0x60..0x90).contains(&(gpa.0 - PACER)) => {
                assert_eq!(width, Width::Dword);
                self.asked.insert((gpa.0 - PACER) as u32, value as u32);
            }
            RING..GPU => {
                self.ring[(gpa.0 - RING) as usize..][..n]
                    .copy_from_slice(&value.to_le_bytes()[..n]);
            }
            GPU..NOTIFY => self.common_write((gpa.0 - GPU) as u32, value),
            _ if gpa.0 == NOTIFY + 3 * u64::from(NOTIFY_MULTIPLIER) => {
                assert_eq!((width, value), (Width::Word, 0));
                assert!(self.queue.enabled && self.device_status & 4 != 0);
                self.kicks += 1;
                self.take_available();
            }
            other => self.msix_entries.push((other, value)),
        }
    }

    fn read(&self, gpa: Gpa, bytes: &mut [u8]) {
        let at = Self::at(gpa.0, bytes.len());
        bytes.copy_from_slice(&self.ram[at..at + bytes.len()]);
    }

    fn write(&mut self, gpa: Gpa, bytes: &[u8]) {
        self.put(gpa.0, bytes);
    }

    fn load_u16(&self, gpa: Gpa) -> u16 {
        self.ram(gpa.0)
    }

    fn store_u16(&mut self, gpa: Gpa, value: u16) {
        self.put(gpa.0, &value.to_le_bytes());
    }

    fn fence(&self) {}

    fn tsc(&self) -> u64 {
        self.tsc.set(self.tsc.get() + 30_000_000);
        self.tsc.get()
    }

    fn wait(&mut self) -> Wake {
        if self.waits == 0 {
            return Wake::Stop;
        }
        self.waits -= 1;
        while self.finish && self.finish_one() {}
        if self.vblanks && self.control == 1 {
            self.timing.presented = FrameId(self.timing.presented.0 + 1);
            self.next_vblank();
        }
        Wake::Interrupt
    }
}

fn put(config: &mut [u8; 256], at: u16, bytes: &[u8]) {
    config[usize::from(at)..][..bytes.len()].copy_from_slice(bytes);
}

fn pacer_config() -> [u8; 256] {
    let mut c = [0; 256];
    put(&mut c, config::VENDOR_ID, &[VENDOR_ID.to_le_bytes(), DEVICE_ID.to_le_bytes()].concat());
    put(&mut c, config::STATUS, &status::CAPABILITIES.to_le_bytes());
    put(&mut c, config::BAR0, &(PACER as u32).to_le_bytes());
    put(&mut c, config::BAR0 + 8, &(TIMING as u32).to_le_bytes());
    put(&mut c, config::BAR0 + 16, &(RING as u32).to_le_bytes());
    put(&mut c, config::CAPABILITIES, &[0x40]);
    put(&mut c, 0x40, &[0x11, 0, 2, 0, 0, 0x10, 0, 0, 0, 0x20, 0, 0]);
    c
}

fn gpu_config() -> [u8; 256] {
    let mut c = [0; 256];
    put(&mut c, config::VENDOR_ID, &[0xf4, 0x1a, 0x50, 0x10]);
    put(&mut c, config::STATUS, &status::CAPABILITIES.to_le_bytes());
    // 64 bits, prefetchable; behind it an I/O BAR, which is of no use.
    put(&mut c, config::BAR0, &(GPU as u32 | 0xc).to_le_bytes());
    put(&mut c, config::BAR0 + 8, &[0x01, 0xc0, 0, 0]);
    put(&mut c, config::CAPABILITIES, &[0x40]);
    put(&mut c, 0x40, &[0x11, 0x50, 2, 0, 0, 0x40, 0, 0, 0, 0x50, 0, 0]);
    let windows =
        [(cap::COMMON, 0x0000u32, 0x38u32), (cap::NOTIFY, 0x1000, 16), (cap::DEVICE, 0x2000, 16)];
    for (i, (kind, offset, len)) in windows.into_iter().enumerate() {
        let at = 0x50 + 0x20 * i as u16;
        let next = if i == 2 { 0 } else { at as u8 + 0x20 };
        put(&mut c, at, &[0x09, next, 20, kind, 0, 0, 0, 0]);
        put(&mut c, at + cap::OFFSET, &offset.to_le_bytes());
        put(&mut c, at + cap::LENGTH, &len.to_le_bytes());
        put(&mut c, at + cap::NOTIFY_MULTIPLIER, &NOTIFY_MULTIPLIER.to_le_bytes());
    }
    c
}
