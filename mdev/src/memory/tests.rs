use super::*;
use std::sync::atomic::{AtomicBool, AtomicU64};

const PAGE: u64 = 4096;

fn map_of(iova: u64, size: u64, fd: Option<OwnedFd>) -> DmaMap {
    DmaMap { iova, size, flags: DmaFlags { read: true, write: true }, fd, fd_offset: 0 }
}

fn memfd(size: u64) -> OwnedFd {
    sealed_memfd("test", size, SealFlags::empty()).unwrap()
}

#[test]
fn copies_of_every_size_and_alignment_come_back() {
    let memory = GuestMemory::for_test(4096).unwrap();
    let data: Vec<u8> = (0..40u8).map(|n| n ^ 0x5a).collect();
    for start in 0..17u64 {
        for len in 0..data.len() {
            memory.write(Gpa(0), &[0; 80]).unwrap();
            memory.write(Gpa(start), &data[..len]).unwrap();
            let mut back = vec![0; len + 1];
            memory.read(Gpa(start), &mut back).unwrap();
            assert_eq!(back[..len], data[..len]);
            assert_eq!(back[len], 0, "one past the end is untouched");
        }
    }
}

#[test]
fn accesses_straddle_neighbouring_mappings_and_stop_at_holes() {
    let memory = GuestMemory::new();
    memory.map(map_of(PAGE, PAGE, Some(memfd(PAGE)))).unwrap();
    memory.map(map_of(2 * PAGE, PAGE, Some(memfd(PAGE)))).unwrap();
    memory.write(Gpa(2 * PAGE - 3), b"abcdef").unwrap();
    let mut back = [0; 6];
    memory.read(Gpa(2 * PAGE - 3), &mut back).unwrap();
    assert_eq!(&back, b"abcdef");

    let late = memory.write(Gpa(3 * PAGE - 1), b"xy");
    assert_eq!(
        late,
        Err(MemoryError::NotMapped { at: Gpa(3 * PAGE), start: Gpa(3 * PAGE - 1), len: 2 })
    );
    let mut last = [1];
    memory.read(Gpa(3 * PAGE - 1), &mut last).unwrap();
    assert_eq!(last, [0], "a write that fails writes nothing");
    assert!(memory.read(Gpa(0), &mut last).is_err());
    assert!(matches!(memory.check(Gpa(u64::MAX), 2, false), Err(MemoryError::Wraps { .. })));
}

#[test]
fn rights_and_missing_descriptors_are_kept() {
    let memory = GuestMemory::new();
    let mut readable = map_of(0, PAGE, Some(memfd(PAGE)));
    readable.flags.write = false;
    memory.map(readable).unwrap();
    memory.map(map_of(PAGE, PAGE, None)).unwrap();
    assert!(memory.check(Gpa(0), 8, false).is_ok());
    assert_eq!(
        memory.write(Gpa(4), &[1]),
        Err(MemoryError::Forbidden { at: Gpa(4), access: "writing" })
    );
    assert!(matches!(memory.write_u16_release(Gpa(4), 1), Err(MemoryError::Forbidden { .. })));
    assert!(matches!(memory.check(Gpa(PAGE), 1, false), Err(MemoryError::Forbidden { .. })));
}

#[test]
fn only_memory_that_cannot_shrink_is_mapped() {
    let memory = GuestMemory::new();
    let open =
        rustix::fs::memfd_create("open", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&open, PAGE).unwrap();
    assert_eq!(
        memory.map(map_of(0, PAGE, Some(open))),
        Err(MemoryError::NotSealed { start: Gpa(0) })
    );
    let file = tempfile::tempfile().unwrap();
    assert_eq!(
        memory.map(map_of(0, PAGE, Some(file.into()))),
        Err(MemoryError::NotSealed { start: Gpa(0) })
    );
    assert_eq!(
        memory.map(map_of(0, 2 * PAGE, Some(memfd(PAGE)))),
        Err(MemoryError::TooShort { start: Gpa(0), need: 2 * PAGE, have: PAGE })
    );
    let mut far = map_of(0, PAGE, Some(memfd(PAGE)));
    far.fd_offset = u64::MAX;
    assert!(matches!(memory.map(far), Err(MemoryError::TooShort { .. })));
}

#[test]
fn overlap_count_and_exact_unmap_are_checked() {
    let memory = GuestMemory::new();
    for n in 0..MAX_MAPPINGS as u64 {
        memory.map(map_of(n * 2 * PAGE, PAGE, None)).unwrap();
    }
    assert_eq!(memory.map(map_of(1 << 40, PAGE, None)), Err(MemoryError::TooMany));
    memory.unmap(Gpa(0), PAGE).unwrap();
    assert_eq!(
        memory.map(map_of(PAGE, 2 * PAGE, None)),
        Err(MemoryError::Overlap { start: Gpa(PAGE), size: 2 * PAGE, other: Gpa(2 * PAGE) })
    );
    assert!(matches!(
        memory.unmap(Gpa(2 * PAGE), 2 * PAGE),
        Err(MemoryError::NoSuchMapping { .. })
    ));
    assert!(matches!(
        memory.map(map_of(u64::MAX - 4095, 2 * PAGE, None)),
        Err(MemoryError::BadRange { .. })
    ));
    assert!(matches!(memory.map(map_of(0, 0, None)), Err(MemoryError::BadRange { .. })));
    memory.unmap_all();
    memory.map(map_of(0, 1 << 30, None)).unwrap();
}

