//! The function's configuration space and BAR (virtio 1.3, sections 4.1.2 to 4.1.4.9).
//!
//! | BAR0 | what |
//! |---|---|
//! | 0x0000 | common configuration |
//! | 0x0800 | ISR status |
//! | 0x1000 | the device's configuration |
//! | 0x2000 | notifications: 4 bytes per queue |
//! | 0x3000 | MSI-X table |
//! | 0x3800 | MSI-X pending bits |

use crate::devices::virtio::Kind;
use crate::pci::bar::{BARS, BarShape, BarShapes};
use crate::pci::msix::{Capability, Place};
use beamline_abi::pci::{capability, config, msix, status};
use beamline_abi::virtio_pci::{self as pci, cap, common};

/// Bytes of BAR0.
pub(super) const BAR_SIZE: u64 = 0x4000;
pub(super) const ISR: u64 = 0x800;
pub(super) const DEVICE: u64 = 0x1000;
pub(super) const NOTIFY: u64 = 0x2000;
/// Bytes between the notification addresses of two queues.
pub(super) const NOTIFY_STEP: u64 = 4;
const TABLE: u64 = 0x3000;
const PBA: u64 = 0x3800;
/// As many queues, and one vector for configuration changes, have room in table and pending bits.
pub(super) const MAX_QUEUES: usize = 64;

/// `cfg_type` of the window in configuration space (4.1.4.9), which nothing else here uses.
const CAP_PCI: u8 = 5;
/// Where its data is, from the capability's start.
const WINDOW_DATA: u16 = 16;

/// Configuration space.
pub(super) struct ConfigSpace {
    bytes: [u8; config::SIZE],
    /// Where the window's capability is.
    window: u16,
    /// The MSI-X capability.
    pub(super) msix: Capability,
}

/// What an access to configuration space means.
pub(super) enum Access {
    /// Plain bytes.
    Plain,
    /// The window: an access of `len` bytes to BAR0 at `offset`.
    Window { offset: u64, len: usize },
}

impl ConfigSpace {
    pub(super) fn new(kind: Kind, queues: usize, config_len: u32) -> Self {
        let vectors = queues as u16 + 1;
        let place = |at, bytes| Place { bar: 0, range: at..at + bytes };
        let table = place(TABLE, u64::from(vectors) * u64::from(msix::ENTRY_SIZE));
        let pba = place(PBA, u64::from(vectors).div_ceil(64) * 8);
        let mut this = Self {
            bytes: [0; config::SIZE],
            window: 0,
            msix: Capability { at: 0, vectors, table, pba },
        };
        this.header(kind);
        let mut next = Link { at: 0x40, last: config::CAPABILITIES };
        this.structure(&mut next, cap::COMMON, 0, common::SIZE, None);
        let notify = queues as u32 * NOTIFY_STEP as u32;
        this.structure(&mut next, cap::NOTIFY, NOTIFY, notify, Some(NOTIFY_STEP as u32));
        this.structure(&mut next, cap::ISR, ISR, 1, None);
        if config_len > 0 {
            this.structure(&mut next, cap::DEVICE, DEVICE, config_len, None);
        }
        this.window = this.structure(&mut next, CAP_PCI, 0, 0, Some(0));
        this.msix.at = this.msix(&mut next);
        this
    }

    fn header(&mut self, kind: Kind) {
        let id = pci::DEVICE_ID_BASE + kind.id();
        self.put(config::VENDOR_ID, &pci::VENDOR_ID.to_le_bytes());
        self.put(config::DEVICE_ID, &id.to_le_bytes());
        self.put(config::STATUS, &status::CAPABILITIES.to_le_bytes());
        // Modern devices have revision 1 or higher (4.1.2.1).
        self.put(config::REVISION, &[1]);
        self.put(config::CLASS, &kind.class().to_le_bytes()[..3]);
        self.put(config::SUBSYSTEM_VENDOR, &pci::VENDOR_ID.to_le_bytes());
        // From 0x40 on, so that no legacy driver takes it for its own (4.1.2.1).
        self.put(config::SUBSYSTEM_ID, &(0x40 + kind.id()).to_le_bytes());
    }

