//! One run: a host, its guests, a while of rendering, and the stamps that it leaves.

use super::children::Family;
use super::config::{Demo, Guest};
use super::files::{self, Budget, RunFiles};
use super::guests::Guests;
use super::interrupts::GuestInterrupts;
use super::others::{self, Others};
use super::place::Placement;
use crate::events::HostEvent;
use crate::output::Progress;
use crate::signals::Stop;
use anyhow::Context;
use beamline_abi::Nanos;
use beamline_latency::frames::Window;
use beamline_latency::noise::{Noise, Watch};
use beamline_latency::{Clock, Log, MonotonicClock};
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A guest's place in a run.
#[derive(Clone, Debug)]
pub(crate) struct Booking<'a> {
    pub(crate) guest: &'a Guest,
    /// The cost of each job of its frames.
    pub(crate) costs: Vec<u32>,
    pub(crate) budget: Budget,
}

/// What a run is to be.
#[derive(Clone, Debug)]
pub(crate) struct Plan<'a> {
    /// The run's name, and its folder's.
    pub(crate) name: String,
    pub(crate) policy: &'a str,
    pub(crate) bookings: Vec<Booking<'a>>,
    /// Not judged.
    pub(crate) warm_up: Duration,
    /// Judged.
    pub(crate) length: Duration,
}

/// What a run has left.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) log: Log,
    /// The part that is judged.
    pub(crate) window: Window,
    pub(crate) noise: Noise,
    /// What other programs took meanwhile.
    pub(crate) others: Others,
    /// What each guest's interrupts have cost.
    pub(crate) interrupts: Vec<GuestInterrupts>,
    pub(crate) files: RunFiles,
}

/// What all runs of one demo share.
pub(crate) struct Session<'a> {
    pub(crate) demo: &'a Demo,
    /// What its guests are.
    pub(crate) guests: Guests,
    pub(crate) image: PathBuf,
    pub(crate) output: PathBuf,
    pub(crate) place: Placement,
    pub(crate) stop: &'a Stop,
    sockets: SocketFolder,
}

impl<'a> Session<'a> {
    /// Makes the folders.
    pub(crate) fn new(
        demo: &'a Demo,
        guests: Guests,
        image: PathBuf,
        output: &Path,
        place: Placement,
        stop: &'a Stop,
    ) -> anyhow::Result<Self> {
        fs::create_dir_all(output)
            .with_context(|| format!("cannot make the folder {}", output.display()))?;
        // Children start in this folder too, yet a configuration's relative paths start at its own.
        let output = fs::canonicalize(output).context("cannot resolve the output folder")?;
        Ok(Self { demo, guests, image, output, place, stop, sockets: SocketFolder::new()? })
    }

    /// Does one run.
    pub(crate) fn run(&self, plan: &Plan<'_>) -> anyhow::Result<Outcome> {
        self.try_run(plan).with_context(|| format!("run {}", plan.name))
    }

    fn try_run(&self, plan: &Plan<'_>) -> anyhow::Result<Outcome> {
        let files = self.write_files(plan)?;
        let others = others::Watch::begin()?;
        let mut progress = Progress::new();
        progress.show(&format!("{}: starting", plan.name));
        let mut family = Family::start(&files.host_toml(), &files.log("host"), self.stop)?;
        for Booking { guest, .. } in &plan.bookings {
            let (toml, log) = (files.guest_toml(guest), files.log(&guest.name));
            family.add_guest(self.guests, &guest.name, &toml, &log)?;
        }
        family.wait_rendering(self.stop)?;

        let began = Instant::now();
        let mut stats = Vec::new();
        let mut show = |event: &HostEvent| {
            if let HostEvent::Stats { slices } = event {
                stats.clone_from(slices);
                progress.show(&live(&plan.name, began.elapsed(), event));
            }
        };
        family.run_until(began + plan.warm_up, self.stop, &mut show)?;
        let from = MonotonicClock.now();
        let watch = Watch::begin()?;
        family.run_until(began + plan.warm_up + plan.length, self.stop, &mut show)?;
        let to = MonotonicClock.now();
        let noise = watch.end(self.demo.noise.steal_per_30s, None)?;
        progress.show(&format!("{}: draining", plan.name));
        let interrupts = GuestInterrupts::join(family.finish()?, &stats);
        let others = others.end()?;

        let stamps = files.stamps();
        let log = Log::read(&stamps).with_context(|| stamps.display().to_string())?;
        let window = Window { from_ns: from.0, to_ns: to.0 };
        Ok(Outcome { log, window, noise, others, interrupts, files })
    }

