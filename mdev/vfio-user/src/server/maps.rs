//! Which ranges of guest memory the client has mapped.
//!
//! The device knows each mapping by its exact range. A client may unmap by any range that cuts none, as
//! with the kernel's `VFIO_IOMMU_UNMAP_DMA` (type 1, version 2): QEMU does so where a virtual IOMMU drops a
//! whole address space, most of which was never mapped.

use std::collections::BTreeMap;

use crate::wire::MAX_DMA_MAPS;

/// First bytes, with the last byte of each. No two overlap.
#[derive(Debug, Default)]
pub(super) struct Maps(BTreeMap<u64, u64>);

/// A range cuts this mapping.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) start: u64,
    pub(super) last: u64,
}

impl Maps {
    pub(super) fn len(&self) -> u32 {
        self.0.len() as u32
    }

    pub(super) fn is_full(&self) -> bool {
        self.len() >= MAX_DMA_MAPS
    }

    /// The start of a mapping that has bytes of `start..=last`.
    pub(super) fn overlap(&self, start: u64, last: u64) -> Option<u64> {
        // They do not overlap each other, so the last that starts before the end reaches furthest.
        self.0.range(..=last).next_back().filter(|(_, end)| **end >= start).map(|(at, _)| *at)
    }

    pub(super) fn insert(&mut self, start: u64, last: u64) {
        self.0.insert(start, last);
    }

    pub(super) fn remove(&mut self, start: u64) {
        self.0.remove(&start);
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// The mappings inside `start..=last`: first byte and size of each.
    pub(super) fn within(&self, start: u64, last: u64) -> Result<Vec<(u64, u64)>, Cut> {
        let cut = |(at, end): (&u64, &u64)| Cut { start: *at, last: *end };
        if let Some(before) = self.0.range(..start).next_back().filter(|(_, end)| **end >= start) {
            return Err(cut(before));
        }
        if let Some(behind) = self.0.range(start..=last).next_back().filter(|(_, end)| **end > last)
        {
            return Err(cut(behind));
        }
        Ok(self.0.range(start..=last).map(|(at, end)| (*at, end - at + 1)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn maps() -> Maps {
        let mut maps = Maps::default();
        maps.insert(0x1000, 0x1fff);
        maps.insert(0x2000, 0x4fff);
        maps.insert(u64::MAX - 0xfff, u64::MAX - 1);
        maps
    }

    #[test]
    fn a_range_has_what_lies_inside_and_may_be_empty() {
        assert_eq!(maps().within(0, u64::MAX).unwrap().len(), 3);
        assert_eq!(maps().within(0x1000, 0x4fff), Ok(vec![(0x1000, 0x1000), (0x2000, 0x3000)]));
        assert_eq!(maps().within(0x2000, 0x1_0000), Ok(vec![(0x2000, 0x3000)]));
        assert_eq!(maps().within(0x5000, 0xffff_ffff), Ok(vec![]));
        assert_eq!(maps().within(0, 0xfff), Ok(vec![]));
    }

    #[test]
    fn a_range_that_cuts_a_mapping_is_told() {
        for (start, last) in [(0x3000, 0x4fff), (0x1000, 0x2fff), (0x3000, 0x3fff)] {
            assert_eq!(maps().within(start, last), Err(Cut { start: 0x2000, last: 0x4fff }));
        }
    }

    #[test]
    fn overlaps_are_found() {
        for (start, last, found) in [
            (0, 0xfff, None),
            (0, 0x1000, Some(0x1000)),
            (0x4fff, 0x4fff, Some(0x2000)),
            (0x5000, 0xffff, None),
            (0, u64::MAX, Some(u64::MAX - 0xfff)),
        ] {
            assert_eq!(maps().overlap(start, last), found, "{start:#x}");
        }
    }
}
