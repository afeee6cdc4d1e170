//! What is plugged into a guest's root ports, and taken out of them, while it runs.
//!
//! ```text
//!  caller's thread                       machine's lock                    vCPU's thread
//!  plug: connection ─► VfioUser ───────► slot: present, link up ─► interrupt ─► the guest's driver
//!  unplug: asks ───────────────────────► slot: attention button ─► interrupt ─► lets go: power indicator off
//!                                        slot: detach, link down ◄───────────────┘
//! ```
//!
//! A device of this process's own is made when the guest is built, and waits where it is not plugged: a VMM that runs
//! opens nothing. A function that another process serves is attached when it is plugged, over a connection that the
//! caller brings, and its connection ends when it is unplugged.

use crate::clock::TscOffset;
use crate::config::{Device, Port, VfioUserDevice};
use crate::devices::virtio;
use crate::interrupt::posted::Source;
use crate::memory::RamFile;
use crate::passthrough::connect::{self, ConnectError, Cutter};
use crate::passthrough::vfio_user::{AttachError, VfioUser};
use crate::pci::PciFunction;
use crate::pci::bus::{Bus, BusError};
use crate::pci::layout::Windows;
use crate::pci::port::{RootPort, State};
use crate::pci::slot::{SlotError, SlotWatch};
use crate::vm::VmError;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Why nothing is plugged or unplugged.
#[derive(Debug, thiserror::Error)]
pub enum PlugError {
    /// The guest has ended.
    #[error("the guest has ended")]
    Ended,
    /// The slot.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// A function that another process serves needs a connection, and no other device does.
    #[error("a connection is for functions that another process serves, and for no other device")]
    Connection,
    /// The server does not speak the protocol.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The function.
    #[error(transparent)]
    Attach(#[from] AttachError),
}

/// A root port of a guest.
struct Root {
    /// Its slot on bus 0.
    slot: usize,
    watch: Arc<SlotWatch>,
    /// What another process serves: the socket that it is known by.
    served: Option<PathBuf>,
    /// Cuts the connection of what is plugged, or about to be.
    cutter: Mutex<Weak<Cutter>>,
    /// Only one function is made for it at a time.
    turn: Mutex<()>,
}

impl Root {
    fn cut(&self) {
        let cutter = self.cutter.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        if let Some(cutter) = cutter {
            cutter.cut();
        }
    }
}

/// All root ports of a guest.
pub(crate) struct Ports {
    roots: Vec<Root>,
    ram: RamFile,
    tsc: TscOffset,
}

/// The guest that ports are made for.
pub(crate) struct Board<'a> {
    pub(crate) guest: &'a str,
    pub(crate) windows: Windows,
    pub(crate) memory: Arc<vm_memory::GuestMemoryMmap>,
    /// The number of the first port's device.
    pub(crate) first: usize,
}

/// What came of making ports, beside them.
#[derive(Default)]
pub(crate) struct Made {
    pub(crate) holds: Vec<(usize, virtio::Hold)>,
    pub(crate) sources: Vec<(String, Source)>,
}

impl Ports {
    /// No ports yet, of a guest with this memory and counter.
    pub(crate) fn new(ram: RamFile, tsc: TscOffset) -> Self {
        Self { roots: Vec::new(), ram, tsc }
    }

    /// Puts `ports` on the bus, each with what is plugged into it from the start.
    pub(crate) fn build(
        &mut self,
        board: &Board<'_>,
        bus: &mut Bus,
        ports: &[Port],
    ) -> Result<Made, VmError> {
        let mut made = Made::default();
        for (index, port) in ports.iter().enumerate() {
            // Configuration allows few.
            let number = index as u8 + 1;
            let label = format!("{}/port {}", board.guest, port.name);
            let window = board.windows.of_port(index);
            let slot = bus.add_port(RootPort::new(label, number.into(), number, window))?;
            let root = bus.root_port(slot).map_err(BusError::Slot)?;
            let (watch, turn, cutter) = (root.watch(), Mutex::default(), Mutex::default());
            let served = match &port.device {
                Device::VfioUser(VfioUserDevice { socket, .. }) => Some(socket.clone()),
                _ => None,
            };
            let new = Root { slot, watch, served, cutter, turn };
            let function = self.function(board, index, port, &new, &mut made)?;
            if let Some(function) = function {
                root.stock(function).map_err(BusError::Slot)?;
                if port.plugged {
                    root.start_with_it().map_err(BusError::Slot)?;
                }
            }
            self.roots.push(new);
        }
        Ok(made)
    }

