//! Scenario files: TOML, read raw, then checked as a whole into a [`Scenario`]. Opens no file itself.
//!
//! `docs/scenarios.md` describes the format.

mod check;
mod contract;
mod locate;
mod raw;

use super::csv::TraceError;
use super::scenario::Scenario;
use std::string::{String, ToString};

/// Most bytes of a scenario file.
pub const MAX_BYTES: u64 = 1 << 20;

/// Why a scenario file is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// It is not TOML, or has a key that is unknown, missing or of the wrong type.
    #[error("{file}:{line}: {}{message}", Key(key))]
    Syntax {
        /// The file, as it was named.
        file: String,
        /// The line, counted from 1.
        line: usize,
        /// The key, as far as it is known.
        key: String,
        /// What is wrong, and what is expected.
        message: String,
    },
    /// A value is wrong.
    #[error("{file}:{line}: {}{problem}", Key(key))]
    Value {
        /// The file, as it was named.
        file: String,
        /// The line, counted from 1; where the key is not written out, that of the table it belongs to.
        line: usize,
        /// The key, such as `tenant[1].contract.budget_ms`.
        key: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// A trace that the scenario names is wrong.
    #[error(transparent)]
    Trace(#[from] TraceError),
}

/// A key before its message.
struct Key<'a>(&'a str);

impl core::fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, "{}: ", self.0) }
    }
}

/// Checks `text`, the content of the file named `file`, as the scenario `name`. `read` gives the content of a
/// trace that the scenario names, or says why it cannot be had.
///
/// # Errors
/// [`ConfigError`] names the file, the line, the key, what is wrong and what would be right.
pub fn parse(
    text: &str,
    name: &str,
    file: &str,
    read: &mut dyn FnMut(&str) -> Result<String, String>,
) -> Result<Scenario, ConfigError> {
    let raw: raw::File = toml::from_str(text).map_err(|e| {
        let span = e.span().unwrap_or(0..0);
        ConfigError::Syntax {
            file: file.to_string(),
            line: locate::line(text, span.start),
            key: locate::key_at(text, &span),
            message: e.message().trim_end().to_string(),
        }
    })?;
    check::Checker { text, file, read }.file(raw, name)
}

#[cfg(test)]
mod tests;
