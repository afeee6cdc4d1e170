//! A hostile guest on a queue: any rings, descriptors and indexes, in memory with holes.

use crate::guest::{Guest, MEMORY, PIECES, Ram, Rings, reachable};
use crate::input::Input;
use beamline_abi::virtio_gpu::CONTROL_QUEUE;
use beamline_abi::virtio_pci::status;
use beamline_mdev::device::virtio::queue::{
    Chain, MAX_CHAIN, MAX_QUEUE_SIZE, MAX_REPLY_BUFFERS, Queue, QueueError,
};
use beamline_vfio_user::{Device, RegionIndex};
use std::ops::Range;

const MAX_STEPS: usize = 96;
const MAX_CHAINS: usize = 8;
/// Where nothing is said about the rings.
const USUAL: Rings = Rings { size: 8, table: 0x1000, driver: 0x2000, device: 0x3000 };

/// Runs one life of a queue, or several.
pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut bench = Bench {
        guest: Guest::new(),
        queue: None,
        rings: USUAL,
        mapped: [true; 5],
        mastering: true,
        put: 0,
        chains: Vec::new(),
    };
    bench.start(&mut input);
    let holes = bench.guest.ram.all();
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        bench.step(&mut input);
    }
    // What was never mapped was never touched.
    let after = bench.guest.ram.all();
    assert_eq!(holes[0x8000..0x9000], after[0x8000..0x9000]);
    assert_eq!(holes[0xc000..0xd000], after[0xc000..0xd000]);
    bench.guest.gpu.disconnected();
    if let Some(queue) = &mut bench.queue {
        assert_eq!(queue.avail.pop(), Err(QueueError::Closed));
    }
}

struct Bench {
    guest: Guest,
    queue: Option<Queue>,
    rings: Rings,
    mapped: [bool; 5],
    mastering: bool,
    /// The driver's index.
    put: u16,
    chains: Vec<Chain>,
}

impl Bench {
    /// A new life of the device, with rings that are the usual ones or anything.
    fn start(&mut self, input: &mut Input<'_>) {
        self.rings = match input.below(4) {
            0 => Rings {
                size: input.number16(),
                table: input.number(),
                driver: input.number(),
                device: input.number(),
            },
            // At the end of what is mapped, and over its edges.
            1 => Rings { size: 256, table: 0x7000, driver: 0x9f00, device: 0x7f00 },
            2 => Rings { size: 16, table: 0xffff_ffff_ffff_ef00, ..USUAL },
            _ => USUAL,
        };
        let taken = self.guest.start(self.rings);
        if !self.rings.size.is_power_of_two() || self.rings.size > MAX_QUEUE_SIZE {
            // A size that is not possible is not taken.
            self.rings.size = MAX_QUEUE_SIZE;
        }
        let old = self.queue.take();
        self.queue = self.guest.handle.take_queues().and_then(|mut set| set.take(CONTROL_QUEUE));
        assert!(taken || self.queue.is_none() || self.guest.status() & status::NEEDS_RESET != 0);
        if let Some(mut old) = old {
            assert_eq!(old.avail.pop(), Err(QueueError::Closed), "a reset ends the queue");
        }
        self.chains.clear();
        self.put = 0;
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.below(16) {
            0..=3 => self.descriptor(input),
            4 | 5 => self.offer(input.below(32) as u16),
            6 | 7 => self.pop(),
            8 => self.read(input),
            9 => self.complete(input),
            10 => {
                let at = input.number();
                self.guest.ram.write(at, input.bytes(64));
            }
            11 => {
                self.put = input.number16();
                self.guest.ram.write(self.rings.driver.wrapping_add(2), &self.put.to_le_bytes());
            }
            12 => {
                self.mastering = input.flag();
                self.guest.master(self.mastering);
            }
            13 => self.remap(input.below(5)),
            14 => {
                // Any field of the common configuration, under way.
                let (at, len) = (input.below(0x38) as u32, 1 << input.below(4));
                let value = input.number();
                if at != beamline_abi::virtio_pci::common::DEVICE_STATUS {
                    self.guest.set(at, len, value);
                }
            }
            _ => match input.below(4) {
                0 => self.start(input),
                1 => {
                    // Reset by the VMM: the driver has to bring everything up again.
                    self.guest.gpu.reset();
                    self.mastering = input.flag();
                    self.guest.master(self.mastering);
                    self.start(input);
                }
                2 => drop(self.guest.handle.fail()),
                _ => {
                    let at = 0x3000 + 4 * input.below(4) as u64;
                    let bar = RegionIndex::bar(4);
                    self.guest.gpu.region_write(bar, at, &[0; 2]).expect("it is there");
                }
            },
        }
    }