    /// Appends a virtio capability and returns where it is.
    fn structure(
        &mut self,
        next: &mut Link,
        kind: u8,
        offset: u64,
        len: u32,
        extra: Option<u32>,
    ) -> u16 {
        let size = if extra.is_some() { 20 } else { 16 };
        let at = self.link(next, capability::VENDOR, size);
        self.put(at + 2, &[size as u8]);
        self.put(at + cap::CFG_TYPE, &[kind]);
        self.put(at + cap::OFFSET, &(offset as u32).to_le_bytes());
        self.put(at + cap::LENGTH, &len.to_le_bytes());
        if let Some(extra) = extra {
            self.put(at + cap::NOTIFY_MULTIPLIER, &extra.to_le_bytes());
        }
        at
    }

    fn msix(&mut self, next: &mut Link) -> u16 {
        let at = self.link(next, capability::MSIX, msix::CAP_SIZE);
        let (table, pba) = (self.msix.table.range.start, self.msix.pba.range.start);
        self.put(at + msix::TABLE, &(table as u32).to_le_bytes());
        self.put(at + msix::PBA, &(pba as u32).to_le_bytes());
        at
    }

    fn link(&mut self, next: &mut Link, id: u8, size: u16) -> u16 {
        let at = next.at;
        self.put(next.last, &[at as u8]);
        self.put(at, &[id]);
        *next = Link { at: (at + size).next_multiple_of(4), last: at + 1 };
        at
    }

    /// All places are constants within the space.
    fn put(&mut self, at: u16, bytes: &[u8]) {
        self.bytes[usize::from(at)..][..bytes.len()].copy_from_slice(bytes);
    }

    /// What an access at `offset` reaches.
    pub(super) fn access(&self, offset: u16) -> Access {
        if offset & !3 != self.window + WINDOW_DATA {
            return Access::Plain;
        }
        let word = |at: u16| {
            let mut bytes = [0; 4];
            crate::devices::virtio::read_space(&self.bytes, at.into(), &mut bytes);
            u32::from_le_bytes(bytes)
        };
        let (at, len) = (word(self.window + cap::OFFSET), word(self.window + cap::LENGTH));
        let bar = word(self.window + cap::BAR) & 0xff;
        let inside = u64::from(at) + u64::from(len) <= BAR_SIZE;
        if bar == 0 && matches!(len, 1 | 2 | 4) && at.is_multiple_of(len) && inside {
            Access::Window { offset: at.into(), len: len as usize }
        } else {
            Access::Plain
        }
    }

    /// Reads plain bytes.
    pub(super) fn read(&self, offset: u16, data: &mut [u8]) {
        data.fill(0);
        crate::devices::virtio::read_space(&self.bytes, offset.into(), data);
    }

    /// Writes plain bytes: only the window's fields change.
    pub(super) fn write(&mut self, offset: u16, data: &[u8]) {
        let fields = [
            self.window + cap::BAR..self.window + cap::BAR + 1,
            self.window + cap::OFFSET..self.window + WINDOW_DATA + 4,
        ];
        for (at, byte) in (offset..).zip(data) {
            if fields.iter().any(|f| f.contains(&at))
                && let Some(to) = self.bytes.get_mut(usize::from(at))
            {
                *to = *byte;
            }
        }
    }

    /// The window's data.
    pub(super) fn window_data(&mut self) -> &mut [u8; 4] {
        let at = usize::from(self.window + WINDOW_DATA);
        // The capability is within the space.
        self.bytes[at..].first_chunk_mut().expect("the window is within configuration space")
    }
}

/// Where the next capability goes, and which byte leads there.
struct Link {
    at: u16,
    last: u16,
}

/// BAR0 alone, 32-bit.
pub(super) fn bars() -> BarShapes {
    let mut bars = [None; BARS];
    bars[0] = Some(BarShape { size: BAR_SIZE, wide: false, prefetch: false });
    bars
}
