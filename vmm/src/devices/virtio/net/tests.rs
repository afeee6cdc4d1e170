use super::*;
use crate::devices::virtio::testing::{Driver, Part, RAM, Ring};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::os::fd::OwnedFd;
use std::sync::Mutex;

/// A tap's stand-in: a socket that keeps frames apart.
struct Socket {
    fd: OwnedFd,
    offloads: Arc<Mutex<Vec<u64>>>,
}

impl Port for Socket {
    fn fd(&self) -> &OwnedFd {
        &self.fd
    }
    fn set_offloads(&self, features: u64) -> io::Result<()> {
        self.offloads.lock().unwrap().push(features);
        Ok(())
    }
}

struct Card {
    d: Driver,
    receive: Ring,
    transmit: Ring,
    /// The host's side.
    wire: OwnedFd,
    counters: Arc<Counters>,
    offloads: Arc<Mutex<Vec<u64>>>,
}

fn card(features: u64) -> Card {
    let (ours, wire) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
    .unwrap();
    rustix::io::ioctl_fionbio(&wire, false).unwrap();
    let offloads = Arc::<Mutex<Vec<u64>>>::default();
    let socket = Socket { fd: ours, offloads: Arc::clone(&offloads) };
    let net = Net::new("net", socket, Mac::derived("vr", 0));
    let counters = net.counters();
    let mut d = Driver::new(net);
    d.agree(features);
    let (receive, transmit) = (d.queue(0, 16), d.queue(1, 16));
    d.ready();
    Card { d, receive, transmit, wire, counters, offloads }
}

fn frame(len: usize, salt: u8) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..len).map(|n| (n % 251) as u8 ^ salt).collect();
    bytes.splice(0..0, [0; 12]);
    bytes
}

impl Card {
    fn send(&mut self, frame: &[u8]) {
        let at = self.d.bytes(frame);
        let first = frame.len() as u32 / 2;
        let rest = frame.len() as u32 - first;
        let parts = [Part::Out(at, first), Part::Out(at + u64::from(first), rest)];
        assert_eq!(self.d.run(&mut self.transmit, &parts), 0);
    }

    fn on_wire(&self) -> Vec<u8> {
        let mut bytes = vec![0; 70_000];
        let len = rustix::io::read(&self.wire, &mut bytes).unwrap();
        bytes.truncate(len);
        bytes
    }

    fn put_on_wire(&self, frame: &[u8]) {
        assert_eq!(rustix::io::write(&self.wire, frame), Ok(frame.len()));
    }
}

#[test]
fn frames_go_both_ways() {
    let mut c = card(u64::MAX);
    for n in 0..20 {
        let out = frame(60 + 70 * usize::from(n), n);
        c.send(&out);
        assert_eq!(c.on_wire(), out);
        let back = frame(1500, !n);
        let at = c.d.room(2048);
        c.d.add(&mut c.receive, &[Part::In(at, 12), Part::In(at + 12, 2036)]);
        c.d.kick(&c.receive);
        c.put_on_wire(&back);
        assert_eq!(c.d.wait(&mut c.receive).1, 1512);
        let seen = c.d.look(at, 1512);
        assert_eq!(seen[10..12], [1, 0], "one buffer");
        assert_eq!(seen[12..], back[12..]);
    }
    assert_eq!((c.counters.received(), c.counters.sent()), (0, 0));
}

