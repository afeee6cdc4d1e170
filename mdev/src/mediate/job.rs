//! Stage 3, mediation: from device/virtio to mdev/sched. A submission is copied once, then checked whole.
//!
//! `Job<Raw>` is the guest's bytes in the host's own memory. [`Job::validate`] turns it into
//! `Job<Validated>` or says what is wrong and where; only that can become a [`Grant`], and a backend runs
//! nothing but a [`Grant`].

use super::resources::{Kind, ResourceError, Resources};
use crate::backend::{Latched, SliceKey};
use beamline_abi::frame::{
    Binding, CommandHeader, CreateBuffer, CreateImage, CreatePipeline, Destroy, Dispatch, Latch,
    MAGIC, MAX_BINDING_SLOTS, MAX_BINDINGS, MAX_COMMANDS, MAX_ENTRY_BYTES, MAX_IMAGE_SIDE,
    MAX_JOBS_PER_FRAME, MAX_LATCH_BYTES, MAX_LATCHES, MAX_SUBMIT_BYTES, MAX_WGSL_BYTES, Op,
    Present, SubmitHeader, SubmitKind, VERSION, WriteBuffer, submit_flag,
};
use beamline_abi::{FrameId, Reason};
use beamline_sched::Ticket;
use zerocopy::FromBytes;

/// Bytes that nobody has looked at.
#[derive(Debug)]
pub struct Raw;

/// A submission that has been checked against the slice's resources.
#[derive(Clone, Copy, Debug)]
pub struct Validated {
    /// The checked header.
    pub header: SubmitHeader,
    /// Setup or job.
    pub kind: SubmitKind,
    /// Guest memory to be read when the job is granted.
    pub latches: [Option<LatchRead>; MAX_LATCHES],
    /// The job shows an image.
    pub presents: bool,
}

/// A read of guest memory at grant time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatchRead {
    /// Which command of the submission.
    pub command: u16,
    /// Guest physical address. Whether it is mapped is known only when it is read.
    pub addr: u64,
    /// Bytes, at most [`MAX_LATCH_BYTES`].
    pub len: u16,
}

/// A submission, and how far it has come.
#[derive(Debug)]
pub struct Job<S> {
    bytes: Vec<u8>,
    state: S,
}

/// Why a submission is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason:?} at byte {at} of the submission: {what}")]
pub struct Rejected {
    /// The code that the guest is told.
    pub reason: Reason,
    /// Where.
    pub at: u32,
    /// What is wrong, and what would be right.
    pub what: &'static str,
}

impl Job<Raw> {
    /// Takes the copied payload of a `SUBMIT_3D`.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, state: Raw }
    }

    /// Checks the whole submission. On success the setup's resources are entered in `resources`, for the
    /// caller to commit or roll back; on failure `resources` is as before, and the bytes come back.
    pub fn validate(
        self,
        resources: &mut Resources,
    ) -> Result<Job<Validated>, (Rejected, Vec<u8>)> {
        resources.begin();
        match Checker::new(&self.bytes, resources).run() {
            Ok(state) => Ok(Job { bytes: self.bytes, state }),
            Err(rejected) => {
                resources.roll_back();
                Err((rejected, self.bytes))
            }
        }
    }
}

impl Job<Validated> {
    /// The checked bytes: header and commands.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
    /// What the check found.
    pub fn meta(&self) -> &Validated {
        &self.state
    }
    /// Gives the buffer back for the next submission.
    pub fn into_buffer(self) -> Vec<u8> {
        self.bytes
    }
}

/// The scheduler's permission to run one job, with what it needs. Made only by the dispatcher, from a
/// policy's decision about a validated job.
#[derive(Clone, Copy, Debug)]
pub struct Grant<'a> {
    slice: SliceKey,
    ticket: Ticket,
    bytes: &'a [u8],
    latched: &'a [Latched],
}

