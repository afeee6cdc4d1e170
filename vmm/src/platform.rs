//! What KVM does for a virtual machine: memory slots, irqfds, ioeventfds and routes, behind safe calls.
#![allow(unsafe_code)] // KVM's ioctls take raw addresses and file descriptors.

use crate::Gpa;
use crate::interrupt::{Gsi, MsiMessage, RouteError, Routes};
use crate::pci::Wiring;
use kvm_bindings::{
    KVM_IRQFD_FLAG_DEASSIGN, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, kvm_ioeventfd,
    kvm_ioeventfd_flag_nr_datamatch as DATAMATCH, kvm_ioeventfd_flag_nr_deassign as DEASSIGN,
    kvm_irqfd, kvm_reinject_control, kvm_userspace_memory_region,
};
use kvm_ioctls::VmFd;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use vm_memory::MmapRegion;
use vmm_sys_util::errno;
use vmm_sys_util::ioctl::ioctl_with_ref;

/// Numbers of the ioctls that kvm-ioctls does not offer (linux/kvm.h).
mod ioctl {
    use kvm_bindings::{kvm_ioeventfd, kvm_irqfd};

    vmm_sys_util::ioctl_iow_nr!(KVM_IRQFD, kvm_bindings::KVMIO, 0x76, kvm_irqfd);
    vmm_sys_util::ioctl_iow_nr!(KVM_IOEVENTFD, kvm_bindings::KVMIO, 0x79, kvm_ioeventfd);
    vmm_sys_util::ioctl_io_nr!(KVM_REINJECT_CONTROL, kvm_bindings::KVMIO, 0x71);
    vmm_sys_util::ioctl_io_nr!(KVM_GET_STATS_FD, kvm_bindings::KVMIO, 0xce);
}

/// Most memory slots that a guest may use; KVM allows more.
const MAX_SLOTS: usize = 256;

/// KVM refused something.
#[derive(Debug, thiserror::Error)]
pub enum PlatformError {
    /// A memory slot.
    #[error("KVM refused {size:#x} bytes of guest memory at {at:#x}")]
    Memory {
        /// Guest-physical address.
        at: u64,
        /// Bytes.
        size: u64,
        /// Why.
        source: errno::Error,
    },
    /// All memory slots are used.
    #[error("all {MAX_SLOTS} memory slots of the guest are used")]
    Slots,
    /// An irqfd.
    #[error("KVM refused an irqfd for GSI {gsi}")]
    Irqfd {
        /// The interrupt.
        gsi: u32,
        /// Why.
        source: errno::Error,
    },
    /// An ioeventfd.
    #[error("KVM refused an ioeventfd at {at:#x}")]
    Ioeventfd {
        /// Guest-physical address.
        at: u64,
        /// Why.
        source: errno::Error,
    },
    /// An interrupt's line.
    #[error("KVM refused the level of GSI {gsi}")]
    Line {
        /// The interrupt.
        gsi: u32,
        /// Why.
        source: errno::Error,
    },
    /// The routing table.
    #[error(transparent)]
    Route(#[from] RouteError),
}

/// The file of KVM's statistics of `of`, a VM or a vCPU (`KVM_GET_STATS_FD`).
pub(crate) fn stats(of: &impl AsRawFd) -> Result<OwnedFd, errno::Error> {
    // SAFETY: the ioctl takes no argument; on another kind of descriptor it fails.
    let fd = unsafe { vmm_sys_util::ioctl::ioctl(of, ioctl::KVM_GET_STATS_FD()) };
    if fd < 0 {
        return Err(errno::Error::last());
    }
    // SAFETY: KVM has just made the descriptor for this process; nothing else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Another descriptor of what `of` is.
pub(crate) fn duplicate(of: &impl AsRawFd) -> io::Result<OwnedFd> {
    // SAFETY: `of` owns the descriptor and is borrowed for longer than this call.
    unsafe { BorrowedFd::borrow_raw(of.as_raw_fd()) }.try_clone_to_owned()
}

/// Has KVM's timer drop ticks that the guest has not taken, rather than raise them later. Where it raises them
/// later, KVM does without AVIC for the whole VM, because AVIC does not tell it when a tick was taken; whoever
/// measures time takes the TSC or the local APIC's timer.
pub(crate) fn drop_late_ticks(vm: &VmFd) -> Result<(), errno::Error> {
    let control = kvm_reinject_control::default();
    // SAFETY: the request matches the ioctl and outlives it.
    match unsafe { ioctl_with_ref(vm, ioctl::KVM_REINJECT_CONTROL(), &control) } {
        0 => Ok(()),
        _ => Err(errno::Error::last()),
    }
}

/// A memory slot in use.
#[derive(Debug, PartialEq, Eq)]
pub struct Slot(usize);

/// A write that signals an eventfd inside KVM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doorbell {
    /// Where.
    pub at: Gpa,
    /// Bytes of the write: 1, 2, 4 or 8; 0: any.
    pub size: u32,
    /// Only writes of this value.
    pub datamatch: Option<u64>,
}

/// A virtual machine's KVM side.
#[derive(Debug)]
pub struct Platform {
    vm: VmFd,
    routes: Routes,
    slots: Vec<Option<Mapped>>,
}

/// What is in a memory slot.
#[derive(Debug)]
struct Mapped {
    at: Gpa,
    /// Alive for as long as KVM may reach it.
    backing: Arc<MmapRegion>,
    readonly: bool,
}

impl Platform {
    /// Takes over `vm`, whose in-kernel interrupt controllers exist already.
    pub fn new(vm: VmFd) -> Self {
        Self { vm, routes: Routes::default(), slots: Vec::new() }
    }

