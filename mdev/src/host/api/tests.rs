//! The control API over a real socket, of a host on the `model` backend.

use super::json::{AllStatsJson, ErrorJson, HostJson, SliceJson, SlicesJson};
use super::{MAX_BODY, MAX_CONNECTIONS};
use crate::config::HostConfig;
use crate::host::{Host, RendererProgram};
use proptest::prelude::*;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

const HOST: &str = r#"
run_dir = "run"
max_slices = 8
[gpu]
backend = "model"
switch_cost_ms = 0.0
guard_margin_ms = 0.05
[[slice]]
name = "vr"
width = 512
height = 288
[slice.contract]
refresh_hz = "90"
class = "reserved"
budget_ms = 2.0
max_job_ms = 1.0
jitter_ms = 0.5
"#;

/// A host of its own, and what a client of it sees.
struct Served {
    host: Option<Host>,
    socket: PathBuf,
    _folder: tempfile::TempDir,
}

/// An answer: its status and its body.
#[derive(Debug)]
struct Heard {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Heard {
    fn json<T: DeserializeOwned>(&self, status: u16) -> T {
        let text = String::from_utf8_lossy(&self.body);
        assert_eq!(self.status, status, "{text}");
        assert!(self.head.contains("application/json"), "{}", self.head);
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {text}"))
    }

    /// An error names what, where and how to mend it.
    fn error(&self, status: u16) -> ErrorJson {
        let error: ErrorJson = self.json(status);
        let parts = [&error.error, &error.place, &error.mend];
        assert!(parts.iter().all(|part| !part.is_empty()), "{error:?}");
        error
    }
}

impl Served {
    fn start() -> Self {
        Self::with(HOST)
    }

    fn with(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = HostConfig::parse(config, &folder.path().join("host.toml")).unwrap();
        let socket = config.control_socket();
        let renderer = RendererProgram { exe: "none".into(), args: Vec::new() };
        let host = Some(Host::start(config, renderer).unwrap());
        Self { host, socket, _folder: folder }
    }

    fn ask(&self, method: &str, path: &str, body: &[u8]) -> Heard {
        ask(&self.socket, method, path, body)
    }

    fn send(&self, method: &str, path: &str, body: &Value) -> Heard {
        self.ask(method, path, body.to_string().as_bytes())
    }

