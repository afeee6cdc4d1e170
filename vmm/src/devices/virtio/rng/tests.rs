use super::*;
use crate::devices::virtio::testing::{Driver, Part, RAM};

#[test]
fn buffers_are_filled_with_different_bytes() {
    let mut d = Driver::new(Rng);
    d.agree(u64::MAX);
    let mut ring = d.queue(0, 8);
    d.ready();
    let at = d.room(8192);
    assert_eq!(d.run(&mut ring, &[Part::In(at, 64)]), 64);
    let first = d.look(at, 65);
    assert_eq!(first[64], 0, "no more than was asked for");
    assert_eq!(d.run(&mut ring, &[Part::In(at, 64)]), 64);
    assert_ne!(first[..64], d.look(at, 64)[..]);
    let len = d.run(&mut ring, &[Part::In(at, 8192)]);
    assert!(len > 64 && len <= 8192);
    assert!(d.look(at, len as usize).iter().rev().take(32).any(|b| *b != 0));
}

#[test]
fn nothing_is_written_where_it_cannot_be() {
    let mut d = Driver::new(Rng);
    d.agree(u64::MAX);
    let mut ring = d.queue(0, 8);
    d.ready();
    let at = d.room(64);
    assert_eq!(d.run(&mut ring, &[Part::Out(at, 64)]), 0);
    assert_eq!(d.run(&mut ring, &[Part::In(RAM, 64)]), 0);
    assert_eq!(d.look(at, 64), [0; 64]);
    assert_eq!(d.run(&mut ring, &[Part::In(at, 64)]), 64);
}
