//! Configuration space: bytes, which of them a driver may write, and a capability list.

use super::bar::{Bar, BarKind};
use super::{COMMAND_WRITABLE, PciError};
use beamline_abi::pci::{capability, command, config as header, msix, status};

/// What the function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Class code, 24 bits.
    pub class: u32,
    /// Revision.
    pub revision: u8,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
}

/// Where MSI-X is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msix {
    /// Vectors, 1 to 2048.
    pub vectors: u16,
    /// The BAR of table and pending bits.
    pub bar: u8,
    /// Offset of the table in the BAR, a multiple of 8.
    pub table: u32,
    /// Offset of the pending bits in the BAR, a multiple of 8.
    pub pba: u32,
}

/// Offset of the first capability.
const FIRST_CAPABILITY: usize = 0x40;
/// PCI Express capability, version 2, of an endpoint (PCIe 5.0, section 7.5.3).
mod express {
    pub(super) const SIZE: usize = 0x3c;
    pub(super) const CAPABILITIES: usize = 0x02;
    pub(super) const DEVICE_CAPABILITIES: usize = 0x04;
    pub(super) const DEVICE_CONTROL: usize = 0x08;
    pub(super) const LINK_CAPABILITIES: usize = 0x0c;
    pub(super) const LINK_STATUS: usize = 0x12;
    pub(super) const LINK_CAPABILITIES_2: usize = 0x2c;
    /// Function-level reset, role-based error reporting.
    pub(super) const FLR_CAPABLE: u32 = 1 << 28 | 1 << 15;
    /// Reset value of device control: 512-byte reads, relaxed ordering, no snoop.
    pub(super) const CONTROL_RESET: u16 = 0x2810;
    /// Bit of device control: start a function-level reset; reads as 0.
    pub(super) const START_FLR: u16 = 1 << 15;
    /// 2.5 GT/s, one lane.
    pub(super) const LINK: u16 = 0x0011;
}

/// The configuration space of one function.
pub struct ConfigSpace {
    bytes: Box<[u8; header::EXTENDED_SIZE]>,
    /// Bits that a driver may write.
    mask: Box<[u8; header::EXTENDED_SIZE]>,
    /// The bytes after a reset.
    initial: Box<[u8; header::EXTENDED_SIZE]>,
    /// Where the next capability goes.
    next: usize,
    /// Where the previous capability (or the header) points to it.
    link: usize,
    /// The Express capability, once there is one.
    express: Option<usize>,
}

impl ConfigSpace {
    /// A type 0 header.
    pub fn new(identity: &Identity, bars: &[Bar]) -> Result<Self, PciError> {
        let zero = || Box::new([0; header::EXTENDED_SIZE]);
        let mut space = Self {
            bytes: zero(),
            mask: zero(),
            initial: zero(),
            next: FIRST_CAPABILITY,
            link: usize::from(header::CAPABILITIES),
            express: None,
        };
        space.init(header::VENDOR_ID, &identity.vendor.to_le_bytes());
        space.init(header::DEVICE_ID, &identity.device.to_le_bytes());
        space.init(header::STATUS, &status::CAPABILITIES.to_le_bytes());
        space.init(header::REVISION, &[identity.revision]);
        space.init(header::CLASS, &identity.class.to_le_bytes()[..3]);
        space.init(header::SUBSYSTEM_VENDOR, &identity.subsystem_vendor.to_le_bytes());
        space.init(header::SUBSYSTEM_ID, &identity.subsystem.to_le_bytes());
        space.allow(header::COMMAND.into(), &COMMAND_WRITABLE.to_le_bytes());
        space.allow(header::INTERRUPT_LINE.into(), &[0xff]);
        let mut taken = 0u8;
        for bar in bars {
            let (kind, address) = bar.bits()?;
            let registers = ((1 << bar.registers_taken()) - 1) << bar.index;
            if taken & registers != 0 {
                return Err(PciError::BarTaken { index: bar.index });
            }
            taken |= registers;
            let at = header::BAR0 + 4 * u16::from(bar.index);
            space.init(at, &(kind as u32).to_le_bytes());
            match bar.kind {
                BarKind::Memory32 => space.allow(at.into(), &(address as u32).to_le_bytes()),
                BarKind::Memory64 => space.allow(at.into(), &address.to_le_bytes()),
            }
        }
        Ok(space)
    }

    /// Appends a capability. `body` starts with its ID; the link in its second byte is filled in. `mask`
    /// has the bits that a driver may write, from the capability's start. Returns its offset.
    pub fn add_capability(&mut self, body: &[u8], mask: &[u8]) -> Result<usize, PciError> {
        let at = self.next;
        let end = at + body.len().next_multiple_of(4);
        if body.len() < 2 || mask.len() > body.len() || end > header::SIZE {
            return Err(PciError::CapabilitySpace { len: body.len() });
        }
        self.init(at as u16, body);
        self.init(at as u16 + 1, &[0]);
        self.init(self.link as u16, &[at as u8]);
        self.allow(at, mask);
        self.link = at + 1;
        self.next = end;
        Ok(at)
    }