    fn names(&self) -> Vec<String> {
        let all: SlicesJson = self.ask("GET", "/slices", b"").json(200);
        all.slices.into_iter().map(|slice| slice.name).collect()
    }
}

fn connect(socket: &Path) -> UnixStream {
    UnixStream::connect(socket).unwrap()
}

fn ask(socket: &Path, method: &str, path: &str, body: &[u8]) -> Heard {
    let mut stream = connect(socket);
    let head =
        format!("{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    // A host that has heard enough may close before it has taken all of it.
    let _ = stream.write_all(&[head.as_bytes(), body].concat());
    hear(&mut stream)
}

fn hear(stream: &mut UnixStream) -> Heard {
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all);
    let end = all.windows(4).position(|w| w == b"\r\n\r\n").expect("an answer has a head");
    let head = String::from_utf8(all[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Heard { status, head, body: all[end + 4..].to_vec() }
}

fn slice(name: &str, budget_ms: f64) -> Value {
    json!({
        "name": name, "width": 256, "height": 144,
        "contract": {
            "refresh_hz": "90", "class": "reserved", "budget_ms": budget_ms, "max_job_ms": 1.0,
            "jitter_ms": 0.5,
        },
    })
}

#[test]
fn says_what_it_is_and_what_it_serves() {
    let served = Served::start();
    let mode = std::fs::metadata(&served.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let host: HostJson = served.ask("GET", "/", b"").json(200);
    assert_eq!((host.label.as_str(), host.policy.as_str()), ("modelled", "beamline"));
    assert_eq!((host.slices, host.max_slices, host.proof.as_str()), (1, 8, "offset-free"));
    assert!(host.promised_percent > 15.0, "{host:?}");
    let slice: SliceJson = served.ask("GET", "/slices/vr", b"").json(200);
    assert_eq!(slice.contract["refresh_hz"], "90");
    assert_eq!(slice.contract["budget_ms"], 2.0);
    assert_eq!((slice.memory.as_str(), slice.state.as_str()), ("64M", "waiting"));
    assert!(slice.pacer.exists() && slice.gpu.exists());
    let stats: AllStatsJson = served.ask("GET", "/stats", b"").json(200);
    assert_eq!((stats.label.as_str(), stats.slices[0].name.as_str()), ("modelled", "vr"));
}

#[test]
fn a_slice_comes_changes_and_goes() {
    let served = Served::start();
    let made: SliceJson = served.send("POST", "/slices", &slice("game", 1.5)).json(201);
    assert!(made.pacer.exists() && made.gpu.exists());
    assert!(UnixStream::connect(&made.gpu).is_ok());
    assert_eq!(served.names(), ["vr", "game"]);
    served.send("POST", "/slices", &slice("game", 0.1)).error(409);

    let change = json!({ "contract": { "budget_ms": 1.0, "refresh_hz": "60" } });
    let changed: SliceJson = served.send("PATCH", "/slices/game", &change).json(200);
    assert_eq!(
        (&changed.contract["budget_ms"], &changed.contract["refresh_hz"]),
        (&json!(1.0), &json!("60"))
    );
    assert_eq!(changed.contract["max_job_ms"], 1.0, "other keys stay");

    let mut guest = connect(&made.pacer);
    let gone: Value = served.ask("DELETE", "/slices/game", b"").json(200);
    assert_eq!(gone, json!({ "removed": "game" }));
    // Its guest sees the function go away.
    assert!(matches!(guest.read(&mut [0]), Ok(0) | Err(_)));
    assert!(!made.pacer.exists() && !made.gpu.exists());
    assert_eq!(served.names(), ["vr"]);
    served.ask("GET", "/slices/game", b"").error(404);
    served.ask("DELETE", "/slices/game", b"").error(404);
    // Its name and its place are free again.
    let again: SliceJson = served.send("POST", "/slices", &slice("game", 1.5)).json(201);
    assert!(again.gpu.exists());
}

#[test]
fn a_slice_is_asked_to_quiesce_and_to_resume() {
    let served = Served::start();
    let slice: SliceJson = served.ask("GET", "/slices/vr", b"").json(200);
    assert_eq!((slice.quiesce, slice.guest_contract.as_str()), (None, "fixed"));
    let slice: SliceJson = served.ask("POST", "/slices/vr/quiesce", b"").json(200);
    assert_eq!(slice.quiesce.as_deref(), Some("quiesced"), "it has no guest");
    let slice: SliceJson = served.ask("GET", "/slices/vr", b"").json(200);
    assert_eq!(slice.quiesce.as_deref(), Some("quiesced"));
    let slice: SliceJson = served.ask("POST", "/slices/vr/resume", b"").json(200);
    assert_eq!(slice.quiesce, None);
    served.ask("POST", "/slices/none/quiesce", b"").error(404);
    let heard = served.ask("GET", "/slices/vr/resume", b"");
    heard.error(405);
    assert!(heard.head.contains("allow: POST"), "{}", heard.head);
}

#[test]
fn whether_a_guest_may_choose_is_part_of_a_slice() {
    let served = Served::start();
    let mut body = slice("game", 1.0);
    body["guest_contract"] = json!("within");
    let error = served.send("POST", "/slices", &body).error(422);
    assert_eq!(error.place, "guest_hz");
    body["guest_hz"] = json!({ "min": "30", "max": "60000/1001" });
    let made: SliceJson = served.send("POST", "/slices", &body).json(201);
    let rates = made.guest_hz.unwrap();
    assert_eq!((rates.min.as_str(), rates.max.as_str()), ("30", "60000/1001"));
    assert!(made.guest_contract == "within" && made.asked.is_none() && made.ceiling.is_none());
}

#[test]
fn places_are_used_again() {
    let served = Served::with(&HOST.replace("max_slices = 8", "max_slices = 2"));
    for _ in 0..5 {
        let _: SliceJson = served.send("POST", "/slices", &slice("game", 1.0)).json(201);
        let full = served.send("POST", "/slices", &slice("more", 0.1)).error(409);
        let refused = full.refused.unwrap();
        assert_eq!((refused.kind.as_str(), refused.max_slices), ("full", Some(2)));
        let _: Value = served.ask("DELETE", "/slices/game", b"").json(200);
    }
}

#[test]
fn a_refusal_says_what_is_short_and_what_fits() {
    let served = Served::start();
    let error = served.send("POST", "/slices", &slice("greedy", 9.5)).error(409);
    let refused = error.refused.clone().unwrap();
    assert_eq!(refused.kind, "demand");
    let (demand, interval) = (refused.demand_ms.unwrap(), refused.interval_ms.unwrap());
    assert!((demand - interval - refused.short_ms.unwrap()).abs() < 1e-6 && demand > interval);
    assert!(error.error.contains("too much") && error.mend.contains("budget_ms"), "{error:?}");
    let fits = refused.nearest["budget_ms"].as_f64().unwrap();
    assert!(fits > 4.0 && fits < 9.5, "{fits}");
    assert_eq!(served.names(), ["vr"], "nothing is left of it");
    let _: SliceJson = served.send("POST", "/slices", &slice("modest", fits)).json(201);

    let more = json!({ "contract": { "budget_ms": 9.0 } });
    let error = served.send("PATCH", "/slices/vr", &more).error(409);
    assert!(error.refused.is_some(), "{error:?}");
    let vr: SliceJson = served.ask("GET", "/slices/vr", b"").json(200);
    assert_eq!(
        (&vr.contract["budget_ms"], vr.changing),
        (&json!(2.0), false),
        "the old one is kept"
    );
}

#[test]
fn bad_input_is_named_with_what_would_be_right() {
    let served = Served::start();
    let with = |key: &str, value: Value| {
        let mut body = slice("x", 1.0);
        body["contract"][key] = value;
        body
    };
    let mut unknown = slice("x", 1.0);
    unknown["widht"] = json!(1);
    let mut keyless = slice("x", 1.0);
    keyless[""] = json!(1);
    let mut nameless = slice("x", 1.0);
    nameless.as_object_mut().unwrap().remove("name");
    for (body, place) in [
        (with("bugdet_ms", json!(1.0)), "contract.bugdet_ms"),
        (with("budget_ms", json!("1")), "contract.budget_ms"),
        (with("budget_ms", json!(-1.0)), "contract.budget_ms"),
        (with("refresh_hz", json!("fast")), "contract.refresh_hz"),
        (with("class", json!("royal")), "contract.class"),
        (with("late_latch", json!({ "window_ms": 1.0 })), "contract.late_latch"),
        (with("max_job_ms", json!(0.0)), "contract"),
        (slice("../vr", 1.0), "name"),
        (unknown, "widht"),
        (keyless, "body"),
        (nameless, "body"),
        (json!([]), "body"),
    ] {
        let error = served.send("POST", "/slices", &body).error(422);
        assert_eq!(error.place, place, "{error:?}");
    }
    for (body, place) in [
        (json!({ "contract": { "budget": 1 } }), "contract.budget"),
        (json!({ "contract": { "budget_ms": null } }), "contract"),
        (json!({ "name": "y" }), "name"),
    ] {
        let error = served.send("PATCH", "/slices/vr", &body).error(422);
        assert_eq!(error.place, place, "{error:?}");
    }
    let error = served.ask("POST", "/slices", b"{\"name\": \"x\",").error(400);
    assert!(error.place.starts_with("body, line 1"), "{error:?}");
    served.ask("POST", "/slices", b"").error(400);
    served.ask("POST", "/slices", &slice("x", 1.0).to_string().repeat(2).into_bytes()).error(400);
    served.ask("GET", "/nowhere", b"").error(404);
    let heard = served.ask("PUT", "/slices", b"");
    heard.error(405);
    assert!(heard.head.contains("allow: GET, POST"), "{}", heard.head);
    served.ask("PATCH", "/slices/none", b"{\"contract\":{}}").error(404);
    assert_eq!(served.names(), ["vr"]);
}

#[test]
fn a_slice_that_shows_nothing_has_no_picture() {
    let served = Served::start();
    let error = served.ask("GET", "/slices/vr/scanout.png", b"").error(404);
    assert!(error.error.contains("presented nothing"), "{error:?}");
    served.ask("GET", "/slices/none/scanout.png", b"").error(404);
}

#[test]
fn a_body_that_is_too_long_is_refused_unread() {
    let served = Served::start();
    served.ask("POST", "/slices", &vec![b' '; MAX_BODY + 1]).error(413);
    served.ask("POST", "/slices", &vec![b' '; MAX_BODY]).error(400);
    // A length that is only claimed, and chunks that never end.
    let mut stream = connect(&served.socket);
    stream
        .write_all(b"POST /slices HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n")
        .unwrap();
    hear(&mut stream).error(413);
    let mut stream = connect(&served.socket);
    stream
        .write_all(b"POST /slices HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        .unwrap();
    let chunk = [b"4000\r\n".as_slice(), &[b' '; 0x4000], b"\r\n"].concat();
    while stream.write_all(&chunk).is_ok() {}
    hear(&mut stream).error(413);
}

#[test]
fn clients_that_say_nothing_keep_nobody_out() {
    let served = Served::start();
    // More than are served at once, each of them with half a request.
    let mut silent: Vec<_> = (0..3 * MAX_CONNECTIONS).map(|_| connect(&served.socket)).collect();
    for stream in &mut silent {
        // The oldest have been let go already.
        let _ = stream.write_all(b"GET / HTT");
    }
    let _: HostJson = served.ask("GET", "/", b"").json(200);
    let mut half = connect(&served.socket);
    half.write_all(b"POST /slices HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{").unwrap();
    let _: SliceJson = served.send("POST", "/slices", &slice("game", 1.0)).json(201);
}

#[test]
fn creates_at_the_same_time_never_promise_too_much() {
    let served = Served::with(&HOST.replace("max_slices = 8", "max_slices = 16"));
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let ask = |n: usize| {
            let socket = &served.socket;
            let body = slice(&format!("s{n}"), 2.0).to_string();
            scope.spawn(move || ask(socket, "POST", "/slices", body.as_bytes()).status)
        };
        let asked: Vec<_> = (0..12).map(ask).collect();
        asked.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    let made = statuses.iter().filter(|status| **status == 201).count();
    assert!(statuses.iter().all(|status| [201, 409].contains(status)), "{statuses:?}");
    assert!(made > 0 && made < 12, "{statuses:?}");
    assert_eq!(served.names().len(), made + 1);
    let host: HostJson = served.ask("GET", "/", b"").json(200);
    assert!(host.promised_percent <= 100.0, "{host:?}");
    // Whoever is there was admitted as if they had come one after the other.
    let refused = served.send("POST", "/slices", &slice("late", 2.0)).error(409);
    assert!(refused.refused.is_some());
}

#[test]
fn the_socket_goes_with_the_host_and_a_dead_one_is_replaced() {
    let mut served = Served::start();
    let socket = served.socket.clone();
    // A second host beside a living one is refused.
    let config = HostConfig::parse(HOST, &socket.parent().unwrap().join("../host.toml")).unwrap();
    let renderer = RendererProgram { exe: "none".into(), args: Vec::new() };
    assert!(Host::start(config, renderer).is_err());
    drop(served.host.take());
    assert!(!socket.exists());
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    assert!(socket.exists(), "a dead server's file");
    let config = HostConfig::parse(HOST, &socket.parent().unwrap().join("../host.toml")).unwrap();
    let renderer = RendererProgram { exe: "none".into(), args: Vec::new() };
    let host = Host::start(config, renderer).unwrap();
    let _: HostJson = ask(&socket, "GET", "/", b"").json(200);
    drop(host);
    assert!(!socket.exists());
}

#[test]
fn what_is_no_http_ends_its_own_connection() {
    let served = Served::start();
    for bytes in [b"\x00\xff\r\n\r\n".as_slice(), b"GET\r\n\r\n", &b"a".repeat(100_000)] {
        let mut stream = connect(&served.socket);
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"HTTP/1.1 2"), "{}", String::from_utf8_lossy(&answer));
    }
    let _: HostJson = served.ask("GET", "/", b"").json(200);
}

/// A request's body that is near to one that means something.
fn body() -> impl Strategy<Value = Vec<u8>> {
    let good = slice("x", 1.0).to_string().into_bytes();
    let near = (0..good.len(), any::<u8>(), 0..good.len()).prop_map(move |(at, byte, cut)| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes.truncate(good.len() - cut / 2);
        bytes
    });
    prop_oneof![prop::collection::vec(any::<u8>(), 0..2048), near]
}

#[test]
fn arbitrary_bodies_get_an_answer_in_json() {
    let served = Served::start();
    let mut runner = proptest::test_runner::TestRunner::default();
    let tried = runner.run(&(body(), 0..3usize), |(bytes, which)| {
        let (method, path) =
            [("POST", "/slices"), ("PATCH", "/slices/vr"), ("DELETE", "/slices/none")][which];
        let heard = served.ask(method, path, &bytes);
        if heard.status < 300 {
            // It happened to mean something.
            let made: SliceJson = heard.json(heard.status);
            if method == "POST" {
                let _: Value =
                    served.ask("DELETE", &format!("/slices/{}", made.name), b"").json(200);
            }
        } else {
            prop_assert!((400..500).contains(&heard.status), "{heard:?}");
            heard.error(heard.status);
        }
        Ok(())
    });
    tried.unwrap();
    let _: HostJson = served.ask("GET", "/", b"").json(200);
}
