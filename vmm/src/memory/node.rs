//! Which NUMA nodes of the host the RAM, or a node's part of it, comes from.
#![allow(unsafe_code)] // mbind has no safe wrapper.

use super::MemoryError;
use crate::config::{MAX_NODE, Memory, Node};
use std::path::Path;
use vm_memory::MmapRegion;

/// Bits of a word of the kernel's masks.
const BITS: usize = libc::c_ulong::BITS as usize;
/// Words of a mask that has every node that can be named.
const WORDS: usize = (MAX_NODE as usize + 1).div_ceil(BITS);

/// A piece of the RAM that comes from certain nodes of the host.
pub(super) struct Bound<'a> {
    /// What names the nodes in the guest's file.
    key: String,
    nodes: &'a [u32],
    /// Where it starts in the memfd: bytes.
    pub(super) from: u64,
    /// Bytes.
    pub(super) size: u64,
}

/// The pieces that come from certain nodes: all of the RAM, or what some of the guest's own `nodes` have.
pub(super) fn bounds<'a>(memory: &'a Memory, nodes: &'a [Node]) -> Vec<Bound<'a>> {
    let all = ("memory.host_nodes".to_owned(), &*memory.host_nodes, 0, memory.size);
    let mut next = 0;
    let own = (0..).zip(nodes).map(|(index, node): (u32, _)| {
        let from = next;
        next += node.memory;
        (format!("node[{index}].host_nodes"), &*node.host_nodes, from, node.memory)
    });
    std::iter::once(all)
        .chain(own)
        .filter(|(_, nodes, ..)| !nodes.is_empty())
        .map(|(key, nodes, from, size)| Bound { key, nodes, from, size })
        .collect()
}

impl Bound<'_> {
    fn refused(&self, source: std::io::Error) -> MemoryError {
        let (key, nodes) = (self.key.clone(), self.nodes.to_vec());
        MemoryError::Node { key, nodes, online: online(), source }
    }

    /// Refuses nodes that the host does not have.
    pub(super) fn check(&self) -> Result<(), MemoryError> {
        check(self.nodes).map_err(|e| self.refused(e))
    }

    /// Binds the `size` bytes from `at` on of `region`.
    pub(super) fn bind(
        &self,
        region: &MmapRegion,
        at: usize,
        size: usize,
    ) -> Result<(), MemoryError> {
        bind(region, at, size, self.nodes).map_err(|e| self.refused(e))
    }
}

/// Has the `size` bytes from `at` on of `region` take their pages from `nodes` only: whoever touches them first, in
/// this process or another one that maps the same file. Pages that are there already stay.
fn bind(region: &MmapRegion, at: usize, size: usize, nodes: &[u32]) -> std::io::Result<()> {
    if at.checked_add(size).is_none_or(|end| end > region.size()) {
        return Err(std::io::ErrorKind::InvalidInput.into());
    }
    let mut mask: [libc::c_ulong; WORDS] = [0; WORDS];
    for node in nodes {
        if let Some(word) = mask.get_mut(*node as usize / BITS) {
            *word |= 1 << (*node as usize % BITS);
        }
    }
    // SAFETY: the range is within the mapping in `region`, as was just looked; the mask has as many bits as is said,
    // and the call reads it only. The kernel takes one bit less than it is told.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            region.as_ptr().wrapping_add(at),
            size,
            libc::MPOL_BIND,
            mask.as_ptr(),
            WORDS * BITS + 1,
            0,
        )
    };
    if done == 0 {
        return Ok(());
    }
    // One of several that does not exist is not refused by the kernel; `check` has looked for it.
    Err(std::io::Error::last_os_error())
}

/// Refuses nodes that the host does not have.
fn check(nodes: &[u32]) -> std::io::Result<()> {
    // Where the kernel does not say it, it is asked by `bind`.
    let Some(there) = parse(&online()) else { return Ok(()) };
    if nodes.iter().all(|n| there.contains(n)) {
        return Ok(());
    }
    Err(std::io::ErrorKind::NotFound.into())
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
        bind(&region, 0, 8192, &there).unwrap();
        bind(&region, 4096, 4096, &there).unwrap();
        assert!(bind(&region, 4096, 8192, &there).is_err(), "beyond its end");
        let none = (0..=MAX_NODE).find(|n| !there.contains(n)).unwrap();
        for nodes in [vec![none], vec![there[0], none]] {
            let bound =
                Bound { key: "memory.host_nodes".into(), nodes: &nodes, from: 0, size: 8192 };
            let error = bound.check().unwrap_err().to_string();
            assert!(
                error.contains("memory.host_nodes") && error.contains(&none.to_string()),
                "{error}"
            );
        }
        assert!(bind(&region, 0, 8192, &[none]).is_err());
    }
}
