use super::*;
use crate::devices::virtio::testing::{Driver, Part, RAM, Ring};
use proptest::prelude::*;
use std::io;
use std::path::{Path, PathBuf};
use virtio_bindings::virtio_blk as spec;

const IN: u32 = spec::VIRTIO_BLK_T_IN;
const OUT: u32 = spec::VIRTIO_BLK_T_OUT;
const FLUSH: u32 = spec::VIRTIO_BLK_T_FLUSH;
const ID: u32 = spec::VIRTIO_BLK_T_GET_ID;
const DISCARD: u32 = spec::VIRTIO_BLK_T_DISCARD;
const ZEROES: u32 = spec::VIRTIO_BLK_T_WRITE_ZEROES;
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPPORTED: u8 = 2;

const SIZE: u64 = 4 << 20;

fn raw(path: &Path) -> Source {
    Source { path: path.to_owned(), readonly: false, format: None }
}

/// A file in which every sector says its number.
fn file(dir: &tempfile::TempDir) -> PathBuf {
    let path = dir.path().join("disk.img");
    let bytes: Vec<u8> = (0..SIZE / SECTOR).flat_map(|n| pattern(n, 1)).collect();
    std::fs::write(&path, bytes).unwrap();
    path
}

fn pattern(sector: u64, count: u64) -> Vec<u8> {
    (sector..sector + count).flat_map(|n| n.to_le_bytes().repeat(64)).collect()
}

/// A driver with its queue, and memory for one request.
struct Disk1 {
    d: Driver,
    ring: Ring,
    header: u64,
    data: u64,
    status: u64,
}

impl Disk1 {
    fn new(source: &Source) -> Self {
        Self::over(Blk::new("disk", open(source).unwrap(), "beam-0001"), u64::MAX)
    }

    fn over(blk: Blk, features: u64) -> Self {
        let mut d = Driver::new(blk);
        d.agree(features);
        let ring = d.queue(0, 64);
        d.ready();
        let (header, data, status) = (d.room(16), d.room(1 << 20), d.room(1));
        Self { d, ring, header, data, status }
    }

    fn header(&mut self, kind: u32, sector: u64) {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[8..].copy_from_slice(&sector.to_le_bytes());
        self.put(self.header, &bytes);
        self.put(self.status, &[0xff]);
    }

    fn put(&mut self, at: u64, bytes: &[u8]) {
        use vm_memory::Bytes;
        self.d.memory.write_slice(bytes, crate::Gpa(at)).unwrap();
    }

    fn run(&mut self, parts: &[Part]) -> u8 {
        self.d.run(&mut self.ring, parts);
        self.d.look(self.status, 1)[0]
    }

    fn read(&mut self, sector: u64, len: u32) -> (u8, Vec<u8>) {
        self.header(IN, sector);
        // Spread over descriptors of odd sizes.
        let first = len / 3;
        let status = self.run(&[
            Part::Out(self.header, 16),
            Part::In(self.data, first),
            Part::In(self.data + u64::from(first), len - first),
            Part::In(self.status, 1),
        ]);
        (status, self.d.look(self.data, len as usize))
    }

    fn send(&mut self, kind: u32, sector: u64, data: &[u8]) -> u8 {
        self.header(kind, sector);
        self.put(self.data, data);
        let (half, len) = (data.len() as u32 / 2, data.len() as u32);
        self.run(&[
            Part::Out(self.header, 7),
            Part::Out(self.header + 7, 9),
            Part::Out(self.data, half),
            Part::Out(self.data + u64::from(half), len - half),
            Part::In(self.status, 1),
        ])
    }

    fn range(&mut self, kind: u32, sector: u64, count: u32, flags: u32) -> u8 {
        let mut range = sector.to_le_bytes().to_vec();
        range.extend(count.to_le_bytes());
        range.extend(flags.to_le_bytes());
        self.send(kind, 0, &range)
    }
}

