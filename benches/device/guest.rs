//! A guest's driver of a vGPU, as far as a bench needs one: a control queue in memory that it shares with the
//! host. Registers are written through whatever the bench has.

use anyhow::Context;
use beamline_abi::frame::{
    Binding, CAPSET_ID, CommandHeader, CreateBuffer, CreateImage, CreatePipeline, Dispatch, MAGIC,
    Op, Present, SubmitHeader, SubmitKind, VERSION, WriteBuffer, pad8,
};
use beamline_abi::virtio_gpu::{self, CmdSubmit, CtrlHeader, CtxCreate, FLAG_FENCE, cmd};
use beamline_abi::virtio_pci::{common, feature, ring, status};
use beamline_abi::{FrameId, JobIndex, pci};
use beamline_vfio_user::RegionIndex;
use rustix::fs::{MemfdFlags, SealFlags};
use std::os::fd::OwnedFd;
use zerocopy::{Immutable, IntoBytes};

/// Bytes of guest memory, which begins at address 0.
pub(super) const MEMORY: u64 = 0x10000;
/// The BAR that the vGPU's registers are in.
pub(super) const BAR: RegionIndex = RegionIndex::bar(4);
/// Entries of the queue.
const SIZE: u16 = 16;
const TABLE: u64 = 0x1000;
const DRIVER: u64 = 0x2000;
const DEVICE: u64 = 0x3000;
/// Requests, a page each.
const REQUESTS: u64 = 0x4000;
const REQUEST_ROOM: u64 = 0x1000;
/// Requests that have a place of their own, each with two descriptors.
const PLACES: u16 = 4;
/// Where answers go.
const ANSWERS: u64 = 0xa000;
/// The interrupt vector of the control queue.
pub(super) const VECTOR: u16 = 1;

/// Writes a register of a region.
pub(super) type Write<'a> = &'a mut dyn FnMut(RegionIndex, u64, &[u8]) -> anyhow::Result<()>;

/// The guest's memory and its driver's place in it.
pub(super) struct Guest {
    memory: OwnedFd,
    /// Requests offered so far.
    put: u16,
}

impl Guest {
    /// With memory that a host takes.
    pub(super) fn new() -> anyhow::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let memory = rustix::fs::memfd_create("guest", flags).context("guest memory")?;
        rustix::fs::ftruncate(&memory, MEMORY).context("guest memory")?;
        rustix::fs::fcntl_add_seals(&memory, SealFlags::SHRINK | SealFlags::GROW)
            .context("guest memory")?;
        Ok(Self { memory, put: 0 })
    }

    pub(super) fn memory(&self) -> &OwnedFd {
        &self.memory
    }

    /// Brings the device and its control queue up.
    pub(super) fn start(write: Write<'_>) -> anyhow::Result<()> {
        let command = pci::command::MEMORY | pci::command::BUS_MASTER;
        write(RegionIndex::CONFIG, pci::config::COMMAND.into(), &command.to_le_bytes())?;
        let ready = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        for (register, len, value) in [
            (common::DEVICE_STATUS, 1, 0),
            (common::DRIVER_FEATURE_SELECT, 4, 0),
            (common::DRIVER_FEATURE, 4, virtio_gpu::feature::VIRGL),
            (common::DRIVER_FEATURE_SELECT, 4, 1),
            (common::DRIVER_FEATURE, 4, feature::VERSION_1 >> 32),
            (common::DEVICE_STATUS, 1, ready.into()),
            (common::QUEUE_SELECT, 2, 0),
            (common::QUEUE_SIZE, 2, SIZE.into()),
            (common::QUEUE_MSIX_VECTOR, 2, VECTOR.into()),
            (common::QUEUE_DESC, 8, TABLE),
            (common::QUEUE_DRIVER, 8, DRIVER),
            (common::QUEUE_DEVICE, 8, DEVICE),
            (common::QUEUE_ENABLE, 2, 1),
            (common::DEVICE_STATUS, 1, (ready | status::DRIVER_OK).into()),
        ] {
            write(BAR, register.into(), &value.to_le_bytes()[..len])?;
        }
        Ok(())
    }

    /// Puts a request into the queue. The doorbell is the caller's.
    pub(super) fn offer(&mut self, request: &[u8]) -> anyhow::Result<()> {
        let place = self.put % PLACES;
        let (first, at) = (2 * place, REQUESTS + u64::from(place) * REQUEST_ROOM);
        anyhow::ensure!(request.len() as u64 <= REQUEST_ROOM, "the request has no room");
        self.write(at, request)?;
        self.describe(first, at, request.len() as u32, ring::DESC_NEXT)?;
        self.describe(first + 1, ANSWERS, 0x1000, ring::DESC_WRITE)?;
        self.write(DRIVER + 4 + 2 * u64::from(self.put % SIZE), &first.to_le_bytes())?;
        self.put = self.put.wrapping_add(1);
        self.write(DRIVER + 2, &self.put.to_le_bytes())
    }

    /// Empties the queue again, whose device was reset.
    pub(super) fn restart(&mut self) -> anyhow::Result<()> {
        self.put = 0;
        self.write(DRIVER, &[0; 4])?;
        self.write(DEVICE, &[0; 4])
    }

    /// Whether every request was answered.
    pub(super) fn is_answered(&self) -> anyhow::Result<bool> {
        let mut index = [0; 2];
        rustix::io::pread(&self.memory, &mut index, DEVICE + 2).context("the used ring")?;
        Ok(u16::from_le_bytes(index) == self.put)
    }

    /// The type of the last answer.
    pub(super) fn answer(&self) -> anyhow::Result<u32> {
        let mut kind = [0; 4];
        rustix::io::pread(&self.memory, &mut kind, ANSWERS).context("the answer")?;
        Ok(u32::from_le_bytes(kind))
    }

    fn describe(&self, index: u16, at: u64, len: u32, flags: u16) -> anyhow::Result<()> {
        let mut entry = [0; ring::DESC_SIZE as usize];
        entry[..8].copy_from_slice(&at.to_le_bytes());
        entry[8..12].copy_from_slice(&len.to_le_bytes());
        entry[12..14].copy_from_slice(&flags.to_le_bytes());
        entry[14..].copy_from_slice(&(index + 1).to_le_bytes());
        self.write(TABLE + ring::DESC_SIZE * u64::from(index), &entry)
    }

    fn write(&self, at: u64, bytes: &[u8]) -> anyhow::Result<()> {
        let written = rustix::io::pwrite(&self.memory, bytes, at).context("guest memory")?;
        anyhow::ensure!(written == bytes.len(), "guest memory is full");
        Ok(())
    }
}

