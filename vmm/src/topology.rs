//! Which package and core each vCPU is, and its APIC ID.
//!
//! A guest without nodes is one package. One with nodes has a package for each of them that has vCPUs, so that
//! nothing that a package shares, such as its last cache, reaches over nodes.

use crate::config::Node;

/// A vCPU's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seat {
    /// Which vCPU.
    pub(crate) index: u32,
    /// Its APIC ID: the package above [`Self::bits`], the core below.
    pub(crate) apic_id: u32,
    /// Its package.
    pub(crate) package: u32,
    /// Which core of the package it is.
    pub(crate) core: u32,
    /// Cores of the package: at least 1.
    pub(crate) cores: u32,
    /// Bits of an APIC ID that tell a package's cores apart: the same in all packages.
    pub(crate) bits: u32,
}

/// The seats of `count` vCPUs, in their order. Each vCPU is in one of the `nodes`, or there are none of these.
pub(crate) fn seats(count: u32, nodes: &[Node]) -> Vec<Seat> {
    let mut packages: Vec<Vec<u32>> = if nodes.is_empty() {
        vec![(0..count).collect()]
    } else {
        nodes.iter().map(|node| node.vcpus.clone()).collect()
    };
    for vcpus in &mut packages {
        vcpus.sort_unstable();
    }
    packages.retain(|vcpus| !vcpus.is_empty());
    // The first vCPU boots, and KVM has APIC ID 0 do so.
    packages.sort_unstable();
    let most = packages.iter().map(Vec::len).max().unwrap_or(1) as u32;
    let bits = most.next_power_of_two().trailing_zeros();
    let mut seats = Vec::with_capacity(count as usize);
    for (package, vcpus) in (0..).zip(&packages) {
        for (core, index) in (0..).zip(vcpus) {
            let (apic_id, cores) = (package << bits | core, vcpus.len() as u32);
            seats.push(Seat { index: *index, apic_id, package, core, cores, bits });
        }
    }
    seats.sort_unstable_by_key(|seat| seat.index);
    seats
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(vcpus: &[u32]) -> Node {
        Node { memory: 2 << 20, vcpus: vcpus.to_vec(), host_nodes: vec![], distances: vec![] }
    }

    fn ids(count: u32, nodes: &[&[u32]]) -> Vec<u32> {
        let nodes: Vec<Node> = nodes.iter().map(|vcpus| node(vcpus)).collect();
        let seats = seats(count, &nodes);
        assert!(seats.iter().map(|s| s.index).eq(0..count), "in their order");
        seats.iter().map(|seat| seat.apic_id).collect()
    }

    #[test]
    fn apic_ids_have_the_package_above_the_core() {
        assert_eq!(ids(3, &[]), [0, 1, 2]);
        assert_eq!(ids(2, &[&[0], &[1]]), [0, 1]);
        assert_eq!(ids(4, &[&[0, 2], &[1, 3]]), [0, 2, 1, 3]);
        assert_eq!(ids(4, &[&[0, 1, 2], &[], &[3]]), [0, 1, 2, 4]);
        assert_eq!(ids(3, &[&[2, 1], &[0]]), [0, 2, 3], "the first vCPU has ID 0");
        let seat = seats(4, &[node(&[0, 1, 2]), node(&[3])])[3];
        assert_eq!((seat.package, seat.core, seat.cores, seat.bits), (1, 0, 1, 2));
    }
}
