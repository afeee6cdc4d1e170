//! What a function asks of KVM: interrupts, doorbells and mapped memory, behind a trait so that a function
//! also works where there is no KVM.

use crate::Gpa;
use crate::interrupt::{Gsi, MsiMessage};
use crate::platform::{Doorbell, Platform, PlatformError, Slot};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use vm_memory::MmapRegion;

/// Connects a function to the guest without exits. [`Platform`] does it with KVM.
pub trait Wiring {
    /// See [`Platform::add_memory`].
    fn add_memory(
        &mut self,
        at: Gpa,
        backing: Arc<MmapRegion>,
        readonly: bool,
    ) -> Result<Slot, PlatformError>;
    /// See [`Platform::remove_memory`].
    fn remove_memory(&mut self, slot: Slot) -> Result<(), PlatformError>;
    /// See [`Platform::attach_irqfd`].
    fn attach_irqfd(&mut self, event: BorrowedFd<'_>, gsi: Gsi) -> Result<(), PlatformError>;
    /// See [`Platform::detach_irqfd`].
    fn detach_irqfd(&mut self, event: BorrowedFd<'_>, gsi: Gsi) -> Result<(), PlatformError>;
    /// See [`Platform::attach_doorbell`].
    fn attach_doorbell(
        &mut self,
        event: BorrowedFd<'_>,
        bell: Doorbell,
    ) -> Result<(), PlatformError>;
    /// See [`Platform::detach_doorbell`].
    fn detach_doorbell(
        &mut self,
        event: BorrowedFd<'_>,
        bell: Doorbell,
    ) -> Result<(), PlatformError>;
    /// See [`Platform::take_gsi`].
    fn take_gsi(&mut self) -> Result<Gsi, PlatformError>;
    /// See [`Platform::give_gsi`].
    fn give_gsi(&mut self, gsi: Gsi);
    /// See [`Platform::route`].
    fn route(&mut self, gsi: Gsi, message: MsiMessage) -> Result<(), PlatformError>;
}

impl Wiring for Platform {
    fn add_memory(
        &mut self,
        at: Gpa,
        backing: Arc<MmapRegion>,
        readonly: bool,
    ) -> Result<Slot, PlatformError> {
        Self::add_memory(self, at, backing, readonly)
    }

    fn remove_memory(&mut self, slot: Slot) -> Result<(), PlatformError> {
        Self::remove_memory(self, slot)
    }

    fn attach_irqfd(&mut self, event: BorrowedFd<'_>, gsi: Gsi) -> Result<(), PlatformError> {
        Self::attach_irqfd(self, event, gsi)
    }

    fn detach_irqfd(&mut self, event: BorrowedFd<'_>, gsi: Gsi) -> Result<(), PlatformError> {
        Self::detach_irqfd(self, event, gsi)
    }

    fn attach_doorbell(
        &mut self,
        event: BorrowedFd<'_>,
        bell: Doorbell,
    ) -> Result<(), PlatformError> {
        Self::attach_doorbell(self, event, bell)
    }

    fn detach_doorbell(
        &mut self,
        event: BorrowedFd<'_>,
        bell: Doorbell,
    ) -> Result<(), PlatformError> {
        Self::detach_doorbell(self, event, bell)
    }

    fn take_gsi(&mut self) -> Result<Gsi, PlatformError> {
        Self::take_gsi(self)
    }

    fn give_gsi(&mut self, gsi: Gsi) {
        Self::give_gsi(self, gsi);
    }

    fn route(&mut self, gsi: Gsi, message: MsiMessage) -> Result<(), PlatformError> {
        Self::route(self, gsi, message)
    }
}