#[test]
fn large_frames_are_spread_where_that_was_agreed_on() {
    let mut c = card(u64::MAX);
    let large = frame(60_000, 7);
    c.put_on_wire(&large);
    // Too few buffers: the frame waits.
    let at: Vec<u64> = (0..15).map(|_| c.d.room(4096)).collect();
    for at in &at[..7] {
        c.d.add(&mut c.receive, &[Part::In(*at, 4096)]);
    }
    c.d.kick(&c.receive);
    c.send(&frame(100, 0));
    assert_eq!(c.d.used(&mut c.receive), None);
    assert_eq!(c.d.kick_wanted_at(&c.receive), 7, "the next buffer, not one that is there");
    for at in &at[7..] {
        c.d.add(&mut c.receive, &[Part::In(*at, 4096)]);
    }
    c.d.kick(&c.receive);
    let mut seen = Vec::new();
    for at in &at {
        let (_, len) = c.d.wait(&mut c.receive);
        seen.extend(c.d.look(*at, len as usize));
    }
    assert_eq!(seen[10..12], [15, 0]);
    assert_eq!(seen[12..], large[12..]);

    let mut c = card(!feature::MERGE);
    let at = c.d.room(2048);
    c.d.add(&mut c.receive, &[Part::In(at, 2048)]);
    c.d.kick(&c.receive);
    c.put_on_wire(&large);
    c.put_on_wire(&frame(500, 1));
    assert_eq!(c.d.wait(&mut c.receive).1, 512, "the large one was dropped");
    assert_eq!(c.counters.received(), 1);
}

#[test]
fn frames_that_make_no_sense_are_dropped_and_counted() {
    let mut c = card(!(feature::CSUM | feature::HOST_TSO4 | feature::HOST_TSO6));
    let mut checksum = frame(60, 0);
    checksum[0] = 1;
    let mut segments = frame(60, 0);
    segments[1] = 1;
    let mut unknown = frame(60, 0);
    unknown[1] = 0x77;
    for bad in [&[0; 12][..], &[0; 11], &checksum, &segments, &unknown] {
        c.send(bad);
    }
    let at = c.d.room(0x2_0000);
    c.d.run(&mut c.transmit, &[Part::Out(at, 0x2_0000)]);
    c.d.run(&mut c.transmit, &[Part::Out(RAM - 8, 64)]);
    c.d.run(&mut c.transmit, &[Part::In(at, 64)]);
    assert_eq!(c.counters.sent(), 8);
    let good = frame(60, 3);
    c.send(&good);
    assert_eq!(c.on_wire(), good, "the first frame on the wire");
    // Buffers that are no RAM cost the frame, not the card.
    c.d.add(&mut c.receive, &[Part::In(RAM, 2048)]);
    c.d.add(&mut c.receive, &[Part::In(at, 2048)]);
    c.d.kick(&c.receive);
    c.put_on_wire(&frame(60, 4));
    c.put_on_wire(&frame(60, 5));
    assert_eq!(c.d.wait(&mut c.receive).1, 0);
    assert_eq!(c.d.wait(&mut c.receive).1, 72);
    assert_eq!(c.counters.received(), 1);
}

#[test]
fn offloads_are_what_was_agreed_on() {
    let c = card(u64::MAX);
    let all = c.offloads.lock().unwrap()[0];
    assert_eq!(all & feature::OFFERED, feature::OFFERED);
    let mut d = c.d;
    for inconsistent in [feature::HOST_TSO4, feature::GUEST_TSO6 | feature::CSUM] {
        assert!(!d.negotiate(1 << 32 | inconsistent));
    }
    assert!(d.negotiate(1 << 32 | feature::GUEST_TSO6 | feature::GUEST_CSUM));
    let mut config = [0; 8];
    d.device_config(0, &mut config);
    assert_eq!(config[..6], Mac::derived("vr", 0).octets());
    assert_eq!(config[6..], [1, 0]);
}

#[test]
fn a_full_wire_holds_up_frames_but_no_reset() {
    let mut c = card(u64::MAX);
    let data = frame(60_000, 9);
    let at = c.d.bytes(&data);
    for _ in 0..16 {
        c.d.add(&mut c.transmit, &[Part::Out(at, data.len() as u32)]);
    }
    c.d.kick(&c.transmit);
    for _ in 0..16 {
        assert_eq!(c.on_wire(), data);
    }
    for _ in 0..16 {
        c.d.wait(&mut c.transmit);
        c.d.add(&mut c.transmit, &[Part::Out(at, data.len() as u32)]);
    }
    c.d.kick(&c.transmit);
    c.d.reset();
}

