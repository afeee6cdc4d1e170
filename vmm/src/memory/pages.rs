//! Which pages the RAM is made of, and whether the host has enough of them.
#![allow(unsafe_code)] // madvise takes a raw address.

use super::MemoryError;
use crate::config::HugePages;
use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::mm::Advice;
use std::path::{Component, Path};
use vm_memory::MmapRegion;

impl HugePages {
    /// As `memfd_create` takes it.
    pub(super) fn flags(self) -> MemfdFlags {
        let size = match self {
            Self::TwoMib => MemfdFlags::HUGE_2MB,
            Self::OneGib => MemfdFlags::HUGE_1GB,
        };
        MemfdFlags::HUGETLB | size
    }

    /// How many of them can be had below `folder`: those that are free, without those that somebody has reserved.
    fn free(self, folder: &Path) -> Option<u64> {
        let pool = folder.join(format!("hugepages-{}kB", self.bytes() >> 10));
        let number = |name: &str| -> Option<u64> {
            std::fs::read_to_string(pool.join(name)).ok()?.trim().parse().ok()
        };
        let reserved = number("resv_hugepages").unwrap_or(0);
        Some(number("free_hugepages")?.saturating_sub(reserved))
    }
}

/// The machine's pools of huge pages.
const POOLS: &str = "/sys/kernel/mm/hugepages";

/// Refuses more than the pool has free.
pub(super) fn are_free(pages: HugePages, size: u64) -> Result<(), MemoryError> {
    match pages.free(Path::new(POOLS)) {
        Some(free) if free >= size / pages.bytes() => Ok(()),
        _ => Err(too_few(pages, size)),
    }
}

/// Whether `memfd_create` has refused huge pages because the kernel has none of that size; it may have refused a file.
pub(super) fn are_unknown(e: Errno) -> bool {
    matches!(e, Errno::INVAL | Errno::NODEV | Errno::NOENT)
}

/// What is said where there are too few huge pages.
pub(super) fn too_few(pages: HugePages, size: u64) -> MemoryError {
    let kib = pages.bytes() >> 10;
    let free = match pages.free(Path::new(POOLS)) {
        Some(n) => format!("{n} are free"),
        None => "this kernel has no such pages".into(),
    };
    MemoryError::HugePages {
        size,
        pages: size / pages.bytes(),
        kib,
        free,
        pool: format!("{POOLS}/hugepages-{kib}kB/nr_hugepages"),
    }
}

/// What decides whether the kernel makes huge pages of memory that is shared.
const SHARED: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";

/// Refuses a kernel whose setting is against huge pages: it makes none, and says nothing.
pub(super) fn may_be_huge() -> Result<(), MemoryError> {
    let setting = std::fs::read_to_string(SHARED).unwrap_or_default();
    if setting.contains("[never]") || setting.contains("[deny]") {
        return Err(MemoryError::Transparent { setting: SHARED });
    }
    Ok(())
}

/// Asks for huge pages where the kernel can make them.
pub(super) fn make_huge(region: &MmapRegion) -> Result<(), MemoryError> {
    // SAFETY: the range is the mapping in `region`; the advice changes no byte of it.
    let done = unsafe {
        rustix::mm::madvise(region.as_ptr().cast(), region.size(), Advice::LinuxHugepage)
    };
    done.map_err(|_| MemoryError::Transparent { setting: SHARED })
}

/// Refuses what the host could never hold. Guests that use little of their RAM may have more than there is, all
/// together; one that has more than there is will be killed when it uses it.
pub(super) fn fits_host(size: u64) -> Result<(), MemoryError> {
    let has = host();
    if size > has { Err(MemoryError::Host { size, has }) } else { Ok(()) }
}

/// What the host has in all, swap included: bytes.
pub fn host() -> u64 {
    let info = rustix::system::sysinfo();
    let unit = u64::from(info.mem_unit);
    (info.totalram as u64).saturating_add(info.totalswap as u64).saturating_mul(unit)
}