    /// The VM's own file descriptor.
    pub fn vm(&self) -> &VmFd {
        &self.vm
    }

    /// Sets the level of a pin's line.
    pub fn set_line(&self, gsi: Gsi, level: bool) -> Result<(), PlatformError> {
        self.vm
            .set_irq_line(gsi.number(), level)
            .map_err(|source| PlatformError::Line { gsi: gsi.number(), source })
    }

    /// Wires the pins as a PC's are. KVM's own wiring has the timer on another pin.
    pub fn wire_pins(&self) -> Result<(), PlatformError> {
        Ok(self.routes.commit(&self.vm)?)
    }

    /// Has KVM log which pages of `slot` are written, from an empty log on, or log it no longer.
    pub(crate) fn log_writes(&mut self, slot: &Slot, on: bool) -> Result<(), errno::Error> {
        let mapped = self.mapped(slot)?;
        self.set_slot(slot.0, mapped, if on { KVM_MEM_LOG_DIRTY_PAGES } else { 0 })
    }

    /// The pages of `slot` that were written since it was asked last, a bit each; its log is empty then.
    pub(crate) fn take_writes(&self, slot: &Slot) -> Result<Vec<u64>, errno::Error> {
        self.vm.get_dirty_log(slot.0 as u32, self.mapped(slot)?.backing.size())
    }

    /// A slot is one of this platform's, and in use until it is given back.
    fn mapped(&self, slot: &Slot) -> Result<&Mapped, errno::Error> {
        let mapped = self.slots.get(slot.0).and_then(Option::as_ref);
        mapped.ok_or(errno::Error::new(libc::ENOENT))
    }

    fn set_slot(&self, index: usize, mapped: &Mapped, flags: u32) -> Result<(), errno::Error> {
        let readonly = if mapped.readonly { KVM_MEM_READONLY } else { 0 };
        let region = kvm_userspace_memory_region {
            slot: index as u32,
            flags: flags | readonly,
            guest_phys_addr: mapped.at.0,
            memory_size: mapped.backing.size() as u64,
            userspace_addr: mapped.backing.as_ptr() as u64,
        };
        // SAFETY: the region is exactly the mapping in `mapped`, which the caller keeps in `slots` until KVM has let
        // the slot go; guest and VMM share it as volatile memory only.
        unsafe { self.vm.set_user_memory_region(region) }
    }

