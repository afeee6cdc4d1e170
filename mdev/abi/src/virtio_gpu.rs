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
    /// Resources may be blobs: `RESOURCE_CREATE_BLOB` and `SET_SCANOUT_BLOB`.
    pub const RESOURCE_BLOB: u64 = 1 << 3;
    /// `CTX_CREATE` names a capset.
    pub const CONTEXT_INIT: u64 = 1 << 4;
}

/// `type` of a request or a response.
pub mod cmd {
    /// Displays and their modes.
    pub const GET_DISPLAY_INFO: u32 = 0x0100;
    /// Makes a 2D resource.
    pub const RESOURCE_CREATE_2D: u32 = 0x0101;
    /// Destroys a resource.
    pub const RESOURCE_UNREF: u32 = 0x0102;
    /// Shows a 2D resource on a scanout.
    pub const SET_SCANOUT: u32 = 0x0103;
    /// Makes a resource's changes visible.
    pub const RESOURCE_FLUSH: u32 = 0x0104;
    /// Copies guest memory into a 2D resource.
    pub const TRANSFER_TO_HOST_2D: u32 = 0x0105;
    /// Gives a resource its guest memory.
    pub const RESOURCE_ATTACH_BACKING: u32 = 0x0106;
    /// Takes a resource's guest memory away.
    pub const RESOURCE_DETACH_BACKING: u32 = 0x0107;
    /// Which capsets there are.
    pub const GET_CAPSET_INFO: u32 = 0x0108;
    /// One capset's content.
    pub const GET_CAPSET: u32 = 0x0109;
    /// EDID of a scanout.
    pub const GET_EDID: u32 = 0x010a;
    /// Makes a blob resource.
    pub const RESOURCE_CREATE_BLOB: u32 = 0x010c;
    /// Shows a blob resource on a scanout.
    pub const SET_SCANOUT_BLOB: u32 = 0x010d;
    /// Makes a context.
    pub const CTX_CREATE: u32 = 0x0200;
    /// Destroys a context.
    pub const CTX_DESTROY: u32 = 0x0201;
    /// Commands for a context.
    pub const SUBMIT_3D: u32 = 0x0207;
    /// Gives the cursor an image and a place.
    pub const UPDATE_CURSOR: u32 = 0x0300;
    /// Gives the cursor a place.
    pub const MOVE_CURSOR: u32 = 0x0301;

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

/// `enum virtio_gpu_formats` (5.7.6.8): 4 bytes per pixel, named in the order of the bytes in memory.
pub mod format {
    /// Blue, green, red, alpha.
    pub const B8G8R8A8_UNORM: u32 = 1;
    /// Blue, green, red, unused.
    pub const B8G8R8X8_UNORM: u32 = 2;
    /// Alpha, red, green, blue.
    pub const A8R8G8B8_UNORM: u32 = 3;
    /// Unused, red, green, blue.
    pub const X8R8G8B8_UNORM: u32 = 4;
    /// Red, green, blue, alpha.
    pub const R8G8B8A8_UNORM: u32 = 67;
    /// Unused, blue, green, red.
    pub const X8B8G8R8_UNORM: u32 = 68;
    /// Alpha, blue, green, red.
    pub const A8B8G8R8_UNORM: u32 = 121;
    /// Red, green, blue, unused.
    pub const R8G8B8X8_UNORM: u32 = 134;
}

/// [`ResourceCreateBlob::blob_mem`]: the blob is guest memory.
pub const BLOB_MEM_GUEST: u32 = 1;
/// [`ResourceCreateBlob::blob_mem`]: the blob is host memory.
pub const BLOB_MEM_HOST3D: u32 = 2;
/// [`ResourceCreateBlob::blob_mem`]: the blob is host memory with a shadow in the guest.
pub const BLOB_MEM_HOST3D_GUEST: u32 = 3;
/// All bits of [`ResourceCreateBlob::blob_flags`]: mappable, shareable, between devices.
pub const BLOB_FLAGS: u32 = 7;
/// A cursor's width and height in pixels (5.7.6.5).
pub const CURSOR_SIDE: u32 = 64;
/// Most bytes of an EDID.
pub const MAX_EDID: usize = 1024;

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
assert_size!(DisplayInfo, 384);

/// `struct virtio_gpu_resource_create_2d` without its header.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct ResourceCreate2d {
    /// Chosen by the driver, above 0.
    pub resource_id: u32,
    /// See [`format`].
    pub format: u32,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
}
assert_size!(ResourceCreate2d, 16);

/// `struct virtio_gpu_resource_unref` without its header.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct ResourceUnref {
    /// The resource.
    pub resource_id: u32,
    /// Zero.
    pub padding: u32,
}
assert_size!(ResourceUnref, 8);

