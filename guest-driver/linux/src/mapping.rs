//! Memory that somebody else reads and writes as well: mapped once, accessed a whole value at a time.
#![allow(unsafe_code, reason = "maps memory, and accesses it through pointers")]

use beamline_guest_driver::transport::{Arena, Gpa, Width};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use std::ffi::c_void;
use std::os::fd::AsFd;
use std::ptr::null_mut;
use std::sync::atomic::{Ordering, fence};

/// A shared mapping.
#[derive(Debug)]
pub struct Mapping {
    base: *mut c_void,
    len: usize,
    writable: bool,
}

// SAFETY: the mapping belongs to this value and to no thread.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `fd` from `offset` on.
    ///
    /// # Errors
    /// The kernel's.
    pub fn of(fd: impl AsFd, offset: u64, len: usize) -> Result<Self, Errno> {
        Self::with(fd, offset, len, true)
    }

    /// As [`Mapping::of`], to read alone: what is written is dropped.
    ///
    /// # Errors
    /// The kernel's.
    pub fn read_only(fd: impl AsFd, offset: u64, len: usize) -> Result<Self, Errno> {
        Self::with(fd, offset, len, false)
    }

    fn with(fd: impl AsFd, offset: u64, len: usize, writable: bool) -> Result<Self, Errno> {
        let prot = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        // SAFETY: the kernel chooses a place where nothing is.
        let base = unsafe { mmap(null_mut(), len, prot, MapFlags::SHARED, fd, offset) }?;
        Ok(Self { base, len, writable })
    }

    /// `len` bytes of zeroed memory.
    ///
    /// # Errors
    /// The kernel's.
    pub fn anonymous(len: usize) -> Result<Self, Errno> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses a place where nothing is.
        let base = unsafe { mmap_anonymous(null_mut(), len, prot, MapFlags::SHARED) }?;
        Ok(Self { base, len, writable: true })
    }

    /// Where it is in this process.
    pub fn address(&self) -> u64 {
        self.base as u64
    }

    /// Bytes.
    pub const fn len(&self) -> u64 {
        self.len as u64
    }

    /// Whether it has no bytes, which the kernel does not allow.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The place of an access of `bytes` at `offset`; `None` outside, or where it is not aligned.
    fn at(&self, offset: u64, bytes: u64) -> Option<*mut c_void> {
        let inside = offset.checked_add(bytes).is_some_and(|end| end <= self.len());
        (inside && offset.is_multiple_of(bytes.max(1)))
            .then(|| self.base.wrapping_byte_add(offset as usize))
    }

    /// Reads one value; all ones outside, as from a bus where nobody answers.
    pub fn read(&self, offset: u64, width: Width) -> u64 {
        let Some(at) = self.at(offset, width.bytes()) else { return u64::MAX };
        // SAFETY: `at` is inside the mapping, which lives as long as `self`, and aligned; volatile, because
        // others write there.
        unsafe {
            match width {
                Width::Byte => at.cast::<u8>().read_volatile().into(),
                Width::Word => at.cast::<u16>().read_volatile().into(),
                Width::Dword => at.cast::<u32>().read_volatile().into(),
                Width::Qword => at.cast::<u64>().read_volatile(),
            }
        }
    }

    /// Writes one value; dropped outside, and where it is mapped to read alone.
    pub fn write(&self, offset: u64, width: Width, value: u64) {
        if !self.writable {
            return;
        }
        let Some(at) = self.at(offset, width.bytes()) else { return };
        // SAFETY: as in `read`.
        unsafe {
            match width {
                Width::Byte => at.cast::<u8>().write_volatile(value as u8),
                Width::Word => at.cast::<u16>().write_volatile(value as u16),
                Width::Dword => at.cast::<u32>().write_volatile(value as u32),
                Width::Qword => at.cast::<u64>().write_volatile(value),
            }
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this mapping is ours, and no reference into it exists: every access is a copy.
        // It cannot fail for a range that was mapped.
        let _ = unsafe { munmap(self.base, self.len) };
    }
}

/// Memory that devices see as well, at an address of its own: a transport's.
#[derive(Debug)]
pub struct Shared {
    memory: Mapping,
    base: Gpa,
}

impl Shared {
    /// `memory`, which devices see at `base`.
    pub const fn new(memory: Mapping, base: Gpa) -> Self {
        Self { memory, base }
    }

    /// All of it, to be handed out once.
    pub const fn arena(&self) -> Arena {
        Arena::new(self.base, self.memory.len())
    }

    /// Beyond the end for what is not within, so that it is dropped.
    const fn offset(&self, gpa: Gpa) -> u64 {
        gpa.0.wrapping_sub(self.base.0)
    }

    /// Copies out.
    pub fn read(&self, gpa: Gpa, bytes: &mut [u8]) {
        for (at, byte) in (0..).map(|n| self.offset(gpa.at(n))).zip(bytes) {
            *byte = self.memory.read(at, Width::Byte) as u8;
        }
    }

    /// Copies in.
    pub fn write(&self, gpa: Gpa, bytes: &[u8]) {
        for (at, byte) in (0..).map(|n| self.offset(gpa.at(n))).zip(bytes) {
            self.memory.write(at, Width::Byte, u64::from(*byte));
        }
    }

    /// Reads 16 bits at once; later reads are not moved before it.
    pub fn load_u16(&self, gpa: Gpa) -> u16 {
        let value = self.memory.read(self.offset(gpa), Width::Word) as u16;
        fence(Ordering::Acquire);
        value
    }

    /// Writes 16 bits at once; earlier writes are not moved behind it.
    pub fn store_u16(&self, gpa: Gpa, value: u16) {
        fence(Ordering::Release);
        self.memory.write(self.offset(gpa), Width::Word, value.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_width_lands_where_it_belongs() {
        let memory = Mapping::anonymous(4096).unwrap();
        memory.write(8, Width::Qword, 0x8877_6655_4433_2211);
        assert_eq!(memory.read(8, Width::Byte), 0x11);
        assert_eq!(memory.read(10, Width::Word), 0x4433);
        assert_eq!(memory.read(12, Width::Dword), 0x8877_6655);
        memory.write(9, Width::Byte, 0xabff);
        assert_eq!(memory.read(8, Width::Qword), 0x8877_6655_4433_ff11);
    }

    #[test]
    fn a_write_to_what_is_read_alone_is_dropped() {
        let file = rustix::fs::memfd_create("mapping", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, 4096).unwrap();
        let (all, read) =
            (Mapping::of(&file, 0, 4096).unwrap(), Mapping::read_only(&file, 0, 4096).unwrap());
        all.write(0, Width::Dword, 7);
        read.write(0, Width::Dword, 8);
        assert_eq!(read.read(0, Width::Dword), 7);
    }

    #[test]
    fn nothing_answers_outside() {
        let memory = Mapping::anonymous(4096).unwrap();
        for (offset, width) in
            [(4096, Width::Byte), (4094, Width::Dword), (u64::MAX, Width::Word), (2, Width::Dword)]
        {
            memory.write(offset, width, 0);
            assert_eq!(memory.read(offset, width), u64::MAX, "{offset}");
        }
    }
}