#[test]
fn what_is_written_is_in_the_file_and_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir);
    let mut disk = Disk1::new(&raw(&path));
    let (status, data) = disk.read(5, 3 * 512);
    assert_eq!((status, data), (OK, pattern(5, 3)));
    // Longer than what is copied at once.
    let (status, data) = disk.read(100, 600 << 10);
    assert_eq!((status, data), (OK, pattern(100, 1200)));
    let new = vec![0xa5; 300 << 10];
    assert_eq!(disk.send(OUT, 1000, &new), OK);
    assert_eq!(disk.send(FLUSH, 0, &[]), OK);
    assert_eq!(disk.read(1000, 300 << 10), (OK, new.clone()));
    let all = std::fs::read(&path).unwrap();
    assert_eq!(all[1000 * 512..][..300 << 10], new);
    assert_eq!(all[..1000 * 512], pattern(0, 1000));
    assert_eq!(all[1600 * 512..], pattern(1600, SIZE / 512 - 1600));
}

#[test]
fn the_driver_is_told_what_the_disk_is() {
    let dir = tempfile::tempdir().unwrap();
    let mut disk = Disk1::new(&raw(&file(&dir)));
    let mut config = [0; 60];
    disk.d.device_config(0, &mut config);
    assert_eq!(u64::from_le_bytes(config[..8].try_into().unwrap()), SIZE / 512);
    assert_eq!(config[12], 254);
    assert_eq!(config[20..24], 512u32.to_le_bytes());
    assert_eq!(config[24], 3, "8 logical blocks to a physical one");
    disk.header(ID, 0);
    let status =
        disk.run(&[Part::Out(disk.header, 16), Part::In(disk.data, 20), Part::In(disk.status, 1)]);
    assert_eq!(status, OK);
    assert_eq!(disk.d.look(disk.data, 20), b"beam-0001\0\0\0\0\0\0\0\0\0\0\0");
}

#[test]
fn ranges_become_zero_and_give_their_room_back() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir);
    let mut disk = Disk1::new(&raw(&path));
    let before = std::fs::metadata(&path).unwrap().blocks();
    for flags in [0, 1] {
        assert_eq!(disk.range(ZEROES, 8, 8, flags), OK);
        assert_eq!(disk.read(8, 4096), (OK, vec![0; 4096]));
    }
    assert_eq!(disk.read(7, 512), (OK, pattern(7, 1)));
    assert_eq!(disk.read(16, 512), (OK, pattern(16, 1)));
    assert_eq!(disk.range(DISCARD, 1024, 2048, 0), OK);
    assert_eq!(disk.send(FLUSH, 0, &[]), OK);
    assert!(std::fs::metadata(&path).unwrap().blocks() < before);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), SIZE, "the size stays");
    for (kind, sector, count, flags, status) in [
        (DISCARD, 0, 1, 1, UNSUPPORTED),
        (ZEROES, 0, 1, 2, UNSUPPORTED),
        (ZEROES, SIZE / 512, 1, 0, IOERR),
        (ZEROES, u64::MAX, 2, 0, IOERR),
        (DISCARD, 0, u32::MAX, 0, IOERR),
    ] {
        assert_eq!(disk.range(kind, sector, count, flags), status);
    }
    assert_eq!(disk.send(DISCARD, 0, &[0; 15]), IOERR);
    assert_eq!(disk.send(DISCARD, 0, &[]), IOERR);
    assert_eq!(disk.send(DISCARD, 0, &[0; 17 * 16]), IOERR);
    assert_eq!(disk.read(17, 512), (OK, pattern(17, 1)));
}

#[test]
fn bad_requests_are_answered_and_the_next_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let mut disk = Disk1::new(&raw(&file(&dir)));
    assert_eq!(disk.read(SIZE / 512, 512).0, IOERR);
    assert_eq!(disk.read(SIZE / 512 - 1, 1024).0, IOERR);
    assert_eq!(disk.read(u64::MAX, 512).0, IOERR);
    assert_eq!(disk.read(u64::MAX / 512, 1024).0, IOERR);
    assert_eq!(disk.read(0, 513).0, IOERR);
    assert_eq!(disk.send(OUT, SIZE / 512, &[1; 512]), IOERR);
    assert_eq!(disk.send(OUT, 0, &[1; 511]), IOERR);
    assert_eq!(disk.send(77, 0, &[]), UNSUPPORTED);
    disk.header(IN, 0);
    let (header, status, data) = (disk.header, disk.status, disk.data);
    for parts in [
        &[Part::Out(header, 15), Part::In(data, 512), Part::In(status, 1)][..],
        &[Part::Out(RAM, 16), Part::In(data, 512), Part::In(status, 1)],
        &[Part::Out(header, 16), Part::In(RAM - 256, 512), Part::In(status, 1)],
    ] {
        disk.put(status, &[0xff]);
        assert_eq!(disk.run(parts), IOERR);
    }
    // Nowhere to put the status.
    assert_eq!(disk.d.run(&mut disk.ring, &[Part::Out(header, 16)]), 0);
    assert_eq!(disk.d.run(&mut disk.ring, &[Part::Out(header, 16), Part::In(RAM, 1)]), 0);
    assert_eq!(disk.read(9, 512), (OK, pattern(9, 1)));
}

