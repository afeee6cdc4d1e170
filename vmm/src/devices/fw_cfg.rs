//! QEMU's firmware configuration device (QEMU: docs/specs/fw_cfg.rst): how firmware learns what machine it is on.
//!
//! An item is chosen by its key and read byte by byte from a port, or by DMA into RAM. Files are items whose keys
//! stand in a directory. The guest can write no item.

use crate::Gpa;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use vm_memory::{Bytes, GuestMemoryMmap};

/// The selector; the data register is the port behind it.
const SELECTOR: u16 = 0x510;
const DATA: u16 = SELECTOR + 1;
/// The DMA address: its upper half, and behind it the lower one, whose write starts the transfer. Both are big
/// endian.
const DMA: u16 = 0x514;
const DMA_LOW: u16 = DMA + 4;
/// All ports.
pub const PORTS: RangeInclusive<u16> = SELECTOR..=DMA_LOW + 3;

/// Keys ("Selector (Control) Register" and the items that firmware knows by number).
mod key {
    pub(super) const SIGNATURE: u16 = 0;
    pub(super) const ID: u16 = 1;
    pub(super) const CPUS: u16 = 5;
    pub(super) const DIRECTORY: u16 = 0x19;
    pub(super) const FIRST_FILE: u16 = 0x20;
}

const SIGNATURE: [u8; 4] = *b"QEMU";
/// There is the port, and there is DMA.
const FEATURES: u32 = 1 | 1 << 1;
/// What the DMA address reads as.
const DMA_SIGNATURE: [u8; 8] = *b"QEMU CFG";
/// Bytes of a file's name in the directory, its end included.
const NAME: usize = 56;

/// `FWCfgDmaAccess`: control, length, address; the bits of control.
const ACCESS: usize = 16;
mod control {
    pub(super) const ERROR: u32 = 1;
    pub(super) const READ: u32 = 1 << 1;
    pub(super) const SKIP: u32 = 1 << 2;
    pub(super) const SELECT: u32 = 1 << 3;
    pub(super) const WRITE: u32 = 1 << 4;
}
/// Longest transfer: far more than all items have, and done in a moment.
const MAX_TRANSFER: u32 = 16 << 20;

/// The device.
#[derive(Debug, Default)]
pub struct FwCfg {
    items: BTreeMap<u16, Vec<u8>>,
    /// The chosen item's key, and how many of its bytes were read.
    selected: u16,
    offset: usize,
    dma_high: u32,
}

impl FwCfg {
    /// A device that tells of `cpus` CPUs and has `files`: name and contents. Names have at most 55 bytes, and
    /// there are fewer than 1,000; what is longer or more is left out.
    pub fn new(cpus: u16, files: Vec<(&str, Vec<u8>)>) -> Self {
        let mut listed: Vec<(&str, Vec<u8>)> =
            files.into_iter().filter(|(name, _)| name.len() < NAME).take(999).collect();
        listed.sort_by_key(|(name, _)| name.to_owned());
        let mut directory = (listed.len() as u32).to_be_bytes().to_vec();
        let mut items = BTreeMap::from([
            (key::SIGNATURE, SIGNATURE.to_vec()),
            (key::ID, FEATURES.to_le_bytes().to_vec()),
            (key::CPUS, cpus.to_le_bytes().to_vec()),
        ]);
        for (key, (name, contents)) in (key::FIRST_FILE..).zip(listed) {
            directory.extend_from_slice(&(contents.len() as u32).to_be_bytes());
            directory.extend_from_slice(&key.to_be_bytes());
            directory.extend_from_slice(&[0; 2]);
            let mut field = [0; NAME];
            field[..name.len()].copy_from_slice(name.as_bytes());
            directory.extend_from_slice(&field);
            items.insert(key, contents);
        }
        items.insert(key::DIRECTORY, directory);
        Self { items, ..Self::default() }
    }

    /// A read of `port`, which is one of [`PORTS`].
    pub fn read(&mut self, port: u16, data: &mut [u8]) {
        match port {
            // A string instruction reads the port repeatedly.
            DATA => {
                let rest = self.rest();
                let length = rest.len().min(data.len());
                data[..length].copy_from_slice(&rest[..length]);
                // Behind an item's end there are zeroes.
                data[length..].fill(0);
                self.offset = self.offset.saturating_add(data.len());
            }
            DMA.. => {
                let from = usize::from(port - DMA);
                let signature = DMA_SIGNATURE.iter().skip(from).chain(std::iter::repeat(&0xff));
                data.iter_mut().zip(signature).for_each(|(to, byte)| *to = *byte);
            }
            _ => data.fill(0xff),
        }
    }

