//! The device's configuration space (virtio 1.3, section 5.10.4).

/// Bytes.
pub(super) const SIZE: usize = 8;

pub(super) fn registers(cid: u32) -> [u8; SIZE] {
    u64::from(cid).to_le_bytes()
}
