//! What a guest or a peer can make us allocate at once is bounded: more than [`MOST`] ends the program.
#![allow(unsafe_code)] // A global allocator that looks at sizes cannot be written without.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The largest allocation: the longest vfio-user message is 1 MiB and a page, and a vector doubles.
pub const MOST: usize = 4 << 20;

/// What is allowed now.
static ALLOWED: AtomicUsize = AtomicUsize::new(MOST);

/// For as long as this is there, more is allowed: for code of others whose own bound is higher.
pub(crate) struct Raised(());

impl Raised {
    pub(crate) fn to(bytes: usize) -> Self {
        ALLOWED.store(bytes, Ordering::Relaxed);
        Self(())
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        ALLOWED.store(MOST, Ordering::Relaxed);
    }
}

struct Bounded;

// SAFETY: every call that returns is passed on unchanged to the system allocator, which keeps the trait's
// promises.
unsafe impl GlobalAlloc for Bounded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        bound(layout.size());
        // SAFETY: the caller's promises about `layout` are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        bound(layout.size());
        // SAFETY: the caller's promises about `layout` are those that `System` asks for.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        bound(size);
        // SAFETY: `at` came from one of these methods, hence from `System`; the rest is the caller's promise.
        unsafe { System.realloc(at, layout, size) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: `at` came from one of these methods with this layout, hence from `System`.
        unsafe { System.dealloc(at, layout) }
    }
}

/// Ends the program where `size` is too much. Allocates nothing.
fn bound(size: usize) {
    // A panic that is being reported has the program's own symbols to read.
    if size > ALLOWED.load(Ordering::Relaxed) && !std::thread::panicking() {
        // Whether anybody reads this or not, the end is the same.
        let _ = std::io::stderr().write_all(b"an allocation of more than is allowed\n");
        std::process::abort();
    }
}

#[global_allocator]
static BOUNDED: Bounded = Bounded;
