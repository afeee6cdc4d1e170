//! A console with one port (virtio 1.3, section 5.3): to the terminal, a file or a socket.

mod endpoint;
mod queue;
#[cfg(test)]
mod tests;

pub use endpoint::{Endpoint, EndpointError, Output};

use super::{Activation, DeviceError, DeviceModel, Kind, Serve};
use std::sync::Arc;

/// Receive and transmit.
const QUEUES: [u16; 2] = [64, 64];

/// A virtio console.
pub struct Console {
    endpoint: Arc<Endpoint>,
}

impl Console {
    /// A console whose other end is `endpoint`.
    pub fn new(endpoint: Endpoint) -> Self {
        Self { endpoint: Arc::new(endpoint) }
    }
}

impl DeviceModel for Console {
    fn kind(&self) -> Kind {
        Kind::Console
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUES
    }

    fn activate(&mut self, mut start: Activation) -> Result<Box<dyn Serve>, DeviceError> {
        // A driver may use one direction alone.
        let (receive, transmit) = (start.take(0), start.take(1));
        let endpoint = Arc::clone(&self.endpoint);
        Ok(Box::new(queue::Port::new(receive, transmit, start.memory, endpoint)))
    }
}
