//! `type = "virtio-blk"`: a disk.

use super::{Device, Entry, Wrong};
use crate::devices::virtio::blk::{Format, MAX_SERIAL, Source};
use schemars::JsonSchema;
use serde::Deserialize;
use std::path::PathBuf;

/// A disk.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "virtio-blk")]
pub(in crate::config) struct Raw {
    /// A disk image or block device.
    path: PathBuf,
    /// The guest may not write.
    #[serde(default)]
    readonly: bool,
    /// "raw" or "qcow2"; without it raw, unless the file looks like qcow2.
    format: Option<String>,
    /// At most 20 printable characters.
    serial: Option<String>,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlkDevice {
    /// The image or block device.
    pub source: Source,
    /// At most 20 printable ASCII characters.
    pub serial: String,
}

impl Raw {
    pub(super) fn check(self, entry: &Entry<'_>) -> Result<BlkDevice, Wrong> {
        let path = entry.path("path", self.path, "a disk image or block device")?;
        let format = match self.format.as_deref() {
            None => None,
            Some("raw") => Some(Format::Raw),
            Some("qcow2") => Some(Format::Qcow2),
            Some(other) => {
                return Err(entry.wrong(
                    "format",
                    format!("{other:?} is not a format: use \"raw\" or \"qcow2\""),
                ));
            }
        };
        let serial = self.serial.unwrap_or_default();
        let plain = serial.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
        if serial.len() > MAX_SERIAL || !plain {
            return Err(entry.wrong(
                "serial",
                format!(
                    "{serial:?} is not a serial: use at most {MAX_SERIAL} printable characters"
                ),
            ));
        }
        Ok(BlkDevice { source: Source { path, readonly: self.readonly, format }, serial })
    }
}

impl BlkDevice {
    /// Whether both are the same disk and one of them writes.
    pub(super) fn same_disk(a: &Device, b: &Device) -> bool {
        let (Device::Blk(a), Device::Blk(b)) = (a, b) else { return false };
        let (a, b) = (&a.source, &b.source);
        a.path == b.path && !(a.readonly && b.readonly)
    }
}
