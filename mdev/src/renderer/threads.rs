//! Where the renderer's threads run, and how urgently.
#![allow(unsafe_code)] // `sched_setscheduler` has no safe wrapper.

use rustix::thread::{CpuSet, sched_setaffinity};

/// Real-time priority of the threads on a job's path: above ordinary threads, below the dispatcher's.
pub const JOB_PRIORITY: libc::c_int = 5;

/// Keeps the calling thread, and threads it starts from now on, on these CPUs. An empty list, or one that
/// the machine does not have, leaves things as they are: placement is for punctuality, not correctness.
pub(crate) fn pin(cpus: &[u32]) {
    let mut set = CpuSet::new();
    for &cpu in cpus {
        let cpu = cpu as usize;
        if cpu < CpuSet::MAX_CPU {
            set.set(cpu);
        }
    }
    if set.count() > 0 {
        let _ = sched_setaffinity(None, &set);
    }
}

/// Makes the calling thread an ordinary one, whatever the host's thread was that started this process: the
/// driver's threads inherit it, and a shader must not run at a real-time priority.
pub(crate) fn ordinary() {
    schedule(libc::SCHED_OTHER, 0);
}

/// Asks that the calling thread preempts ordinary threads; without the permission it stays as it is.
pub(crate) fn prefer() {
    // Threads started later must not inherit it.
    schedule(libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, JOB_PRIORITY);
}

fn schedule(policy: libc::c_int, priority: libc::c_int) {
    let param = libc::sched_param { sched_priority: priority };
    // SAFETY: `param` is initialised and outlives the call, which only reads it; 0 is the calling thread.
    let _ = unsafe { libc::sched_setscheduler(0, policy, &raw const param) };
}
