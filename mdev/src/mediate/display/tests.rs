//! Each request, good and bad, against guest memory in scattered pages.

mod any;

use super::screen::Image;
use super::*;
use crate::device::virtio::gpu::request::ATTACH_ENTRIES;
use crate::memory::GuestMemory;
use beamline_abi::virtio_gpu::{
    BLOB_MEM_GUEST, CURSOR_SIDE, CursorPos, MemEntry, ResourceCreate2d, ResourceCreateBlob,
    SetScanout, SetScanoutBlob, TransferToHost2d, UpdateCursor, format,
};
use std::cell::RefCell;
use zerocopy::IntoBytes;

const OK: Done = Done::Answer(cmd::RESP_OK_NODATA);
const BAD_SCANOUT: Done = Done::Answer(cmd::RESP_ERR_INVALID_SCANOUT_ID);
const BAD_RESOURCE: Done = Done::Answer(cmd::RESP_ERR_INVALID_RESOURCE_ID);
const BAD_PARAMETER: Done = Done::Answer(cmd::RESP_ERR_INVALID_PARAMETER);
const NO_MEMORY: Done = Done::Answer(cmd::RESP_ERR_OUT_OF_MEMORY);
const UNSPEC: Done = Done::Answer(cmd::RESP_ERR_UNSPEC);

const PAGE: u64 = 4096;
const PAGES: u64 = 64;
/// Of the display.
const QUOTA: u64 = 100_000;

/// A guest, its entries list, and what the display read of its memory.
struct TestGuest {
    memory: GuestMemory,
    entries: Vec<MemEntry>,
    reads: RefCell<Vec<(u64, usize)>>,
}

impl TestGuest {
    fn new() -> Self {
        let memory = GuestMemory::for_test((PAGES * PAGE) as usize).unwrap();
        Self { memory, entries: Vec::new(), reads: RefCell::default() }
    }
}

impl Guest for TestGuest {
    fn request(&self, offset: u64, out: &mut [u8]) -> Result<(), Fault> {
        let bytes = self.entries.as_bytes();
        let from = offset.checked_sub(ATTACH_ENTRIES).ok_or(Fault::Unreachable)? as usize;
        let part = bytes.get(from..from + out.len()).ok_or(Fault::Unreachable)?;
        out.copy_from_slice(part);
        Ok(())
    }

    fn memory(&self, at: Gpa, out: &mut [u8]) -> Result<(), Fault> {
        self.reads.borrow_mut().push((at.0, out.len()));
        self.memory.read(at, out).map_err(|_| Fault::Unreachable)
    }

    fn check(&self, at: Gpa, len: u64) -> Result<(), Fault> {
        self.memory.check(at, len, false).map_err(|_| Fault::Unreachable)
    }
}

/// A blob's list begins further on.
struct BlobList<'a>(&'a TestGuest);

impl Guest for BlobList<'_> {
    fn request(&self, offset: u64, out: &mut [u8]) -> Result<(), Fault> {
        self.0.request(offset - 24, out)
    }
    fn memory(&self, at: Gpa, out: &mut [u8]) -> Result<(), Fault> {
        self.0.memory(at, out)
    }
    fn check(&self, at: Gpa, len: u64) -> Result<(), Fault> {
        self.0.check(at, len)
    }
}

fn display() -> Display {
    let period = Period::from_hz(60, 1).unwrap();
    let mut d = Display::new(DisplaySettings { width: 64, height: 48, period, quota: QUOTA });
    d.reset(true);
    d
}

fn rect(x: u32, y: u32, width: u32, height: u32) -> Rect {
    Rect { x, y, width, height }
}

fn create(d: &mut Display, id: u32, format: u32, width: u32, height: u32) -> Done {
    let r = ResourceCreate2d { resource_id: id, format, width, height };
    d.control(&TestGuest::new(), &Shown::Create(r))
}

fn entry(page: u64, length: u32) -> MemEntry {
    MemEntry { addr: page * PAGE, length, padding: 0 }
}

