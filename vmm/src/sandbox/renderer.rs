//! What a renderer does from its start on: it loads a Vulkan driver, which may be a large one, and compiles
//! shaders to machine code for as long as it runs.

use super::Files;
use super::calls::{Calls, bits};
use super::common;
use std::path::PathBuf;

/// Where programs and drivers find their libraries.
pub(super) const LIBRARIES: [&str; 6] =
    ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/libexec"];
/// What names libraries and drivers.
const SETTINGS: [&str; 10] = [
    "/etc/ld.so.cache",
    "/etc/ld.so.preload",
    "/etc/vulkan",
    "/etc/xdg/vulkan",
    "/usr/share/vulkan",
    "/usr/local/share/vulkan",
    "/etc/drirc",
    "/usr/share/drirc.d",
    "/usr/share/libdrm",
    "/usr/share/glvnd",
];
/// Variables by which the operator names drivers' files, and folders of libraries; lists with colons.
const VARIABLES: [&str; 4] =
    ["VK_DRIVER_FILES", "VK_ADD_DRIVER_FILES", "VK_ICD_FILENAMES", "LD_LIBRARY_PATH"];
/// What a driver reads about the machine.
const MACHINE: [&str; 10] = [
    "/proc/self",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/devices",
    "/proc/driver",
    "/proc/sys/vm",
    "/sys/class",
    "/sys/devices",
    "/sys/dev",
    "/sys/bus",
];
/// The folder of the devices that draw.
const DEVICES: &str = "/dev";
/// Those outside `/dev/dri`, by the start of their names.
const NAMES: [&str; 3] = ["nvidia", "kfd", "dri"];

/// Types of `ioctl` requests (bits 8 to 15) of drivers: DRM's, AMD's compute queues', NVIDIA's, sync files',
/// DMA buffers'.
const DRIVERS: [u8; 5] = [b'd', b'K', b'F', b'>', b'b'];

pub(super) fn calls() -> Calls {
    let calls = common::calls()
        // Code: a shader compiler writes it, then makes it executable.
        .allow(&[libc::SYS_mmap, libc::SYS_mprotect, libc::SYS_mlock, libc::SYS_munlock])
        // Looking for a driver, and loading it.
        .allow(&[
            libc::SYS_access,
            libc::SYS_faccessat,
            libc::SYS_faccessat2,
            libc::SYS_fstatfs,
            libc::SYS_getdents64,
            libc::SYS_lstat,
            libc::SYS_open,
            libc::SYS_openat,
            libc::SYS_stat,
            libc::SYS_statfs,
        ])
        // Who and where it is: drivers ask before they trust their environment.
        .allow(&[
            libc::SYS_getegid,
            libc::SYS_geteuid,
            libc::SYS_getgid,
            libc::SYS_getpriority,
            libc::SYS_getrusage,
            libc::SYS_getuid,
            libc::SYS_sysinfo,
            libc::SYS_uname,
        ])
        // Threads, urgent and less so.
        .allow(&[
            libc::SYS_get_mempolicy,
            libc::SYS_membarrier,
            libc::SYS_sched_get_priority_max,
            libc::SYS_sched_get_priority_min,
            libc::SYS_sched_setattr,
            libc::SYS_sched_setscheduler,
            libc::SYS_setpriority,
        ])
        // Memory that is passed on by descriptor: images, and a driver's buffers.
        .allow(&[
            libc::SYS_fallocate,
            libc::SYS_fchmod,
            libc::SYS_ftruncate,
            libc::SYS_kcmp,
            libc::SYS_memfd_create,
            libc::SYS_pipe2,
            libc::SYS_pwrite64,
        ])
        .allow_values(
            libc::SYS_prctl,
            0,
            &[libc::PR_SET_PDEATHSIG as u32, libc::PR_SET_NO_NEW_PRIVS as u32],
        );
    DRIVERS.iter().fold(calls, |calls, kind| {
        calls.allow_if(libc::SYS_ioctl, &[bits(1, 0xff00, u32::from(*kind) << 8)])
    })
}

pub(super) fn files() -> Files {
    let known = LIBRARIES.iter().chain(&SETTINGS).chain(&MACHINE).map(PathBuf::from);
    let named = VARIABLES.iter().filter_map(std::env::var_os);
    let named = named.flat_map(|list| std::env::split_paths(&list).collect::<Vec<_>>());
    Files {
        // An empty name would stand for the current folder.
        read: known.chain(named.filter(|path| !path.as_os_str().is_empty())).collect(),
        devices: devices(),
        ..Files::default()
    }
}

fn devices() -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(DEVICES) else { return Vec::new() };
    let draws = |name: &std::ffi::OsStr| {
        NAMES.iter().any(|start| name.as_encoded_bytes().starts_with(start.as_bytes()))
    };
    // Its own list may be open already: what it cannot list it does not use.
    entries.flatten().filter(|e| draws(&e.file_name())).map(|e| e.path()).collect()
}
