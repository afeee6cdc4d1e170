//! PCI: configuration access, slots, base address registers and what they decode.
//!
//! * [`config_port`]: the ports 0xcf8 and 0xcfc.
//! * [`ecam`]: the same registers, and those above 256, as memory.
//! * [`chipset`]: the machine's own functions.
//! * [`bar`]: one function's base address registers.
//! * [`layout`]: where BARs are put before the guest runs, and where the guest may put them.
//! * [`function`]: configuration space as the guest sees it.
//! * [`msix`]: a function's vectors: table, masks, pending bits.
//! * [`port`]: root ports, into which functions are plugged.
//! * [`slot`]: what is in a root port's slot.
//! * [`wiring`]: what a function asks of KVM.
//! * [`bus`]: slots, and who answers at an address.

pub mod bar;
pub mod bus;
pub mod chipset;
pub mod config_port;
pub mod ecam;
pub mod function;
pub mod layout;
pub mod msix;
pub mod port;
pub mod slot;
pub mod wiring;

pub use bus::Bus;
pub use function::{ConfigEffect, PciFunction};
pub use wiring::Wiring;

/// Slots of a bus.
pub const SLOTS: usize = 32;

/// Fills `data` with what a read returns where nothing answers.
pub(crate) fn nothing(data: &mut [u8]) {
    data.fill(0xff);
}