    /// What waits for port number `index`, or is in it from the start.
    fn function(
        &self,
        board: &Board<'_>,
        index: usize,
        port: &Port,
        root: &Root,
        made: &mut Made,
    ) -> Result<Option<Box<dyn PciFunction>>, VmError> {
        if let Device::VfioUser(device) = &port.device {
            made.sources.push((label(&device.socket), Source::Irqfd));
            if !port.plugged {
                return Ok(None);
            }
            let (client, cutter) = connect::connect(&device.socket, device.timeout)?;
            return Ok(Some(self.attach(root, &device.socket, client, cutter)?));
        }
        let number = board.first + index;
        let Some(built) = virtio::build(board.guest, number, &port.device, &board.memory)? else {
            return Ok(None);
        };
        made.sources.push((built.function.label().to_owned(), Source::Irqfd));
        made.holds.push((number, built.hold));
        Ok(Some(Box::new(built.function)))
    }

    fn attach(
        &self,
        root: &Root,
        socket: &Path,
        client: beamline_vfio_user::client::Client,
        cutter: Cutter,
    ) -> Result<Box<dyn PciFunction>, AttachError> {
        let cutter = Arc::new(cutter);
        // Before anything is asked: a guest that ends does not wait for the answers.
        *root.cutter.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&cutter);
        // What is behind a port is in front of no IOMMU, so that what it sees stays as it is.
        let (function, _) = VfioUser::attach(label(socket), Box::new(client), &self.ram, self.tsc)?;
        Ok(Box::new(function.with_cutter(cutter)))
    }

    fn root(&self, port: usize) -> Result<&Root, PlugError> {
        Ok(self.roots.get(port).ok_or(SlotError::NoPort)?)
    }

    /// What is in port number `port`.
    pub(crate) fn watch(&self, port: usize) -> Option<&SlotWatch> {
        self.roots.get(port).map(|root| &*root.watch)
    }

    /// Makes what another process serves behind `connection`, and hands it and the port's slot to `put`, with `None` for
    /// what waits.
    pub(crate) fn plug(
        &self,
        port: usize,
        connection: Option<UnixStream>,
        put: impl FnOnce(usize, Option<Box<dyn PciFunction>>) -> Result<(), PlugError>,
    ) -> Result<(), PlugError> {
        let root = self.root(port)?;
        let _turn = root.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if root.watch.state() != State::Empty {
            return Err(SlotError::Occupied.into());
        }
        let function = match (&root.served, connection) {
            (None, None) => None,
            (Some(socket), Some(stream)) => {
                let (client, cutter) = connect::speak(socket, stream)?;
                Some(self.attach(root, socket, client, cutter)?)
            }
            _ => return Err(PlugError::Connection),
        };
        put(root.slot, function)
    }

    /// The slot of port number `port`.
    pub(crate) fn slot(&self, port: usize) -> Result<usize, PlugError> {
        Ok(self.root(port)?.slot)
    }

    /// Cuts off every function that another process serves.
    pub(crate) fn cut(&self) {
        self.roots.iter().for_each(Root::cut);
    }

    /// Cuts off what is in port number `port`.
    pub(crate) fn cut_one(&self, port: usize) {
        if let Some(root) = self.roots.get(port) {
            root.cut();
        }
    }
}

/// What a function is called in messages.
pub(crate) fn label(socket: &Path) -> String {
    socket.file_name().map_or_else(|| "vfio-user".to_owned(), |n| n.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests;
