//! A memory balloon (virtio 1.3, section 5.5): memory that the guest does not use goes back to the host.
//!
//! The guest gives pages up when a [`Target`] asks it to, and, with free page reporting, on its own.

mod queue;
mod registers;
#[cfg(test)]
mod tests;

pub use registers::Target;

use super::{Activation, DeviceError, DeviceModel, Kind, Serve, read_space};
use registers::feature;

/// Inflate, deflate, reporting. The queues of features that are not offered do not exist, and drivers
/// number the others without gaps.
const QUEUES: [u16; 3] = [128, 128, 32];

/// A virtio balloon.
#[derive(Debug, Default)]
pub struct Balloon {
    target: Target,
}

impl Balloon {
    /// A balloon that asks for nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// What the guest is asked for, and what it gave.
    pub fn target(&self) -> Target {
        self.target.clone()
    }
}

impl DeviceModel for Balloon {
    fn kind(&self) -> Kind {
        Kind::Balloon
    }

    fn features(&self) -> u64 {
        feature::DEFLATE_ON_OOM | feature::REPORTING
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUES
    }

    fn config_len(&self) -> u32 {
        registers::SIZE as u32
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_space(&self.target.registers(), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.target.write(offset, data);
    }

    fn activate(&mut self, mut start: Activation) -> Result<Box<dyn Serve>, DeviceError> {
        let (inflate, deflate) = (start.need(0)?, start.need(1)?);
        let reporting = start.take(2).filter(|_| start.features & feature::REPORTING != 0);
        self.target.connect(&start.shared);
        Ok(Box::new(queue::Pages::new(inflate, deflate, reporting, start.memory)))
    }

    fn reset(&mut self) {
        self.target.disconnect();
    }
}
