//! `type = "virtio-balloon"`: a memory balloon, which has no keys.

use schemars::JsonSchema;
use serde::Deserialize;

/// A memory balloon.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "virtio-balloon")]
pub(in crate::config) struct Raw {}
