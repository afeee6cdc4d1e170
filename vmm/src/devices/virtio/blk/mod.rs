//! A disk (virtio 1.3, section 5.2): a raw or qcow2 image, or a block device of the host.

mod image;
mod lock;
mod qcow2;
mod queue;
mod registers;
#[cfg(test)]
mod tests;

pub use image::{Disk, Format, ImageError, Source, look, open};
pub use queue::Counters;

use super::{Activation, DeviceError, DeviceModel, Kind, Serve, read_space};
use registers::{Shape, feature};
use std::sync::{Arc, Mutex};

/// Bytes of a sector, the unit of all addresses.
pub const SECTOR: u64 = 512;
/// Longest serial: bytes (5.2.6.1).
pub const MAX_SERIAL: usize = 20;
/// One queue is enough: requests are served one after the other.
const QUEUES: [u16; 1] = [256];

/// A disk as it is shared between activations.
type Shared = Arc<Mutex<Box<dyn Disk>>>;

/// A virtio disk.
pub struct Blk {
    disk: Shared,
    shape: Shape,
    serial: [u8; MAX_SERIAL],
    counters: Arc<Counters>,
    label: String,
}

impl Blk {
    /// A disk called `label` in messages. A serial that is longer than [`MAX_SERIAL`] is cut.
    pub fn new(label: &str, disk: Box<dyn Disk>, serial: &str) -> Self {
        let mut id = [0; MAX_SERIAL];
        for (to, from) in id.iter_mut().zip(serial.bytes()) {
            *to = from;
        }
        let shape = Shape {
            sectors: disk.size() / SECTOR,
            readonly: disk.readonly(),
            block: disk.block_size(),
            seg_max: u32::from(QUEUES[0]) - 2,
        };
        Self {
            disk: Arc::new(Mutex::new(disk)),
            shape,
            serial: id,
            counters: Arc::default(),
            label: label.to_owned(),
        }
    }

    /// How many requests failed so far.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }
}

impl DeviceModel for Blk {
    fn kind(&self) -> Kind {
        Kind::Block
    }

    fn features(&self) -> u64 {
        let writable = feature::DISCARD | feature::WRITE_ZEROES;
        feature::SEG_MAX
            | feature::BLK_SIZE
            | feature::TOPOLOGY
            | feature::FLUSH
            | if self.shape.readonly { feature::RO } else { writable }
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUES
    }

    fn config_len(&self) -> u32 {
        registers::SIZE as u32
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_space(&self.shape.registers(), offset, data);
    }

    fn activate(&mut self, mut start: Activation) -> Result<Box<dyn Serve>, DeviceError> {
        let queue = start.need(0)?;
        // A driver that does not flush must not lose what it was told is written (5.2.6.2).
        let through = start.features & feature::FLUSH == 0;
        Ok(Box::new(queue::Requests::new(queue, start.memory, self, through)))
    }
}
