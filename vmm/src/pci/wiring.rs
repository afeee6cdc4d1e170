//! What a function asks of KVM: interrupts, doorbells and mapped memory, behind a trait so that a function
//! also works where there is no KVM.

use crate::Gpa;
use crate::interrupt::{Gsi, MsiMessage};
use crate::platform::{Doorbell, PlatformError, Slot};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use vm_memory::MmapRegion;

/// Connects a function to the guest without exits. [`Platform`](crate::platform::Platform) does it with KVM.
pub trait Wiring {
    /// Shows `backing` to the guest at `at`; guest writes to a `readonly` slot exit instead.
    fn add_memory(
        &mut self,
        at: Gpa,
        backing: Arc<MmapRegion>,
        readonly: bool,
    ) -> Result<Slot, PlatformError>;
    /// Takes a slot away from the guest.
    fn remove_memory(&mut self, slot: Slot) -> Result<(), PlatformError>;
    /// Has KVM inject `gsi` whenever `event` is signalled. Where `event` is readable already, KVM
    /// injects once for it.
    fn attach_irqfd(&mut self, event: BorrowedFd<'_>, gsi: Gsi) -> Result<(), PlatformError>;
    /// Ends [`Self::attach_irqfd`]. Every signal before this call has been injected when it returns,
    /// and every one after it stays readable in `event`.
    fn detach_irqfd(&mut self, event: BorrowedFd<'_>, gsi: Gsi) -> Result<(), PlatformError>;
    /// Has KVM signal `event` on each such write, without an exit to this process.
    fn attach_doorbell(
        &mut self,
        event: BorrowedFd<'_>,
        bell: Doorbell,
    ) -> Result<(), PlatformError>;
    /// Ends [`Self::attach_doorbell`].
    fn detach_doorbell(
        &mut self,
        event: BorrowedFd<'_>,
        bell: Doorbell,
    ) -> Result<(), PlatformError>;
    /// Takes an unused interrupt for a message-signalled vector.
    fn take_gsi(&mut self) -> Result<Gsi, PlatformError>;
    /// Gives an interrupt back; its irqfd is detached already.
    fn give_gsi(&mut self, gsi: Gsi);
    /// Has `gsi` deliver `message` from now on.
    fn route(&mut self, gsi: Gsi, message: MsiMessage) -> Result<(), PlatformError>;
}
