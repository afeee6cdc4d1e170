//! The flash: commands to its chip, on a file that may turn out to be read-only.

use crate::fds;
use crate::input::Input;
use beamline_vmm::devices::flash::Flash;
use rustix::fs::SealFlags;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use vm_memory::{MmapRegion, VolatileMemory};

const BLOCK: usize = 4096;
/// Most bytes of either part where it is no flash.
const MOST: u64 = 32 << 20;
const END: u64 = 1 << 32;
const CODE: u8 = 0xc0;
/// Commands (data sheets of Intel's StrataFlash): reading the array, and those that are followed by something.
const ARRAY: u8 = 0xff;
const COMMANDS: [u8; 8] = [0x10, 0x40, 0x20, 0xd0, 0x50, 0x70, ARRAY, 0];
/// Most bytes of one write.
const WIDTH: usize = 8;

/// A flash, its variables' file, and what the guest sees of both parts.
pub(super) struct Chip {
    flash: Flash,
    file: OwnedFd,
    code: Arc<MmapRegion>,
    view: Arc<MmapRegion>,
    start: u64,
    size: usize,
    /// Nothing can be written any more.
    sealed: bool,
}

fn path(file: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

fn seen(region: &MmapRegion) -> Vec<u8> {
    let mut bytes = vec![0; region.size()];
    region.as_volatile_slice().copy_to(&mut bytes);
    bytes
}

impl Chip {
    /// Opens a flash; `None` where its parts have sizes that none has.
    pub(super) fn open(input: &mut Input<'_>) -> Option<Self> {
        let mut size = || match input.u8() {
            0xc0.. => input.number() % MOST,
            small => u64::from(small % 4 + 1) * BLOCK as u64,
        };
        let (code_size, size) = (size(), size());
        let [code, file] = [code_size, size].map(|size| fds::sized_memfd(size, SealFlags::empty()));
        if code_size > 0 {
            assert_eq!(rustix::io::pwrite(&code, &[CODE], 0), Ok(1));
        }
        let whole = |size: u64| size > 0 && size.is_multiple_of(BLOCK as u64);
        let right = whole(code_size) && whole(size) && code_size + size <= 16 << 20;
        // More than an input may have at once.
        if right && (code_size > 1 << 20 || size > 1 << 20) {
            return None;
        }
        let looked = Flash::look(&path(&code), &path(&file));
        let opened = Flash::open(&path(&code), &path(&file));
        assert_eq!((looked.is_ok(), opened.is_ok()), (right, right), "{looked:?}");
        let flash = opened.ok()?;
        assert!(Flash::open(&path(&code), &path(&file)).is_err(), "it has its own variables");
        let [(at, view), (code_at, code)] = flash.regions();
        assert_eq!((at.0 + size, code_at.0 + code_size), (code_at.0, END));
        Some(Self { flash, file, code, view, start: at.0, size: size as usize, sealed: false })
    }

    fn contents(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.size];
        assert_eq!(rustix::io::pread(&self.file, &mut bytes, 0), Ok(self.size), "its size stays");
        bytes
    }

    pub(super) fn step(&mut self, input: &mut Input<'_>) {
        let at = match input.u8() {
            0xf0.. => input.number(),
            0xe0.. => END.wrapping_sub(input.number()),
            page => self.start + u64::from(page % 8) * BLOCK as u64 + u64::from(input.u8()) * 16,
        };
        let mut data = [0; WIDTH];
        let len = input.below(WIDTH + 1);
        match input.u8() {
            0xff => {
                // From here on the medium fails.
                self.sealed |= rustix::fs::fcntl_add_seals(&self.file, SealFlags::WRITE).is_ok();
            }
            tag @ 0x80.. => data[0] = COMMANDS[usize::from(tag) % COMMANDS.len()],
            _ => data.iter_mut().for_each(|byte| *byte = input.u8()),
        }
        self.write(at, &data[..len]);
    }

    /// One write, which changes no more than one does.
    fn write(&mut self, at: u64, data: &[u8]) {
        let before = self.contents();
        let taken = self.flash.write(at, data);
        assert_eq!(taken, (self.start..END).contains(&at), "its addresses are its own");
        let after = self.contents();
        let changed = (0..self.size).filter(|n| before[*n] != after[*n]);
        let (first, last) = (changed.clone().next(), changed.clone().next_back());
        if let (Some(first), Some(last)) = (first, last) {
            assert!(!self.sealed, "nothing can be written");
            let offset = (at - self.start) as usize;
            let programmed = first >= offset && last < offset + data.len();
            let block = offset / BLOCK * BLOCK..(offset / BLOCK + 1) * BLOCK;
            let erased = block.contains(&first) && block.contains(&last);
            let blank = erased && after[block].iter().all(|byte| *byte == ARRAY);
            assert!(programmed || blank, "{first:#x}..={last:#x} by {data:x?} at {offset:#x}");
        }
        let view = seen(&self.view);
        let status = view.iter().all(|byte| *byte == view[0]);
        assert!(status || view == after, "the guest sees a status or the contents");
    }

    /// Whatever came before, the array can be read, and a byte is programmed where one can be.
    pub(super) fn finish(mut self) {
        // The first may be data, or confirm nothing.
        for command in [ARRAY, ARRAY] {
            self.write(self.start, &[command]);
        }
        assert_eq!(seen(&self.view), self.contents(), "the array is what is stored");
        for byte in [0x50, 0x40, 0x5a] {
            self.write(self.start + 1, &[byte]);
        }
        let status = seen(&self.view)[self.size - 1];
        assert_eq!(status, if self.sealed { 0x90 } else { 0x80 }, "ready, and failed or not");
        self.write(self.start, &[ARRAY]);
        let byte = seen(&self.view)[1];
        assert!(self.sealed || byte == 0x5a, "{byte:#x} was programmed");
        assert_eq!(
            self.code
                .as_volatile_slice()
                .subslice(0, 1)
                .map(|s| {
                    let mut first = [0];
                    s.copy_to(&mut first);
                    first
                })
                .expect("it has a byte"),
            [CODE],
            "the code is as it was"
        );
        drop(self.flash);
        let file = rustix::fs::open(
            path(&self.file),
            rustix::fs::OFlags::RDONLY,
            rustix::fs::Mode::empty(),
        );
        let file = file.expect("it is there");
        let lock = rustix::fs::FlockOperation::NonBlockingLockExclusive;
        assert_eq!(rustix::fs::flock(&file, lock), Ok(()), "the variables are free again");
    }
}
