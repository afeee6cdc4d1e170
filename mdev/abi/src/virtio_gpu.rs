//! virtio-gpu requests and responses in use: virtio 1.3, section 5.7.6.

use crate::assert_size;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// virtio device type of a GPU.
pub const DEVICE_TYPE: u16 = 16;
/// The control queue's number.
pub const CONTROL_QUEUE: u16 = 0;
/// The cursor queue's number.
pub const CURSOR_QUEUE: u16 = 1;
/// How many queues there are.
pub const QUEUES: u16 = 2;
/// Most scanouts a device may have.
pub const MAX_SCANOUTS: usize = 16;

/// Feature bits (5.7.3).
pub mod feature {
    /// 3D mode: contexts and `SUBMIT_3D`.
    pub const VIRGL: u64 = 1 << 0;
    /// EDID is answered.
    pub const EDID: u64 = 1 << 1;
    /// `CTX_CREATE` names a capset.
    pub const CONTEXT_INIT: u64 = 1 << 4;
}

/// `type` of a request or a response.
pub mod cmd {
    /// Displays and their modes.
    pub const GET_DISPLAY_INFO: u32 = 0x0100;
    /// Which capsets there are.
    pub const GET_CAPSET_INFO: u32 = 0x0108;
    /// One capset's content.
    pub const GET_CAPSET: u32 = 0x0109;
    /// EDID of a scanout.
    pub const GET_EDID: u32 = 0x010a;
    /// Makes a context.
    pub const CTX_CREATE: u32 = 0x0200;
    /// Destroys a context.
    pub const CTX_DESTROY: u32 = 0x0201;
    /// Commands for a context.
    pub const SUBMIT_3D: u32 = 0x0207;

    /// Done, no data.
    pub const RESP_OK_NODATA: u32 = 0x1100;
    /// Done, display information.
    pub const RESP_OK_DISPLAY_INFO: u32 = 0x1101;
    /// Done, capset information.
    pub const RESP_OK_CAPSET_INFO: u32 = 0x1102;
    /// Done, a capset.
    pub const RESP_OK_CAPSET: u32 = 0x1103;
    /// Done, an EDID.
    pub const RESP_OK_EDID: u32 = 0x1104;
    /// Failed, no closer reason (the pacer's reason register has it).
    pub const RESP_ERR_UNSPEC: u32 = 0x1200;
    /// Out of memory or over a quota.
    pub const RESP_ERR_OUT_OF_MEMORY: u32 = 0x1201;
    /// No such scanout.
    pub const RESP_ERR_INVALID_SCANOUT_ID: u32 = 0x1202;
    /// No such resource, or it exists already.
    pub const RESP_ERR_INVALID_RESOURCE_ID: u32 = 0x1203;
    /// No such context, or it exists already.
    pub const RESP_ERR_INVALID_CONTEXT_ID: u32 = 0x1204;
    /// A field is out of range.
    pub const RESP_ERR_INVALID_PARAMETER: u32 = 0x1205;
}

/// Bit of [`CtrlHeader::flags`]: answer only when the work is done, with the same fence ID.
pub const FLAG_FENCE: u32 = 1 << 0;
/// Bit of [`CtrlHeader::flags`]: the fence belongs to ring `ring_idx` of the context.
pub const FLAG_INFO_RING_IDX: u32 = 1 << 1;

/// `struct virtio_gpu_ctrl_hdr`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct CtrlHeader {
    /// See [`cmd`].
    pub type_: u32,
    /// See [`FLAG_FENCE`].
    pub flags: u32,
    /// The fence, where [`FLAG_FENCE`] is set.
    pub fence_id: u64,
    /// The context.
    pub ctx_id: u32,
    /// The ring, where [`FLAG_INFO_RING_IDX`] is set.
    pub ring_idx: u8,
    /// Zero.
    pub padding: [u8; 3],
}
assert_size!(CtrlHeader, 24);

/// `struct virtio_gpu_rect`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Rect {
    /// Left edge in pixels.
    pub x: u32,
    /// Top edge in pixels.
    pub y: u32,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
}
assert_size!(Rect, 16);

/// `struct virtio_gpu_display_one`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct DisplayOne {
    /// Place and size.
    pub r: Rect,
    /// 1 where a display is connected.
    pub enabled: u32,
    /// Zero.
    pub flags: u32,
}
assert_size!(DisplayOne, 24);

/// `struct virtio_gpu_resp_display_info` without its header.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct DisplayInfo {
    /// One entry per scanout.
    pub pmodes: [DisplayOne; MAX_SCANOUTS],
}

/// `struct virtio_gpu_get_capset_info` without its header.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct GetCapsetInfo {
    /// Below the device's `num_capsets`.
    pub capset_index: u32,
    /// Zero.
    pub padding: u32,
}
assert_size!(GetCapsetInfo, 8);

/// `struct virtio_gpu_resp_capset_info` without its header.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct CapsetInfo {
    /// The capset's ID.
    pub capset_id: u32,
    /// Its highest version.
    pub capset_max_version: u32,
    /// Its size in bytes.
    pub capset_max_size: u32,
    /// Zero.
    pub padding: u32,
}
assert_size!(CapsetInfo, 16);

/// `struct virtio_gpu_get_capset` without its header.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct GetCapset {
    /// The capset's ID.
    pub capset_id: u32,
    /// The version asked for.
    pub capset_version: u32,
}
assert_size!(GetCapset, 8);

/// `struct virtio_gpu_ctx_create` without its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CtxCreate {
    /// Bytes of `debug_name` in use.
    pub nlen: u32,
    /// The capset ID in the low 8 bits.
    pub context_init: u32,
    /// A name for logs.
    pub debug_name: [u8; 64],
}
assert_size!(CtxCreate, 72);

/// `struct virtio_gpu_cmd_submit` without its header; the commands follow.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct CmdSubmit {
    /// Bytes of the commands.
    pub size: u32,
    /// Zero.
    pub padding: u32,
}
assert_size!(CmdSubmit, 8);

/// `struct virtio_gpu_config`: the device-specific configuration (5.7.4).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Config {
    /// Events pending.
    pub events_read: u32,
    /// Writing clears events.
    pub events_clear: u32,
    /// Scanouts, 1 to 16.
    pub num_scanouts: u32,
    /// Capsets.
    pub num_capsets: u32,
}
assert_size!(Config, 16);
