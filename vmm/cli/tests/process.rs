//! Guests that are processes of the host: they draw, leave stamps, and nothing else. Needs neither KVM nor Vulkan.

mod common;
#[path = "common/host.rs"]
mod host;
#[path = "common/running.rs"]
mod running;

use beamline_abi::Nanos;
use beamline_latency::frames::Frame;
use beamline_latency::{Analysis, Log, Options, Stage};
use common::{beamline, failure, output};
use host::HOST;
use running::Running;
use rustix::process::{Pid, Signal, kill_process};
use std::path::Path;
use std::process::Stdio;

/// A guest's file that draws so many frames, or without end.
fn guest(frames: u32) -> String {
    format!(
        "[guest]\nname = \"vr\"\nimage = \"none\"\ncmdline = \"scene=vr frames={frames}\"\n\
         [memory]\nsize = \"32M\"\n\
         [[device]]\ntype = \"vfio-user\"\nsocket = \"run/vr-pacer.sock\"\n\
         [[device]]\ntype = \"vfio-user\"\nsocket = \"run/vr-gpu.sock\"\n"
    )
}

/// A folder with the files of a host and of guests, by the number of their frames.
fn folder(guests: &[u32]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let host = format!("{HOST}[output]\nstamps = \"stamps.bin\"\n");
    std::fs::write(folder.path().join("host.toml"), host).unwrap();
    for frames in guests {
        std::fs::write(folder.path().join(format!("{frames}.toml")), guest(*frames)).unwrap();
    }
    folder
}

impl Running {
    fn start(arguments: &[&str], folder: &Path) -> Self {
        Self::of(beamline(arguments, folder).stderr(Stdio::piped()))
    }

