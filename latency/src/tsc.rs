//! Reads the time-stamp counter: the one place of this crate that needs `unsafe`, for the intrinsic.
#![allow(unsafe_code)]

/// The host's time-stamp counter in ticks; `None` where the processor is of another kind.
#[cfg_attr(
    target_arch = "x86_64",
    expect(clippy::unnecessary_wraps, reason = "other processors answer None")
)]
#[inline]
pub(crate) fn read() -> Option<u64> {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: RDTSC reads a register and touches no memory; every x86-64 processor has it, and
        // Linux leaves it enabled for user space.
        Some(unsafe { core::arch::x86_64::_rdtsc() })
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        None
    }
}
