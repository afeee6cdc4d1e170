//! Stage 2, doorbell: the vGPU, a virtio-gpu (virtio 1.3, section 5.7): its identity and its device
//! configuration. Its [requests](request) and [answers](answer) are pure functions over bytes.

pub mod answer;
pub mod request;
#[cfg(test)]
mod tests;

use super::transport::{DeviceSpecific, QUEUES, VirtioHandle, VirtioIdentity, VirtioPci};
use crate::device::pci::PciError;
pub use answer::{Answer, EdidAnswer};
use beamline_abi::virtio_gpu::{Config, DEVICE_TYPE, feature};
pub use request::{Fence, REQUEST_HEAD, Request, SUBMIT_PAYLOAD, ShortRequest, Shown, decode};
use zerocopy::IntoBytes;

/// The vGPU function.
pub type VirtioGpu = VirtioPci<GpuDevice>;
/// The worker's and the poster's side of a vGPU.
pub type GpuHandle = VirtioHandle;

/// PCI class: display controller, other.
const CLASS: u32 = 0x03_80_00;

/// What a vGPU offers beside a display.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuConfig {
    /// Contexts, with the frame capset. Without them blobs of guest memory: Linux waits for a flush's fence
    /// where it shows a blob, and it shows blobs where there are no contexts.
    pub contexts: bool,
}

/// The device-specific part of a vGPU.
pub struct GpuDevice {
    contexts: bool,
    config: Config,
}

impl VirtioPci<GpuDevice> {
    /// A vGPU, and the handle for its slice's threads.
    pub fn new(config: GpuConfig) -> Result<(Self, GpuHandle), PciError> {
        let config_space = Config {
            events_read: 0,
            events_clear: 0,
            num_scanouts: 1,
            num_capsets: u32::from(config.contexts),
        };
        Self::from_device(GpuDevice { contexts: config.contexts, config: config_space })
    }
}

impl DeviceSpecific for GpuDevice {
    fn identity(&self) -> VirtioIdentity {
        VirtioIdentity { device_type: DEVICE_TYPE, class: CLASS, queues: QUEUES as u16 }
    }

    fn features(&self) -> u64 {
        let contexts = feature::VIRGL | feature::CONTEXT_INIT;
        feature::EDID | if self.contexts { contexts } else { feature::RESOURCE_BLOB }
    }

    fn read_config(&self, offset: usize, out: &mut [u8]) {
        let bytes = self.config.as_bytes();
        for (to, from) in out.iter_mut().zip(bytes.iter().skip(offset)) {
            *to = *from;
        }
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        // `events_clear` is the only writable field.
        if let (4, Ok(bits)) = (offset, <[u8; 4]>::try_from(data)) {
            self.config.events_read &= !u32::from_le_bytes(bits);
        }
    }

    fn reset(&mut self) {
        self.config.events_read = 0;
    }
}
