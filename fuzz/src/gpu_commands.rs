//! A hostile guest on the vGPU's control queue: virtio-gpu requests and the *frame* context's commands, through
//! the worker to what the dispatcher would get.

use crate::guest::{Guest, Rings};
use crate::input::Input;
use beamline_abi::frame::{
    Binding, CAPSET_ID, CommandHeader, MAGIC, MAX_LATCH_BYTES, MAX_SUBMIT_BYTES, Op, SubmitHeader,
    SubmitKind, VERSION, pad8,
};
use beamline_abi::virtio_gpu::{CmdSubmit, CtrlHeader, CtxCreate, cmd};
use beamline_abi::virtio_pci::{ring, status};
use beamline_abi::{FrameId, Generation, JobIndex, Nanos, SliceId};
use beamline_latency::recorder::Recorder;
use beamline_latency::stamp::SliceIndex;
use beamline_mdev::backend::SliceLimits;
use beamline_mdev::device::eventfd::EventFd;
use beamline_mdev::device::pacer::{Pacer, PacerConfig};
use beamline_mdev::mediate::dispatcher::SliceCounters;
use beamline_mdev::mediate::display::{Display, DisplaySettings};
use beamline_mdev::mediate::job::{Job, Validated};
use beamline_mdev::mediate::message::{Answered, MAX_QUEUED, Pending, RING, Work};
use beamline_mdev::mediate::resources::{Kind, Resources};
use beamline_mdev::mediate::worker::{Turn, Worker, WorkerParts};
use beamline_mdev::renderer::fuzz::read_stream;
use beamline_sched::Period;
use rtrb::{Consumer, Producer, RingBuffer};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use zerocopy::IntoBytes;

const MAX_STEPS: usize = 48;
const RINGS: Rings = Rings { size: 16, table: 0x1000, driver: 0x2000, device: 0x3000 };
/// Requests lie here, one after the other; the queue is drained before the room is used again.
const REQUESTS: u64 = 0x4000;
const REQUEST_ROOM: usize = 0x4000;
const ANSWER: u64 = 0x9000;
const LIMITS: SliceLimits = SliceLimits { memory: 1 << 20, max_resources: 32 };
/// A quota that a guest reaches.
const DISPLAY: DisplaySettings = DisplaySettings {
    width: 64,
    height: 48,
    period: Period::from_hz(60, 1).expect("60 Hz is in range"),
    quota: 1 << 20,
};
/// What a stock driver's display is made of.
const SHOWN: [u32; 11] = [
    cmd::RESOURCE_CREATE_2D,
    cmd::RESOURCE_ATTACH_BACKING,
    cmd::TRANSFER_TO_HOST_2D,
    cmd::SET_SCANOUT,
    cmd::RESOURCE_FLUSH,
    cmd::RESOURCE_DETACH_BACKING,
    cmd::RESOURCE_UNREF,
    cmd::RESOURCE_CREATE_BLOB,
    cmd::SET_SCANOUT_BLOB,
    cmd::UPDATE_CURSOR,
    cmd::MOVE_CURSOR,
];

/// Runs one life of a slice's worker.
pub(crate) fn run(data: &[u8]) {
    let mut bench = Bench::new();
    let mut input = Input::new(data);
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        bench.step(&mut input);
    }
}

struct Bench {
    guest: Guest,
    worker: Worker,
    work: Consumer<Work>,
    recycle: Producer<Vec<u8>>,
    answers: Consumer<Answered>,
    counters: Arc<SliceCounters>,
    dispatcher: EventFd,
    /// Requests whose work is not over.
    running: Vec<Pending>,
    /// Requests that were put into the queue, and those that were answered or became work.
    put: u64,
    seen: u64,
    now: Nanos,
    /// The guest's context, as the answers tell.
    frame: u64,
    /// A slice's resources, to which submissions also go without a queue.
    resources: Resources,
}