impl<'a> Grant<'a> {
    pub(super) fn new(
        slice: SliceKey,
        ticket: Ticket,
        job: &'a Job<Validated>,
        latched: &'a [Latched],
    ) -> Self {
        Self { slice, ticket, bytes: job.bytes(), latched }
    }
    /// Bytes that nobody has checked, to test what a backend makes of them.
    #[cfg(test)]
    pub(crate) fn unchecked(
        slice: SliceKey,
        ticket: Ticket,
        bytes: &'a [u8],
        latched: &'a [Latched],
    ) -> Self {
        Self { slice, ticket, bytes, latched }
    }
    /// Whose job it is.
    pub fn slice(&self) -> SliceKey {
        self.slice
    }
    /// The job's name until it is done.
    pub fn ticket(&self) -> Ticket {
        self.ticket
    }
    /// The validated stream: header and commands.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
    /// What was read from guest memory for its latch commands.
    pub fn latched(&self) -> &'a [Latched] {
        self.latched
    }
}

/// Walks a submission once.
struct Checker<'a> {
    bytes: &'a [u8],
    at: usize,
    resources: &'a mut Resources,
    latches: [Option<LatchRead>; MAX_LATCHES],
    presents: bool,
}

type Check<T> = Result<T, Rejected>;

impl<'a> Checker<'a> {
    fn new(bytes: &'a [u8], resources: &'a mut Resources) -> Self {
        Self { bytes, at: 0, resources, latches: [None; MAX_LATCHES], presents: false }
    }

    fn fail<T>(&self, reason: Reason, what: &'static str) -> Check<T> {
        Err(Rejected { reason, at: self.at as u32, what })
    }

    fn malformed<T>(&self, what: &'static str) -> Check<T> {
        self.fail(Reason::Malformed, what)
    }

    /// The fixed part of a body and what follows it.
    fn body<T: FromBytes>(&self, body: &'a [u8]) -> Check<(T, &'a [u8])> {
        T::read_from_prefix(body)
            .or_else(|_| self.malformed("the command is shorter than its fixed part"))
    }

    /// A later version may give a reserved field a meaning: today's drivers may not use it for theirs.
    fn reserved(&self, field: u32) -> Check<()> {
        if field == 0 { Ok(()) } else { self.malformed("a reserved field is not 0") }
    }

    fn run(mut self) -> Check<Validated> {
        let (header, kind) = self.header()?;
        self.at = size_of::<SubmitHeader>();
        for command in 0..header.commands {
            let rest = &self.bytes[self.at..];
            let Ok((head, after)) = CommandHeader::read_from_prefix(rest) else {
                return self
                    .malformed("the stream ends before the commands that its header counts");
            };
            let len = head.len as usize;
            if !(8..=rest.len()).contains(&len) || !len.is_multiple_of(8) {
                return self.malformed(
                    "a command's length must be a multiple of 8, from 8 to what is left",
                );
            }
            // `after` starts 8 bytes into `rest`, and 8 <= len <= rest.len().
            self.command(kind, command as u16, head.op, &after[..len - 8])?;
            self.at += len;
        }
        if self.at != self.bytes.len() {
            return self.malformed("bytes follow the last command");
        }
        Ok(Validated { header, kind, latches: self.latches, presents: self.presents })
    }

