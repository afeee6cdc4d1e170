//! A disk in a qcow2 image: one that is right keeps what is written, and one that is not harms nobody.

use super::image::{CLUSTERS, FILL, Shape};
use crate::fds::sized_memfd;
use crate::input::Input;
use crate::limit::Raised;
use beamline_vmm::devices::virtio::blk::{self, Disk, Format, Source};
use rustix::fs::SealFlags;
use std::os::fd::{AsRawFd, OwnedFd};

const SECTOR: u64 = 512;
/// Most bytes of one request, and most requests.
const MOST: u64 = 32 << 10;
const STEPS: usize = 40;
/// Most bytes of an image that are changed.
const MOST_EDITS: usize = 24;
/// The crate's own bound of a table: a damaged entry of a mapping can have the refcount table grow to it.
const TABLE: usize = 32 << 20;
/// Most bytes that a file has behind what is built, all of them a hole.
const MOST_BEHIND: u64 = 1 << 20;
/// Disks that are looked at byte by byte.
const SMALL: u64 = 1 << 20;

/// Runs one life of a disk.
pub(super) fn run(input: &mut Input<'_>) {
    let _raised = Raised::to(TABLE);
    let cluster_bits = [9, 9, 12, 16][input.below(4)];
    let size = match input.u8() {
        0xf0.. => input.u64(),
        small => (u64::from(small) + 1) * 2 * SECTOR,
    };
    // One whose L1 table fits into a cluster.
    let most = 1u64 << (3 * cluster_bits - 6);
    let shape = Shape { version: 2 + u32::from(input.flag()), cluster_bits, size: size.min(most) };
    let mut image = shape.build();
    let edits = input.below(MOST_EDITS + 1);
    for _ in 0..edits {
        let (cluster, at) = (input.u8() as usize % CLUSTERS as usize, usize::from(input.u16()));
        let at = (cluster << cluster_bits) + at % (1 << cluster_bits);
        image[at] = input.u8();
    }
    if edits == MOST_EDITS {
        image.truncate(usize::from(input.u16()) % image.len());
    }
    let file = sized_memfd(image.len() as u64 + input.number() % MOST_BEHIND, SealFlags::empty());
    assert_eq!(rustix::io::pwrite(&file, &image, 0), Ok(image.len()));
    let readonly = input.u8() >= 0xe0;
    let source = source(&file, readonly, Some(Format::Qcow2));
    let looks = blk::open(&Source { format: None, ..source.clone() });
    assert!(looks.is_err() || !image.starts_with(b"QFI\xfb"), "nobody said that it is qcow2");
    drop(looks);
    let right = edits == 0 && shape.size >= SECTOR;
    match blk::open(&source) {
        Ok(disk) => {
            assert!(blk::open(&source).is_err() || readonly, "its writer has it alone");
            let model = right.then(|| Model::new(shape));
            Life { disk, model, readonly }.run(input);
        }
        Err(error) => assert!(!right && !error.to_string().is_empty(), "{error:?}"),
    }
    if right {
        let disk = blk::open(&source).expect("it is still an image");
        assert_eq!(disk.size(), shape.size / SECTOR * SECTOR);
    }
}

fn source(file: &OwnedFd, readonly: bool, format: Option<Format>) -> Source {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd()).into();
    Source { path, readonly, format }
}

/// What a disk's bytes have to be, where all of them are looked at.
struct Model {
    bytes: Vec<u8>,
    /// Nobody knows any more what these sectors are.
    any: Vec<bool>,
}

impl Model {
    fn new(shape: Shape) -> Self {
        let mut bytes = vec![0; shape.size.min(SMALL) as usize];
        let len = bytes.len().min(shape.cluster() as usize);
        bytes[..len].fill(FILL);
        let any = vec![false; bytes.len() / SECTOR as usize];
        Self { bytes, any }
    }

    fn set(&mut self, at: u64, len: usize, to: Option<u8>) {
        let at = (at as usize).min(self.bytes.len());
        let end = (at + len).min(self.bytes.len());
        self.bytes[at..end].fill(to.unwrap_or(0));
        self.any[at / 512..end / 512].fill(to.is_none());
    }

    fn check(&self, at: u64, data: &[u8]) {
        for (sector, data) in (at / SECTOR..).zip(data.chunks(SECTOR as usize)) {
            let at = (sector * SECTOR) as usize;
            if self.any.get(sector as usize) == Some(&false) {
                assert_eq!(data, &self.bytes[at..at + 512], "sector {sector}");
            }
        }
    }
}

struct Life {
    disk: Box<dyn Disk>,
    model: Option<Model>,
    readonly: bool,
}

impl Life {
    fn run(mut self, input: &mut Input<'_>) {
        let size = self.disk.size();
        assert!(size >= SECTOR && size.is_multiple_of(SECTOR));
        assert_eq!(self.disk.readonly(), self.readonly);
        for _ in 0..STEPS {
            if input.is_empty() {
                break;
            }
            self.step(input, size);
        }
        let flushed = self.disk.flush();
        assert!(flushed.is_ok() || self.model.is_none(), "{flushed:?}");
        // All of a small one, twice: what was in a cache is in the file by now.
        if self.model.is_some() && size <= SMALL {
            for at in (0..size).step_by(MOST as usize) {
                self.read(at, (size - at).min(MOST) as usize);
            }
        }
    }

    fn read(&mut self, at: u64, len: usize) {
        let mut data = vec![0xee; len];
        let done = self.disk.read(at, &mut data);
        if let Some(model) = &self.model {
            assert!(done.is_ok(), "{done:?}");
            model.check(at, &data);
        }
    }

    fn step(&mut self, input: &mut Input<'_>, size: u64) {
        // Whole sectors within the disk, as the queue makes sure of.
        let at = input.number() % (size / SECTOR) * SECTOR;
        let len = ((u64::from(input.u8()) + 1) * SECTOR).min(size - at).min(MOST);
        let (step, fill) = (input.below(8), input.u8());
        if self.readonly || step < 2 {
            return self.read(at, len as usize);
        }
        let (done, is) = match step {
            2..=4 => (self.disk.write(at, &vec![fill; len as usize]), Some(fill)),
            5 => (self.disk.zero(at, len, fill & 1 != 0), Some(0)),
            6 => (self.disk.discard(at, len), None),
            _ => return assert!(self.disk.flush().is_ok() || self.model.is_none()),
        };
        if let Some(model) = &mut self.model {
            assert!(done.is_ok(), "{done:?}");
            model.set(at, len as usize, is);
        }
    }
}