/// `struct virtio_gpu_set_scanout` without its header.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct SetScanout {
    /// Which part of the resource is shown.
    pub r: Rect,
    /// Below the device's `num_scanouts`.
    pub scanout_id: u32,
    /// The resource; 0 turns the scanout off.
    pub resource_id: u32,
}
assert_size!(SetScanout, 24);

/// `struct virtio_gpu_resource_flush` without its header.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct ResourceFlush {
    /// What changed, in the resource.
    pub r: Rect,
    /// The resource.
    pub resource_id: u32,
    /// Zero.
    pub padding: u32,
}
assert_size!(ResourceFlush, 24);

/// `struct virtio_gpu_transfer_to_host_2d` without its header.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct TransferToHost2d {
    /// Where to, in the resource.
    pub r: Rect,
    /// Where the rectangle's first pixel is in the backing.
    pub offset: u64,
    /// The resource.
    pub resource_id: u32,
    /// Zero.
    pub padding: u32,
}
assert_size!(TransferToHost2d, 32);

/// `struct virtio_gpu_resource_attach_backing` without its header.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct AttachBacking {
    /// The resource.
    pub resource_id: u32,
    /// How many [`MemEntry`]s follow.
    pub nr_entries: u32,
}
assert_size!(AttachBacking, 8);

/// `struct virtio_gpu_mem_entry`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct MemEntry {
    /// Where the piece is in guest memory.
    pub addr: u64,
    /// Its bytes.
    pub length: u32,
    /// Zero.
    pub padding: u32,
}
assert_size!(MemEntry, 16);

/// `struct virtio_gpu_resource_detach_backing` without its header.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct DetachBacking {
    /// The resource.
    pub resource_id: u32,
    /// Zero.
    pub padding: u32,
}
assert_size!(DetachBacking, 8);

/// `struct virtio_gpu_cmd_get_edid` without its header.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct GetEdid {
    /// Below the device's `num_scanouts`.
    pub scanout: u32,
    /// Zero.
    pub padding: u32,
}
assert_size!(GetEdid, 8);

/// `struct virtio_gpu_resp_edid` without its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RespEdid {
    /// Bytes of `edid` in use.
    pub size: u32,
    /// Zero.
    pub padding: u32,
    /// Blocks of 128 bytes.
    pub edid: [u8; MAX_EDID],
}
assert_size!(RespEdid, 1032);

/// `struct virtio_gpu_resource_create_blob` without its header; its [`MemEntry`]s follow.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct ResourceCreateBlob {
    /// Chosen by the driver, above 0.
    pub resource_id: u32,
    /// See [`BLOB_MEM_GUEST`].
    pub blob_mem: u32,
    /// See [`BLOB_FLAGS`].
    pub blob_flags: u32,
    /// How many [`MemEntry`]s follow.
    pub nr_entries: u32,
    /// The object in host memory, where the blob is one.
    pub blob_id: u64,
    /// Bytes.
    pub size: u64,
}
assert_size!(ResourceCreateBlob, 32);

/// `struct virtio_gpu_set_scanout_blob` without its header.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct SetScanoutBlob {
    /// Which part of the framebuffer is shown.
    pub r: Rect,
    /// Below the device's `num_scanouts`.
    pub scanout_id: u32,
    /// The blob; 0 turns the scanout off.
    pub resource_id: u32,
    /// Pixels of the framebuffer.
    pub width: u32,
    /// Pixels of the framebuffer.
    pub height: u32,
    /// See [`format`].
    pub format: u32,
    /// Zero.
    pub padding: u32,
    /// Bytes from row to row, per plane.
    pub strides: [u32; 4],
    /// Where the planes begin in the blob.
    pub offsets: [u32; 4],
}
assert_size!(SetScanoutBlob, 72);

/// `struct virtio_gpu_cursor_pos`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct CursorPos {
    /// Below the device's `num_scanouts`.
    pub scanout_id: u32,
    /// Pixels; a driver may mean a negative number.
    pub x: u32,
    /// Pixels; a driver may mean a negative number.
    pub y: u32,
    /// Zero.
    pub padding: u32,
}
assert_size!(CursorPos, 16);

/// `struct virtio_gpu_update_cursor` without its header.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct UpdateCursor {
    /// Where.
    pub pos: CursorPos,
    /// The image; 0 hides the cursor. Of no meaning in `MOVE_CURSOR`.
    pub resource_id: u32,
    /// Of no meaning in `MOVE_CURSOR`.
    pub hot_x: u32,
    /// Of no meaning in `MOVE_CURSOR`.
    pub hot_y: u32,
    /// Zero.
    pub padding: u32,
}
assert_size!(UpdateCursor, 32);

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
