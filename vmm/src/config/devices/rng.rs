//! `type = "virtio-rng"`: an entropy source, which has no keys.

use schemars::JsonSchema;
use serde::Deserialize;

/// An entropy source.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "virtio-rng")]
pub(in crate::config) struct Raw {}
