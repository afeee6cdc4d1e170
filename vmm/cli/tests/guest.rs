//! A guest as a script sees it: its API, the commands over it, its events, and the check of its file.

mod common;
#[path = "common/elf.rs"]
mod elf;
#[path = "common/host.rs"]
mod host;
#[path = "common/kvm.rs"]
mod kvm;
#[path = "guest/ports.rs"]
mod ports;
#[path = "common/running.rs"]
mod running;
#[path = "guest/turn.rs"]
mod turn;
#[path = "guest/writes.rs"]
mod writes;

use common::{beamline, failure, output};
use elf::elf;
use host::HOST;
use kvm::kvm_or_skip;
use running::Running;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};

/// Says `boot` on its serial port. Then writes to port 0x80 for ever, until its power button is pressed, when it
/// switches off, or a byte comes on the serial port, which is its exit code.
fn image() -> Vec<u8> {
    let mut code = vec![0x66, 0xba, 0xf8, 0x03]; // mov dx, 0x3f8
    for byte in b"boot\n" {
        code.extend([0xb0, *byte, 0xee]); // mov al, byte; out dx, al
    }
    code.extend([
        0xe6, 0x80, // loop: out 0x80, al
        0x66, 0xba, 0x00, 0x06, // mov dx, 0x600: the status of ACPI's fixed events
        0x66, 0xed, // in ax, dx
        0xf6, 0xc4, 0x01, // test ah, 1: the power button
        0x75, 0x10, // jnz off
        0x66, 0xba, 0xfd, 0x03, // mov dx, 0x3fd
        0xec, // in al, dx
        0xa8, 0x01, // test al, 1: a byte has come
        0x74, 0xea, // jz loop
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xec, // in al, dx
        0xe6, 0xf4, // out 0xf4, al
        0x66, 0xba, 0x04, 0x06, // off: mov dx, 0x604
        0x66, 0xb8, 0x00, 0x20, // mov ax, S5
        0x66, 0xef, // out dx, ax
        0xeb, 0xfe, // jmp to itself
    ]);
    elf(0x10_0000, &code)
}

const GUEST: &str = "[guest]\nname = \"tiny\"\nimage = \"image\"\n[memory]\nsize = \"8M\"\n[vcpus]\ncount = 2\n\
                     [api]\nsocket = \"run/tiny.sock\"\n";
const DEVICES: &str = "[[device]]\ntype = \"virtio-rng\"\n[[device]]\ntype = \"virtio-balloon\"\n\
                       [[device]]\ntype = \"virtio-input\"\nkind = \"keyboard\"\n";
const SOCKET: &str = "run/tiny.sock";

fn folder_with(guest: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("guest.toml"), guest).unwrap();
    std::fs::write(folder.path().join("image"), image()).unwrap();
    folder
}

/// What `beamline guest` says as JSON; it succeeds.
fn asked(arguments: &[&str], folder: &Path) -> Value {
    let all = [&["guest", "--json", "--api", SOCKET], arguments].concat();
    let out = output(&all, folder);
    assert_eq!(out.status.code(), Some(0), "{arguments:?}: {out:?}");
    serde_json::from_slice(&out.stdout).unwrap()
}

/// A guest that runs, and its events.
impl Running {
    /// A host that is ready, by its file in `folder`.
    fn host(folder: &Path) -> Self {
        let mut host = Self::of(&mut beamline(&["host", "host.toml"], folder));
        host.lines.next().unwrap().unwrap();
        host
    }

    fn start(arguments: &[&str], folder: &Path) -> Self {
        let all = [&["run", "guest.toml", "--json"], arguments].concat();
        Self::started(&mut beamline(&all, folder))
    }

    /// By env(1), which has the end of a terminal be what `signal` says, whatever it is to the tests themselves.
    fn start_by_env(signal: &str, folder: &Path) -> Self {
        let run = beamline(&["run", "guest.toml", "--json"], folder);
        let mut env = Command::new("env");
        env.arg(signal).arg(run.get_program()).args(run.get_args()).current_dir(folder);
        Self::started(env.stdin(Stdio::null()))
    }

