//! `beamline guest new`: a guest's file to start from.

use crate::failure::refused;
use crate::output;
use anyhow::Context;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// What kind of guest the file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Kind {
    /// A Debian cloud image, without a GPU
    Debian,
    /// A Linux guest on a slice at 60 Hz, with keyboard, mouse and gamepad
    Gaming,
    /// A Linux guest on a slice at 90 Hz, whose vCPUs go first
    Vr,
}

#[derive(clap::Args)]
pub(super) struct New {
    /// What kind of guest
    #[arg(long)]
    kind: Kind,
    /// Its name, also of its slice and of its API's folder [default: debian, game or vr]
    #[arg(long)]
    name: Option<String>,
    /// Its disk: a raw image or a block device
    #[arg(long, value_name = "FILE")]
    disk: Option<PathBuf>,
    /// Where to write it; without it, stdout
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write over a file that is there
    #[arg(long)]
    force: bool,
}

impl Kind {
    /// The name in the template, and the template.
    fn template(self) -> (&'static str, &'static str) {
        match self {
            Self::Debian => ("debian", include_str!("../../../../assets/guests/debian-cloud.toml")),
            Self::Gaming => ("game", include_str!("../../../../assets/guests/gaming.toml")),
            Self::Vr => ("vr", include_str!("../../../../assets/guests/vr.toml")),
        }
    }
}

pub(super) fn new(asked: &New) -> anyhow::Result<()> {
    let disk = match &asked.disk {
        None => None,
        Some(disk) => Some(disk.to_str().ok_or_else(|| {
            refused(format!("{}: a path in TOML is UTF-8: choose another", disk.display()))
        })?),
    };
    let text = text(asked.kind, asked.name.as_deref(), disk)?;
    let Some(out) = &asked.out else {
        output::line(text.trim_end());
        return Ok(());
    };
    write(out, &text, asked.force)?;
    output::line(&format!(
        "{} is written; next: put kernel and initrd beside it as its comments say, then `beamline run {} --check`",
        out.display(),
        out.display()
    ));
    Ok(())
}

fn write(out: &Path, text: &str, force: bool) -> anyhow::Result<()> {
    let mut how = OpenOptions::new();
    how.write(true);
    if force {
        how.create(true).truncate(true);
    } else {
        how.create_new(true);
    }
    let mut file = how.open(out).map_err(|e| match e.kind() {
        ErrorKind::AlreadyExists => {
            refused(format!("{}: is there already: choose another name, or --force", out.display()))
        }
        _ => refused(format!("{}: {e}", out.display())),
    })?;
    file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", out.display()))
}

