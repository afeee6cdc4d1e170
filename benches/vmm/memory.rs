//! What a VMM takes beside its guest's memory, with a pacer and a vGPU of a host's and a guest that draws.

use super::process::Process;
use anyhow::{Context, ensure};
use beamline_benches::report::Gate;
use std::path::Path;
use std::time::Duration;

/// Most that it may take, MiB.
const LIMIT: f64 = 8.0;
/// What the kernel calls the guest's memory.
const GUEST: &str = "/memfd:guest-ram";
/// How long the guest draws before its VMM is looked at: what is ever touched has been by then.
const SETTLE: Duration = Duration::from_secs(3);

const HOST: &str = r#"
run_dir = "run"
[gpu]
backend = "model"
[[slice]]
name = "vr"
width = 256
height = 144
[slice.contract]
refresh_hz = "90"
class = "reserved"
budget_ms = 2.2
max_job_ms = 3.0
late_latch = { window_ms = 1.2, budget_ms = 0.6 }
"#;

pub(crate) fn measure(beamline: &Path, image: &Path) -> anyhow::Result<Gate> {
    let folder = tempfile::tempdir().context("a folder")?;
    let write = |name: &str, text: &str| {
        std::fs::write(folder.path().join(name), text).with_context(|| format!("writing {name}"))
    };
    write("host.toml", HOST)?;
    let image = image.canonicalize().context("the guest's image")?;
    let guest = format!(
        "[guest]\nname = \"vr\"\nimage = {:?}\ncmdline = \"scene=vr width=128 height=72 frames=0 depth=2\"\n\
         [memory]\nsize = \"512M\"\n\
         [[device]]\ntype = \"vfio-user\"\nsocket = \"run/vr-pacer.sock\"\n\
         [[device]]\ntype = \"vfio-user\"\nsocket = \"run/vr-gpu.sock\"\n",
        image.display().to_string()
    );
    write("vr.toml", &guest)?;
    let mut host = Process::start(beamline, &["host", "host.toml"], folder.path())?;
    host.wait_for("\"ready\"")?;
    let mut vmm = Process::start(beamline, &["run", "vr.toml"], folder.path())?;
    vmm.wait_for("READY")?;
    std::thread::sleep(SETTLE);
    let path = format!("/proc/{}/smaps", vmm.id());
    let Resident { guest, files, own } =
        Resident::of(&std::fs::read_to_string(&path).context(path)?);
    ensure!(guest > 0, "the VMM maps no guest memory that has been touched");
    let mib = |kib: u64| kib as f64 / 1024.0;
    println!(
        "a VMM with a pacer and a vGPU: {:.2} MiB beside {:.2} MiB of its guest's that are touched; of these {:.2} MiB \
         are files, which VMMs share, and {:.2} MiB its own (measured)",
        mib(files + own),
        mib(guest),
        mib(files),
        mib(own)
    );
    Ok(Gate::at_most("resident memory beside the guest's", LIMIT, mib(files + own)))
}

/// Resident memory, KiB.
#[derive(Debug, Default, PartialEq, Eq)]
struct Resident {
    /// The guest's.
    guest: u64,
    /// Program and libraries, as the disk has them.
    files: u64,
    /// All else.
    own: u64,
}

impl Resident {
    /// From a process's `smaps`.
    fn of(smaps: &str) -> Self {
        let mut sum = Self::default();
        let mut name = "";
        let mut rss = 0;
        for line in smaps.lines() {
            let mut words = line.split_whitespace();
            match (words.next(), words.next()) {
                (Some("Rss:"), Some(kib)) => {
                    rss = kib.parse().unwrap_or(0);
                    let to = if name == GUEST { &mut sum.guest } else { &mut sum.own };
                    *to += rss;
                }
                // What was written is a copy, and this process's own.
                (Some("Anonymous:"), Some(kib))
                    if name.starts_with('/') && !name.starts_with("/memfd:") =>
                {
                    let shared = rss - kib.parse::<u64>().unwrap_or(0).min(rss);
                    sum.own -= shared;
                    sum.files += shared;
                }
                (Some(range), Some(_)) if range.contains('-') && !range.ends_with(':') => {
                    // range, rights, offset, device, inode, name
                    name = words.nth(3).unwrap_or("");
                }
                _ => {}
            }
        }
        sum
    }
}
