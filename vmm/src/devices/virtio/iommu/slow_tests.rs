//! In front of a view whose server is slow: what waits for it does so for one request.

use super::tests::{A, words};
use super::*;
use crate::devices::virtio::testing::{Driver, Part, Ring};
use std::sync::TryLockError;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// Says that it is to show something, and does so when it may.
struct Slow {
    asked: Sender<()>,
    go: Receiver<()>,
}

impl View for Slow {
    fn show_all(&mut self) -> Result<(), ViewError> {
        Ok(())
    }

    fn show(&mut self, _: &Mapping) -> Result<(), ViewError> {
        let _ = self.asked.send(());
        // Either way: it may go on.
        let _ = self.go.recv();
        Ok(())
    }

    fn hide(&mut self, _: &Mapping) -> Result<(), ViewError> {
        Ok(())
    }

    fn hide_all(&mut self) -> Result<(), ViewError> {
        Ok(())
    }
}

struct Busy {
    driver: Driver,
    space: Handle,
    /// One for each mapping that was to be shown.
    asked: Receiver<()>,
    /// Without it all are shown at once.
    go: Sender<()>,
}

/// Makes a request available.
fn add(driver: &mut Driver, ring: &mut Ring, request: &[u8]) {
    let from = driver.bytes(request);
    let to = driver.room(4);
    driver.add(ring, &[Part::Out(from, request.len() as u32), Part::In(to, 4)]);
}

/// A device that carries out the first of 8 requests.
fn busy() -> Busy {
    let (asked, was_asked) = channel();
    let (go, may_go) = channel();
    let iommu = Iommu::new(vec![(A, Box::new(Slow { asked, go: may_go }))]);
    let space = iommu.space.clone();
    let mut driver = Driver::new(iommu);
    driver.agree(u64::MAX);
    let mut ring = driver.queue(0, 64);
    driver.ready();
    add(&mut driver, &mut ring, &[words(1, &[1, A, 0]), vec![0; 4]].concat());
    for page in 0..8u64 {
        let mut map = words(3, &[1]);
        let (first, last) = (page << 12, (page << 12) + 0xfff);
        map.extend([first, last, first].iter().flat_map(|v| v.to_le_bytes()));
        map.extend(1u32.to_le_bytes());
        add(&mut driver, &mut ring, &map);
    }
    driver.kick(&ring);
    was_asked.recv().unwrap();
    Busy { driver, space, asked: was_asked, go }
}

/// Waits for what the other thread does, and for no longer than a minute.
fn until(done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() && start.elapsed() < Duration::from_mins(1) {
        std::thread::yield_now();
    }
}

#[test]
fn a_reset_waits_for_one_request() {
    let Busy { mut driver, asked, go, .. } = busy();
    let shared = driver.function.shared();
    let opener = std::thread::spawn(move || {
        until(|| !shared.may_serve());
        drop(go);
    });
    driver.reset();
    opener.join().unwrap();
    assert_eq!(asked.try_iter().count(), 0, "the other 7 are not carried out");
}

#[test]
fn whoever_waits_for_the_tables_waits_for_one_request() {
    let Busy { driver, space, asked, go } = busy();
    let waited_for = space.clone();
    let opener = std::thread::spawn(move || {
        until(|| matches!(waited_for.0.next.try_lock(), Err(TryLockError::WouldBlock)));
        drop(go);
    });
    let guard = space.lock();
    assert_eq!(asked.try_iter().count(), 0, "the other 7 come later");
    drop(guard);
    opener.join().unwrap();
    for _ in 0..7 {
        asked.recv().unwrap();
    }
    drop(driver);
}
