use super::queue::*;
use crate::device::gate::Gate;
use crate::device::pci::msix::IrqTable;
use crate::memory::{Gpa, GuestMemory, MemoryError};
use beamline_abi::virtio_pci::ring;
use proptest::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};

const SIZE: u16 = 8;
const TABLE: u64 = 0x1000;
const DRIVER: u64 = 0x2000;
const DEVICE: u64 = 0x3000;
const DATA: u64 = 0x4000;
const MEMORY: usize = 0x8000;

/// A queue with its driver's side.
struct Bench {
    memory: Arc<GuestMemory>,
    gate: Arc<Gate>,
    isr: Arc<AtomicU8>,
    avail: AvailReader,
    used: UsedWriter,
    put: u16,
}

impl Bench {
    fn new() -> Self {
        let memory = Arc::new(GuestMemory::for_test(MEMORY).unwrap());
        let gate = Arc::new(Gate::default());
        let isr = Arc::new(AtomicU8::new(0));
        let layout = QueueLayout::new(SIZE, Gpa(TABLE), Gpa(DRIVER), Gpa(DEVICE)).unwrap();
        let signal = Signal {
            irqs: Arc::new(IrqTable::new(1)),
            vectors: [AtomicU16::new(0xffff)].into(),
            queue: 0,
            isr: Arc::clone(&isr),
        };
        let Queue { avail, used } =
            Queue::new(layout, Arc::clone(&memory), Arc::clone(&gate), signal);
        Self { memory, gate, isr, avail, used, put: 0 }
    }

    fn descriptor(&self, index: u16, at: u64, len: u32, flags: u16, next: u16) {
        let mut entry = [0; 16];
        entry[..8].copy_from_slice(&at.to_le_bytes());
        entry[8..12].copy_from_slice(&len.to_le_bytes());
        entry[12..14].copy_from_slice(&flags.to_le_bytes());
        entry[14..].copy_from_slice(&next.to_le_bytes());
        self.memory.write(Gpa(TABLE + 16 * u64::from(index)), &entry).unwrap();
    }

    fn offer(&mut self, head: u16) {
        let slot = u64::from(self.put % SIZE);
        self.memory.write(Gpa(DRIVER + 4 + 2 * slot), &head.to_le_bytes()).unwrap();
        self.put = self.put.wrapping_add(1);
        self.memory.write_u16_release(Gpa(DRIVER + 2), self.put).unwrap();
    }

    fn used(&self, index: u16) -> (u32, u32) {
        let at = DEVICE + 4 + 8 * u64::from(index % SIZE);
        (self.memory.read_u32(Gpa(at)).unwrap(), self.memory.read_u32(Gpa(at + 4)).unwrap())
    }

    fn refused(&mut self, head: u16) -> QueueError {
        self.offer(head);
        self.avail.pop().unwrap_err()
    }
}

#[test]
fn a_request_goes_round() {
    let mut bench = Bench::new();
    assert_eq!(bench.avail.pop(), Ok(None));
    bench.memory.write(Gpa(DATA), b"headpayload").unwrap();
    bench.descriptor(3, DATA, 4, ring::DESC_NEXT, 5);
    bench.descriptor(5, DATA + 4, 7, ring::DESC_NEXT, 1);
    bench.descriptor(1, DATA + 0x100, 3, ring::DESC_NEXT | ring::DESC_WRITE, 0);
    bench.descriptor(0, DATA + 0x200, 2, ring::DESC_WRITE, 0);
    bench.offer(3);
    let chain = bench.avail.pop().unwrap().unwrap();
    assert_eq!(bench.avail.pop(), Ok(None));
    assert_eq!((chain.head, chain.readable_len(), chain.writable_len()), (3, 11, 5));
    let mut text = [0; 9];
    bench.avail.read(&chain, 1, &mut text).unwrap();
    assert_eq!(&text, b"eadpayloa");
    assert!(matches!(
        bench.avail.read(&chain, 3, &mut text),
        Err(QueueError::ShortRequest { offset: 3, len: 9, have: 11 })
    ));
    assert!(bench.avail.read(&chain, u64::MAX, &mut text).is_err());

    assert_eq!(bench.used.complete(&chain.reply(), b"answer"), Ok(true));
    assert_eq!(bench.used(0), (3, 5), "as much as there is room for");
    assert_eq!(bench.memory.read_u16(Gpa(DEVICE + 2)), Ok(1));
    let mut answer = [0; 4];
    bench.memory.read(Gpa(DATA + 0x100), &mut answer).unwrap();
    assert_eq!(&answer, b"ans\0");
    bench.memory.read(Gpa(DATA + 0x200), &mut answer).unwrap();
    assert_eq!(&answer, b"we\0\0");

    assert_eq!(bench.used.interrupt(), Ok(false), "no vector");
    assert_eq!(bench.isr.load(Ordering::Relaxed), 1);
    bench.memory.write_u16_release(Gpa(DRIVER), ring::AVAIL_NO_INTERRUPT).unwrap();
    assert_eq!(bench.used.complete(&chain.reply(), b""), Ok(false));
}