    fn header(&self) -> Check<(SubmitHeader, SubmitKind)> {
        if self.bytes.len() > MAX_SUBMIT_BYTES {
            return self.malformed("the submission is longer than MAX_SUBMIT_BYTES");
        }
        let (h, _) = self.body::<SubmitHeader>(self.bytes)?;
        if h.magic != MAGIC {
            return self.malformed("the magic is not BLFR");
        }
        if h.version != VERSION {
            return self.fail(Reason::Unsupported, "the version is not 1");
        }
        let Some(kind) = SubmitKind::from_raw(h.kind) else {
            return self.fail(Reason::Unsupported, "the kind is neither setup nor job");
        };
        if h.commands == 0 || h.commands as usize > MAX_COMMANDS {
            return self.malformed("a submission has 1 to MAX_COMMANDS commands");
        }
        if h.bytes as usize != self.bytes.len() - size_of::<SubmitHeader>() {
            return self.malformed("`bytes` is not what follows the header");
        }
        if h.flags & !submit_flag::ALL != 0 {
            return self.fail(Reason::Unsupported, "a flag is not known");
        }
        match kind {
            SubmitKind::Setup
                if h.frame != FrameId::NONE || h.job.0 != 0 || h.jobs != 0 || h.flags != 0 =>
            {
                self.malformed("a setup submission has no frame, job or flags")
            }
            SubmitKind::Job if h.frame == FrameId::NONE => {
                self.malformed("a job belongs to a frame above 0")
            }
            SubmitKind::Job if h.jobs as usize > MAX_JOBS_PER_FRAME || h.job.0 >= h.jobs => self
                .malformed(
                    "a job's index is below the frame's jobs, which are at most MAX_JOBS_PER_FRAME",
                ),
            _ => Ok((h, kind)),
        }
    }

    fn command(&mut self, kind: SubmitKind, number: u16, op: u32, body: &'a [u8]) -> Check<()> {
        let Some(op) = Op::from_raw(op) else {
            return self.fail(Reason::Unsupported, "the operation is not known");
        };
        let of_setup =
            matches!(op, Op::CreateBuffer | Op::CreateImage | Op::CreatePipeline | Op::Destroy);
        if of_setup != (kind == SubmitKind::Setup) {
            return self.malformed("setup makes and destroys resources; jobs use them");
        }
        match op {
            Op::CreateBuffer => self.create_buffer(body),
            Op::CreateImage => self.create_image(body),
            Op::CreatePipeline => self.create_pipeline(body),
            Op::Destroy => {
                let (c, _) = self.body::<Destroy>(body)?;
                self.reserved(c.reserved)?;
                self.resources.remove(c.id).or_else(|e| self.resource(e))
            }
            Op::WriteBuffer => self.write_buffer(body),
            Op::Latch => self.latch(number, body),
            Op::Dispatch => self.dispatch(body),
            Op::Present => self.present(body),
        }
    }

    fn resource<T>(&self, error: ResourceError) -> Check<T> {
        match error {
            ResourceError::BadId => {
                self.fail(Reason::BadId, "the ID is 0, too large, in use, or not in use")
            }
            ResourceError::Quota => self.fail(Reason::Quota, "the slice's GPU memory is used up"),
        }
    }

    fn create_buffer(&mut self, body: &'a [u8]) -> Check<()> {
        let (c, _) = self.body::<CreateBuffer>(body)?;
        self.reserved(c.reserved)?;
        if c.size == 0 || !c.size.is_multiple_of(16) {
            return self.malformed("a buffer's size is above 0 and a multiple of 16");
        }
        self.resources.insert(c.id, Kind::Buffer { size: c.size }).or_else(|e| self.resource(e))
    }

    fn create_image(&mut self, body: &'a [u8]) -> Check<()> {
        let (c, _) = self.body::<CreateImage>(body)?;
        if c.format != 0 {
            return self.fail(Reason::Unsupported, "the image format is not 0, rgba8unorm");
        }
        let sides = 1..=MAX_IMAGE_SIDE;
        if !sides.contains(&c.width) || !sides.contains(&c.height) {
            return self.malformed("an image's sides are 1 to MAX_IMAGE_SIDE pixels");
        }
        let kind = Kind::Image { width: c.width, height: c.height };
        self.resources.insert(c.id, kind).or_else(|e| self.resource(e))
    }

