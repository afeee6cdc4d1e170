//! The transport with a device that echoes: what it reads it writes back, inverted.

use super::*;
use crate::devices::virtio::testing::{Driver, HIGH, HIGH_RAM, Part, RAM, memory, until_threads};
use crate::devices::virtio::{Chain, Kind};
use beamline_abi::virtio_pci::{NO_VECTOR, cap, common, feature, status};
use proptest::prelude::*;
use std::sync::Mutex;
use vm_memory::Bytes;

/// A feature bit of the device.
const COLOUR: u64 = 1 << 3;

#[derive(Default)]
struct Counts {
    started: usize,
    reset: usize,
    live: usize,
}

/// The echoing device. Its thread has a name of its own per test.
struct Echo {
    counts: Arc<Mutex<Counts>>,
    config: [u8; 8],
}

struct Echoing {
    queue: VirtQueue,
    memory: Arc<GuestMemoryMmap>,
    chain: Chain,
    counts: Arc<Mutex<Counts>>,
}

impl Serve for Echoing {
    fn kick(&mut self, queue: usize) {
        assert!(queue < 2);
        let memory = &self.memory;
        self.queue.serve(&mut self.chain, |chain| {
            let len = chain.readable().min(chain.writable()).min(1 << 16);
            let mut data = vec![0; len as usize];
            if chain.read(memory, 0, &mut data).is_err() {
                return 0;
            }
            for byte in &mut data {
                *byte = !*byte;
            }
            chain.write(memory, 0, &data).map_or(0, |()| len as u32)
        });
    }
}

impl Drop for Echoing {
    fn drop(&mut self) {
        self.counts.lock().unwrap().live -= 1;
    }
}

impl DeviceModel for Echo {
    fn kind(&self) -> Kind {
        Kind::Rng
    }
    fn features(&self) -> u64 {
        COLOUR | 1 << 30
    }
    fn queue_sizes(&self) -> &[u16] {
        &[16, 8]
    }
    fn config_len(&self) -> u32 {
        8
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::super::read_space(&self.config, offset, data);
    }
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let Some(at) = self.config.get_mut(offset as usize..) {
            at.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
        }
    }
    fn activate(&mut self, mut start: Activation) -> Result<Box<dyn Serve>, DeviceError> {
        let queue = start.need(0)?;
        let mut counts = self.counts.lock().unwrap();
        counts.started += 1;
        counts.live += 1;
        let (memory, counts) = (start.memory, Arc::clone(&self.counts));
        Ok(Box::new(Echoing { queue, memory, chain: Chain::default(), counts }))
    }
    fn reset(&mut self) {
        self.counts.lock().unwrap().reset += 1;
    }
}

fn echo() -> (Driver, Arc<Mutex<Counts>>) {
    let counts = Arc::<Mutex<Counts>>::default();
    let device = Echo { counts: Arc::clone(&counts), config: *b"beamline" };
    (Driver::new(device), counts)
}

fn named(label: &str) -> (Driver, Arc<Mutex<Counts>>) {
    let counts = Arc::<Mutex<Counts>>::default();
    let device = Echo { counts: Arc::clone(&counts), config: *b"beamline" };
    let memory = memory();
    let transport = Transport::new(label.into(), Box::new(device), Arc::clone(&memory)).unwrap();
    (Driver::over(transport, memory), counts)
}

#[test]
fn a_driver_finds_the_device() {
    let (mut d, _) = echo();
    assert_eq!(d.config(0), 0x1044_1af4);
    assert_eq!(d.config(8), 0x00ff_0001);
    assert_eq!(d.offered() & (COLOUR | feature::VERSION_1), COLOUR | feature::VERSION_1);
    assert_eq!(d.offered() & 1 << 30, 0, "the transport's bits are not the device's to offer");
    assert_eq!(d.get(common::NUM_QUEUES, 2), 2);
    let mut config = [0; 10];
    d.device_config(0, &mut config);
    assert_eq!(&config, b"beamline\0\0");
    d.set_device_config(6, b"NEver");
    d.device_config(0, &mut config);
    assert_eq!(&config, b"beamliNE\0\0");
}

