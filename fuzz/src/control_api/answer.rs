//! What a host answers, and whether that is what has happened.

use super::request;
use beamline_mdev::host::api::fuzz::Door;
use beamline_mdev::host::api::json::{ErrorJson, HostJson, SliceJson, SlicesJson};
use serde_json::Value;
use std::collections::BTreeMap;

/// The statuses that docs/control.md names, except those of a host that is slow or broken, or ends.
const STATUSES: [u16; 8] = [200, 201, 400, 404, 405, 409, 413, 422];
/// What is no HTTP is answered with one of these, and nothing more.
const BARE: [u16; 4] = [400, 414, 431, 505];
/// Slices that there is room for.
const PLACES: usize = 4;

/// What a host shows of itself, without what changes by itself.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Picture {
    /// By name.
    pub(super) slices: BTreeMap<String, Value>,
    promised_percent: f64,
    proof: String,
}

/// An answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    head: String,
    body: Vec<u8>,
}

impl Picture {
    pub(super) fn of(door: &Door) -> Self {
        let get = |path| {
            let answer = Answer::read(&door.say(&request::write("GET", path, b"")));
            let answer = answer.expect("a host answers");
            assert_eq!(answer.status, 200, "{answer:?}");
            answer.body
        };
        let all: SlicesJson = serde_json::from_slice(&get("/slices")).expect("as documented");
        let host: HostJson = serde_json::from_slice(&get("/")).expect("as documented");
        let listed = all.slices.len();
        let slices: BTreeMap<_, _> =
            all.slices.iter().map(|slice| (slice.name.clone(), lasting(slice))).collect();
        assert!(slices.len() == listed && listed == host.slices && listed <= PLACES);
        assert!((0.0..=100.0).contains(&host.promised_percent), "{host:?}");
        for slice in &all.slices {
            assert!(slice.pacer.exists() && slice.gpu.exists(), "{slice:?} has no sockets");
        }
        Self { slices, promised_percent: host.promised_percent, proof: host.proof }
    }
}

/// What only a request changes. The proof is that of the whole host.
fn lasting(slice: &SliceJson) -> Value {
    let SliceJson { name, width, height, memory, contract, phase_ms, pacer, gpu, .. } = slice;
    serde_json::json!([name, width, height, memory, contract, phase_ms, pacer, gpu])
}

impl Answer {
    /// `None`: nothing was said.
    pub(super) fn read(said: &[u8]) -> Option<Self> {
        // A client that asks for it is told to go on first.
        let said = said.strip_prefix(b"HTTP/1.1 100 Continue\r\n\r\n").unwrap_or(said);
        if said.is_empty() {
            return None;
        }
        let end = said.windows(4).position(|w| w == b"\r\n\r\n").expect("an answer has a head");
        let head = String::from_utf8(said[..end].to_vec()).expect("a head is text");
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status");
        Some(Self { status, head: head.to_ascii_lowercase(), body: said[end + 4..].to_vec() })
    }

    /// Whether it says that what was asked for is done.
    pub(super) fn is_done(&self) -> bool {
        self.status < 300
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    fn json<T: serde::de::DeserializeOwned>(&self) -> T {
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Looks whether it keeps to the documented form and is true.
    pub(super) fn check(&self, before: &Picture, after: &Picture) {
        let len = self.header("content-length").map(|len| len.parse().expect("a number"));
        if self.body.is_empty() {
            // Nothing is said where no body may be (HEAD), or where it was no HTTP.
            let head = [404, 405].contains(&self.status) && len > Some(0);
            assert!(head || BARE.contains(&self.status), "{self:?}");
            return;
        }
        assert_eq!(len, Some(self.body.len()), "one answer: {self:?}");
        assert!(STATUSES.contains(&self.status), "{self:?}");
        match self.status {
            201 => self.created(before, after),
            200 => self.done(before, after),
            _ => {
                let said: ErrorJson = self.json();
                let parts = [&said.error, &said.place, &said.mend];
                assert!(parts.iter().all(|part| !part.is_empty()), "{said:?}");
                assert_eq!(self.header("allow").is_some(), self.status == 405, "{self:?}");
                let retry = self.header("retry-after").is_some();
                assert_eq!(retry, said.retry_after_ms.is_some(), "{self:?}");
            }
        }
    }

    /// One slice more, and it is the one that is shown.
    fn created(&self, before: &Picture, after: &Picture) {
        let made: SliceJson = self.json();
        let name = &made.name;
        assert!(!before.slices.contains_key(name), "{name} was there");
        assert_eq!(after.slices.get(name), Some(&lasting(&made)), "{name}");
        assert_eq!(after.slices.len(), before.slices.len() + 1);
        unchanged(before, after, name);
    }

    /// One slice less; or one slice has become what is shown; or nothing has happened.
    fn done(&self, before: &Picture, after: &Picture) {
        if self.header("content-type") == Some("image/png") {
            assert_eq!(after, before, "a picture changes nothing");
            return;
        }
        let said: Value = self.json();
        if let Some(name) = said.get("removed") {
            let name = name.as_str().expect("a name");
            assert!(before.slices.contains_key(name), "{name} was not there");
            assert!(!after.slices.contains_key(name), "{name} is still there");
            unchanged(before, after, name);
        } else if said.get("contract").is_some() {
            let shown: SliceJson = self.json();
            assert_eq!(after.slices.get(&shown.name), Some(&lasting(&shown)));
            assert!(before.slices.contains_key(&shown.name));
            unchanged(before, after, &shown.name);
        } else {
            assert_eq!(after, before, "to look changes nothing");
        }
    }
}

/// Every slice but `name` is as it was.
fn unchanged(before: &Picture, after: &Picture, name: &str) {
    let others = |picture: &Picture| -> Vec<Value> {
        picture.slices.iter().filter(|(n, _)| *n != name).map(|(_, v)| v.clone()).collect()
    };
    assert_eq!(others(after), others(before), "others than {name} have changed");
}
