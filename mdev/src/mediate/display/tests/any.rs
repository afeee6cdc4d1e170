//! Requests that nobody would make.

use super::*;
use proptest::prelude::*;

fn any_rect() -> impl Strategy<Value = Rect> {
    let n = || prop_oneof![8 => 0u32..80, 1 => Just(u32::MAX), 1 => any::<u32>()];
    (n(), n(), n(), n()).prop_map(|(x, y, width, height)| Rect { x, y, width, height })
}

fn any_request() -> impl Strategy<Value = Shown> {
    let id = 0u32..5;
    let side = || prop_oneof![8 => 0u32..80, 1 => any::<u32>()];
    let raw = prop_oneof![Just(1u32), Just(2), Just(134), any::<u32>()];
    let offset = || prop_oneof![4 => 0u64..9000, 1 => any::<u64>()];
    prop_oneof![
        3 => (id.clone(), raw.clone(), side(), side()).prop_map(|(resource_id, format, width, height)| {
            Shown::Create(ResourceCreate2d { resource_id, format, width, height })
        }),
        2 => (id.clone(), 0u32..3, 0u32..9, 0u32..5, offset()).prop_map(
            |(resource_id, blob_mem, blob_flags, nr_entries, size)| {
                let blob_id = 0;
                Shown::CreateBlob(ResourceCreateBlob {
                    resource_id, blob_mem, blob_flags, nr_entries, blob_id, size,
                })
            }
        ),
        1 => id.clone().prop_map(|resource| Shown::Unref { resource }),
        3 => (id.clone(), 0u32..5).prop_map(|(resource, entries)| Shown::Attach { resource, entries }),
        1 => id.clone().prop_map(|resource| Shown::Detach { resource }),
        3 => (id.clone(), any_rect(), offset()).prop_map(|(resource_id, r, offset)| {
            Shown::Transfer(TransferToHost2d { r, offset, resource_id, padding: 0 })
        }),
        3 => (id.clone(), any_rect(), 0u32..2).prop_map(|(resource_id, r, scanout_id)| {
            Shown::Scanout(SetScanout { r, scanout_id, resource_id })
        }),
        3 => (id.clone(), any_rect(), side(), side(), raw, any::<u32>(), 0u32..500).prop_map(
            |(resource_id, r, width, height, format, offset, stride)| {
                let mut s = SetScanoutBlob { r, resource_id, width, height, format, ..blob_scanout(0, 1, 1) };
                (s.offsets[0], s.strides[0]) = (offset % 5000, stride);
                Shown::ScanoutBlob(s)
            }
        ),
        4 => (id.clone(), any_rect()).prop_map(|(resource, rect)| Shown::Flush { resource, rect }),
        1 => (id, any::<i32>(), -70i32..70).prop_map(|(id, x, y)| Shown::Cursor(cursor(id, x, y))),
    ]
}

proptest! {
    /// Any requests in any order: no panic, nothing read but what was attached, no more memory than the
    /// quota, and an image whose size is what it says.
    #[test]
    fn any_requests_stay_inside(
        requests in prop::collection::vec((any_request(), any::<bool>()), 1..60),
        entries in prop::collection::vec((0u64..PAGES + 1, 1u32..6000), 4),
    ) {
        let (mut d, mut guest) = (display(), TestGuest::new());
        guest.entries = entries.iter().map(|(page, length)| entry(*page, *length)).collect();
        let allowed: Vec<_> =
            guest.entries.iter().map(|e| e.addr..e.addr + u64::from(e.length)).collect();
        for (request, on_cursor) in &requests {
            let list = BlobList(&guest);
            let blob: &dyn Guest = if matches!(request, Shown::CreateBlob(_)) { &list } else { &guest };
            let done = if *on_cursor && matches!(request, Shown::Cursor(_)) {
                d.cursor(blob, request)
            } else {
                d.control(blob, request)
            };
            prop_assert_ne!(done, Done::Gone);
            prop_assert!(d.resources.used() <= QUOTA);
            if let Some(image) = d.screen().image() {
                prop_assert_eq!(image.rgba.len() as u64, u64::from(image.width) * u64::from(image.height) * 4);
            }
        }
        for (at, len) in guest.reads.borrow().iter() {
            let inside = allowed.iter().any(|r| r.start <= *at && at + *len as u64 <= r.end);
            prop_assert!(inside, "{len} bytes at {at:#x}");
        }
        let all: Vec<u32> = (1..5).collect();
        for id in all {
            let _ = d.control(&guest, &Shown::Unref { resource: id });
        }
        prop_assert_eq!(d.resources.used(), 0);
    }
}