#[test]
fn a_read_only_disk_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir);
    let source = Source { readonly: true, ..raw(&path) };
    let mut disk = Disk1::new(&source);
    assert_ne!(disk.d.offered() & 1 << spec::VIRTIO_BLK_F_RO, 0);
    assert_eq!(disk.send(OUT, 0, &[1; 512]), IOERR);
    assert_eq!(disk.range(ZEROES, 0, 1, 0), IOERR);
    assert_eq!(disk.range(DISCARD, 0, 1, 0), IOERR);
    assert_eq!(disk.read(0, 512), (OK, pattern(0, 1)));
    assert_eq!(std::fs::read(&path).unwrap()[..512], pattern(0, 1));
}

#[test]
fn a_disk_in_use_is_refused_and_readers_share() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir);
    let reading = Source { readonly: true, ..raw(&path) };
    let first = open(&raw(&path)).unwrap();
    for source in [&raw(&path), &reading] {
        let e = open(source).err().expect("it is in use").to_string();
        assert!(e.contains("disk.img") && e.contains("in use"), "{e}");
    }
    drop(first);
    let one = open(&reading).unwrap();
    let two = open(&reading).unwrap();
    assert!(open(&raw(&path)).is_err());
    drop((one, two));
    open(&raw(&path)).unwrap();
}

#[test]
fn what_is_no_disk_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    let message = |source: &Source| open(source).err().expect("it is refused").to_string();
    assert!(
        message(&raw(&path)).contains("cannot be opened for writing; correct the disk's `path`")
    );
    std::fs::write(&path, [0; 511]).unwrap();
    assert!(message(&raw(&path)).contains("at least 512: `truncate"));
    assert!(message(&raw(Path::new("/dev/null"))).contains("neither"));
    let qcow = [b"QFI\xfb".to_vec(), vec![0; 4096]].concat();
    std::fs::write(&path, &qcow).unwrap();
    assert!(message(&raw(&path)).contains("format = \"qcow2\""));
    let source = Source { format: Some(Format::Qcow2), ..raw(&path) };
    assert!(message(&source).contains("cannot be used"));
    let disk = open(&Source { format: Some(Format::Raw), ..raw(&path) }).unwrap();
    assert_eq!(disk.size(), qcow.len() as u64);
}

#[test]
fn a_qcow2_image_keeps_what_is_written_and_shares_what_is_zero() {
    use imago::FormatCreateBuilder;
    use imago::file::File;
    use imago::qcow2::Qcow2;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.qcow2");
    let file = std::fs::File::options().read(true).write(true).create_new(true).open(&path);
    let file = File::try_from(file.unwrap()).unwrap();
    Qcow2::<File>::create_builder(file).size(64 << 20).create().unwrap();
    let source = Source { format: Some(Format::Qcow2), ..raw(&path) };
    let mut disk = Disk1::new(&source);
    let mut config = [0; 8];
    disk.d.device_config(0, &mut config);
    assert_eq!(u64::from_le_bytes(config), (64 << 20) / 512);
    assert_eq!(disk.read(100_000, 4096), (OK, vec![0; 4096]));
    assert_eq!(disk.send(OUT, 100_000, &pattern(7, 600)), OK);
    assert_eq!(disk.range(ZEROES, 100_008, 8, 1), OK);
    assert_eq!(disk.range(ZEROES, 100_016, 8, 0), OK);
    assert_eq!(disk.range(DISCARD, 0, 8, 0), OK);
    assert_eq!(disk.send(FLUSH, 0, &[]), OK);
    let e = open(&source).err().expect("it is locked").to_string();
    assert!(e.contains("in use"), "{e}");
    drop(disk);
    assert!(std::fs::metadata(&path).unwrap().len() < 8 << 20, "it is not as long as the disk");
    let mut disk = Disk1::new(&Source { readonly: true, ..source });
    let expected = [pattern(7, 8), vec![0; 16 * 512], pattern(31, 576)].concat();
    assert_eq!(disk.read(100_000, 600 * 512), (OK, expected));
    assert_eq!(disk.send(OUT, 0, &[1; 512]), IOERR);
    drop(disk);
    // One with a backing file: whoever wrote it must not choose what the guest reads.
    let file =
        std::fs::File::options().read(true).write(true).create(true).truncate(true).open(&path);
    let file = File::try_from(file.unwrap()).unwrap();
    Qcow2::<File>::create_builder(file)
        .size(64 << 20)
        .backing("/etc/hostname".into(), "raw".into())
        .create()
        .unwrap();
    let source = Source { format: Some(Format::Qcow2), ..raw(&path) };
    let e = open(&source).err().expect("it is refused").to_string();
    assert!(e.contains("backing"), "{e}");
}

