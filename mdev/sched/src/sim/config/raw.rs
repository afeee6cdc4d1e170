//! A scenario file as it is written. Unknown keys are refused; times are milliseconds.

use crate::written::Written;
use serde::Deserialize;
use std::string::String;
use std::vec::Vec;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) about: String,
    #[serde(default = "sixty")]
    pub(super) seconds: f64,
    #[serde(default = "one_second")]
    pub(super) warm_up_s: f64,
    pub(super) victim: Option<String>,
    #[serde(default)]
    pub(super) gpu: Gpu,
    #[serde(default)]
    pub(super) tenant: Vec<Tenant>,
    #[serde(default)]
    pub(super) density: Vec<Tenant>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Gpu {
    pub(super) in_flight: u8,
    pub(super) switch_cost_ms: f64,
    pub(super) guard_margin_ms: f64,
    pub(super) kill_grace_ms: f64,
    pub(super) preemption: Preemption,
}

impl Default for Gpu {
    fn default() -> Self {
        Self {
            in_flight: 1,
            switch_cost_ms: 0.01,
            guard_margin_ms: 0.0,
            kill_grace_ms: 20.0,
            preemption: Preemption::None,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "lowercase")]
pub(super) enum Preemption {
    None,
    Levels { levels: u8, grain_ms: f64 },
    Full { cost_ms: f64 },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tenant {
    pub(super) name: String,
    #[serde(default = "one")]
    pub(super) count: u32,
    pub(super) phase_ms: Option<f64>,
    pub(super) contract: Written,
    pub(super) frames: Option<Frames>,
    pub(super) flood: Option<Flood>,
    pub(super) trace: Option<TraceFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Frames {
    pub(super) jobs: Vec<Cost>,
    pub(super) late_latch: Option<Cost>,
    #[serde(default = "no_time")]
    pub(super) wake: Cost,
    #[serde(default = "no_time")]
    pub(super) gap: Cost,
    pub(super) scene_change: Option<SceneChange>,
    pub(super) overrun: Option<Overrun>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SceneChange {
    pub(super) every_frames: u32,
    pub(super) lasts_frames: u32,
    pub(super) factor: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Overrun {
    pub(super) chance: f64,
    pub(super) factor: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Flood {
    pub(super) depth: u32,
    pub(super) cost: Cost,
    pub(super) burst: Option<Burst>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Burst {
    pub(super) on_ms: f64,
    pub(super) off_ms: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TraceFile {
    pub(super) file: String,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub(super) enum Cost {
    FixedMs(f64),
    Uniform { low_ms: f64, high_ms: f64 },
    Lognormal { median_ms: f64, sigma: f64, at_most_ms: f64 },
    Pareto { scale_ms: f64, shape: f64, at_most_ms: f64 },
}

const fn no_time() -> Cost {
    Cost::FixedMs(0.0)
}
const fn sixty() -> f64 {
    60.0
}
const fn one_second() -> f64 {
    1.0
}
const fn one() -> u32 {
    1
}