#[test]
fn buffers_go_there_and_back() {
    for mask in [u64::MAX, COLOUR] {
        let (mut d, _) = echo();
        d.agree(mask);
        let mut ring = d.queue(0, 8);
        d.ready();
        for n in 0..100u8 {
            let data = vec![n; 3000];
            let (out, back) = (d.bytes(&data), d.room(4096));
            let parts = [Part::Out(out, 1000), Part::Out(out + 1000, 2000), Part::In(back, 4096)];
            assert_eq!(d.run(&mut ring, &parts), 3000);
            assert_eq!(d.look(back, 3001), [vec![!n; 3000], vec![0]].concat());
        }
        assert_eq!(d.isr(), 1);
        assert_eq!(d.isr(), 0, "reading clears it");
    }
}

#[test]
fn kicks_that_trap_are_served_too() {
    let (mut d, _) = echo();
    d.function.unmap(&mut d.wiring, 0);
    assert!(d.wiring.bells.is_empty(), "nothing listens where the BAR was");
    d.wiring.no_bells = true;
    d.function.map(&mut d.wiring, 0, Gpa(0xc000_0000));
    d.agree(u64::MAX);
    let mut ring = d.queue(0, 8);
    d.ready();
    let at = d.bytes(&[1, 2, 3]);
    let back = d.room(8);
    assert_eq!(d.run(&mut ring, &[Part::Out(at, 3), Part::In(back, 8)]), 3);
    assert_eq!(d.look(back, 3), [!1, !2, !3]);
}

#[test]
fn indirect_tables_and_a_second_region_work() {
    let (mut d, _) = echo();
    d.agree(u64::MAX);
    let mut ring = d.queue(0, 4);
    d.ready();
    let table = d.room(64);
    d.memory.write_slice(b"ab", Gpa(HIGH)).unwrap();
    d.memory.write_slice(b"c", Gpa(HIGH + HIGH_RAM - 1)).unwrap();
    d.descriptor(table, 0, HIGH, 2, 1, 1);
    d.descriptor(table, 1, HIGH + HIGH_RAM - 1, 1, 1, 2);
    d.descriptor(table, 2, HIGH + 4096, 16, 2, 0);
    d.descriptor(ring.table, 0, table, 48, 4, 0);
    d.offer(&mut ring, 0);
    d.kick(&ring);
    assert_eq!(d.wait(&mut ring), (0, 3));
    assert_eq!(d.look(HIGH + 4096, 3), [!b'a', !b'b', !b'c']);
}

#[test]
fn features_are_agreed_on_or_not() {
    let (mut d, counts) = echo();
    assert!(!d.negotiate(COLOUR), "without VERSION_1");
    assert!(!d.negotiate(feature::VERSION_1 | 1 << 7), "more than was offered");
    assert!(d.negotiate(feature::VERSION_1 | COLOUR));
    // Agreed features stay.
    d.set(common::DRIVER_FEATURE_SELECT, 4, 0);
    d.set(common::DRIVER_FEATURE, 4, 0);
    assert_eq!(d.get(common::DRIVER_FEATURE, 4), COLOUR);
    // A driver that is ready without FEATURES_OK is not.
    d.reset();
    d.set(common::DEVICE_STATUS, 1, 3 | u64::from(status::DRIVER_OK));
    assert_eq!(d.status(), 3);
    assert_eq!(counts.lock().unwrap().started, 0);
    // A bit that is cleared is an error of the driver: nothing changes.
    d.set(common::DEVICE_STATUS, 1, 1);
    assert_eq!(d.status(), 3);
}

#[test]
fn a_driver_that_gives_up_is_served_no_more() {
    let (mut d, counts) = echo();
    d.agree(u64::MAX);
    let _ring = d.queue(0, 8);
    d.ready();
    assert_eq!(counts.lock().unwrap().live, 1);
    let status = d.status() | status::FAILED;
    d.set(common::DEVICE_STATUS, 1, status.into());
    assert_eq!(counts.lock().unwrap().live, 0);
    assert_eq!(d.status(), status);
    d.agree(u64::MAX);
    let _ring = d.queue(0, 8);
    d.ready();
    assert_eq!(counts.lock().unwrap().live, 1);
}

