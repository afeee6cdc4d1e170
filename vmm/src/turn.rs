//! Where a vCPU's thread runs, and how soon it gets its turn; that of a guest without a virtual machine as well.
#![allow(unsafe_code)] // `sched_setattr` has no safe wrapper.

use crate::config::Vcpus;
use crate::vcpu::GuestError;
use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, CpuSet};
use std::io;

/// Why vCPUs cannot have real-time priority here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TurnError {
    /// It is not this process's to have.
    #[error(
        "`vcpus.realtime` is {priority}, and this process has neither CAP_SYS_NICE nor an rtprio limit of so much (it is \
         {limit}): run as root, give the program CAP_SYS_NICE, raise the limit (`ulimit -r`, /etc/security/limits.conf, \
         LimitRTPRIO= of a systemd unit), or leave `vcpus.realtime` out"
    )]
    NotPermitted {
        /// What was asked for.
        priority: u32,
        /// The limit.
        limit: u64,
    },
    /// vCPUs that spin would leave nothing to whoever stops them.
    #[error(
        "`vcpus.realtime` lets {count} vCPUs take all {allowed} host CPUs that this process may use, and it needs one to \
         stop them: name fewer in `vcpus.cpus`, or leave `vcpus.realtime` out"
    )]
    NoCpuLeft {
        /// How many vCPUs there are.
        count: u32,
        /// How many CPUs.
        allowed: u32,
    },
}

/// Whether threads of this process may have a real-time `priority`: by CAP_SYS_NICE, or by the limit on it.
pub fn permitted(priority: u32) -> bool {
    let by_limit = limit().is_none_or(|limit| limit >= u64::from(priority));
    let by_capability = rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_NICE));
    by_limit || by_capability
}

/// The highest real-time priority without a capability; `None`: any.
fn limit() -> Option<u64> {
    getrlimit(Resource::Rtprio).current
}

/// Looks whether vCPUs can have the real-time priority that `vcpus` asks for, as far as that can be told beforehand.
pub fn check(vcpus: &Vcpus) -> Result<(), TurnError> {
    let Some(priority) = vcpus.realtime else { return Ok(()) };
    if !permitted(priority) {
        return Err(TurnError::NotPermitted { priority, limit: limit().unwrap_or(0) });
    }
    // Where the kernel does not say it, a thread is refused by itself.
    let Ok(allowed) = rustix::thread::sched_getaffinity(None) else { return Ok(()) };
    let mut left = allowed;
    vcpus.cpus.iter().filter(|cpu| **cpu < CpuSet::MAX_CPU).for_each(|cpu| left.unset(*cpu));
    if left.count() == 0 && vcpus.count >= allowed.count() {
        return Err(TurnError::NoCpuLeft { count: vcpus.count, allowed: allowed.count() });
    }
    Ok(())
}

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
    // It is on its CPUs by now.
    if let Some(priority) = vcpus.realtime {
        return set(real_time(priority)).map_err(|e| {
            GuestError::Thread(format!(
                "it cannot have real-time priority {priority} ({e}): it takes CAP_SYS_NICE or an rtprio limit, and a \
                 control group that may have real-time threads; else leave `vcpus.realtime` out"
            ))
        });
    }
    if *nice != 0 || slice_us.is_some() {
        set(share(*nice, slice_us.unwrap_or(0))).map_err(|e| {
            GuestError::Thread(format!(
                "its nice value cannot be {nice} ({e}): below 0 it takes root or CAP_SYS_NICE; else \
                 leave `vcpus.nice` out"
            ))
        })?;
    }
    Ok(())
}

/// Linux's own.
fn ordinary() -> libc::sched_attr {
    libc::sched_attr {
        size: size_of::<libc::sched_attr>() as u32,
        sched_policy: libc::SCHED_OTHER as u32,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    }
}

/// A nice value and a time slice in µs; 0: Linux's own. A thread with a short slice takes the CPU at once from one whose
/// slice is longer, as long as it has not had more than its share (Linux 6.12; before, the slice is ignored).
fn share(nice: i32, slice_us: u32) -> libc::sched_attr {
    let sched_runtime = u64::from(slice_us) * 1_000;
    libc::sched_attr { sched_nice: nice, sched_runtime, ..ordinary() }
}

/// `SCHED_FIFO`. What is started by the thread is ordinary: KVM starts threads of its own from a vCPU's first turn.
fn real_time(priority: u32) -> libc::sched_attr {
    libc::sched_attr {
        sched_policy: libc::SCHED_FIFO as u32,
        sched_flags: libc::SCHED_FLAG_RESET_ON_FORK as u64,
        sched_priority: priority,
        ..ordinary()
    }
}

/// Sets how soon the calling thread gets its turn.
fn set(attr: libc::sched_attr) -> io::Result<()> {
    // SAFETY: `attr` is initialised, names its own size and outlives the call, which only reads it; 0 is the
    // calling thread.
    let done = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0u32) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests;