    fn irqfd(&self, event: BorrowedFd<'_>, gsi: Gsi, flags: u32) -> Result<(), PlatformError> {
        let request = kvm_irqfd {
            fd: event.as_raw_fd() as u32,
            gsi: gsi.number(),
            flags,
            ..Default::default()
        };
        // SAFETY: the request matches the ioctl and outlives it; KVM takes its own reference to fd.
        match unsafe { ioctl_with_ref(&self.vm, ioctl::KVM_IRQFD(), &request) } {
            0 => Ok(()),
            _ => Err(PlatformError::Irqfd { gsi: gsi.number(), source: errno::Error::last() }),
        }
    }

    fn ioeventfd(
        &self,
        event: BorrowedFd<'_>,
        bell: Doorbell,
        flags: u32,
    ) -> Result<(), PlatformError> {
        let request = kvm_ioeventfd {
            datamatch: bell.datamatch.unwrap_or(0),
            addr: bell.at.0,
            len: bell.size,
            fd: event.as_raw_fd(),
            flags: flags | if bell.datamatch.is_some() { 1 << DATAMATCH } else { 0 },
            ..Default::default()
        };
        // SAFETY: the request matches the ioctl and outlives it; KVM takes its own reference to fd
        // after checking that it is an eventfd.
        match unsafe { ioctl_with_ref(&self.vm, ioctl::KVM_IOEVENTFD(), &request) } {
            0 => Ok(()),
            _ => Err(PlatformError::Ioeventfd { at: bell.at.0, source: errno::Error::last() }),
        }
    }
}

impl Wiring for Platform {
    fn add_memory(
        &mut self,
        at: Gpa,
        backing: Arc<MmapRegion>,
        readonly: bool,
    ) -> Result<Slot, PlatformError> {
        let index = match self.slots.iter().position(Option::is_none) {
            Some(free) => free,
            None if self.slots.len() < MAX_SLOTS => {
                self.slots.push(None);
                self.slots.len() - 1
            }
            None => return Err(PlatformError::Slots),
        };
        let mapped = Mapped { at, backing, readonly };
        let size = mapped.backing.size() as u64;
        self.set_slot(index, &mapped, 0).map_err(|source| PlatformError::Memory {
            at: at.0,
            size,
            source,
        })?;
        self.slots[index] = Some(mapped);
        Ok(Slot(index))
    }

    fn remove_memory(&mut self, slot: Slot) -> Result<(), PlatformError> {
        let region = kvm_userspace_memory_region { slot: slot.0 as u32, ..Default::default() };
        // SAFETY: a size of 0 removes the slot; nothing is mapped. Where that fails the mapping stays
        // in `slots`.
        unsafe { self.vm.set_user_memory_region(region) }
            .map_err(|source| PlatformError::Memory { at: 0, size: 0, source })?;
        self.slots[slot.0] = None;
        Ok(())
    }

    fn attach_irqfd(&mut self, event: BorrowedFd<'_>, gsi: Gsi) -> Result<(), PlatformError> {
        self.irqfd(event, gsi, 0)
    }

    fn detach_irqfd(&mut self, event: BorrowedFd<'_>, gsi: Gsi) -> Result<(), PlatformError> {
        self.irqfd(event, gsi, KVM_IRQFD_FLAG_DEASSIGN)
    }

    fn attach_doorbell(
        &mut self,
        event: BorrowedFd<'_>,
        bell: Doorbell,
    ) -> Result<(), PlatformError> {
        self.ioeventfd(event, bell, 0)
    }

    fn detach_doorbell(
        &mut self,
        event: BorrowedFd<'_>,
        bell: Doorbell,
    ) -> Result<(), PlatformError> {
        self.ioeventfd(event, bell, 1 << DEASSIGN)
    }

    fn take_gsi(&mut self) -> Result<Gsi, PlatformError> {
        Ok(self.routes.take()?)
    }

    fn give_gsi(&mut self, gsi: Gsi) {
        self.routes.give(gsi);
    }

    fn route(&mut self, gsi: Gsi, message: MsiMessage) -> Result<(), PlatformError> {
        if self.routes.set(gsi, message) {
            self.routes.commit(&self.vm)?;
        }
        Ok(())
    }
}
