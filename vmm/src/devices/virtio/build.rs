//! Makes the devices that a guest's configuration names.

use super::balloon::{Balloon, Target};
use super::blk::{self, Blk, ImageError};
use super::console::{Console, Endpoint, EndpointError};
use super::input::{Evdev, EvdevError, Input, InputSender, kind};
use super::net::tap::{Tap, TapError};
use super::net::user::UserNet;
use super::net::{Mac, Net};
use super::rng::Rng;
use super::vhost::user::{ConnectError, VhostUser};
use super::vsock::{VhostVsock, Vsock, VsockError};
use super::{DeviceError, DeviceModel, Shared, Transport};
use crate::config::{BlkDevice, Device, InputDevice, InputKind, NetDevice, NetPort};
use std::sync::Arc;
use vm_memory::GuestMemoryMmap;

/// Why a device cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A disk.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A tap.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// A vhost-user server.
    #[error(transparent)]
    VhostUser(#[from] ConnectError),
    /// A console.
    #[error(transparent)]
    Console(#[from] EndpointError),
    /// Sockets.
    #[error(transparent)]
    Vsock(#[from] VsockError),
    /// An event device.
    #[error(transparent)]
    Evdev(#[from] EvdevError),
    /// The device itself.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// What this process can do with a device while its guest runs.
#[derive(Clone, Debug)]
pub enum Control {
    /// Send events to an input device.
    Input(InputSender),
    /// Ask for memory.
    Balloon(Target),
}

/// What a device has done since the guest was built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Activity {
    /// Interrupts that it sent.
    pub interrupts: u64,
    /// It cannot go on before its driver resets it.
    pub broken: bool,
}

/// The hold that this process has on a device while its guest runs.
#[derive(Clone)]
pub struct Hold {
    /// What can be done with it.
    pub control: Option<Control>,
    shared: Arc<Shared>,
}

impl Hold {
    /// What it has done so far.
    pub fn activity(&self) -> Activity {
        Activity { interrupts: self.shared.interrupts(), broken: self.shared.is_broken() }
    }
}

/// A device's function, and the hold that this process has on it.
pub struct Built {
    /// For the bus.
    pub function: Transport,
    /// For whoever runs the guest.
    pub hold: Hold,
}

/// The function of the guest's device number `index`, in front of `memory`; `None` for a device that
/// another process serves.
pub fn build(
    guest: &str,
    index: usize,
    device: &Device,
    memory: &Arc<GuestMemoryMmap>,
) -> Result<Option<Built>, BuildError> {
    let label = format!("{guest}/{index}");
    let mut control = None;
    let model: Box<dyn DeviceModel> = match device {
        Device::VfioUser(_) => return Ok(None),
        Device::Blk(BlkDevice { source, serial }) => {
            Box::new(Blk::new(&label, blk::open(source)?, serial))
        }
        Device::Net(NetDevice { port, mac }) => {
            let mac = mac.unwrap_or_else(|| Mac::derived(guest, index));
            match port {
                NetPort::Tap(name) => {
                    let tap = Tap::open(name.as_deref())?;
                    tracing::info!("{label}: network card {mac} on tap {}", tap.name());
                    Box::new(Net::new(&label, tap, mac))
                }
                NetPort::VhostUser(path) => {
                    let server = VhostUser::connect(path, UserNet::QUEUES)?;
                    tracing::info!("{label}: network card {mac} on {}", server.name());
                    Box::new(UserNet::new(server, mac))
                }
            }
        }
        Device::Rng => Box::new(Rng),
        Device::Console(console) => Box::new(Console::new(Endpoint::open(&console.output)?)),
        Device::Vsock(vsock) => {
            let kernel = VhostVsock::open(vsock.cid, Arc::clone(memory))?;
            Box::new(Vsock::new(vsock.cid, Box::new(kernel)))
        }
        Device::Input(which) => {
            let input = input(which)?;
            control = Some(Control::Input(input.sender()));
            Box::new(input)
        }
        Device::Balloon => {
            let balloon = Balloon::new();
            control = Some(Control::Balloon(balloon.target()));
            Box::new(balloon)
        }
    };
    let function = Transport::new(label, model, Arc::clone(memory))?;
    let hold = Hold { control, shared: function.shared() };
    Ok(Some(Built { function, hold }))
}

fn input(device: &InputDevice) -> Result<Input, BuildError> {
    let description = match device {
        InputDevice::Evdev(path) => return Ok(Input::evdev(Evdev::open(path)?)?),
        InputDevice::Kind(InputKind::Keyboard) => kind::keyboard(),
        InputDevice::Kind(InputKind::Mouse) => kind::mouse(),
        InputDevice::Kind(InputKind::Tablet) => kind::tablet(),
        InputDevice::Kind(InputKind::Gamepad) => kind::gamepad(),
    };
    Ok(Input::new(description)?)
}
