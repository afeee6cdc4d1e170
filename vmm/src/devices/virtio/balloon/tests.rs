use super::*;
use crate::Gpa;
use crate::devices::virtio::testing::{Driver, HIGH, HIGH_RAM, Part, RAM, Ring};
use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion};

fn start() -> (Driver, Target, [Ring; 3]) {
    let balloon = Balloon::new();
    let target = balloon.target();
    let mut d = Driver::new(balloon);
    d.agree(u64::MAX);
    let rings = [d.queue(0, 8), d.queue(1, 8), d.queue(2, 8)];
    d.ready();
    (d, target, rings)
}

/// Bytes of the region at `at` that the host has memory for.
fn resident(d: &Driver, at: u64) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let region = d.memory.find_region(Gpa(at)).unwrap();
    region.file_offset().unwrap().file().metadata().unwrap().blocks() * 512
}

fn fill(d: &Driver, at: u64, len: usize) {
    d.memory.write_slice(&vec![0x5a; len], Gpa(at)).unwrap();
}

#[test]
fn pages_given_up_are_freed_and_no_others() {
    let (mut d, _, [mut inflate, mut deflate, _]) = start();
    let base = 4 << 20;
    fill(&d, base, 16 * 4096);
    let numbers: Vec<u8> = [1u32, 2, 3, 9, 7, 6, 0xffff_ffff, (RAM / 4096) as u32]
        .iter()
        .map(|n| if *n < 16 { n + (base / 4096) as u32 } else { *n })
        .flat_map(u32::to_le_bytes)
        .collect();
    let at = d.bytes(&numbers);
    let before = resident(&d, base);
    d.run(&mut inflate, &[Part::Out(at, numbers.len() as u32)]);
    assert_eq!(before - resident(&d, base), 6 * 4096);
    for page in 0..16 {
        let given = [1, 2, 3, 6, 7, 9].contains(&page);
        assert_eq!(d.look(base + page * 4096, 1)[0], if given { 0 } else { 0x5a }, "{page}");
    }
    assert_eq!(d.run(&mut deflate, &[Part::Out(at, 4)]), 0);
    assert_eq!(d.run(&mut inflate, &[Part::Out(RAM, 4)]), 0);
    assert_eq!(d.run(&mut inflate, &[Part::In(at, 4)]), 0);
}

#[test]
fn free_pages_that_are_reported_are_freed() {
    let (mut d, _, [_, _, mut reporting]) = start();
    fill(&d, HIGH, HIGH_RAM as usize);
    let before = resident(&d, HIGH);
    // Whole pages only, and only where all of it is one region's.
    d.run(
        &mut reporting,
        &[Part::In(HIGH + 100, 3 * 4096), Part::In(HIGH + HIGH_RAM - 4096, 8192)],
    );
    assert_eq!(before - resident(&d, HIGH), 2 * 4096);
    d.run(&mut reporting, &[Part::In(u64::MAX - 4095, 4096), Part::In(RAM, 1 << 30)]);
    d.run(&mut reporting, &[Part::Out(HIGH + 65536, 65536)]);
    assert_eq!(before - resident(&d, HIGH), 2 * 4096);
    // Looking at them makes them resident again.
    assert_eq!(d.look(HIGH + 4095, 2), [0x5a, 0]);
    assert_eq!(d.look(HIGH + 3 * 4096 - 1, 2), [0, 0x5a]);
}

#[test]
fn a_target_reaches_the_driver_and_its_answer_comes_back() {
    let (mut d, target, _) = start();
    target.set(512);
    d.wait_vector(0);
    let mut config = [0; 8];
    d.device_config(0, &mut config);
    assert_eq!(config, [0, 2, 0, 0, 0, 0, 0, 0]);
    d.set_device_config(4, &300u32.to_le_bytes());
    d.set_device_config(0, &9u32.to_le_bytes());
    d.set_device_config(5, &[9]);
    assert_eq!(target.actual(), 300);
    d.device_config(0, &mut config);
    assert_eq!(config, [0, 2, 0, 0, 44, 1, 0, 0]);
    d.reset();
    assert_eq!(target.actual(), 0);
    // Nobody is there to be told.
    target.set(1);
}