fn attach(d: &mut Display, guest: &mut TestGuest, id: u32, entries: &[MemEntry]) -> Done {
    guest.entries = entries.to_vec();
    d.control(guest, &Shown::Attach { resource: id, entries: entries.len() as u32 })
}

fn blob(d: &mut Display, guest: &mut TestGuest, id: u32, size: u64, entries: &[MemEntry]) -> Done {
    guest.entries = entries.to_vec();
    let r = ResourceCreateBlob {
        resource_id: id,
        blob_mem: BLOB_MEM_GUEST,
        blob_flags: 2,
        nr_entries: entries.len() as u32,
        blob_id: 0,
        size,
    };
    d.control(&BlobList(guest), &Shown::CreateBlob(r))
}

fn transfer(d: &mut Display, guest: &TestGuest, id: u32, r: Rect, offset: u64) -> Done {
    let request = TransferToHost2d { r, offset, resource_id: id, padding: 0 };
    d.control(guest, &Shown::Transfer(request))
}

fn set_scanout(d: &mut Display, id: u32, r: Rect) -> Done {
    let request = SetScanout { r, scanout_id: 0, resource_id: id };
    d.control(&TestGuest::new(), &Shown::Scanout(request))
}

fn blob_scanout(id: u32, width: u32, height: u32) -> SetScanoutBlob {
    SetScanoutBlob {
        r: rect(0, 0, width, height),
        scanout_id: 0,
        resource_id: id,
        width,
        height,
        format: format::B8G8R8X8_UNORM,
        padding: 0,
        strides: [width * 4, 0, 0, 0],
        offsets: [0; 4],
    }
}

fn flush(d: &mut Display, guest: &dyn Guest, id: u32, rect: Rect) -> Done {
    d.control(guest, &Shown::Flush { resource: id, rect })
}

fn cursor(id: u32, x: i32, y: i32) -> UpdateCursor {
    let pos = CursorPos { scanout_id: 0, x: x.cast_unsigned(), y: y.cast_unsigned(), padding: 0 };
    UpdateCursor { pos, resource_id: id, hot_x: 0, hot_y: 0, padding: 0 }
}

/// The pixel at a place of a picture.
fn pixel(image: &Image, x: u32, y: u32) -> [u8; 4] {
    let at = ((y * image.width + x) * 4) as usize;
    image.rgba[at..at + 4].try_into().unwrap()
}

/// A 40 × 30 image in pages 9, 3 (half of it used) and 20, each pixel of its own colour.
fn shown() -> (Display, TestGuest) {
    let (mut d, mut guest) = (display(), TestGuest::new());
    let pieces = [entry(9, 4096), MemEntry { addr: 3 * PAGE + 100, length: 300, padding: 0 }];
    let pieces = [pieces[0], pieces[1], entry(20, 4096)];
    let bytes: Vec<u8> =
        (0..30u32).flat_map(|y| (0..40u32).flat_map(move |x| [x as u8, y as u8, 7, 0])).collect();
    let mut rest = bytes.as_slice();
    for piece in &pieces {
        let (now, later) = rest.split_at(rest.len().min(piece.length as usize));
        guest.memory.write(Gpa(piece.addr), now).unwrap();
        rest = later;
    }
    assert!(rest.is_empty());
    assert_eq!(create(&mut d, 5, format::B8G8R8X8_UNORM, 40, 30), OK);
    assert_eq!(attach(&mut d, &mut guest, 5, &pieces), OK);
    (d, guest)
}

#[test]
fn an_image_in_scattered_pieces_is_shown() {
    let (mut d, guest) = shown();
    assert_eq!(d.screen().image(), None);
    assert_eq!(transfer(&mut d, &guest, 5, rect(0, 0, 40, 30), 0), OK);
    assert_eq!(flush(&mut d, &guest, 5, rect(0, 0, 40, 30)), OK, "shown nowhere");
    assert_eq!(set_scanout(&mut d, 5, rect(0, 0, 40, 30)), OK);
    assert_eq!(flush(&mut d, &guest, 5, rect(0, 0, 1, 1)), Done::Flushed);
    let image = d.screen().image().unwrap();
    assert_eq!((image.width, image.height, image.rgba.len()), (40, 30, 4800));
    for (x, y) in [(0, 0), (39, 0), (24, 25), (39, 29)] {
        assert_eq!(pixel(&image, x, y), [7, y as u8, x as u8, 255], "{x},{y}");
    }
    assert_eq!(set_scanout(&mut d, 0, rect(0, 0, 0, 0)), OK);
    assert_eq!(d.screen().image(), None);
}

