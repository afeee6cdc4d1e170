//! Which NUMA nodes of the host the RAM comes from.
#![allow(unsafe_code)] // mbind has no safe wrapper.

use super::MemoryError;
use crate::config::MAX_NODE;
use std::path::Path;
use vm_memory::MmapRegion;

/// Bits of a word of the kernel's masks.
const BITS: usize = libc::c_ulong::BITS as usize;
/// Words of a mask that has every node that can be named.
const WORDS: usize = (MAX_NODE as usize + 1).div_ceil(BITS);

/// Has `region` take its pages from `nodes` only: whoever touches them first, in this process or another one that
/// maps the same file. Pages that are there already stay.
pub(super) fn bind(region: &MmapRegion, nodes: &[u32]) -> Result<(), MemoryError> {
    let mut mask: [libc::c_ulong; WORDS] = [0; WORDS];
    for node in nodes {
        if let Some(word) = mask.get_mut(*node as usize / BITS) {
            *word |= 1 << (*node as usize % BITS);
        }
    }
    // SAFETY: the range is the mapping in `region`, the mask has as many bits as is said, and the call reads it
    // only. The kernel takes one bit less than it is told.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            region.as_ptr(),
            region.size(),
            libc::MPOL_BIND,
            mask.as_ptr(),
            WORDS * BITS + 1,
            0,
        )
    };
    if done == 0 {
        return Ok(());
    }
    let source = std::io::Error::last_os_error();
    // One of several that does not exist is not refused by the kernel; `check` has looked for it.
    Err(MemoryError::Node { nodes: nodes.to_vec(), online: online(), source })
}

/// Refuses nodes that the host does not have.
pub(super) fn check(nodes: &[u32]) -> Result<(), MemoryError> {
    let online = online();
    // Where the kernel does not say it, it is asked by `bind`.
    let Some(there) = parse(&online) else { return Ok(()) };
    if nodes.iter().all(|n| there.contains(n)) {
        return Ok(());
    }
    let source = std::io::Error::from(std::io::ErrorKind::NotFound);
    Err(MemoryError::Node { nodes: nodes.to_vec(), online, source })
}

/// The nodes that are there, as the kernel writes it: `0-1,3`.
fn online() -> String {
    let text = std::fs::read_to_string(Path::new("/sys/devices/system/node/has_memory"));
    text.map_or_else(|_| "unknown".into(), |text| text.trim().to_owned())
}

fn parse(list: &str) -> Option<Vec<u32>> {
    let mut nodes = Vec::new();
    for range in list.split(',') {
        let (from, to) = range.split_once('-').unwrap_or((range, range));
        let (from, to) = (from.parse::<u32>().ok()?, to.parse::<u32>().ok()?);
        nodes.extend((from..=to).take(MAX_NODE as usize + 1));
    }
    Some(nodes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_list_of_nodes_is_read() {
        assert_eq!(parse("0"), Some(vec![0]));
        assert_eq!(parse("0-1,3"), Some(vec![0, 1, 3]));
        assert_eq!(parse("unknown"), None);
        assert_eq!(parse("0-4294967295").unwrap().len(), MAX_NODE as usize + 1);
    }

    #[test]
    fn only_nodes_that_are_there_are_bound() {
        let region = MmapRegion::new(8192).unwrap();
        let Some(there) = parse(&online()) else {
            println!("skip: only_nodes_that_are_there_are_bound: this kernel has no NUMA");
            return;
        };
        check(&there).unwrap();
        bind(&region, &there).unwrap();
        let none = (0..=MAX_NODE).find(|n| !there.contains(n)).unwrap();
        for result in [check(&[none]), check(&[there[0], none]), bind(&region, &[none])] {
            let error = result.unwrap_err().to_string();
            assert!(
                error.contains("memory.host_nodes") && error.contains(&none.to_string()),
                "{error}"
            );
        }
    }
}
