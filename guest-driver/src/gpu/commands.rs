//! Stage 1, guest submits: the frame context's command stream, written into a buffer of the caller's.

use beamline_abi::frame::{
    Binding, CommandHeader, CreateBuffer, CreateImage, CreatePipeline, Destroy, Dispatch, Latch,
    MAGIC, MAX_BINDINGS, MAX_COMMANDS, Op, Present, SubmitHeader, SubmitKind, VERSION, WriteBuffer,
    pad8,
};
use beamline_abi::{FrameId, JobIndex};
use zerocopy::{Immutable, IntoBytes};

/// Bytes in front of the first command.
const HEADER: usize = size_of::<SubmitHeader>();

/// Why a command stream cannot be sent. The first mistake is kept; what follows it is ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// The buffer is too small.
    #[error("command {command} does not fit: the buffer has {room} bytes; split the submission")]
    NoRoom {
        /// Number of the command in the stream.
        command: u32,
        /// Size of the buffer.
        room: usize,
    },
    /// Too many commands or bindings.
    #[error(
        "command {command}: a submission has at most {MAX_COMMANDS} commands of {MAX_BINDINGS} bindings"
    )]
    TooMany {
        /// Number of the command in the stream.
        command: u32,
    },
}

/// A finished command stream.
#[derive(Clone, Copy, Debug)]
pub struct Submission<'a> {
    /// The job's frame; [`FrameId::NONE`] for setup.
    pub frame: FrameId,
    /// The job's place in the frame.
    pub job: JobIndex,
    /// Setup or job.
    pub kind: SubmitKind,
    /// Header and commands.
    pub bytes: &'a [u8],
}

/// The place of a job in its frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobPlace {
    /// The frame.
    pub frame: FrameId,
    /// The job, from 0.
    pub job: JobIndex,
    /// How many jobs the frame has.
    pub jobs: u16,
    /// See [`beamline_abi::frame::submit_flag`].
    pub flags: u32,
}

/// Builds one submission.
#[derive(Debug)]
pub struct Commands<'a> {
    buffer: &'a mut [u8],
    len: usize,
    count: u32,
    error: Option<CommandError>,
}

impl<'a> Commands<'a> {
    /// An empty stream in `buffer`.
    pub fn new(buffer: &'a mut [u8]) -> Self {
        Self { buffer, len: HEADER, count: 0, error: None }
    }

    /// [`Op::CreateBuffer`]. `size` in bytes is rounded up to a multiple of 16.
    pub fn create_buffer(&mut self, id: u32, size: u64) {
        let size = size.next_multiple_of(16);
        self.push(Op::CreateBuffer, &CreateBuffer { id, reserved: 0, size }, &[]);
    }

    /// [`Op::CreateImage`], in pixels.
    pub fn create_image(&mut self, id: u32, width: u32, height: u32) {
        self.push(Op::CreateImage, &CreateImage { id, format: 0, width, height }, &[]);
    }

    /// [`Op::CreatePipeline`] from WGSL.
    pub fn create_pipeline(&mut self, id: u32, entry: &str, wgsl: &str) {
        let (entry_len, wgsl_len) = (entry.len() as u32, wgsl.len() as u32);
        let body = CreatePipeline { id, entry_len, wgsl_len, reserved: 0 };
        self.push(Op::CreatePipeline, &body, &[entry.as_bytes(), wgsl.as_bytes()]);
    }

    /// [`Op::Destroy`].
    pub fn destroy(&mut self, id: u32) {
        self.push(Op::Destroy, &Destroy { id, reserved: 0 }, &[]);
    }

    /// [`Op::WriteBuffer`]. `offset` and the length in bytes are multiples of 4.
    pub fn write_buffer(&mut self, id: u32, offset: u64, bytes: &[u8]) {
        self.push(Op::WriteBuffer, &WriteBuffer { id, len: bytes.len() as u32, offset }, &[bytes]);
    }

    /// [`Op::Latch`]: `len` bytes at guest address `addr` go to the start of a buffer when the job starts.
    pub fn latch(&mut self, id: u32, addr: u64, len: u32) {
        self.push(Op::Latch, &Latch { id, len, offset: 0, addr }, &[]);
    }

    /// [`Op::Dispatch`]: `ids[i]` is bound to slot `i`.
    pub fn dispatch(&mut self, pipeline: u32, groups: [u32; 3], ids: &[u32]) {
        let mut bindings = [Binding::default(); MAX_BINDINGS];
        let Some(used) = bindings.get_mut(..ids.len()) else {
            self.fail(CommandError::TooMany { command: self.count });
            return;
        };
        for (slot, (binding, &id)) in used.iter_mut().zip(ids).enumerate() {
            *binding = Binding { slot: slot as u32, id };
        }
        let body = Dispatch { pipeline, groups, bindings: ids.len() as u32, reserved: 0 };
        self.push(Op::Dispatch, &body, &[used.as_bytes()]);
    }

    /// [`Op::Present`] on scanout 0.
    pub fn present(&mut self, image: u32) {
        self.push(Op::Present, &Present { image, scanout: 0 }, &[]);
    }

    /// Ends a stream that makes or destroys resources.
    pub fn finish_setup(self) -> Result<Submission<'a>, CommandError> {
        let place = JobPlace { frame: FrameId::NONE, job: JobIndex(0), jobs: 0, flags: 0 };
        self.finish(SubmitKind::Setup, place)
    }

    /// Ends a stream that is one GPU job.
    pub fn finish_job(self, place: JobPlace) -> Result<Submission<'a>, CommandError> {
        self.finish(SubmitKind::Job, place)
    }

    fn finish(self, kind: SubmitKind, place: JobPlace) -> Result<Submission<'a>, CommandError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let header = SubmitHeader {
            magic: MAGIC,
            version: VERSION,
            kind: kind as u16,
            frame: place.frame,
            job: place.job,
            jobs: place.jobs,
            flags: place.flags,
            commands: self.count,
            bytes: (self.len - HEADER) as u32,
        };
        let room = self.buffer.len();
        let no_room = CommandError::NoRoom { command: self.count, room };
        let bytes: &'a mut [u8] = self.buffer.get_mut(..self.len).ok_or(no_room)?;
        bytes[..HEADER].copy_from_slice(header.as_bytes());
        Ok(Submission { frame: place.frame, job: place.job, kind, bytes })
    }

    /// Appends a command: header, body, tail and padding.
    fn push(&mut self, op: Op, body: &(impl IntoBytes + Immutable), tail: &[&[u8]]) {
        if self.error.is_some() {
            return;
        }
        if self.count as usize == MAX_COMMANDS {
            return self.fail(CommandError::TooMany { command: self.count });
        }
        let body = body.as_bytes();
        let tail_len: usize = tail.iter().map(|part| part.len()).sum();
        let len = pad8(size_of::<CommandHeader>() + body.len() + tail_len);
        let room = self.buffer.len();
        let Some(command) = self.buffer.get_mut(self.len..).and_then(|rest| rest.get_mut(..len))
        else {
            return self.fail(CommandError::NoRoom { command: self.count, room });
        };
        let header = CommandHeader { op: op as u32, len: len as u32 };
        let parts = [header.as_bytes(), body];
        let mut at = 0;
        for part in parts.iter().chain(tail) {
            command[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        command[at..].fill(0);
        self.len += len;
        self.count += 1;
    }

    fn fail(&mut self, error: CommandError) {
        self.error.get_or_insert(error);
    }
}
