//! The VMM as a library: one guest on KVM, with PCI functions attached over vfio-user.
//!
//! ```text
//! config ─► Vm::new ─► Vm::start ─► VmHandle ─► ExitReason
//!            │ memory, acpi, boot, pci, passthrough ▲
//!            └──► vCPU threads ──► machine ─────────┘
//!                 one each         one lock, for exits that trap
//! ```
//!
//! Neither a guest's doorbells nor its interrupts pass through this process: a doorbell is a KVM
//! ioeventfd, an interrupt a KVM irqfd, and a mapped page a KVM memory slot ([`passthrough`]). What
//! does trap is served by the thread of the vCPU that trapped, under the one lock around the machine: the bus,
//! the devices and KVM's slots and routes. Nothing else takes that lock, apart from someone who types on the
//! serial port, presses the power button, or plugs a device in or out.

pub mod acpi;
pub mod boot;
mod clock;
pub mod config;
mod control;
mod cpuid;
pub mod devices;
pub mod hotplug;
pub mod hyperv;
pub mod interrupt;
mod kick;
mod life;
mod machine;
pub mod memory;
pub mod passthrough;
pub mod pci;
pub mod platform;
pub mod probe;
pub mod sandbox;
pub mod text;
mod topology;
pub mod turn;
pub mod vcpu;
pub mod vm;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_dirty;
#[cfg(test)]
mod tests_firmware;
#[cfg(test)]
mod tests_smp;

pub use config::Config;
pub use control::{GuestControl, GuestState};
pub use devices::serial::{Console, LogConsole};
pub use hotplug::PlugError;
pub use life::PauseError;
pub use memory::{DirtyError, WrittenPages};
pub use vcpu::{Exits, GuestError};
pub use vm::{ExitReason, Vm, VmError, VmHandle};

/// A guest-physical address.
pub use vm_memory::GuestAddress as Gpa;
