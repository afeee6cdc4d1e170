//! The command as a script sees it: exit codes, messages, and nothing left behind.

mod common;
#[path = "common/host.rs"]
mod host;
#[path = "common/kvm.rs"]
mod kvm;
#[path = "common/running.rs"]
mod running;

use common::{beamline, failure, output};
use host::HOST;
use kvm::kvm_or_skip;
use running::Running;
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

fn folder_with(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

impl Running {
    /// A host that has said that it is ready.
    fn host(folder: &Path) -> Self {
        Self::host_with(&["host", "host.toml"], folder)
    }

    fn host_with(arguments: &[&str], folder: &Path) -> Self {
        let mut host = Self::of(&mut beamline(arguments, folder));
        let ready = host.lines.next().unwrap().unwrap();
        assert!(ready.starts_with(r#"{"event":"ready","label":"modelled""#), "{ready}");
        host
    }

    /// Sends SIGTERM and answers the exit code and the last line.
    fn end(mut self) -> (Option<i32>, String) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        let last = self.lines.by_ref().map(Result::unwrap).last().unwrap();
        (self.child.wait().unwrap().code(), last)
    }
}

fn sockets(folder: &Path) -> Vec<PathBuf> {
    let run = folder.join("run");
    let Ok(entries) = std::fs::read_dir(run) else { return Vec::new() };
    entries
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "sock"))
        .collect()
}

#[test]
fn help_teaches_with_examples_and_exit_codes() {
    let out = output(&["--help"], Path::new("/"));
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(out.status.success());
    for word in ["Examples:", "Exit codes:", "beamline demo", "doctor"] {
        assert!(text.contains(word), "no {word} in {text}");
    }
}

#[test]
fn bad_input_ends_with_2_and_says_where() {
    let folder = folder_with(&[
        ("demo.toml", "[runs]\nfoo = 1\n"),
        ("unknown.toml", &HOST.replace("width", "widht")),
        ("infeasible.toml", &HOST.replace("budget_ms = 2.2", "budget_ms = 10.5")),
        ("guest.toml", "[guest]\nname = \"vr\"\nimage = \"nowhere\"\n[memory]\nsize = \"32M\"\n"),
        (
            "efi.toml",
            "[guest]\nname = \"vr\"\nfirmware = \"code\"\nvariables = \"none\"\n[memory]\nsize = \"32M\"\n",
        ),
        ("code", &" ".repeat(4096)),
        ("host.toml", HOST),
    ]);
    for (arguments, words) in [
        (&["no-such-command"][..], &["no-such-command"][..]),
        (&["demo", "demo.toml"], &["demo.toml", "foo"]),
        (&["demo", "missing.toml"], &["missing.toml", "cannot be read"]),
        (&["demo", "--guests", "kvm", "--image", "nowhere"], &["nowhere", "make guest"]),
        (&["demo", "--guests", "process", "--image", "nowhere"], &["--image", "--guests kvm"]),
        (&["host", "missing.toml"], &["missing.toml"]),
        (&["host", "unknown.toml"], &["unknown.toml", "widht"]),
        (&["host", "infeasible.toml"], &["infeasible.toml", "`vr`", "refused"]),
        (&["run", "missing.toml"], &["missing.toml"]),
        (&["run", "guest.toml", "--check"], &["guest.toml", "guest.image", "nowhere"]),
        (&["run", "guest.toml"], &["guest.image", "make guest"]),
        (&["run", "efi.toml"], &["guest.variables", "none", "own copy"]),
    ] {
        let (code, text) = failure(arguments, folder.path());
        assert_eq!(code, Some(2), "{arguments:?}: {text}");
        for word in words {
            assert!(text.contains(word), "{arguments:?}: no `{word}` in: {text}");
        }
    }
    assert!(sockets(folder.path()).is_empty());
}

#[test]
fn check_finds_nothing_wrong_with_a_good_file_and_starts_nothing() {
    let guest = "[guest]\nname = \"vr\"\nimage = \"image\"\n[memory]\nsize = \"32M\"\n";
    let folder = folder_with(&[("guest.toml", guest), ("image", "\x7fELF")]);
    let out = output(&["run", "guest.toml", "--check"], folder.path());
    let text = String::from_utf8_lossy(&out.stdout);
    for word in ["guest vr", "32 MiB", "1 on any CPU", "image (ELF)"] {
        assert!(text.contains(word), "no {word} in {text}");
    }
    let kvm = beamline_vmm::probe::kvm();
    if kvm.usable() {
        assert_eq!(out.status.code(), Some(0), "{out:?}");
    } else {
        let err = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.code() == Some(2) && err.contains("/dev/kvm"), "{out:?}");
    }
}

