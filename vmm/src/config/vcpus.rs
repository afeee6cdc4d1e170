//! Section `[vcpus]`: how many, and where they run.

use super::Wrong;
use schemars::JsonSchema;
use serde::Deserialize;

/// Host CPU numbers below this can be named (glibc's `CPU_SETSIZE`).
const MAX_CPU: u32 = 1024;
/// Most vCPUs: each has an APIC ID of its own below 255, and a thread.
pub(crate) const MAX_COUNT: u32 = 64;
/// Time slices that Linux takes, in µs.
const SLICES_US: std::ops::RangeInclusive<u32> = 100..=100_000;
/// Real-time priorities of vCPUs. They stay below everything that serves all guests: a renderer's threads on a job's
/// path have 5, a host's workers 20, and its dispatcher and posters more. A guest that spins would hold up every
/// other's frames.
pub const REALTIME: std::ops::RangeInclusive<u32> = 1..=4;
/// A vCPU that polls longer than this keeps a CPU from everybody else: µs.
const MAX_POLL_US: u32 = 10_000;

/// The guest's virtual CPUs.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "vcpus")]
pub(super) struct Raw {
    /// 1 to 64.
    #[serde(default = "one")]
    count: u32,
    /// Host CPUs that they may run on. As many as there are vCPUs: one each.
    #[serde(default)]
    cpus: Option<Vec<u32>>,
    /// -20, most urgent, to 19; below 0 takes CAP_SYS_NICE.
    #[serde(default)]
    nice: i32,
    /// Time slice in microseconds, 100 to 100000: the shorter, the sooner a vCPU gets its turn.
    slice_us: Option<u32>,
    /// Real-time priority (SCHED_FIFO), 1 to 4: a vCPU goes before all ordinary threads on its CPU. Needs `cpus`, one for
    /// each vCPU, and CAP_SYS_NICE or an rtprio limit.
    realtime: Option<u32>,
    halt_poll_us: Option<u32>,
    /// What the guest's TSC is ahead of the host's, in ticks; below 0: behind it.
    tsc_offset: Option<i64>,
    /// The guest finds Microsoft's hypervisor, with its clocks and timers, and not KVM.
    #[serde(default)]
    hyperv: bool,
}

fn one() -> u32 {
    1
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            count: 1,
            cpus: None,
            nice: 0,
            slice_us: None,
            realtime: None,
            halt_poll_us: None,
            tsc_offset: None,
            hyperv: false,
        }
    }
}

/// The guest's virtual CPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vcpus {
    /// How many: 1 to 64.
    pub count: u32,
    /// Host CPUs they may run on; empty: all that the process may use. As many as there are vCPUs: one each.
    pub cpus: Vec<usize>,
    /// Their nice value, -20 (most urgent) to 19; below 0 takes `CAP_SYS_NICE`.
    pub nice: i32,
    /// Their time slice in µs, where it is not Linux's own: the shorter, the sooner one gets its turn.
    pub slice_us: Option<u32>,
    /// Their real-time priority (`SCHED_FIFO`), in [`REALTIME`]; `None`: they are ordinary threads. Where it is there,
    /// `cpus` has one for each vCPU at least.
    pub realtime: Option<u32>,
    /// How long a halted vCPU's thread looks for its next interrupt before it sleeps, in µs, 0 to 10,000, where it
    /// is not KVM's own: it wakes sooner, and keeps a host CPU busy for as long.
    pub halt_poll_us: Option<u32>,
    /// Ticks that the guest's TSC is ahead of the host's, where KVM does not choose them: it has the counter start at 0.
    pub tsc_offset: Option<i64>,
    /// The guest finds Microsoft's hypervisor, as far as KVM has its interface, and not KVM.
    pub hyperv: bool,
}

impl Vcpus {
    /// The host CPUs of vCPU `index`; empty: all that the process may use.
    pub fn cpus_of(&self, index: u32) -> &[usize] {
        let own = self.cpus.len() == self.count as usize;
        own.then(|| self.cpus.get(index as usize..=index as usize)).flatten().unwrap_or(&self.cpus)
    }
}

