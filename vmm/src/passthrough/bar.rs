//! Stage 2, doorbell: from the guest's write to a BAR, through a KVM ioeventfd, to mdev's queue.
//!
//! What is behind a BAR: areas that the guest reaches without exits (KVM memory slots) and doorbells
//! (ioeventfds). All else traps.

use super::link::{RemoteDoorbell, RemoteMapping, RemoteRegion};
use crate::Gpa;
use crate::pci::Wiring;
use crate::platform::{Doorbell, Slot};
use beamline_vfio_user::{RegionFlags, SparseArea};
use rustix::fs::SealFlags;
use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use vm_memory::{FileOffset, MmapRegion};

const PAGE: u64 = 4096;
/// Most mapped areas of a BAR.
const MAX_AREAS: usize = 16;
/// Most doorbells of a BAR.
const MAX_DOORBELLS: usize = 256;

/// A part of a BAR that the guest reaches without exits.
struct Area {
    at: SparseArea,
    region: Arc<MmapRegion>,
    write: bool,
    slot: Option<Slot>,
}

/// A place in a BAR where writes signal an eventfd.
struct Bell {
    offset: u64,
    size: u32,
    datamatch: Option<u64>,
    fd: OwnedFd,
    /// Where KVM listens now.
    armed: Option<Doorbell>,
}

/// What is behind a BAR.
#[derive(Default)]
pub struct Backing {
    size: u64,
    flags: RegionFlags,
    areas: Vec<Area>,
    bells: Vec<Bell>,
}

impl Backing {
    /// Checks what the server says about a BAR. What cannot be mapped traps instead, with a warning;
    /// `keep_out` are ranges that must trap in any case.
    pub fn new(
        label: &str,
        region: RemoteRegion,
        doorbells: Vec<RemoteDoorbell>,
        keep_out: &[Range<u64>],
    ) -> Self {
        let mut this =
            Self { size: region.size, flags: region.flags, areas: Vec::new(), bells: Vec::new() };
        if let Some(mapping) = region.mapping {
            this.take_areas(label, mapping, keep_out);
        }
        for bell in doorbells.into_iter().take(MAX_DOORBELLS) {
            let offset = bell.offset;
            if let Err(why) = this.take_bell(bell) {
                tracing::warn!("{label}: doorbell at {offset:#x} is not used: {why}");
            }
        }
        this
    }

    /// Rights of trapped access.
    pub fn flags(&self) -> RegionFlags {
        self.flags
    }

    /// Whether `offset` is in an area that the guest may only read.
    pub fn is_read_only(&self, offset: u64) -> bool {
        self.areas.iter().any(|a| !a.write && range(a.at).contains(&offset))
    }

    /// The mapping of the area that starts at `offset`.
    pub(crate) fn mapping(&self, offset: u64) -> Option<Arc<MmapRegion>> {
        self.areas.iter().find(|a| a.at.offset == offset).map(|a| Arc::clone(&a.region))
    }

    fn take_areas(&mut self, label: &str, mapping: RemoteMapping, keep_out: &[Range<u64>]) {
        let file = File::from(mapping.fd);
        if let Err(why) = is_sealed(&file) {
            tracing::warn!("{label}: mapped areas trap instead: {why}");
            return;
        }
        let file = Arc::new(file);
        for at in mapping.areas.into_iter().take(MAX_AREAS) {
            let fd_offset = mapping.fd_offset;
            match self.map_area(&file, fd_offset, mapping.write, at, keep_out) {
                Ok(area) => self.areas.push(area),
                Err(why) => tracing::warn!(
                    "{label}: mapped area {:#x}+{:#x} traps instead: {why}",
                    at.offset,
                    at.size
                ),
            }
        }
    }

    fn map_area(
        &self,
        file: &Arc<File>,
        fd_offset: u64,
        write: bool,
        at: SparseArea,
        keep_out: &[Range<u64>],
    ) -> Result<Area, String> {
        let end = at.offset.checked_add(at.size).filter(|end| *end <= self.size);
        if at.size == 0
            || !at.offset.is_multiple_of(PAGE)
            || !at.size.is_multiple_of(PAGE)
            || end.is_none()
        {
            return Err("it is not whole pages within the BAR".into());
        }
        if self.areas.iter().any(|a| overlap(&range(a.at), &range(at))) {
            return Err("it overlaps another".into());
        }
        if keep_out.iter().any(|k| overlap(k, &range(at))) {
            return Err("it covers the MSI-X table or pending bits".into());
        }
        let start = fd_offset
            .checked_add(at.offset)
            .filter(|s| s.is_multiple_of(PAGE))
            .ok_or("its place in the file is not page-aligned")?;
        let length = file.metadata().map_err(|e| e.to_string())?.len();
        if start.checked_add(at.size).is_none_or(|end| end > length) {
            return Err(format!("the file has only {length:#x} bytes"));
        }
        let prot = libc::PROT_READ | if write { libc::PROT_WRITE } else { 0 };
        let size = usize::try_from(at.size).map_err(|e| e.to_string())?;
        let region = MmapRegion::build(
            Some(FileOffset::from_arc(Arc::clone(file), start)),
            size,
            prot,
            libc::MAP_SHARED | libc::MAP_NORESERVE,
        )
        .map_err(|e| e.to_string())?;
        Ok(Area { at, region: Arc::new(region), write, slot: None })
    }

