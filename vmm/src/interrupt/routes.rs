//! GSI numbers and KVM's routing table.

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::errno;

/// GSIs 0 to 23 are the pins of the I/O APIC; message-signalled ones follow.
const FIRST_MSI: u32 = 24;
/// Most message-signalled interrupts of a guest.
const MAX_MSI: usize = 1024;

/// An interrupt of the guest, by KVM's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gsi(u32);

impl Gsi {
    /// A pin of the I/O APIC: `pin` is taken modulo 24.
    pub const fn pin(pin: u32) -> Self {
        Self(pin % FIRST_MSI)
    }

    /// KVM's number.
    pub const fn number(self) -> u32 {
        self.0
    }
}

/// What a message-signalled interrupt writes, and where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MsiMessage {
    /// Address: which vCPU.
    pub address: u64,
    /// Data: which vector.
    pub data: u32,
}

/// Why an interrupt could not be routed.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// Too many vectors.
    #[error("all {MAX_MSI} message-signalled interrupts of the guest are used")]
    Full,
    /// KVM refused the table.
    #[error("KVM refused the interrupt routing table")]
    Refused(#[source] errno::Error),
}

/// Who uses which GSI, and where each leads.
#[derive(Debug, Default)]
pub struct Routes {
    /// Index 0 is [`FIRST_MSI`].
    msi: Vec<Entry>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    Free,
    Taken,
    Routed(MsiMessage),
}

impl Routes {
    pub(crate) fn take(&mut self) -> Result<Gsi, RouteError> {
        let index = match self.msi.iter().position(|e| *e == Entry::Free) {
            Some(free) => free,
            None if self.msi.len() < MAX_MSI => {
                self.msi.push(Entry::Free);
                self.msi.len() - 1
            }
            None => return Err(RouteError::Full),
        };
        self.msi[index] = Entry::Taken;
        Ok(Gsi(FIRST_MSI + index as u32))
    }

    /// The table in KVM keeps the old route until the next commit: without an irqfd nothing uses it.
    pub(crate) fn give(&mut self, gsi: Gsi) {
        if let Some(entry) = self.entry(gsi) {
            *entry = Entry::Free;
        }
    }

    /// Returns whether the table changed and must be committed.
    #[must_use]
    pub(crate) fn set(&mut self, gsi: Gsi, message: MsiMessage) -> bool {
        let new = Entry::Routed(message);
        self.entry(gsi).is_some_and(|entry| std::mem::replace(entry, new) != new)
    }

    /// Hands the whole table to KVM, which replaces the old one at once.
    pub(crate) fn commit(&self, vm: &VmFd) -> Result<(), RouteError> {
        // The table is far below KVM's 4096 entries, so that only running out of memory fails here.
        let table = KvmIrqRouting::from_entries(&self.table())
            .map_err(|_| RouteError::Refused(errno::Error::new(libc::ENOMEM)))?;
        vm.set_gsi_routing(&table).map_err(RouteError::Refused)
    }

    fn entry(&mut self, gsi: Gsi) -> Option<&mut Entry> {
        self.msi.get_mut(gsi.0.checked_sub(FIRST_MSI)? as usize)
    }

    /// KVM's own default pins, which a new table would lose, and then the messages.
    fn table(&self) -> Vec<kvm_irq_routing_entry> {
        let mut table = Vec::with_capacity(40 + self.msi.len());
        for pin in 0..FIRST_MSI {
            if pin < 16 {
                let chip = if pin < 8 { KVM_IRQCHIP_PIC_MASTER } else { KVM_IRQCHIP_PIC_SLAVE };
                table.push(chip_entry(pin, chip, pin % 8));
            }
            // The timer's ISA interrupt 0 is wired to pin 2.
            let ioapic_pin = if pin == 0 { 2 } else { pin };
            table.push(chip_entry(pin, KVM_IRQCHIP_IOAPIC, ioapic_pin));
        }
        for (index, entry) in self.msi.iter().enumerate() {
            if let Entry::Routed(message) = entry {
                table.push(msi_entry(FIRST_MSI + index as u32, *message));
            }
        }
        table
    }
}

fn chip_entry(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    let mut e = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
    e.u.irqchip = kvm_bindings::kvm_irq_routing_irqchip { irqchip, pin };
    e
}

fn msi_entry(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    let mut e = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    e.u.msi = kvm_bindings::kvm_irq_routing_msi {
        address_lo: message.address as u32,
        address_hi: (message.address >> 32) as u32,
        data: message.data,
        ..Default::default()
    };
    e
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gsis_are_reused_and_bounded() {
        let mut r = Routes::default();
        let a = r.take().unwrap();
        let b = r.take().unwrap();
        assert_eq!((a.number(), b.number()), (24, 25));
        r.give(a);
        assert_eq!(r.take().unwrap(), a);
        while r.take().is_ok() {}
        assert_eq!(r.msi.len(), MAX_MSI);
        r.give(Gsi(3));
        r.give(Gsi(u32::MAX));
    }

    #[test]
    fn only_changes_are_committed() {
        let mut r = Routes::default();
        let gsi = r.take().unwrap();
        let message = MsiMessage { address: 0xfee0_0000, data: 0x40 };
        assert_eq!(r.table().len(), 16 + 24);
        assert!(r.set(gsi, message));
        assert!(!r.set(gsi, message));
        assert_eq!(r.table().len(), 16 + 24 + 1);
    }
}