#[test]
fn a_wire_that_is_gone_does_not_spin_and_the_guest_goes_on() {
    let mut c = card(u64::MAX);
    drop(std::mem::replace(&mut c.wire, crate::testing::eventfd()));
    let at = c.d.bytes(&frame(60, 0));
    for n in 1..=20 {
        c.d.run(&mut c.transmit, &[Part::Out(at, 72)]);
        assert_eq!(c.counters.sent(), n);
    }
}

#[test]
fn addresses() {
    let a = Mac::derived("vr", 0);
    assert_eq!(a, Mac::derived("vr", 0));
    assert_ne!(a, Mac::derived("vr", 1));
    assert_ne!(a, Mac::derived("game", 0));
    assert_eq!(a.octets()[0] & 3, 2, "of one station, locally administered");
    assert_eq!(a.to_string().parse(), Ok(a));
    for wrong in [
        "",
        "02:00:00:00:00",
        "02:00:00:00:00:00:00",
        "01:00:00:00:00:00",
        "+2:00:00:00:00:01",
        "2:0:0:0:0:1",
        "00:00:00:00:00:00",
        "02-00-00-00-00-01",
        "02:00:00:00:00:0g",
    ] {
        assert!(wrong.parse::<Mac>().is_err(), "{wrong}");
    }
}

/// A real tap in a network of its own; frames are seen through a packet socket on it.
#[test]
fn a_tap_carries_frames() {
    std::thread::spawn(|| {
        if let Err(e) = tap::own_network() {
            println!("skip: a_tap_carries_frames: no network namespace of its own: {e}");
            return;
        }
        let tap = match tap::Tap::open(Some("beamtest")) {
            Ok(tap) => tap,
            Err(e) => {
                println!("skip: a_tap_carries_frames: {e}");
                return;
            }
        };
        assert_eq!(tap.name(), "beamtest");
        let busy = tap::Tap::open(Some("beamtest")).expect_err("one user at a time").to_string();
        assert!(busy.contains("beamtest") && busy.contains("another"), "{busy}");
        assert!(tap::Tap::open(None).unwrap().name().starts_with("beam"));
        assert!(tap::Tap::open(Some("a/b")).unwrap_err().to_string().contains("name"));
        let wire = tap::packet_socket("beamtest").unwrap();
        let net = Net::new("net", tap, Mac::derived("vr", 0));
        let mut d = Driver::new(net);
        d.agree(u64::MAX);
        let (mut receive, mut transmit) = (d.queue(0, 16), d.queue(1, 16));
        d.ready();
        // An experimental EtherType, so that nobody answers.
        let mut out = frame(200, 5);
        out[12..18].copy_from_slice(&[0xff; 6]);
        out[24..26].copy_from_slice(&[0x88, 0xb5]);
        let at = d.bytes(&out);
        d.run(&mut transmit, &[Part::Out(at, out.len() as u32)]);
        let mut bytes = [0; 2048];
        loop {
            let len = rustix::io::read(&wire, &mut bytes).unwrap();
            if bytes[12..14] == [0x88, 0xb5] {
                assert_eq!(bytes[..len], out[12..]);
                break;
            }
        }
        let at = d.room(2048);
        out[18] = 0x0a;
        assert_eq!(rustix::io::write(&wire, &out[12..]), Ok(200));
        loop {
            d.add(&mut receive, &[Part::In(at, 2048)]);
            d.kick(&receive);
            let (_, len) = d.wait(&mut receive);
            let seen = d.look(at, len as usize);
            // The kernel has things of its own to say on a new interface.
            if seen[24..26] == [0x88, 0xb5] {
                assert_eq!(seen[12..], out[12..]);
                break;
            }
        }
    })
    .join()
    .unwrap();
}
