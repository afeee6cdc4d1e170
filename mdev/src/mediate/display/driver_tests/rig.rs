//! The device, its slice's threads as steps, and a driver that knows registers and rings.

use crate::backend::SliceLimits;
use crate::config::HostConfig;
use crate::device::eventfd::EventFd;
use crate::device::pacer::{Pacer, PacerConfig};
use crate::device::virtio::gpu::{GpuConfig, GpuHandle, VirtioGpu};
use crate::host::parts::write_png;
use crate::mediate::beat::{Beat, BeatParts, Shot};
use crate::mediate::dispatcher::SliceCounters;
use crate::mediate::display::screen::{Image, Screen};
use crate::mediate::joint;
use crate::mediate::message::{Post, RING, Work};
use crate::mediate::poster::{Poster, PosterParts};
use crate::mediate::worker::{Turn, Worker, WorkerParts};
use crate::memory::{Gpa, sealed_memfd};
use beamline_abi::pci::{command, config as header};
use beamline_abi::virtio_gpu::{
    CONTROL_QUEUE, CURSOR_QUEUE, CtrlHeader, CursorPos, FLAG_FENCE, UpdateCursor, feature,
};
use beamline_abi::virtio_pci::{common, feature as transport, ring, status};
use beamline_abi::{FrameId, Generation, Nanos, SliceId};
use beamline_latency::FakeClock;
use beamline_latency::clock::Clock;
use beamline_latency::recorder::Recorder;
use beamline_latency::stamp::SliceIndex;
use beamline_sched::Vblank;
use beamline_vfio_user::{Device, DmaFlags, DmaMap, IrqAction, IrqIndex, RegionIndex};
use rtrb::{Consumer, Producer, RingBuffer};
use rustix::fs::SealFlags;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use zerocopy::{FromBytes, Immutable, IntoBytes};

const BAR: RegionIndex = RegionIndex::bar(4);
const NOTIFY: u64 = 0x3000;
pub(super) const PAGE: u64 = 4096;
const MEMORY: u64 = 256 * PAGE;
const SIZE: u16 = 64;
/// Where a queue has its table, its driver area, its device area and its buffers.
const AREAS: [u64; 2] = [0x1_0000, 0x2_0000];
const DRIVER: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const BUFFERS: u64 = 0x4000;
/// Bytes of a buffer: a request and its answer, or a list.
const BUFFER: u64 = 0x400;
/// The first page of images.
pub(super) const IMAGES: u64 = 0x60;

const HOST: &str = r#"
run_dir = "run"
[gpu]
backend = "model"
[[slice]]
name = "desktop"
width = 64
height = 48
profile = "display"
display_memory = "1M"
[slice.contract]
refresh_hz = "60"
class = "elastic"
budget_ms = 1.0
max_job_ms = 1.0
"#;

/// A device, its slice's threads as steps, and a driver.
pub(super) struct Rig {
    pub(super) gpu: VirtioGpu,
    pub(super) handle: GpuHandle,
    worker: Worker,
    poster: Poster,
    beat: Beat,
    pub(super) screen: Arc<Screen>,
    pub(super) posts: Producer<Post>,
    pub(super) work: Consumer<Work>,
    pub(super) irqs: [EventFd; 2],
    features: u64,
    put: [u16; 2],
    seen: [u16; 2],
    pub(super) now: Nanos,
    _pacer: Pacer,
    _recycle: Producer<Vec<u8>>,
}

