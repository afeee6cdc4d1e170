//! Stage 8, posted interrupt: from mdev's eventfd, through a KVM irqfd, to the guest's vector.
//!
//! An eventfd that the server signals is bound to a GSI (irqfd); the GSI is routed to the MSI message
//! that the guest wrote into its MSI-X table. The signal goes from the server's thread into KVM and, on
//! hardware that can, straight into the running guest: this process is not woken.

pub mod posted;
mod routes;
pub mod stats;
pub mod watch;

pub use routes::{Gsi, MsiMessage, RouteError, Routes};