/// The template with another name and another disk in it.
fn text(kind: Kind, name: Option<&str>, disk: Option<&str>) -> anyhow::Result<String> {
    let (old, template) = kind.template();
    let name = name.unwrap_or(old);
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if name.is_empty() || name.len() > 32 || !name.chars().all(plain) {
        return Err(refused(format!(
            "{name:?} is no name: use 1 to 32 letters, digits, `_` or `-`"
        )));
    }
    let own_disk = format!("{old}.img");
    let disk = disk.map_or_else(|| format!("{name}.img"), str::to_owned);
    let line = |line: &str| {
        // A value goes in as TOML has it, whatever it holds.
        match line.split_once(" = ") {
            Some(("name", _)) => return format!("name = {}", toml::Value::from(name)),
            Some(("path", _)) => return format!("path = {}", toml::Value::from(disk.as_str())),
            _ => {}
        }
        line.replace(&own_disk, &disk)
            .replace(&format!("run/{old}-"), &format!("run/{name}-"))
            .replace(&format!("{old}/api"), &format!("{name}/api"))
            .replace(&format!("{old}0"), &format!("{name}0"))
            .replace(&format!("{old}.toml"), &format!("{name}.toml"))
            .replace(&format!("\"{old}\""), &format!("\"{name}\""))
    };
    Ok(template.lines().map(|l| line(l) + "\n").collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use beamline_vmm::Config;
    use beamline_vmm::config::Device;
    use clap::ValueEnum;
    use serde_json::Value;

    /// Every key of `toml` that the schema does not have, by its path.
    fn unknown(toml: &toml::Value, schema: &Value, root: &Value, path: &str, to: &mut Vec<String>) {
        let schema = match schema.get("$ref").and_then(Value::as_str) {
            Some(reference) => root.pointer(reference.trim_start_matches('#')).unwrap(),
            None => schema,
        };
        // An optional section, or one of several types of device.
        for key in ["anyOf", "oneOf"] {
            if let Some(choices) = schema.get(key).and_then(Value::as_array) {
                let fits: Vec<Vec<String>> = choices
                    .iter()
                    .filter(|c| {
                        let tag = c.pointer("/properties/type/const").and_then(Value::as_str);
                        tag.is_none() || tag == toml.get("type").and_then(toml::Value::as_str)
                    })
                    .map(|choice| {
                        let mut wrong = Vec::new();
                        unknown(toml, choice, root, path, &mut wrong);
                        wrong
                    })
                    .collect();
                match fits.into_iter().min_by_key(Vec::len) {
                    Some(wrong) => to.extend(wrong),
                    None => to.push(format!("{path}.type")),
                }
                return;
            }
        }
        match toml {
            toml::Value::Table(table) => {
                for (key, value) in table {
                    let path = format!("{path}.{key}");
                    match schema.pointer(&format!("/properties/{key}")) {
                        Some(schema) => unknown(value, schema, root, &path, to),
                        None => to.push(path),
                    }
                }
            }
            toml::Value::Array(array) => {
                for (index, value) in array.iter().enumerate() {
                    let path = format!("{path}[{index}]");
                    unknown(value, schema.get("items").unwrap(), root, &path, to);
                }
            }
            _ => {}
        }
    }

    fn not_in_schema(text: &str) -> Vec<String> {
        let schema = serde_json::to_value(Config::schema()).unwrap();
        let mut wrong = Vec::new();
        unknown(&toml::from_str(text).unwrap(), &schema, &schema, "", &mut wrong);
        wrong
    }

    #[test]
    fn every_asset_is_what_the_parser_and_the_schema_take() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/guests");
        let mut seen = 0;
        for file in std::fs::read_dir(folder).unwrap() {
            let path = file.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            Config::parse(&text, &path).unwrap();
            assert_eq!(not_in_schema(&text), Vec::<String>::new(), "{}", path.display());
            seen += 1;
        }
        assert_eq!(seen, Kind::value_variants().len(), "each asset is a kind of its own");
    }

    #[test]
    fn the_schema_finds_keys_that_are_wrong() {
        let text = "[guest]\nname = \"a\"\nimage = \"b\"\nimag = \"b\"\n[memory]\nsize = \"2M\"\n[api]\nsockt = \"\"\n\
                    [[device]]\ntype = \"virtio-blk\"\npath = \"a\"\ntap = \"b\"\n[[device]]\ntype = \"usb\"\n";
        let wrong = not_in_schema(text);
        for key in [".guest.imag", ".api.sockt", ".device[0].tap", ".device[1].type"] {
            assert!(wrong.iter().any(|w| w == key), "{key}: {wrong:?}");
        }
        assert_eq!(wrong.len(), 4, "{wrong:?}");
    }

    #[test]
    fn names_and_disks_go_where_they_belong() {
        let tricky = "/tmp/a \"b\"\\c.img";
        for kind in Kind::value_variants() {
            let made = text(*kind, Some("two"), Some(tricky)).unwrap();
            let config = Config::parse(&made, Path::new("/etc/two.toml")).unwrap();
            assert_eq!(config.guest.name, "two");
            assert_eq!(config.api.unwrap().socket, Path::new("/etc/two/api.sock"));
            let disk = config.devices.iter().find_map(|d| match d {
                Device::Blk(disk) => Some(disk.source.path.clone()),
                _ => None,
            });
            assert_eq!(disk.as_deref(), Some(Path::new(tricky)));
            for device in &config.devices {
                if let Device::VfioUser(vfio) = device {
                    let name = vfio.socket.file_name().unwrap().to_str().unwrap();
                    assert!(name.starts_with("two-"), "{name}");
                }
            }
            assert_eq!(text(*kind, None, None).unwrap(), kind.template().1);
        }
        assert!(text(Kind::Vr, Some("a\"b"), None).is_err());
    }

    #[test]
    fn a_file_that_is_there_stays_unless_it_is_forced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.toml");
        write(&path, "one", false).unwrap();
        assert!(write(&path, "two", false).unwrap_err().to_string().contains("--force"));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one");
        write(&path, "2", true).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "2");
    }
}