#[test]
fn only_what_is_transferred_and_flushed_changes() {
    let (mut d, guest) = shown();
    // The part that is shown begins at 10, 10; its first flush shows all of it, black so far.
    assert_eq!(set_scanout(&mut d, 5, rect(10, 10, 20, 20)), OK);
    assert_eq!(flush(&mut d, &guest, 5, rect(0, 0, 40, 30)), Done::Flushed);
    let offset = 4 * (40 * 12 + 8);
    assert_eq!(transfer(&mut d, &guest, 5, rect(8, 12, 10, 4), offset), OK);
    assert_eq!(flush(&mut d, &guest, 5, rect(0, 0, 12, 14)), Done::Flushed);
    let image = d.screen().image().unwrap();
    assert_eq!(pixel(&image, 0, 2), [7, 12, 10, 255]);
    assert_eq!(pixel(&image, 1, 3), [7, 13, 11, 255]);
    assert_eq!(pixel(&image, 2, 2), [0, 0, 0, 255], "not flushed");
    assert_eq!(pixel(&image, 0, 4), [0, 0, 0, 255], "not flushed");
    assert_eq!(pixel(&image, 0, 1), [0, 0, 0, 255], "not transferred");
    assert_eq!(flush(&mut d, &guest, 5, rect(0, 0, 5, 5)), Done::Flushed, "outside what is shown");
}

#[test]
fn a_flip_shows_all_of_the_new_image() {
    let (mut d, mut guest) = shown();
    assert_eq!(set_scanout(&mut d, 5, rect(0, 0, 40, 30)), OK);
    assert_eq!(transfer(&mut d, &guest, 5, rect(0, 0, 40, 30), 0), OK);
    assert_eq!(flush(&mut d, &guest, 5, rect(0, 0, 40, 30)), Done::Flushed);
    assert_eq!(create(&mut d, 6, format::B8G8R8X8_UNORM, 40, 30), OK);
    assert_eq!(attach(&mut d, &mut guest, 6, &[entry(30, 4800)]), OK);
    guest.memory.write(Gpa(30 * PAGE), &[9; 4800]).unwrap();
    assert_eq!(transfer(&mut d, &guest, 6, rect(0, 0, 40, 30), 0), OK);
    assert_eq!(set_scanout(&mut d, 6, rect(0, 0, 40, 30)), OK);
    assert_eq!(pixel(&d.screen().image().unwrap(), 39, 29), [7, 29, 39, 255], "until the flush");
    assert_eq!(flush(&mut d, &guest, 6, rect(0, 0, 1, 1)), Done::Flushed);
    assert_eq!(pixel(&d.screen().image().unwrap(), 39, 29), [9, 9, 9, 255]);
}

