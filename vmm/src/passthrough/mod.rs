//! PCI functions that another process implements, in the guest's slots.
//!
//! What the guest does often never exits: mapped pages are KVM memory slots, doorbells are ioeventfds and
//! vectors irqfds ([`bar`], [`crate::pci::msix`]). The rest traps and is forwarded ([`vfio_user`]).

pub mod bar;
pub mod connect;
pub mod dma;
pub mod link;
mod reset;
mod server;
pub mod vfio_user;
