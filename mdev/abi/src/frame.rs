//! The *frame* context: a small command set that the host can check completely before it runs any of it.
//!
//! A guest makes a virtio-gpu context with capset [`CAPSET_ID`], then sends `SUBMIT_3D` requests whose
//! payload is one [`SubmitHeader`] and `commands` commands, each a [`CommandHeader`] with a body. Every
//! command starts on a multiple of 8 bytes and its `len` counts header, body and padding.
//!
//! A [`SubmitKind::Setup`] submission makes and destroys resources; its fence signals when they are ready.
//! A [`SubmitKind::Job`] submission is one GPU job of a frame: it waits for its grant, and its fence
//! signals when the GPU is done. Shaders are WGSL: the host's translation bounds every access.
//!
//! Resource IDs are chosen by the guest, above 0, below [`FrameCapset::max_resources`], and one name space
//! within a context.

use crate::{FrameId, JobIndex, assert_size};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Capset ID of the frame context, outside those that virtio 1.3 and Linux assign.
pub const CAPSET_ID: u32 = 0x3f;
/// Version of the command set.
pub const VERSION: u16 = 1;
/// What [`SubmitHeader::magic`] holds: "BLFR".
pub const MAGIC: u32 = u32::from_le_bytes(*b"BLFR");

/// Longest payload of one `SUBMIT_3D`, in bytes.
pub const MAX_SUBMIT_BYTES: usize = 128 * 1024;
/// Most commands in one submission.
pub const MAX_COMMANDS: usize = 256;
/// Most jobs in one frame.
pub const MAX_JOBS_PER_FRAME: usize = 16;
/// Longest WGSL source, in bytes.
pub const MAX_WGSL_BYTES: usize = 64 * 1024;
/// Longest entry point name, in bytes.
pub const MAX_ENTRY_BYTES: usize = 64;
/// Most bindings of one dispatch.
pub const MAX_BINDINGS: usize = 8;
/// Binding slots of a pipeline: `@binding(0)` to one below.
pub const MAX_BINDING_SLOTS: u32 = 32;
/// Most [`Latch`] commands in one job.
pub const MAX_LATCHES: usize = 4;
/// Frames of one slice that may be unfinished at once.
pub const MAX_FRAMES: usize = 8;
/// Most bytes that one late-latch read copies.
pub const MAX_LATCH_BYTES: usize = 256;
/// Largest width and height of an image, in pixels.
pub const MAX_IMAGE_SIDE: u32 = 4096;

/// The capset that `GET_CAPSET` answers: the limits of this host.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct FrameCapset {
    /// [`VERSION`].
    pub version: u32,
    /// Resource IDs are below this.
    pub max_resources: u32,
    /// GPU memory of the slice in bytes.
    pub memory: u64,
    /// Jobs that may be queued at once.
    pub max_queued_jobs: u32,
    /// The longest payload, at most [`MAX_SUBMIT_BYTES`].
    pub max_submit_bytes: u32,
    /// The slice ID, the same as in the pacer.
    pub slice_id: [u8; 16],
    /// The slice's generation, the same as in the pacer.
    pub generation: u32,
    /// Zero.
    pub reserved: u32,
}
assert_size!(FrameCapset, 48);

/// The head of every submission.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct SubmitHeader {
    /// [`MAGIC`].
    pub magic: u32,
    /// [`VERSION`].
    pub version: u16,
    /// See [`SubmitKind`].
    pub kind: u16,
    /// The frame, background work's too; [`FrameId::NONE`] for setup.
    pub frame: FrameId,
    /// This job's place in the frame; 0 for setup.
    pub job: JobIndex,
    /// How many jobs the frame has; 0 for setup.
    pub jobs: u16,
    /// See [`submit_flag`].
    pub flags: u32,
    /// How many commands follow.
    pub commands: u32,
    /// Bytes of all commands, without this header.
    pub bytes: u32,
}
assert_size!(SubmitHeader, 32);

/// Bits of [`SubmitHeader::flags`].
pub mod submit_flag {
    /// The job is the frame's late latch: it is held until the contract's window before the frame's vblank.
    pub const LATE_LATCH: u32 = 1 << 0;
    /// Every bit that is known.
    pub const ALL: u32 = LATE_LATCH;
}

/// What a submission is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum SubmitKind {
    /// Makes and destroys resources.
    Setup = 1,
    /// One GPU job.
    Job = 2,
}

impl SubmitKind {
    /// The kind with this number, if there is one.
    pub const fn from_raw(raw: u16) -> Option<Self> {
        match raw {
            1 => Some(Self::Setup),
            2 => Some(Self::Job),
            _ => None,
        }
    }
}

/// The head of every command.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct CommandHeader {
    /// See [`Op`].
    pub op: u32,
    /// Bytes of the command with this header and its padding: a multiple of 8.
    pub len: u32,
}
assert_size!(CommandHeader, 8);

