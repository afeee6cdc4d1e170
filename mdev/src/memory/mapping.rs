//! One mapped piece of shared memory, behind accesses that cannot leave it.
//!
//! Another process may change this memory at any time, so it is only ever copied, by volatile or atomic
//! accesses on raw pointers.
#![allow(unsafe_code)] // mmap, and access through the pointer it returns.
#![expect(clippy::cast_ptr_alignment, reason = "checked at run time before each access")]

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};
use std::os::fd::BorrowedFd;
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

/// A shared mapping that lives as long as this value.
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
    writable: bool,
}

// SAFETY: the mapping belongs to this value and not to a thread.
unsafe impl Send for Mapping {}
// SAFETY: every access through `&self` is volatile or atomic and copies; no reference leaves.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `fd` from `offset`. The caller has checked that the descriptor is that long
    /// and stays so.
    pub(crate) fn new(
        fd: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        writable: bool,
    ) -> Result<Self, Errno> {
        let prot = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        // SAFETY: a new mapping at an address of the kernel's choice disturbs no other memory.
        let base =
            unsafe { rustix::mm::mmap(null_mut(), len, prot, MapFlags::SHARED, fd, offset)? };
        let base = NonNull::new(base.cast()).ok_or(Errno::NOMEM)?;
        Ok(Self { base, len, writable })
    }

    /// Copies `out.len()` bytes from `offset` on; what lies outside the mapping is left as it was.
    pub(crate) fn read(&self, offset: usize, out: &mut [u8]) {
        let Some(mut from) = self.at(offset, out.len()) else { return };
        let (head, rest) = out.split_at_mut(bytes_to_word(from).min(out.len()));
        for byte in head {
            // SAFETY: `at` checked the range, whose bytes these are.
            *byte = unsafe { from.read_volatile() };
            // SAFETY: at most one past the end of the mapping.
            from = unsafe { from.add(1) };
        }
        let (words, tail) = rest.as_chunks_mut::<8>();
        for word in words {
            // SAFETY: eight bytes are left in the checked range, and `from` is aligned to them.
            *word = unsafe { from.cast::<u64>().read_volatile() }.to_ne_bytes();
            // SAFETY: at most one past the end of the mapping.
            from = unsafe { from.add(8) };
        }
        for byte in tail {
            // SAFETY: as above.
            *byte = unsafe { from.read_volatile() };
            // SAFETY: as above.
            from = unsafe { from.add(1) };
        }
    }

    /// Copies `data` to `offset`; nothing where that is outside the mapping or may not be written.
    pub(crate) fn write(&self, offset: usize, data: &[u8]) {
        let Some(mut to) = self.at(offset, data.len()).filter(|_| self.writable) else { return };
        let (head, rest) = data.split_at(bytes_to_word(to).min(data.len()));
        for byte in head {
            // SAFETY: `at` checked the range, whose bytes these are; it is writable.
            unsafe { to.write_volatile(*byte) };
            // SAFETY: at most one past the end of the mapping.
            to = unsafe { to.add(1) };
        }
        let (words, tail) = rest.as_chunks::<8>();
        for word in words {
            // SAFETY: eight bytes are left in the checked range, and `to` is aligned to them.
            unsafe { to.cast::<u64>().write_volatile(u64::from_ne_bytes(*word)) };
            // SAFETY: at most one past the end of the mapping.
            to = unsafe { to.add(8) };
        }
        for byte in tail {
            // SAFETY: as above.
            unsafe { to.write_volatile(*byte) };
            // SAFETY: as above.
            to = unsafe { to.add(1) };
        }
    }

    /// Where `offset` is, if `len` bytes from there lie in the mapping.
    fn at(&self, offset: usize, len: usize) -> Option<*mut u8> {
        offset.checked_add(len).filter(|end| *end <= self.len)?;
        // SAFETY: `offset` is at most the mapping's length.
        Some(unsafe { self.base.as_ptr().add(offset) })
    }
}

/// How far `at` is from the next multiple of 8.
fn bytes_to_word(at: *mut u8) -> usize {
    at.addr().wrapping_neg() % 8
}

/// Declares the atomic accesses of one width: an acquiring load, a relaxed and a releasing store.
macro_rules! atomic_access {
    ($int:ty, $atomic:ty, $load:ident, $store:ident, $store_relaxed:ident) => {
        #[allow(dead_code, reason = "not every width is stored")]
        impl Mapping {
            /// Loads with `Acquire`; `None` outside the mapping or off alignment.
            pub(crate) fn $load(&self, offset: usize) -> Option<$int> {
                let at = self.at(offset, size_of::<$int>())?.cast::<$int>();
                // SAFETY: inside the mapping, aligned, and every access of this kind is atomic.
                at.is_aligned().then(|| unsafe { <$atomic>::from_ptr(at).load(Ordering::Acquire) })
            }

            /// Stores with `Release`; nothing outside the mapping, off alignment or read-only.
            pub(crate) fn $store(&self, offset: usize, value: $int) {
                self.put(offset, |at: *mut $int| {
                    // SAFETY: `put` gives an aligned, writable place inside the mapping.
                    unsafe { <$atomic>::from_ptr(at).store(value, Ordering::Release) };
                });
            }

            /// Stores without ordering, under the same conditions.
            pub(crate) fn $store_relaxed(&self, offset: usize, value: $int) {
                self.put(offset, |at: *mut $int| {
                    // SAFETY: `put` gives an aligned, writable place inside the mapping.
                    unsafe { <$atomic>::from_ptr(at).store(value, Ordering::Relaxed) };
                });
            }
        }
    };
}
atomic_access!(u16, AtomicU16, load_u16, store_u16, store_u16_relaxed);
atomic_access!(u32, AtomicU32, load_u32, store_u32, store_u32_relaxed);
atomic_access!(u64, AtomicU64, load_u64, store_u64, store_u64_relaxed);

impl Mapping {
    /// Calls `store` with the place of a `T` at `offset`, where it may be written.
    fn put<T>(&self, offset: usize, store: impl FnOnce(*mut T)) {
        let place = self.at(offset, size_of::<T>()).map(<*mut u8>::cast::<T>);
        if let Some(at) = place.filter(|at| self.writable && at.is_aligned()) {
            store(at);
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new`, is unmapped once, and nothing points into it any more.
        // A failure would leave it mapped, which harms nobody.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
    }
}
