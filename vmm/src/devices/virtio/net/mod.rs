//! A network card (virtio 1.3, section 5.1): on a tap interface of the host, or served by another process ([`user`]).

mod queue;
mod registers;
pub mod tap;
#[cfg(test)]
mod tests;
pub mod user;

pub use queue::Counters;
pub use registers::{Mac, MacError};

use super::{Activation, DeviceError, DeviceModel, Kind, Serve, read_space};
use registers::feature;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Receive and transmit.
const QUEUES: [u16; 2] = [256, 256];

/// What carries frames: each read is one frame, each write another, with a header of 12 bytes in front
/// (5.1.6). Never blocks.
pub trait Port: Send + Sync {
    /// The descriptor that is read, written and waited for.
    fn fd(&self) -> &OwnedFd;
    /// The guest agreed to these features: frames that need others must not come.
    fn set_offloads(&self, features: u64) -> io::Result<()>;
}

/// A virtio network card.
pub struct Net {
    port: Arc<dyn Port>,
    mac: Mac,
    counters: Arc<Counters>,
    label: String,
}

impl Net {
    /// A card called `label` in messages.
    pub fn new(label: &str, port: impl Port + 'static, mac: Mac) -> Self {
        Self { port: Arc::new(port), mac, counters: Arc::default(), label: label.to_owned() }
    }

    /// Frames that were dropped.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }
}

impl DeviceModel for Net {
    fn kind(&self) -> Kind {
        Kind::Net
    }

    fn features(&self) -> u64 {
        feature::OFFERED
    }

    fn accepts(&self, features: u64) -> bool {
        feature::are_consistent(features)
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUES
    }

    fn config_len(&self) -> u32 {
        registers::SIZE as u32
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_space(&registers::registers(self.mac, true), offset, data);
    }

    fn activate(&mut self, mut start: Activation) -> Result<Box<dyn Serve>, DeviceError> {
        let (receive, transmit) = (start.need(0)?, start.need(1)?);
        self.port.set_offloads(start.features).map_err(|source| DeviceError::Os {
            what: "the tap's offloads cannot be set",
            source,
        })?;
        Ok(Box::new(queue::Frames::new(receive, transmit, start.memory, start.features, self)))
    }
}
