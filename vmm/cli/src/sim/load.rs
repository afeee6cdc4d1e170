//! A scenario by name or by file, and the hash that says which one it was.

use crate::failure::{refused, refused_by};
use crate::read;
use beamline_sched::sim::scenario::Scenario;
use beamline_sched::sim::{builtin, config, csv};
use std::path::Path;

/// A scenario, and a hash of all that was read for it.
pub(super) struct Loaded {
    pub(super) scenario: Scenario,
    pub(super) hash: String,
}

/// The built-in scenario `name`, or the file of that name.
pub(super) fn load(name: &str) -> anyhow::Result<Loaded> {
    let path = Path::new(name);
    let built_in = builtin::ALL.iter().find(|(n, _)| *n == name);
    if built_in.is_none() && !path.exists() {
        let names = builtin::ALL.map(|(n, _)| n).join(", ");
        let problem =
            format!("`{name}` is neither a file nor a built-in scenario; built in are: {names}");
        return Err(refused(problem));
    }
    let text = match built_in {
        Some((_, text)) => (*text).to_owned(),
        None => read::text(path, config::MAX_BYTES).map_err(|e| refused(format!("{name}: {e}")))?,
    };
    let mut hash = Fnv::default();
    hash.add(text.as_bytes());
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut trace = |file: &str| {
        let text =
            read::text(&folder.join(file), csv::MAX_BYTES).map_err(|e| format!("`{file}` {e}"))?;
        hash.add(text.as_bytes());
        Ok(text)
    };
    let stem = path.file_stem().map_or(name.into(), |s| s.to_string_lossy());
    let stem = if built_in.is_some() { name.into() } else { stem };
    let scenario = config::parse(&text, &stem, name, &mut trace).map_err(refused_by)?;
    Ok(Loaded { scenario, hash: hash.text() })
}

/// Names of the built-in scenarios and what they show, a line each.
pub(super) fn list() -> String {
    let width = builtin::ALL.iter().map(|(n, _)| n.len()).max().unwrap_or(0);
    let about = |name: &str| builtin::scenario(name).map_or(String::new(), |s| s.about);
    let lines = builtin::ALL.map(|(name, _)| format!("{name:width$}  {}", about(name)));
    lines.join("\n")
}

/// FNV-1a, 64 bits: tells scenarios apart, and is no protection against anybody.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn add(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.0 = (self.0 ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn text(&self) -> String {
        format!("{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_fnv_1a() {
        let mut hash = Fnv::default();
        hash.add(b"foobar");
        assert_eq!(hash.text(), "85944171f73967e8");
    }

    #[test]
    fn every_built_in_scenario_is_listed() {
        assert_eq!(list().lines().count(), builtin::ALL.len());
    }
}