#[test]
fn indexes_wrap() {
    let mut bench = Bench::new();
    bench.descriptor(2, DATA, 8, ring::DESC_WRITE, 0);
    for n in 0..70_000u32 {
        bench.offer(2);
        let chain = bench.avail.pop().unwrap().unwrap();
        assert!(bench.used.complete(&chain.reply(), &n.to_le_bytes()).unwrap());
    }
    assert_eq!(bench.memory.read_u16(Gpa(DEVICE + 2)), Ok(70_000u32 as u16));
    assert_eq!(bench.avail.pop(), Ok(None));
}

#[test]
fn hostile_chains_are_refused() {
    let mut bench = Bench::new();
    bench.descriptor(0, DATA, 4, ring::DESC_NEXT, 0);
    assert_eq!(bench.refused(0), QueueError::TooLong { head: 0 }, "a loop");
    assert_eq!(bench.refused(SIZE), QueueError::TooLong { head: 0 }, "the bad one stays in front");

    let mut bench = Bench::new();
    assert_eq!(bench.refused(SIZE), QueueError::BadDescriptor { index: SIZE, size: SIZE });
    let mut bench = Bench::new();
    bench.descriptor(0, DATA, 4, ring::DESC_NEXT, 0xffff);
    assert_eq!(bench.refused(0), QueueError::BadDescriptor { index: 0xffff, size: SIZE });
    let mut bench = Bench::new();
    bench.descriptor(0, DATA, 0, 0, 0);
    assert_eq!(bench.refused(0), QueueError::Empty { index: 0 });
    let mut bench = Bench::new();
    bench.descriptor(0, DATA, 16, ring::DESC_INDIRECT, 0);
    assert_eq!(bench.refused(0), QueueError::Indirect { index: 0 });
    let mut bench = Bench::new();
    bench.descriptor(0, DATA, 4, ring::DESC_WRITE | ring::DESC_NEXT, 1);
    bench.descriptor(1, DATA, 4, 0, 0);
    assert_eq!(bench.refused(0), QueueError::Order { index: 1 });
    let mut bench = Bench::new();
    bench.descriptor(0, MEMORY as u64 - 4, 8, 0, 0);
    assert_eq!(
        bench.refused(0),
        QueueError::Memory(MemoryError::NotMapped {
            at: Gpa(MEMORY as u64),
            start: Gpa(MEMORY as u64 - 4),
            len: 8
        })
    );
    let mut bench = Bench::new();
    bench.descriptor(0, u64::MAX - 2, 8, ring::DESC_WRITE, 0);
    assert!(matches!(bench.refused(0), QueueError::Memory(MemoryError::Wraps { .. })));
    let mut bench = Bench::new();
    bench.descriptor(0, DATA, 4, ring::DESC_NEXT, 1);
    bench.descriptor(1, 0, MAX_BYTES as u32, ring::DESC_WRITE, 0);
    assert_eq!(bench.refused(0), QueueError::TooLarge { head: 0 });
}

#[test]
fn an_index_jump_is_refused() {
    let mut bench = Bench::new();
    bench.memory.write_u16_release(Gpa(DRIVER + 2), SIZE + 1).unwrap();
    assert_eq!(
        bench.avail.pop(),
        Err(QueueError::IndexJump { index: SIZE + 1, ahead: SIZE + 1, size: SIZE })
    );
    bench.memory.write_u16_release(Gpa(DRIVER + 2), 0xffff).unwrap();
    assert!(matches!(bench.avail.pop(), Err(QueueError::IndexJump { ahead: 0xffff, .. })));
}

