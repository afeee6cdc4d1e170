//! Which CPUs do what: rendering on the last one, all else on the others.

use anyhow::Context;

/// CPUs by role. Never empty; on a machine with one CPU both roles share it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Placement {
    /// The host process, the VMMs and their vCPUs.
    pub(crate) host: Vec<usize>,
    /// The GPU driver's threads.
    pub(crate) render: Vec<usize>,
    /// Whether real-time scheduling is permitted.
    pub(crate) realtime: bool,
}

impl Placement {
    /// On `cpus`, in rising order.
    pub(crate) fn of(cpus: &[usize], realtime: bool) -> Self {
        match cpus {
            [] => Self { host: vec![0], render: vec![0], realtime },
            [only] => Self { host: vec![*only], render: vec![*only], realtime },
            [others @ .., last] => Self { host: others.to_vec(), render: vec![*last], realtime },
        }
    }

    /// On the CPUs that this process may use.
    pub(crate) fn here() -> anyhow::Result<Self> {
        Ok(Self::of(&cpus()?, realtime_permitted()))
    }
}

/// The CPUs that this process may use.
pub(crate) fn cpus() -> anyhow::Result<Vec<usize>> {
    let set = rustix::thread::sched_getaffinity(None).context("sched_getaffinity")?;
    Ok((0..rustix::thread::CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect())
}

/// Whether a thread of ours may become `SCHED_FIFO`: as root (with `CAP_SYS_NICE`), or by RLIMIT_RTPRIO.
pub(crate) fn realtime_permitted() -> bool {
    beamline_vmm::turn::permitted(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use beamline_mdev::host::threads::Role;
    use beamline_mdev::renderer::JOB_PRIORITY;

    #[test]
    fn the_last_cpu_renders() {
        let p = Placement::of(&[0, 2, 5], false);
        assert_eq!((p.host, p.render), (vec![0, 2], vec![5]));
        let p = Placement::of(&[3], false);
        assert_eq!((p.host, p.render), (vec![3], vec![3]));
    }

    /// A guest that spins holds up nobody who serves the others.
    #[test]
    fn a_vcpu_is_less_urgent_than_what_serves_every_guest() {
        let most = *beamline_vmm::config::REALTIME.end();
        let host =
            [Role::Dispatcher, Role::Poster, Role::Worker].map(|role| role.priority().unwrap());
        for serves in host.into_iter().chain([JOB_PRIORITY]) {
            assert!(most < serves.try_into().unwrap(), "{most} {serves}");
        }
    }

    #[test]
    fn this_machine_has_a_cpu() {
        assert!(!Placement::here().unwrap().render.is_empty());
    }
}
