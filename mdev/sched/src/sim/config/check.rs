//! From what is written to what is meant: units, names, files; then the scenario's own checks.

use super::{ConfigError, locate, raw};
use crate::admission::Admission;
use crate::policy::{GpuCaps, Preemption};
use crate::sim::cost::Cost;
use crate::sim::csv;
use crate::sim::scenario::{
    Burst, Flood, Frames, MAX_TENANTS, Overrun, Scenario, ScenarioError, SceneChange, Tenant, Work,
};
use beamline_abi::Nanos;
use std::string::{String, ToString};
use std::sync::Arc;
use std::vec::Vec;
use std::{format, vec};

/// Longest name of a tenant, in characters.
const MAX_NAME: usize = 32;
/// Longest description, in characters.
const MAX_ABOUT: usize = 200;

/// Knows where values come from, for the messages, and who reads the traces.
pub(super) struct Checker<'a> {
    pub(super) text: &'a str,
    pub(super) file: &'a str,
    pub(super) read: &'a mut dyn FnMut(&str) -> Result<String, String>,
}

impl Checker<'_> {
    pub(super) fn bad(&self, path: &str, problem: impl Into<String>) -> ConfigError {
        let (key, line) = locate::resolve(self.text, path);
        ConfigError::Value { file: self.file.to_string(), line, key, problem: problem.into() }
    }

    pub(super) fn file(mut self, raw: raw::File, name: &str) -> Result<Scenario, ConfigError> {
        if raw.about.is_empty()
            || raw.about.chars().count() > MAX_ABOUT
            || raw.about.chars().any(char::is_control)
        {
            let problem = format!("must be one line of 1 to {MAX_ABOUT} characters");
            return Err(self.bad("about", problem));
        }
        let gpu = &raw.gpu;
        let caps = GpuCaps {
            in_flight: gpu.in_flight,
            // No time passes here between two jobs.
            ahead: 0,
            switch_cost: self.millis("gpu.switch_cost", gpu.switch_cost_ms)?,
            guard_margin: self.millis("gpu.guard_margin", gpu.guard_margin_ms)?,
            preemption: match gpu.preemption {
                raw::Preemption::None => Preemption::None,
                raw::Preemption::Levels { levels, grain_ms } => Preemption::Levels {
                    levels,
                    grain: self.millis("gpu.preemption.grain", grain_ms)?,
                },
                raw::Preemption::Full { cost_ms } => {
                    Preemption::Full { cost: self.millis("gpu.preemption.cost", cost_ms)? }
                }
            },
        };
        let kill_grace = self.millis("gpu.kill_grace", gpu.kill_grace_ms)?;
        let (tenants, origin) = self.tenants("tenant", raw.tenant)?;
        let (density, density_origin) = self.tenants("density", raw.density)?;
        let victim = match &raw.victim {
            None => None,
            Some(name) => Some(self.victim(name, &tenants)?),
        };
        let scenario = Scenario {
            name: name.to_string(),
            about: raw.about,
            caps,
            kill_grace,
            length: self.seconds("seconds", raw.seconds)?,
            warm_up: self.seconds("warm_up", raw.warm_up_s)?,
            tenants,
            victim,
            density: (!density.is_empty()).then_some(density),
        };
        let sources = [("tenants", &origin, "tenant"), ("density", &density_origin, "density")];
        scenario.check().map_err(|e| self.translate(&scenario, &e, &sources))?;
        self.each_fits_alone(&scenario.tenants, "tenant", &origin, &caps)?;
        let density = scenario.density.as_deref().unwrap_or(&[]);
        self.each_fits_alone(density, "density", &density_origin, &caps)?;
        Ok(scenario)
    }

    /// A contract that admission refuses on an empty GPU can never be kept.
    fn each_fits_alone(
        &self,
        tenants: &[Tenant],
        list: &str,
        origin: &[usize],
        caps: &GpuCaps,
    ) -> Result<(), ConfigError> {
        let admission = Admission::new(*caps, 1);
        let mut seen = None;
        for (tenant, &i) in tenants.iter().zip(origin) {
            // The copies of one entry have one contract.
            if seen.replace(i) == Some(i) {
                continue;
            }
            if let Err(refusal) = admission.try_admit(&[], &tenant.contract) {
                let problem = format!("cannot be kept even by a GPU of its own: {refusal}");
                return Err(self.bad(&format!("{list}[{i}].contract"), problem));
            }
        }
        Ok(())
    }

    /// An error of the scenario's own checks, in the words of the file.
    fn translate(
        &self,
        scenario: &Scenario,
        error: &ScenarioError,
        sources: &[(&str, &Vec<usize>, &str)],
    ) -> ConfigError {
        let field = error.field.trim_end_matches(".len");
        for (ours, origin, written) in sources {
            let Some(rest) = field.strip_prefix(*ours) else { continue };
            let Some((index, rest)) = rest.strip_prefix('[').and_then(|r| r.split_once(']')) else {
                return self.bad(written, error.problem.clone());
            };
            let index: usize = index.parse().unwrap_or(0);
            let tenants = if *ours == "density" {
                scenario.density.as_deref().unwrap_or(&[])
            } else {
                &scenario.tenants
            };
            let work = match tenants.get(index).map(|t| &t.work) {
                Some(Work::Flood(_)) => ".flood",
                Some(Work::Trace(_)) => ".trace",
                _ => ".frames",
            };
            let rest = rest.replacen(".work", work, 1);
            let entry = origin.get(index).copied().unwrap_or(index);
            return self.bad(&format!("{written}[{entry}]{rest}"), error.problem.clone());
        }
        let path = match field {
            "length" => "seconds".to_string(),
            "kill_grace" => "gpu.kill_grace".to_string(),
            other => other.replacen("caps", "gpu", 1),
        };
        self.bad(&path, error.problem.clone())
    }

    fn victim(&self, name: &str, tenants: &[Tenant]) -> Result<usize, ConfigError> {
        let found = tenants.iter().position(|t| t.name == name);
        match found {
            Some(i) if matches!(tenants[i].work, Work::Flood(_)) => {
                let problem = format!("`{name}` has no frames; name a tenant that has");
                Err(self.bad("victim", problem))
            }
            Some(i) => Ok(i),
            None => {
                let names: Vec<&str> = tenants.iter().take(8).map(|t| t.name.as_str()).collect();
                let problem =
                    format!("there is no tenant `{name}`; there are: {}", names.join(", "));
                Err(self.bad("victim", problem))
            }
        }
    }

    /// The tenants of a list, copies and all, and which entry each one comes from.
    fn tenants(
        &mut self,
        list: &str,
        raw: Vec<raw::Tenant>,
    ) -> Result<(Vec<Tenant>, Vec<usize>), ConfigError> {
        let (mut tenants, mut origin): (Vec<Tenant>, _) = (vec![], vec![]);
        for (i, entry) in raw.into_iter().enumerate() {
            let path = format!("{list}[{i}]");
            let count = entry.count as usize;
            let most = MAX_TENANTS.saturating_sub(tenants.len());
            if !(1..=most).contains(&count) {
                let problem =
                    format!("is {count}; it must be 1 to {most} ({MAX_TENANTS} tenants in all)");
                return Err(self.bad(&format!("{path}.count"), problem));
            }
            let tenant = self.tenant(&path, entry)?;
            for n in 1..=count {
                let name = match count {
                    1 => tenant.name.clone(),
                    _ => format!("{}-{n}", tenant.name),
                };
                origin.push(i);
                tenants.push(Tenant { name, ..tenant.clone() });
            }
        }
        let mut names: Vec<(&str, usize)> =
            tenants.iter().zip(&origin).map(|(t, &i)| (t.name.as_str(), i)).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|w| w[0].0 == w[1].0) {
            let problem = format!("`{}` is taken; give each tenant its own name", twice[1].0);
            return Err(self.bad(&format!("{list}[{}].name", twice[1].1), problem));
        }
        Ok((tenants, origin))
    }

    fn tenant(&mut self, path: &str, raw: raw::Tenant) -> Result<Tenant, ConfigError> {
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if raw.name.is_empty() || raw.name.len() > MAX_NAME || !raw.name.chars().all(fits) {
            let problem = format!("must be 1 to {MAX_NAME} letters, digits, `-` or `_`");
            return Err(self.bad(&format!("{path}.name"), problem));
        }
        let contract = self.contract(&format!("{path}.contract"), raw.contract)?;
        let phase = match raw.phase_ms {
            None => None,
            Some(ms) => Some(self.millis(&format!("{path}.phase"), ms)?),
        };
        let work = match (raw.frames, raw.flood, raw.trace) {
            (Some(frames), None, None) => Work::Frames(self.frames(path, frames)?),
            (None, Some(flood), None) => Work::Flood(self.flood(path, flood)?),
            (None, None, Some(trace)) => {
                let text = (self.read)(&trace.file)
                    .map_err(|problem| self.bad(&format!("{path}.trace.file"), problem))?;
                Work::Trace(Arc::new(csv::parse(&text, &trace.file)?))
            }
            _ => {
                let problem = "must have exactly one of the tables frames, flood and trace";
                return Err(self.bad(path, problem));
            }
        };
        Ok(Tenant { name: raw.name, contract, work, phase })
    }

    fn frames(&self, path: &str, raw: raw::Frames) -> Result<Frames, ConfigError> {
        let path = format!("{path}.frames");
        let mut jobs = Vec::with_capacity(raw.jobs.len());
        for (i, &job) in raw.jobs.iter().enumerate() {
            jobs.push(self.cost(&format!("{path}.jobs[{i}]"), job)?);
        }
        let late_latch = match raw.late_latch {
            None => None,
            Some(cost) => Some(self.cost(&format!("{path}.late_latch"), cost)?),
        };
        Ok(Frames {
            jobs,
            late_latch,
            wake: self.cost(&format!("{path}.wake"), raw.wake)?,
            gap: self.cost(&format!("{path}.gap"), raw.gap)?,
            scene_change: raw.scene_change.map(|s| SceneChange {
                every_frames: s.every_frames,
                lasts_frames: s.lasts_frames,
                factor: s.factor,
            }),
            overrun: raw.overrun.map(|o| Overrun { chance: o.chance, factor: o.factor }),
        })
    }

    fn flood(&self, path: &str, raw: raw::Flood) -> Result<Flood, ConfigError> {
        let path = format!("{path}.flood");
        let burst = match raw.burst {
            None => None,
            Some(b) => Some(Burst {
                on: self.millis(&format!("{path}.burst.on"), b.on_ms)?,
                off: self.millis(&format!("{path}.burst.off"), b.off_ms)?,
            }),
        };
        Ok(Flood { depth: raw.depth, cost: self.cost(&format!("{path}.cost"), raw.cost)?, burst })
    }

    fn cost(&self, path: &str, raw: raw::Cost) -> Result<Cost, ConfigError> {
        let ms = |name: &str, v| self.millis(&format!("{path}{name}"), v);
        Ok(match raw {
            raw::Cost::FixedMs(v) => Cost::Fixed(ms(".fixed", v)?),
            raw::Cost::Uniform { low_ms, high_ms } => {
                Cost::Uniform { low: ms(".low", low_ms)?, high: ms(".high", high_ms)? }
            }
            raw::Cost::Lognormal { median_ms, sigma, at_most_ms } => Cost::LogNormal {
                median: ms(".median", median_ms)?,
                sigma,
                at_most: ms(".at_most", at_most_ms)?,
            },
            raw::Cost::Pareto { scale_ms, shape, at_most_ms } => Cost::Pareto {
                scale: ms(".scale", scale_ms)?,
                shape,
                at_most: ms(".at_most", at_most_ms)?,
            },
        })
    }

    pub(super) fn millis(&self, path: &str, ms: f64) -> Result<Nanos, ConfigError> {
        if ms.is_finite() && (0.0..=3_600_000.0).contains(&ms) {
            return Ok(Nanos((ms * 1e6).round() as u64));
        }
        Err(self.bad(path, format!("{ms} is out of range; use 0 to 3600000 milliseconds")))
    }

    fn seconds(&self, path: &str, s: f64) -> Result<Nanos, ConfigError> {
        if s.is_finite() && (0.0..=3_600.0).contains(&s) {
            return Ok(Nanos((s * 1e9).round() as u64));
        }
        Err(self.bad(path, format!("{s} is out of range; use 0 to 3600 seconds")))
    }
}