#[test]
fn a_blob_is_shown_from_guest_memory_as_it_is_when_flushed() {
    let (mut d, mut guest) = (display(), TestGuest::new());
    assert_eq!(blob(&mut d, &mut guest, 8, 8192, &[entry(5, 4096), entry(2, 4096)]), OK);
    let r = SetScanoutBlob {
        r: rect(1, 0, 15, 20),
        strides: [80, 0, 0, 0],
        offsets: [4000, 0, 0, 0],
        ..blob_scanout(8, 16, 20)
    };
    assert_eq!(d.control(&guest, &Shown::ScanoutBlob(r)), OK);
    // Row 2 begins 160 bytes after 4000, in the second page; 4 bytes further is what is shown.
    guest.memory.write(Gpa(5 * PAGE + 4000 + 4), &[1, 2, 3, 4]).unwrap();
    guest.memory.write(Gpa(2 * PAGE + (4000 + 2 * 80 + 4) - 4096), &[5, 6, 7, 8]).unwrap();
    assert_eq!(transfer(&mut d, &guest, 8, rect(0, 0, 999, 999), 77), OK, "nothing to do");
    assert!(guest.reads.borrow().is_empty());
    assert_eq!(flush(&mut d, &guest, 8, rect(0, 0, 16, 20)), Done::Flushed);
    let image = d.screen().image().unwrap();
    assert_eq!((image.width, image.height), (15, 20));
    assert_eq!(pixel(&image, 0, 0), [3, 2, 1, 255]);
    assert_eq!(pixel(&image, 0, 2), [7, 6, 5, 255]);
    // Its memory goes: an error, and no panic.
    assert_eq!(d.control(&guest, &Shown::Detach { resource: 8 }), OK);
    assert_eq!(flush(&mut d, &guest, 8, rect(0, 0, 16, 20)), BAD_PARAMETER);
    assert_eq!(attach(&mut d, &mut guest, 8, &[entry(5, 4096)]), OK);
    assert_eq!(flush(&mut d, &guest, 8, rect(0, 0, 16, 20)), BAD_PARAMETER, "too short");
    assert_eq!(flush(&mut d, &guest, 8, rect(0, 0, 17, 20)), BAD_PARAMETER);
}

#[test]
fn bad_blobs_are_refused() {
    let (mut d, mut guest) = (display(), TestGuest::new());
    let page = [entry(1, 4096)];
    assert_eq!(blob(&mut d, &mut guest, 0, 4096, &page), BAD_RESOURCE);
    assert_eq!(blob(&mut d, &mut guest, 1, 0, &page), BAD_PARAMETER);
    assert_eq!(blob(&mut d, &mut guest, 1, 4097, &page), BAD_PARAMETER, "more than its pieces");
    assert_eq!(d.resources.used(), 0, "nothing of it stays");
    let host = ResourceCreateBlob { resource_id: 1, blob_mem: 2, size: 1, ..Default::default() };
    assert_eq!(d.control(&guest, &Shown::CreateBlob(host)), BAD_PARAMETER);
    assert_eq!(blob(&mut d, &mut guest, 1, 4096, &page), OK);
    assert_eq!(blob(&mut d, &mut guest, 1, 4096, &page), BAD_RESOURCE, "twice");

    let good = blob_scanout(1, 32, 32);
    let mut refused = |change: &dyn Fn(&mut SetScanoutBlob), want| {
        let mut r = good;
        change(&mut r);
        assert_eq!(d.control(&guest, &Shown::ScanoutBlob(r)), want, "{r:?}");
    };
    refused(&|r| r.scanout_id = 1, BAD_SCANOUT);
    refused(&|r| r.resource_id = 2, BAD_RESOURCE);
    refused(&|r| r.format = 5, BAD_PARAMETER);
    refused(&|r| r.strides[0] = 127, BAD_PARAMETER);
    refused(&|r| r.strides[0] = u32::MAX, BAD_PARAMETER);
    refused(&|r| r.offsets[0] = 1, BAD_PARAMETER);
    refused(&|r| r.width = 0, BAD_PARAMETER);
    refused(&|r| r.height = u32::MAX, BAD_PARAMETER);
    refused(&|r| r.r.width = 33, BAD_PARAMETER);
    refused(&|r| r.r = rect(0, 0, 0, 4), BAD_PARAMETER);
    refused(&|_| {}, OK);
    assert_eq!(set_scanout(&mut d, 1, rect(0, 0, 4, 4)), BAD_PARAMETER, "a blob has no shape");
    assert_eq!(create(&mut d, 2, 1, 4, 4), OK);
    let not_a_blob = SetScanoutBlob { resource_id: 2, ..good };
    assert_eq!(d.control(&guest, &Shown::ScanoutBlob(not_a_blob)), BAD_PARAMETER);

    d.reset(false);
    assert_eq!(blob(&mut d, &mut guest, 1, 4096, &page), UNSPEC, "not agreed on");
    assert_eq!(d.control(&guest, &Shown::ScanoutBlob(good)), UNSPEC);
}

