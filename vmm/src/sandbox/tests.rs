//! Each role's list, in a process that is confined to it: this very test program, started once more.

use super::*;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use rustix::thread::{CapabilitySet, capabilities, capability_is_in_bounding_set};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdout, Command, Stdio};

/// Tells the child what to do: a role and an act.
const TASK: &str = "BEAMLINE_SANDBOX_TASK";
/// Names a folder for the act that uses files.
const FOLDER: &str = "BEAMLINE_SANDBOX_FOLDER";

const ROLES: [Role; 6] =
    [Role::Vmm, Role::Guest, Role::Connector, Role::Host, Role::Launcher, Role::Renderer];

/// A confined process, which waits for a word before it acts.
struct Confined {
    child: Child,
    said: BufReader<ChildStdout>,
    _folder: tempfile::TempDir,
}

impl Confined {
    fn start(role: Role, act: &str) -> Self {
        Self::start_on(role, act, Stdio::piped())
    }

    fn start_on(role: Role, act: &str, input: Stdio) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["sandbox::tests::child", "--exact", "--ignored", "--nocapture"])
            .env(TASK, format!("{}:{act}", role.name()))
            .env(FOLDER, folder.path())
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        let mut this = Self { child, said, _folder: folder };
        this.hear("confined");
        this
    }

    /// Reads until the child has said `word`.
    fn hear(&mut self, word: &str) {
        let mut line = String::new();
        while !line.contains(word) {
            line.clear();
            let len = self.said.read_line(&mut line).unwrap();
            assert!(len > 0, "it ended before it said `{word}`: {}", self.errors());
        }
    }

    fn errors(&mut self) -> String {
        let mut text = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        text
    }

    /// Lets it act; its exit code and what it wrote to stderr.
    fn end(mut self) -> (Option<i32>, String) {
        if let Some(mut stdin) = self.child.stdin.take() {
            stdin.write_all(b"go\n").unwrap();
        }
        let errors = self.errors();
        let mut rest = String::new();
        self.said.read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap().code(), rest + &errors)
    }
}

impl Drop for Confined {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn no_seccomp(test: &str) -> bool {
    if !has_seccomp() {
        println!("skip: {test}: this kernel has no seccomp filters");
    }
    !has_seccomp()
}

#[test]
fn a_forbidden_call_ends_the_process_and_is_named() {
    if no_seccomp("a_forbidden_call_ends_the_process_and_is_named") {
        return;
    }
    for (role, acts) in [
        (
            Role::Vmm,
            &[
                "execve", "socket", "connect", "ptrace", "mprotect", "mmap", "ioctl", "openat",
                "clone", "kill",
            ][..],
        ),
        (
            Role::Guest,
            &[
                "execve", "socket", "connect", "ptrace", "mprotect", "mmap", "ioctl", "openat",
                "clone", "kill", "unlink",
            ],
        ),
        (
            Role::Connector,
            &["execve", "socket", "ptrace", "mprotect", "mmap", "ioctl", "openat", "clone", "kill"],
        ),
        (
            Role::Host,
            &[
                "execve",
                "socket",
                "ptrace",
                "mprotect",
                "mmap",
                "ioctl",
                "clone",
                "kill",
                "io_uring_setup",
            ],
        ),
        (Role::Launcher, &["socket", "ptrace", "ioctl", "clone", "mount"]),
        (
            Role::Renderer,
            &["execve", "socket", "connect", "ptrace", "ioctl", "clone", "kill", "unlink"],
        ),
    ] {
        for act in acts {
            let (code, text) = Confined::start(role, act).end();
            assert_eq!(code, Some(EXIT_CODE), "{role:?} {act}: {text}");
            let message = format!("beamline: {}: system call {act} (", role.name());
            assert!(text.contains(&message) && text.contains("--no-sandbox"), "{act}: {text}");
            assert!(!text.contains("still here"), "{act}: {text}");
        }
    }
}

#[test]
fn a_forbidden_call_is_an_event_where_that_is_asked_for() {
    if no_seccomp("a_forbidden_call_is_an_event_where_that_is_asked_for") {
        return;
    }
    let event = r#"{"event":"sandbox-violation","call":"ptrace","number":101}"#;
    for (act, told) in [("told", true), ("ptrace", false)] {
        let (code, text) = Confined::start(Role::Vmm, act).end();
        assert_eq!(code, Some(EXIT_CODE), "{text}");
        assert_eq!(text.lines().any(|line| line == event), told, "{text}");
    }
}

#[test]
fn a_thread_that_was_there_before_is_bound_as_well() {
    if no_seccomp("a_thread_that_was_there_before_is_bound_as_well") {
        return;
    }
    let (code, text) = Confined::start(Role::Vmm, "elsewhere").end();
    assert_eq!(code, Some(EXIT_CODE), "{text}");
    assert!(text.contains("system call ptrace"), "{text}");
}

#[test]
fn every_role_can_live() {
    if no_seccomp("every_role_can_live") {
        return;
    }
    for role in ROLES {
        let (code, text) = Confined::start(role, "live").end();
        assert_eq!(code, Some(0), "{role:?}: {text}");
        assert!(text.contains("still here"), "{role:?}: {text}");
    }
}

#[test]
fn a_forbidden_call_ends_no_other_process() {
    if no_seccomp("a_forbidden_call_ends_no_other_process") {
        return;
    }
    let sibling = Confined::start(Role::Vmm, "live");
    assert_eq!(Confined::start(Role::Vmm, "ptrace").end().0, Some(EXIT_CODE));
    assert_eq!(sibling.end().0, Some(0));
}

#[test]
fn only_files_that_are_named_are_within_reach() {
    if !matches!(landlock(), Landlock::Version(_)) {
        println!("skip: only_files_that_are_named_are_within_reach: this kernel has no Landlock");
        return;
    }
    let (code, text) = Confined::start(Role::Host, "files").end();
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("still here"), "{text}");
}