    /// Reads until it says `word`, and gives that line.
    fn hear(&mut self, word: &str) -> String {
        let line = self.lines.by_ref().map(Result::unwrap).find(|line| line.contains(word));
        line.unwrap_or_else(|| panic!("it ended before it said `{word}`"))
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for its end: its exit code, and the rest of what it said on stdout and stderr.
    fn end(mut self) -> (Option<i32>, String, String) {
        let said: Vec<String> = self.lines.by_ref().map(Result::unwrap).collect();
        let errors = std::io::read_to_string(self.child.stderr.take().unwrap()).unwrap();
        (self.child.wait().unwrap().code(), said.join("\n"), errors)
    }
}

fn host(folder: &Path) -> Running {
    let mut host = Running::start(&["host", "host.toml"], folder);
    host.hear(r#"{"event":"ready""#);
    host
}

/// Frames that the only slice of a host had shown when it last said so.
fn shown(line: &str) -> u64 {
    let frames = line.split_once(r#""frames":"#).map_or("", |(_, rest)| rest);
    frames.split(',').next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

#[test]
fn a_process_draws_the_scene_and_every_stage_leaves_stamps() {
    const FRAMES: u64 = 90;
    let folder = folder(&[0]);
    let mut host = host(folder.path());
    let guest = Running::start(&["run-process", "0.toml"], folder.path());
    let enough = host.lines.by_ref().map(Result::unwrap).any(|line| shown(&line) >= FRAMES);
    assert!(enough, "the host ended");
    // First the host, while its guest is there: then the log still knows the guest's clock.
    host.signal(Signal::TERM);
    assert_eq!(host.end().0, Some(0));
    let (_, text, _) = guest.end();
    for word in ["vr: READY scene=vr ", "vr: DONE submitted=", "dropped_markers=0", "has no exits"]
    {
        assert!(text.contains(word), "no `{word}` in {text}");
    }

    let log = Log::read(&folder.path().join("stamps.bin")).unwrap();
    assert_eq!(log.meta.slices[0].guest_tsc.map(|tsc| tsc.offset), Some(0));
    let count = |stage| log.stamps.iter().filter(|s| s.stage() == Some(stage)).count() as u64;
    for stage in Stage::OF_A_JOB {
        // Two jobs a frame.
        assert!(count(stage) >= 2 * FRAMES, "{stage:?}: {}", count(stage));
    }
    let analysis = Analysis::new(&log, Options { warm_up: Nanos::ZERO, window: None });
    let run = &analysis.joined.slices[0];
    let kept =
        |f: &&Frame| f.presented.zip(f.deadline()).is_some_and(|(shown, due)| shown.grid <= due);
    assert!(run.frames.iter().filter(kept).count() > 0, "no frame was shown in time");
    let seen = run.vblanks.values().filter(|v| v.posted.is_some() && v.handled.is_some());
    assert!(seen.count() > 0, "no vblank was posted and seen by the guest");
}

#[test]
fn what_a_process_cannot_be_is_refused() {
    let folder = folder(&[]);
    let disk = guest(0) + "[[device]]\ntype = \"virtio-rng\"\n";
    std::fs::write(folder.path().join("rng.toml"), disk).unwrap();
    for (file, word) in [("missing.toml", "missing.toml"), ("rng.toml", "virtio-rng")] {
        let (code, text) = failure(&["run-process", file], folder.path());
        assert!(code == Some(2) && text.contains(word), "{file}: {code:?} {text}");
    }
}

#[test]
fn a_signal_ends_it_in_order_and_a_kill_leaves_the_slice_for_the_next() {
    let folder = folder(&[0, 30]);
    let host = host(folder.path());
    for signal in [Signal::INT, Signal::TERM, Signal::KILL] {
        let mut guest = Running::start(&["run-process", "0.toml"], folder.path());
        guest.hear("READY");
        guest.signal(signal);
        let (code, said, errors) = guest.end();
        if signal == Signal::KILL {
            assert_eq!(code, None);
        } else {
            assert_eq!(code, Some(0), "{errors}");
            assert!(said.contains("DONE submitted="), "{said}");
        }
    }
    let out = output(&["run-process", "30.toml"], folder.path());
    assert!(String::from_utf8_lossy(&out.stdout).contains("completed=30"), "{out:?}");
    host.signal(Signal::TERM);
    assert_eq!(host.end().0, Some(0));
}

#[test]
fn a_guest_whose_host_dies_ends_and_says_why() {
    let folder = folder(&[0]);
    let host = host(folder.path());
    let mut guest = Running::start(&["run-process", "0.toml"], folder.path());
    guest.hear("READY");
    host.signal(Signal::KILL);
    let (code, _, errors) = guest.end();
    assert_eq!(code, Some(1), "{errors}");
    assert!(errors.contains("0.toml") && errors.contains("server of a function"), "{errors}");
}

#[test]
fn it_is_confined_unless_it_is_asked_not_to_be() {
    let folder = folder(&[0]);
    let _host = host(folder.path());
    for (arguments, confined) in [
        (&["run-process", "0.toml"][..], true),
        (&["run-process", "0.toml", "--no-sandbox"], false),
    ] {
        let mut guest = Running::start(arguments, folder.path());
        guest.hear("READY");
        let status = format!("/proc/{}/status", guest.child.id());
        let status = std::fs::read_to_string(status).unwrap();
        assert_eq!(status.contains("Seccomp:\t2"), confined, "{status}");
    }
}

#[test]
fn the_demos_first_line_says_that_guests_are_processes() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = beamline(&["demo", "--guests", "process", "--out", "out"], folder.path());
    let run = folder.path().join("run");
    std::fs::create_dir(&run).unwrap();
    let mut demo = Running::of(command.env("XDG_RUNTIME_DIR", &run).stderr(Stdio::piped()));
    let first = demo.lines.next().unwrap().unwrap();
    for word in ["processes of the host over vfio-user", "no figure is about a virtual machine"] {
        assert!(first.contains(word), "{first}");
    }
    demo.signal(Signal::TERM);
    let (code, _, errors) = demo.end();
    // Without Vulkan it is refused, with it the signal ends it.
    let why = [(Some(1), "stopped by a signal"), (Some(2), "Vulkan")];
    assert!(why.iter().any(|(c, words)| code == *c && errors.contains(words)), "{code:?} {errors}");
    assert_eq!(std::fs::read_dir(run).unwrap().count(), 0, "sockets are left");
}