#[test]
fn queues_that_are_not_ram_are_not_enabled() {
    for (table, driver, device, size) in [
        (RAM - 16, 0x2000, 0x3000, 8),
        (0x1008, 0x2000, 0x3000, 8),
        (0x1000, 0x2001, 0x3000, 8),
        (0x1000, 0x2000, 0x3002, 8),
        (0x1000, RAM - 4, 0x3000, 8),
        (0x1000, 0x2000, HIGH + HIGH_RAM - 8, 8),
        (u64::MAX - 15, 0x2000, 0x3000, 8),
        (RAM + 0x1000, 0x2000, 0x3000, 1),
    ] {
        let (mut d, _) = echo();
        d.agree(u64::MAX);
        d.set(common::QUEUE_SELECT, 2, 0);
        d.set(common::QUEUE_SIZE, 2, size);
        d.set(common::QUEUE_DESC, 8, table);
        d.set(common::QUEUE_DRIVER, 8, driver);
        d.set(common::QUEUE_DEVICE, 8, device);
        d.set(common::QUEUE_ENABLE, 2, 1);
        assert_eq!(d.get(common::QUEUE_ENABLE, 2), 0, "{table:#x} {driver:#x} {device:#x}");
        assert_ne!(d.status() & status::NEEDS_RESET, 0);
    }
}

#[test]
fn queue_sizes_are_checked_and_queues_beyond_the_last_have_size_0() {
    let (mut d, _) = echo();
    d.agree(u64::MAX);
    for (index, max) in [(0, 16), (1, 8), (2, 0), (0xffff, 0)] {
        d.set(common::QUEUE_SELECT, 2, index);
        assert_eq!(d.get(common::QUEUE_SIZE, 2), max);
        for wrong in [0, 3, 32, 0x8000, 0xffff] {
            d.set(common::QUEUE_SIZE, 2, wrong);
            assert_eq!(d.get(common::QUEUE_SIZE, 2), max);
        }
        d.set(common::QUEUE_ENABLE, 2, 1);
    }
    d.set(common::QUEUE_MSIX_VECTOR, 2, 1);
    assert_eq!(d.get(common::QUEUE_MSIX_VECTOR, 2), u64::from(NO_VECTOR));
    d.set(common::CONFIG_MSIX_VECTOR, 2, 3);
    assert_eq!(d.get(common::CONFIG_MSIX_VECTOR, 2), u64::from(NO_VECTOR), "there are three");
}

#[test]
fn a_device_without_its_queue_needs_a_reset_and_then_works() {
    let (mut d, counts) = echo();
    d.agree(u64::MAX);
    d.set(common::CONFIG_MSIX_VECTOR, 2, 0);
    let status = d.status() | status::DRIVER_OK;
    d.set(common::DEVICE_STATUS, 1, status.into());
    assert_eq!(d.status(), status | status::NEEDS_RESET);
    d.wait_vector(0);
    assert_eq!(d.isr(), 2);
    d.agree(u64::MAX);
    let _ring = d.queue(0, 8);
    d.ready();
    assert_eq!(counts.lock().unwrap().live, 1);
}

#[test]
fn a_ring_that_makes_no_sense_ends_the_queue_until_a_reset() {
    for damage in [
        // More chains than the queue is long, and a chain that does not exist.
        |d: &Driver, driver: u64| d.memory.write_obj(9u16, Gpa(driver + 2)).unwrap(),
        |d: &Driver, driver: u64| {
            d.memory.write_obj(8u16, Gpa(driver + 4)).unwrap();
            d.memory.write_obj(1u16, Gpa(driver + 2)).unwrap();
        },
    ] {
        let (mut d, _) = echo();
        d.agree(u64::MAX);
        let ring = d.queue(0, 8);
        d.ready();
        damage(&d, ring.driver);
        d.kick(&ring);
        d.wait_vector(0);
        assert_ne!(d.status() & status::NEEDS_RESET, 0);
        d.agree(u64::MAX);
        let mut ring = d.queue(0, 8);
        d.ready();
        let at = d.bytes(&[7]);
        let back = d.room(1);
        assert_eq!(d.run(&mut ring, &[Part::Out(at, 1), Part::In(back, 1)]), 1);
    }
}

