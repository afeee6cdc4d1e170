//! Requests that could mean something, mostly.

use crate::input::Input;
use serde_json::{Map, Value, json};

const NAMES: [&str; 8] = ["a", "b", "c", "d", "e", "control", "..", "a%20b/"];
const PATHS: [&str; 8] =
    ["/", "/stats", "/slices", "/slices/a", "/slices/b", "//slices//a", "/x", "*"];
const METHODS: [&str; 8] = ["GET", "POST", "PATCH", "DELETE", "PUT", "HEAD", "OPTIONS", "patch"];
const RATES: [&str; 8] = ["60", "90", "120", "72", "60000/1001", "1/10", "1000", "59.94"];
const SIZES: [&str; 8] = ["64M", "1M", "1G", "4096K", "5000000", "0", "1T", "M"];
const CLASSES: [&str; 4] = ["reserved", "elastic", "background", "royal"];
/// Contracts' keys that are times, ms.
const TIMES: [&str; 5] = ["budget_ms", "max_job_ms", "deadline_ms", "gap_ms", "jitter_ms"];

/// One request with its body.
pub(super) fn write(method: &str, path: &str, body: &[u8]) -> Vec<u8> {
    let head =
        format!("{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// A request that `tag` chooses.
pub(super) fn make(input: &mut Input<'_>, tag: u8) -> Vec<u8> {
    let name = NAMES[input.below(NAMES.len())];
    let slice = format!("/slices/{name}");
    match tag {
        0x40..0x90 => {
            let body = slice_body(input, name).to_string();
            write("POST", "/slices", &damaged(input, body))
        }
        0x90..0xc0 => {
            let body = json!({ "contract": contract(input, false) }).to_string();
            write("PATCH", &slice, &damaged(input, body))
        }
        0xc0..0xd0 => write("DELETE", &slice, input.bytes(8)),
        0xd0..0xd8 => write("GET", &format!("{slice}/scanout.png"), b""),
        0xd8..0xe0 => write("GET", &slice, b""),
        0xe0..0xe8 => {
            // Longer than a body may be, or nearly.
            let len = (64 << 10) - 2 + input.below(4);
            write("POST", "/slices", &vec![input.u8(); len])
        }
        0xe8..0xf0 => chunked(input),
        _ => {
            let (method, path) = (METHODS[input.below(8)], PATHS[input.below(8)]);
            write(method, path, input.bytes(255))
        }
    }
}

/// A time, ms: mostly one that a contract has.
fn time(input: &mut Input<'_>) -> Value {
    match input.u8() {
        tag @ 0..0xc0 => json!(f64::from(tag) / 16.0),
        0xc0..0xe0 => json!(input.number32()),
        0xe0..0xf0 => json!(f64::from(input.number32()) / 1e6),
        0xf0..0xf4 => json!(-1.5),
        0xf4..0xf8 => Value::Null,
        0xf8..0xfc => json!(1e300),
        _ => json!("2"),
    }
}

/// A contract: whole, or some keys of it.
fn contract(input: &mut Input<'_>, whole: bool) -> Map<String, Value> {
    let mut keys = Map::new();
    let which = input.u16();
    let has = |bit: u32| which & 1 << bit != 0;
    if whole {
        keys.insert("refresh_hz".into(), "60".into());
        keys.insert("class".into(), "reserved".into());
        keys.insert("budget_ms".into(), json!(1.0));
        keys.insert("max_job_ms".into(), json!(0.5));
    }
    for (bit, key) in TIMES.into_iter().enumerate() {
        if has(bit as u32) {
            keys.insert(key.into(), time(input));
        }
    }
    if has(5) {
        keys.insert("refresh_hz".into(), RATES[input.below(8)].into());
    }
    if has(6) {
        keys.insert("class".into(), CLASSES[input.below(4)].into());
    }
    if has(7) {
        let latch = json!({ "window_ms": time(input), "budget_ms": time(input) });
        keys.insert("late_latch".into(), if input.u8() < 0xe0 { latch } else { Value::Null });
    }
    if has(8) {
        keys.insert("depth".into(), json!(input.number32()));
    }
    if has(9) {
        keys.insert("weight".into(), json!(input.number32()));
    }
    if has(10) {
        keys.insert("guard".into(), ["deadline", "release"][input.below(2)].into());
    }
    if has(11) {
        keys.insert("sink".into(), ["virtual", "external"][input.below(2)].into());
    }
    if has(12) {
        keys.insert("miss".into(), format!("{}/{}", input.number32(), input.number32()).into());
    }
    if has(13) {
        keys.insert("x".into(), time(input));
    }
    keys
}

/// A slice, mostly one that can be created.
fn slice_body(input: &mut Input<'_>, name: &str) -> Value {
    let mut slice = json!({
        "name": name, "width": 64, "height": 48, "contract": contract(input, true),
    });
    let which = input.u8();
    for (bit, key) in ["width", "height"].into_iter().enumerate() {
        if which & 1 << bit != 0 {
            slice[key] = json!(input.number32());
        }
    }
    for (bit, key) in [(2, "memory"), (3, "display_memory")] {
        if which & 1 << bit != 0 {
            slice[key] = SIZES[input.below(8)].into();
        }
    }
    if which & 0x10 != 0 {
        slice["profile"] = ["display", "render", "x"][input.below(3)].into();
    }
    slice
}

/// A body, sometimes with another byte in it, or cut short.
fn damaged(input: &mut Input<'_>, body: String) -> Vec<u8> {
    let mut bytes = body.into_bytes();
    let tag = input.u8();
    if tag & 0x80 != 0 {
        let at = usize::from(input.u16()) % bytes.len();
        bytes[at] = input.u8();
    }
    if tag & 0x40 != 0 {
        bytes.truncate(usize::from(input.u16()) % bytes.len());
    }
    bytes
}

/// A body in pieces of which the last one says that it is.
fn chunked(input: &mut Input<'_>) -> Vec<u8> {
    let path = PATHS[input.below(8)];
    let mut bytes =
        format!("POST {path} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
            .into_bytes();
    for _ in 0..input.below(4) {
        let piece = input.bytes(255);
        if piece.is_empty() {
            continue;
        }
        bytes.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        bytes.extend_from_slice(piece);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    bytes
}
