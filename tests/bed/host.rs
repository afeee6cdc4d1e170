//! `beamline host` with one slice.

use crate::bed::Bed;
use crate::picture::Picture;
use crate::process::Process;
use crate::sockets::get;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The slice's name.
pub(crate) const SLICE: &str = "one";

/// A host that serves one slice, in a folder of its own.
pub(crate) struct Host {
    process: Process,
    folder: PathBuf,
}

impl Host {
    /// A host whose slice offers contexts.
    pub(crate) fn start(bed: &Bed, folder: &Path, hz: u32) -> Self {
        Self::start_as(bed, folder, hz, "render")
    }

    /// Starts a host and waits until a VMM can attach. The GPU is a model: nothing here draws with it.
    pub(crate) fn start_as(bed: &Bed, folder: &Path, hz: u32, profile: &str) -> Self {
        Self::start_beside(bed, folder, hz, profile, "")
    }

    /// As [`Host::start_as`], with more slices: sections of the host's file.
    pub(crate) fn start_beside(
        bed: &Bed,
        folder: &Path,
        hz: u32,
        profile: &str,
        others: &str,
    ) -> Self {
        let config = format!(
            "run_dir = \"run\"\n[gpu]\nbackend = \"model\"\n\
             [[slice]]\nname = \"{SLICE}\"\nwidth = 640\nheight = 480\nprofile = \"{profile}\"\n\
             [slice.contract]\nrefresh_hz = \"{hz}\"\nclass = \"elastic\"\n\
             budget_ms = 2.0\nmax_job_ms = 2.0\n{others}"
        );
        let file = folder.join("host.toml");
        std::fs::write(&file, config).unwrap();
        let mut command = Command::new(&bed.beamline);
        command
            // It dies with this process, also where that is killed.
            .arg(format!("--follow={}", std::process::id()))
            .arg("host")
            .arg(file)
            .env("RUST_LOG", "info")
            .stderr(File::create(folder.join("host.log")).unwrap());
        let mut process = Process::start("host", &mut command, false);
        process.until(r#"{"event":"ready""#);
        Self { process, folder: folder.to_owned() }
    }

    /// The two functions, as devices of QEMU at the slots 4 and 5.
    pub(crate) fn devices(&self) -> Vec<String> {
        [("pacer", 4), ("gpu", 5)]
            .map(|(function, slot)| {
                let socket = self.socket(SLICE, function);
                serde_json::json!({
                    "driver": "vfio-user-pci",
                    "socket": { "type": "unix", "path": socket },
                    "bus": "pcie.0",
                    "addr": slot.to_string(),
                })
                .to_string()
            })
            .into()
    }

    /// What the host answers to a request on its control socket.
    ///
    /// # Panics
    /// Where that is no success.
    pub(crate) fn ask(&self, path: &str) -> Vec<u8> {
        let (status, body) = get(&self.folder.join("run/control.sock"), path);
        assert_eq!(status, 200, "{path}: {}", String::from_utf8_lossy(&body));
        body
    }

    /// What the slice shows.
    pub(crate) fn shown(&self) -> Picture {
        Picture::parse(&self.ask(&format!("/slices/{SLICE}/scanout.png")))
    }

    /// Where a function of a slice is served.
    pub(crate) fn socket(&self, slice: &str, function: &str) -> PathBuf {
        self.folder.join(format!("run/{slice}-{function}.sock"))
    }

    /// The process. It is this one's child, so its number is its own.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(self.process.id())
    }

    /// Ends the host as if it had crashed.
    pub(crate) fn kill(self) {
        // Dropping a process kills it and waits for it.
        drop(self.process);
    }

    /// Asks the host to end.
    ///
    /// # Panics
    /// Where it does not drain, or has refused something that a client asked of it.
    pub(crate) fn stop(mut self) {
        kill_process(Pid::from_child(self.process.id()), Signal::TERM).unwrap();
        let (status, said) = self.process.finish();
        let log = std::fs::read_to_string(self.folder.join("host.log")).unwrap();
        assert!(status.success(), "the host ended with {status}:\n{log}");
        assert_eq!(said.last().map(String::as_str), Some(r#"{"event":"drained"}"#));
        let refused: Vec<&str> = log.lines().filter(|line| line.contains("refused")).collect();
        assert!(refused.is_empty(), "the host refused what QEMU asked:\n{}", refused.join("\n"));
    }
}
