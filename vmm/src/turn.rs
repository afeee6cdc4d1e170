//! Where a vCPU's thread runs, and how soon it gets its turn; that of a guest without a virtual machine as well.
#![allow(unsafe_code)] // `sched_setattr` has no safe wrapper.

use crate::config::Vcpus;
use crate::vcpu::GuestError;
use rustix::thread::CpuSet;
use std::io;

/// Places the calling thread, which runs vCPU `index`, as `vcpus` asks.
///
/// # Errors
/// [`GuestError::Thread`], with what would be right.
pub fn place(vcpus: &Vcpus, index: u32) -> Result<(), GuestError> {
    let Vcpus { nice, slice_us, .. } = vcpus;
    let cpus = vcpus.cpus_of(index);
    if !cpus.is_empty() {
        let mut set = CpuSet::new();
        for cpu in cpus {
            set.set(*cpu);
        }
        rustix::thread::sched_setaffinity(None, &set).map_err(|e| {
            GuestError::Thread(format!(
                "it cannot be pinned to host CPUs {cpus:?} ({e}): name CPUs in `vcpus.cpus` that are \
                 online and that this process may use"
            ))
        })?;
    }
    if *nice != 0 || slice_us.is_some() {
        share(*nice, slice_us.unwrap_or(0)).map_err(|e| {
            GuestError::Thread(format!(
                "its nice value cannot be {nice} ({e}): below 0 it takes root or CAP_SYS_NICE; else \
                 leave `vcpus.nice` out"
            ))
        })?;
    }
    Ok(())
}

/// Sets the calling thread's nice value and its time slice in µs; 0: Linux's own. A thread with a short slice
/// takes the CPU at once from one whose slice is longer, as long as it has not had more than its share
/// (Linux 6.12; before, the slice is ignored).
fn share(nice: i32, slice_us: u32) -> io::Result<()> {
    let attr = libc::sched_attr {
        size: size_of::<libc::sched_attr>() as u32,
        sched_policy: libc::SCHED_OTHER as u32,
        sched_flags: 0,
        sched_nice: nice,
        sched_priority: 0,
        sched_runtime: u64::from(slice_us) * 1_000,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: `attr` is initialised, names its own size and outlives the call, which only reads it; 0 is the
    // calling thread.
    let done = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0u32) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
