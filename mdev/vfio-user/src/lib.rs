//! vfio-user: PCI functions served by one process to another over a Unix socket.
//!
//! The protocol is the one that QEMU documents ("vfio-user", version 0.x). [`server`] drives a [`Device`];
//! [`client`] is what a VMM uses. Both treat the other side as hostile: every size is bounded before
//! anything is allocated, and a bad message ends the connection with a reason, never the process.

mod check;
pub mod client;
pub mod device;
mod inbox;
pub mod server;
mod socket;
#[cfg(test)]
mod testing;
pub mod wire;

pub use device::{
    Device, DeviceError, DeviceInfo, DmaFlags, DmaMap, IoFd, IrqAction, IrqIndex, IrqInfo,
    RegionFlags, RegionIndex, RegionInfo, RegionMapping, SparseArea,
};
pub use socket::SocketError;
