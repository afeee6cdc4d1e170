use super::*;
use beamline_abi::frame;
use beamline_abi::virtio_gpu::{CmdSubmit, CtrlHeader, CtxCreate, cmd};
use proptest::prelude::*;
use zerocopy::FromBytes;

fn request(type_: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    let header = CtrlHeader { type_, flags, fence_id: 99, ctx_id: 3, ring_idx: 1, padding: [0; 3] };
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