impl Raw {
    pub(super) fn check(self) -> Result<Vcpus, Wrong> {
        if !(1..=MAX_COUNT).contains(&self.count) {
            return Err(Wrong::new(
                "vcpus.count",
                format!("is {}: guests have 1 to {MAX_COUNT} vCPUs", self.count),
            ));
        }
        if !(-20..=19).contains(&self.nice) {
            return Err(Wrong::new(
                "vcpus.nice",
                format!("is {}: nice values go from -20, most urgent, to 19", self.nice),
            ));
        }
        if let Some(slice) = self.slice_us.filter(|s| !SLICES_US.contains(s)) {
            return Err(Wrong::new(
                "vcpus.slice_us",
                format!("is {slice}: Linux takes time slices from 100 to 100000 µs"),
            ));
        }
        if let Some(poll) = self.halt_poll_us.filter(|p| *p > MAX_POLL_US) {
            return Err(Wrong::new(
                "vcpus.halt_poll_us",
                format!(
                    "is {poll}: a halted vCPU can poll for 0 to {MAX_POLL_US} µs before it sleeps"
                ),
            ));
        }
        self.check_realtime()?;
        let Self { count, nice, slice_us, realtime, halt_poll_us, tsc_offset, hyperv, cpus } = self;
        let empty = cpus.as_ref().is_some_and(Vec::is_empty);
        let cpus = cpus.unwrap_or_default();
        if empty {
            return Err(Wrong::new(
                "vcpus.cpus",
                "is empty: name at least one host CPU, or leave the key out to allow all",
            ));
        }
        if let Some(cpu) = cpus.iter().find(|c| **c >= MAX_CPU) {
            return Err(Wrong::new(
                "vcpus.cpus",
                format!("names host CPU {cpu}: numbers go from 0 to {}", MAX_CPU - 1),
            ));
        }
        let cpus = cpus.into_iter().map(|c| c as usize).collect();
        Ok(Vcpus { count, cpus, nice, slice_us, realtime, halt_poll_us, tsc_offset, hyperv })
    }

    fn check_realtime(&self) -> Result<(), Wrong> {
        let Some(priority) = self.realtime else { return Ok(()) };
        let wrong = |message| Err(Wrong::new("vcpus.realtime", message));
        if !REALTIME.contains(&priority) {
            let (least, most) = (REALTIME.start(), REALTIME.end());
            return wrong(format!(
                "is {priority}: real-time priorities of vCPUs go from {least} to {most}, below what serves all guests"
            ));
        }
        if self.nice != 0 || self.slice_us.is_some() {
            return wrong(
                "does not go with `vcpus.nice` and `vcpus.slice_us`, which ordinary threads have: leave out one or the \
                 others"
                    .into(),
            );
        }
        let mut cpus = self.cpus.clone().unwrap_or_default();
        cpus.sort_unstable();
        cpus.dedup();
        if cpus.len() < self.count as usize {
            return wrong(format!(
                "needs a host CPU for each of the {} vCPUs, which keeps it from all others, and `vcpus.cpus` names {}: \
                 name as many as there are vCPUs",
                self.count,
                cpus.len()
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_shared_or_one_each() {
        let all = |count, cpus: &[usize]| {
            let v = Raw { count, ..Raw::default() }.check().unwrap();
            let v = Vcpus { cpus: cpus.to_vec(), ..v };
            (0..count).map(|i| v.cpus_of(i).to_vec()).collect::<Vec<_>>()
        };
        assert_eq!(all(2, &[4, 6]), [[4], [6]]);
        assert_eq!(all(2, &[4]), [[4], [4]]);
        assert_eq!(all(2, &[4, 5, 6]), [[4, 5, 6], [4, 5, 6]]);
        assert_eq!(all(1, &[4]), [[4]]);
        assert!(all(1, &[])[0].is_empty());
    }
}
