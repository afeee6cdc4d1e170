//! A guest with a TPM as a user runs it: the command, its sandbox, and the machine's swtpm.

mod common;
#[path = "common/elf.rs"]
mod elf;
#[path = "common/kvm.rs"]
mod kvm;

use common::{beamline, failure, output};
use elf::elf;
use kvm::kvm_or_skip;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

const GUEST: &str = "[guest]\nname = \"tiny\"\nimage = \"image\"\n[memory]\nsize = \"8M\"\n\
                     [tpm]\nsocket = \"tpm.sock\"\n";
/// `TPM2_Startup`, and the answer that all is well.
const STARTUP: [u8; 12] = [0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x44, 0, 0];
const DONE: [u8; 10] = [0x80, 1, 0, 0, 0, 10, 0, 0, 0, 0];

/// Registers of the TPM.
const LOC_CTRL: u32 = 0xfed4_0008;
const CTRL_REQ: u32 = 0xfed4_0040;
const CTRL_START: u32 = 0xfed4_004c;
const BUFFER: u32 = 0xfed4_0080;

/// Starts its TPM, and ends with 0 if the TPM says that it has, else with 9.
fn image() -> Vec<u8> {
    let mut code = Vec::new();
    // mov dword [at], value
    let mut store = |at: u32, value: u32| {
        code.extend([0xc7, 0x05]);
        code.extend(at.to_le_bytes());
        code.extend(value.to_le_bytes());
    };
    store(LOC_CTRL, 1);
    store(CTRL_REQ, 1);
    for (at, word) in (BUFFER..).step_by(4).zip(STARTUP.chunks_exact(4)) {
        store(at, u32::from_le_bytes(word.try_into().expect("four bytes")));
    }
    store(CTRL_START, 1);
    // back: mov eax, [start]; test eax, eax; jnz back
    code.push(0xa1);
    code.extend(CTRL_START.to_le_bytes());
    code.extend([0x85, 0xc0, 0x75, 0xf7]);
    for (at, byte) in (BUFFER..).zip(DONE) {
        // cmp byte [at], byte; je on; mov al, 9; out 0xf4, al; on:
        code.extend([0x80, 0x3d]);
        code.extend(at.to_le_bytes());
        code.extend([byte, 0x74, 0x04, 0xb0, 9, 0xe6, 0xf4]);
    }
    code.extend([0xb0, 0, 0xe6, 0xf4]);
    elf(0x10_0000, &code)
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("guest.toml"), GUEST).unwrap();
    std::fs::write(folder.path().join("image"), image()).unwrap();
    folder
}

/// swtpm, which ends with the test.
struct Emulator(Child);

impl Emulator {
    /// Starts it, with the socket that the guest's file names; where it is not installed, prints that `test` is
    /// skipped.
    fn start(test: &str, folder: &Path) -> Option<Self> {
        let listener = UnixListener::bind(folder.join("tpm.sock")).unwrap();
        let started = Command::new("swtpm")
            .args(["socket", "--tpm2", "--tpmstate", "dir=.", "--ctrl", "type=unixio,fd=0"])
            .current_dir(folder)
            .stdin(OwnedFd::from(listener))
            .stderr(Stdio::null())
            .spawn();
        match started {
            Ok(child) => Some(Self(child)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                println!("skip: {test}: swtpm is not installed; `make setup` installs it");
                None
            }
            Err(e) => panic!("swtpm: {e}"),
        }
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_guest_uses_its_tpm_in_the_sandbox_run_after_run() {
    let test = "a_guest_uses_its_tpm_in_the_sandbox_run_after_run";
    if !kvm_or_skip(test) {
        return;
    }
    let folder = folder();
    let Some(mut emulator) = Emulator::start(test, folder.path()) else { return };
    for _ in 0..2 {
        let out = output(&["run", "guest.toml"], folder.path());
        assert_eq!(out.status.code(), Some(0), "{out:?}");
    }
    assert!(emulator.0.try_wait().unwrap().is_none(), "it is still there for the next run");
}

#[test]
fn a_tpm_that_is_not_there_is_told() {
    let folder = folder();
    let out = output(&["run", "guest.toml", "--check", "--json"], folder.path());
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(report["tpm"], "tpm.sock");
    let warning =
        report["warnings"].as_array().unwrap().iter().find(|w| w["where"] == "tpm.socket");
    let what = warning.expect("a warning")["what"].as_str().unwrap();
    assert!(what.contains("tpm.sock") && what.contains("swtpm socket --tpm2"), "{what}");
    // Once there is a socket, nothing is to be said of it.
    let listener = UnixListener::bind(folder.path().join("tpm.sock")).unwrap();
    let out = output(&["run", "guest.toml", "--check", "--json"], folder.path());
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert!(report["warnings"].as_array().unwrap().iter().all(|w| w["where"] != "tpm.socket"));
    drop(listener);
    if !kvm_or_skip("a_tpm_that_is_not_there_is_told") {
        return;
    }
    let (code, text) = failure(&["run", "guest.toml"], folder.path());
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("no TPM at tpm.sock: start `swtpm socket --tpm2"), "{text}");
}

#[test]
fn a_run_that_waits_for_its_tpm_is_ended_by_a_signal() {
    if !kvm_or_skip("a_run_that_waits_for_its_tpm_is_ended_by_a_signal") {
        return;
    }
    let folder = folder();
    let listener = UnixListener::bind(folder.path().join("tpm.sock")).unwrap();
    let mut run = beamline(&["run", "guest.toml"], folder.path());
    let child = run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It has asked for something, and is never answered.
    let (mut stream, _) = listener.accept().unwrap();
    stream.read_exact(&mut [0; 4]).unwrap();
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let out = child.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(0), "{out:?}");
}