#[test]
fn bad_chains_are_given_back_and_the_next_is_served() {
    let (mut d, _) = echo();
    d.agree(u64::MAX);
    let mut ring = d.queue(0, 8);
    d.ready();
    let indirect = d.room(4096);
    let good = d.bytes(&[5]);
    // Each: the descriptors from 0 on, as (address, length, flags, next).
    let chains: &[&[(u64, u32, u16, u16)]] = &[
        &[(good, 1, 1, 0)],                                // a loop onto itself
        &[(good, 1, 1, 1), (good, 1, 1, 0)],               // a longer one
        &[(good, 1, 1, 8)],                                // beyond the table
        &[(good, 0, 0, 0)],                                // nothing at all
        &[(good, 1, 3, 1), (good, 1, 0, 0)],               // read after write
        &[(RAM, 1, 1, 1), (good, 1, 2, 0)],                // not RAM
        &[(RAM - 1, 2, 1, 1), (good, 2, 2, 0)],            // half RAM
        &[(u64::MAX, u32::MAX, 1, 1), (good, 1, 2, 0)],    // overflows
        &[(good, u32::MAX, 1, 1), (good, u32::MAX, 0, 0)], // over 4 GiB
        &[(indirect, 0, 4, 0)],                            // an empty table
        &[(indirect, 17, 4, 0)],                           // half a descriptor
        &[(indirect, 16, 4, 0)],                           // a table in a table (below)
        &[(RAM, 16, 4, 0)],                                // a table that is not RAM
        &[(good, 1, 2, 0)],                                // nothing to read
    ];
    d.descriptor(indirect, 0, indirect, 16, 4, 0);
    for chain in chains {
        for (n, (at, len, flags, next)) in (0..).zip(*chain) {
            d.descriptor(ring.table, n, *at, *len, *flags, *next);
        }
        d.offer(&mut ring, 0);
        d.kick(&ring);
        assert_eq!(d.wait(&mut ring), (0, 0), "{chain:?}");
    }
    d.descriptor(ring.table, 0, good, 1, 1, 1);
    d.descriptor(ring.table, 1, good, 1, 2, 0);
    d.offer(&mut ring, 0);
    d.kick(&ring);
    assert_eq!(d.wait(&mut ring), (0, 1));
}

#[test]
fn resets_and_drops_leave_nothing_behind() {
    let (mut d, counts) = named("gone");
    for n in 1..=20 {
        d.agree(u64::MAX);
        let _ring = d.queue(0, 8);
        d.ready();
        until_threads("rng/gone", 1);
        d.reset();
        until_threads("rng/gone", 0);
        let counts = counts.lock().unwrap();
        assert_eq!((counts.started, counts.reset, counts.live), (n, n, 0));
        // Descriptors are owned by these: the function alone has them.
        assert_eq!(Arc::strong_count(&d.function.shared), 1);
        assert!(d.function.bells.iter().all(|b| Arc::strong_count(&b.kick) == 1));
    }
    let weak = Arc::downgrade(&d.memory);
    let shared = Arc::downgrade(&d.function.shared);
    let kick = Arc::downgrade(&d.function.bells[0].kick);
    d.agree(u64::MAX);
    let _ring = d.queue(0, 8);
    d.ready();
    drop(d);
    until_threads("rng/gone", 0);
    assert_eq!(counts.lock().unwrap().live, 0);
    assert!(weak.upgrade().is_none(), "nobody has the guest's memory any more");
    assert!(shared.upgrade().is_none() && kick.upgrade().is_none(), "nor any descriptor");
}

#[test]
fn a_function_without_bus_mastering_touches_nothing() {
    let memory = memory();
    let device = Echo { counts: Arc::default(), config: *b"beamline" };
    let function = Transport::new("test".into(), Box::new(device), Arc::clone(&memory)).unwrap();
    // Served within the write: what was not done when it returns is not going to be.
    let mut d = Driver::over(function.inline(), memory);
    d.function.unmap(&mut d.wiring, 0);
    d.agree(u64::MAX);
    let mut ring = d.queue(0, 8);
    d.ready();
    let at = d.bytes(&[5]);
    let back = d.room(1);
    let parts = [Part::Out(at, 1), Part::In(back, 1)];
    assert_eq!(d.run(&mut ring, &parts), 1);
    d.set_config(config::COMMAND, command::MEMORY.into());
    d.add(&mut ring, &parts);
    d.kick(&ring);
    assert_eq!(d.used(&mut ring), None);
    d.set_config(config::COMMAND, (command::MEMORY | command::BUS_MASTER).into());
    d.kick(&ring);
    assert_eq!(d.used(&mut ring).map(|(_, len)| len), Some(1));
}