impl Bench {
    fn new() -> Self {
        let mut guest = Guest::new();
        assert!(guest.start(RINGS));
        let config = PacerConfig {
            slice: SliceId([1; 16]),
            generation: Generation(0),
            now: Arc::new(|| Nanos(0)),
        };
        let (_pacer, _, pacer) = Pacer::new(config).expect("a pacer can be made");
        let (to_dispatcher, work) = RingBuffer::new(RING);
        let (recycle, recycled) = RingBuffer::new(RING);
        let (to_poster, answers) = RingBuffer::new(RING);
        let counters = Arc::new(SliceCounters::default());
        let dispatcher = EventFd::new().expect("an eventfd can be made");
        let worker = Worker::new(WorkerParts {
            index: SliceIndex(0),
            device: guest.handle.clone(),
            pacer: Arc::clone(pacer.shared()),
            generation: Generation(0),
            limits: LIMITS,
            display: Display::new(DISPLAY),
            work: to_dispatcher,
            recycle: recycled,
            answers: to_poster,
            dispatcher: dispatcher.clone(),
            poster: EventFd::new().expect("an eventfd can be made"),
            counters: Arc::clone(&counters),
            recorder: Recorder::off(),
        });
        let mut bench = Self {
            guest,
            worker,
            work,
            recycle,
            answers,
            counters,
            dispatcher,
            running: Vec::new(),
            put: 0,
            seen: 0,
            now: Nanos(1),
            frame: 0,
            resources: Resources::new(LIMITS.max_resources, LIMITS.memory),
        };
        bench.serve();
        bench.furnish();
        bench
    }

    /// A context with a buffer, an image and a pipeline, so that commands find something.
    fn furnish(&mut self) {
        let create = CtxCreate { nlen: 0, context_init: CAPSET_ID, debug_name: [0; 64] };
        self.request(&[head(cmd::CTX_CREATE, 1).as_bytes(), create.as_bytes()].concat(), 1);
        let text = b"mainfn main() {}\0\0\0\0\0\0\0\0";
        let mut setup = Stream::new(SubmitKind::Setup);
        setup.put(Op::CreateBuffer as u32, &[1, 0, 256, 0]);
        setup.put(Op::CreateImage as u32, &[2, 0, 16, 16]);
        setup.put(Op::CreatePipeline as u32, &[3, 4, 12, 0]);
        setup.tail(text);
        let bytes = setup.finish();
        assert!(self.check(bytes.clone()), "the furniture is right");
        self.request(&submit(1, &bytes, bytes.len() as u32), 1);
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.below(13) {
            0..=4 => {
                let bytes = self.submission(input);
                self.check(bytes.clone());
                let wrong = input.u8();
                let ctx = if wrong & 0xf0 == 0x10 { input.number32() } else { 1 };
                let size = if wrong & 0xf0 == 0x20 { input.number32() } else { bytes.len() as u32 };
                self.request(&submit(ctx, &bytes, size), input.below(4));
            }
            5 => {
                let kinds =
                    [cmd::GET_DISPLAY_INFO, cmd::GET_CAPSET_INFO, cmd::GET_CAPSET, cmd::GET_EDID];
                let mut header = head(kinds[input.below(4)], input.number32());
                (header.flags, header.ring_idx) = (input.below(4) as u32, input.u8());
                header.fence_id = input.number();
                self.request(&[header.as_bytes(), input.bytes(64)].concat(), input.below(4));
            }
            6 => {
                let create = CtxCreate {
                    nlen: input.number32(),
                    context_init: if input.flag() { CAPSET_ID } else { input.number32() },
                    debug_name: [b'x'; 64],
                };
                let header = head(cmd::CTX_CREATE, input.below(3) as u32);
                self.request(&[header.as_bytes(), create.as_bytes()].concat(), 0);
            }
            7 => self.request(head(cmd::CTX_DESTROY, input.below(3) as u32).as_bytes(), 0),
            8 => {
                // Anything at all, in a chain of its own or over a queue's rings.
                if input.flag() {
                    self.request(input.bytes(255), input.below(4));
                } else {
                    let at = RINGS.table + input.number() % 0x3000;
                    self.guest.ram.write(at, input.bytes(32));
                    self.put = u64::MAX;
                }
            }
            9 => self.now = Nanos(self.now.0 + input.number() % 1_000_000_000),
            10 => self.finish(input.below(40)),
            11 => {
                let mut header = head(SHOWN[input.below(SHOWN.len())], 0);
                header.flags = input.below(2) as u32;
                let words: Vec<u8> =
                    (0..=input.below(16)).flat_map(|_| input.number32().to_le_bytes()).collect();
                self.request(&[header.as_bytes(), &words].concat(), input.below(3));
            }
            _ => self.restart(input.flag()),
        }
        self.serve();
    }

