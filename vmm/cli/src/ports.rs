//! Says what was plugged and unplugged.

use crate::events::{Events, GuestEvent};
use beamline_vmm::pci::slot::SlotWatch;
use beamline_vmm::{Config, GuestControl};

/// What of a guest's root ports was said already.
pub(crate) struct PortEvents<'a> {
    config: &'a Config,
    control: &'a GuestControl,
    events: Events,
    /// Of each port, how many changes.
    said: Vec<u64>,
}

impl<'a> PortEvents<'a> {
    /// Nothing was said yet.
    pub(crate) fn new(config: &'a Config, control: &'a GuestControl, events: Events) -> Self {
        Self { config, control, events, said: vec![0; config.ports.len()] }
    }

    /// Says what has happened since the last look.
    pub(crate) fn look(&mut self) {
        for (index, (port, said)) in self.config.ports.iter().zip(&mut self.said).enumerate() {
            let Some(now) = self.control.port(index).map(SlotWatch::changes) else { continue };
            for change in *said..now {
                // By turns: what is plugged from the start is unplugged first.
                let name = port.name.clone();
                self.events.say(&if (change % 2 == 0) == port.plugged {
                    GuestEvent::Unplugged { port: name }
                } else {
                    GuestEvent::Plugged { port: name }
                });
            }
            *said = now;
        }
    }
}
