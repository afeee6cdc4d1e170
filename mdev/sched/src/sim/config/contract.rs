//! A contract as it is written, checked by itself.

use super::check::Checker;
use super::{ConfigError, raw};
use crate::contract::{Class, Contract, Guard, LateLatch, MissAllowance, Period, Sink};
use crate::validate;
use std::format;
use std::string::ToString;

impl Checker<'_> {
    pub(super) fn contract(&self, path: &str, raw: raw::Contract) -> Result<Contract, ConfigError> {
        let ms = |name: &str, v| self.millis(&format!("{path}.{name}"), v);
        let period = hz(&raw.refresh_hz).ok_or_else(|| {
            let problem = format!(
                "`{}` is no rate from 0.1 to 1000 Hz; write \"90\" or \"60000/1001\"",
                raw.refresh_hz
            );
            self.bad(&format!("{path}.refresh_hz"), problem)
        })?;
        let late_latch = match raw.late_latch {
            None => None,
            Some(l) => Some(LateLatch {
                window: ms("late_latch.window", l.window_ms)?,
                budget: ms("late_latch.budget", l.budget_ms)?,
            }),
        };
        let miss = match &raw.miss {
            None => MissAllowance { misses: 0, frames: 1 },
            Some(text) => allowance(text).ok_or_else(|| {
                let problem =
                    format!("`{text}` is no m-in-k; write \"1/100\" for one miss in 100 frames");
                self.bad(&format!("{path}.miss"), problem)
            })?,
        };
        let contract = Contract {
            period,
            deadline: match raw.deadline_ms {
                Some(v) => ms("deadline", v)?,
                None => period.floor(),
            },
            budget: ms("budget", raw.budget_ms)?,
            max_job: ms("max_job", raw.max_job_ms)?,
            gap: ms("gap", raw.gap_ms)?,
            jitter: ms("jitter", raw.jitter_ms)?,
            sink: match raw.sink {
                raw::Sink::Virtual => Sink::Virtual,
                raw::Sink::External => Sink::External,
            },
            class: match raw.class {
                raw::Class::Reserved => Class::Reserved,
                raw::Class::Elastic => Class::Elastic,
                raw::Class::Background => Class::Background,
            },
            miss,
            late_latch,
            guard: match raw.guard {
                raw::Guard::Deadline => Guard::Deadline,
                raw::Guard::Release => Guard::Release,
            },
            depth: raw.depth,
            weight: raw.weight,
        };
        validate::contract(&contract).map_err(|e| {
            let problem = e.to_string();
            // Such a message begins with the field's name.
            let field = problem.split_once(' ').map_or("", |(field, _)| field);
            self.bad(&format!("{path}.{field}"), problem.clone())
        })?;
        Ok(contract)
    }
}

/// `90` or `60000/1001`.
fn hz(text: &str) -> Option<Period> {
    let (num, den) = text.split_once('/').unwrap_or((text, "1"));
    Period::from_hz(num.trim().parse().ok().filter(|&n| n > 0)?, den.trim().parse().ok()?)
}

/// `1/100`.
fn allowance(text: &str) -> Option<MissAllowance> {
    let (misses, frames) = text.split_once('/')?;
    let (misses, frames) = (misses.trim().parse().ok()?, frames.trim().parse().ok()?);
    (misses < frames).then_some(MissAllowance { misses, frames })
}