    fn take_bell(&mut self, bell: RemoteDoorbell) -> Result<(), String> {
        if !matches!(bell.size, 0 | 1 | 2 | 4 | 8) {
            return Err(format!("{} bytes is not the size of a write", bell.size));
        }
        if bell.datamatch.is_some() && bell.size == 0 {
            return Err("a value needs the size of its write".into());
        }
        let end = bell.offset.checked_add(bell.size.max(1)).filter(|end| *end <= self.size);
        let Some(end) = end else { return Err("it is outside the BAR".into()) };
        if self.areas.iter().any(|a| overlap(&range(a.at), &(bell.offset..end))) {
            return Err("it is in a mapped area, where writes do not exit".into());
        }
        self.bells.push(Bell {
            offset: bell.offset,
            size: bell.size as u32,
            datamatch: bell.datamatch,
            fd: bell.fd,
            armed: None,
        });
        Ok(())
    }

    /// The BAR is at `at` from now on. What KVM refuses traps instead, with a warning.
    pub fn map(&mut self, label: &str, wiring: &mut dyn Wiring, at: Gpa) {
        for area in &mut self.areas {
            let to = Gpa(at.0 + area.at.offset);
            match wiring.add_memory(to, Arc::clone(&area.region), !area.write) {
                Ok(slot) => area.slot = Some(slot),
                Err(e) => tracing::warn!("{label}: a mapped area traps instead: {e}"),
            }
        }
        for bell in &mut self.bells {
            let doorbell = Doorbell {
                at: Gpa(at.0 + bell.offset),
                size: bell.size,
                datamatch: bell.datamatch,
            };
            match wiring.attach_doorbell(bell.fd.as_fd(), doorbell) {
                Ok(()) => bell.armed = Some(doorbell),
                Err(e) => tracing::warn!("{label}: a doorbell traps instead: {e}"),
            }
        }
    }

    /// The BAR is nowhere from now on.
    pub fn unmap(&mut self, label: &str, wiring: &mut dyn Wiring) {
        for bell in &mut self.bells {
            if let Some(doorbell) = bell.armed.take()
                && let Err(e) = wiring.detach_doorbell(bell.fd.as_fd(), doorbell)
            {
                tracing::warn!("{label}: a doorbell stays: {e}");
            }
        }
        for area in &mut self.areas {
            if let Some(slot) = area.slot.take()
                && let Err(e) = wiring.remove_memory(slot)
            {
                tracing::warn!("{label}: a mapped area stays: {e}");
            }
        }
    }
}

/// What `fstatfs` says of a file of huge pages (linux/magic.h).
const HUGETLBFS_MAGIC: rustix::fs::FsWord = 0x9584_58f6;

/// A file that its owner could shrink would end the guest with a fault when it does.
fn is_sealed(file: &File) -> Result<(), String> {
    match rustix::fs::fcntl_get_seals(file) {
        // A page that its pool has not, or that its owner gives back, is a fault as well.
        Ok(_) if rustix::fs::fstatfs(file).is_ok_and(|s| s.f_type == HUGETLBFS_MAGIC) => {
            Err("the memfd is of huge pages, which can be taken away: use ordinary ones".into())
        }
        Ok(seals) if seals.contains(SealFlags::SHRINK) => Ok(()),
        Ok(_) => Err("the memfd is not sealed against shrinking (F_SEAL_SHRINK)".into()),
        Err(e) => Err(format!("not a memfd: {e}")),
    }
}

fn range(area: SparseArea) -> Range<u64> {
    // Areas are checked to lie within the BAR before any range is made of those kept; a range of one
    // that overflows is made only after its own check.
    area.offset..area.offset.saturating_add(area.size)
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{eventfd, memfd};

    fn backing(areas: &[(u64, u64)], sealed: bool) -> Backing {
        let region = RemoteRegion {
            size: 0x8000,
            flags: RegionFlags { read: true, write: true },
            mapping: Some(RemoteMapping {
                fd: memfd(0x4000, sealed),
                fd_offset: 0x1000,
                write: false,
                areas: areas.iter().map(|&(offset, size)| SparseArea { offset, size }).collect(),
            }),
        };
        let bell =
            |offset, size, datamatch| RemoteDoorbell { offset, size, fd: eventfd(), datamatch };
        let bells = vec![
            bell(0x4000, 4, None),
            bell(0x4000, 3, None),
            bell(0x7fff, 4, None),
            bell(u64::MAX, 4, None),
            bell(0, 4, None),
            bell(0x5000, 0, Some(1)),
        ];
        Backing::new("test", region, bells, std::slice::from_ref(&(0x2000..0x2010)))
    }

    #[test]
    fn only_sound_areas_and_doorbells_are_used() {
        let b = backing(
            &[
                (0, 0x1000),
                (0, 0x1000),
                (0x800, 0x1000),
                (0x1000, 0),
                (0x2000, 0x1000),
                (0x3000, 0x1000),
                (0x8000, 0x1000),
                (u64::MAX - 0xfff, 0x1000),
                (0x1000, 0x1000),
            ],
            true,
        );
        let kept: Vec<u64> = b.areas.iter().map(|a| a.at.offset).collect();
        assert_eq!(kept, [0, 0x1000], "overlap, MSI-X, beyond the file and nonsense are left out");
        assert!(b.is_read_only(0xfff) && !b.is_read_only(0x4000));
        assert_eq!(b.bells.len(), 1);
    }

    #[test]
    fn files_that_can_shrink_are_not_mapped() {
        assert!(backing(&[(0, 0x1000)], false).areas.is_empty());
    }
}