#[test]
fn bad_resources_are_refused() {
    let mut d = display();
    assert_eq!(create(&mut d, 0, 1, 4, 4), BAD_RESOURCE);
    for (format, width, height) in [(0, 4, 4), (1, 0, 4), (1, 4, 0), (1, u32::MAX, 1)] {
        assert_eq!(create(&mut d, 1, format, width, height), BAD_PARAMETER);
    }
    assert_eq!(create(&mut d, 1, 1, 4, 4), OK);
    assert_eq!(create(&mut d, 1, 1, 4, 4), BAD_RESOURCE);
    let guest = TestGuest::new();
    assert_eq!(d.control(&guest, &Shown::Unref { resource: 2 }), BAD_RESOURCE);
    assert_eq!(d.control(&guest, &Shown::Unref { resource: 1 }), OK);
    assert_eq!(d.control(&guest, &Shown::Unref { resource: 1 }), BAD_RESOURCE);
    assert_eq!(transfer(&mut d, &guest, 1, rect(0, 0, 1, 1), 0), BAD_RESOURCE);
    assert_eq!(flush(&mut d, &guest, 1, rect(0, 0, 1, 1)), BAD_RESOURCE);
    assert_eq!(d.control(&guest, &Shown::Detach { resource: 1 }), BAD_RESOURCE);
    assert_eq!(set_scanout(&mut d, 1, rect(0, 0, 1, 1)), BAD_RESOURCE);
    assert_eq!(d.control(&guest, &Shown::Cursor(cursor(1, 0, 0))), UNSPEC, "the wrong queue");
    assert_eq!(d.cursor(&guest, &Shown::Unref { resource: 1 }), UNSPEC, "the wrong queue");
}

#[test]
fn bad_backings_are_refused_and_leave_nothing() {
    let (mut d, mut guest) = (display(), TestGuest::new());
    assert_eq!(create(&mut d, 1, 1, 40, 30), OK);
    let used = d.resources.used();
    assert_eq!(attach(&mut d, &mut guest, 9, &[entry(1, 4)]), BAD_RESOURCE);
    for bad in [
        &[][..],
        &[entry(1, 0)],
        &[entry(1, 8), entry(PAGES, 1)],
        &[entry(PAGES - 1, 4097)],
        &[MemEntry { addr: u64::MAX - 3, length: 8, padding: 0 }],
    ] {
        assert_eq!(attach(&mut d, &mut guest, 1, bad), BAD_PARAMETER, "{bad:?}");
    }
    guest.entries = vec![entry(1, 16)];
    for count in [2, 16_384, 16_385, u32::MAX] {
        let done = d.control(&guest, &Shown::Attach { resource: 1, entries: count });
        let want = if count == 16_384 { NO_MEMORY } else { BAD_PARAMETER };
        assert!(done == want || done == NO_MEMORY, "{count}: {done:?}");
    }
    assert_eq!(d.resources.used(), used);
    assert_eq!(transfer(&mut d, &guest, 1, rect(0, 0, 1, 1), 0), BAD_PARAMETER, "no backing");
    assert_eq!(d.control(&guest, &Shown::Detach { resource: 1 }), BAD_PARAMETER);
    assert_eq!(attach(&mut d, &mut guest, 1, &[entry(1, 4096), entry(7, 704)]), OK);
    assert_eq!(attach(&mut d, &mut guest, 1, &[entry(1, 4096)]), BAD_PARAMETER, "twice");
    assert_eq!(d.control(&guest, &Shown::Detach { resource: 1 }), OK);
    assert_eq!(d.resources.used(), used);
}

