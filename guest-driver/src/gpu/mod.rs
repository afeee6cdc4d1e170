//! Stage 1, guest submits: to the doorbell, which is the write that [`Gpu::kick`] makes.
//!
//! A [`Gpu`] is a virtio-gpu function with one frame context. Every request has a slot: two descriptors,
//! a request buffer and a response buffer, all laid out when the function is attached. Submissions are
//! asynchronous; [`Gpu::poll`] hands back what the host has finished, in the host's order.

mod commands;
mod queue;
mod virtio;

pub use commands::{CommandError, Commands, JobPlace, Submission};
pub use queue::{Descriptor, QueueBroken, SplitQueue, Used};
pub use virtio::{VirtioError, VirtioPci};

use crate::pacer::MarkerRing;
use crate::pci::{self, MsiTarget, PciError};
use crate::transport::{Arena, ArenaFull, Gpa, Slot, Transport, Wake};
use beamline_abi::frame::{CAPSET_ID, FrameCapset, SubmitKind, VERSION};
use beamline_abi::virtio_gpu::{
    CONTROL_QUEUE, CapsetInfo, CmdSubmit, Config, CtrlHeader, CtxCreate, DEVICE_TYPE, FLAG_FENCE,
    GetCapset, GetCapsetInfo, cmd, feature,
};
use beamline_abi::virtio_pci::{DEVICE_ID_BASE, VENDOR_ID, ring};
use beamline_abi::{FrameId, JobIndex};
use core::mem::offset_of;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Requests that may be in flight.
pub const SLOTS: usize = 16;
/// Bytes of a submission that one slot holds, with its header.
pub const SUBMIT_BYTES: usize = REQUEST_BYTES - size_of::<CtrlHeader>() - size_of::<CmdSubmit>();
/// Bytes of a slot's request buffer.
const REQUEST_BYTES: usize = 16 * 1024;
/// Bytes of a slot's response buffer.
const RESPONSE_BYTES: usize = 128;
/// Descriptors: a request and a response for every slot.
const QUEUE_SIZE: u16 = 2 * SLOTS as u16;
/// The one context.
const CONTEXT: u32 = 1;
/// A device with more capsets than this is not searched further.
const MAX_CAPSETS: u32 = 64;
/// The control queue's MSI-X vector.
const CONTROL_VECTOR: u16 = 0;

