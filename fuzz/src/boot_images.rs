//! Files that a guest boots from: a kernel as ELF or bzImage, an initrd, the RAM's size and the command line. What
//! loads must be where it may be, and what the guest is told must be true.

mod build;
mod told;

use crate::fds::{self, Open};
use crate::input::Input;
use beamline_vmm::Gpa;
use beamline_vmm::boot::{self, BootError, Kind, Start, Told};
use beamline_vmm::config::Image;
use beamline_vmm::memory::GuestRam;
use beamline_vmm::pci::layout::Windows;
use rustix::fs::SealFlags;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use vm_memory::Bytes;

/// Where images may start.
const IMAGE_START: u64 = 1 << 20;
/// Where the ACPI tables are, before an image is loaded.
const ACPI: u64 = 0xe_0000;
const TABLES: [u8; 64] = [0xac; 64];
/// Most bytes of a file, nearly all of which are a hole.
const MOST: u64 = 6 << 20;
/// Longest command line that the configuration allows: bytes.
const MOST_CMDLINE: usize = 2048;
/// Longest message of an error with its causes: a path, and words around it.
const MOST_MESSAGE: usize = 1024;

/// A file by its descriptor, and the path that opens it anew.
struct Stored(OwnedFd);

impl Stored {
    /// A file that starts with `bytes` and has `length` bytes, or those of `bytes` where they are more.
    fn new(bytes: &[u8], length: u64) -> Self {
        let fd = fds::sized_memfd(length.max(bytes.len() as u64), SealFlags::empty());
        assert_eq!(rustix::io::pwrite(&fd, bytes, 0), Ok(bytes.len()));
        Self(fd)
    }

    fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }

    fn len(&self) -> u64 {
        rustix::fs::fstat(&self.0).expect("a memfd can be looked at").st_size as u64
    }

    /// What is at `at`, as many bytes as `to` has; the file has them.
    fn read(&self, at: u64, to: &mut [u8]) {
        assert_eq!(rustix::io::pread(&self.0, &mut *to, at), Ok(to.len()), "the file has them");
    }
}

/// A guest before it starts.
struct Guest {
    ram: GuestRam,
    image: Stored,
    initrd: Option<Stored>,
    cmdline: String,
    windows: Windows,
}

/// Loads one guest.
pub(crate) fn run(bytes: &[u8]) {
    let open = Open::now();
    Guest::new(&mut Input::new(bytes)).load();
    open.check();
}

impl Guest {
    fn new(input: &mut Input<'_>) -> Self {
        // The last has RAM above the PCI window too, which nobody touches.
        let size = [2, 4, 8, 16, 5 << 10][input.below(5)] << 20;
        let ram = GuestRam::new(size).expect("RAM can be mapped");
        let cmdline = "k".repeat(input.number() as usize % (MOST_CMDLINE + 1));
        let initrd = match input.below(4) {
            0 | 1 => None,
            2 => Some(Stored::new(&[input.u8(); 16], input.number() % (MOST + 1))),
            _ => Some(Stored::new(&[], input.number() % (MOST + 1))),
        };
        let length = input.number() % (MOST + 1);
        let bytes = build::image(input, ram.low_end());
        let image = Stored::new(&bytes, length);
        let windows = Windows::beside(ram.end());
        Self { ram, image, initrd, cmdline, windows }
    }

    fn load(self) {
        let image = Image {
            path: self.image.path(),
            initrd: self.initrd.as_ref().map(Stored::path),
            cmdline: self.cmdline.clone(),
        };
        self.ram.memory().write_slice(&TABLES, Gpa(ACPI)).expect("it is RAM");
        let told = Told { rsdp: Some(Gpa(ACPI)), windows: self.windows };
        let looked = boot::check(&image);
        match (looked, boot::load(&self.ram, &image, told)) {
            (Ok(kind), Ok(start)) => self.check(kind, start),
            (Err(error), Ok(start)) => panic!("{start:?} starts, and before that: {error}"),
            (_, Err(error)) => explained(&error),
        }
    }

