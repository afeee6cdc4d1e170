//! The modern virtio-pci transport (virtio 1.3, section 4.1), as a driver sees it.

use crate::gpu::queue::SplitQueue;
use crate::pci::{Function, PciError};
use crate::transport::{Gpa, Transport, Width};
use beamline_abi::pci::capability;
use beamline_abi::virtio_pci::{NO_VECTOR, cap, common, feature, status};

/// How often the driver looks whether a reset is over.
const RESET_TRIES: u32 = 10_000;

/// Why a virtio function cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VirtioError {
    /// The PCI function cannot be used.
    #[error("the virtio PCI function cannot be used")]
    Pci(#[from] PciError),
    /// A structure is missing or too short.
    #[error("the virtio capability of type {cfg_type} is missing or shorter than {needed} bytes")]
    Capability {
        /// See [`cap`].
        cfg_type: u8,
        /// Bytes that the driver needs.
        needed: u32,
    },
    /// The device does not come out of reset.
    #[error("the virtio device did not finish its reset: status {0:#04x}")]
    Reset(u8),
    /// The device lacks features.
    #[error("the virtio device lacks the features {missing:#x}; it offers {offered:#x}")]
    Features {
        /// What is missing.
        missing: u64,
        /// What it offers.
        offered: u64,
    },
    /// The device does not accept the features.
    #[error("the virtio device refused the features {0:#x} although it offers them")]
    FeaturesRefused(u64),
    /// A queue is too small or refuses its vector.
    #[error(
        "virtio queue {queue} has {size} entries and took vector {vector:#x}; {needed} entries are needed"
    )]
    Queue {
        /// The queue.
        queue: u16,
        /// The device's largest size for it.
        size: u16,
        /// The vector that the device read back.
        vector: u16,
        /// The size that is needed.
        needed: u16,
    },
}

/// A structure in a BAR.
#[derive(Clone, Copy, Debug)]
struct Window {
    base: Gpa,
    len: u32,
}

/// A virtio function's structures.
#[derive(Debug)]
pub struct VirtioPci {
    common: Gpa,
    device: Gpa,
    notify: Window,
    multiplier: u32,
}

impl VirtioPci {
    /// Finds the structures. `device_len` bytes of device-specific configuration are needed.
    pub fn attach<T: Transport>(
        t: &mut T,
        function: &Function,
        device_len: u32,
    ) -> Result<Self, VirtioError> {
        let (common, _) = window(t, function, cap::COMMON, common::SIZE)?;
        let (notify, capability) = window(t, function, cap::NOTIFY, 2)?;
        let (device, _) = window(t, function, cap::DEVICE, device_len)?;
        let at = capability + cap::NOTIFY_MULTIPLIER;
        let multiplier = t.config_read(function.slot(), at, Width::Dword);
        Ok(Self { common: common.base, device: device.base, notify, multiplier })
    }

    /// Resets the device and agrees on exactly the features `wanted`, plus a modern device.
    pub fn negotiate<T: Transport>(&self, t: &mut T, wanted: u64) -> Result<(), VirtioError> {
        let wanted = wanted | feature::VERSION_1;
        self.set_status(t, 0);
        let mut left = RESET_TRIES;
        while self.status(t) != 0 {
            left -= 1;
            if left == 0 {
                return Err(VirtioError::Reset(self.status(t)));
            }
        }
        self.add_status(t, status::ACKNOWLEDGE);
        self.add_status(t, status::DRIVER);
        let offered = self.offered(t);
        if wanted & !offered != 0 {
            self.add_status(t, status::FAILED);
            return Err(VirtioError::Features { missing: wanted & !offered, offered });
        }
        for half in 0..2 {
            self.write(t, common::DRIVER_FEATURE_SELECT, Width::Dword, half);
            let bits = wanted >> (32 * half) & 0xffff_ffff;
            self.write(t, common::DRIVER_FEATURE, Width::Dword, bits);
        }
        self.add_status(t, status::FEATURES_OK);
        if self.status(t) & status::FEATURES_OK == 0 {
            self.add_status(t, status::FAILED);
            return Err(VirtioError::FeaturesRefused(wanted));
        }
        self.write(t, common::CONFIG_MSIX_VECTOR, Width::Word, NO_VECTOR.into());
        Ok(())
    }

    /// The largest size of a queue; 0 where there is no such queue.
    pub fn queue_max<T: Transport>(&self, t: &mut T, queue: u16) -> u16 {
        self.write(t, common::QUEUE_SELECT, Width::Word, queue.into());
        self.read(t, common::QUEUE_SIZE, Width::Word) as u16
    }

