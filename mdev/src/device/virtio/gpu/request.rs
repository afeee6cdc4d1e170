//! The requests of the control and the cursor queue (virtio 1.3, section 5.7.6), decoded.

use beamline_abi::virtio_gpu::{
    AttachBacking, CmdSubmit, CtrlHeader, CtxCreate, DetachBacking, FLAG_FENCE, FLAG_INFO_RING_IDX,
    GetCapset, GetCapsetInfo, GetEdid, Rect, ResourceCreate2d, ResourceCreateBlob, ResourceFlush,
    ResourceUnref, SetScanout, SetScanoutBlob, TransferToHost2d, UpdateCursor, cmd,
};
use zerocopy::{FromBytes, Immutable, KnownLayout};

/// Bytes of the head that [`decode`] looks at; a shorter request is given whole.
pub const REQUEST_HEAD: usize = size_of::<CtrlHeader>() + size_of::<CtxCreate>();
/// Where the commands of a [`Request::Submit3d`] start in the request.
pub const SUBMIT_PAYLOAD: u64 = (size_of::<CtrlHeader>() + size_of::<CmdSubmit>()) as u64;
/// Where the entries of a `RESOURCE_ATTACH_BACKING` start in the request.
pub const ATTACH_ENTRIES: u64 = (size_of::<CtrlHeader>() + size_of::<AttachBacking>()) as u64;
/// Where the entries of a `RESOURCE_CREATE_BLOB` start in the request.
pub const BLOB_ENTRIES: u64 = (size_of::<CtrlHeader>() + size_of::<ResourceCreateBlob>()) as u64;
const _: () = assert!(REQUEST_HEAD >= size_of::<CtrlHeader>() + size_of::<SetScanoutBlob>());

/// Whose request it is, and whether it waits for the work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fence {
    /// The fence, where the driver asked for one.
    pub id: Option<u64>,
    /// The context.
    pub ctx: u32,
    /// The context's ring, where the driver named one.
    pub ring: Option<u8>,
}

/// A decoded request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Which displays there are.
    GetDisplayInfo,
    /// What capset `index` is.
    GetCapsetInfo {
        /// Below the number of capsets, if the driver is right.
        index: u32,
    },
    /// The content of a capset.
    GetCapset {
        /// Its ID.
        id: u32,
        /// The version asked for.
        version: u32,
    },
    /// The EDID of a scanout.
    GetEdid {
        /// Which.
        scanout: u32,
    },
    /// A request of the display.
    Show(Shown),
    /// Makes context [`Fence::ctx`].
    CtxCreate {
        /// The capset ID, 0 for the default.
        capset: u8,
        /// A name for logs, padded with zeros.
        name: [u8; 64],
    },
    /// Destroys context [`Fence::ctx`].
    CtxDestroy,
    /// Commands for context [`Fence::ctx`], from [`SUBMIT_PAYLOAD`] on.
    Submit3d {
        /// Their bytes, as the driver says: to be checked against the chain and the quota.
        size: u32,
    },
    /// A request of another type.
    Unknown(u32),
}

/// A request of the display: 2D resources, scanouts, the cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// Makes a 2D resource.
    Create(ResourceCreate2d),
    /// Makes a blob resource, whose entries start at [`BLOB_ENTRIES`].
    CreateBlob(ResourceCreateBlob),
    /// Destroys a resource.
    Unref {
        /// Which.
        resource: u32,
    },
    /// Gives a resource its guest memory, whose entries start at [`ATTACH_ENTRIES`].
    Attach {
        /// Which.
        resource: u32,
        /// Entries, as the driver says.
        entries: u32,
    },
    /// Takes it away again.
    Detach {
        /// Which.
        resource: u32,
    },
    /// Copies guest memory into a 2D resource.
    Transfer(TransferToHost2d),
    /// Shows a 2D resource.
    Scanout(SetScanout),
    /// Shows a blob.
    ScanoutBlob(SetScanoutBlob),
    /// Makes changes visible.
    Flush {
        /// Which.
        resource: u32,
        /// What changed.
        rect: Rect,
    },
    /// The cursor's image and place.
    Cursor(UpdateCursor),
    /// The cursor's place.
    MoveCursor(UpdateCursor),
}

/// A request is shorter than its type needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a request of type {type_:#06x} with {have} bytes needs {need}")]
pub struct ShortRequest {
    /// The type; 0 where not even the header is there.
    pub type_: u32,
    /// Bytes there.
    pub have: usize,
    /// Bytes needed.
    pub need: usize,
    /// Whose it is, for the answer.
    pub fence: Fence,
}

