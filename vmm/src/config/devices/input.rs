//! `type = "virtio-input"`: a keyboard, mouse, tablet or gamepad.

use super::{Entry, Wrong};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
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

impl InputKind {
    /// All of them.
    const ALL: [Self; 4] = [Self::Keyboard, Self::Mouse, Self::Tablet, Self::Gamepad];

    /// Its name in files and APIs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Keyboard => "keyboard",
            Self::Mouse => "mouse",
            Self::Tablet => "tablet",
            Self::Gamepad => "gamepad",
        }
    }
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
            (Some(name), None) => {
                let kind = InputKind::ALL.into_iter().find(|kind| kind.name() == name);
                kind.map(InputDevice::Kind).ok_or_else(|| {
                    let what = format!(
                        "{name:?} is not one: use \"keyboard\", \"mouse\", \"tablet\" or \"gamepad\""
                    );
                    entry.wrong("kind", what)
                })
            }
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