    fn started(command: &mut Command) -> Self {
        let mut this = Self::of(command.stderr(Stdio::piped()));
        let started = this.event();
        assert_eq!(started["event"], "started", "{started}");
        assert_eq!((&started["guest"], &started["api"]), (&"tiny".into(), &SOCKET.into()));
        this
    }

    /// The next event that is not about a life's interrupts.
    fn event(&mut self) -> Value {
        loop {
            let line = self.lines.next().expect("it says more").unwrap();
            let event: Value = serde_json::from_str(&line).unwrap();
            if event["event"] != "interrupts" {
                return event;
            }
        }
    }

    /// Its exit code; the events that are left, without the one about the last life's interrupts, which has to be
    /// there; what the guest said.
    fn ends(mut self) -> (Option<i32>, Vec<Value>, String) {
        let mut events: Vec<Value> =
            self.lines.by_ref().map(|l| serde_json::from_str(&l.unwrap()).unwrap()).collect();
        let told = events.iter().filter(|e| e["event"] == "interrupts").count();
        assert_eq!(told, 1, "{events:?}");
        events.retain(|e| e["event"] != "interrupts");
        let mut stderr = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        // What the command itself has to say is no line of the guest.
        let console = stderr.lines().filter(|line| !line.starts_with("beamline: "));
        let console = console.flat_map(|line| [line, "\n"]).collect();
        (self.child.wait().unwrap().code(), events, console)
    }
}

/// How often each vCPU's thread has gone to sleep, by what the kernel says.
fn sleeps(pid: u32) -> Vec<String> {
    let line = |status: String| {
        let vcpu = status.starts_with("Name:\tvcpu");
        status.lines().find(|l| vcpu && l.starts_with("voluntary")).map(str::to_owned)
    };
    statuses(pid).into_iter().filter_map(line).collect()
}

/// What the kernel says of each thread of a process.
fn statuses(pid: u32) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks.filter_map(|t| std::fs::read_to_string(t.unwrap().path().join("status")).ok()).collect()
}

fn io_exits(folder: &Path) -> u64 {
    asked(&["stats"], folder)["vcpus"][0]["io"].as_u64().unwrap()
}

/// Sends `request` as it is, and reads the answer's status and body.
fn http(folder: &Path, request: &str) -> (u16, Value) {
    let mut stream = UnixStream::connect(folder.join(SOCKET)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    // A body that is not read ends the connection with an error, after the answer.
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap())
}

