//! An entropy source (virtio 1.3, section 5.4), from the host's own.

mod queue;
#[cfg(test)]
mod tests;

use super::{Activation, DeviceError, DeviceModel, Kind, Serve};

/// A virtio entropy source.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rng;

impl DeviceModel for Rng {
    fn kind(&self) -> Kind {
        Kind::Rng
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64]
    }

    fn activate(&mut self, mut start: Activation) -> Result<Box<dyn Serve>, DeviceError> {
        Ok(Box::new(queue::Requests::new(start.need(0)?, start.memory)))
    }
}
