//! The whole device as Linux's driver uses it: registers, both queues, worker and poster; vblanks by hand.

mod rig;

use super::screen::Image;
use crate::mediate::message::Work;
use crate::memory::Gpa;
use beamline_abi::Nanos;
use beamline_abi::virtio_gpu::{
    AttachBacking, BLOB_MEM_GUEST, CONTROL_QUEUE, CURSOR_QUEUE, CtrlHeader, CtxCreate, FLAG_FENCE,
    GetEdid, MemEntry, Rect, ResourceCreate2d, ResourceCreateBlob, ResourceFlush, SetScanout,
    SetScanoutBlob, TransferToHost2d, cmd, format,
};
use beamline_abi::virtio_pci::{common, status};
use beamline_latency::clock::Clock;
use beamline_vfio_user::Device;
use proptest::prelude::*;
use rig::{IMAGES, PAGE, Rig};
use std::sync::atomic::{AtomicU64, Ordering};
use zerocopy::IntoBytes;

const WHOLE: Rect = Rect { x: 0, y: 0, width: 64, height: 48 };

/// Pages of an image, last page first, and the bytes written there.
fn paint(rig: &Rig, first: u64, colour: u8) -> (Vec<MemEntry>, Vec<u8>) {
    let pixels: Vec<u8> =
        (0..64 * 48u32).flat_map(|n| [n as u8, (n / 64) as u8, colour, 0]).collect();
    let pages = pixels.len() as u64 / PAGE;
    let place = |n: u64| (first + pages - 1 - n) * PAGE;
    for (n, bytes) in pixels.chunks(PAGE as usize).enumerate() {
        rig.memory(place(n as u64), bytes);
    }
    let entry = |n| MemEntry { addr: place(n), length: PAGE as u32, padding: 0 };
    let rgba = pixels.chunks(4).flat_map(|p| [p[2], p[1], p[0], 255]).collect();
    ((0..pages).map(entry).collect(), rgba)
}

/// Makes a 2D resource with its memory, as Linux does for a framebuffer.
fn framebuffer(rig: &mut Rig, id: u32, first: u64, colour: u8) -> Vec<u8> {
    let (entries, rgba) = paint(rig, first, colour);
    let format = format::B8G8R8X8_UNORM;
    let create = ResourceCreate2d { resource_id: id, format, width: 64, height: 48 };
    assert_eq!(rig.ask(cmd::RESOURCE_CREATE_2D, &create), cmd::RESP_OK_NODATA);
    let attach = AttachBacking { resource_id: id, nr_entries: entries.len() as u32 };
    // The list does not end where its first buffer ends.
    let (one, two) = entries.as_bytes().split_at(24);
    let answer = rig.send(cmd::RESOURCE_ATTACH_BACKING, None, attach.as_bytes(), &[one, two]);
    assert_eq!(rig.used(CONTROL_QUEUE).len(), 1);
    assert_eq!(rig.header(answer).type_, cmd::RESP_OK_NODATA);
    rgba
}

fn transfer(id: u32) -> TransferToHost2d {
    TransferToHost2d { r: WHOLE, offset: 0, resource_id: id, padding: 0 }
}

fn flush(id: u32) -> ResourceFlush {
    ResourceFlush { r: WHOLE, resource_id: id, padding: 0 }
}

fn scanout(id: u32) -> SetScanout {
    SetScanout { r: WHOLE, scanout_id: 0, resource_id: id }
}

#[test]
fn linux_shows_an_image_and_waits_for_its_vblank() {
    for contexts in [false, true] {
        let mut rig = Rig::new(contexts);
        let rgba = framebuffer(&mut rig, 3, IMAGES, 200);
        assert_eq!(rig.ask(cmd::TRANSFER_TO_HOST_2D, &transfer(3)), cmd::RESP_OK_NODATA);
        assert_eq!(rig.ask(cmd::SET_SCANOUT, &scanout(3)), cmd::RESP_OK_NODATA);
        assert!(rig.irqs[0].take());
        let answer = rig.send(cmd::RESOURCE_FLUSH, Some(41), flush(3).as_bytes(), &[]);
        assert_eq!(rig.used(CONTROL_QUEUE), [], "until the vblank");
        assert!(!rig.irqs[0].take());
        // What has no fence does not wait; what has one waits behind the flush.
        assert_eq!(rig.ask(cmd::TRANSFER_TO_HOST_2D, &transfer(3)), cmd::RESP_OK_NODATA);
        let behind = rig.send(cmd::TRANSFER_TO_HOST_2D, Some(42), transfer(3).as_bytes(), &[]);
        assert_eq!(rig.used(CONTROL_QUEUE), []);
        rig.irqs[0].take();
        rig.vblank();
        assert_eq!(rig.used(CONTROL_QUEUE).len(), 2);
        assert!(rig.irqs[0].take());
        for (at, fence) in [(answer, 41), (behind, 42)] {
            let header = rig.header(at);
            assert_eq!((header.type_, header.flags), (cmd::RESP_OK_NODATA, FLAG_FENCE));
            assert_eq!(header.fence_id, fence);
        }
        assert_eq!(rig.png(), Image { width: 64, height: 48, rgba });
    }
}

