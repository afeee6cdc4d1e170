//! The four functions that the compiler calls for copies and comparisons; there is no C library here.
#![allow(unsafe_code, reason = "raw copies by their C contracts")]

use core::arch::asm;

/// Copies `n` bytes between ranges that do not overlap.
///
/// # Safety
/// As in C: both ranges are valid for `n` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, n: usize) -> *mut u8 {
    // SAFETY: the caller vouches for both ranges; the direction flag is clear by the ABI.
    unsafe {
        asm!("rep movsb", inout("rcx") n => _, inout("rdi") to => _, inout("rsi") from => _,
            options(nostack, preserves_flags));
    }
    to
}

/// Copies `n` bytes between ranges that may overlap.
///
/// # Safety
/// As in C: both ranges are valid for `n` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, n: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= n {
        // SAFETY: the start of `to` does not lie within `from`, so copying upwards reads each byte first.
        return unsafe { memcpy(to, from, n) };
    }
    // SAFETY: the caller vouches for both ranges; n is above 0 here, and the flag is cleared again.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") n => _,
            inout("rdi") to.add(n - 1) => _, inout("rsi") from.add(n - 1) => _, options(nostack));
    }
    to
}

/// Sets `n` bytes.
///
/// # Safety
/// As in C: the range is valid for `n` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, n: usize) -> *mut u8 {
    // SAFETY: the caller vouches for the range; the direction flag is clear by the ABI.
    unsafe {
        asm!("rep stosb", inout("rcx") n => _, inout("rdi") to => _, in("al") value as u8,
            options(nostack, preserves_flags));
    }
    to
}

/// Compares `n` bytes.
///
/// # Safety
/// As in C: both ranges are valid for `n` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    for i in 0..n {
        // SAFETY: the caller vouches for both ranges. Volatile, so that this loop is not taken for a
        // comparison and turned into a call of itself.
        let (a, b) = unsafe { (a.add(i).read_volatile(), b.add(i).read_volatile()) };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
    }
    0
}

/// Whether `n` bytes differ.
///
/// # Safety
/// As in C: both ranges are valid for `n` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    // SAFETY: the same contract.
    unsafe { memcmp(a, b, n) }
}
