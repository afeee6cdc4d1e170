//! Where the bed and the programs are.

use std::path::PathBuf;
use std::process::Command;

/// What `make bed` has built, and what runs in it.
pub(crate) struct Bed {
    /// Starts QEMU.
    pub(crate) qemu: PathBuf,
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
    /// The command.
    pub(crate) beamline: PathBuf,
    /// Debian's tree, with its own libraries.
    root: PathBuf,
    /// Static programs for the guest.
    programs: PathBuf,
}

impl Bed {
    /// The bed; where it is not built, prints that `test` is skipped, and why.
    ///
    /// # Panics
    /// Where `BEAMLINE_BED` says where it is, and it is not.
    pub(crate) fn ready(test: &str) -> Option<Self> {
        match Self::look() {
            Ok(bed) => Some(bed),
            Err(why) if std::env::var_os("BEAMLINE_BED").is_none() => {
                println!("skip: {test}: {why}");
                None
            }
            Err(why) => panic!("{why}"),
        }
    }

    fn look() -> Result<Self, String> {
        let program = std::env::current_exe().map_err(|e| e.to_string())?;
        // A test program is at <target>/<profile>/deps/<name>-<hash>.
        let profile = program.ancestors().nth(2).ok_or("this program is not in a target folder")?;
        let target = profile.parent().ok_or("this program is not in a target folder")?;
        let bed =
            std::env::var_os("BEAMLINE_BED").map_or_else(|| target.join("bed"), PathBuf::from);
        // The last that is made.
        if !bed.join("initramfs.key").is_file() {
            return Err(format!("there is no testbed in {}; `make bed` builds it", bed.display()));
        }
        let programs = target.join("x86_64-unknown-linux-gnu/probe");
        // The last that was added to them.
        if !programs.join("examples/pace_loop").is_file() {
            return Err("there are no guest programs; `make bed` builds them".into());
        }
        Ok(Self {
            qemu: bed.join("qemu-system-x86_64"),
            kernel: bed.join("vmlinuz"),
            initramfs: bed.join("initramfs.gz"),
            beamline: crate::command::newest(target, profile)?,
            root: bed.join("root"),
            programs,
        })
    }

    /// The bytes of a program for the guest.
    pub(crate) fn program(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.programs.join(name)).unwrap()
    }

    /// A file of Debian's tree, such as `usr/bin/evtest`.
    pub(crate) fn debian(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// A program of Debian's tree, with the libraries there.
    pub(crate) fn debian_program(&self, path: &str) -> Command {
        let mut command = Command::new(self.debian("lib64/ld-linux-x86-64.so.2"));
        command.arg("--library-path").arg(self.debian("usr/lib/x86_64-linux-gnu"));
        command.arg(self.debian(path));
        command
    }
}
