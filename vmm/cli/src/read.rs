//! Files that people write, read up to a limit: what is no file, such as a pipe, says no size beforehand and could go
//! on for ever.

use crate::failure::{refused, refused_by};
use beamline_mdev::config::HostConfig;
use beamline_vmm::Config;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Most bytes of a configuration.
pub(crate) const CONFIG: u64 = 1 << 20;

/// The text of a file of at most `most` bytes. An error says what is wrong, and not with which file.
pub(crate) fn text(path: &Path, most: u64) -> Result<String, String> {
    let cannot = |e: std::io::Error| format!("cannot be read: {e}");
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(most + 1).read_to_end(&mut bytes))
        .map_err(cannot)?;
    if bytes.len() as u64 > most {
        return Err(format!("is too long; at most {most} bytes are read"));
    }
    String::from_utf8(bytes).map_err(|_| "cannot be read: it is not UTF-8".into())
}

/// The text of a configuration.
pub(crate) fn config(path: &Path) -> anyhow::Result<String> {
    text(path, CONFIG).map_err(|what| refused(format!("{}: {what}", path.display())))
}

/// A guest's file, checked.
pub(crate) fn guest(path: &Path) -> anyhow::Result<Config> {
    Config::parse(&config(path)?, path).map_err(refused_by)
}

/// A host's file, checked.
pub(crate) fn host(path: &Path) -> anyhow::Result<HostConfig> {
    HostConfig::parse(&config(path)?, path).map_err(refused_by)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsRawFd;

    #[test]
    fn what_cannot_be_read_is_named() {
        for error in [guest(Path::new("/no/vr.toml")).err(), host(Path::new("/no/vr.toml")).err()] {
            let text = format!("{:#}", error.expect("it is not there"));
            assert!(text.starts_with("/no/vr.toml: cannot be read: "), "{text}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("latin1.toml");
        std::fs::write(&path, b"name = \"\xe9\"").unwrap();
        assert_eq!(text(&path, CONFIG).unwrap_err(), "cannot be read: it is not UTF-8");
    }

    #[test]
    fn what_is_far_too_long_is_not_read_to_its_end() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let path = format!("/proc/self/fd/{}", reader.as_raw_fd());
        let whole = std::thread::spawn(move || {
            writer.write_all(&vec![b'#'; CONFIG as usize + (1 << 20)]).is_ok()
        });
        let error = text(path.as_ref(), CONFIG).unwrap_err();
        drop(reader);
        assert!(!whole.join().unwrap(), "nobody reads all of it");
        assert!(error.contains("at most 1048576 bytes"), "{error}");
    }
}
