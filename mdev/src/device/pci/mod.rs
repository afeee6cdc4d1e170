//! What every PCI function here has: configuration space, BARs, MSI-X.

pub mod bar;
pub mod config;
pub mod msix;
#[cfg(test)]
mod tests;

use bar::Bar;
use beamline_abi::pci::{command, config as header};
use beamline_vfio_user::{DeviceError, IrqAction, IrqIndex, IrqInfo, RegionFlags, RegionInfo};
use config::{ConfigSpace, Identity, Msix};
use msix::{IrqTable, MsixPages};
use rustix::io::Errno;
use std::sync::Arc;

/// Why a function could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PciError {
    /// A BAR's size is no power of two of at least a page, or its index does not fit its kind.
    #[error(
        "BAR{index} with {size} bytes: sizes are powers of two from 4096, and a 64-bit BAR takes two of the six registers"
    )]
    BadBar {
        /// The BAR.
        index: u8,
        /// Its bytes.
        size: u64,
    },
    /// Two BARs use one register.
    #[error("BAR{index} is taken already")]
    BarTaken {
        /// The BAR.
        index: u8,
    },
    /// The capability does not fit.
    #[error("a capability of {len} bytes does not fit: 256 bytes hold all of them")]
    CapabilitySpace {
        /// Its bytes.
        len: usize,
    },
    /// The system refused.
    #[error("{call} failed: {errno}")]
    System {
        /// The call.
        call: &'static str,
        /// Its error.
        errno: Errno,
    },
    /// A shared page could not be made.
    #[error(transparent)]
    Memory(#[from] crate::memory::MemoryError),
}

/// What a write to configuration space asks of the function beyond keeping the bits.
#[must_use]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConfigEffect {
    /// Bus mastering is now on or off.
    pub bus_master: Option<bool>,
    /// A function-level reset.
    pub reset: bool,
}

/// The part that all functions share.
pub(crate) struct Function {
    pub(crate) config: ConfigSpace,
    pub(crate) msix: MsixPages,
    pub(crate) irqs: Arc<IrqTable>,
}

impl Function {
    /// A function with an Express endpoint capability and MSI-X.
    pub(crate) fn new(identity: &Identity, bars: &[Bar], msix: Msix) -> Result<Self, PciError> {
        let mut config = ConfigSpace::new(identity, bars)?;
        config.add_express()?;
        config.add_msix(msix)?;
        Ok(Self {
            config,
            msix: MsixPages::new(msix.vectors),
            irqs: Arc::new(IrqTable::new(msix.vectors)),
        })
    }

    /// The configuration space as a region.
    pub(crate) fn config_region() -> RegionInfo<'static> {
        trapped(header::EXTENDED_SIZE as u64)
    }

    /// Takes a write to configuration space. Interrupts follow bus mastering at once.
    pub(crate) fn write_config(&mut self, offset: u64, data: &[u8]) -> ConfigEffect {
        let before = self.config.bus_master();
        let reset = self.config.write(offset, data);
        let after = self.config.bus_master();
        self.irqs.set_enabled(after);
        ConfigEffect { bus_master: (before != after).then_some(after), reset }
    }

    /// Back to the state after power-up. The client's eventfds stay: they are its wiring, not state.
    pub(crate) fn reset(&mut self) {
        self.irqs.set_enabled(false);
        self.config.reset();
        self.msix.reset();
    }

    /// MSI-X is all there is: no INTx, no MSI.
    pub(crate) fn irq(&self, index: IrqIndex) -> IrqInfo {
        let count = if index == IrqIndex::MSIX { u32::from(self.irqs.vectors()) } else { 0 };
        IrqInfo { count }
    }

    pub(crate) fn set_irqs(
        &self,
        index: IrqIndex,
        start: u32,
        count: u32,
        action: IrqAction,
    ) -> Result<(), DeviceError> {
        if index != IrqIndex::MSIX {
            return Err(DeviceError::Unsupported("an interrupt index other than MSI-X"));
        }
        self.irqs.set(start, count, action)
    }
}

/// A region of `size` bytes that is trapped as a whole.
pub(crate) fn trapped(size: u64) -> RegionInfo<'static> {
    RegionInfo { size, flags: RegionFlags { read: true, write: true }, mapping: None }
}

/// The bits of the command register that a driver may set.
const COMMAND_WRITABLE: u16 = command::MEMORY | command::BUS_MASTER | command::INTX_DISABLE;