#[test]
fn linux_flips_blobs_at_vblanks() {
    let mut rig = Rig::new(false);
    let mut images = Vec::new();
    for id in [1, 2] {
        let (entries, rgba) = paint(&rig, IMAGES + u64::from(id) * 16, id as u8);
        images.push(rgba);
        let create = ResourceCreateBlob {
            resource_id: id,
            blob_mem: BLOB_MEM_GUEST,
            blob_flags: 2,
            nr_entries: entries.len() as u32,
            blob_id: 0,
            size: 64 * 48 * 4,
        };
        let list = entries.as_bytes();
        let answer = rig.send(cmd::RESOURCE_CREATE_BLOB, None, create.as_bytes(), &[list]);
        assert_eq!(rig.used(CONTROL_QUEUE).len(), 1);
        assert_eq!(rig.header(answer).type_, cmd::RESP_OK_NODATA);
    }
    for frame in 0..6 {
        let id = 1 + frame % 2;
        assert_eq!(rig.ask(cmd::TRANSFER_TO_HOST_2D, &transfer(id)), cmd::RESP_OK_NODATA);
        let show = SetScanoutBlob {
            r: WHOLE,
            scanout_id: 0,
            resource_id: id,
            width: 64,
            height: 48,
            format: format::B8G8R8X8_UNORM,
            padding: 0,
            strides: [256, 0, 0, 0],
            offsets: [0; 4],
        };
        assert_eq!(rig.ask(cmd::SET_SCANOUT_BLOB, &show), cmd::RESP_OK_NODATA);
        rig.send(cmd::RESOURCE_FLUSH, Some(u64::from(frame)), flush(id).as_bytes(), &[]);
        assert_eq!(rig.used(CONTROL_QUEUE), []);
        rig.vblank();
        assert_eq!(rig.used(CONTROL_QUEUE).len(), 1, "frame {frame}");
        assert_eq!(rig.png().rgba, images[id as usize - 1]);
    }
}

#[test]
fn a_vblank_before_the_flush_does_not_answer_it() {
    let mut rig = Rig::new(false);
    framebuffer(&mut rig, 3, IMAGES, 1);
    assert_eq!(rig.ask(cmd::SET_SCANOUT, &scanout(3)), cmd::RESP_OK_NODATA);
    // The vblank is posted, and before the poster runs, the flush comes.
    rig.beat();
    rig.now = Nanos(rig.now.0 + 5);
    rig.send(cmd::RESOURCE_FLUSH, Some(1), flush(3).as_bytes(), &[]);
    assert_eq!(rig.used(CONTROL_QUEUE), []);
    rig.vblank();
    assert_eq!(rig.used(CONTROL_QUEUE).len(), 1);
    // A flush of what is not shown paces nobody.
    framebuffer(&mut rig, 4, IMAGES + 16, 1);
    rig.send(cmd::RESOURCE_FLUSH, Some(2), flush(4).as_bytes(), &[]);
    assert_eq!(rig.used(CONTROL_QUEUE).len(), 1);
}

/// A clock that is 10 ns later at each look.
struct Passing(AtomicU64);

impl Clock for Passing {
    fn now(&self) -> Nanos {
        Nanos(self.0.fetch_add(10, Ordering::Relaxed))
    }
}

/// A worker that is held up while it looks for requests: what it finds then is no older than it is.
#[test]
fn a_vblank_does_not_answer_a_flush_that_was_taken_after_it() {
    let mut rig = Rig::new(false);
    framebuffer(&mut rig, 3, IMAGES, 1);
    assert_eq!(rig.ask(cmd::SET_SCANOUT, &scanout(3)), cmd::RESP_OK_NODATA);
    let before = rig.now;
    rig.now = Nanos(before.0 + 5);
    rig.beat();
    let header = CtrlHeader {
        type_: cmd::RESOURCE_FLUSH,
        flags: FLAG_FENCE,
        fence_id: 1,
        ..CtrlHeader::default()
    };
    rig.put(CONTROL_QUEUE, &[&[header.as_bytes(), flush(3).as_bytes()].concat()], 24);
    rig.settle_over(&Passing(AtomicU64::new(before.0)));
    assert_eq!(rig.used(CONTROL_QUEUE), [], "answered at the vblank before it");
    rig.now = Nanos(before.0 + 1000);
    rig.vblank();
    assert_eq!(rig.used(CONTROL_QUEUE).len(), 1);
}

