//! Section `[vcpus]`: how many, and where they run.

use super::Wrong;
use serde::Deserialize;

/// Host CPU numbers below this can be named (glibc's `CPU_SETSIZE`).
const MAX_CPU: u32 = 1024;
/// Time slices that Linux takes, in µs.
const SLICES_US: std::ops::RangeInclusive<u32> = 100..=100_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    #[serde(default = "one")]
    count: u32,
    #[serde(default)]
    cpus: Option<Vec<u32>>,
    #[serde(default)]
    nice: i32,
    slice_us: Option<u32>,
}

fn one() -> u32 {
    1
}

impl Default for Raw {
    fn default() -> Self {
        Self { count: 1, cpus: None, nice: 0, slice_us: None }
    }
}

/// The guest's virtual CPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vcpus {
    /// Host CPUs it may run on; empty: all that the process may use.
    pub cpus: Vec<usize>,
    /// Its nice value, -20 (most urgent) to 19; below 0 takes `CAP_SYS_NICE`.
    pub nice: i32,
    /// Its time slice in µs, where it is not Linux's own: the shorter, the sooner it gets its turn.
    pub slice_us: Option<u32>,
}

impl Raw {
    pub(super) fn check(self) -> Result<Vcpus, Wrong> {
        if self.count != 1 {
            return Err(Wrong::new(
                "vcpus.count",
                format!("is {}: guests have one vCPU today, so use 1", self.count),
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
        let (nice, slice_us) = (self.nice, self.slice_us);
        let Some(cpus) = self.cpus else { return Ok(Vcpus { cpus: vec![], nice, slice_us }) };
        if cpus.is_empty() {
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
        Ok(Vcpus { cpus: cpus.into_iter().map(|c| c as usize).collect(), nice, slice_us })
    }
}
