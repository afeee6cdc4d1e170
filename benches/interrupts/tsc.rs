//! The time-stamp counter: the one clock that guest and host share.
#![allow(unsafe_code)] // RDTSC is an intrinsic.

/// The host's counter, ticks.
#[inline]
pub(crate) fn now() -> u64 {
    // SAFETY: reads a register and touches no memory; every processor that runs KVM on x86-64 has it, and
    // Linux leaves it enabled for user space.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Keeps the calling thread busy for `ticks`.
pub(crate) fn spin(ticks: u64) {
    let start = now();
    while now().wrapping_sub(start) < ticks {
        std::hint::spin_loop();
    }
}