    /// A write of `port`, which is one of [`PORTS`]. Transfers go to `memory`.
    pub fn write(&mut self, port: u16, data: &[u8], memory: &GuestMemoryMmap) {
        match (port, data) {
            (SELECTOR, [low, high]) => self.select(u16::from_le_bytes([*low, *high])),
            (DMA, [a, b, c, d]) => self.dma_high = u32::from_be_bytes([*a, *b, *c, *d]),
            (DMA_LOW, [a, b, c, d]) => {
                let low = u32::from_be_bytes([*a, *b, *c, *d]);
                let high = std::mem::take(&mut self.dma_high);
                self.transfer(Gpa(u64::from(high) << 32 | u64::from(low)), memory);
            }
            _ => {}
        }
    }

    fn select(&mut self, key: u16) {
        (self.selected, self.offset) = (key, 0);
    }

    /// What was not read of the chosen item.
    fn rest(&self) -> &[u8] {
        self.items.get(&self.selected).and_then(|item| item.get(self.offset..)).unwrap_or_default()
    }

    /// Does what the access at `at` says, and says there how it went. One that is not in RAM is dropped: there is
    /// nobody to tell.
    fn transfer(&mut self, at: Gpa, memory: &GuestMemoryMmap) {
        let mut access = [0; ACCESS];
        if memory.read_slice(&mut access, at).is_err() {
            return;
        }
        let [c0, c1, c2, c3, l0, l1, l2, l3, address @ ..] = access;
        let control = u32::from_be_bytes([c0, c1, c2, c3]);
        let length = u32::from_be_bytes([l0, l1, l2, l3]);
        if control & control::SELECT != 0 {
            self.select((control >> 16) as u16);
        }
        let done = if control & control::READ != 0 {
            self.read_to(Gpa(u64::from_be_bytes(address)), length, memory)
        } else if control & control::WRITE != 0 {
            false
        } else {
            if control & control::SKIP != 0 {
                self.offset = self.offset.saturating_add(length as usize);
            }
            true
        };
        let answer = if done { 0 } else { control::ERROR };
        // It was readable, so that it is in RAM.
        let _ = memory.write_slice(&answer.to_be_bytes(), at);
    }

    /// Whether `length` bytes, zeroes behind the item's end, went to RAM at `to`.
    fn read_to(&mut self, to: Gpa, length: u32, memory: &GuestMemoryMmap) -> bool {
        if length > MAX_TRANSFER {
            return false;
        }
        let length = length as usize;
        let rest = self.rest();
        let (item, zeroes) = (&rest[..rest.len().min(length)], length.saturating_sub(rest.len()));
        let done = memory.write_slice(item, to).is_ok()
            && to.0.checked_add(item.len() as u64).is_some_and(|at| fill(memory, at, zeroes));
        self.offset = self.offset.saturating_add(length);
        done
    }
}

