//! The guest driver in a process of the host: a `Transport` over vfio-user, where there is no virtual machine.
//!
//! | a virtual machine has | this process has |
//! |---|---|
//! | RAM that its VMM shows to devices | a sealed memfd, shown in the same way ([`port`]) |
//! | BARs as KVM memory slots, the rest by exits | the same areas mapped, the rest by messages ([`function`]) |
//! | doorbells as ioeventfds | the same eventfds, written by this process |
//! | interrupts as irqfds | eventfds that it polls |
//! | a TSC with an offset | the host's TSC |
//!
//! What the server says is checked by the vfio-user client and here: addresses of BARs are this process's own, an access
//! outside of them reads ones or is dropped.

pub mod function;
pub mod port;

pub use port::{Port, PortError};