/// What a command does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Op {
    /// Setup. [`CreateBuffer`].
    CreateBuffer = 1,
    /// Setup. [`CreateImage`].
    CreateImage = 2,
    /// Setup. [`CreatePipeline`], the entry point's name, the WGSL source.
    CreatePipeline = 3,
    /// Setup. [`Destroy`].
    Destroy = 4,
    /// Job. [`WriteBuffer`] and the bytes.
    WriteBuffer = 16,
    /// Job. [`Latch`].
    Latch = 17,
    /// Job. [`Dispatch`] and its [`Binding`]s.
    Dispatch = 18,
    /// Job. [`Present`].
    Present = 19,
}

impl Op {
    /// The operation with this number, if there is one.
    pub const fn from_raw(raw: u32) -> Option<Self> {
        Some(match raw {
            1 => Self::CreateBuffer,
            2 => Self::CreateImage,
            3 => Self::CreatePipeline,
            4 => Self::Destroy,
            16 => Self::WriteBuffer,
            17 => Self::Latch,
            18 => Self::Dispatch,
            19 => Self::Present,
            _ => return None,
        })
    }
}

/// A zero-filled buffer, usable as uniform and as storage.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct CreateBuffer {
    /// The new resource.
    pub id: u32,
    /// Zero.
    pub reserved: u32,
    /// Bytes: above 0, a multiple of 16.
    pub size: u64,
}
assert_size!(CreateBuffer, 16);

/// A transparent black image, `rgba8unorm`, usable as a write-only storage texture and for presenting.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct CreateImage {
    /// The new resource.
    pub id: u32,
    /// Zero: `rgba8unorm`.
    pub format: u32,
    /// Pixels, 1 to [`MAX_IMAGE_SIDE`].
    pub width: u32,
    /// Pixels, 1 to [`MAX_IMAGE_SIDE`].
    pub height: u32,
}
assert_size!(CreateImage, 16);

/// A compute pipeline. The entry point's name and then the source follow, as UTF-8, without padding
/// between them. Bind group 0 is laid out as the shader declares it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct CreatePipeline {
    /// The new resource.
    pub id: u32,
    /// Bytes of the entry point's name, 1 to [`MAX_ENTRY_BYTES`].
    pub entry_len: u32,
    /// Bytes of the source, 1 to [`MAX_WGSL_BYTES`].
    pub wgsl_len: u32,
    /// Zero.
    pub reserved: u32,
}
assert_size!(CreatePipeline, 16);

/// Destroys a resource at once: a job that names it and has not been granted yet fails with
/// [`crate::Reason::BadId`]. Wait for a resource's last fence before you destroy it. A pipeline whose shader
/// was refused keeps its ID until it is destroyed.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Destroy {
    /// The resource.
    pub id: u32,
    /// Zero.
    pub reserved: u32,
}
assert_size!(Destroy, 8);

/// Writes the bytes that follow into a buffer before this job's dispatches.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct WriteBuffer {
    /// The buffer.
    pub id: u32,
    /// Bytes: above 0, a multiple of 4.
    pub len: u32,
    /// Where in the buffer: a multiple of 4.
    pub offset: u64,
}
assert_size!(WriteBuffer, 16);

/// Copies guest memory into a buffer at the moment the job starts: how a late-latch job gets the newest
/// pose. The host reads the memory once, when the job is granted.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Latch {
    /// The buffer.
    pub id: u32,
    /// Bytes: above 0, a multiple of 4, at most [`MAX_LATCH_BYTES`].
    pub len: u32,
    /// Where in the buffer: a multiple of 4.
    pub offset: u64,
    /// Guest physical address of the bytes.
    pub addr: u64,
}
assert_size!(Latch, 24);

/// Runs a pipeline. `bindings` of [`Binding`] follow.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Dispatch {
    /// The pipeline.
    pub pipeline: u32,
    /// Workgroups in x, y and z: each 1 to 65,535.
    pub groups: [u32; 3],
    /// How many bindings follow, at most [`MAX_BINDINGS`].
    pub bindings: u32,
    /// Zero.
    pub reserved: u32,
}
assert_size!(Dispatch, 24);

/// Binds a whole buffer or image to `@group(0) @binding(slot)`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Binding {
    /// The binding's number in the shader.
    pub slot: u32,
    /// The buffer or image.
    pub id: u32,
}
assert_size!(Binding, 8);

/// Shows an image at the next vblank after the frame's last job is done. At most one per job.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Present {
    /// The image.
    pub image: u32,
    /// The scanout: 0.
    pub scanout: u32,
}
assert_size!(Present, 8);

/// `len` rounded up to a whole number of 8-byte words.
pub const fn pad8(len: usize) -> usize {
    len.div_ceil(8) * 8
}