    /// What has been loaded can be started, and is told what is there.
    fn check(&self, kind: Kind, start: Start) {
        let (regs, _) = start.registers(zeroed());
        let low_end = self.ram.low_end();
        let told = match start {
            Start::Linux(entry) => {
                assert_eq!(
                    (kind, regs.rip, regs.rsi),
                    (Kind::BzImage, entry.entry.0, entry.zero_page.0)
                );
                told::by_zero_page(&self.ram, entry.zero_page)
            }
            Start::Pvh(entry) => {
                assert_eq!(
                    (kind, regs.rip, regs.rbx),
                    (Kind::Elf, entry.entry.0, entry.start_info.0)
                );
                told::by_start_info(&self.ram, entry.start_info)
            }
            Start::Reset => panic!("an image starts by itself"),
        };
        assert!((IMAGE_START..low_end).contains(&regs.rip), "{:#x} is in RAM", regs.rip);
        told.check_map(&self.ram, self.windows);
        assert_eq!(told.rsdp, ACPI);
        assert_eq!(self.bytes::<64>(ACPI), TABLES, "the tables are as they were");
        let mut line = vec![0; self.cmdline.len() + 1];
        self.ram.memory().read_slice(&mut line, Gpa(told.cmdline)).expect("it is in RAM");
        assert_eq!(line.split_last(), Some((&0, self.cmdline.as_bytes())));
        let after = match start {
            Start::Linux(entry) => self.check_kernel(entry.entry.0),
            _ => self.elf_end(),
        };
        self.check_initrd(told.initrd, after);
    }

    fn bytes<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.ram.memory().read_slice(&mut bytes, Gpa(at)).expect("it is RAM");
        bytes
    }

    /// The kernel proper is where it wants to be; where what it needs ends.
    fn check_kernel(&self, entry: u64) -> u64 {
        let (mut sectors, mut size, mut needs, mut at) = ([0], [0; 4], [0; 4], [0; 8]);
        self.image.read(0x1f1, &mut sectors);
        self.image.read(0x1f4, &mut size);
        self.image.read(0x258, &mut at);
        self.image.read(0x260, &mut needs);
        let sectors = if sectors[0] == 0 { 4 } else { u64::from(sectors[0]) };
        let (start, size) = ((sectors + 1) * 512, u64::from(u32::from_le_bytes(size)) * 16);
        let (at, needs) = (u64::from_le_bytes(at), u64::from(u32::from_le_bytes(needs)));
        assert_eq!(entry, at + 512);
        assert!(start + size <= self.image.len(), "all of it is there");
        for part in [0, size.saturating_sub(512)] {
            let mut is = [0; 512];
            self.image.read(start + part, &mut is);
            assert_eq!(self.bytes::<512>(at + part), is, "at {part:#x} of the kernel");
        }
        at + needs.max(size)
    }

    /// Where the last segment ends, with the zeroes behind what the file has of it.
    fn elf_end(&self) -> u64 {
        let (mut table, mut count) = ([0; 8], [0; 2]);
        self.image.read(32, &mut table);
        self.image.read(56, &mut count);
        let headers = (0..u64::from(u16::from_le_bytes(count))).map(|n| {
            let mut header = [0; 56];
            self.image.read(u64::from_le_bytes(table) + 56 * n, &mut header);
            header
        });
        let loaded = headers.filter(|header| header[..4] == [1, 0, 0, 0]);
        let ends = loaded.map(|header| {
            let long =
                |at: usize| header[at..at + 8].iter().rev().fold(0, |n, b| n << 8 | u64::from(*b));
            // One of nothing is nowhere.
            let (at, size) = (long(24), long(40).max(long(32)));
            if size == 0 {
                return IMAGE_START;
            }
            let end = at.checked_add(size).expect("a segment ends");
            assert!(at >= IMAGE_START && end <= self.ram.low_end(), "it is in RAM");
            end
        });
        ends.max().unwrap_or(IMAGE_START)
    }

    /// The initrd is what the file is, behind the kernel and within the RAM that it can reach.
    fn check_initrd(&self, seen: Option<(u64, u64)>, after: u64) {
        let Some(file) = &self.initrd else {
            return assert_eq!(seen, None);
        };
        let (at, size) = seen.expect("it is told of");
        assert_eq!(size, file.len());
        assert!(at >= after && at.is_multiple_of(4096), "{at:#x} is behind {after:#x}");
        assert!(at.checked_add(size).is_some_and(|end| end <= self.ram.low_end()));
        let mut is = [0; 16];
        let first = &mut is[..size.min(16) as usize];
        file.read(0, first);
        assert_eq!(self.bytes::<16>(at)[..first.len()], *first);
    }
}

/// KVM's registers, all of them 0; only the VMM's crate knows their type.
fn zeroed<T: Default>() -> T {
    T::default()
}

/// An error says what is wrong, in a line that a log can hold.
fn explained(error: &BootError) {
    let causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    let text = causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"));
    assert!((1..=MOST_MESSAGE).contains(&text.len()), "{text}");
}
