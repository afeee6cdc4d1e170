//! The VMM as a library: one guest on KVM, with PCI functions attached over vfio-user.
//!
//! ```text
//! config ─► Vm::new ─► Vm::start ─► VmHandle ─► ExitReason
//!            │ memory, boot, pci, passthrough      ▲
//!            └────────► vCPU thread ───────────────┘
//! ```
//!
//! Neither a guest's doorbells nor its interrupts pass through this process: a doorbell is a KVM
//! ioeventfd, an interrupt a KVM irqfd, and a mapped page a KVM memory slot ([`passthrough`]). What
//! does trap is served by the vCPU's own thread, which owns every device: there is no lock.

pub mod boot;
mod clock;
pub mod config;
pub mod devices;
pub mod interrupt;
mod kick;
pub mod memory;
pub mod passthrough;
pub mod pci;
pub mod platform;
pub mod probe;
pub mod sandbox;
mod turn;
pub mod vcpu;
pub mod vm;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use config::Config;
pub use devices::serial::{Console, LogConsole};
pub use vcpu::{Exits, GuestError};
pub use vm::{ExitReason, Vm, VmError, VmHandle};

/// A guest-physical address.
pub use vm_memory::GuestAddress as Gpa;
