use super::*;
use crate::devices::virtio::testing::{Driver, Part, RAM, Ring};
use beamline_abi::pci::{command, config};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

const LONG: Duration = Duration::from_mins(1);

fn start(endpoint: Endpoint) -> (Driver, Ring, Ring) {
    let mut d = Driver::new(Console::new(endpoint));
    let (receive, transmit) = up(&mut d);
    (d, receive, transmit)
}

fn up(d: &mut Driver) -> (Ring, Ring) {
    d.agree(u64::MAX);
    let rings = (d.queue(0, 8), d.queue(1, 8));
    d.ready();
    rings
}

fn print(d: &mut Driver, ring: &mut Ring, text: &[u8]) {
    let at = d.bytes(text);
    assert_eq!(d.run(ring, &[Part::Out(at, text.len() as u32)]), 0);
}

fn read(peer: &mut UnixStream, len: usize) -> Vec<u8> {
    peer.set_read_timeout(Some(LONG)).unwrap();
    let mut bytes = vec![0; len];
    peer.read_exact(&mut bytes).unwrap();
    bytes
}

#[test]
fn bytes_go_both_ways_through_a_stream() {
    let (mut peer, ours) = UnixStream::pair().unwrap();
    let (mut d, mut receive, mut transmit) = start(Endpoint::stream(ours).unwrap());
    print(&mut d, &mut transmit, b"login: \x1b[1m\xff");
    assert_eq!(read(&mut peer, 12), b"login: \x1b[1m\xff");
    // What comes before there is a buffer is not lost.
    peer.write_all(b"root\n").unwrap();
    let at = d.room(64);
    assert_eq!(d.run(&mut receive, &[Part::In(at, 3)]), 3);
    assert_eq!(d.look(at, 3), b"roo");
    assert_eq!(d.run(&mut receive, &[Part::In(at, 64)]), 2);
    assert_eq!(d.look(at, 2), b"t\n");
    // A buffer that waits is filled when something comes.
    d.add(&mut receive, &[Part::In(at, 64)]);
    d.kick(&receive);
    peer.write_all(b"x").unwrap();
    assert_eq!(d.wait(&mut receive).1, 1);
    // Nowhere to put it: the buffer is given back and the byte is gone.
    d.add(&mut receive, &[Part::In(RAM, 64)]);
    d.kick(&receive);
    peer.write_all(b"y").unwrap();
    assert_eq!(d.wait(&mut receive).1, 0);
    print(&mut d, &mut transmit, b"on");
    assert_eq!(read(&mut peer, 2), b"on");
}

#[test]
fn a_slow_peer_loses_nothing_and_holds_up_no_reset() {
    let (mut peer, ours) = UnixStream::pair().unwrap();
    let (mut d, _receive, mut transmit) = start(Endpoint::stream(ours).unwrap());
    let text: Vec<u8> = (0..60_000u32).map(|n| (n % 251) as u8).collect();
    let at = d.bytes(&text);
    // Far more than a socket holds: the thread waits for the peer.
    for _ in 0..8 {
        d.add(&mut transmit, &[Part::Out(at, text.len() as u32)]);
    }
    d.kick(&transmit);
    for _ in 0..8 {
        assert_eq!(read(&mut peer, text.len()), text);
    }
    for _ in 0..8 {
        d.wait(&mut transmit);
    }
    for _ in 0..8 {
        d.add(&mut transmit, &[Part::Out(at, text.len() as u32)]);
    }
    d.kick(&transmit);
    d.reset();
    let (_receive, mut transmit) = up(&mut d);
    peer.set_nonblocking(true).unwrap();
    while peer.read(&mut [0; 4096]).is_ok() {}
    peer.set_nonblocking(false).unwrap();
    print(&mut d, &mut transmit, b"the same peer");
    assert_eq!(read(&mut peer, 13), b"the same peer");
}

#[test]
fn a_reset_ends_what_may_not_reach_memory() {
    let (_peer, ours) = UnixStream::pair().unwrap();
    let (mut d, _receive, mut transmit) = start(Endpoint::stream(ours).unwrap());
    let at = d.bytes(b"unheard");
    d.set_config(config::COMMAND, command::MEMORY.into());
    d.add(&mut transmit, &[Part::Out(at, 7)]);
    d.kick(&transmit);
    let (ended, end) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        d.reset();
        let _ = ended.send(d.used(&mut transmit));
    });
    let used = end.recv_timeout(LONG);
    assert_eq!(used, Ok(None), "the thread does not try again and again");
}

#[test]
fn peers_come_and_go_at_a_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("console.sock");
    let output = Output::Socket(path.clone());
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "one that was left behind is in the way");
    let (mut d, mut receive, mut transmit) = start(Endpoint::open(&output).unwrap());
    let e = Endpoint::open(&output).err().expect("it is in use").to_string();
    assert!(e.contains("console.sock") && e.contains("already"), "{e}");
    // Nobody is there: it is dropped, as on a line without a cable.
    print(&mut d, &mut transmit, b"unheard");
    let at = d.room(64);
    for _ in 0..3 {
        let mut peer = UnixStream::connect(&path).unwrap();
        peer.write_all(b"hello").unwrap();
        assert_eq!(d.run(&mut receive, &[Part::In(at, 64)]), 5);
        print(&mut d, &mut transmit, b"welcome");
        assert_eq!(read(&mut peer, 7), b"welcome");
        drop(peer);
        // It has noticed when the next is heard.
    }
    drop(d);
    assert!(!path.exists());
}

#[test]
fn a_file_is_appended_to() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    std::fs::write(&path, "before\n").unwrap();
    let (mut d, mut receive, mut transmit) =
        start(Endpoint::open(&Output::File(path.clone())).unwrap());
    d.add(&mut receive, &[]);
    print(&mut d, &mut transmit, b"one\n");
    print(&mut d, &mut transmit, &vec![b'x'; 10_000]);
    print(&mut d, &mut transmit, b"");
    drop(d);
    let text = std::fs::read(&path).unwrap();
    assert_eq!(text[..11], *b"before\none\n");
    assert!(text[11..].iter().all(|b| *b == b'x'));
    let missing = Output::File(dir.path().join("no/log"));
    assert!(Endpoint::open(&missing).err().expect("no folder").to_string().contains("no/log"));
}

#[test]
fn only_text_goes_to_a_terminal() {
    let shown: Vec<u8> = b"a\x1b]0;x\x07\n\x9b\xc2".iter().map(|b| queue::harmless(*b)).collect();
    assert_eq!(shown, b"a?]0;x?\n??");
}
