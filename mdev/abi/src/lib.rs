//! Everything that a guest and the host agree on, and nothing else.
//!
//! * [`ids`]: frame, slice and job names, and the unit of time.
//! * [`pci`] and [`virtio_pci`]: the parts of the PCI and virtio 1.3 specifications both sides use.
//! * [`pacer`]: the pacer function's registers, timing page and marker ring.
//! * [`virtio_gpu`]: the virtio-gpu requests in use (virtio 1.3, section 5.7).
//! * [`frame`]: the *frame* context: the commands carried by `SUBMIT_3D`.
//! * [`reason`]: why the host refused or dropped something.
//!
//! `docs/pacer.md` and `docs/frame-context.md` specify both interfaces for those who write another driver.
//!
//! All multi-byte fields are little endian. Layouts are asserted at compile time. Values read from the
//! other side are allegations until checked: every `u32` that selects a meaning has a `from_raw` that
//! answers `None` for what it does not know.
#![no_std]
#![forbid(unsafe_code)]

pub mod frame;
pub mod ids;
pub mod pacer;
pub mod pci;
pub mod reason;
pub mod virtio_gpu;
pub mod virtio_pci;

pub use ids::{FrameId, Generation, JobIndex, Nanos, SliceId};
pub use reason::Reason;

/// Asserts the size of a shared layout at compile time.
macro_rules! assert_size {
    ($t:ty, $n:expr) => {
        const _: () = assert!(core::mem::size_of::<$t>() == $n);
    };
}
/// Asserts the offset of a shared field at compile time.
macro_rules! assert_offset {
    ($t:ty, $f:ident, $n:expr) => {
        const _: () = assert!(core::mem::offset_of!($t, $f) == $n);
    };
}
pub(crate) use {assert_offset, assert_size};
