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
    /// A Linux bzImage, or an ELF file with a PVH entry. Relative paths start at the folder of this file. Firmware takes
    /// its place.
    image: Option<PathBuf>,
    /// The first file system of a kernel's user space.
    initrd: Option<PathBuf>,
    /// The kernel's command line: at most 2048 bytes.
    cmdline: Option<String>,
    /// Code of UEFI firmware (`OVMF_CODE_4M.fd`), which boots from a disk: instead of an image.
    firmware: Option<PathBuf>,
    /// This guest's own copy of the firmware's variables (`OVMF_VARS_4M.fd`), which the guest writes.
    variables: Option<PathBuf>,
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
    /// What it boots.
    pub boot: Boot,
    /// What happens when it resets itself. The library leaves it to its caller.
    pub on_reset: OnReset,
}

/// What a guest boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Boot {
    /// A kernel, without firmware.
    Image(Image),
    /// Firmware, which looks for something to boot by itself.
    Firmware(Firmware),
}

/// A kernel and what it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// A Linux bzImage, or an ELF file with a PVH entry.
    pub path: PathBuf,
    /// The first file system of a kernel's user space.
    pub initrd: Option<PathBuf>,
    /// At most 2048 bytes without NUL.
    pub cmdline: String,
}

/// UEFI firmware.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Firmware {
    /// Its code, which is only read.
    pub code: PathBuf,
    /// This guest's own variables, which the guest writes.
    pub variables: PathBuf,
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
        let (name, on_reset) = (self.name.clone(), self.on_reset);
        Ok(Guest { name, boot: self.boot(base)?, on_reset })
    }

    fn boot(self, base: &Path) -> Result<Boot, Wrong> {
        match (self.image, self.firmware) {
            (Some(image), None) => {
                if self.variables.is_some() {
                    return Err(Wrong::new(
                        "guest.variables",
                        "belongs to guest.firmware: leave it out where guest.image is given",
                    ));
                }
                let path = base.join(named("guest.image", IMAGE, image)?);
                let initrd = self.initrd.map(|i| named("guest.initrd", INITRD, i)).transpose()?;
                let cmdline = self.cmdline.unwrap_or_default();
                if cmdline.len() > MAX_CMDLINE || cmdline.contains('\0') {
                    return Err(Wrong::new(
                        "guest.cmdline",
                        format!("must be at most {MAX_CMDLINE} bytes and hold no NUL"),
                    ));
                }
                let initrd = initrd.map(|i| base.join(i));
                Ok(Boot::Image(Image { path, initrd, cmdline }))
            }
            (None, Some(firmware)) => {
                for (key, given) in
                    [("initrd", self.initrd.is_some()), ("cmdline", self.cmdline.is_some())]
                {
                    if given {
                        return Err(Wrong::new(
                            format!("guest.{key}"),
                            "belongs to guest.image: firmware takes it from the disk that it boots",
                        ));
                    }
                }
                let Some(variables) = self.variables else {
                    return Err(Wrong::new("guest.variables", format!("is missing: {VARIABLES}")));
                };
                let code = base.join(named("guest.firmware", FIRMWARE, firmware)?);
                let variables = base.join(named("guest.variables", VARIABLES, variables)?);
                Ok(Boot::Firmware(Firmware { code, variables }))
            }
            (None, None) => Err(Wrong::new(
                "guest.image",
                format!("is missing: {IMAGE}, or guest.firmware and guest.variables"),
            )),
            (Some(_), Some(_)) => Err(Wrong::new(
                "guest.firmware",
                "a guest boots an image or firmware: leave guest.image or guest.firmware out",
            )),
        }
    }
}

/// What the keys want.
const IMAGE: &str = "give the path of a Linux kernel or of a PVH ELF image";
const INITRD: &str = "give the path of an initrd, or leave the key out";
const FIRMWARE: &str = "give the path of UEFI firmware's code, such as OVMF_CODE_4M.fd";
const VARIABLES: &str = "give the path of this guest's own copy of the firmware's variables, such as one of OVMF_VARS_4M.fd";

/// A path that is not empty.
fn named(key: &str, wanted: &str, path: PathBuf) -> Result<PathBuf, Wrong> {
    if path.as_os_str().is_empty() {
        return Err(Wrong::new(key, format!("is empty: {wanted}")));
    }
    Ok(path)
}
