//! What of the guest's memory a function sees: all of its RAM at the same addresses, or what an IOMMU has
//! mapped, and nothing else.

use super::link::{Link, LinkError};
use super::server::{Patience, Server};
use crate::Gpa;
use crate::devices::virtio::iommu::{Mapping, View, ViewError};
use crate::memory::RamFile;
use beamline_vfio_user::DmaFlags;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A function's view of the guest's RAM.
///
/// A mapping of the IOMMU's is one or, where it spans a hole in the RAM, two of the server's. Neighbours stay
/// apart even where their pages follow each other: a server takes back only what was shown as one, so that
/// joined ones could not be taken back alone without a moment in which the function sees neither.
pub struct RamView {
    server: Arc<Server>,
    ram: RamFile,
    /// What is left for the guest's request that is being carried out.
    patience: Patience,
    /// First address that the function uses, with the bytes from there on.
    shown: BTreeMap<u64, u64>,
}

impl RamView {
    pub(super) fn new(server: Arc<Server>, ram: RamFile) -> Self {
        Self { server, ram, patience: Patience::FULL, shown: BTreeMap::new() }
    }

    /// Shows all RAM at its own addresses. The memfd is sealed: the server can map it without fearing that it
    /// shrinks.
    pub fn show_ram(&mut self) -> Result<(), LinkError> {
        let all = Mapping { at: 0, last: u64::MAX, to: Gpa(0), read: true, write: true };
        self.show(&all)
    }

    /// Shows what is RAM of a mapping: all of it or, where the server refuses a part, nothing.
    fn show(&mut self, mapping: &Mapping) -> Result<(), LinkError> {
        let flags = DmaFlags { read: mapping.read, write: mapping.write };
        let mut done = Vec::new();
        let Self { server, ram, patience, .. } = self;
        let result = ram.within(mapping.to, mapping.to_last()).try_for_each(|part| {
            let iova = mapping.at + (part.at.0 - mapping.to.0);
            let fd = ram.fd();
            let map = |l: &mut dyn Link| l.dma_map(iova, part.size, flags, fd, part.offset);
            match server.attempt_with(patience, map) {
                Some(Ok(())) => {
                    done.push((iova, part.size));
                    Ok(())
                }
                // A server that is lost sees nothing, whatever is mapped.
                None => Ok(()),
                Some(Err(e)) => Err(e),
            }
        });
        self.shown.extend(done.iter().copied());
        if result.is_err() {
            for (iova, _) in done {
                self.hide(iova);
            }
        }
        result
    }

    /// Takes back what was shown from `iova` on; whether that worked.
    fn hide(&mut self, iova: u64) -> bool {
        let Some(size) = self.shown.get(&iova).copied() else { return true };
        let refused = matches!(
            self.server.attempt_with(&mut self.patience, |l| l.dma_unmap(iova, size)),
            Some(Err(LinkError::Refused(_)))
        );
        if !refused {
            self.shown.remove(&iova);
        }
        !refused
    }
}

/// A server that is lost meanwhile sees nothing, as one that was lost before.
fn shown(result: &Result<(), LinkError>) -> Result<(), ViewError> {
    match result {
        Ok(()) | Err(LinkError::Lost(_)) => Ok(()),
        Err(LinkError::Refused(_)) => Err(ViewError::Full),
    }
}

impl View for RamView {
    fn begin(&mut self) {
        self.patience = Patience::FULL;
    }

    fn show_all(&mut self) -> Result<(), ViewError> {
        shown(&self.show_ram())
    }

    fn show(&mut self, mapping: &Mapping) -> Result<(), ViewError> {
        shown(&Self::show(self, mapping))
    }

    fn hide(&mut self, mapping: &Mapping) -> Result<(), ViewError> {
        let within: Vec<u64> = self.shown.range(mapping.at..=mapping.last).map(|s| *s.0).collect();
        let mut hidden = true;
        for iova in within {
            hidden &= Self::hide(self, iova);
        }
        if hidden { Ok(()) } else { Err(ViewError::Stuck) }
    }

    fn hide_all(&mut self) -> Result<(), ViewError> {
        let all = Mapping { at: 0, last: u64::MAX, to: Gpa(0), read: false, write: false };
        View::hide(self, &all)
    }
}

