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
    use rustix::process::{Resource, getrlimit};
    let by_limit = getrlimit(Resource::Rtprio).current != Some(0);
    let by_capability = rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::SYS_NICE));
    by_limit || by_capability
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_cpu_renders() {
        let p = Placement::of(&[0, 2, 5], false);
        assert_eq!((p.host, p.render), (vec![0, 2], vec![5]));
        let p = Placement::of(&[3], false);
        assert_eq!((p.host, p.render), (vec![3], vec![3]));
    }

    #[test]
    fn this_machine_has_a_cpu() {
        assert!(!Placement::here().unwrap().render.is_empty());
    }
}