    fn descriptor(&mut self, input: &mut Input<'_>) {
        let index = input.below(32) as u64;
        let (at, len) = (input.number(), input.number32());
        let (flags, next) = (u16::from(input.u8() & 7), input.below(32) as u16);
        let mut entry = [0; 16];
        entry[..8].copy_from_slice(&at.to_le_bytes());
        entry[8..12].copy_from_slice(&len.to_le_bytes());
        entry[12..14].copy_from_slice(&flags.to_le_bytes());
        entry[14..].copy_from_slice(&next.to_le_bytes());
        self.guest.ram.write(self.rings.table.wrapping_add(16 * index), &entry);
    }

    fn offer(&mut self, head: u16) {
        let slot = u64::from(self.put % self.rings.size.max(1));
        let ring = self.rings.driver.wrapping_add(4 + 2 * slot);
        self.guest.ram.write(ring, &head.to_le_bytes());
        self.put = self.put.wrapping_add(1);
        self.guest.ram.write(self.rings.driver.wrapping_add(2), &self.put.to_le_bytes());
    }

    /// A chain that is given has no more than it may, and all of it is in reach.
    fn pop(&mut self) {
        let Some(queue) = &mut self.queue else { return };
        match queue.avail.pop() {
            Ok(None) => assert!(self.mastering),
            Ok(Some(chain)) => {
                assert!(self.mastering && chain.head < self.rings.size);
                let (reads, writes) = (chain.readable(), chain.writable());
                assert!((1..=MAX_CHAIN).contains(&(reads.len() + writes.len())));
                for (buffers, write) in [(reads, false), (writes, true)] {
                    for buffer in buffers {
                        let (at, len) = (buffer.at.0, u64::from(buffer.len));
                        assert!(len > 0 && reachable(self.mapped, at, len, write), "{buffer:?}");
                    }
                }
                if self.chains.len() < MAX_CHAINS {
                    self.chains.push(chain);
                }
            }
            Err(QueueError::Paused) => assert!(!self.mastering),
            Err(QueueError::Closed) => panic!("the device was not reset"),
            Err(_) => {}
        }
    }

    /// Bytes come from the chain's readable part and from nowhere else.
    fn read(&mut self, input: &mut Input<'_>) {
        let Some(queue) = &self.queue else { return };
        let Some(chain) = self.chains.get(input.below(MAX_CHAINS)) else { return };
        let (offset, len) = (input.number(), usize::from(input.u8()));
        let mut out = vec![0xaa; len];
        let inside = offset.checked_add(len as u64).is_some_and(|end| end <= chain.readable_len());
        match queue.avail.read(chain, offset, &mut out) {
            Ok(()) => assert!(inside && self.mastering),
            Err(QueueError::ShortRequest { .. }) => assert!(!inside),
            Err(QueueError::Paused) => assert!(!self.mastering),
            Err(QueueError::Memory(_)) => {
                let mut whole = chain.readable().iter();
                let still = whole.all(|b| reachable(self.mapped, b.at.0, b.len.into(), false));
                assert!(!still, "all of it is mapped");
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// An answer changes the chain's writable buffers and the device area, and nothing else.
    fn complete(&mut self, input: &mut Input<'_>) {
        let Some(queue) = &mut self.queue else { return };
        let index = input.below(MAX_CHAINS);
        if index >= self.chains.len() {
            return;
        }
        let chain = self.chains.swap_remove(index);
        let answer = vec![input.u8() | 1; usize::from(input.u8())];
        let before = self.guest.ram.all();
        let done = queue.used.complete(&chain.reply(), &answer);
        let after = self.guest.ram.all();
        let mut allowed: Vec<Range<u64>> = Vec::new();
        let mut left = answer.len() as u64;
        for buffer in chain.writable().iter().take(MAX_REPLY_BUFFERS) {
            let part = left.min(buffer.len.into());
            left -= part;
            if reachable(self.mapped, buffer.at.0, part, true) {
                allowed.push(buffer.at.0..buffer.at.0 + part);
            }
        }
        // The device area, as far as it is in reach.
        let ring = self.rings.device..self.rings.device + 4 + 8 * u64::from(self.rings.size);
        for (piece, mapped) in PIECES.iter().zip(self.mapped) {
            if mapped && piece.flags.write {
                allowed.push(ring.start.max(piece.at)..ring.end.min(piece.at + piece.size));
            }
        }
        Ram::check_changes(&before, &after, &allowed);
        match done {
            Ok(_) => assert!(self.mastering),
            Err(QueueError::Paused) => {
                assert!(!self.mastering);
                assert_eq!(before, after);
            }
            Err(QueueError::Memory(_)) => {}
            Err(error) => panic!("{error}"),
        }
        assert_eq!(before.len(), MEMORY);
        let _ = queue.used.interrupt();
    }

    /// Takes a mapping away, or brings it back.
    fn remap(&mut self, index: usize) {
        let piece = PIECES[index];
        let mapped = self.mapped[index];
        self.mapped[index] = !mapped;
        if mapped {
            self.guest.gpu.dma_unmap(piece.at, piece.size).expect("it is mapped");
        } else {
            self.guest.map(piece);
        }
    }
}
