//! Stage 2, doorbell: the vGPU, a virtio-gpu (virtio 1.3, section 5.7): its identity, its device
//! configuration, and its requests and answers as pure functions over bytes.

use super::transport::{DeviceSpecific, QUEUES, VirtioHandle, VirtioIdentity, VirtioPci};
use crate::device::pci::PciError;
use beamline_abi::frame;
use beamline_abi::virtio_gpu::{
    CapsetInfo, CmdSubmit, Config, CtrlHeader, CtxCreate, DEVICE_TYPE, DisplayInfo, DisplayOne,
    FLAG_FENCE, FLAG_INFO_RING_IDX, GetCapset, GetCapsetInfo, Rect, cmd, feature,
};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// The vGPU function.
pub type VirtioGpu = VirtioPci<GpuDevice>;
/// The worker's and the poster's side of a vGPU.
pub type GpuHandle = VirtioHandle;

/// PCI class: display controller, other.
const CLASS: u32 = 0x03_80_00;

/// What a vGPU offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuConfig {
    /// Contexts, with the frame capset; without them only the display's requests.
    pub contexts: bool,
}

/// The device-specific part of a vGPU.
pub struct GpuDevice {
    contexts: bool,
    config: Config,
}

impl VirtioPci<GpuDevice> {
    /// A vGPU, and the handle for its slice's threads.
    pub fn new(config: GpuConfig) -> Result<(Self, GpuHandle), PciError> {
        let config_space = Config {
            events_read: 0,
            events_clear: 0,
            num_scanouts: 1,
            num_capsets: u32::from(config.contexts),
        };
        Self::from_device(GpuDevice { contexts: config.contexts, config: config_space })
    }
}

impl DeviceSpecific for GpuDevice {
    fn identity(&self) -> VirtioIdentity {
        VirtioIdentity { device_type: DEVICE_TYPE, class: CLASS, queues: QUEUES as u16 }
    }

    fn features(&self) -> u64 {
        if self.contexts { feature::VIRGL | feature::CONTEXT_INIT } else { 0 }
    }

    fn read_config(&self, offset: usize, out: &mut [u8]) {
        let bytes = self.config.as_bytes();
        for (to, from) in out.iter_mut().zip(bytes.iter().skip(offset)) {
            *to = *from;
        }
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        // `events_clear` is the only writable field.
        if let (4, Ok(bits)) = (offset, <[u8; 4]>::try_from(data)) {
            self.config.events_read &= !u32::from_le_bytes(bits);
        }
    }

    fn reset(&mut self) {
        self.config.events_read = 0;
    }
}

/// Bytes of the head that [`decode`] looks at; a shorter request is given whole.
pub const REQUEST_HEAD: usize = size_of::<CtrlHeader>() + size_of::<CtxCreate>();
/// Where the commands of a [`Request::Submit3d`] start in the request.
pub const SUBMIT_PAYLOAD: u64 = (size_of::<CtrlHeader>() + size_of::<CmdSubmit>()) as u64;
/// Bytes of the longest answer.
pub const MAX_ANSWER: usize = size_of::<CtrlHeader>() + size_of::<DisplayInfo>();

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
    GetEdid,
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
        cmd::GET_EDID => Request::GetEdid,
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
        other => Request::Unknown(other),
    };
    Ok((fence, request))
}

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
        let ring = fence.ring.map_or(0, |_| FLAG_INFO_RING_IDX);
        let header = CtrlHeader {
            type_,
            flags: fence.id.map_or(0, |_| FLAG_FENCE | ring),
            fence_id: fence.id.unwrap_or(0),
            ctx_id: fence.ctx,
            ring_idx: fence.ring.unwrap_or(0),
            padding: [0; 3],
        };
        let mut answer = Self { bytes: [0; MAX_ANSWER], len: 0 };
        for (to, from) in answer.bytes.iter_mut().zip(header.as_bytes().iter().chain(data)) {
            *to = *from;
            answer.len += 1;
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request(type_: u32, flags: u32, body: &[u8]) -> Vec<u8> {
        let header =
            CtrlHeader { type_, flags, fence_id: 99, ctx_id: 3, ring_idx: 1, padding: [0; 3] };
        [header.as_bytes(), body].concat()
    }

    #[test]
    fn requests_decode() {
        let (fence, got) = decode(&request(cmd::GET_DISPLAY_INFO, 0, &[])).unwrap();
        assert_eq!((fence.id, fence.ring, got), (None, None, Request::GetDisplayInfo));
        let submit = CmdSubmit { size: 4096, padding: 0 };
        let (fence, got) = decode(&request(cmd::SUBMIT_3D, 3, submit.as_bytes())).unwrap();
        assert_eq!(fence, Fence { id: Some(99), ctx: 3, ring: Some(1) });
        assert_eq!(got, Request::Submit3d { size: 4096 });
        let create = CtxCreate { nlen: 2, context_init: 0x13f, debug_name: [b'x'; 64] };
        let bytes = request(cmd::CTX_CREATE, 0, create.as_bytes());
        assert_eq!(bytes.len(), REQUEST_HEAD);
        let Ok((_, Request::CtxCreate { capset, name })) = decode(&bytes) else { panic!() };
        assert_eq!((capset, &name[..3]), (0x3f, b"xx\0".as_slice()));
        assert!(matches!(decode(&request(0xbad, 0, &[])), Ok((_, Request::Unknown(0xbad)))));
    }

    #[test]
    fn short_requests_say_what_is_missing() {
        assert_eq!(decode(&[0; 10]).unwrap_err().need, 24);
        let error = decode(&request(cmd::SUBMIT_3D, 1, &[0; 7])).unwrap_err();
        assert_eq!((error.have, error.need, error.fence.id), (31, 32, Some(99)));
    }

    #[test]
    fn answers_echo_the_fence_and_fit() {
        let fence = Fence { id: Some(7), ctx: 2, ring: Some(1) };
        let answer = Answer::display_info(&fence, 1280, 720);
        assert_eq!(answer.as_bytes().len(), 408);
        let (header, body) = CtrlHeader::read_from_prefix(answer.as_bytes()).unwrap();
        assert_eq!((header.type_, header.flags, header.fence_id), (0x1101, 3, 7));
        assert_eq!((header.ctx_id, header.ring_idx), (2, 1));
        assert_eq!(body[8..12], 1280u32.to_le_bytes());
        assert_eq!(body[16], 1, "enabled");
        assert_eq!(Answer::plain(&Fence::default(), 0x1200).as_bytes().len(), 24);
        assert_eq!(Answer::capset_info(&fence).as_bytes().len(), 40);
        let capset = frame::FrameCapset::default();
        assert_eq!(Answer::capset(&fence, &capset).as_bytes().len(), 72);
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_fail(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            let _ = decode(&bytes);
        }
    }
}
