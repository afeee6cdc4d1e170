//! A contract of a scenario, checked by itself.

use super::ConfigError;
use super::check::Checker;
use crate::contract::Contract;
use crate::validate;
use crate::written::Written;
use std::format;
use std::string::ToString;

impl Checker<'_> {
    pub(super) fn contract(&self, path: &str, written: Written) -> Result<Contract, ConfigError> {
        // Simulated guests are as punctual as the scenario says.
        let contract = written
            .read(0.0)
            .map_err(|wrong| self.bad(&format!("{path}.{}", wrong.key), wrong.problem))?;
        validate::contract(&contract).map_err(|e| {
            let problem = e.to_string();
            // Such a message begins with the field's name.
            let field = problem.split_once(' ').map_or("", |(field, _)| field);
            self.bad(&format!("{path}.{field}"), problem.clone())
        })?;
        Ok(contract)
    }
}