    /// Appends the Express capability of an endpoint that can be reset.
    pub fn add_express(&mut self) -> Result<(), PciError> {
        let mut body = [0; express::SIZE];
        body[0] = capability::EXPRESS;
        let mut put = |at: usize, value: &[u8]| body[at..at + value.len()].copy_from_slice(value);
        put(express::CAPABILITIES, &2u16.to_le_bytes());
        put(express::DEVICE_CAPABILITIES, &express::FLR_CAPABLE.to_le_bytes());
        put(express::DEVICE_CONTROL, &express::CONTROL_RESET.to_le_bytes());
        put(express::LINK_CAPABILITIES, &u32::from(express::LINK).to_le_bytes());
        put(express::LINK_STATUS, &express::LINK.to_le_bytes());
        put(express::LINK_CAPABILITIES_2, &2u32.to_le_bytes());
        let mut mask = [0; express::SIZE];
        mask[express::DEVICE_CONTROL..][..2].copy_from_slice(&u16::MAX.to_le_bytes());
        self.express = Some(self.add_capability(&body, &mask)?);
        Ok(())
    }

    /// Appends the MSI-X capability.
    pub fn add_msix(&mut self, at: Msix) -> Result<(), PciError> {
        let mut body = [0; msix::CAP_SIZE as usize];
        body[0] = capability::MSIX;
        let mut put = |offset: u16, value: &[u8]| {
            body[usize::from(offset)..][..value.len()].copy_from_slice(value);
        };
        let bar = u32::from(at.bar) & 7;
        put(msix::CONTROL, &(at.vectors.saturating_sub(1) & 0x7ff).to_le_bytes());
        put(msix::TABLE, &(at.table & !7 | bar).to_le_bytes());
        put(msix::PBA, &(at.pba & !7 | bar).to_le_bytes());
        let mut mask = [0; msix::CAP_SIZE as usize];
        mask[usize::from(msix::CONTROL)..][..2]
            .copy_from_slice(&(msix::CONTROL_ENABLE | msix::CONTROL_MASK_ALL).to_le_bytes());
        self.add_capability(&body, &mask).map(|_| ())
    }

    /// Copies from `offset` on; bytes past the end read as 0.
    pub fn read(&self, offset: u64, out: &mut [u8]) {
        out.fill(0);
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.bytes.len());
        for (to, from) in out.iter_mut().zip(&self.bytes[start..]) {
            *to = *from;
        }
    }

    /// Takes the writable bits of `data`; whether that starts a function-level reset.
    #[must_use]
    pub fn write(&mut self, offset: u64, data: &[u8]) -> bool {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.bytes.len());
        for ((byte, mask), new) in self.bytes[start..].iter_mut().zip(&self.mask[start..]).zip(data)
        {
            *byte = *byte & !mask | new & mask;
        }
        let Some(at) = self.express.map(|at| at + express::DEVICE_CONTROL) else { return false };
        let control = self.u16(at);
        let starts = control & express::START_FLR != 0;
        self.put(at, &(control & !express::START_FLR).to_le_bytes());
        starts
    }

    /// Back to the state after power-up: no addresses, decoding and bus mastering off.
    pub fn reset(&mut self) {
        self.bytes.copy_from_slice(&self.initial[..]);
    }

    /// Whether the function may do DMA and send interrupts.
    pub fn bus_master(&self) -> bool {
        self.u16(header::COMMAND.into()) & command::BUS_MASTER != 0
    }

    /// Overwrites bytes whatever the mask says; what is past the end is dropped.
    pub(crate) fn put(&mut self, at: usize, value: &[u8]) {
        for (byte, new) in self.bytes.iter_mut().skip(at).zip(value) {
            *byte = *new;
        }
    }

    /// The 16 bits at `at`; 0 past the end.
    fn u16(&self, at: usize) -> u16 {
        let mut value = [0; 2];
        self.read(at as u64, &mut value);
        u16::from_le_bytes(value)
    }

    /// Sets bytes and what they are after a reset.
    fn init(&mut self, at: u16, value: &[u8]) {
        self.put(at.into(), value);
        for (byte, new) in self.initial.iter_mut().skip(at.into()).zip(value) {
            *byte = *new;
        }
    }

    /// Lets a driver write the set bits of `mask`.
    fn allow(&mut self, at: usize, mask: &[u8]) {
        for (byte, new) in self.mask.iter_mut().skip(at).zip(mask) {
            *byte |= *new;
        }
    }
}