/// Why the vGPU cannot be used, or a request did not work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GpuError {
    /// The PCI function cannot be used.
    #[error("the vGPU's PCI function cannot be used")]
    Pci(#[from] PciError),
    /// The virtio device cannot be used.
    #[error("the vGPU's virtio device cannot be used")]
    Virtio(#[from] VirtioError),
    /// No memory for the queue.
    #[error("the vGPU's queue does not fit the DMA arena")]
    Arena(#[from] ArenaFull),
    /// The device broke the queue.
    #[error("the vGPU's control queue is broken")]
    Queue(#[from] QueueBroken),
    /// The device gave back a chain that is not in flight, or an answer that is too short.
    #[error("the vGPU gave back chain {id} with {len} bytes, which is not an answer to anything")]
    Used {
        /// The chain's first descriptor.
        id: u32,
        /// Bytes written.
        len: u32,
    },
    /// The vGPU has no frame context.
    #[error(
        "the vGPU offers no capset {CAPSET_ID:#x} of version {VERSION}: it is not a `render` slice"
    )]
    NoFrameContext,
    /// The vGPU answered a request with an error.
    #[error("the vGPU answered request {request:#x} with {response:#x}")]
    Refused {
        /// See [`cmd`].
        request: u32,
        /// See [`cmd`].
        response: u32,
    },
    /// Every slot is in flight.
    #[error("all {SLOTS} request slots are in flight: poll for completions first")]
    Full,
    /// A submission is too long.
    #[error("a submission of {bytes} bytes is longer than the {limit} that the vGPU takes")]
    TooLong {
        /// Its bytes.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The platform ended the wait.
    #[error("the platform stopped the guest while it waited for the vGPU")]
    Stopped,
}

/// Names one submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FenceId(pub u64);

/// A request that the host is done with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Completion {
    /// The submission.
    pub fence: FenceId,
    /// Its frame; [`FrameId::NONE`] for setup.
    pub frame: FrameId,
    /// Its job.
    pub job: JobIndex,
    /// What the host answered, see [`cmd`].
    pub response: u32,
}

impl Completion {
    /// Whether the work was done.
    pub const fn is_ok(&self) -> bool {
        self.response == cmd::RESP_OK_NODATA
    }
}

/// What a slot's request is.
#[derive(Clone, Copy, Debug)]
struct Request {
    fence: FenceId,
    frame: FrameId,
    job: JobIndex,
}

/// A vGPU with a frame context.
#[derive(Debug)]
pub struct Gpu {
    virtio: VirtioPci,
    queue: SplitQueue,
    notify: Gpa,
    requests: Gpa,
    responses: Gpa,
    slots: [Option<Request>; SLOTS],
    next_fence: u64,
    capset: FrameCapset,
}

impl Gpu {
    /// Finds the first virtio-gpu at or behind slot `from`, starts it and makes a frame context. Waits for
    /// the host's answers.
    pub fn attach<T: Transport>(
        t: &mut T,
        arena: &mut Arena,
        from: Slot,
        target: MsiTarget,
    ) -> Result<Self, GpuError> {
        let function = pci::find(t, VENDOR_ID, DEVICE_ID_BASE + DEVICE_TYPE, from)?;
        function.enable(t);
        let virtio = VirtioPci::attach(t, &function, size_of::<Config>() as u32)?;
        virtio.negotiate(t, feature::VIRGL | feature::CONTEXT_INIT)?;
        function.enable_msix(t, &[target])?;
        let queue = SplitQueue::new(t, arena, QUEUE_SIZE)?;
        let requests = arena.alloc(t, (SLOTS * REQUEST_BYTES) as u64, 4096)?;
        let responses = arena.alloc(t, (SLOTS * RESPONSE_BYTES) as u64, 64)?;
        let notify = virtio.enable_queue(t, CONTROL_QUEUE, &queue, CONTROL_VECTOR)?;
        virtio.start(t);
        let mut gpu = Self {
            virtio,
            queue,
            notify,
            requests,
            responses,
            slots: [None; SLOTS],
            next_fence: 1,
            capset: FrameCapset::default(),
        };
        gpu.capset = gpu.find_capset(t)?;
        gpu.create_context(t)?;
        Ok(gpu)
    }

    /// The limits of this host, and the slice that the vGPU belongs to.
    pub const fn capset(&self) -> &FrameCapset {
        &self.capset
    }

    /// How many more submissions fit.
    pub fn free_slots(&self) -> usize {
        self.slots.iter().filter(|slot| slot.is_none()).count()
    }

    /// The virtio device status. An exit: not for every frame.
    pub fn status<T: Transport>(&self, t: &mut T) -> u8 {
        self.virtio.status(t)
    }

    /// Puts a submission into the queue. The device need not look before [`Gpu::kick`].
    ///
    /// A job leaves a marker at the last moment before the device can see it.
    pub fn submit<T: Transport>(
        &mut self,
        t: &mut T,
        markers: &mut MarkerRing,
        submission: &Submission<'_>,
    ) -> Result<FenceId, GpuError> {
        let bytes = submission.bytes;
        let limit = SUBMIT_BYTES.min(self.capset.max_submit_bytes as usize);
        if bytes.len() > limit {
            return Err(GpuError::TooLong { bytes: bytes.len(), limit });
        }
        let slot = self.free_slot()?;
        let fence = FenceId(self.next_fence);
        self.next_fence += 1;
        let header = CtrlHeader {
            type_: cmd::SUBMIT_3D,
            flags: FLAG_FENCE,
            fence_id: fence.0,
            ctx_id: CONTEXT,
            ..CtrlHeader::default()
        };
        let body = CmdSubmit { size: bytes.len() as u32, padding: 0 };
        self.fill(t, slot, &[header.as_bytes(), body.as_bytes(), bytes]);
        self.slots[slot] = Some(Request { fence, frame: submission.frame, job: submission.job });
        if submission.kind == SubmitKind::Job {
            markers.submit(t, submission.frame, submission.job);
        }
        self.queue.publish(t, 2 * slot as u16);
        Ok(fence)
    }

    /// Rings the doorbell: the device looks at all that was submitted.
    pub fn kick<T: Transport>(&self, t: &mut T) {
        self.queue.kick(t, self.notify, CONTROL_QUEUE);
    }

    /// Takes the next submission that the host is done with.
    pub fn poll<T: Transport>(&mut self, t: &mut T) -> Result<Option<Completion>, GpuError> {
        let Some((slot, request, _)) = self.take(t)? else { return Ok(None) };
        let mut bytes = [0; size_of::<CtrlHeader>()];
        t.read(self.response(slot), &mut bytes);
        let header = CtrlHeader::read_from_bytes(&bytes).unwrap_or_default();
        let Request { fence, frame, job } = request;
        // An answer that names another fence is no answer to this request, whatever it says.
        let signalled = header.flags & FLAG_FENCE != 0 && header.fence_id == fence.0;
        let ok = header.type_ == cmd::RESP_OK_NODATA;
        let response = if ok && !signalled { cmd::RESP_ERR_UNSPEC } else { header.type_ };
        Ok(Some(Completion { fence, frame, job, response }))
    }

    /// Sends a setup submission and waits until its resources are ready. Nothing else may be in flight.
    pub fn setup<T: Transport>(
        &mut self,
        t: &mut T,
        markers: &mut MarkerRing,
        submission: &Submission<'_>,
    ) -> Result<(), GpuError> {
        self.submit(t, markers, submission)?;
        self.kick(t);
        let done = loop {
            if let Some(done) = self.poll(t)? {
                break done;
            }
            if t.wait() == Wake::Stop {
                return Err(GpuError::Stopped);
            }
        };
        let response = done.response;
        if done.is_ok() {
            Ok(())
        } else {
            Err(GpuError::Refused { request: cmd::SUBMIT_3D, response })
        }
    }

    fn find_capset<T: Transport>(&mut self, t: &mut T) -> Result<FrameCapset, GpuError> {
        let count = self.virtio.device_config(t, offset_of!(Config, num_capsets) as u32);
        for capset_index in 0..count.min(MAX_CAPSETS) {
            let ask = GetCapsetInfo { capset_index, padding: 0 };
            let info: CapsetInfo =
                self.call(t, cmd::GET_CAPSET_INFO, 0, &ask, cmd::RESP_OK_CAPSET_INFO)?;
            let version = u32::from(VERSION);
            let fits = info.capset_max_size as usize <= RESPONSE_BYTES - size_of::<CtrlHeader>();
            if info.capset_id != CAPSET_ID || info.capset_max_version < version || !fits {
                continue;
            }
            let ask = GetCapset { capset_id: CAPSET_ID, capset_version: version };
            let capset: FrameCapset =
                self.call(t, cmd::GET_CAPSET, 0, &ask, cmd::RESP_OK_CAPSET)?;
            if capset.version >= version {
                return Ok(capset);
            }
        }
        Err(GpuError::NoFrameContext)
    }

    fn create_context<T: Transport>(&mut self, t: &mut T) -> Result<(), GpuError> {
        let name = b"beamline";
        let mut debug_name = [0; 64];
        debug_name[..name.len()].copy_from_slice(name);
        let body = CtxCreate { nlen: name.len() as u32, context_init: CAPSET_ID, debug_name };
        self.call::<T, [u8; 0]>(t, cmd::CTX_CREATE, CONTEXT, &body, cmd::RESP_OK_NODATA)?;
        Ok(())
    }

    /// Sends a request without a fence and waits for the answer's body. Nothing else may be in flight.
    fn call<T: Transport, R: FromBytes + IntoBytes>(
        &mut self,
        t: &mut T,
        request: u32,
        ctx_id: u32,
        body: &(impl IntoBytes + Immutable),
        expect: u32,
    ) -> Result<R, GpuError> {
        let slot = self.free_slot()?;
        let header = CtrlHeader { type_: request, ctx_id, ..CtrlHeader::default() };
        self.fill(t, slot, &[header.as_bytes(), body.as_bytes()]);
        let (fence, frame, job) = (FenceId(0), FrameId::NONE, JobIndex(0));
        self.slots[slot] = Some(Request { fence, frame, job });
        self.queue.publish(t, 2 * slot as u16);
        self.kick(t);
        let (slot, len) = loop {
            if let Some((slot, _, len)) = self.take(t)? {
                break (slot, len as usize);
            }
            if t.wait() == Wake::Stop {
                return Err(GpuError::Stopped);
            }
        };
        let mut head = [0; size_of::<CtrlHeader>()];
        t.read(self.response(slot), &mut head);
        let response = CtrlHeader::read_from_bytes(&head).unwrap_or_default().type_;
        if response != expect || len < head.len() + size_of::<R>() {
            return Err(GpuError::Refused { request, response });
        }
        let mut answer = R::new_zeroed();
        t.read(self.response(slot).at(head.len() as u64), answer.as_mut_bytes());
        Ok(answer)
    }

    fn free_slot(&self) -> Result<usize, GpuError> {
        self.slots.iter().position(Option::is_none).ok_or(GpuError::Full)
    }

    /// Writes a slot's request and describes its chain.
    fn fill<T: Transport>(&self, t: &mut T, slot: usize, parts: &[&[u8]]) {
        let request = self.requests.at((slot * REQUEST_BYTES) as u64);
        let mut len = 0;
        for part in parts {
            t.write(request.at(len), part);
            len += part.len() as u64;
        }
        let (first, second) = (2 * slot as u16, 2 * slot as u16 + 1);
        let (addr, len) = (request.0, len as u32);
        let chained = Descriptor { addr, len, flags: ring::DESC_NEXT, next: second };
        self.queue.describe(t, first, chained);
        let (addr, len) = (self.response(slot).0, RESPONSE_BYTES as u32);
        // A stale answer must not be taken for a new one.
        t.write(self.response(slot), &[0; size_of::<CtrlHeader>()]);
        let answer = Descriptor { addr, len, flags: ring::DESC_WRITE, next: 0 };
        self.queue.describe(t, second, answer);
    }

    fn response(&self, slot: usize) -> Gpa {
        self.responses.at((slot * RESPONSE_BYTES) as u64)
    }

    /// Takes the next used chain: its slot, its request and the bytes that the device wrote.
    fn take<T: Transport>(&mut self, t: &mut T) -> Result<Option<(usize, Request, u32)>, GpuError> {
        let Some(Used { id, len }) = self.queue.take(t)? else { return Ok(None) };
        let slot = id as usize / 2;
        let fits = size_of::<CtrlHeader>()..=RESPONSE_BYTES;
        let valid = id.is_multiple_of(2) && fits.contains(&(len as usize));
        let request = self.slots.get_mut(slot).filter(|_| valid).and_then(Option::take);
        request.map(|request| Some((slot, request, len))).ok_or(GpuError::Used { id, len })
    }
}