#[test]
fn transfers_stay_inside_the_image_and_its_memory() {
    let (mut d, guest) = shown();
    let have = 4096 + 300 + 4096u64;
    for (r, offset) in [
        (rect(0, 0, 41, 30), 0),
        (rect(0, 0, 40, 31), 0),
        (rect(40, 0, 1, 1), 0),
        (rect(u32::MAX, 0, 2, 1), 0),
        (rect(0, u32::MAX, 1, 1), 0),
        (rect(1, 0, u32::MAX, 1), 0),
        (rect(0, 0, 1, 1), have - 3),
        (rect(0, 0, 40, 30), have - 4799),
        (rect(0, 0, 1, 1), u64::MAX),
        (rect(0, 0, 1, 30), u64::MAX - 160),
    ] {
        assert_eq!(transfer(&mut d, &guest, 5, r, offset), BAD_PARAMETER, "{r:?} {offset}");
    }
    assert!(guest.reads.borrow().is_empty(), "refused before anything was read");
    assert_eq!(transfer(&mut d, &guest, 5, rect(39, 29, 1, 1), have - 4), OK);
    assert_eq!(transfer(&mut d, &guest, 5, rect(40, 30, 0, 0), u64::MAX), OK, "nothing to do");
    guest.memory.unmap_all();
    assert_eq!(transfer(&mut d, &guest, 5, rect(0, 0, 40, 30), 0), BAD_PARAMETER, "unmapped");
}

#[test]
fn scanouts_show_what_is_inside_an_image() {
    let (mut d, guest) = shown();
    for r in [rect(0, 0, 41, 1), rect(1, 0, u32::MAX, 1), rect(0, 0, 0, 1), rect(40, 0, 1, 1)] {
        assert_eq!(set_scanout(&mut d, 5, r), BAD_PARAMETER);
    }
    let other = SetScanout { r: rect(0, 0, 1, 1), scanout_id: 1, resource_id: 5 };
    assert_eq!(d.control(&guest, &Shown::Scanout(other)), BAD_SCANOUT);
    assert_eq!(d.screen().image(), None);
    assert_eq!(set_scanout(&mut d, 5, rect(0, 0, 40, 30)), OK);
    assert_eq!(flush(&mut d, &guest, 5, rect(0, 0, 41, 1)), BAD_PARAMETER);
    // A resource that goes takes the scanout with it.
    assert_eq!(d.control(&guest, &Shown::Unref { resource: 5 }), OK);
    assert_eq!(d.screen().image(), None);
    assert_eq!(d.resources.used(), 0);
}

#[test]
fn the_quota_holds_images_lists_and_the_front() {
    let (mut d, mut guest) = (display(), TestGuest::new());
    assert_eq!(create(&mut d, 1, 1, 125, 100), OK, "half of it");
    assert_eq!(create(&mut d, 2, 1, 125, 101), NO_MEMORY);
    assert_eq!(set_scanout(&mut d, 1, rect(0, 0, 125, 100)), OK, "the other half");
    assert_eq!(create(&mut d, 2, 1, 1, 1), NO_MEMORY);
    assert_eq!(attach(&mut d, &mut guest, 1, &[entry(1, 4096)]), NO_MEMORY);
    assert_eq!(set_scanout(&mut d, 1, rect(0, 0, 125, 50)), OK, "the front shrinks");
    assert_eq!(create(&mut d, 2, 1, 125, 50), OK);
    assert_eq!(set_scanout(&mut d, 1, rect(0, 0, 125, 100)), NO_MEMORY);
    assert_eq!(d.screen().image().unwrap().height, 50, "what was shown still is");
    assert_eq!(d.resources.used(), QUOTA);
    d.reset(true);
    assert_eq!(d.resources.used(), 0);
    assert_eq!(d.screen().image(), None);
    for id in 1..=resources::MAX_RESOURCES as u32 {
        assert_eq!(create(&mut d, id, 1, 1, 1), OK);
    }
    assert_eq!(create(&mut d, 1 << 20, 1, 1, 1), NO_MEMORY, "too many");
}