#[test]
fn a_hosts_file_is_checked_without_starting_it() {
    let folder = folder_with(&[
        ("host.toml", HOST),
        ("infeasible.toml", &HOST.replace("budget_ms = 2.2", "budget_ms = 10.5")),
        ("unknown.toml", &HOST.replace("width", "widht")),
    ]);
    let out = output(&["host", "host.toml", "--check"], folder.path());
    let text = String::from_utf8_lossy(&out.stdout);
    assert_eq!(out.status.code(), Some(0), "{out:?}");
    for word in ["slice vr: 2.2 ms of every 11.11", "512x288", "run/vr-gpu.sock", "control.sock"] {
        assert!(text.contains(word), "no {word} in {text}");
    }
    assert!(!folder.path().join("run").exists());
    let (code, text) = failure(&["host", "infeasible.toml", "--check"], folder.path());
    assert!(code == Some(2) && text.contains("`vr`") && text.contains("refused"), "{text}");
    let (code, text) = failure(&["host", "unknown.toml", "--check"], folder.path());
    assert!(code == Some(2) && text.contains("widht"), "{text}");
}

#[test]
fn a_host_serves_until_it_is_told_to_end_and_leaves_no_socket() {
    let folder = folder_with(&[("host.toml", HOST)]);
    let host = Running::host(folder.path());
    assert_eq!(sockets(folder.path()).len(), 3, "pacer, vGPU and control");
    let (code, last) = host.end();
    assert_eq!((code, last.as_str()), (Some(0), r#"{"event":"drained"}"#));
    assert!(sockets(folder.path()).is_empty());
}

/// What the kernel says of each thread of a process.
fn threads(of: &Child) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", of.id())).unwrap();
    tasks.filter_map(|t| std::fs::read_to_string(t.unwrap().path().join("status")).ok()).collect()
}

/// Whether a thread is held to a list of system calls, and gains no privileges.
fn is_confined(status: &str) -> bool {
    status.contains("NoNewPrivs:\t1\n") && status.contains("Seccomp:\t2\n")
}

#[test]
fn every_thread_of_a_host_is_confined_unless_it_is_asked_not_to_be() {
    let folder = folder_with(&[("host.toml", HOST)]);
    let host = Running::host(folder.path());
    let all = threads(&host.child);
    assert!(all.len() > 5 && all.iter().all(|t| is_confined(t)), "{all:#?}");
    assert_eq!(host.end().0, Some(0));
    let host = Running::host_with(&["host", "host.toml", "--no-sandbox"], folder.path());
    assert!(threads(&host.child).iter().all(|t| !is_confined(t)));
    assert_eq!(host.end().0, Some(0));
}

#[test]
fn a_confined_host_leaves_its_files_where_it_is_told_to() {
    let output = "[output]\nstamps = \"logs/of/stamps.bin\"\nimages = \"pictures\"\n";
    let folder = folder_with(&[("host.toml", &format!("{HOST}{output}"))]);
    let host = Running::host(folder.path());
    assert_eq!(host.end().0, Some(0));
    let log = std::fs::metadata(folder.path().join("logs/of/stamps.bin")).unwrap();
    assert!(log.len() > 0, "the log has its meta data");
    assert!(folder.path().join("pictures").is_dir());
}

#[test]
fn slices_are_looked_at_and_changed_by_command() {
    let folder = folder_with(&[
        ("host.toml", HOST),
        (
            "game.toml",
            "width = 256\nheight = 144\n[contract]\nclass = \"reserved\"\nbudget_ms = 9.9\n",
        ),
    ]);
    let said = |arguments: &[&str]| {
        let out = output(arguments, folder.path());
        let err = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(0), "{arguments:?}: {err}");
        String::from_utf8(out.stdout).unwrap()
    };
    let (code, text) = failure(&["slice", "list"], folder.path());
    assert_eq!(code, Some(2));
    assert!(text.contains("control.sock") && text.contains("beamline host"), "{text}");
    let host = Running::host(folder.path());
    let made = said(&[
        "slice",
        "create",
        "game",
        "--file",
        "game.toml",
        "--memory",
        "128M",
        "refresh_hz=60",
        "budget_ms=1.5",
        "max_job_ms=0.3",
    ]);
    assert!(made.contains("128M") && made.contains("game-gpu.sock"), "{made}");
    let list = said(&["slice", "list"]);
    assert!(list.contains("60 Hz reserved, 1.5 ms") && list.contains("vr"), "{list}");
    let changed = said(&["slice", "change", "game", "budget_ms=1.25", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&changed).unwrap();
    assert_eq!(json["contract"]["budget_ms"], 1.25);
    let (code, text) = failure(&["slice", "change", "game", "budget_ms=15"], folder.path());
    assert_eq!(code, Some(2));
    assert!(text.contains("too much") && text.contains("budget_ms ="), "{text}");
    let out = output(&["slice", "change", "game", "budget_ms=15", "--json"], folder.path());
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((out.status.code(), &json["refused"]["kind"]), (Some(2), &"demand".into()));
    assert!(said(&["slice", "show", "game"]).contains("1.25"));
    assert!(said(&["slice", "quiesce", "game"]).contains("waiting, quiesced"));
    assert!(!said(&["slice", "resume", "game"]).contains("quiesced"));
    let (code, text) = failure(&["slice", "quiesce", "none"], folder.path());
    assert!(code == Some(2) && text.contains("there is no slice `none`"), "{text}");
    let (code, text) = failure(&["slice", "scanout", "game"], folder.path());
    assert_eq!(code, Some(2));
    assert!(text.contains("presented nothing"), "{text}");
    said(&["slice", "remove", "game", "--host", "run"]);
    let (code, text) = failure(&["slice", "show", "game"], folder.path());
    assert_eq!(code, Some(2));
    assert!(text.contains("there is no slice `game`"), "{text}");
    assert_eq!(host.end().0, Some(0));
    assert!(sockets(folder.path()).is_empty());
}

#[test]
fn a_host_whose_reader_is_gone_ends_by_itself() {
    let folder = folder_with(&[("host.toml", HOST)]);
    let mut host = Running::host(folder.path());
    let status = {
        let Running { child, lines } = &mut host;
        // Closing the pipe: the next statistics find nobody.
        *lines = BufReader::new(take_stdout(child)).lines();
        child.wait().unwrap()
    };
    assert_eq!(status.code(), Some(0));
    assert!(sockets(folder.path()).is_empty());
}

/// Some other readable pipe, in exchange for the host's.
fn take_stdout(_of: &Child) -> std::process::ChildStdout {
    let mut other =
        Command::new("/bin/true").stdout(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
    let stdout = other.stdout.take().unwrap();
    other.wait().unwrap();
    stdout
}

#[test]
fn a_guest_without_a_host_says_what_to_start() {
    let Some(image) = guest_image("a_guest_without_a_host_says_what_to_start") else { return };
    let folder = folder_with(&[("vr.toml", &guest_toml(&image, "none.sock", "none-gpu.sock"))]);
    let (code, text) = failure(&["run", "vr.toml"], folder.path());
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("none.sock") && text.contains("beamline host"), "{text}");
}

#[test]
fn two_guests_on_one_slice_are_refused() {
    let Some(image) = guest_image("two_guests_on_one_slice_are_refused") else { return };
    let guest = guest_toml(&image, "run/vr-pacer.sock", "run/vr-gpu.sock");
    let folder = folder_with(&[("host.toml", HOST), ("vr.toml", &guest)]);
    let host = Running::host(folder.path());
    let mut guest = Running::of(&mut beamline(&["run", "vr.toml"], folder.path()));
    let ready = guest.lines.find_map(|l| l.ok().filter(|l| l.starts_with("vr: READY")));
    assert!(ready.is_some(), "the guest did not render");
    let (code, text) = failure(&["run", "vr.toml"], folder.path());
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("vr-pacer.sock") && text.contains("another guest has"), "{text}");
    let first = &mut guest.child;
    let all = threads(first);
    assert!(all.len() > 1 && all.iter().all(|t| is_confined(t)), "{all:#?}");
    // The first one is not disturbed, and ends in order.
    assert!(first.try_wait().unwrap().is_none());
    kill_process(Pid::from_child(first), Signal::TERM).unwrap();
    assert_eq!(first.wait().unwrap().code(), Some(0));
    assert_eq!(host.end().0, Some(0));
}

fn guest_toml(image: &Path, pacer: &str, gpu: &str) -> String {
    format!(
        "[guest]\nname = \"vr\"\nimage = \"{}\"\ncmdline = \"scene=vr\"\n[memory]\nsize = \"32M\"\n\
         [[device]]\ntype = \"vfio-user\"\nsocket = \"{pacer}\"\ntimeout_ms = 2000\n\
         [[device]]\ntype = \"vfio-user\"\nsocket = \"{gpu}\"\ntimeout_ms = 2000\n",
        image.display()
    )
}

/// The guest image, where guests can run; else says why the test is skipped.
fn guest_image(test: &str) -> Option<PathBuf> {
    if !kvm_or_skip(test) {
        return None;
    }
    let image = std::env::var_os("BEAMLINE_GUEST").map(PathBuf::from).filter(|p| p.is_file());
    if image.is_none() {
        println!("skip: {test}: no guest image; `make guest` builds it, BEAMLINE_GUEST names it");
    }
    image
}