    /// A submission that is right but for what the input changes.
    fn submission(&mut self, input: &mut Input<'_>) -> Vec<u8> {
        let kind = if input.flag() { SubmitKind::Job } else { SubmitKind::Setup };
        let mut stream = Stream::new(kind);
        if kind == SubmitKind::Job {
            self.frame += 1;
            stream.header.frame = FrameId(self.frame);
            stream.header.jobs = 1;
        }
        for _ in 0..=input.below(8) {
            stream.command(input, kind);
        }
        let mut bytes = stream.finish();
        // Wrong words and wrong lengths.
        for _ in 0..input.below(4) {
            let at = usize::from(input.u16()) % (bytes.len() / 4) * 4;
            bytes[at..at + 4].copy_from_slice(&input.number32().to_le_bytes());
        }
        if input.u8() & 0xf0 == 0xf0 {
            bytes.truncate(usize::from(input.u16()) % bytes.len());
        }
        bytes
    }

    /// What passes the check is what a renderer reads, within the limits; what does not leaves no trace.
    fn check(&mut self, bytes: Vec<u8>) -> bool {
        let before = self.table();
        let len = bytes.len();
        match Job::new(bytes).validate(&mut self.resources) {
            Ok(job) => {
                check_job(&job);
                self.resources.commit();
                let used: u64 = (0..LIMITS.max_resources)
                    .filter_map(|id| self.resources.get(id))
                    .map(|kind| match kind {
                        Kind::Buffer { size } => size,
                        Kind::Image { width, height } => 4 * u64::from(width) * u64::from(height),
                        Kind::Pipeline => 0,
                    })
                    .sum();
                assert_eq!(used, self.resources.used());
                assert!(used <= LIMITS.memory);
                true
            }
            Err((rejected, bytes)) => {
                assert!(rejected.at as usize <= len && bytes.len() == len);
                assert_eq!(before, self.table());
                false
            }
        }
    }

    /// What the resources are.
    fn table(&self) -> (Vec<Option<Kind>>, u64) {
        let kinds = (0..LIMITS.max_resources).map(|id| self.resources.get(id));
        (kinds.collect(), self.resources.used())
    }

    /// Puts a request into the queue, in `cuts + 1` buffers, and has it served.
    fn request(&mut self, bytes: &[u8], cuts: usize) {
        if self.put == u64::MAX {
            // The rings were written over: a driver would have to start again.
            self.restart(true);
        }
        let bytes = &bytes[..bytes.len().min(REQUEST_ROOM)];
        if bytes.is_empty() {
            return;
        }
        self.guest.ram.write_whole(REQUESTS, bytes);
        let part = bytes.len().div_ceil(cuts + 1);
        let mut index = 0;
        for (n, piece) in bytes.chunks(part).enumerate() {
            let at = REQUESTS + (n * part) as u64;
            self.descriptor(index, at, piece.len() as u32, ring::DESC_NEXT);
            index += 1;
        }
        self.descriptor(index, ANSWER, 512, ring::DESC_WRITE);
        let index = (self.put as u16).wrapping_add(1);
        let slot = u64::from(self.put as u16 % RINGS.size);
        self.guest.ram.write_whole(RINGS.driver + 4 + 2 * slot, &[0; 2]);
        self.guest.ram.write_whole(RINGS.driver + 2, &index.to_le_bytes());
        self.put += 1;
        self.serve();
    }