#[cfg(test)]
mod tests {
    use super::super::vfio_user::VfioUser;
    use super::*;
    use crate::clock::TscOffset;
    use crate::memory::GuestRam;
    use crate::pci::PciFunction;
    use crate::pci::layout::WINDOW;
    use crate::testing::device::Served;

    fn attached(ram: &GuestRam) -> (VfioUser, RamView, Served) {
        let (served, link, _) = Served::new();
        let (function, view) =
            VfioUser::attach("test".into(), link, &ram.share(), TscOffset::default()).unwrap();
        (function, view, served)
    }

    fn mapping(at: u64, last: u64, to: u64) -> Mapping {
        Mapping { at, last, to: Gpa(to), read: true, write: false }
    }

    #[test]
    fn only_ram_is_shown_and_all_of_it_taken_back() {
        // More than there is room for below the PCI window.
        let ram = GuestRam::new(4 << 30).unwrap();
        let (_function, mut view, served) = attached(&ram);
        let seen = || {
            let seen = served.probe.seen();
            (seen.maps.clone(), seen.offsets.clone())
        };
        assert_eq!(seen(), (vec![(0, WINDOW), (1 << 32, 1 << 30)], vec![0, WINDOW]));
        view.hide_all().unwrap();
        assert_eq!(seen().0, []);
        let low = mapping(0x5000, 0x6fff, 0x1000);
        View::show(&mut view, &low).unwrap();
        let across = mapping(0x1_0000_0000, 0x1_8000_0fff, WINDOW - 0x1000);
        View::show(&mut view, &across).unwrap();
        let nowhere = mapping(0x8000, 0x8fff, WINDOW);
        View::show(&mut view, &nowhere).unwrap();
        let hole = (1u64 << 32) - (WINDOW - 0x1000);
        let high = 0x1_0000_0000 + hole;
        let maps = vec![(0x5000, 0x2000), (0x1_0000_0000, 0x1000), (high, 0x4000_0000)];
        assert_eq!(seen(), (maps, vec![0x1000, WINDOW - 0x1000, WINDOW]));
        View::hide(&mut view, &nowhere).unwrap();
        View::hide(&mut view, &across).unwrap();
        assert_eq!(seen().0, [(0x5000, 0x2000)]);
        View::hide(&mut view, &low).unwrap();
        view.show_all().unwrap();
        assert_eq!(seen().0.len(), 2);
    }

    #[test]
    fn a_mapping_is_shown_whole_or_not_at_all() {
        let ram = GuestRam::new(4 << 30).unwrap();
        let (_function, mut view, mut served) = attached(&ram);
        view.hide_all().unwrap();
        served.probe.seen().most_maps = 1;
        assert_eq!(view.show_all(), Err(ViewError::Full));
        assert_eq!(served.probe.seen().maps, []);
        View::show(&mut view, &mapping(0, 0xfff, 0)).unwrap();
        // Where nobody is, nothing is seen.
        served.die();
        View::show(&mut view, &mapping(0x1000, 0x1fff, 0)).unwrap();
        view.hide_all().unwrap();
        view.show_all().unwrap();
    }

    #[test]
    fn a_server_that_hangs_is_cut_off() {
        let ram = GuestRam::new(4 << 20).unwrap();
        let (mut function, mut view, mut served) = attached(&ram);
        view.hide_all().unwrap();
        served.probe.seen().hangs_in_maps = true;
        view.begin();
        // It ends, by the deadline of each exchange.
        View::show(&mut view, &mapping(0, 0xfff, 0)).unwrap();
        assert!(served.is_cut(), "the server hears of it");
        let mut vendor = [0; 2];
        function.config_read(0, &mut vendor);
        assert_eq!(vendor, [0xff; 2], "its function is as dead as a dead server's");
        view.hide_all().unwrap();
    }

    #[test]
    fn a_server_that_takes_long_over_many_mappings_is_cut_off() {
        let ram = GuestRam::new(4 << 20).unwrap();
        let (_function, mut view, mut served) = attached(&ram);
        view.hide_all().unwrap();
        for at in [0, 0x1000, 0x2000] {
            view.begin();
            View::show(&mut view, &mapping(at, at + 0xfff, at)).unwrap();
        }
        assert_eq!(served.probe.seen().maps.len(), 3, "each had its own time");
        // However little an exchange takes, the next one is one too many.
        view.patience = Patience::LEAST;
        view.hide_all().unwrap();
        assert!(served.is_cut());
        assert_eq!(served.probe.seen().maps.len(), 2);
    }
}