/// Whether `length` zeroes are in RAM from `at` on.
fn fill(memory: &GuestMemoryMmap, mut at: u64, length: usize) -> bool {
    const ZEROES: [u8; 4096] = [0; 4096];
    let mut left = length;
    while left > 0 {
        let part = left.min(ZEROES.len());
        if memory.write_slice(&ZEROES[..part], Gpa(at)).is_err() {
            return false;
        }
        // What was written does not reach the end of the addresses.
        at = at.saturating_add(part as u64);
        left -= part;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::GuestRam;
    use proptest::prelude::*;

    const RAM: u64 = 2 << 20;
    const AT: u64 = 0x1000;

    fn device() -> FwCfg {
        FwCfg::new(2, vec![("etc/b", b"second".to_vec()), ("etc/a", b"first".to_vec())])
    }

    fn ram() -> GuestRam {
        GuestRam::new(RAM).unwrap()
    }

    fn by_port(device: &mut FwCfg, key: u16, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        device.write(SELECTOR, &key.to_le_bytes(), ram().memory());
        for byte in &mut bytes {
            device.read(DATA, std::slice::from_mut(byte));
        }
        bytes
    }

    /// Starts a transfer; the control word that the device leaves.
    fn dma(device: &mut FwCfg, ram: &GuestRam, control: u32, length: u32, to: u64) -> u32 {
        let mut access = Vec::new();
        access.extend_from_slice(&control.to_be_bytes());
        access.extend_from_slice(&length.to_be_bytes());
        access.extend_from_slice(&to.to_be_bytes());
        ram.memory().write_slice(&access, Gpa(AT)).unwrap();
        device.write(DMA, &0u32.to_be_bytes(), ram.memory());
        device.write(DMA_LOW, &(AT as u32).to_be_bytes(), ram.memory());
        let mut answer = [0; 4];
        ram.memory().read_slice(&mut answer, Gpa(AT)).unwrap();
        u32::from_be_bytes(answer)
    }

    fn at(ram: &GuestRam, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        ram.memory().read_slice(&mut bytes, Gpa(at)).unwrap();
        bytes
    }

    #[test]
    fn files_are_found_by_their_directory() {
        let mut device = device();
        assert_eq!(by_port(&mut device, 0, 4), b"QEMU");
        assert_eq!(by_port(&mut device, 1, 4), [3, 0, 0, 0]);
        assert_eq!(by_port(&mut device, 5, 2), [2, 0]);
        let directory = by_port(&mut device, 0x19, 4 + 2 * 64);
        assert_eq!(directory[..4], [0, 0, 0, 2]);
        for (entry, (name, contents)) in
            directory[4..].chunks_exact(64).zip([("etc/a", "first"), ("etc/b", "second")])
        {
            assert_eq!(entry[..4], (contents.len() as u32).to_be_bytes());
            let key = u16::from_be_bytes([entry[4], entry[5]]);
            assert_eq!(&entry[8..8 + name.len()], name.as_bytes());
            assert_eq!(entry[8 + name.len()], 0);
            let bytes = by_port(&mut device, key, contents.len() + 2);
            assert_eq!(&bytes[..contents.len()], contents.as_bytes());
            assert_eq!(bytes[contents.len()..], [0, 0], "zeroes behind the end");
        }
        assert_eq!(by_port(&mut device, 0x4321, 3), [0; 3], "no such item");
    }

    #[test]
    fn a_string_instruction_reads_on() {
        let mut device = device();
        device.write(SELECTOR, &0x20u16.to_le_bytes(), ram().memory());
        let mut bytes = [0; 3];
        device.read(DATA, &mut bytes);
        assert_eq!(&bytes, b"fir");
        let mut bytes = [9; 4];
        device.read(DATA, &mut bytes);
        assert_eq!(&bytes, b"st\0\0");
    }

    #[test]
    fn dma_selects_skips_and_reads() {
        let (mut device, ram) = (device(), ram());
        let mut signature = [0; 4];
        device.read(DMA, &mut signature);
        assert_eq!(&signature, b"QEMU");
        device.read(DMA_LOW, &mut signature);
        assert_eq!(&signature, b" CFG");
        ram.memory().write_slice(&[7; 16], Gpa(0x2000)).unwrap();
        let select = 0x21 << 16 | control::SELECT;
        assert_eq!(dma(&mut device, &ram, select | control::READ, 3, 0x2000), 0);
        assert_eq!(at(&ram, 0x2000, 4), b"sec\x07");
        assert_eq!(dma(&mut device, &ram, control::SKIP, 1, 0), 0);
        assert_eq!(dma(&mut device, &ram, control::READ, 5, 0x2000), 0);
        assert_eq!(at(&ram, 0x2000, 6), b"nd\0\0\0\x07", "zeroes behind the end");
        assert_eq!(dma(&mut device, &ram, select, 0, 0), 0);
        assert_eq!(dma(&mut device, &ram, control::READ, 1, RAM - 1), 0, "the last byte of RAM");
    }

    #[test]
    fn transfers_that_make_no_sense_fail_and_touch_nothing_else() {
        let (mut device, ram) = (device(), ram());
        let read = 0x20 << 16 | control::SELECT | control::READ;
        let error = control::ERROR;
        for (control, length, to) in [
            (read, 4, RAM - 2),
            (read, 4, u64::MAX - 1),
            (read, 0x2000, RAM - 0x1000),
            (read, u32::MAX, 0x2000),
            (read, MAX_TRANSFER + 1, 0x2000),
            (control::WRITE, 1, 0x2000),
        ] {
            assert_eq!(
                dma(&mut device, &ram, control, length, to),
                error,
                "{length:#x} to {to:#x}"
            );
        }
        assert_eq!(dma(&mut device, &ram, control::SKIP, u32::MAX, 0), 0);
        assert_eq!(dma(&mut device, &ram, control::SKIP, u32::MAX, 0), 0);
        assert_eq!(dma(&mut device, &ram, control::READ, 2, 0x2000), 0);
        assert_eq!(at(&ram, 0x2000, 2), [0, 0]);
        // An access that is not in RAM, and widths that no register has.
        device.write(DMA, &u32::MAX.to_be_bytes(), ram.memory());
        device.write(DMA_LOW, &u32::MAX.to_be_bytes(), ram.memory());
        for port in PORTS {
            for length in 0..9 {
                device.write(port, &vec![0xff; length], ram.memory());
                device.read(port, &mut vec![0; length]);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        /// A transfer writes its answer and what it names, and no other byte of RAM.
        #[test]
        fn transfers_write_what_they_name_and_nothing_else(
            control in any::<u32>(),
            select in 0u32..0x24,
            length in prop_oneof![0u32..0x3000, any::<u32>()],
            to in prop_oneof![0x1_0000..RAM + 16, any::<u64>()],
        ) {
            let (mut device, ram) = (device(), ram());
            let before = vec![7; RAM as usize];
            ram.memory().write_slice(&before, Gpa(0)).unwrap();
            dma(&mut device, &ram, control & 0xffff | select << 16, length, to);
            let end = to.saturating_add(u64::from(length));
            let after = at(&ram, 0, RAM as usize);
            let access = AT..AT + ACCESS as u64;
            let changed = (0..).zip(&after).filter(|(i, byte)| **byte != 7 && !access.contains(i));
            prop_assert!(changed.into_iter().all(|(i, _)| (to..end).contains(&i)));
        }
    }
}
