//! The disk's configuration space (virtio 1.3, section 5.2.4) and feature bits (5.2.3).

use super::SECTOR;
use virtio_bindings::virtio_blk as spec;

/// Feature bits that are offered.
pub(super) mod feature {
    use super::spec;

    pub(in super::super) const SEG_MAX: u64 = 1 << spec::VIRTIO_BLK_F_SEG_MAX;
    pub(in super::super) const RO: u64 = 1 << spec::VIRTIO_BLK_F_RO;
    pub(in super::super) const BLK_SIZE: u64 = 1 << spec::VIRTIO_BLK_F_BLK_SIZE;
    pub(in super::super) const FLUSH: u64 = 1 << spec::VIRTIO_BLK_F_FLUSH;
    pub(in super::super) const TOPOLOGY: u64 = 1 << spec::VIRTIO_BLK_F_TOPOLOGY;
    pub(in super::super) const DISCARD: u64 = 1 << spec::VIRTIO_BLK_F_DISCARD;
    pub(in super::super) const WRITE_ZEROES: u64 = 1 << spec::VIRTIO_BLK_F_WRITE_ZEROES;
}

/// Bytes of the structure, up to the fields of features that are not offered.
pub(super) const SIZE: usize = 60;
/// Most ranges of a discard or a write of zeroes.
pub(super) const MAX_RANGES: u64 = 16;
/// Most sectors of one range: 16 MiB, so that zeroes that have to be written take a bounded time.
pub(super) const MAX_RANGE: u32 = (16 << 20) / SECTOR as u32;
/// Disks of today have physical blocks of 4 KiB.
const PHYSICAL: u32 = 4096;

/// What the driver is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) sectors: u64,
    pub(super) readonly: bool,
    /// Bytes of a logical block.
    pub(super) block: u32,
    /// Most data descriptors of a request.
    pub(super) seg_max: u32,
}

impl Shape {
    pub(super) fn registers(&self) -> [u8; SIZE] {
        let mut r = [0; SIZE];
        let mut put = |at: usize, bytes: &[u8]| r[at..at + bytes.len()].copy_from_slice(bytes);
        let exponent = (PHYSICAL / self.block.max(1)).checked_ilog2().unwrap_or(0);
        put(0, &self.sectors.to_le_bytes());
        put(12, &self.seg_max.to_le_bytes());
        put(20, &self.block.to_le_bytes());
        put(24, &[exponent as u8]);
        // The smallest good transfer, in logical blocks.
        put(26, &(1u16 << exponent).to_le_bytes());
        put(36, &MAX_RANGE.to_le_bytes());
        put(40, &(MAX_RANGES as u32).to_le_bytes());
        put(44, &(self.block / SECTOR as u32).max(1).to_le_bytes());
        put(48, &MAX_RANGE.to_le_bytes());
        put(52, &(MAX_RANGES as u32).to_le_bytes());
        put(56, &[1]);
        r
    }
}
