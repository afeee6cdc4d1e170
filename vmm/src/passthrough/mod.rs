//! PCI functions that something else implements, in the guest's slots.
//!
//! What the guest does often never exits: mapped pages are KVM memory slots, doorbells are ioeventfds and
//! vectors irqfds ([`bar`], [`msix`]). The rest traps and is forwarded ([`vfio_user`]).

pub mod bar;
pub mod connect;
pub mod dma;
pub mod link;
pub mod msix;
mod reset;
pub mod vfio_user;

use crate::Gpa;
use crate::pci::bar::BarShapes;
use crate::platform::Platform;

/// What a write to configuration space did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum ConfigEffect {
    /// Nothing that the bus must know.
    None,
    /// The function was reset: its configuration space is back to its defaults.
    Reset,
}

/// What a PCI slot needs of a function. Calls come from one thread. Offsets and lengths are within
/// configuration space or the BAR; configuration accesses are within one 32-bit register.
pub trait Assigned: Send {
    /// The function's name in messages.
    fn label(&self) -> &str;
    /// Its BARs; they do not change.
    fn bars(&self) -> &BarShapes;
    /// Reads configuration space. What the slot owns (BARs, enables) is put over it by the caller.
    fn config_read(&mut self, offset: u16, data: &mut [u8]);
    /// Writes configuration space, except what the slot owns.
    fn config_write(&mut self, platform: &mut Platform, offset: u16, data: &[u8]) -> ConfigEffect;
    /// A read of BAR `bar` that trapped.
    fn bar_read(&mut self, bar: usize, offset: u64, data: &mut [u8]);
    /// A write to BAR `bar` that trapped.
    fn bar_write(&mut self, platform: &mut Platform, bar: usize, offset: u64, data: &[u8]);
    /// BAR `bar` is decoded at `at` from now on: what can be mapped there is mapped.
    fn map(&mut self, platform: &mut Platform, bar: usize, at: Gpa);
    /// BAR `bar` is decoded no more.
    fn unmap(&mut self, platform: &mut Platform, bar: usize);
}
