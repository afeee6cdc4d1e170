//! A disk in memory.

use beamline_vmm::devices::virtio::blk::Disk;
use std::io;

/// Bytes of the disk.
const DISK: usize = 16 << 10;

/// A disk that knows what it may be asked for.
pub(super) struct Memory {
    bytes: Vec<u8>,
    readonly: bool,
}

impl Memory {
    pub(super) fn new(readonly: bool) -> Self {
        Self { bytes: vec![0x11; DISK], readonly }
    }

    fn range(&mut self, at: u64, len: u64) -> &mut [u8] {
        assert!(at.is_multiple_of(512) && len.is_multiple_of(512), "whole sectors");
        let end = at.checked_add(len).expect("no address overflows");
        assert!(end <= DISK as u64, "within the disk");
        &mut self.bytes[at as usize..end as usize]
    }
}

impl Disk for Memory {
    fn size(&self) -> u64 {
        DISK as u64
    }
    fn readonly(&self) -> bool {
        self.readonly
    }
    fn read(&mut self, at: u64, to: &mut [u8]) -> io::Result<()> {
        to.copy_from_slice(self.range(at, to.len() as u64));
        Ok(())
    }
    fn write(&mut self, at: u64, from: &[u8]) -> io::Result<()> {
        assert!(!self.readonly);
        self.range(at, from.len() as u64).copy_from_slice(from);
        Ok(())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn zero(&mut self, at: u64, len: u64, _: bool) -> io::Result<()> {
        assert!(!self.readonly);
        self.range(at, len).fill(0);
        Ok(())
    }
    fn discard(&mut self, at: u64, len: u64) -> io::Result<()> {
        assert!(!self.readonly);
        self.range(at, len);
        Ok(())
    }
}