#[test]
fn capabilities_are_gone_for_good() {
    let (code, text) = Confined::start(Role::Vmm, "capabilities").end();
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("still here"), "{text}");
}

#[test]
fn no_role_reaches_the_kernels_wide_doors() {
    for role in ROLES {
        let calls = role.calls();
        for call in [
            libc::SYS_add_key,
            libc::SYS_bpf,
            libc::SYS_init_module,
            libc::SYS_io_uring_setup,
            libc::SYS_keyctl,
            libc::SYS_kexec_load,
            libc::SYS_mount,
            libc::SYS_perf_event_open,
            libc::SYS_personality,
            libc::SYS_pivot_root,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_ptrace,
            libc::SYS_setns,
            libc::SYS_setuid,
            libc::SYS_unshare,
            libc::SYS_userfaultfd,
        ] {
            assert!(!calls.is_listed(call), "{role:?}: {call}");
        }
        let starts = calls.is_listed(libc::SYS_execve);
        assert_eq!(starts, role == Role::Launcher, "{role:?}");
    }
}

#[test]
fn a_terminal_is_put_back_where_a_call_ends_the_process() {
    if no_seccomp("a_terminal_is_put_back_where_a_call_ends_the_process") {
        return;
    }
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
    let person = std::fs::File::from(openpt(flags).unwrap());
    grantpt(&person).unwrap();
    unlockpt(&person).unwrap();
    let name = ptsname(&person, Vec::new()).unwrap();
    let terminal = std::fs::File::options().read(true).write(true).open(name.to_str().unwrap());
    let terminal = terminal.unwrap();
    let before = tcgetattr(&terminal).unwrap().local_modes;
    assert!(before.contains(LocalModes::ECHO | LocalModes::ICANON));
    let input = terminal.try_clone().unwrap().into();
    let mut child = Confined::start_on(Role::Vmm, "terminal", input);
    child.hear("taken");
    let taken = tcgetattr(&terminal).unwrap().local_modes;
    assert!(!taken.intersects(LocalModes::ECHO | LocalModes::ICANON));
    (&person).write_all(b"go\n").unwrap();
    let (code, errors) = child.end();
    assert_eq!(code, Some(EXIT_CODE), "{errors}");
    assert_eq!(tcgetattr(&terminal).unwrap().local_modes, before);
}

#[test]
#[ignore = "started by other tests as a process of its own"]
fn child() {
    let Ok(task) = std::env::var(TASK) else {
        println!("skip: child: nobody started it with a task");
        return;
    };
    let (role, act) = task.split_once(':').unwrap();
    let role = ROLES.into_iter().find(|r| r.name() == role).unwrap();
    let (go, told) = std::sync::mpsc::channel::<()>();
    let elsewhere = std::thread::spawn(move || {
        if told.recv().is_ok() {
            acts::call("ptrace");
        }
    });
    match act {
        "files" => acts::files(Path::new(&std::env::var_os(FOLDER).unwrap())),
        "capabilities" => drop_capabilities(Keep::urgency()).unwrap(),
        _ => confine(role, Threads::All).unwrap(),
    }
    println!("\nconfined");
    if act == "terminal" {
        remember_terminal();
        let mut taken = tcgetattr(std::io::stdin()).unwrap();
        taken.make_raw();
        // Its lines still end as the test reads them.
        taken.input_modes |= rustix::termios::InputModes::ICRNL;
        tcsetattr(std::io::stdin(), OptionalActions::Now, &taken).unwrap();
        println!("taken");
    }
    std::io::stdin().lock().read_line(&mut String::new()).unwrap();
    match act {
        "live" => acts::live(),
        "files" => {}
        "capabilities" => {
            let keep = CapabilitySet::SYS_NICE | CapabilitySet::IPC_LOCK;
            let now = capabilities(None).unwrap();
            assert!(keep.contains(now.effective | now.permitted | now.inheritable), "{now:?}");
            if rustix::process::geteuid().is_root() {
                assert_eq!(capability_is_in_bounding_set(CapabilitySet::SYS_ADMIN), Ok(false));
            }
        }
        "elsewhere" => go.send(()).unwrap(),
        "told" => {
            tell_stdout();
            acts::call("ptrace");
        }
        "terminal" => acts::call("ptrace"),
        call => acts::call(call),
    }
    drop(go);
    elsewhere.join().unwrap();
    println!("still here");
}

#[path = "tests_acts.rs"]
mod acts;
