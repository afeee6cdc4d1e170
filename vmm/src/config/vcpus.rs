//! Section `[vcpus]`: how many, and where they run.

use super::Wrong;
use serde::Deserialize;

/// Host CPU numbers below this can be named (glibc's `CPU_SETSIZE`).
const MAX_CPU: u32 = 1024;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    #[serde(default = "one")]
    count: u32,
    #[serde(default)]
    cpus: Option<Vec<u32>>,
}

fn one() -> u32 {
    1
}

impl Default for Raw {
    fn default() -> Self {
        Self { count: 1, cpus: None }
    }
}

/// The guest's virtual CPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vcpus {
    /// Host CPUs it may run on; empty: all that the process may use.
    pub cpus: Vec<usize>,
}

impl Raw {
    pub(super) fn check(self) -> Result<Vcpus, Wrong> {
        if self.count != 1 {
            return Err(Wrong::new(
                "vcpus.count",
                format!("is {}: guests have one vCPU today, so use 1", self.count),
            ));
        }
        let Some(cpus) = self.cpus else { return Ok(Vcpus::default()) };
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
        Ok(Vcpus { cpus: cpus.into_iter().map(|c| c as usize).collect() })
    }
}