    fn write_files(&self, plan: &Plan<'_>) -> anyhow::Result<RunFiles> {
        let folder = self.output.join("runs").join(&plan.name);
        let make = |path: &Path| {
            fs::create_dir_all(path)
                .with_context(|| format!("cannot make the folder {}", path.display()))
        };
        make(&folder.join("images"))?;
        let files = RunFiles { folder, sockets: self.sockets.0.join(&plan.name) };
        make(&files.sockets)?;
        // What an earlier demo left must not pass for this one's.
        for old in plan.bookings.iter().map(|b| files.image(b.guest)).chain([files.stamps()]) {
            let _ = fs::remove_file(old);
        }
        let slices: Vec<_> = plan.bookings.iter().map(|b| (b.guest, b.budget)).collect();
        let text = files::host_toml(&files, self.demo, plan.policy, &self.place, &slices)?;
        write(&files.host_toml(), &text)?;
        for Booking { guest, costs, .. } in &plan.bookings {
            let text = files::guest_toml(&files, &self.image, &self.place, guest, costs)?;
            write(&files.guest_toml(guest), &text)?;
        }
        Ok(files)
    }
}

/// Writes a file whole.
pub(crate) fn write(path: &Path, content: impl AsRef<[u8]>) -> anyhow::Result<()> {
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}

/// How the slices are doing, in one line.
fn live(run: &str, elapsed: Duration, event: &HostEvent) -> String {
    let mut text = format!("{run}: {:>3} s", elapsed.as_secs());
    if let HostEvent::Stats { slices } = event {
        for slice in slices {
            text += &format!("  {} {} frames, {} late", slice.name, slice.frames, slice.late);
        }
    }
    text
}

/// A folder for sockets with a short path, for this user only, removed at the end.
struct SocketFolder(PathBuf);

impl SocketFolder {
    fn new() -> anyhow::Result<Self> {
        let base = std::env::var_os("XDG_RUNTIME_DIR")
            .map(PathBuf::from)
            .filter(|p| p.is_dir())
            .unwrap_or_else(std::env::temp_dir);
        let id = std::process::id();
        // The name is free but for what a killed demo of the same process ID left, or a stranger made.
        for n in 0..100 {
            let path = base.join(format!("beamline-{id}-{n}"));
            match fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self(path)),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => {
                    return Err(e).with_context(|| format!("cannot make {}", path.display()));
                }
            }
        }
        anyhow::bail!("{} is full of folders beamline-{id}-*: remove them", base.display())
    }
}

impl Drop for SocketFolder {
    fn drop(&mut self) {
        // Best effort: nothing is left to tell, and everything in it was ours.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A time as the harness takes it.
pub(crate) fn nanos(seconds: f64) -> Nanos {
    Nanos((seconds * 1e9) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::SliceStats;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_socket_folder_is_ours_alone_and_goes() {
        let folder = SocketFolder::new().unwrap();
        let path = folder.0.clone();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        let other = SocketFolder::new().unwrap();
        assert_ne!(path, other.0);
        drop(folder);
        assert!(!path.exists());
    }

    #[test]
    fn the_live_line_names_every_slice() {
        let slices = vec![
            SliceStats { name: "vr".into(), frames: 900, late: 3, doorbells: 0 },
            SliceStats { name: "game".into(), frames: 600, late: 0, doorbells: 0 },
        ];
        let text = live("fifo", Duration::from_millis(10_400), &HostEvent::Stats { slices });
        assert_eq!(text, "fifo:  10 s  vr 900 frames, 3 late  game 600 frames, 0 late");
    }
}