impl Rig {
    pub(super) fn new(contexts: bool) -> Self {
        let config = HostConfig::parse(HOST, Path::new("host.toml")).unwrap();
        let slice = &config.slices[0];
        let (mut gpu, handle) = VirtioGpu::new(GpuConfig { contexts }).unwrap();
        gpu.dma_map(DmaMap {
            iova: 0,
            size: MEMORY,
            flags: DmaFlags { read: true, write: true },
            fd: Some(sealed_memfd("guest", MEMORY, SealFlags::empty()).unwrap()),
            fd_offset: 0,
        })
        .unwrap();
        let bits = command::MEMORY | command::BUS_MASTER;
        gpu.region_write(RegionIndex::CONFIG, header::COMMAND.into(), &bits.to_le_bytes()).unwrap();
        let irqs = [0, 1].map(|queue| {
            let wire = EventFd::new().unwrap();
            let fd = wire.as_fd().try_clone_to_owned().unwrap();
            gpu.set_irqs(IrqIndex::MSIX, 1 + queue, 1, IrqAction::SetEventFds(vec![fd])).unwrap();
            wire
        });
        let slice_id = SliceId([7; 16]);
        let config =
            PacerConfig { slice: slice_id, generation: Generation(0), now: Arc::new(|| Nanos(0)) };
        let (pacer, beat, pacer_handle) = Pacer::new(config).unwrap();
        let limits = SliceLimits { memory: 1 << 20, max_resources: 16 };
        let (work_in, work) = RingBuffer::new(RING);
        let (recycle_in, recycle) = RingBuffer::new(RING);
        let (posts_in, posts) = RingBuffer::new(RING);
        let (answers_in, answers) = RingBuffer::new(4 * RING);
        let display = joint::display(slice);
        let screen = display.screen();
        let worker = Worker::new(WorkerParts {
            index: SliceIndex(0),
            device: handle.clone(),
            pacer: Arc::clone(pacer_handle.shared()),
            generation: Generation(0),
            limits,
            display,
            work: work_in,
            recycle,
            answers: answers_in,
            dispatcher: EventFd::new().unwrap(),
            poster: EventFd::new().unwrap(),
            counters: Arc::new(SliceCounters::default()),
            recorder: Recorder::off(),
        });
        let beat = Beat::new(BeatParts {
            contract: slice.contract,
            phase: Nanos::ZERO,
            pacer: beat,
            tsc: None,
        });
        let poster = Poster::new(PosterParts {
            index: SliceIndex(0),
            slice: slice_id,
            period: slice.contract.period,
            display: (slice.width, slice.height),
            limits,
            pacer: pacer_handle,
            gap: beat.gap(),
            posts,
            answers,
            clock: Arc::new(FakeClock::new(Nanos(0))),
            recorder: Recorder::off(),
        });
        let features = feature::EDID
            | if contexts {
                feature::VIRGL | feature::CONTEXT_INIT
            } else {
                feature::RESOURCE_BLOB
            };
        let mut rig = Self {
            gpu,
            handle,
            worker,
            poster,
            beat,
            screen,
            posts: posts_in,
            work,
            irqs,
            features: features | transport::VERSION_1,
            put: [0; 2],
            seen: [0; 2],
            now: Nanos(1),
            _pacer: pacer,
            _recycle: recycle_in,
        };
        rig.start();
        rig
    }

    pub(super) fn set(&mut self, field: u32, len: usize, value: u64) {
        self.gpu.region_write(BAR, field.into(), &value.to_le_bytes()[..len]).unwrap();
    }

    pub(super) fn status(&mut self) -> u8 {
        let mut status = [0];
        self.gpu.region_read(BAR, common::DEVICE_STATUS.into(), &mut status).unwrap();
        status[0]
    }

    /// Resets the device and brings it up.
    pub(super) fn start(&mut self) {
        self.set(common::DEVICE_STATUS, 1, 0);
        let (mut bits, features) = (status::ACKNOWLEDGE | status::DRIVER, self.features);
        self.set(common::DEVICE_STATUS, 1, bits.into());
        for half in 0..2 {
            self.set(common::DRIVER_FEATURE_SELECT, 4, half);
            self.set(common::DRIVER_FEATURE, 4, features >> (32 * half) & 0xffff_ffff);
        }
        bits |= status::FEATURES_OK;
        self.set(common::DEVICE_STATUS, 1, bits.into());
        assert_eq!(self.status(), bits, "the features are accepted");
        (self.put, self.seen) = ([0; 2], [0; 2]);
        for (queue, at) in AREAS.iter().enumerate() {
            self.memory(at + DRIVER, &[0; 4]);
            self.memory(at + DEVICE, &[0; 4]);
            self.set(common::QUEUE_SELECT, 2, queue as u64);
            self.set(common::QUEUE_SIZE, 2, SIZE.into());
            self.set(common::QUEUE_MSIX_VECTOR, 2, queue as u64 + 1);
            self.set(common::QUEUE_DESC, 8, *at);
            self.set(common::QUEUE_DRIVER, 8, at + DRIVER);
            self.set(common::QUEUE_DEVICE, 8, at + DEVICE);
            self.set(common::QUEUE_ENABLE, 2, 1);
        }
        bits |= status::DRIVER_OK;
        self.set(common::DEVICE_STATUS, 1, bits.into());
        self.settle();
    }

    pub(super) fn memory(&self, at: u64, bytes: &[u8]) {
        self.handle.memory().write(Gpa(at), bytes).unwrap();
    }

    /// The slice's threads, until there is nothing to do. A guest that has used up its allowance waits.
    pub(super) fn settle(&mut self) {
        loop {
            match self.worker.step(self.now) {
                Turn::Again => {}
                Turn::Throttled(until) => self.now = until,
                Turn::Wait => break,
            }
        }
        self.poster.step();
    }

    /// The same with few requests, while time passes.
    pub(super) fn settle_over(&mut self, clock: &impl Clock) {
        assert_eq!(self.worker.step(clock), Turn::Wait);
        self.poster.step();
    }

    /// What the dispatcher does at a vblank at this moment.
    pub(super) fn beat(&mut self) {
        let vblank = Vblank { seq: 1, time: self.now, next: Nanos(u64::MAX) };
        let (slice, generation) = (SliceIndex(0), Generation(0));
        self.beat.vblank(vblank, None, generation);
        if self.beat.stirs_poster(1) {
            let shot = Shot { slice, generation, seq: 1, frame: FrameId::NONE };
            self.posts.push(Post::Vblank { shot, signal: false }).unwrap();
        }
    }

    /// A vblank at this moment, and what follows.
    pub(super) fn vblank(&mut self) {
        self.beat();
        self.now = Nanos(self.now.0 + 1);
        self.settle();
    }