/// Decodes the head of a request.
pub fn decode(head: &[u8]) -> Result<(Fence, Request), ShortRequest> {
    let short = |type_, body, fence| ShortRequest {
        type_,
        have: head.len(),
        need: size_of::<CtrlHeader>() + body,
        fence,
    };
    let (header, body) =
        CtrlHeader::read_from_prefix(head).map_err(|_| short(0, 0, Fence::default()))?;
    let has = |flag| header.flags & flag != 0;
    let fence = Fence {
        id: has(FLAG_FENCE).then_some(header.fence_id),
        ctx: header.ctx_id,
        ring: has(FLAG_INFO_RING_IDX).then_some(header.ring_idx),
    };
    let short = |body| short(header.type_, body, fence);
    let request = match header.type_ {
        cmd::GET_DISPLAY_INFO => Request::GetDisplayInfo,
        cmd::GET_EDID => {
            let (body, _) =
                GetEdid::read_from_prefix(body).map_err(|_| short(size_of::<GetEdid>()))?;
            Request::GetEdid { scanout: body.scanout }
        }
        cmd::CTX_DESTROY => Request::CtxDestroy,
        cmd::GET_CAPSET_INFO => {
            let (body, _) = GetCapsetInfo::read_from_prefix(body)
                .map_err(|_| short(size_of::<GetCapsetInfo>()))?;
            Request::GetCapsetInfo { index: body.capset_index }
        }
        cmd::GET_CAPSET => {
            let (body, _) =
                GetCapset::read_from_prefix(body).map_err(|_| short(size_of::<GetCapset>()))?;
            Request::GetCapset { id: body.capset_id, version: body.capset_version }
        }
        cmd::CTX_CREATE => {
            let (body, _) =
                CtxCreate::read_from_prefix(body).map_err(|_| short(size_of::<CtxCreate>()))?;
            let mut name = body.debug_name;
            name.iter_mut().skip(body.nlen as usize).for_each(|byte| *byte = 0);
            Request::CtxCreate { capset: body.context_init as u8, name }
        }
        cmd::SUBMIT_3D => {
            let (body, _) =
                CmdSubmit::read_from_prefix(body).map_err(|_| short(size_of::<CmdSubmit>()))?;
            Request::Submit3d { size: body.size }
        }
        other => match decode_shown(other, body) {
            Some(shown) => Request::Show(shown.map_err(short)?),
            None => Request::Unknown(other),
        },
    };
    Ok((fence, request))
}

/// Decodes the body of a request of the display; `None` for other types, and an error for how many bytes
/// it needs.
fn decode_shown(type_: u32, body: &[u8]) -> Option<Result<Shown, usize>> {
    Some(match type_ {
        cmd::RESOURCE_CREATE_2D => take(body).map(Shown::Create),
        cmd::RESOURCE_CREATE_BLOB => take(body).map(Shown::CreateBlob),
        cmd::RESOURCE_UNREF => {
            take(body).map(|b: ResourceUnref| Shown::Unref { resource: b.resource_id })
        }
        cmd::RESOURCE_ATTACH_BACKING => take(body).map(|b: AttachBacking| Shown::Attach {
            resource: b.resource_id,
            entries: b.nr_entries,
        }),
        cmd::RESOURCE_DETACH_BACKING => {
            take(body).map(|b: DetachBacking| Shown::Detach { resource: b.resource_id })
        }
        cmd::TRANSFER_TO_HOST_2D => take(body).map(Shown::Transfer),
        cmd::SET_SCANOUT => take(body).map(Shown::Scanout),
        cmd::SET_SCANOUT_BLOB => take(body).map(Shown::ScanoutBlob),
        cmd::RESOURCE_FLUSH => {
            take(body).map(|b: ResourceFlush| Shown::Flush { resource: b.resource_id, rect: b.r })
        }
        cmd::UPDATE_CURSOR => take(body).map(Shown::Cursor),
        cmd::MOVE_CURSOR => take(body).map(Shown::MoveCursor),
        _ => return None,
    })
}

fn take<T: FromBytes + KnownLayout + Immutable>(body: &[u8]) -> Result<T, usize> {
    T::read_from_prefix(body).map(|(value, _)| value).map_err(|_| size_of::<T>())
}
