//! Which pages the RAM is made of, and whether the host has enough of them.

use super::MemoryError;
use crate::config::HugePages;
use rustix::fs::MemfdFlags;
use std::path::Path;

impl HugePages {
    /// As `memfd_create` takes it.
    pub(super) fn flags(self) -> MemfdFlags {
        let size = match self {
            Self::TwoMib => MemfdFlags::HUGE_2MB,
            Self::OneGib => MemfdFlags::HUGE_1GB,
        };
        MemfdFlags::HUGETLB | size
    }

    /// How many of them are free below `folder`, which is the machine's or a node's.
    fn free(self, folder: &Path) -> Option<u64> {
        let pool = format!("hugepages-{}kB/free_hugepages", self.bytes() >> 10);
        std::fs::read_to_string(folder.join(pool)).ok()?.trim().parse().ok()
    }
}

/// The machine's pools of huge pages.
const POOLS: &str = "/sys/kernel/mm/hugepages";

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

/// Refuses what the host could never hold. Guests that use little of their RAM may have more than there is, all
/// together; one that has more than there is will be killed when it uses it.
pub(super) fn fits_host(size: u64) -> Result<(), MemoryError> {
    let info = rustix::system::sysinfo();
    let unit = u64::from(info.mem_unit);
    let has = (info.totalram as u64).saturating_add(info.totalswap as u64).saturating_mul(unit);
    if size > has { Err(MemoryError::Host { size, has }) } else { Ok(()) }
}

/// Refuses to fill what is not there: the kernel would kill somebody to make room.
pub(super) fn can_be_filled(size: u64) -> Result<(), MemoryError> {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    // Where the kernel does not say it, filling is tried.
    match available(&text) {
        Some(has) if size > has => Err(MemoryError::Available { size, has }),
        _ => Ok(()),
    }
}

/// What programs can still take, by the kernel's own estimate: bytes.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_estimate_is_read_in_bytes() {
        let text = "MemTotal:  24683520 kB\nMemAvailable:   24066000 kB\n";
        assert_eq!(available(text), Some(24_066_000 * 1024));
        for bad in
            ["", "MemAvailable: x kB", "MemAvailable: 7", "MemAvailable: 99999999999999999999 kB"]
        {
            assert_eq!(available(bad), None, "{bad}");
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
