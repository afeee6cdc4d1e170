//! The whole device as Linux's driver uses it: registers, both queues, worker and poster; vblanks by hand.

use super::Display;
use super::screen::{Image, Screen};
use crate::backend::SliceLimits;
use crate::config::HostConfig;
use crate::device::eventfd::EventFd;
use crate::device::pacer::{Pacer, PacerConfig};
use crate::device::virtio::gpu::{GpuConfig, GpuHandle, VirtioGpu};
use crate::host::{display_settings, scanout::write_png};
use crate::mediate::dispatcher::SliceCounters;
use crate::mediate::message::{Post, RING, Work};
use crate::mediate::poster::{Poster, PosterParts};
use crate::mediate::worker::{Turn, Worker, WorkerParts};
use crate::memory::{Gpa, sealed_memfd};
use beamline_abi::pci::{command, config as header};
use beamline_abi::virtio_gpu::{
    AttachBacking, BLOB_MEM_GUEST, CONTROL_QUEUE, CURSOR_QUEUE, CtrlHeader, CtxCreate, CursorPos,
    FLAG_FENCE, GetEdid, MemEntry, Rect, ResourceCreate2d, ResourceCreateBlob, ResourceFlush,
    SetScanout, SetScanoutBlob, TransferToHost2d, UpdateCursor, cmd, feature, format,
};
use beamline_abi::virtio_pci::{common, feature as transport, ring, status};
use beamline_abi::{Generation, Nanos, SliceId};
use beamline_latency::FakeClock;
use beamline_latency::recorder::Recorder;
use beamline_latency::stamp::SliceIndex;
use beamline_sched::Vblank;
use beamline_vfio_user::{Device, DmaFlags, DmaMap, IrqAction, IrqIndex, RegionIndex};
use proptest::prelude::*;
use rtrb::{Consumer, Producer, RingBuffer};
use rustix::fs::SealFlags;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use zerocopy::{FromBytes, Immutable, IntoBytes};

const BAR: RegionIndex = RegionIndex::bar(4);
const NOTIFY: u64 = 0x3000;
const PAGE: u64 = 4096;
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
const IMAGES: u64 = 0x60;

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
struct Rig {
    gpu: VirtioGpu,
    handle: GpuHandle,
    worker: Worker,
    poster: Poster,
    screen: Arc<Screen>,
    posts: Producer<Post>,
    work: Consumer<Work>,
    irqs: [EventFd; 2],
    features: u64,
    put: [u16; 2],
    seen: [u16; 2],
    now: Nanos,
    _pacer: Pacer,
    _recycle: Producer<Vec<u8>>,
}

