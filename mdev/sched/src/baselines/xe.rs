//! Stage 4, schedule: the execution quanta of Intel Xe's SR-IOV functions, as the Linux kernel documents them
//! (`Documentation/ABI/testing/sysfs-driver-intel-xe-sriov`). A model of documented behaviour.
//!
//! The GPU's firmware goes round the functions that have work. Per function there are `exec_quantum_ms`, 0 for
//! unlimited, which is the kernel's default; and `preempt_timeout_us`, within which a job must have made room
//! once it was asked to. The profile for 30 frames per second gives N functions max(32/N, 1) ms and
//! max(64/N, 16) ms.
//!
//! Beyond the timeout the product resets the function and its frame is lost. In the model the job runs on to
//! its end, which is kinder to the product: see [`XeQuantum::resets`].

use super::round_robin::Slicing;
use beamline_abi::Nanos;

/// Where quantum and timeout come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Provision {
    Profile30,
    Set { quantum: Option<Nanos>, timeout: Option<Nanos> },
}

/// Intel Xe's functions under execution quanta.
#[derive(Clone, Copy, Debug)]
pub struct XeQuantum {
    name: &'static str,
    provision: Provision,
    resets: u64,
}

impl XeQuantum {
    /// The profile for 30 frames per second.
    pub const fn profile_30fps() -> Self {
        Self { name: "xe_quantum", provision: Provision::Profile30, resets: 0 }
    }

    /// The kernel's defaults: neither quantum nor timeout ends a turn, only the end of the function's work.
    pub const fn unlimited() -> Self {
        let provision = Provision::Set { quantum: None, timeout: None };
        Self { name: "xe_unlimited", provision, resets: 0 }
    }

    /// The same quantum and preemption timeout for every function; zero for unlimited.
    pub const fn set(quantum: Nanos, timeout: Nanos) -> Self {
        const fn limit(n: Nanos) -> Option<Nanos> {
            if n.0 == 0 { None } else { Some(n) }
        }
        let provision = Provision::Set { quantum: limit(quantum), timeout: limit(timeout) };
        Self { name: "xe_quantum", provision, resets: 0 }
    }

    /// Times that a job outran its quantum and the timeout while others waited: there the product would have
    /// reset the function.
    pub const fn resets(&self) -> u64 {
        self.resets
    }

    /// The preemption timeout with so many functions, ns.
    fn timeout(&self, functions: usize) -> Option<Nanos> {
        match self.provision {
            Provision::Profile30 => Some(Nanos::from_millis((64 / count(functions)).max(16))),
            Provision::Set { timeout, .. } => timeout,
        }
    }
}

fn count(functions: usize) -> u64 {
    functions.max(1) as u64
}

impl Slicing for XeQuantum {
    fn name(&self) -> &'static str {
        self.name
    }
    fn slice(&self, tenants: usize) -> Option<Nanos> {
        match self.provision {
            Provision::Profile30 => Some(Nanos::from_millis((32 / count(tenants)).max(1))),
            Provision::Set { quantum, .. } => quantum,
        }
    }
    fn overshot(&mut self, over: Nanos, tenants: usize) {
        self.resets += u64::from(self.timeout(tenants).is_some_and(|timeout| over > timeout));
    }
}