/// Part of a cluster is zeroed, and the rest of it is more than the disk has.
#[test]
fn a_qcow2_disk_can_be_smaller_than_a_cluster() {
    use imago::FormatCreateBuilder;
    use imago::file::File;
    use imago::qcow2::Qcow2;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.qcow2");
    let file = std::fs::File::options().read(true).write(true).create_new(true).open(&path);
    let file = File::try_from(file.unwrap()).unwrap();
    Qcow2::<File>::create_builder(file).size(32 << 10).create().unwrap();
    let source = Source { format: Some(Format::Qcow2), ..raw(&path) };
    let mut disk = Disk1::new(&source);
    assert_eq!(disk.send(OUT, 0, &pattern(0, 64)), OK);
    assert_eq!(disk.range(ZEROES, 8, 8, 1), OK);
    assert_eq!(disk.range(ZEROES, 24, 8, 0), OK);
    assert_eq!(disk.range(DISCARD, 40, 8, 0), OK);
    let gap = || vec![0; 8 * 512];
    let expected = [pattern(0, 8), gap(), pattern(16, 8), gap(), pattern(32, 8)].concat();
    assert_eq!(disk.read(0, 40 * 512), (OK, expected));
    assert_eq!(disk.read(48, 16 * 512), (OK, pattern(48, 16)));
}

/// By one that is empty the crate would call itself until the stack ends.
#[test]
fn a_qcow2_image_with_a_damaged_refcount_table_is_not_written() {
    use imago::FormatCreateBuilder;
    use imago::file::File;
    use imago::qcow2::Qcow2;
    use std::os::unix::fs::FileExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.qcow2");
    let file = std::fs::File::options().read(true).write(true).create_new(true).open(&path);
    let file = file.unwrap();
    let image = File::try_from(file.try_clone().unwrap()).unwrap();
    Qcow2::<File>::create_builder(image).size(64 << 20).create().unwrap();
    let source = Source { format: Some(Format::Qcow2), ..raw(&path) };
    open(&source).unwrap();
    let mut place = [0; 8];
    file.read_exact_at(&mut place, 48).unwrap();
    let table = u64::from_be_bytes(place);
    let mut first = [0; 8];
    file.read_exact_at(&mut first, table).unwrap();
    for (entries, word) in [
        (vec![0; 8], "empty"),
        ([first, [0; 8], first].concat(), "holes"),
        ((1u64 << 50).to_be_bytes().to_vec(), "not in the file"),
        ((u64::from_be_bytes(first) + 512).to_be_bytes().to_vec(), "not in the file"),
    ] {
        file.write_all_at(&[0; 24], table).unwrap();
        file.write_all_at(&entries, table).unwrap();
        let Err(ImageError::Qcow2 { source: why, .. }) = open(&source) else {
            panic!("it is refused: {word}")
        };
        assert!(why.to_string().contains(word), "{why}");
    }
    let reader = Source { readonly: true, ..source };
    open(&reader).unwrap();
    // More disk than its table stands for, which would grow as the guest uses it.
    let mut size = [0; 8];
    file.read_exact_at(&mut size, 24).unwrap();
    file.write_all_at(&(1u64 << 50).to_be_bytes(), 24).unwrap();
    let Err(ImageError::Qcow2 { source: why, .. }) = open(&reader) else { panic!("it is refused") };
    assert!(why.to_string().contains("too small for its disk"), "{why}");
    file.write_all_at(&size, 24).unwrap();
    open(&reader).unwrap();
    // As many entries as the crate takes, in a file of some hundred KiB.
    file.write_all_at(&(4u32 << 20).to_be_bytes(), 36).unwrap();
    let Err(ImageError::Qcow2 { source: why, .. }) = open(&reader) else { panic!("it is refused") };
    assert!(why.to_string().contains("L1 table"), "{why}");
}

