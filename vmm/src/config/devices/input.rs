//! `type = "virtio-input"`: a keyboard, mouse, tablet or gamepad.

use super::{Entry, Wrong};
use schemars::JsonSchema;
use serde::Deserialize;
use std::path::PathBuf;

/// An input device: one of its two keys.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "virtio-input")]
pub(in crate::config) struct Raw {
    /// "keyboard", "mouse", "tablet" or "gamepad": its events come over the API.
    kind: Option<String>,
    /// The host's event device, such as /dev/input/event0.
    evdev: Option<PathBuf>,
}

/// A device that this process speaks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputKind {
    /// A keyboard.
    Keyboard,
    /// A mouse.
    Mouse,
    /// A pointer with absolute positions.
    Tablet,
    /// A gamepad.
    Gamepad,
}

/// An input device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InputDevice {
    /// Its events come from this process.
    Kind(InputKind),
    /// It is the host's, at this path.
    Evdev(PathBuf),
}

impl Raw {
    pub(super) fn check(self, entry: &Entry<'_>) -> Result<InputDevice, Wrong> {
        match (self.kind.as_deref(), self.evdev) {
            (Some("keyboard"), None) => Ok(InputDevice::Kind(InputKind::Keyboard)),
            (Some("mouse"), None) => Ok(InputDevice::Kind(InputKind::Mouse)),
            (Some("tablet"), None) => Ok(InputDevice::Kind(InputKind::Tablet)),
            (Some("gamepad"), None) => Ok(InputDevice::Kind(InputKind::Gamepad)),
            (Some(other), None) => Err(entry.wrong(
                "kind",
                format!("{other:?} is not one: use \"keyboard\", \"mouse\", \"tablet\" or \"gamepad\""),
            )),
            (None, Some(path)) => {
                let what = "an event device such as /dev/input/event0";
                Ok(InputDevice::Evdev(entry.path("evdev", path, what)?))
            }
            (None, None) => Err(entry.wrong(
                "kind",
                "is missing: use \"keyboard\", \"mouse\", \"tablet\" or \"gamepad\", or evdev with the path \
                 of the host's device",
            )),
            (Some(_), Some(_)) => Err(entry.wrong(
                "kind",
                "is there together with evdev, which says itself what it is: use one of them",
            )),
        }
    }
}