/// What it can give this process now, by the kernel's own estimate and the control groups' limits: bytes; `None`
/// where nothing says it.
pub fn available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    [estimate(&text), room(Path::new(GROUPS), &own)].into_iter().flatten().min()
}

/// Refuses to fill what is not there: the kernel would kill somebody to make room.
pub(super) fn can_be_filled(size: u64) -> Result<(), MemoryError> {
    // Where the kernel does not say it, filling is tried.
    match available() {
        Some(has) if size > has => Err(MemoryError::Available { size, has }),
        _ => Ok(()),
    }
}

/// Where the control groups are (version 2).
const GROUPS: &str = "/sys/fs/cgroup";

/// What the control groups that this process is in leave it, below `groups`: bytes. `own` says which they are, as
/// `/proc/self/cgroup` does. What has been taken and could be given back counts as taken, since it may be in use.
fn room(groups: &Path, own: &str) -> Option<u64> {
    let path = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    if Path::new(path).components().any(|part| part == Component::ParentDir) {
        return None;
    }
    let number = |folder: &Path, name| {
        std::fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok()
    };
    let limits = groups.join(path);
    let limits = limits.ancestors().take_while(|folder| folder.starts_with(groups));
    limits
        .filter_map(|folder| {
            // The word `max` is no limit.
            let most = number(folder, "memory.max")?;
            Some(most.saturating_sub(number(folder, "memory.current").unwrap_or(0)))
        })
        .min()
}

/// What programs can still take, by the kernel's own estimate: bytes.
fn estimate(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_estimate_is_read_in_bytes() {
        let text = "MemTotal:  24683520 kB\nMemAvailable:   24066000 kB\n";
        assert_eq!(estimate(text), Some(24_066_000 * 1024));
        for bad in
            ["", "MemAvailable: x kB", "MemAvailable: 7", "MemAvailable: 99999999999999999999 kB"]
        {
            assert_eq!(estimate(bad), None, "{bad}");
        }
    }

    #[test]
    fn pages_that_somebody_reserved_are_not_free() {
        let pools = tempfile::tempdir().unwrap();
        let pool = pools.path().join("hugepages-2048kB");
        std::fs::create_dir(&pool).unwrap();
        let free = || HugePages::TwoMib.free(pools.path());
        assert_eq!(free(), None, "there is no such pool");
        std::fs::write(pool.join("free_hugepages"), "7\n").unwrap();
        assert_eq!(free(), Some(7));
        std::fs::write(pool.join("resv_hugepages"), "5\n").unwrap();
        assert_eq!(free(), Some(2));
        assert_eq!(HugePages::OneGib.free(pools.path()), None);
    }

    #[test]
    fn the_tightest_control_group_counts() {
        let groups = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = groups.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let room = |own: &str| room(groups.path(), own);
        assert_eq!(room("0::/a/b\n"), None, "no limits");
        write("a/memory.max", "1000\n");
        write("a/memory.current", "400\n");
        write("a/b/memory.max", "max\n");
        assert_eq!(room("1:cpu:/x\n0::/a/b\n"), Some(600), "the parent's counts");
        write("a/b/memory.max", "300\n");
        assert_eq!(room("0::/a/b\n"), Some(300));
        assert_eq!(room("0::/\n"), None);
        for strange in ["", "1:cpu:/a", "0::/../a"] {
            assert_eq!(room(strange), None, "{strange}");
        }
    }

    #[test]
    fn more_than_the_host_has_is_refused_with_both_numbers() {
        fits_host(2 << 20).unwrap();
        let error = fits_host(1 << 50).unwrap_err().to_string();
        assert!(error.contains("1125899906842624 bytes") && error.contains("host has"), "{error}");
        assert!(can_be_filled(1 << 50).unwrap_err().to_string().contains("memory.prefault"));
    }
}