#[test]
fn the_cursor_queue_is_served() {
    let mut rig = Rig::new(true);
    framebuffer(&mut rig, 3, IMAGES, 9);
    assert_eq!(rig.ask(cmd::SET_SCANOUT, &scanout(3)), cmd::RESP_OK_NODATA);
    rig.send(cmd::RESOURCE_FLUSH, None, flush(3).as_bytes(), &[]);
    assert_eq!(rig.used(CONTROL_QUEUE).len(), 1, "without a fence nothing waits");
    let format = format::B8G8R8A8_UNORM;
    let create = ResourceCreate2d { resource_id: 7, format, width: 64, height: 64 };
    assert_eq!(rig.ask(cmd::RESOURCE_CREATE_2D, &create), cmd::RESP_OK_NODATA);
    let list = [MemEntry { addr: 0xa0 * PAGE, length: 4 * PAGE as u32, padding: 0 }];
    rig.memory(0xa0 * PAGE, &[10, 20, 30, 255]);
    let attach = AttachBacking { resource_id: 7, nr_entries: 1 };
    rig.send(cmd::RESOURCE_ATTACH_BACKING, None, attach.as_bytes(), &[list.as_bytes()]);
    let r = Rect { width: 64, height: 64, ..WHOLE };
    let load = TransferToHost2d { r, ..transfer(7) };
    rig.send(cmd::TRANSFER_TO_HOST_2D, Some(5), load.as_bytes(), &[]);
    assert_eq!(rig.used(CONTROL_QUEUE).len(), 2);
    rig.cursor(cmd::UPDATE_CURSOR, 7, 5, 2);
    assert_eq!(rig.png().rgba[(2 * 64 + 5) * 4..][..4], [30, 20, 10, 255]);
    rig.cursor(cmd::MOVE_CURSOR, 0, 6, 3);
    assert_eq!(rig.png().rgba[(2 * 64 + 5) * 4..][..4], [0, 0, 0, 255]);
    assert_eq!(rig.png().rgba[(3 * 64 + 6) * 4..][..4], [30, 20, 10, 255]);
}

#[test]
fn a_reset_drops_what_waits_and_what_was_made() {
    let mut rig = Rig::new(false);
    framebuffer(&mut rig, 3, IMAGES, 9);
    assert_eq!(rig.ask(cmd::SET_SCANOUT, &scanout(3)), cmd::RESP_OK_NODATA);
    rig.send(cmd::RESOURCE_FLUSH, Some(1), flush(3).as_bytes(), &[]);
    assert!(rig.screen.image().is_some());
    rig.set(common::DEVICE_STATUS, 1, 0);
    rig.settle();
    assert_eq!(rig.screen.image(), None, "nothing for who comes next");
    rig.start();
    rig.vblank();
    assert_eq!(rig.used(CONTROL_QUEUE), [], "nothing of the life before");
    framebuffer(&mut rig, 3, IMAGES, 9);
    // Also where the guest's memory goes without a word.
    assert_eq!(rig.ask(cmd::SET_SCANOUT, &scanout(3)), cmd::RESP_OK_NODATA);
    rig.send(cmd::RESOURCE_FLUSH, Some(2), flush(3).as_bytes(), &[]);
    rig.gpu.disconnected();
    rig.settle();
    rig.vblank();
    assert_eq!(rig.screen.image(), None);
}

