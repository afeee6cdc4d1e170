//! `type = "virtio-balloon"`: a memory balloon, which has no keys.

use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Raw {}
