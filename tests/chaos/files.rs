//! What the processes are told: one host's configuration and one for each guest.

use std::path::{Path, PathBuf};

/// The slices, by name; each guest draws the scene of the same name.
pub(crate) const SLICES: [&str; 3] = ["vr", "game", "flood"];

/// Slow, small and generous: the machine may be busy, and no job may be killed for being late.
const HOST: &str = r#"
run_dir = "run"
[gpu]
backend = "wgpu"
policy = "beamline"
in_flight = 1
kill_grace_ms = 5000
[[slice]]
name = "vr"
width = 320
height = 90
[slice.contract]
refresh_hz = "30"
class = "reserved"
budget_ms = 6.0
max_job_ms = 6.0
jitter_ms = 2.0
guard = "deadline"
depth = 2
late_latch = { window_ms = 8.0, budget_ms = 1.5 }
[[slice]]
name = "game"
width = 160
height = 90
[slice.contract]
refresh_hz = "30"
class = "reserved"
budget_ms = 6.0
max_job_ms = 3.0
jitter_ms = 2.0
guard = "deadline"
depth = 2
[[slice]]
name = "flood"
width = 160
height = 90
[slice.contract]
refresh_hz = "30"
class = "background"
budget_ms = 1.0
max_job_ms = 3.0
guard = "deadline"
depth = 4
"#;

/// A folder with everything that a host and its guests read.
pub(crate) struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    /// Writes the files; guests boot `image`.
    pub(crate) fn write(image: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let files = Self { folder };
        std::fs::write(files.host(), HOST).unwrap();
        let image = image.to_str().expect("the guest image's path is UTF-8");
        for slice in SLICES {
            let text = format!(
                "[guest]\nname = {slice:?}\nimage = {image:?}\n\
                 cmdline = \"scene={slice} cost=4 width=160 height=90 frames=0 depth=2\"\n\
                 [memory]\nsize = \"32M\"\n\
                 [[device]]\ntype = \"vfio-user\"\nsocket = \"run/{slice}-pacer.sock\"\n\
                 [[device]]\ntype = \"vfio-user\"\nsocket = \"run/{slice}-gpu.sock\"\n"
            );
            std::fs::write(files.guest(slice), text).unwrap();
        }
        files
    }

    /// The folder, which is every process's working directory: whoever still is in it was left behind.
    pub(crate) fn folder(&self) -> PathBuf {
        // As /proc shows it.
        self.folder.path().canonicalize().unwrap()
    }

    pub(crate) fn host(&self) -> PathBuf {
        self.folder.path().join("host.toml")
    }

    pub(crate) fn guest(&self, slice: &str) -> PathBuf {
        self.folder.path().join(format!("{slice}.toml"))
    }

    /// Files in the folder of the sockets.
    pub(crate) fn sockets(&self) -> Vec<PathBuf> {
        std::fs::read_dir(self.folder.path().join("run"))
            .map(|entries| entries.map(|e| e.unwrap().path()).collect())
            .unwrap_or_default()
    }
}