#[test]
fn the_cursor_is_drawn_over_the_image() {
    let (mut d, mut guest) = shown();
    assert_eq!(transfer(&mut d, &guest, 5, rect(0, 0, 40, 30), 0), OK);
    assert_eq!(set_scanout(&mut d, 5, rect(0, 0, 40, 30)), OK);
    assert_eq!(flush(&mut d, &guest, 5, rect(0, 0, 40, 30)), Done::Flushed);
    // As Linux makes it: without alpha by its name, and with it in truth. One opaque pixel, one half
    // transparent, the others clear.
    let side = CURSOR_SIDE;
    assert_eq!(create(&mut d, 6, format::B8G8R8X8_UNORM, side, side), OK);
    let mut bytes = [0; 64 * 64 * 4];
    bytes[..8].copy_from_slice(&[1, 2, 3, 255, 100, 0, 0, 128]);
    guest.memory.write(Gpa(40 * PAGE), &bytes).unwrap();
    assert_eq!(attach(&mut d, &mut guest, 6, &[entry(40, 64 * 64 * 4)]), OK);
    assert_eq!(transfer(&mut d, &guest, 6, rect(0, 0, side, side), 0), OK);
    assert_eq!(d.cursor(&guest, &Shown::Cursor(cursor(6, 10, 20))), OK);
    let image = d.screen().image().unwrap();
    assert_eq!(pixel(&image, 10, 20), [3, 2, 1, 255]);
    assert_eq!(pixel(&image, 11, 20), [3, 10, 105, 255], "half of 7, 20 and 11, and 100 of blue");
    assert_eq!(pixel(&image, 12, 20), [7, 20, 12, 255]);
    // Over the edges, and away.
    for (x, y) in [(-63, -63), (39, 29), (i32::MIN, i32::MAX), (i32::MAX, i32::MIN)] {
        assert_eq!(d.cursor(&guest, &Shown::MoveCursor(cursor(0, x, y))), OK);
        assert!(d.screen().image().is_some());
    }
    assert_eq!(d.cursor(&guest, &Shown::MoveCursor(cursor(0, -1, 5))), OK);
    assert_eq!(pixel(&d.screen().image().unwrap(), 0, 5), [3, 2, 100, 255]);
    assert_eq!(d.cursor(&guest, &Shown::Cursor(cursor(0, 0, 0))), OK, "hidden");
    assert_eq!(pixel(&d.screen().image().unwrap(), 0, 5), [7, 5, 0, 255]);
    // A blob is one, too, in DRM's ARGB8888.
    assert_eq!(blob(&mut d, &mut guest, 7, 16_384, &[entry(40, 16_384)]), OK);
    assert_eq!(d.cursor(&guest, &Shown::Cursor(cursor(7, 0, 0))), OK);
    assert_eq!(pixel(&d.screen().image().unwrap(), 0, 0), [3, 2, 1, 255]);
    let mut other = cursor(7, 0, 0);
    other.pos.scanout_id = 3;
    assert_eq!(d.cursor(&guest, &Shown::Cursor(other)), BAD_SCANOUT);
    assert_eq!(d.cursor(&guest, &Shown::MoveCursor(other)), BAD_SCANOUT);
    assert_eq!(d.cursor(&guest, &Shown::Cursor(cursor(99, 0, 0))), BAD_RESOURCE);
    assert_eq!(d.cursor(&guest, &Shown::Cursor(cursor(5, 0, 0))), BAD_PARAMETER, "not 64 x 64");
}

#[test]
fn copies_are_paid_for() {
    let (mut d, guest) = shown();
    d.take_cost();
    assert_eq!(transfer(&mut d, &guest, 5, rect(0, 0, 40, 30), 0), OK);
    assert!(d.take_cost() >= 4800_u64.div_ceil(4096));
    assert_eq!(d.take_cost(), 0);
    // 4K at 60 Hz meets the bound on the rate, a small display its own need.
    let settings = |width, height| {
        let period = Period::from_hz(60, 1).unwrap();
        DisplaySettings { width, height, period, quota: QUOTA }
    };
    for (width, height, at_most, at_least) in
        [(3840, 2160, 2u64 << 30, 2_000_000_000), (640, 480, 222_000_000, 221_000_000)]
    {
        let mut bucket = settings(width, height).allowance();
        let mut bytes = 0;
        let mut now = Nanos::ZERO;
        // What comes at once at first is not part of the rate.
        while bucket.take(now, 1).is_ok() {}
        while now < Nanos::from_secs(1) {
            match bucket.take(now, 1) {
                Ok(()) => bytes += 4096,
                Err(until) => now = until,
            }
        }
        assert!((at_least..=at_most).contains(&bytes), "{width}x{height}: {bytes} bytes a second");
    }
}
