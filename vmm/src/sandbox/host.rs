//! What a host does while it serves: slices come and go, so it makes sockets, threads and files in its folder.
//!
//! Its renderers are started by one thread of it, and what that thread may not do they may not do either. So
//! that thread keeps a wider list than all others: its own.

use super::calls::{Calls, bits, is};
use super::common::{self, NAMESPACES};
use super::{Files, renderer};
use std::path::Path;

pub(super) fn calls() -> Calls {
    common::calls()
        .and(common::no_new_code())
        // The sockets of slices that are created, and of the control API.
        .allow(&[libc::SYS_accept4, libc::SYS_bind, libc::SYS_getsockname, libc::SYS_listen])
        .allow_if(libc::SYS_socket, &[is(0, libc::AF_UNIX as u32)])
        // A socket that a dead host left is told by connecting to it.
        .allow(&[libc::SYS_connect, libc::SYS_getpeername])
        .allow(&[
            libc::SYS_chmod,
            libc::SYS_fchmod,
            libc::SYS_fchmodat,
            libc::SYS_unlink,
            libc::SYS_unlinkat,
        ])
        // The log of stamps and pictures; Landlock says where.
        .allow(&[
            libc::SYS_fdatasync,
            // What file system a guest's memory is on tells the size of its pages.
            libc::SYS_fstatfs,
            libc::SYS_fsync,
            libc::SYS_ftruncate,
            libc::SYS_memfd_create,
            libc::SYS_mkdir,
            libc::SYS_mkdirat,
            libc::SYS_openat,
            libc::SYS_pwrite64,
            libc::SYS_rename,
            libc::SYS_renameat,
            libc::SYS_renameat2,
            libc::SYS_umask,
        ])
        // Threads of slices, at their priorities.
        .allow(&[libc::SYS_sched_setattr, libc::SYS_sched_setscheduler])
        // Interrupts and doorbells, without a thread that may be held up.
        .allow(&[
            libc::SYS_preadv2,
            libc::SYS_io_destroy,
            libc::SYS_io_getevents,
            libc::SYS_io_setup,
            libc::SYS_io_submit,
        ])
        // A renderer whose job hangs is killed, and its end is taken. Landlock bounds whom a signal reaches.
        .allow_if(libc::SYS_kill, &[is(1, libc::SIGKILL as u32)])
        .allow_if(libc::SYS_pidfd_send_signal, &[is(1, libc::SIGKILL as u32)])
        .allow(&[libc::SYS_wait4, libc::SYS_waitid])
}

/// What the thread may do that starts renderers: all that the host does, all that a renderer does, starting a
/// program, and setting up lists of its own there.
pub(super) fn launcher_calls() -> Calls {
    calls()
        .and(renderer::calls())
        .allow(&[
            libc::SYS_execve,
            libc::SYS_dup2,
            libc::SYS_dup3,
            libc::SYS_pidfd_open,
            libc::SYS_pipe2,
            libc::SYS_vfork,
        ])
        .allow_if(libc::SYS_clone, &[bits(0, NAMESPACES as u32, 0)])
        // How the host's other threads, and each renderer, take a shorter list.
        .allow(&[
            libc::SYS_capget,
            libc::SYS_capset,
            libc::SYS_landlock_add_rule,
            libc::SYS_landlock_create_ruleset,
            libc::SYS_landlock_restrict_self,
            libc::SYS_seccomp,
        ])
        .allow_values(
            libc::SYS_prctl,
            0,
            &[
                libc::PR_CAPBSET_DROP as u32,
                libc::PR_CAPBSET_READ as u32,
                libc::PR_CAP_AMBIENT as u32,
                libc::PR_GET_SECCOMP as u32,
                libc::PR_SET_NO_NEW_PRIVS as u32,
                libc::PR_SET_PDEATHSIG as u32,
            ],
        )
        // What a program does before its `main`.
        .allow(&[libc::SYS_arch_prctl, libc::SYS_set_tid_address])
}

pub(super) fn launcher_files(program: &Path) -> Files {
    let mut files = renderer::files();
    // A renderer has another number than its host, so that the host cannot name its folder.
    files.read.push("/proc".into());
    // Where a renderer's output goes.
    files.write.push("/dev/null".into());
    files.run.push(program.into());
    files.run.extend(renderer::LIBRARIES.map(Into::into));
    files
}