/// A disk that is full, or broken in another way.
struct Broken {
    writes: io::ErrorKind,
    flushes: usize,
}

impl Disk for Broken {
    fn size(&self) -> u64 {
        SIZE
    }
    fn readonly(&self) -> bool {
        false
    }
    fn read(&mut self, _: u64, to: &mut [u8]) -> io::Result<()> {
        to.fill(self.flushes as u8);
        Ok(())
    }
    fn write(&mut self, at: u64, _: &[u8]) -> io::Result<()> {
        if at == 0 { Ok(()) } else { Err(self.writes.into()) }
    }
    fn flush(&mut self) -> io::Result<()> {
        self.flushes += 1;
        Ok(())
    }
    fn zero(&mut self, _: u64, _: u64, _: bool) -> io::Result<()> {
        Err(self.writes.into())
    }
    fn discard(&mut self, _: u64, _: u64) -> io::Result<()> {
        Err(self.writes.into())
    }
}

#[test]
fn a_full_disk_is_an_error_that_is_counted() {
    let full = Broken { writes: io::ErrorKind::StorageFull, flushes: 0 };
    let blk = Blk::new("disk", Box::new(full), "");
    let counters = blk.counters();
    let mut disk = Disk1::over(blk, u64::MAX);
    for _ in 0..3 {
        assert_eq!(disk.send(OUT, 1, &[1; 512]), IOERR);
    }
    assert_eq!(disk.range(ZEROES, 1, 1, 0), IOERR);
    assert_eq!((counters.failed(), counters.refused()), (4, 0));
    assert_eq!(disk.read(SIZE, 512).0, IOERR);
    assert_eq!((counters.failed(), counters.refused()), (4, 1));
    assert_eq!(disk.read(0, 512).0, OK);
}

#[test]
fn a_driver_that_does_not_flush_has_every_write_on_the_medium() {
    for (features, flushes) in [(u64::MAX, 0), (!feature::FLUSH, 1)] {
        let disk = Broken { writes: io::ErrorKind::Other, flushes: 0 };
        let mut disk = Disk1::over(Blk::new("disk", Box::new(disk), ""), features);
        assert_eq!(disk.send(OUT, 0, &[1; 512]), OK);
        assert_eq!(disk.read(0, 512).1[0], flushes);
    }
}

#[test]
fn a_reset_closes_nothing_and_a_drop_everything() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir);
    let mut disk = Disk1::new(&raw(&path));
    disk.d.agree(u64::MAX);
    disk.ring = disk.d.queue(0, 16);
    disk.d.ready();
    assert_eq!(disk.read(3, 512), (OK, pattern(3, 1)));
    assert!(open(&raw(&path)).is_err(), "it is still in use");
    drop(disk);
    open(&raw(&path)).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever a request says, it is answered, nothing outside the disk changes, and the next works.
    #[test]
    fn any_request_is_answered(
        kind in prop_oneof![0u32..16, any::<u32>()],
        sector in prop_oneof![0u64..SIZE / 512 + 8, any::<u64>()],
        out in 0u32..2048, back in 0u32..2048, body in prop::collection::vec(any::<u8>(), 64),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = file(&dir);
        let mut disk = Disk1::new(&raw(&path));
        disk.header(kind, sector);
        disk.put(disk.data, &body);
        let parts = [
            Part::Out(disk.header, 16),
            Part::Out(disk.data, out),
            Part::In(disk.data + 4096, back),
            Part::In(disk.status, 1),
        ];
        let status = disk.run(&parts);
        prop_assert!(status <= UNSUPPORTED, "{status}");
        prop_assert_eq!(std::fs::metadata(&path).unwrap().len(), SIZE);
        prop_assert_eq!(disk.send(OUT, 2, &[0x77; 512]), OK);
        prop_assert_eq!(disk.read(2, 512), (OK, vec![0x77; 512]));
    }
}
