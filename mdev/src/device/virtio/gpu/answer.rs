//! The answers to requests (virtio 1.3, section 5.7.6), as bytes.

use super::request::Fence;
use beamline_abi::frame;
use beamline_abi::virtio_gpu::{
    CapsetInfo, CtrlHeader, DisplayInfo, DisplayOne, FLAG_FENCE, FLAG_INFO_RING_IDX, Rect,
    RespEdid, cmd,
};
use zerocopy::{FromZeros, Immutable, IntoBytes};

/// Bytes of the longest [`Answer`]; one with an EDID is longer and has a type of its own.
pub const MAX_ANSWER: usize = size_of::<CtrlHeader>() + size_of::<DisplayInfo>();

/// The bytes of an answer.
#[derive(Clone, Copy)]
pub struct Answer {
    bytes: [u8; MAX_ANSWER],
    len: u16,
}

impl Answer {
    /// An answer without data: `RESP_OK_NODATA` or one of the errors.
    pub fn plain(fence: &Fence, type_: u32) -> Self {
        Self::with(fence, type_, &[])
    }

    /// The answer to `GET_DISPLAY_INFO`: one scanout of this many pixels.
    pub fn display_info(fence: &Fence, width: u32, height: u32) -> Self {
        let mut info = DisplayInfo::new_zeroed();
        let r = Rect { x: 0, y: 0, width, height };
        info.pmodes[0] = DisplayOne { r, enabled: 1, flags: 0 };
        Self::with(fence, cmd::RESP_OK_DISPLAY_INFO, info.as_bytes())
    }

    /// The answer to `GET_CAPSET_INFO` for the frame capset, which is the only one.
    pub fn capset_info(fence: &Fence) -> Self {
        let info = CapsetInfo {
            capset_id: frame::CAPSET_ID,
            capset_max_version: frame::VERSION.into(),
            capset_max_size: size_of::<frame::FrameCapset>() as u32,
            padding: 0,
        };
        Self::with(fence, cmd::RESP_OK_CAPSET_INFO, info.as_bytes())
    }

    /// The answer to `GET_CAPSET` for the frame capset.
    pub fn capset(fence: &Fence, capset: &frame::FrameCapset) -> Self {
        Self::with(fence, cmd::RESP_OK_CAPSET, capset.as_bytes())
    }

    /// What to write into the chain.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// A header that answers `fence`, and data of at most [`MAX_ANSWER`] less the header.
    fn with(fence: &Fence, type_: u32, data: &[u8]) -> Self {
        let header = header(fence, type_);
        let mut answer = Self { bytes: [0; MAX_ANSWER], len: 0 };
        for (to, from) in answer.bytes.iter_mut().zip(header.as_bytes().iter().chain(data)) {
            *to = *from;
            answer.len += 1;
        }
        answer
    }
}

/// The answer to `GET_EDID`.
#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
pub struct EdidAnswer {
    header: CtrlHeader,
    body: RespEdid,
}

impl EdidAnswer {
    /// The answer with these blocks; bytes beyond what an answer may carry are left out.
    pub fn new(fence: &Fence, blocks: &[u8]) -> Self {
        let mut body = RespEdid::new_zeroed();
        for (to, from) in body.edid.iter_mut().zip(blocks) {
            *to = *from;
            body.size += 1;
        }
        Self { header: header(fence, cmd::RESP_OK_EDID), body }
    }
}

fn header(fence: &Fence, type_: u32) -> CtrlHeader {
    let ring = fence.ring.map_or(0, |_| FLAG_INFO_RING_IDX);
    CtrlHeader {
        type_,
        flags: fence.id.map_or(0, |_| FLAG_FENCE | ring),
        fence_id: fence.id.unwrap_or(0),
        ctx_id: fence.ctx,
        ring_idx: fence.ring.unwrap_or(0),
        padding: [0; 3],
    }
}