/// A request that the worker answers by itself.
pub(super) fn trivial() -> Vec<u8> {
    head(cmd::GET_DISPLAY_INFO).as_bytes().to_vec()
}

/// The request that makes the frame context.
pub(super) fn context() -> Vec<u8> {
    let create = CtxCreate { nlen: 0, context_init: CAPSET_ID, debug_name: [0; 64] };
    [head(cmd::CTX_CREATE).as_bytes(), create.as_bytes()].concat()
}

/// The request that makes what [`frame`] uses.
pub(super) fn furniture() -> Vec<u8> {
    let mut stream = Stream::new(SubmitKind::Setup, FrameId::NONE);
    stream.put(Op::CreateBuffer, &CreateBuffer { id: 1, reserved: 0, size: 256 }, &[]);
    stream.put(Op::CreateImage, &CreateImage { id: 2, format: 0, width: 64, height: 64 }, &[]);
    let pipeline = CreatePipeline { id: 3, entry_len: 4, wgsl_len: 12, reserved: 0 };
    stream.put(Op::CreatePipeline, &pipeline, b"mainfn main() {}");
    stream.request()
}

/// The request of a frame of one job and four commands: it writes a buffer, runs a pipeline twice, and presents.
pub(super) fn frame(number: u64) -> Vec<u8> {
    let mut stream = Stream::new(SubmitKind::Job, FrameId(number));
    let bindings = [Binding { slot: 0, id: 1 }, Binding { slot: 1, id: 2 }];
    let run = Dispatch { pipeline: 3, groups: [8, 8, 1], bindings: 2, reserved: 0 };
    stream.put(Op::WriteBuffer, &WriteBuffer { id: 1, len: 128, offset: 0 }, &[0x5a; 128]);
    stream.put(Op::Dispatch, &run, bindings.as_bytes());
    stream.put(Op::Dispatch, &run, bindings.as_bytes());
    stream.put(Op::Present, &Present { image: 2, scanout: 0 }, &[]);
    stream.request()
}

fn head(kind: u32) -> CtrlHeader {
    CtrlHeader { type_: kind, flags: FLAG_FENCE, fence_id: 1, ctx_id: 1, ..CtrlHeader::default() }
}

/// A submission of the frame context.
struct Stream {
    header: SubmitHeader,
    body: Vec<u8>,
}

impl Stream {
    fn new(kind: SubmitKind, frame: FrameId) -> Self {
        let jobs = u16::from(kind == SubmitKind::Job);
        let header = SubmitHeader {
            magic: MAGIC,
            version: VERSION,
            kind: kind as u16,
            frame,
            job: JobIndex(0),
            jobs,
            ..SubmitHeader::default()
        };
        Self { header, body: Vec::new() }
    }

    fn put(&mut self, op: Op, fixed: &(impl IntoBytes + Immutable), tail: &[u8]) {
        let len = pad8(size_of::<CommandHeader>() + fixed.as_bytes().len() + tail.len());
        let end = self.body.len() + len;
        self.body.extend(CommandHeader { op: op as u32, len: len as u32 }.as_bytes());
        self.body.extend(fixed.as_bytes());
        self.body.extend(tail);
        self.body.resize(end, 0);
        self.header.commands += 1;
    }

    fn request(mut self) -> Vec<u8> {
        self.header.bytes = self.body.len() as u32;
        let size = (size_of::<SubmitHeader>() + self.body.len()) as u32;
        let submit = CmdSubmit { size, padding: 0 };
        let head = head(cmd::SUBMIT_3D);
        [head.as_bytes(), submit.as_bytes(), self.header.as_bytes(), &self.body].concat()
    }
}
