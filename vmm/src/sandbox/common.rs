//! What every process of ours does, whatever its role: memory, threads, clocks, waiting, and saying something.

use super::calls::{Calls, bits};
use libc::{
    CLONE_NEWCGROUP, CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUSER,
    CLONE_NEWUTS, CLONE_SIGHAND, CLONE_THREAD, CLONE_VM, PROT_EXEC, c_int,
};

/// Flags of `clone` that make a namespace.
pub(super) const NAMESPACES: c_int = CLONE_NEWCGROUP
    | CLONE_NEWIPC
    | CLONE_NEWNET
    | CLONE_NEWNS
    | CLONE_NEWPID
    | CLONE_NEWUSER
    | CLONE_NEWUTS;
/// Flags of a new thread.
const THREAD: c_int = CLONE_THREAD | CLONE_VM | CLONE_SIGHAND;

/// linux/prctl.h; libc does not name it.
const PR_GET_AUXV: u32 = 0x4155_5856;

/// The least that any role may do.
pub(super) fn calls() -> Calls {
    Calls::default()
        // Memory.
        .allow(&[libc::SYS_brk, libc::SYS_madvise, libc::SYS_mremap, libc::SYS_munmap])
        // Threads and what they wait for.
        .allow(&[
            libc::SYS_exit,
            libc::SYS_exit_group,
            libc::SYS_futex,
            libc::SYS_get_robust_list,
            libc::SYS_getcpu,
            libc::SYS_getpid,
            libc::SYS_gettid,
            // How large a stack may become.
            libc::SYS_prlimit64,
            libc::SYS_rseq,
            libc::SYS_sched_getaffinity,
            libc::SYS_sched_getparam,
            libc::SYS_sched_getscheduler,
            libc::SYS_sched_setaffinity,
            libc::SYS_sched_yield,
            libc::SYS_set_robust_list,
        ])
        // glibc takes `clone` where `clone3`, whose flags a filter cannot see, is not there (`filter`).
        .allow(&[libc::SYS_clone3])
        .allow_if(libc::SYS_clone, &[bits(0, (THREAD | NAMESPACES) as u32, THREAD as u32)])
        .allow_values(
            libc::SYS_prctl,
            0,
            &[
                libc::PR_GET_NAME as u32,
                // rustix asks for the size of a page.
                PR_GET_AUXV,
                libc::PR_SET_NAME as u32,
                libc::PR_SET_VMA as u32,
            ],
        )
        // Signals: handlers stay as they are set, a panic may abort.
        .allow(&[
            libc::SYS_restart_syscall,
            libc::SYS_rt_sigaction,
            libc::SYS_rt_sigprocmask,
            libc::SYS_rt_sigreturn,
            libc::SYS_sigaltstack,
            libc::SYS_tgkill,
        ])
        // Clocks: without a vDSO, or with a clock that it does not know, these are calls.
        .allow(&[
            libc::SYS_clock_getres,
            libc::SYS_clock_gettime,
            libc::SYS_clock_nanosleep,
            libc::SYS_gettimeofday,
            libc::SYS_nanosleep,
            libc::SYS_time,
        ])
        // Descriptors that are open.
        .allow(&[
            libc::SYS_close,
            libc::SYS_dup,
            libc::SYS_epoll_create1,
            libc::SYS_epoll_ctl,
            libc::SYS_epoll_pwait,
            libc::SYS_epoll_wait,
            libc::SYS_eventfd2,
            libc::SYS_fcntl,
            libc::SYS_fstat,
            libc::SYS_lseek,
            libc::SYS_newfstatat,
            libc::SYS_poll,
            libc::SYS_ppoll,
            libc::SYS_pread64,
            libc::SYS_read,
            libc::SYS_readv,
            libc::SYS_statx,
            libc::SYS_timerfd_create,
            libc::SYS_timerfd_settime,
            libc::SYS_write,
            libc::SYS_writev,
        ])
        // Blocking or not, inherited or not, a terminal or not.
        .allow_values(
            libc::SYS_ioctl,
            1,
            &[libc::FIONBIO as u32, libc::FIOCLEX as u32, libc::TCGETS as u32],
        )
        // Files, for reading, as far as Landlock lets it: a panic looks for its own symbols, the allocator for
        // a limit of the system's.
        .allow_if(
            libc::SYS_openat,
            &[bits(
                2,
                (libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC) as u32,
                libc::O_RDONLY as u32,
            )],
        )
        .allow(&[libc::SYS_getcwd, libc::SYS_readlink, libc::SYS_readlinkat])
        // Sockets that are connected.
        .allow(&[
            libc::SYS_getsockopt,
            libc::SYS_recvfrom,
            libc::SYS_recvmsg,
            libc::SYS_sendmsg,
            libc::SYS_sendto,
            libc::SYS_setsockopt,
            libc::SYS_shutdown,
        ])
        .allow_if(libc::SYS_socketpair, &[super::calls::is(0, libc::AF_UNIX as u32)])
        .allow(&[libc::SYS_getrandom])
}

/// Memory that can be written or executed, but not brought in as code.
pub(super) fn no_new_code() -> Calls {
    Calls::default()
        .allow_if(libc::SYS_mmap, &[bits(2, PROT_EXEC as u32, 0)])
        .allow_if(libc::SYS_mprotect, &[bits(2, PROT_EXEC as u32, 0)])
}