impl Rig {
    fn new(contexts: bool) -> Self {
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
        let (pacer, pacer_handle) = Pacer::new(config).unwrap();
        let limits = SliceLimits { memory: 1 << 20, max_resources: 16 };
        let (work_in, work) = RingBuffer::new(RING);
        let (recycle_in, recycle) = RingBuffer::new(RING);
        let (posts_in, posts) = RingBuffer::new(RING);
        let (answers_in, answers) = RingBuffer::new(4 * RING);
        let display = Display::new(display_settings(slice));
        let screen = display.screen();
        let worker = Worker::new(WorkerParts {
            index: SliceIndex(0),
            device: handle.clone(),
            pacer: Arc::clone(pacer_handle.shared()),
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
        let poster = Poster::new(PosterParts {
            index: SliceIndex(0),
            slice: slice_id,
            contract: slice.contract,
            phase: Nanos::ZERO,
            display: (slice.width, slice.height),
            limits,
            pacer: pacer_handle,
            posts,
            answers,
            tsc: None,
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
            screen,
            posts: posts_in,
            work,
            irqs,
            features: features | transport::VERSION_1,
            put: [0; 2],
            seen: [0; 2],
            now: Nanos(0),
            _pacer: pacer,
            _recycle: recycle_in,
        };
        rig.start();
        rig
    }

    fn set(&mut self, field: u32, len: usize, value: u64) {
        self.gpu.region_write(BAR, field.into(), &value.to_le_bytes()[..len]).unwrap();
    }

    fn status(&mut self) -> u8 {
        let mut status = [0];
        self.gpu.region_read(BAR, common::DEVICE_STATUS.into(), &mut status).unwrap();
        status[0]
    }

    /// Resets the device and brings it up.
    fn start(&mut self) {
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

    fn memory(&self, at: u64, bytes: &[u8]) {
        self.handle.memory().write(Gpa(at), bytes).unwrap();
    }

    /// The slice's threads, until there is nothing to do. A guest that has used up its allowance waits.
    fn settle(&mut self) {
        loop {
            match self.worker.step(self.now) {
                Turn::Again => {}
                Turn::Throttled(until) => self.now = until,
                Turn::Wait => break,
            }
        }
        self.poster.step();
    }

    /// A vblank at this moment.
    fn vblank(&mut self) {
        let vblank = Vblank { seq: 1, time: self.now, next: Nanos(u64::MAX) };
        let generation = Generation(0);
        self.posts.push(Post::Vblank { vblank, presented: None, generation }).unwrap();
        self.now = Nanos(self.now.0 + 1);
        self.settle();
    }

    /// Puts buffers that the device reads into a queue, and one of `room` bytes that it writes. Answers
    /// where that one is.
    fn put(&mut self, queue: u16, parts: &[&[u8]], room: u32) -> u64 {
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
    fn used(&mut self, queue: u16) -> Vec<(u32, u32)> {
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

    fn header(&self, at: u64) -> CtrlHeader {
        let mut bytes = [0; 24];
        self.handle.memory().read(Gpa(at), &mut bytes).unwrap();
        CtrlHeader::read_from_bytes(&bytes).unwrap()
    }

    /// A request on the control queue, its body in the same buffer, a list in buffers of its own.
    fn send(&mut self, type_: u32, fence: Option<u64>, body: &[u8], lists: &[&[u8]]) -> u64 {
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
    fn ask(&mut self, type_: u32, body: &(impl IntoBytes + Immutable)) -> u32 {
        let answer = self.send(type_, None, body.as_bytes(), &[]);
        assert_eq!(self.used(CONTROL_QUEUE).len(), 1, "{type_:#x} is answered");
        self.header(answer).type_
    }

    fn cursor(&mut self, type_: u32, resource_id: u32, x: u32, y: u32) {
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
    fn png(&self) -> Image {
        let Image { width, height, rgba } = self.screen.image().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("desktop.png");
        write_png(&path, width, height, &rgba).unwrap();
        let file = std::io::BufReader::new(std::fs::File::open(path).unwrap());
        let mut reader = png::Decoder::new(file).read_info().unwrap();
        let mut rgba = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut rgba).unwrap();
        Image { width: info.width, height: info.height, rgba }
    }
}

const WHOLE: Rect = Rect { x: 0, y: 0, width: 64, height: 48 };

/// Pages of an image, last page first, and the bytes written there.
fn paint(rig: &Rig, first: u64, colour: u8) -> (Vec<MemEntry>, Vec<u8>) {
    let pixels: Vec<u8> =
        (0..64 * 48u32).flat_map(|n| [n as u8, (n / 64) as u8, colour, 0]).collect();
    let pages = pixels.len() as u64 / PAGE;
    let place = |n: u64| (first + pages - 1 - n) * PAGE;
    for (n, bytes) in pixels.chunks(PAGE as usize).enumerate() {
        rig.memory(place(n as u64), bytes);
    }
    let entry = |n| MemEntry { addr: place(n), length: PAGE as u32, padding: 0 };
    let rgba = pixels.chunks(4).flat_map(|p| [p[2], p[1], p[0], 255]).collect();
    ((0..pages).map(entry).collect(), rgba)
}

/// Makes a 2D resource with its memory, as Linux does for a framebuffer.
fn framebuffer(rig: &mut Rig, id: u32, first: u64, colour: u8) -> Vec<u8> {
    let (entries, rgba) = paint(rig, first, colour);
    let format = format::B8G8R8X8_UNORM;
    let create = ResourceCreate2d { resource_id: id, format, width: 64, height: 48 };
    assert_eq!(rig.ask(cmd::RESOURCE_CREATE_2D, &create), cmd::RESP_OK_NODATA);
    let attach = AttachBacking { resource_id: id, nr_entries: entries.len() as u32 };
    // The list does not end where its first buffer ends.
    let (one, two) = entries.as_bytes().split_at(24);
    let answer = rig.send(cmd::RESOURCE_ATTACH_BACKING, None, attach.as_bytes(), &[one, two]);
    assert_eq!(rig.used(CONTROL_QUEUE).len(), 1);
    assert_eq!(rig.header(answer).type_, cmd::RESP_OK_NODATA);
    rgba
}

fn transfer(id: u32) -> TransferToHost2d {
    TransferToHost2d { r: WHOLE, offset: 0, resource_id: id, padding: 0 }
}

fn flush(id: u32) -> ResourceFlush {
    ResourceFlush { r: WHOLE, resource_id: id, padding: 0 }
}

fn scanout(id: u32) -> SetScanout {
    SetScanout { r: WHOLE, scanout_id: 0, resource_id: id }
}

#[test]
fn linux_shows_an_image_and_waits_for_its_vblank() {
    for contexts in [false, true] {
        let mut rig = Rig::new(contexts);
        let rgba = framebuffer(&mut rig, 3, IMAGES, 200);
        assert_eq!(rig.ask(cmd::TRANSFER_TO_HOST_2D, &transfer(3)), cmd::RESP_OK_NODATA);
        assert_eq!(rig.ask(cmd::SET_SCANOUT, &scanout(3)), cmd::RESP_OK_NODATA);
        assert!(rig.irqs[0].take());
        let answer = rig.send(cmd::RESOURCE_FLUSH, Some(41), flush(3).as_bytes(), &[]);
        assert_eq!(rig.used(CONTROL_QUEUE), [], "until the vblank");
        assert!(!rig.irqs[0].take());
        // What has no fence does not wait; what has one waits behind the flush.
        assert_eq!(rig.ask(cmd::TRANSFER_TO_HOST_2D, &transfer(3)), cmd::RESP_OK_NODATA);
        let behind = rig.send(cmd::TRANSFER_TO_HOST_2D, Some(42), transfer(3).as_bytes(), &[]);
        assert_eq!(rig.used(CONTROL_QUEUE), []);
        rig.irqs[0].take();
        rig.vblank();
        assert_eq!(rig.used(CONTROL_QUEUE).len(), 2);
        assert!(rig.irqs[0].take());
        for (at, fence) in [(answer, 41), (behind, 42)] {
            let header = rig.header(at);
            assert_eq!((header.type_, header.flags), (cmd::RESP_OK_NODATA, FLAG_FENCE));
            assert_eq!(header.fence_id, fence);
        }
        assert_eq!(rig.png(), Image { width: 64, height: 48, rgba });
    }
}

#[test]
fn linux_flips_blobs_at_vblanks() {
    let mut rig = Rig::new(false);
    let mut images = Vec::new();
    for id in [1, 2] {
        let (entries, rgba) = paint(&rig, IMAGES + u64::from(id) * 16, id as u8);
        images.push(rgba);
        let create = ResourceCreateBlob {
            resource_id: id,
            blob_mem: BLOB_MEM_GUEST,
            blob_flags: 2,
            nr_entries: entries.len() as u32,
            blob_id: 0,
            size: 64 * 48 * 4,
        };
        let list = entries.as_bytes();
        let answer = rig.send(cmd::RESOURCE_CREATE_BLOB, None, create.as_bytes(), &[list]);
        assert_eq!(rig.used(CONTROL_QUEUE).len(), 1);
        assert_eq!(rig.header(answer).type_, cmd::RESP_OK_NODATA);
    }
    for frame in 0..6 {
        let id = 1 + frame % 2;
        assert_eq!(rig.ask(cmd::TRANSFER_TO_HOST_2D, &transfer(id)), cmd::RESP_OK_NODATA);
        let show = SetScanoutBlob {
            r: WHOLE,
            scanout_id: 0,
            resource_id: id,
            width: 64,
            height: 48,
            format: format::B8G8R8X8_UNORM,
            padding: 0,
            strides: [256, 0, 0, 0],
            offsets: [0; 4],
        };
        assert_eq!(rig.ask(cmd::SET_SCANOUT_BLOB, &show), cmd::RESP_OK_NODATA);
        rig.send(cmd::RESOURCE_FLUSH, Some(u64::from(frame)), flush(id).as_bytes(), &[]);
        assert_eq!(rig.used(CONTROL_QUEUE), []);
        rig.vblank();
        assert_eq!(rig.used(CONTROL_QUEUE).len(), 1, "frame {frame}");
        assert_eq!(rig.png().rgba, images[id as usize - 1]);
    }
}

#[test]
fn a_vblank_before_the_flush_does_not_answer_it() {
    let mut rig = Rig::new(false);
    framebuffer(&mut rig, 3, IMAGES, 1);
    assert_eq!(rig.ask(cmd::SET_SCANOUT, &scanout(3)), cmd::RESP_OK_NODATA);
    // The vblank is posted, and before the poster runs, the flush comes.
    let vblank = Vblank { seq: 1, time: rig.now, next: Nanos(u64::MAX) };
    let generation = Generation(0);
    rig.posts.push(Post::Vblank { vblank, presented: None, generation }).unwrap();
    rig.now = Nanos(rig.now.0 + 5);
    rig.send(cmd::RESOURCE_FLUSH, Some(1), flush(3).as_bytes(), &[]);
    assert_eq!(rig.used(CONTROL_QUEUE), []);
    rig.vblank();
    assert_eq!(rig.used(CONTROL_QUEUE).len(), 1);
    // A flush of what is not shown paces nobody.
    framebuffer(&mut rig, 4, IMAGES + 16, 1);
    rig.send(cmd::RESOURCE_FLUSH, Some(2), flush(4).as_bytes(), &[]);
    assert_eq!(rig.used(CONTROL_QUEUE).len(), 1);
}

#[test]
fn the_cursor_queue_is_served() {
    let mut rig = Rig::new(true);
    framebuffer(&mut rig, 3, IMAGES, 9);
    assert_eq!(rig.ask(cmd::SET_SCANOUT, &scanout(3)), cmd::RESP_OK_NODATA);
    rig.send(cmd::RESOURCE_FLUSH, None, flush(3).as_bytes(), &[]);
    assert_eq!(rig.used(CONTROL_QUEUE).len(), 1, "without a fence nothing waits");
    let format = format::B8G8R8A8_UNORM;
    let create = ResourceCreate2d { resource_id: 7, format, width: 64, height: 64 };
    assert_eq!(rig.ask(cmd::RESOURCE_CREATE_2D, &create), cmd::RESP_OK_NODATA);
    let list = [MemEntry { addr: 0xa0 * PAGE, length: 4 * PAGE as u32, padding: 0 }];
    rig.memory(0xa0 * PAGE, &[10, 20, 30, 255]);
    let attach = AttachBacking { resource_id: 7, nr_entries: 1 };
    rig.send(cmd::RESOURCE_ATTACH_BACKING, None, attach.as_bytes(), &[list.as_bytes()]);
    let r = Rect { width: 64, height: 64, ..WHOLE };
    let load = TransferToHost2d { r, ..transfer(7) };
    rig.send(cmd::TRANSFER_TO_HOST_2D, Some(5), load.as_bytes(), &[]);
    assert_eq!(rig.used(CONTROL_QUEUE).len(), 2);
    rig.cursor(cmd::UPDATE_CURSOR, 7, 5, 2);
    assert_eq!(rig.png().rgba[(2 * 64 + 5) * 4..][..4], [30, 20, 10, 255]);
    rig.cursor(cmd::MOVE_CURSOR, 0, 6, 3);
    assert_eq!(rig.png().rgba[(2 * 64 + 5) * 4..][..4], [0, 0, 0, 255]);
    assert_eq!(rig.png().rgba[(3 * 64 + 6) * 4..][..4], [30, 20, 10, 255]);
}

#[test]
fn a_reset_drops_what_waits_and_what_was_made() {
    let mut rig = Rig::new(false);
    framebuffer(&mut rig, 3, IMAGES, 9);
    assert_eq!(rig.ask(cmd::SET_SCANOUT, &scanout(3)), cmd::RESP_OK_NODATA);
    rig.send(cmd::RESOURCE_FLUSH, Some(1), flush(3).as_bytes(), &[]);
    assert!(rig.screen.image().is_some());
    rig.set(common::DEVICE_STATUS, 1, 0);
    rig.settle();
    assert_eq!(rig.screen.image(), None, "nothing for who comes next");
    rig.start();
    rig.vblank();
    assert_eq!(rig.used(CONTROL_QUEUE), [], "nothing of the life before");
    framebuffer(&mut rig, 3, IMAGES, 9);
    // Also where the guest's memory goes without a word.
    assert_eq!(rig.ask(cmd::SET_SCANOUT, &scanout(3)), cmd::RESP_OK_NODATA);
    rig.send(cmd::RESOURCE_FLUSH, Some(2), flush(3).as_bytes(), &[]);
    rig.gpu.disconnected();
    rig.settle();
    rig.vblank();
    assert_eq!(rig.screen.image(), None);
}

#[test]
fn each_profile_serves_its_own() {
    let edid = |rig: &mut Rig, scanout| {
        let header = CtrlHeader { type_: cmd::GET_EDID, ..CtrlHeader::default() };
        let body = GetEdid { scanout, padding: 0 };
        let room = 24 + 1032;
        let request = [header.as_bytes(), body.as_bytes()].concat();
        let at = rig.put(CONTROL_QUEUE, &[&request], room);
        rig.settle();
        (rig.used(CONTROL_QUEUE)[0].1, rig.header(at).type_, at)
    };
    let context = CtxCreate { nlen: 0, context_init: 0x3f, debug_name: [0; 64] };
    let blob = ResourceCreateBlob {
        resource_id: 1,
        blob_mem: BLOB_MEM_GUEST,
        size: 4096,
        ..ResourceCreateBlob::default()
    };
    let mut display = Rig::new(false);
    assert_eq!(display.ask(cmd::CTX_CREATE, &context), cmd::RESP_ERR_UNSPEC);
    assert_eq!(display.ask(cmd::GET_CAPSET_INFO, &[0u32; 2]), cmd::RESP_ERR_INVALID_PARAMETER);
    assert_eq!(display.ask(cmd::RESOURCE_CREATE_BLOB, &blob), cmd::RESP_OK_NODATA);
    let (len, type_, at) = edid(&mut display, 0);
    assert_eq!((len, type_), (1056, cmd::RESP_OK_EDID));
    let mut bytes = [0; 136];
    display.handle.memory().read(Gpa(at + 24), &mut bytes).unwrap();
    assert_eq!(bytes[..4], 128u32.to_le_bytes());
    assert_eq!((bytes[8 + 56], bytes[8 + 59]), (64, 48), "the configured size");
    assert_eq!(edid(&mut display, 1).1, cmd::RESP_ERR_INVALID_SCANOUT_ID);
    assert!(display.work.is_empty());

    let mut render = Rig::new(true);
    assert_eq!(render.ask(cmd::RESOURCE_CREATE_BLOB, &blob), cmd::RESP_ERR_UNSPEC);
    assert_eq!(render.ask(cmd::GET_CAPSET_INFO, &[0u32; 2]), cmd::RESP_OK_CAPSET_INFO);
    render.send(cmd::CTX_CREATE, None, context.as_bytes(), &[]);
    assert!(matches!(render.work.pop(), Ok(Work::Attach { .. })));
}

#[test]
fn a_guest_that_copies_too_much_waits() {
    let mut rig = Rig::new(true);
    framebuffer(&mut rig, 3, IMAGES, 9);
    let start = rig.now;
    // A display's worth 60 times, where three per vblank are allowed: about 18 vblanks after the burst.
    for _ in 0..60 {
        assert_eq!(rig.ask(cmd::TRANSFER_TO_HOST_2D, &transfer(3)), cmd::RESP_OK_NODATA);
    }
    let took = rig.now.saturating_sub(start);
    assert!(took > Nanos::from_millis(250), "{took:?}");
    assert!(took < Nanos::from_secs(1), "{took:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// Any bytes in either queue: no panic, every request is answered, and nothing of the guest's memory
    /// changes but rings and answers.
    #[test]
    fn any_bytes_change_nothing_but_answers(
        requests in prop::collection::vec(
            (any::<bool>(), 0usize..28, any::<bool>(), prop::collection::vec(any::<u8>(), 0..160)),
            1..20,
        ),
        contexts: bool,
    ) {
        const TYPES: [u32; 28] = [
            0x100, 0x101, 0x102, 0x103, 0x104, 0x105, 0x106, 0x107, 0x108, 0x109, 0x10a, 0x10b, 0x10c,
            0x10d, 0x200, 0x201, 0x207, 0x300, 0x301, 0x101, 0x106, 0x10c, 0x105, 0x104, 0x103, 0x10d, 0,
            u32::MAX,
        ];
        let mut rig = Rig::new(contexts);
        rig.memory(IMAGES * PAGE, &vec![0xa5; 64 * PAGE as usize]);
        for (n, (cursor, type_, fenced, bytes)) in requests.iter().enumerate() {
            let queue = if *cursor { CURSOR_QUEUE } else { CONTROL_QUEUE };
            let header = CtrlHeader {
                type_: TYPES[*type_],
                flags: u32::from(*fenced),
                fence_id: n as u64,
                ..CtrlHeader::default()
            };
            // Small numbers, so that some of them name something.
            let body: Vec<u8> =
                bytes.iter().enumerate().map(|(n, b)| if n % 4 == 0 { b % 5 } else { b / 250 }).collect();
            rig.put(queue, &[header.as_bytes(), if body.is_empty() { &[0] } else { &body }], 24);
            rig.settle();
            rig.vblank();
            let started = usize::from(rig.work.pop().is_ok());
            let used = rig.used(queue);
            prop_assert_eq!(used.len() + started, 1, "{:?}", header);
            prop_assert!(used.iter().all(|(_, written)| *written <= 24));
        }
        let mut after = vec![0; 64 * PAGE as usize];
        rig.handle.memory().read(Gpa(IMAGES * PAGE), &mut after).unwrap();
        prop_assert!(after.iter().all(|byte| *byte == 0xa5));
        prop_assert_eq!(rig.status() & status::NEEDS_RESET, 0);
    }
}
