//! The scenarios that are built in: `assets/scenarios`.

use super::config;
use super::scenario::Scenario;

macro_rules! built_in {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../../../../assets/scenarios/", $name, ".toml")))),*]
    };
}

/// Names and texts, in the order in which they are best read.
pub const ALL: [(&str, &str); 9] = built_in![
    "two-tenants",
    "noisy-neighbour",
    "vr-late-latch",
    "mixed-rates",
    "encode-beside-game",
    "hog",
    "overload",
    "admission-edge",
    "density",
];

/// The scenario of this name; `None` where none is built in.
///
/// # Panics
/// Never: a test reads each of them.
pub fn scenario(name: &str) -> Option<Scenario> {
    let (name, text) = ALL.iter().find(|(n, _)| *n == name)?;
    let mut none = |_: &str| Err("a built-in scenario has no trace".into());
    Some(
        config::parse(text, name, name, &mut none)
            .expect("every built-in scenario is read by a test"),
    )
}