#[test]
fn layouts_are_checked() {
    let new = |size, table, driver, device| {
        QueueLayout::new(size, Gpa(table), Gpa(driver), Gpa(device)).err()
    };
    assert_eq!(new(0, 0, 0, 0), Some(QueueError::BadSize(0)));
    assert_eq!(new(12, 0, 0, 0), Some(QueueError::BadSize(12)));
    assert_eq!(new(512, 0, 0, 0), Some(QueueError::BadSize(512)));
    assert!(matches!(new(8, 8, 0, 0), Some(QueueError::BadRing { align: 16, .. })));
    assert!(matches!(new(8, 0, 1, 0), Some(QueueError::BadRing { align: 2, .. })));
    assert!(matches!(new(8, 0, 0, 2), Some(QueueError::BadRing { align: 4, .. })));
    assert!(matches!(new(8, u64::MAX - 15, 0, 0), Some(QueueError::BadRing { .. })));
    assert_eq!(new(256, 0x10, 0x2, 0x4), None);
}

#[test]
fn a_reset_queue_leaves_memory_alone() {
    let mut bench = Bench::new();
    bench.descriptor(0, DATA, 4, ring::DESC_WRITE, 0);
    bench.offer(0);
    let chain = bench.avail.pop().unwrap().unwrap();
    bench.gate.pause();
    assert_eq!(bench.used.complete(&chain.reply(), b"late"), Err(QueueError::Paused));
    bench.gate.close();
    assert_eq!(bench.used.complete(&chain.reply(), b"late"), Err(QueueError::Closed));
    assert_eq!(bench.avail.pop(), Err(QueueError::Closed));
    assert!(bench.avail.is_closed() && bench.used.is_closed());
    let mut data = [0; 4];
    bench.memory.read(Gpa(DATA), &mut data).unwrap();
    assert_eq!(data, [0; 4]);
    assert_eq!(bench.memory.read_u16(Gpa(DEVICE + 2)), Ok(0));
}

/// While the poster answers as fast as it can, a reset closes the queue: what it then writes to the
/// memory stays.
#[test]
fn nothing_lands_after_a_reset_returned() {
    for _ in 0..200 {
        let Bench { memory, gate, mut avail, mut used, .. } = {
            let mut bench = Bench::new();
            bench.descriptor(0, DATA, 4, ring::DESC_WRITE, 0);
            bench.offer(0);
            bench
        };
        let reply = avail.pop().unwrap().unwrap().reply();
        std::thread::scope(|scope| {
            let poster = scope.spawn(move || {
                let mut sent = 0u32;
                while used.complete(&reply, b"late").is_ok() {
                    sent += 1;
                }
                sent
            });
            std::thread::yield_now();
            gate.close();
            memory.write(Gpa(DATA), b"mine").unwrap();
            poster.join().unwrap();
        });
        let mut data = [0; 4];
        memory.read(Gpa(DATA), &mut data).unwrap();
        assert_eq!(&data, b"mine");
    }
}

proptest! {
    /// Whatever the rings hold, popping ends, and what it yields is within bounds.
    #[test]
    fn any_ring_content_is_survived(
        table in proptest::collection::vec(any::<u8>(), 16 * SIZE as usize),
        lens in proptest::collection::vec(0u32..0x2000, SIZE as usize),
        driver in proptest::collection::vec(any::<u8>(), 4 + 2 * SIZE as usize),
        tame in any::<bool>(),
    ) {
        let mut bench = Bench::new();
        bench.memory.write(Gpa(TABLE), &table).unwrap();
        if tame {
            // Addresses, heads and indexes that come near to being right.
            for (index, len) in (0..SIZE).zip(lens) {
                let flags = u16::from(table[usize::from(index)]) & 3;
                let next = u16::from(table[usize::from(index) + 8]) % (SIZE + 1);
                bench.descriptor(index, DATA + u64::from(len), len, flags, next);
            }
        }
        bench.memory.write(Gpa(DRIVER), &driver).unwrap();
        if tame {
            bench.memory.write_u16_release(Gpa(DRIVER + 2), SIZE).unwrap();
            for slot in 0..SIZE {
                let at = DRIVER + 4 + 2 * u64::from(slot);
                let head = u16::from(driver[usize::from(slot)]) % SIZE;
                bench.memory.write(Gpa(at), &head.to_le_bytes()).unwrap();
            }
        }
        for _ in 0..=SIZE {
            let Ok(Some(chain)) = bench.avail.pop() else { break };
            prop_assert!(chain.readable().len() + chain.writable().len() <= MAX_CHAIN);
            let mut request = vec![0; chain.readable_len() as usize];
            bench.avail.read(&chain, 0, &mut request).unwrap();
            let _ = bench.used.complete(&chain.reply(), &[0xa5; 64]).unwrap();
        }
    }
}
