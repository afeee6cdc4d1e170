//! virtio's capabilities in configuration space, and access to the BAR through one of them
//! (virtio 1.3, sections 4.1.4 and 4.1.4.9).

use super::{BAR, BAR_SIZE, DeviceSpecific, NOTIFY_MULTIPLIER, PAGE, Page, VirtioPci};
use crate::device::pci::{Function, PciError};
use beamline_abi::pci::capability;
use beamline_abi::virtio_pci::{cap, common};
use beamline_vfio_user::Device;

/// `cfg_type` of access through configuration space (4.1.4.9).
const CAP_PCI_CFG: u8 = 5;
/// Bytes of that capability: a virtio capability and four bytes of data.
const PCI_CFG_SIZE: usize = 20;

/// Appends virtio's capabilities (4.1.4); where the one for access through configuration space is.
pub(super) fn add_capabilities(function: &mut Function) -> Result<usize, PciError> {
    let body = |cfg_type: u8, size: usize, bar: u8, offset: u64, length: u32| {
        let mut body = [0; PCI_CFG_SIZE];
        body[0] = capability::VENDOR;
        body[2] = size as u8;
        body[usize::from(cap::CFG_TYPE)] = cfg_type;
        body[usize::from(cap::BAR)] = bar;
        body[usize::from(cap::OFFSET)..][..4].copy_from_slice(&(offset as u32).to_le_bytes());
        body[usize::from(cap::LENGTH)..][..4].copy_from_slice(&length.to_le_bytes());
        body
    };
    let page = PAGE as u32;
    for (kind, at, length) in [
        (cap::COMMON, Page::Common, common::SIZE),
        (cap::ISR, Page::Isr, 1),
        (cap::DEVICE, Page::Device, page),
    ] {
        let body = body(kind, 16, BAR.0 as u8, at.offset(), length);
        function.config.add_capability(&body[..16], &[])?;
    }
    let mut notify = body(cap::NOTIFY, 20, BAR.0 as u8, Page::Notify.offset(), page);
    notify[usize::from(cap::NOTIFY_MULTIPLIER)..]
        .copy_from_slice(&(NOTIFY_MULTIPLIER as u32).to_le_bytes());
    function.config.add_capability(&notify, &[])?;
    let mut mask = [0; PCI_CFG_SIZE];
    mask[usize::from(cap::BAR)] = 0xff;
    mask[usize::from(cap::OFFSET)..].fill(0xff);
    function.config.add_capability(&body(CAP_PCI_CFG, PCI_CFG_SIZE, 0, 0, 0), &mask)
}

impl<D: DeviceSpecific> VirtioPci<D> {
    /// Access through configuration space: the structure names BAR, offset and length; its data field is
    /// the register. `None` where the driver set something else.
    fn pci_cfg_target(&self) -> Option<(u64, usize)> {
        let mut window = [0; PCI_CFG_SIZE];
        self.function.config.read(self.pci_cfg as u64, &mut window);
        let u32_at = |at: usize| {
            window[at..].first_chunk::<4>().map_or(0, |bytes| u32::from_le_bytes(*bytes))
        };
        let (offset, len) = (u32_at(cap::OFFSET.into()), u32_at(cap::LENGTH.into()));
        let fits = matches!(len, 1 | 2 | 4)
            && offset.is_multiple_of(len)
            && u64::from(offset) + u64::from(len) <= BAR_SIZE
            && u32::from(window[usize::from(cap::BAR)]) == BAR.0;
        fits.then_some((offset.into(), len as usize))
    }

    /// Whether an access to configuration space touches that data field.
    fn touches_pci_cfg(&self, offset: u64, len: usize) -> bool {
        let data = (self.pci_cfg + 16) as u64;
        offset < data + 4 && data < offset.saturating_add(len as u64)
    }

    pub(super) fn read_config(&mut self, offset: u64, data: &mut [u8]) {
        if self.touches_pci_cfg(offset, data.len())
            && let Some((at, len)) = self.pci_cfg_target()
        {
            let mut value = [0; 4];
            self.read_bar(at, &mut value[..len]);
            self.function.config.put(self.pci_cfg + 16, &value);
        }
        self.function.config.read(offset, data);
    }

    pub(super) fn write_config(&mut self, offset: u64, data: &[u8]) {
        let effect = self.function.write_config(offset, data);
        if effect.reset {
            self.reset();
            return;
        }
        if let Some(on) = effect.bus_master {
            self.set_bus_master(on);
        }
        if self.touches_pci_cfg(offset, data.len())
            && let Some((at, len)) = self.pci_cfg_target()
        {
            let mut value = [0; 4];
            self.function.config.read((self.pci_cfg + 16) as u64, &mut value);
            self.write_bar(at, &value[..len]);
        }
    }
}