    /// Gives a queue its memory and its vector, and switches it on. Answers where to kick it.
    pub fn enable_queue<T: Transport>(
        &self,
        t: &mut T,
        queue: u16,
        memory: &SplitQueue,
        vector: u16,
    ) -> Result<Gpa, VirtioError> {
        let size = self.queue_max(t, queue);
        let needed = memory.size();
        self.write(t, common::QUEUE_SIZE, Width::Word, needed.into());
        self.write(t, common::QUEUE_MSIX_VECTOR, Width::Word, vector.into());
        let got = self.read(t, common::QUEUE_MSIX_VECTOR, Width::Word) as u16;
        if size < needed || got != vector {
            return Err(VirtioError::Queue { queue, size, vector: got, needed });
        }
        let (desc, avail, used) = memory.addresses();
        for (register, gpa) in [
            (common::QUEUE_DESC, desc),
            (common::QUEUE_DRIVER, avail),
            (common::QUEUE_DEVICE, used),
        ] {
            // Two halves: a device need not take 64 bits at once (4.1.3.1).
            self.write(t, register, Width::Dword, gpa.0 & 0xffff_ffff);
            self.write(t, register + 4, Width::Dword, gpa.0 >> 32);
        }
        let offset =
            self.read(t, common::QUEUE_NOTIFY_OFF, Width::Word) * u64::from(self.multiplier);
        if offset + 2 > u64::from(self.notify.len) {
            let needed = u32::try_from(offset + 2).unwrap_or(u32::MAX);
            return Err(VirtioError::Capability { cfg_type: cap::NOTIFY, needed });
        }
        self.write(t, common::QUEUE_ENABLE, Width::Word, 1);
        Ok(self.notify.base.at(offset))
    }

    /// Says that the driver is ready.
    pub fn start<T: Transport>(&self, t: &mut T) {
        self.add_status(t, status::DRIVER_OK);
    }

    /// The device status. An exit: not for every frame.
    pub fn status<T: Transport>(&self, t: &mut T) -> u8 {
        self.read(t, common::DEVICE_STATUS, Width::Byte) as u8
    }

    /// 32 bits of the device-specific configuration; `offset` lies within what was asked for.
    pub fn device_config<T: Transport>(&self, t: &mut T, offset: u32) -> u32 {
        t.mmio_read(self.device.at(offset.into()), Width::Dword) as u32
    }

    fn offered<T: Transport>(&self, t: &mut T) -> u64 {
        (0..2).fold(0, |all, half| {
            self.write(t, common::DEVICE_FEATURE_SELECT, Width::Dword, half);
            all | (self.read(t, common::DEVICE_FEATURE, Width::Dword) & 0xffff_ffff) << (32 * half)
        })
    }

    fn add_status<T: Transport>(&self, t: &mut T, bit: u8) {
        let new = self.status(t) | bit;
        self.set_status(t, new);
    }

    fn set_status<T: Transport>(&self, t: &mut T, value: u8) {
        self.write(t, common::DEVICE_STATUS, Width::Byte, value.into());
    }

    fn read<T: Transport>(&self, t: &mut T, register: u32, width: Width) -> u64 {
        t.mmio_read(self.common.at(register.into()), width)
    }

    fn write<T: Transport>(&self, t: &mut T, register: u32, width: Width, value: u64) {
        t.mmio_write(self.common.at(register.into()), width, value);
    }
}

/// The first structure of this type, and the offset of its capability.
fn window<T: Transport>(
    t: &mut T,
    function: &Function,
    cfg_type: u8,
    needed: u32,
) -> Result<(Window, u16), VirtioError> {
    let slot = function.slot();
    let found = function.capabilities(t, |t, id, at| {
        let is = id == capability::VENDOR
            && t.config_read(slot, at + cap::CFG_TYPE, Width::Byte) == u32::from(cfg_type);
        is.then(|| {
            let bar = t.config_read(slot, at + cap::BAR, Width::Byte) as u8;
            let offset = t.config_read(slot, at + cap::OFFSET, Width::Dword);
            let len = t.config_read(slot, at + cap::LENGTH, Width::Dword);
            (at, bar, offset, len)
        })
    })?;
    let Some((at, bar, offset, len)) = found.filter(|found| found.3 >= needed) else {
        return Err(VirtioError::Capability { cfg_type, needed });
    };
    let base = function.bar(t, bar, offset.into(), len.into())?;
    Ok((Window { base, len }, at))
}
