//! What is behind an IOMMU.

use beamline_vmm::devices::virtio::iommu::{Iommu, Mapping, View, ViewError};
use std::collections::BTreeMap;

/// Most mappings that an endpoint takes.
const MAPPINGS: usize = 3;

/// What an endpoint sees, which knows what it may be told.
struct Seen {
    all: bool,
    maps: BTreeMap<u64, Mapping>,
}

impl View for Seen {
    fn show_all(&mut self) -> Result<(), ViewError> {
        assert!(!self.all && self.maps.is_empty(), "nothing is shown");
        self.all = true;
        Ok(())
    }

    fn show(&mut self, m: &Mapping) -> Result<(), ViewError> {
        assert!(!self.all && m.at <= m.last, "it has its place");
        assert!(m.at.is_multiple_of(4096) && m.to.0.is_multiple_of(4096) && m.last % 4096 == 4095);
        assert!(m.to.0.checked_add(m.last - m.at).is_some(), "no address overflows");
        let before = self.maps.range(..=m.last).next_back();
        assert!(before.is_none_or(|(_, other)| other.last < m.at), "none overlaps another");
        if self.maps.len() == MAPPINGS {
            return Err(ViewError::Full);
        }
        self.maps.insert(m.at, *m);
        Ok(())
    }

    fn hide(&mut self, mapping: &Mapping) -> Result<(), ViewError> {
        assert_eq!(self.maps.remove(&mapping.at).as_ref(), Some(mapping), "it was shown");
        Ok(())
    }

    fn hide_all(&mut self) -> Result<(), ViewError> {
        self.all = false;
        self.maps.clear();
        Ok(())
    }
}

/// An IOMMU in front of two endpoints.
pub(super) fn iommu() -> Iommu {
    let seen = || Box::new(Seen { all: true, maps: BTreeMap::new() }) as Box<dyn View>;
    Iommu::new(vec![(8, seen()), (16, seen())])
}