fn send(folder: &Path, method: &str, path: &str, body: &str) -> (u16, Value) {
    http(
        folder,
        &format!(
            "{method} {path} HTTP/1.1\r\nhost: guest\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        ),
    )
}

#[test]
fn a_guest_is_looked_at_paused_resumed_and_switched_off() {
    if !kvm_or_skip("a_guest_is_looked_at_paused_resumed_and_switched_off") {
        return;
    }
    let folder = folder_with(&format!("{GUEST}{DEVICES}"));
    let folder = folder.path();
    let guest = Running::start(&[], folder);
    let socket = folder.join(SOCKET);
    assert_eq!(socket.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let about = asked(&["show"], folder);
    assert_eq!((&about["name"], &about["state"]), (&"tiny".into(), &"running".into()));
    assert_eq!((&about["vcpus"], &about["memory_bytes"]), (&2.into(), &(8 << 20).into()));
    assert_eq!(about["devices"][1], json!({ "pci": "00:02.0", "type": "virtio-balloon" }));
    assert_eq!(about["pid"], guest.child.id());
    // Every thread, the API's included, is held to the list of system calls.
    let threads = statuses(guest.child.id());
    assert!(threads.iter().any(|t| t.starts_with("Name:\tapi/tiny\n")), "{threads:#?}");
    assert!(threads.iter().all(|t| t.contains("Seccomp:\t2\n")), "{threads:#?}");

    assert_eq!(asked(&["pause"], folder)["state"], "paused");
    assert_eq!(asked(&["pause"], folder)["state"], "paused");
    let (paused, asleep) = (io_exits(folder), sleeps(guest.child.id()));
    assert_eq!(io_exits(folder), paused, "a paused guest makes no progress");
    assert_eq!(asleep.len(), 2);
    assert_eq!(sleeps(guest.child.id()), asleep, "its vCPUs' threads sleep on");
    assert_eq!(asked(&["show"], folder)["state"], "paused");
    assert_eq!(asked(&["resume"], folder)["state"], "running");
    while io_exits(folder) == paused {}

    let balloon = asked(&["balloon", "2M"], folder);
    assert_eq!(balloon, json!({ "target_bytes": 2 << 20, "actual_bytes": 0 }));
    assert_eq!(asked(&["balloon"], folder)["target_bytes"], 2 << 20);
    let (code, text) = failure(&["guest", "--api", SOCKET, "balloon", "8M"], folder);
    assert!(code == Some(2) && text.contains("less than"), "{text}");
    asked(&["type", "--enter", "Hello, world!"], folder);
    asked(&["key", "ctrl+alt+delete", "f1"], folder);
    let (code, text) = failure(&["guest", "--api", SOCKET, "key", "ctrl+nokey"], folder);
    assert!(code == Some(2) && text.contains("nokey"), "{text}");
    let (code, text) = failure(&["guest", "--api", SOCKET, "point", "0.5", "0.5"], folder);
    assert!(code == Some(2) && text.contains("kind = \"tablet\""), "{text}");
    let (code, text) = failure(&["guest", "--api", SOCKET, "screenshot"], folder);
    assert!(code == Some(2) && text.contains("-gpu.sock"), "{text}");
    let (code, text) = failure(&["guest", "--api", SOCKET, "reset"], folder);
    assert!(code == Some(2) && text.contains("on_reset"), "{text}");

    asked(&["power-button"], folder);
    let (code, events, console) = guest.ends();
    let names: Vec<&Value> = events.iter().map(|e| &e["event"]).collect();
    assert_eq!(names, ["paused", "resumed", "power-button", "powered-off"]);
    assert_eq!((code, console.as_str()), (Some(0), "tiny: boot\n"), "the console is on stderr");
    assert!(!socket.exists(), "the socket goes with the guest");
    let (code, text) = failure(&["guest", "--api", SOCKET, "show"], folder);
    assert!(code == Some(2) && text.contains("beamline run --api"), "{text}");
}

#[test]
fn bad_requests_are_answered_and_slow_clients_keep_nobody_out() {
    if !kvm_or_skip("bad_requests_are_answered_and_slow_clients_keep_nobody_out") {
        return;
    }
    let folder = folder_with(&format!("{GUEST}{DEVICES}"));
    let folder = folder.path();
    let guest = Running::start(&[], folder);
    // More than there is room for, none of which ever sends its request.
    let _slow: Vec<UnixStream> =
        (0..20).map(|_| UnixStream::connect(folder.join(SOCKET)).unwrap()).collect();
    for (method, path, body, status, place) in [
        ("GET", "/", "", 404, "path"),
        ("GET", "/v1/guest/nothing", "", 404, "path"),
        ("GET", "/v1/guest/pause", "", 405, "method"),
        ("DELETE", "/v1/guest", "", 405, "method"),
        ("PUT", "/v1/guest/balloon", "{", 400, "body, line 1 column 1"),
        ("PUT", "/v1/guest/balloon", "{\"target_bytes\":-1}", 422, "target_bytes"),
        (
            "PUT",
            "/v1/guest/balloon",
            "{\"target_bytes\":18446744073709551615}",
            422,
            "target_bytes",
        ),
        ("POST", "/v1/guest/input", "{\"device\":\"keyboard\",\"do\":[]}", 422, "do"),
        ("POST", "/v1/guest/input", "{\"device\":\"mouse\",\"do\":[{\"wheel\":1}]}", 404, "device"),
        ("POST", "/v1/guest/input", "{\"device\":\"usb\",\"do\":[]}", 422, "device"),
    ] {
        let (was, said) = send(folder, method, path, body);
        assert_eq!(
            (was, &said["where"]),
            (status, &place.into()),
            "{method} {path} {body}: {said}"
        );
        assert!(said["mend"].is_string());
    }
    let long = format!("{{\"text\":\"{}\"}}", "x".repeat(64 << 10));
    assert_eq!(send(folder, "POST", "/v1/guest/serial", &long).0, 413);
    // Nobody reads the keyboard: at some point there is no room, and later there may be.
    let text = format!("{{\"device\":\"keyboard\",\"do\":[{{\"text\":\"{}\"}}]}}", "x".repeat(100));
    let full = (0..10).map(|_| send(folder, "POST", "/v1/guest/input", &text)).find(|a| a.0 != 200);
    let (status, said) = full.expect("what waits for a guest is bounded");
    assert_eq!((status, &said["retry_after_ms"]), (409, &100.into()));
    // A byte on the serial port is its exit code; the answer may be late for that.
    asked(&["type", "--serial", "*"], folder);
    let (code, events, _) = guest.ends();
    assert_eq!(events, [json!({ "event": "exited", "code": 42 })]);
    assert_eq!(code, Some(1));
}

#[test]
fn a_guest_is_stopped_over_its_api_and_answers_before_it_goes() {
    if !kvm_or_skip("a_guest_is_stopped_over_its_api_and_answers_before_it_goes") {
        return;
    }
    let folder = folder_with(GUEST);
    let guest = Running::start(&[], folder.path());
    asked(&["pause"], folder.path());
    assert_eq!(asked(&["stop"], folder.path())["state"], "ended");
    let (code, events, _) = guest.ends();
    assert_eq!(code, Some(0));
    assert_eq!(events, [json!({ "event": "paused" }), json!({ "event": "stopped" })]);
}

#[test]
fn a_guest_that_reboots_lives_again_in_the_sandbox_and_leaves_nothing() {
    if !kvm_or_skip("a_guest_that_reboots_lives_again_in_the_sandbox_and_leaves_nothing") {
        return;
    }
    let text = GUEST.replace("[memory]", "on_reset = \"reboot\"\n[memory]");
    let folder = folder_with(&text);
    let folder = folder.path();
    let mut guest = Running::start(&[], folder);
    let first = asked(&["show"], folder)["pid"].clone();
    assert_eq!(asked(&["reset"], folder)["state"], "ended");
    assert_eq!(guest.event(), json!({ "event": "reset" }));
    let again = guest.event();
    assert_eq!(again["event"], "started");
    assert_ne!(again["pid"], first, "each life has a process");
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", again["pid"].as_u64().unwrap()));
    assert!(status.unwrap().contains("Seccomp:\t2\n"));
    assert_eq!(asked(&["show"], folder)["state"], "running");
    kill_process(Pid::from_child(&guest.child), Signal::TERM).unwrap();
    let (code, events, console) = guest.ends();
    assert_eq!((code, events), (Some(0), vec![json!({ "event": "stopped" })]));
    assert_eq!(console, "tiny: boot\ntiny: boot\n");
    assert!(!folder.join(SOCKET).exists());
    assert!(!Path::new(&format!("/proc/{}", again["pid"])).exists(), "its process is gone");
}

#[test]
fn the_end_of_its_terminal_ends_a_guest_in_order_unless_it_is_ignored() {
    if !kvm_or_skip("the_end_of_its_terminal_ends_a_guest_in_order_unless_it_is_ignored") {
        return;
    }
    let folder = folder_with(GUEST);
    let folder = folder.path();
    let guest = Running::start_by_env("--default-signal=HUP", folder);
    kill_process(Pid::from_child(&guest.child), Signal::HUP).unwrap();
    let (code, events, _) = guest.ends();
    assert_eq!((code, events), (Some(0), vec![json!({ "event": "stopped" })]));
    assert!(!folder.join(SOCKET).exists());

    // As under nohup(1).
    let guest = Running::start_by_env("--ignore-signal=HUP", folder);
    kill_process(Pid::from_child(&guest.child), Signal::HUP).unwrap();
    assert_eq!(asked(&["show"], folder)["state"], "running");
    kill_process(Pid::from_child(&guest.child), Signal::TERM).unwrap();
    assert_eq!(guest.ends().0, Some(0));
}

#[test]
fn a_guest_that_resets_at_once_is_put_off_and_can_be_stopped() {
    if !kvm_or_skip("a_guest_that_resets_at_once_is_put_off_and_can_be_stopped") {
        return;
    }
    let folder = folder_with(&GUEST.replace("[memory]", "on_reset = \"reboot\"\n[memory]"));
    let folder = folder.path();
    // mov al, 0xfe; out 0x64, al; jmp to itself
    let code = [0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xfe];
    std::fs::write(folder.join("image"), elf(0x10_0000, &code)).unwrap();
    let mut guest = Running::start(&[], folder);
    let mut lives = 1;
    let told = loop {
        match guest.event() {
            told if told["event"] == "resets-at-once" => break told,
            event if event["event"] == "started" => lives += 1,
            event => assert_eq!(event, json!({ "event": "reset" })),
        }
    };
    assert_eq!(told["longest_pause_ms"], 5000);
    assert!(lives >= 2, "one reset is nothing to tell: {lives}");
    // The pause ends by itself, and the guest lives on.
    assert_eq!(guest.event()["event"], "started");
    assert_eq!(guest.event(), json!({ "event": "reset" }));
    kill_process(Pid::from_child(&guest.child), Signal::TERM).unwrap();
    let last = guest.lines.by_ref().last().unwrap().unwrap();
    assert_eq!(serde_json::from_str::<Value>(&last).unwrap(), json!({ "event": "stopped" }));
    assert_eq!(guest.child.wait().unwrap().code(), Some(0));
    assert!(!folder.join(SOCKET).exists());
}

#[test]
fn the_end_of_a_rebooting_guest_has_its_exit_code() {
    if !kvm_or_skip("the_end_of_a_rebooting_guest_has_its_exit_code") {
        return;
    }
    let text = GUEST.replace("[memory]", "on_reset = \"reboot\"\n[memory]");
    let folder = folder_with(&text);
    let guest = Running::start(&[], folder.path());
    asked(&["type", "--serial", "\u{7}"], folder.path());
    let (code, events, _) = guest.ends();
    assert_eq!((code, events), (Some(1), vec![json!({ "event": "exited", "code": 7 })]));
}

#[test]
fn a_socket_in_use_is_refused_and_a_dead_one_replaced() {
    if !kvm_or_skip("a_socket_in_use_is_refused_and_a_dead_one_replaced") {
        return;
    }
    let folder = folder_with(GUEST);
    let folder = folder.path();
    std::fs::create_dir(folder.join("run")).unwrap();
    drop(UnixListener::bind(folder.join(SOCKET)).unwrap());
    let first = Running::start(&[], folder);
    let out = output(&["run", "guest.toml", "--json"], folder);
    let failed: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((out.status.code(), &failed["exit_code"]), (Some(2), &2.into()));
    let error = failed["error"].as_str().unwrap();
    assert!(error.contains("tiny.sock") && error.contains("another"), "{error}");
    let (code, text) = failure(&["run", "guest.toml", "--check"], folder);
    assert!(code == Some(2) && text.contains("api.socket"), "{text}");
    assert_eq!(asked(&["show"], folder)["state"], "running", "the first is not disturbed");
    drop(first);
}

#[test]
fn a_picture_is_asked_of_the_guests_host() {
    let test = "a_picture_is_asked_of_the_guests_host";
    if !kvm_or_skip(test) {
        return;
    }
    let Some(image) = std::env::var_os("BEAMLINE_GUEST").filter(|p| Path::new(p).is_file()) else {
        println!("skip: {test}: no guest image; `make guest` builds it, BEAMLINE_GUEST names it");
        return;
    };
    let device = |function: &str| {
        format!("[[device]]\ntype = \"vfio-user\"\nsocket = \"run/vr-{function}.sock\"\n")
    };
    let guest = GUEST.replace("8M", "32M").replace("count = 2", "count = 1");
    let guest = guest.replace("\"image\"", &format!("{image:?}\ncmdline = \"scene=vr\""));
    let folder = folder_with(&format!("{guest}{}{}", device("pacer"), device("gpu")));
    let folder = folder.path();
    std::fs::write(folder.join("host.toml"), HOST).unwrap();
    let host = Running::host(folder);
    let guest = Running::start(&[], folder);
    let display = asked(&["show"], folder)["display"].clone();
    assert_eq!(display["slice"], "vr");
    assert!(Path::new(display["host"].as_str().unwrap()).is_absolute(), "{display}");
    // The model of a GPU draws nothing: what is shown here is that the host is asked.
    let (code, text) = failure(&["guest", "--api", SOCKET, "screenshot"], folder);
    assert!(code == Some(2) && text.contains("presented nothing"), "{text}");
    asked(&["stop"], folder);
    assert_eq!(guest.ends().0, Some(0));
    drop(host);
    let (code, text) = failure(&["guest", "--api", SOCKET, "screenshot"], folder);
    assert!(code == Some(2) && text.contains(SOCKET), "{text}");
}

#[test]
fn check_says_what_a_file_makes_and_what_is_in_the_way() {
    let disks = "[[device]]\ntype = \"virtio-blk\"\npath = \"a.img\"\n\
                 [[device]]\ntype = \"virtio-blk\"\npath = \"link.img\"\n\
                 [[device]]\ntype = \"virtio-blk\"\npath = \"used.img\"\nreadonly = true\n";
    let folder = folder_with(&format!("{GUEST}{disks}").replace("8M", "256G"));
    let folder = folder.path();
    for name in ["a.img", "used.img"] {
        std::fs::write(folder.join(name), [0; 4096]).unwrap();
    }
    std::os::unix::fs::symlink("a.img", folder.join("link.img")).unwrap();
    let used = File::open(folder.join("used.img")).unwrap();
    rustix::fs::flock(&used, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let out = output(&["run", "guest.toml", "--check", "--json"], folder);
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((out.status.code(), &report["ok"]), (Some(2), &false.into()));
    assert_eq!(report["memory"]["bytes"], 256u64 << 30);
    assert_eq!(report["boot"]["kind"], "ELF");
    assert_eq!(report["devices"][2]["pci"], "00:03.0");
    let errors = report["errors"].as_array().unwrap();
    let says = |place: &str, word: &str| {
        let fits = |e: &&Value| {
            e["where"] == place && e["what"].as_str().is_some_and(|w| w.contains(word))
        };
        assert!(errors.iter().any(|e| fits(&e)), "{place} {word}: {errors:#?}");
    };
    says("memory", "`memory.size`");
    says("device[1].path", "device[0]");
    says("device[2].path", "in use");
    let (code, text) = failure(&["run", "guest.toml"], folder);
    assert!(code == Some(2) && text.contains("memory.size"), "{text}");
    assert!(!folder.join("run").exists(), "nothing was started");
}

#[test]
fn files_schema_and_completions_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let new = ["guest", "new", "--kind", "gaming", "--disk", "/x/game.raw", "-o", "game.toml"];
    assert_eq!(output(&new, folder).status.code(), Some(0));
    let text = std::fs::read_to_string(folder.join("game.toml")).unwrap();
    assert!(text.contains("path = \"/x/game.raw\""), "{text}");
    let (code, text) = failure(&new, folder);
    assert!(code == Some(2) && text.contains("--force"), "{text}");
    assert_eq!(output(&[&new[..], &["--force"]].concat(), folder).status.code(), Some(0));
    let (code, text) = failure(&["run", "game.toml", "--check"], folder);
    assert!(code == Some(2) && text.contains("guest.image"), "{text}");
    let out = output(&["guest", "schema"], folder);
    let schema: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert!(schema["properties"]["memory"].is_object(), "{schema}");
    for shell in ["bash", "zsh", "fish"] {
        let out = output(&["completions", shell], folder);
        let text = String::from_utf8(out.stdout).unwrap();
        assert!(out.status.success() && text.contains("power-button"), "{shell}");
    }
    let (code, text) = failure(&["guest", "pause"], folder);
    assert!(code == Some(2) && text.contains("--api"), "{text}");
}