    /// Puts buffers that the device reads into a queue, and one of `room` bytes that it writes. Answers
    /// where that one is.
    pub(super) fn put(&mut self, queue: u16, parts: &[&[u8]], room: u32) -> u64 {
        let (q, area) = (usize::from(queue), AREAS[usize::from(queue)]);
        // Eight descriptors for each request, so that eight may be under way.
        let head = self.put[q] % 8 * 8;
        let count = parts.len() as u16 + u16::from(room > 0);
        let mut place = 0;
        for n in 0..count {
            let index = head + n;
            place = area + BUFFERS + u64::from(index) * BUFFER;
            let (len, write) = match parts.get(usize::from(n)) {
                Some(part) => {
                    self.memory(place, part);
                    (part.len() as u32, 0)
                }
                None => (room, ring::DESC_WRITE),
            };
            let more = if n + 1 < count { ring::DESC_NEXT } else { 0 };
            let mut entry = [0; 16];
            entry[..8].copy_from_slice(&place.to_le_bytes());
            entry[8..12].copy_from_slice(&len.to_le_bytes());
            entry[12..14].copy_from_slice(&(write | more).to_le_bytes());
            entry[14..].copy_from_slice(&(index + 1).to_le_bytes());
            self.memory(area + u64::from(index) * 16, &entry);
        }
        let slot = u64::from(self.put[q] % SIZE);
        self.memory(area + DRIVER + 4 + 2 * slot, &head.to_le_bytes());
        self.put[q] = self.put[q].wrapping_add(1);
        self.memory(area + DRIVER + 2, &self.put[q].to_le_bytes());
        self.gpu.region_write(BAR, NOTIFY + 4 * u64::from(queue), &queue.to_le_bytes()).unwrap();
        place
    }

    /// Chains given back since the last call: head and bytes written.
    pub(super) fn used(&mut self, queue: u16) -> Vec<(u32, u32)> {
        let (q, area) = (usize::from(queue), AREAS[usize::from(queue)] + DEVICE);
        let memory = self.handle.memory();
        let end = memory.read_u16(Gpa(area + 2)).unwrap();
        let mut all = Vec::new();
        while self.seen[q] != end {
            let at = area + 4 + 8 * u64::from(self.seen[q] % SIZE);
            let read = |at| memory.read_u32(Gpa(at)).unwrap();
            all.push((read(at), read(at + 4)));
            self.seen[q] = self.seen[q].wrapping_add(1);
        }
        all
    }

    pub(super) fn header(&self, at: u64) -> CtrlHeader {
        let mut bytes = [0; 24];
        self.handle.memory().read(Gpa(at), &mut bytes).unwrap();
        CtrlHeader::read_from_bytes(&bytes).unwrap()
    }

    /// A request on the control queue, its body in the same buffer, a list in buffers of its own.
    pub(super) fn send(
        &mut self,
        type_: u32,
        fence: Option<u64>,
        body: &[u8],
        lists: &[&[u8]],
    ) -> u64 {
        let header = CtrlHeader {
            type_,
            flags: fence.map_or(0, |_| FLAG_FENCE),
            fence_id: fence.unwrap_or(0),
            ..CtrlHeader::default()
        };
        let request = [header.as_bytes(), body].concat();
        let parts: Vec<&[u8]> = std::iter::once(&*request).chain(lists.iter().copied()).collect();
        let answer = self.put(CONTROL_QUEUE, &parts, 24);
        self.settle();
        answer
    }

    /// A request that is answered at once: the response type.
    pub(super) fn ask(&mut self, type_: u32, body: &(impl IntoBytes + Immutable)) -> u32 {
        let answer = self.send(type_, None, body.as_bytes(), &[]);
        assert_eq!(self.used(CONTROL_QUEUE).len(), 1, "{type_:#x} is answered");
        self.header(answer).type_
    }

    pub(super) fn cursor(&mut self, type_: u32, resource_id: u32, x: u32, y: u32) {
        let header = CtrlHeader { type_, ..CtrlHeader::default() };
        let pos = CursorPos { scanout_id: 0, x, y, padding: 0 };
        let body = UpdateCursor { pos, resource_id, hot_x: 1, hot_y: 1, padding: 0 };
        // As Linux does: nothing to be written.
        self.put(CURSOR_QUEUE, &[&[header.as_bytes(), body.as_bytes()].concat()], 0);
        self.settle();
        assert_eq!(self.used(CURSOR_QUEUE).len(), 1);
        assert!(self.irqs[1].take(), "the cursor queue's own interrupt");
    }

    /// The picture, by way of a PNG file.
    pub(super) fn png(&self) -> Image {
        let image = self.screen.image().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("desktop.png");
        write_png(&path, &image).unwrap();
        let file = std::io::BufReader::new(std::fs::File::open(path).unwrap());
        let mut reader = png::Decoder::new(file).read_info().unwrap();
        let mut rgba = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut rgba).unwrap();
        Image { width: info.width, height: info.height, rgba }
    }
}