    fn descriptor(&self, index: u16, at: u64, len: u32, flags: u16) {
        let mut entry = [0; 16];
        entry[..8].copy_from_slice(&at.to_le_bytes());
        entry[8..12].copy_from_slice(&len.to_le_bytes());
        entry[12..14].copy_from_slice(&flags.to_le_bytes());
        entry[14..].copy_from_slice(&(index + 1).to_le_bytes());
        self.guest.ram.write_whole(RINGS.table + 16 * u64::from(index), &entry);
    }

    /// Lets the worker work until it waits, and takes what it hands on.
    fn serve(&mut self) {
        for _ in 0..8 {
            let turn = self.worker.step(self.now);
            self.take();
            match turn {
                Turn::Wait => break,
                Turn::Again => {}
                Turn::Throttled(until) => {
                    assert!(until > self.now, "a throttled slice waits");
                    self.now = until;
                }
            }
        }
        let failed = self.guest.status() & status::NEEDS_RESET != 0;
        if self.put != u64::MAX && !failed {
            assert_eq!(self.seen, self.put, "every request is answered or becomes work, once");
        }
        let queued = self.counters.queued.load(Ordering::Relaxed);
        assert_eq!(queued, self.running.len() as u64);
        assert!(queued <= MAX_QUEUED as u64);
    }

    fn take(&mut self) {
        while let Ok(answered) = self.answers.pop() {
            self.seen += u64::from(matches!(answered, Answered::Request { .. }));
        }
        while let Ok(work) = self.work.pop() {
            let (job, pending) = match work {
                Work::Attach { pending, .. } => (None, pending),
                Work::Setup { job, pending } => {
                    assert_eq!(job.meta().kind, SubmitKind::Setup);
                    (Some(job), pending)
                }
                Work::Job { job, pending, arrival } => {
                    assert_eq!((job.meta().kind, arrival), (SubmitKind::Job, self.now));
                    (Some(job), pending)
                }
                Work::Detach => continue,
            };
            if let Some(job) = job {
                check_job(&job);
                // Whether there is room or not, the buffer was the guest's to fill.
                let _ = self.recycle.push(job.into_buffer());
            }
            self.seen += 1;
            self.running.push(pending);
            let _ = self.dispatcher.take();
        }
    }

    /// The GPU is done with this many.
    fn finish(&mut self, count: usize) {
        let count = count.min(self.running.len());
        self.running.drain(..count);
        self.counters.queued.fetch_sub(count as u64, Ordering::AcqRel);
    }

    /// The driver starts again, or the VMM goes and another comes.
    fn restart(&mut self, by_driver: bool) {
        if !by_driver {
            beamline_vfio_user::Device::reset(&mut self.guest.gpu);
            self.guest.master(true);
        }
        // Rings of the last life would look like requests of this one.
        self.guest.ram.write_whole(RINGS.table, &[0; 0x2000]);
        assert!(self.guest.start(RINGS));
        (self.put, self.seen) = (0, 0);
        self.serve();
    }
}

fn check_job(job: &Job<Validated>) {
    let meta = job.meta();
    assert!(job.bytes().len() <= MAX_SUBMIT_BYTES);
    let commands = read_stream(job.bytes(), meta.kind);
    assert_eq!(commands, Ok(meta.header.commands as usize), "a renderer reads what was checked");
    for latch in meta.latches.iter().flatten() {
        assert!(u32::from(latch.command) < meta.header.commands);
        assert!((1..=MAX_LATCH_BYTES).contains(&usize::from(latch.len)));
    }
}