#[test]
fn each_profile_serves_its_own() {
    let edid = |rig: &mut Rig, scanout| {
        let header = CtrlHeader { type_: cmd::GET_EDID, ..CtrlHeader::default() };
        let body = GetEdid { scanout, padding: 0 };
        let room = 24 + 1032;
        let request = [header.as_bytes(), body.as_bytes()].concat();
        let at = rig.put(CONTROL_QUEUE, &[&request], room);
        rig.settle();
        (rig.used(CONTROL_QUEUE)[0].1, rig.header(at).type_, at)
    };
    let context = CtxCreate { nlen: 0, context_init: 0x3f, debug_name: [0; 64] };
    let blob = ResourceCreateBlob {
        resource_id: 1,
        blob_mem: BLOB_MEM_GUEST,
        size: 4096,
        ..ResourceCreateBlob::default()
    };
    let mut display = Rig::new(false);
    assert_eq!(display.ask(cmd::CTX_CREATE, &context), cmd::RESP_ERR_UNSPEC);
    assert_eq!(display.ask(cmd::GET_CAPSET_INFO, &[0u32; 2]), cmd::RESP_ERR_INVALID_PARAMETER);
    assert_eq!(display.ask(cmd::RESOURCE_CREATE_BLOB, &blob), cmd::RESP_OK_NODATA);
    let (len, type_, at) = edid(&mut display, 0);
    assert_eq!((len, type_), (1056, cmd::RESP_OK_EDID));
    let mut bytes = [0; 136];
    display.handle.memory().read(Gpa(at + 24), &mut bytes).unwrap();
    assert_eq!(bytes[..4], 128u32.to_le_bytes());
    assert_eq!((bytes[8 + 56], bytes[8 + 59]), (64, 48), "the configured size");
    assert_eq!(edid(&mut display, 1).1, cmd::RESP_ERR_INVALID_SCANOUT_ID);
    assert!(display.work.is_empty());

    let mut render = Rig::new(true);
    assert_eq!(render.ask(cmd::RESOURCE_CREATE_BLOB, &blob), cmd::RESP_ERR_UNSPEC);
    assert_eq!(render.ask(cmd::GET_CAPSET_INFO, &[0u32; 2]), cmd::RESP_OK_CAPSET_INFO);
    render.send(cmd::CTX_CREATE, None, context.as_bytes(), &[]);
    assert!(matches!(render.work.pop(), Ok(Work::Attach { .. })));
}

#[test]
fn a_guest_that_copies_too_much_waits() {
    let mut rig = Rig::new(true);
    framebuffer(&mut rig, 3, IMAGES, 9);
    let start = rig.now;
    // A display's worth 60 times, where three per vblank are allowed: about 18 vblanks after the burst.
    for _ in 0..60 {
        assert_eq!(rig.ask(cmd::TRANSFER_TO_HOST_2D, &transfer(3)), cmd::RESP_OK_NODATA);
    }
    let took = rig.now.saturating_sub(start);
    assert!(took > Nanos::from_millis(250), "{took:?}");
    assert!(took < Nanos::from_secs(1), "{took:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// Any bytes in either queue: no panic, every request is answered, and nothing of the guest's memory
    /// changes but rings and answers.
    #[test]
    fn any_bytes_change_nothing_but_answers(
        requests in prop::collection::vec(
            (any::<bool>(), 0usize..28, any::<bool>(), prop::collection::vec(any::<u8>(), 0..160)),
            1..20,
        ),
        contexts: bool,
    ) {
        const TYPES: [u32; 28] = [
            0x100, 0x101, 0x102, 0x103, 0x104, 0x105, 0x106, 0x107, 0x108, 0x109, 0x10a, 0x10b, 0x10c,
            0x10d, 0x200, 0x201, 0x207, 0x300, 0x301, 0x101, 0x106, 0x10c, 0x105, 0x104, 0x103, 0x10d, 0,
            u32::MAX,
        ];
        let mut rig = Rig::new(contexts);
        rig.memory(IMAGES * PAGE, &vec![0xa5; 64 * PAGE as usize]);
        for (n, (cursor, type_, fenced, bytes)) in requests.iter().enumerate() {
            let queue = if *cursor { CURSOR_QUEUE } else { CONTROL_QUEUE };
            let header = CtrlHeader {
                type_: TYPES[*type_],
                flags: u32::from(*fenced),
                fence_id: n as u64,
                ..CtrlHeader::default()
            };
            // Small numbers, so that some of them name something.
            let body: Vec<u8> =
                bytes.iter().enumerate().map(|(n, b)| if n % 4 == 0 { b % 5 } else { b / 250 }).collect();
            rig.put(queue, &[header.as_bytes(), if body.is_empty() { &[0] } else { &body }], 24);
            rig.settle();
            rig.vblank();
            let started = usize::from(rig.work.pop().is_ok());
            let used = rig.used(queue);
            prop_assert_eq!(used.len() + started, 1, "{:?}", header);
            prop_assert!(used.iter().all(|(_, written)| *written <= 24));
        }
        let mut after = vec![0; 64 * PAGE as usize];
        rig.handle.memory().read(Gpa(IMAGES * PAGE), &mut after).unwrap();
        prop_assert!(after.iter().all(|byte| *byte == 0xa5));
        prop_assert_eq!(rig.status() & status::NEEDS_RESET, 0);
    }
}