#[test]
fn what_was_left_lying_without_bus_mastering_is_served_when_it_is_on() {
    let (mut d, _) = echo();
    d.agree(u64::MAX);
    let mut ring = d.queue(0, 8);
    d.ready();
    let at = d.bytes(&[5]);
    let back = d.room(1);
    d.set_config(config::COMMAND, command::MEMORY.into());
    d.add(&mut ring, &[Part::Out(at, 1), Part::In(back, 1)]);
    d.set_config(config::COMMAND, (command::MEMORY | command::BUS_MASTER).into());
    assert_eq!(d.wait(&mut ring).1, 1);
}

#[test]
fn a_masked_vector_is_pending_and_comes_later() {
    let (mut d, _) = echo();
    d.agree(u64::MAX);
    let mut ring = d.queue(0, 8);
    d.ready();
    let entry = 0x3000 + 16;
    d.write(entry + 12, &1u32.to_le_bytes());
    let at = d.bytes(&[5]);
    let back = d.room(1);
    d.add(&mut ring, &[Part::Out(at, 1), Part::In(back, 1)]);
    d.kick(&ring);
    let mut pending = [0; 8];
    while pending[0] & 2 == 0 {
        d.read(0x3800, &mut pending);
    }
    d.write(entry + 12, &0u32.to_le_bytes());
    d.wait_vector(1);
    assert_eq!(d.used(&mut ring), Some((0, 1)));
    // Without MSI-X there is only the ISR status.
    d.disable_msix();
    d.add(&mut ring, &[Part::Out(at, 1), Part::In(back, 1)]);
    d.isr();
    d.kick(&ring);
    while d.isr() & 1 == 0 {}
}

#[test]
fn the_window_in_configuration_space_reaches_the_registers() {
    let (mut d, _) = echo();
    let mut at = 0x40;
    while (d.config(at) >> 24) as u8 != 5 {
        at = (d.config(at) >> 8) as u16 & 0xff;
    }
    let through = |d: &mut Driver, offset: u32, len: u32, value: Option<u32>| {
        d.set_config(at + cap::OFFSET, offset);
        d.set_config(at + cap::LENGTH, len);
        match value {
            Some(value) => {
                d.set_config(at + 16, value);
                0
            }
            None => d.config(at + 16),
        }
    };
    through(&mut d, common::DEVICE_STATUS, 1, Some(1));
    assert_eq!(d.status(), 1);
    assert_eq!(through(&mut d, common::NUM_QUEUES, 2, None), 2);
    assert_eq!(through(&mut d, 0x1000, 4, None), u32::from_le_bytes(*b"beam"));
    // Nonsense reaches nothing.
    for (offset, len) in [(0x4000, 4), (u32::MAX, 4), (0x1001, 4), (0x1000, 3), (0x1000, 0)] {
        through(&mut d, offset, len, Some(0x55));
        assert_eq!(through(&mut d, offset, len, None), 0x55, "it is plain memory");
    }
    let mut config = [0; 8];
    d.device_config(0, &mut config);
    assert_eq!(&config, b"beamline");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Garbage in every register and in the rings: no panic, and the device works after a reset.
    #[test]
    fn garbage_is_survived(
        accesses in prop::collection::vec((any::<bool>(), 0u64..0x4000, 0usize..4, any::<u64>()), 0..200),
        spaces in prop::collection::vec((0u16..64, any::<u32>()), 0..20),
        rings in prop::collection::vec((0u64..0x2000, any::<u64>()), 0..60),
    ) {
        let (mut d, _) = echo();
        d.agree(u64::MAX);
        let ring = d.queue(0, 8);
        d.ready();
        for (at, value) in &rings {
            d.memory.write_obj(*value, Gpa(ring.table + at % 128)).unwrap();
            d.memory.write_obj(*value as u32, Gpa(ring.driver + at % 22)).unwrap();
            d.kick(&ring);
        }
        for (write, offset, width, value) in &accesses {
            let len = 1 << width;
            if *write {
                d.write(*offset, &value.to_le_bytes()[..len]);
            } else {
                d.read(*offset, &mut [0; 8][..len]);
            }
        }
        for (register, value) in &spaces {
            d.set_config(register * 4, *value);
            d.config(register * 4);
        }
        d.set_config(config::COMMAND, (command::MEMORY | command::BUS_MASTER).into());
        d.enable_msix();
        d.agree(u64::MAX);
        let mut ring = d.queue(0, 8);
        d.ready();
        let at = d.bytes(&[5]);
        let back = d.room(1);
        prop_assert_eq!(d.run(&mut ring, &[Part::Out(at, 1), Part::In(back, 1)]), 1);
    }
}
