use super::*;
use crate::devices::virtio::testing::{Driver, Part, RAM, Ring};
use std::fs::File;
use std::io::Write;

fn start(input: Input) -> (Driver, Ring, Ring) {
    let mut d = Driver::new(input);
    d.agree(u64::MAX);
    let rings = (d.queue(0, 16), d.queue(1, 16));
    d.ready();
    (d, rings.0, rings.1)
}

/// Selects as Linux's driver does, and returns what there is.
fn selected(d: &mut Driver, select: u8, subsel: u8) -> Vec<u8> {
    d.set_device_config(0, &[select]);
    d.set_device_config(1, &[subsel]);
    let mut size = [0];
    d.device_config(2, &mut size);
    let mut data = vec![0; size[0].into()];
    d.device_config(8, &mut data);
    data
}

fn key(code: u16, value: i32) -> Event {
    Event { kind: 1, code, value }
}

/// Buffers for `count` events.
fn buffers(d: &mut Driver, ring: &mut Ring, count: usize) -> Vec<u64> {
    let at: Vec<u64> = (0..count).map(|_| d.room(8)).collect();
    for at in &at {
        d.add(ring, &[Part::In(*at, 8)]);
    }
    d.kick(ring);
    at
}

fn event(bytes: &[u8]) -> Event {
    Event {
        kind: u16::from_le_bytes([bytes[0], bytes[1]]),
        code: u16::from_le_bytes([bytes[2], bytes[3]]),
        value: i32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
    }
}

fn received(d: &Driver, ring: &mut Ring, at: &[u64]) -> Vec<Event> {
    at.iter()
        .map(|at| {
            assert_eq!(d.wait(ring).1, 8);
            event(&d.look(*at, 8))
        })
        .collect()
}

#[test]
fn a_device_says_what_it_can_do() {
    let bit = |bits: &[u8], n: usize| bits.get(n / 8).is_some_and(|b| b & 1 << (n % 8) != 0);
    for (description, name, key, not, axis) in [
        (kind::keyboard(), "Beamline keyboard", 30, 0x110, None),
        (kind::mouse(), "Beamline mouse", 0x110, 30, None),
        (kind::tablet(), "Beamline tablet", 0x110, 30, Some((1, 0, 0x7fff))),
        (kind::gamepad(), "Beamline gamepad", 0x130, 0x110, Some((3, -0x8000, 0x7fff))),
    ] {
        let (mut d, _, _) = start(Input::new(description).unwrap());
        assert_eq!(selected(&mut d, 1, 0), name.as_bytes());
        assert_eq!(selected(&mut d, 3, 0).len(), 8);
        let keys = selected(&mut d, 0x11, 1);
        assert!(bit(&keys, key) && !bit(&keys, not), "{name}");
        match axis {
            Some((code, min, max)) => {
                let info = selected(&mut d, 0x12, code);
                assert_eq!(info.len(), 20);
                assert_eq!(info[..4], i32::to_le_bytes(min));
                assert_eq!(info[4..8], i32::to_le_bytes(max));
                assert!(bit(&selected(&mut d, 0x11, 3), code.into()));
            }
            None => assert!(selected(&mut d, 0x11, 3).is_empty()),
        }
        for (select, subsel) in [(0, 0), (2, 0), (0x11, 0xff), (0x12, 0x30), (0xff, 0)] {
            assert!(selected(&mut d, select, subsel).is_empty());
        }
    }
}

#[test]
fn reports_reach_the_guest_whole_and_in_order() {
    let input = Input::new(kind::keyboard()).unwrap();
    let sender = input.sender();
    sender.send(&[key(1, 1)]).unwrap();
    let (mut d, mut events, mut status) = start(input);
    // That was before there was a driver.
    let at = buffers(&mut d, &mut events, 5);
    sender.send(&[key(30, 1), key(42, 1)]).unwrap();
    sender.send(&[key(30, 0)]).unwrap();
    let seen = received(&d, &mut events, &at);
    assert_eq!(seen, [key(30, 1), key(42, 1), Event::END, key(30, 0), Event::END]);
    // Without buffers events wait, and are not lost.
    sender.send(&[key(31, -7)]).unwrap();
    let at = buffers(&mut d, &mut events, 2);
    assert_eq!(received(&d, &mut events, &at), [key(31, -7), Event::END]);
    // Buffers that are too small or no RAM are given back; the event goes to the next.
    sender.send(&[key(32, 1)]).unwrap();
    let small = d.room(8);
    d.add(&mut events, &[Part::In(small, 7)]);
    d.add(&mut events, &[Part::In(RAM, 8)]);
    d.add(&mut events, &[Part::Out(small, 8)]);
    d.kick(&events);
    for _ in 0..3 {
        assert_eq!(d.wait(&mut events).1, 0);
    }
    let at = buffers(&mut d, &mut events, 2);
    assert_eq!(received(&d, &mut events, &at), [key(32, 1), Event::END]);
    let led = d.bytes(&[0x11, 0, 0, 0, 1, 0, 0, 0]);
    assert_eq!(d.run(&mut status, &[Part::Out(led, 8)]), 0);
}

#[test]
fn a_guest_that_takes_nothing_costs_a_bounded_amount() {
    let input = Input::new(kind::mouse()).unwrap();
    let sender = input.sender();
    let (mut d, mut events, _) = start(input);
    let mut sent = 0;
    while sender.send(&[key(0x110, sent)]).is_ok() {
        sent += 1;
        assert!(sent < 2000);
    }
    assert_eq!(sender.send(&[key(1, 1); 2000]), Err(NoRoom));
    for n in 0..sent {
        let at = buffers(&mut d, &mut events, 2);
        assert_eq!(received(&d, &mut events, &at), [key(0x110, n), Event::END]);
        // Room enough for the whole test.
        d.forget(at[0]);
    }
    sender.send(&[key(0x111, 1)]).unwrap();
}

#[test]
fn a_hosts_device_passes_on_whole_reports() {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let mut host = File::from(writer);
    let mut record = |event: Event| {
        let mut bytes = vec![0xee; 16];
        bytes.extend(event.bytes());
        host.write_all(&bytes).unwrap();
    };
    let description = Description { name: "a pad".into(), ..kind::gamepad() };
    let evdev = Evdev::from_pipe(reader, description);
    let (mut d, mut events, _) = start(Input::evdev(evdev).unwrap());
    assert_eq!(selected(&mut d, 1, 0), b"a pad");
    let at = buffers(&mut d, &mut events, 5);
    record(key(0x130, 1));
    record(Event { kind: 3, code: 0, value: -300 });
    record(Event::END);
    // The kernel dropped some: what there is of that report is not passed on.
    record(key(0x131, 1));
    record(Event { kind: 0, code: 3, value: 0 });
    record(key(0x133, 1));
    record(Event::END);
    // Nor is one that never seems to end.
    for n in 0..200 {
        record(key(0x134, n));
    }
    record(Event::END);
    record(key(0x130, 0));
    record(Event::END);
    let axis = Event { kind: 3, code: 0, value: -300 };
    let seen = received(&d, &mut events, &at);
    assert_eq!(seen, [key(0x130, 1), axis, Event::END, key(0x130, 0), Event::END]);
    // It is unplugged; the sender goes on.
    drop(host);
    let e = Evdev::open(std::path::Path::new("/dev/null")).expect_err("not one");
    assert!(e.to_string().contains("/dev/null"));
}