/// A virtual IOMMU's mappings: single pages of one file, in any order.
#[test]
fn many_pages_of_one_file_are_one_mapping() {
    let memory = GuestMemory::new();
    let pages = MAX_MAPPINGS as u64;
    let fd = memfd(pages * PAGE);
    for n in 0..pages {
        let fd = fd.try_clone().unwrap();
        let map = map_of((pages - n) * PAGE, PAGE, Some(fd));
        memory.map(DmaMap { fd_offset: n * PAGE, ..map }).unwrap();
    }
    assert_eq!(memory.snapshot().files().len(), 1);
    let view = Mapping::new(fd.as_fd(), 0, (pages * PAGE) as usize, false).unwrap();
    // Over the border of two pages, which lie the other way round in the file.
    memory.write(Gpa(8 * PAGE - 2), b"abcd").unwrap();
    let (mut first, mut second) = ([0; 2], [0; 2]);
    view.read(((pages - 7) * PAGE + PAGE - 2) as usize, &mut first);
    view.read(((pages - 8) * PAGE) as usize, &mut second);
    assert_eq!((&first, &second), (b"ab", b"cd"));

    // The file is still mapped, the page is not.
    memory.unmap(Gpa(8 * PAGE), PAGE).unwrap();
    assert!(memory.check(Gpa(8 * PAGE), 1, false).is_err());
    assert!(memory.check(Gpa(8 * PAGE - 1), 1, true).is_ok());
    assert!(memory.check(Gpa(9 * PAGE), 1, true).is_ok());
    // Another right is another mapping.
    let mut readable = map_of(8 * PAGE, PAGE, Some(fd));
    readable.flags.write = false;
    memory.map(readable).unwrap();
    assert_eq!(memory.snapshot().files().len(), 2);
    assert!(memory.write(Gpa(8 * PAGE), &[1]).is_err());
}

#[test]
fn files_are_bounded() {
    let memory = GuestMemory::new();
    for n in 0..MAX_FILES as u64 {
        memory.map(map_of(n * PAGE, PAGE, Some(memfd(PAGE)))).unwrap();
    }
    let more = || map_of(1 << 40, PAGE, Some(memfd(PAGE)));
    assert_eq!(memory.map(more()), Err(MemoryError::TooMany));
    memory.unmap(Gpa(0), PAGE).unwrap();
    memory.map(more()).unwrap();
}

/// Files of holes cost a VMM nothing, and this process its address space.
#[test]
fn the_length_of_all_files_is_bounded() {
    let memory = GuestMemory::new();
    let half = MAX_FILE_BYTES / 2;
    memory.map(map_of(0, PAGE, Some(memfd(half)))).unwrap();
    memory.map(map_of(PAGE, PAGE, Some(memfd(half - PAGE)))).unwrap();
    let len = 2 * PAGE;
    let more = || map_of(1 << 40, PAGE, Some(memfd(len)));
    assert_eq!(memory.map(more()), Err(MemoryError::TooLarge { len }));
    memory.unmap(Gpa(0), PAGE).unwrap();
    memory.map(more()).unwrap();
}

#[test]
fn atomics_want_alignment() {
    let memory = GuestMemory::for_test(4096).unwrap();
    memory.write(Gpa(8), &0x0807_0605_0403_0201u64.to_le_bytes()).unwrap();
    assert_eq!(memory.read_u16(Gpa(10)), Ok(0x0403));
    assert_eq!(memory.read_u32(Gpa(12)), Ok(0x0807_0605));
    assert_eq!(memory.read_u64(Gpa(8)), Ok(0x0807_0605_0403_0201));
    assert_eq!(memory.read_u16(Gpa(9)), Err(MemoryError::Misaligned { at: Gpa(9), size: 2 }));
    memory.write_u16_release(Gpa(8), 0xaabb).unwrap();
    assert_eq!(memory.read_u16(Gpa(8)), Ok(0xaabb));
}

/// After each unmap the memory is poisoned through another mapping of it: a reader that sees poison read
/// after `unmap` had returned.
#[test]
fn nothing_reads_after_unmap_returns() {
    const POISON: u64 = 0xdead_dead_dead_dead;
    let memory = GuestMemory::new();
    let stop = AtomicBool::new(false);
    let seen = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut buffer = [0u8; 1024];
                while !stop.load(Ordering::Relaxed) {
                    if memory.read(Gpa(0), &mut buffer).is_ok() {
                        seen.fetch_add(1, Ordering::Relaxed);
                        for word in buffer.as_chunks::<8>().0 {
                            assert_ne!(u64::from_ne_bytes(*word), POISON);
                        }
                    }
                }
            });
        }
        for _ in 0..300 {
            let fd = memfd(PAGE);
            let ours = Mapping::new(fd.as_fd(), 0, PAGE as usize, true).unwrap();
            let before = seen.load(Ordering::Relaxed);
            memory.map(map_of(0, PAGE, Some(fd))).unwrap();
            while seen.load(Ordering::Relaxed) == before {
                std::thread::yield_now();
            }
            memory.unmap(Gpa(0), PAGE).unwrap();
            for offset in (0..1024).step_by(8) {
                ours.store_u64(offset, POISON);
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}
