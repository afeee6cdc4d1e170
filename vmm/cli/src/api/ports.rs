//! Plugging devices in and out over the API.

use super::json::{PortJson, UnplugJson};
use super::routes::{Guest, conflict, ended, unprocessable};
use crate::device;
use crate::events::GuestEvent;
use beamline_mdev::host::api::answers::{Refused, refuse};
use beamline_mdev::host::api::json::ErrorJson;
use beamline_vmm::PlugError;
use beamline_vmm::config::{Device, Port};
use beamline_vmm::pci::port::State;
use beamline_vmm::pci::slot::{Leaving, SlotError, SlotWatch};
use hyper::StatusCode;
use rustix::io::Errno;
use std::os::unix::net::UnixStream;

impl Guest {
    /// Puts the device of the port called `name` in.
    pub(super) fn plug(&self, name: &str) -> Result<PortJson, Refused> {
        let port = self.port_number(name)?;
        self.alive()?;
        // Before anyone is connected to: a server has one guest.
        if self.control.port(port).is_some_and(|watch| watch.state() != State::Empty) {
            return Err(refused(name, SlotError::Occupied.into()));
        }
        let connection = match &self.config.ports[port].device {
            Device::VfioUser(_) => Some(self.connect(port)?),
            _ => None,
        };
        self.control.plug(port, connection).map_err(|e| refused(name, e))?;
        Ok(self.port_json(name, port))
    }

    /// Asks the guest to let it go, or takes it out.
    pub(super) fn unplug(&self, name: &str, asked: UnplugJson) -> Result<PortJson, Refused> {
        let port = self.port_number(name)?;
        self.alive()?;
        let leaving = self.control.unplug(port, asked.force).map_err(|e| refused(name, e))?;
        if leaving == Leaving::Asked {
            self.events.say(&GuestEvent::UnplugAsked { port: name.to_owned() });
        }
        Ok(self.port_json(name, port))
    }

    /// A connection to the server of what port number `port` takes.
    fn connect(&self, port: usize) -> Result<UnixStream, Refused> {
        let Port { name, device, .. } = &self.config.ports[port];
        let connector = self.connector.as_ref();
        let result = connector.map_or(Err(Errno::NOENT), |connector| connector.connect(port));
        result.map_err(|e| {
            let what = device::opens(device).unwrap_or_default();
            let mend =
                "start `beamline host` for this guest first, or correct the device's `socket`";
            let said = ErrorJson::new(format!("{what}: {e}"), format!("port {name}"), mend);
            refuse(StatusCode::CONFLICT, &said)
        })
    }

    fn port_json(&self, name: &str, port: usize) -> PortJson {
        let state = self.control.port(port).map_or(State::Empty, SlotWatch::state);
        PortJson { port: name.to_owned(), state: device::port_state(state).to_owned() }
    }

    fn port_number(&self, name: &str) -> Result<usize, Refused> {
        let ports = &self.config.ports;
        ports.iter().position(|port| port.name == name).ok_or_else(|| {
            let names: Vec<&str> = ports.iter().map(|port| port.name.as_str()).collect();
            let mend = match names.as_slice() {
                [] => "add a [[port]] to the guest's file".to_owned(),
                names => format!("use one of {}", names.join(", ")),
            };
            // The name may be anything that has no slash.
            let said = ErrorJson::new("this guest has no such port", "port", mend);
            refuse(StatusCode::NOT_FOUND, &said)
        })
    }
}

fn refused(name: &str, error: PlugError) -> Refused {
    let place = format!("port {name}");
    let mend = match &error {
        PlugError::Ended => return ended(),
        PlugError::Slot(SlotError::Occupied) => "unplug it first",
        PlugError::Slot(SlotError::Empty) => "plug it first",
        PlugError::Slot(SlotError::Busy) => "ask again in a moment, or use force",
        PlugError::Connect(_) | PlugError::Attach(_) => "look at the device's server",
        PlugError::Slot(_) | PlugError::Connection => {
            return unprocessable(error.to_string(), place, "look at the guest's file");
        }
    };
    conflict(error, place, mend)
}
