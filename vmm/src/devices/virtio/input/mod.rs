//! An input device (virtio 1.3, section 5.8): a keyboard, mouse, tablet or gamepad that this process speaks
//! for, or one of the host's.

mod evdev;
mod events;
mod queue;
mod registers;
#[cfg(test)]
mod tests;

pub use evdev::{Evdev, EvdevError};
pub use events::{Event, InputSender, NoRoom};
pub use registers::{AbsInfo, Description, kind};

use super::{Activation, DeviceError, DeviceModel, Kind, Serve, read_space};
use registers::Select;
use std::sync::Arc;

/// Events and status.
const QUEUES: [u16; 2] = [64, 64];

/// A virtio input device.
pub struct Input {
    description: Arc<Description>,
    select: Select,
    sender: InputSender,
    evdev: Option<Arc<Evdev>>,
}

impl Input {
    /// A device that is described so; its events come from the sender that comes with it.
    pub fn new(description: Description) -> Result<Self, DeviceError> {
        let sender = InputSender::new()
            .map_err(|source| DeviceError::Os { what: "an eventfd cannot be made", source })?;
        Ok(Self {
            description: Arc::new(description),
            select: Select::default(),
            sender,
            evdev: None,
        })
    }

    /// The host's device: what it is and what it does. The sender's events come as well.
    pub fn evdev(evdev: Evdev) -> Result<Self, DeviceError> {
        let mut this = Self::new(evdev.description().clone())?;
        this.evdev = Some(Arc::new(evdev));
        Ok(this)
    }

    /// Sends events to the guest, from any thread.
    pub fn sender(&self) -> InputSender {
        self.sender.clone()
    }
}

impl DeviceModel for Input {
    fn kind(&self) -> Kind {
        Kind::Input
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUES
    }

    fn config_len(&self) -> u32 {
        registers::SIZE as u32
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_space(&self.select.registers(&self.description), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.select.write(offset, data);
    }

    fn activate(&mut self, mut start: Activation) -> Result<Box<dyn Serve>, DeviceError> {
        let (events, status) = (start.need(0)?, start.take(1));
        // What happened before there was a driver is not news.
        self.sender.clear();
        let (sender, evdev) = (self.sender.clone(), self.evdev.clone());
        Ok(Box::new(queue::Reports::new(events, status, start.memory, sender, evdev)))
    }

    fn reset(&mut self) {
        self.select = Select::default();
    }
}
