//! What the kernel can do.
#![allow(unsafe_code)] // seccomp(2) and landlock_create_ruleset(2) have no safe wrapper that only asks.

/// What Landlock this kernel has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Landlock {
    /// Of this version of its interface.
    Version(u32),
    /// The kernel knows it, and it was not turned on when it booted.
    Off,
    /// The kernel does not know it.
    Missing,
}

/// Whether the kernel takes seccomp filters that can stop a call in a handler.
pub fn has_seccomp() -> bool {
    let action = libc::SECCOMP_RET_TRAP;
    // SAFETY: the call reads 4 bytes, which outlive it, and changes nothing.
    let result = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action)
    };
    result == 0
}

/// The Landlock of this kernel.
pub fn landlock() -> Landlock {
    /// `LANDLOCK_CREATE_RULESET_VERSION` of linux/landlock.h.
    const VERSION: u32 = 1;
    // SAFETY: with this flag the call takes no attributes and only answers a number.
    let result = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<libc::c_void>(),
            0usize,
            VERSION,
        )
    };
    match u32::try_from(result) {
        Ok(version) => Landlock::Version(version),
        Err(_) if std::io::Error::last_os_error().raw_os_error() == Some(libc::EOPNOTSUPP) => {
            Landlock::Off
        }
        Err(_) => Landlock::Missing,
    }
}
