//! Section `[iommu]`: whether the guest has an IOMMU in front of its functions.

use super::{Device, Wrong};
use crate::pci::SLOTS;
use schemars::JsonSchema;
use serde::Deserialize;

/// Whether the guest has an IOMMU in front of its vfio-user functions.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "iommu")]
pub(super) struct Raw {
    /// There is one, in the slot behind the last device and port.
    #[serde(default)]
    enabled: bool,
}

/// The guest's IOMMU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Iommu {
    /// There is one: functions of type `vfio-user` are behind it.
    pub enabled: bool,
}

impl Raw {
    pub(super) fn check(self, devices: &[Device]) -> Result<Iommu, Wrong> {
        // Slot 0 is the host bridge's, and the IOMMU takes the one behind the last device.
        let most = SLOTS - 2;
        if self.enabled && devices.len() > most {
            return Err(Wrong::new(
                "iommu.enabled",
                format!(
                    "takes a slot of the bus, which has room for {most} devices beside it and not \
                     for {}",
                    devices.len()
                ),
            ));
        }
        Ok(Iommu { enabled: self.enabled })
    }
}
