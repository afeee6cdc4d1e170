//! Section `[guest]`: who it is and what it boots.

use super::Wrong;
use schemars::JsonSchema;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Longest name: it is part of thread names, sockets and logs.
const MAX_NAME: usize = 32;
/// Longest command line: bytes.
pub(crate) const MAX_CMDLINE: usize = 2048;

/// Who the guest is and what it boots.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "guest")]
pub(super) struct Raw {
    /// 1 to 32 letters, digits, `_` or `-`.
    name: String,
    /// A Linux bzImage, or an ELF file with a PVH entry. Relative paths start at the folder of this file.
    image: PathBuf,
    /// The first file system of a kernel's user space.
    initrd: Option<PathBuf>,
    /// The kernel's command line: at most 2048 bytes.
    #[serde(default)]
    cmdline: String,
    /// What happens when the guest resets itself.
    #[serde(default)]
    on_reset: OnReset,
}

/// What happens when the guest resets itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnReset {
    /// It has ended.
    #[default]
    End,
    /// It is built anew and boots again.
    Reboot,
}

/// Who the guest is and what it boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    /// 1 to 32 of `a-z A-Z 0-9 _ -`.
    pub name: String,
    /// A Linux bzImage, or an ELF file with a PVH entry.
    pub image: PathBuf,
    /// The first file system of a kernel's user space.
    pub initrd: Option<PathBuf>,
    /// At most 2048 bytes without NUL.
    pub cmdline: String,
    /// What happens when it resets itself. The library leaves it to its caller.
    pub on_reset: OnReset,
}

impl Raw {
    pub(super) fn check(self, base: &Path) -> Result<Guest, Wrong> {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if self.name.is_empty() || self.name.len() > MAX_NAME || !self.name.chars().all(plain) {
            return Err(Wrong::new(
                "guest.name",
                format!(
                    "{:?} is not a name: use 1 to {MAX_NAME} letters, digits, `_` or `-`",
                    self.name
                ),
            ));
        }
        if self.image.as_os_str().is_empty() {
            return Err(Wrong::new(
                "guest.image",
                "is empty: give the path of a Linux kernel or of a PVH ELF image",
            ));
        }
        if self.initrd.as_ref().is_some_and(|i| i.as_os_str().is_empty()) {
            return Err(Wrong::new(
                "guest.initrd",
                "is empty: give the path of an initrd, or leave the key out",
            ));
        }
        if self.cmdline.len() > MAX_CMDLINE || self.cmdline.contains('\0') {
            return Err(Wrong::new(
                "guest.cmdline",
                format!("must be at most {MAX_CMDLINE} bytes and hold no NUL"),
            ));
        }
        Ok(Guest {
            name: self.name,
            image: base.join(self.image),
            initrd: self.initrd.map(|i| base.join(i)),
            cmdline: self.cmdline,
            on_reset: self.on_reset,
        })
    }
}