fn head(type_: u32, ctx_id: u32) -> CtrlHeader {
    CtrlHeader { type_, flags: 1, fence_id: 1, ctx_id, ..CtrlHeader::default() }
}

fn submit(ctx: u32, bytes: &[u8], size: u32) -> Vec<u8> {
    let body = CmdSubmit { size, padding: 0 };
    [head(cmd::SUBMIT_3D, ctx).as_bytes(), body.as_bytes(), bytes].concat()
}

/// A submission in the making.
struct Stream {
    header: SubmitHeader,
    body: Vec<u8>,
    /// Where the last command starts.
    last: usize,
}

impl Stream {
    fn new(kind: SubmitKind) -> Self {
        let header = SubmitHeader {
            magic: MAGIC,
            version: VERSION,
            kind: kind as u16,
            job: JobIndex(0),
            ..SubmitHeader::default()
        };
        Self { header, body: Vec::new(), last: 0 }
    }

    /// A command of these words.
    fn put(&mut self, op: u32, words: &[u32]) {
        self.last = self.body.len();
        self.header.commands += 1;
        self.body.extend_from_slice(CommandHeader { op, len: 0 }.as_bytes());
        self.body.extend_from_slice(words.as_bytes());
        self.tail(&[]);
    }

    /// More bytes for the last command, padded.
    fn tail(&mut self, bytes: &[u8]) {
        self.body.extend_from_slice(bytes);
        self.body.resize(self.last + pad8(self.body.len() - self.last), 0);
        let len = (self.body.len() - self.last) as u32;
        self.body[self.last + 4..self.last + 8].copy_from_slice(&len.to_le_bytes());
    }

    fn finish(mut self) -> Vec<u8> {
        self.header.bytes = self.body.len() as u32;
        [self.header.as_bytes(), &self.body].concat()
    }

    /// A command with plausible fields.
    fn command(&mut self, input: &mut Input<'_>, kind: SubmitKind) {
        let setup = [Op::CreateBuffer, Op::CreateImage, Op::CreatePipeline, Op::Destroy];
        let job = [Op::WriteBuffer, Op::Latch, Op::Dispatch, Op::Present];
        let tag = input.u8();
        let right = kind == SubmitKind::Setup;
        let wrong = tag & 0xf0 == 0xf0;
        let ops = if right ^ wrong { setup } else { job };
        let op = ops[usize::from(tag) % ops.len()];
        let id = input.below(8) as u32;
        let value = input.number();
        let (low, high) = (value as u32, (value >> 32) as u32);
        match op {
            Op::CreateBuffer => self.put(op as u32, &[id, 0, low.wrapping_mul(16), high]),
            Op::CreateImage => self.put(op as u32, &[id, 0, low, input.number32()]),
            Op::CreatePipeline => {
                let text = input.bytes(128);
                let entry = input.below(8).min(text.len());
                self.put(op as u32, &[id, entry as u32, (text.len() - entry) as u32, 0]);
                self.tail(text);
            }
            Op::Destroy => self.put(op as u32, &[id, 0]),
            Op::WriteBuffer => {
                let data = input.bytes(64);
                self.put(op as u32, &[id, data.len() as u32, low.wrapping_mul(4), high]);
                self.tail(data);
            }
            Op::Latch => {
                let len = input.number32().wrapping_mul(4);
                self.put(op as u32, &[id, len, low.wrapping_mul(4), high, 0x4000, 0]);
            }
            Op::Dispatch => {
                let count = input.below(10);
                let bindings: Vec<Binding> = (0..count)
                    .map(|_| Binding { slot: input.below(40) as u32, id: input.below(8) as u32 })
                    .collect();
                self.put(op as u32, &[id, low, 1, 1, count as u32, 0]);
                self.tail(bindings.as_bytes());
            }
            Op::Present => self.put(op as u32, &[id, u32::from(low == 9)]),
        }
    }
}
