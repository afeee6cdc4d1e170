//! What is asked over Unix sockets: the host's control interface and QEMU's.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Bounds each answer.
const PATIENCE: Duration = Duration::from_mins(1);

fn connect(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Status and body of an HTTP request.
pub(crate) fn get(socket: &Path, path: &str) -> (u16, Vec<u8>) {
    let mut stream = connect(socket);
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = BufReader::new(stream);
    let mut line = String::new();
    answer.read_line(&mut line).unwrap();
    let status = line.split(' ').nth(1).and_then(|s| s.parse().ok());
    let status = status.unwrap_or_else(|| panic!("no HTTP answer: {line:?}"));
    let mut length = None;
    loop {
        line.clear();
        answer.read_line(&mut line).unwrap();
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().ok();
        }
    }
    let mut body = Vec::new();
    answer.take(length.unwrap_or(u64::MAX)).read_to_end(&mut body).unwrap();
    (status, body)
}

/// Has QEMU write what its only display shows into a PNG file.
pub(crate) fn screendump(qmp: &Path, file: &Path) {
    let arguments = json!({ "filename": file, "format": "png" });
    execute(qmp, &[json!({ "execute": "screendump", "arguments": arguments })]);
}

/// Presses keys of QEMU's keyboard, one after the other, by their names in QEMU.
pub(crate) fn press(qmp: &Path, keys: &[&str]) {
    let event = |key: &str, down: bool| {
        let key = json!({ "type": "qcode", "data": key });
        json!({ "type": "key", "data": { "down": down, "key": key } })
    };
    // A report for each.
    let send = |event| json!({ "execute": "input-send-event", "arguments": { "events": [event] } });
    let both = |key: &&str| [event(key, true), event(key, false)].map(send);
    execute(qmp, &keys.iter().flat_map(both).collect::<Vec<_>>());
}

/// Has QEMU do things, one after the other.
fn execute(qmp: &Path, commands: &[Value]) {
    let mut stream = connect(qmp);
    let mut answers = BufReader::new(stream.try_clone().unwrap()).lines();
    let ready = json!({ "execute": "qmp_capabilities" });
    for command in std::iter::once(&ready).chain(commands) {
        writeln!(stream, "{command}").unwrap();
        // Greeting and events may come before.
        loop {
            let line = answers.next().expect("QEMU answers").unwrap();
            let answer: Value = serde_json::from_str(&line).unwrap();
            assert!(answer.get("error").is_none(), "{command}: {answer}");
            if answer.get("return").is_some() {
                break;
            }
        }
    }
}