    fn create_pipeline(&mut self, body: &'a [u8]) -> Check<()> {
        let (c, text) = self.body::<CreatePipeline>(body)?;
        self.reserved(c.reserved)?;
        let (entry, wgsl) = (c.entry_len as usize, c.wgsl_len as usize);
        if !(1..=MAX_ENTRY_BYTES).contains(&entry) || !(1..=MAX_WGSL_BYTES).contains(&wgsl) {
            return self.malformed("the entry point or the source is empty or too long");
        }
        // Both are bounded, so the sum does not overflow.
        let Some(text) = text.get(..entry + wgsl) else {
            return self.malformed("the source is shorter than `wgsl_len`");
        };
        let (name, source) = text.split_at(entry);
        if core::str::from_utf8(name).is_err() || core::str::from_utf8(source).is_err() {
            return self.fail(Reason::Shader, "the source is not UTF-8");
        }
        self.resources.insert(c.id, Kind::Pipeline).or_else(|e| self.resource(e))
    }

    /// Bytes `offset..offset + len` of buffer `id`.
    fn buffer_range(&self, id: u32, offset: u64, len: u32) -> Check<()> {
        let Some(Kind::Buffer { size }) = self.resources.get(id) else {
            return self.fail(Reason::BadId, "the ID names no buffer");
        };
        if len == 0 || !len.is_multiple_of(4) || !offset.is_multiple_of(4) {
            return self.malformed("offset and length are multiples of 4, the length above 0");
        }
        if offset.checked_add(u64::from(len)).is_none_or(|end| end > size) {
            return self.fail(Reason::OutOfBounds, "the range leaves the buffer");
        }
        Ok(())
    }

    fn write_buffer(&mut self, body: &'a [u8]) -> Check<()> {
        let (c, data) = self.body::<WriteBuffer>(body)?;
        if data.len() < c.len as usize {
            return self.malformed("fewer bytes follow than `len` says");
        }
        self.buffer_range(c.id, c.offset, c.len)
    }

    fn latch(&mut self, command: u16, body: &'a [u8]) -> Check<()> {
        let (c, _) = self.body::<Latch>(body)?;
        if c.len as usize > MAX_LATCH_BYTES {
            return self.malformed("a latch reads at most MAX_LATCH_BYTES");
        }
        self.buffer_range(c.id, c.offset, c.len)?;
        let Some(free) = self.latches.iter().position(Option::is_none) else {
            return self.fail(Reason::Quota, "a job has at most 4 latches");
        };
        self.latches[free] = Some(LatchRead { command, addr: c.addr, len: c.len as u16 });
        Ok(())
    }

    fn dispatch(&mut self, body: &'a [u8]) -> Check<()> {
        let (c, mut rest) = self.body::<Dispatch>(body)?;
        self.reserved(c.reserved)?;
        if !matches!(self.resources.get(c.pipeline), Some(Kind::Pipeline)) {
            return self.fail(Reason::BadId, "the ID names no pipeline");
        }
        if c.groups.iter().any(|g| !(1..=65_535).contains(g)) {
            return self.malformed("each count of workgroups is 1 to 65535");
        }
        if c.bindings as usize > MAX_BINDINGS {
            return self.malformed("a dispatch has at most MAX_BINDINGS bindings");
        }
        let mut slots = 0u32;
        for _ in 0..c.bindings {
            let (b, after) = self.body::<Binding>(rest)?;
            rest = after;
            if b.slot >= MAX_BINDING_SLOTS || slots & (1 << b.slot) != 0 {
                return self.malformed("a binding's slot is below 32 and bound once");
            }
            slots |= 1 << b.slot;
            if !matches!(self.resources.get(b.id), Some(Kind::Buffer { .. } | Kind::Image { .. })) {
                return self.fail(Reason::BadId, "the ID names no buffer or image");
            }
        }
        Ok(())
    }

    fn present(&mut self, body: &'a [u8]) -> Check<()> {
        let (c, _) = self.body::<Present>(body)?;
        if !matches!(self.resources.get(c.image), Some(Kind::Image { .. })) {
            return self.fail(Reason::BadId, "the ID names no image");
        }
        if c.scanout != 0 {
            return self.fail(Reason::OutOfBounds, "the scanout is not 0");
        }
        if std::mem::replace(&mut self.presents, true) {
            return self.malformed("a job presents once");
        }
        Ok(())
    }
}
