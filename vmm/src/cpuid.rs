//! What a vCPU's CPUID says: the host's, with a topology of its own ([`crate::topology`]).
//!
//! Packages have one die, and cores of one thread each. Leaves are those of
//! Intel's SDM, volume 2A, "CPUID", and of AMD's APM, volume 3, appendix E.

use crate::hyperv;
use crate::topology::Seat;
use kvm_bindings::{CpuId, kvm_cpuid_entry2};

/// Leaf 1.
const VERSION: u32 = 1;
/// Leaf 4, and AMD's counterpart: caches.
const CACHES: u32 = 4;
const AMD_CACHES: u32 = 0x8000_001d;
/// Leaves 0xb and 0x1f: levels of the topology.
const TOPOLOGY: [u32; 2] = [0xb, 0x1f];
const AMD_FEATURES: u32 = 0x8000_0001;
const AMD_SIZES: u32 = 0x8000_0008;
const AMD_TOPOLOGY: u32 = 0x8000_001e;
/// Levels of the topology, AMD's newer leaf: left out, since the older ones say the same.
const AMD_LEVELS: u32 = 0x8000_0026;

/// Kinds of levels in leaves 0xb and 0x1f.
const THREADS: u32 = 1;
const CORES: u32 = 2;

/// The host's entries, as the vCPU at `seat` sees them. Where there are `others`, they take the place of KVM's own
/// leaves: a guest believes the one hypervisor that it finds.
pub(crate) fn adapt(
    host: &CpuId,
    others: &[kvm_cpuid_entry2],
    seat: Seat,
    deadline_timer: bool,
) -> Vec<kvm_cpuid_entry2> {
    let listed = |leaf| host.as_slice().iter().any(|e| e.function == leaf);
    let mut entries: Vec<kvm_cpuid_entry2> = host
        .as_slice()
        .iter()
        .filter(|e| !TOPOLOGY.contains(&e.function) && e.function != AMD_LEVELS)
        .filter(|e| others.is_empty() || !hyperv::HYPERVISOR.contains(&e.function))
        .map(|entry| adapted(*entry, seat, deadline_timer))
        .collect();
    for leaf in TOPOLOGY.into_iter().filter(|leaf| listed(*leaf)) {
        entries.extend(levels(leaf, seat));
    }
    entries.extend_from_slice(others);
    entries
}

fn adapted(mut e: kvm_cpuid_entry2, seat: Seat, deadline_timer: bool) -> kvm_cpuid_entry2 {
    const X2APIC: u32 = 1 << 21;
    const TSC_DEADLINE: u32 = 1 << 24;
    const HYPERVISOR: u32 = 1 << 31;
    const VMX: u32 = 1 << 5;
    const SVM: u32 = 1 << 2;
    const HYPER_THREADING: u32 = 1 << 28;
    const COMPATIBLE_CORES: u32 = 1 << 1;
    let Seat { apic_id, package, core, cores, bits, .. } = seat;
    // Packages are numbered by the bits above the cores', also where this one has a single core.
    let several = bits > 0;
    match e.function {
        VERSION => {
            e.ecx |= X2APIC | HYPERVISOR;
            // A guest has no guests: less of KVM within its reach.
            e.ecx &= !VMX;
            if deadline_timer {
                e.ecx |= TSC_DEADLINE;
            }
            let processors = 1 << bits;
            e.ebx = (e.ebx & 0xffff) | processors << 16 | apic_id << 24;
            e.edx = e.edx & !HYPER_THREADING | if several { HYPER_THREADING } else { 0 };
        }
        CACHES | AMD_CACHES if e.eax & 0x1f != 0 => {
            // Level 3 is the package's, the others are each core's own.
            let sharing = if (e.eax >> 5) & 7 >= 3 { cores - 1 } else { 0 };
            e.eax = (e.eax & !(0xfff << 14)) | sharing << 14;
            if e.function == CACHES {
                let ids = (1 << bits) - 1;
                e.eax = (e.eax & !(0x3f << 26)) | ids << 26;
            }
        }
        AMD_FEATURES => {
            e.ecx &= !SVM;
            e.ecx = e.ecx & !COMPATIBLE_CORES | if several { COMPATIBLE_CORES } else { 0 };
        }
        AMD_SIZES => e.ecx = (e.ecx & !0xf0ff) | (cores - 1) | bits << 12,
        AMD_TOPOLOGY => {
            e.eax = apic_id;
            e.ebx = core;
            // A package is a node.
            e.ecx = package;
        }
        _ => {}
    }
    e
}

/// A leaf with the levels: threads, cores, and the end.
fn levels(function: u32, seat: Seat) -> [kvm_cpuid_entry2; 3] {
    let level = |index, kind: u32, shift, processors| kvm_cpuid_entry2 {
        function,
        index,
        flags: kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: processors,
        ecx: index | kind << 8,
        edx: seat.apic_id,
        ..Default::default()
    };
    [level(0, THREADS, 0, 1), level(1, CORES, seat.bits, seat.cores), level(2, 0, 0, 0)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Node;
    use crate::topology::seats;

    fn entry(function: u32, eax: u32, ebx: u32, ecx: u32, edx: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, eax, ebx, ecx, edx, ..Default::default() }
    }

    fn seen(host: &[kvm_cpuid_entry2], index: u32, count: u32) -> Vec<kvm_cpuid_entry2> {
        at(host, seats(count, &[])[index as usize])
    }

    fn at(host: &[kvm_cpuid_entry2], seat: Seat) -> Vec<kvm_cpuid_entry2> {
        adapt(&CpuId::from_entries(host).unwrap(), &[], seat, true)
    }

    fn leaf(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        *entries.iter().find(|e| e.function == function && e.index == index).unwrap()
    }

    #[test]
    fn each_vcpu_has_its_own_id_in_every_leaf() {
        let host = [
            entry(1, 0, 0xff10_1234, 1 << 5, 0),
            entry(4, 1 << 5 | 1 | 7 << 14, 0, 0, 0),
            entry(0xb, 9, 9, 9, 9),
            entry(AMD_FEATURES, 0, 0, 1 << 2, 0),
            entry(AMD_SIZES, 0, 0, 0x500b, 0),
            entry(AMD_TOPOLOGY, 77, 77, 77, 0),
            entry(AMD_LEVELS, 1, 1, 1, 1),
        ];
        for (index, count, bits) in [(0, 1, 0), (1, 2, 1), (2, 3, 2), (63, 64, 6)] {
            let e = seen(&host, index, count);
            let one = leaf(&e, 1, 0);
            assert_eq!(one.ebx, index << 24 | (1 << bits) << 16 | 0x1234);
            assert_eq!(one.ecx & (1 << 5), 0, "no VMX");
            assert_eq!(one.edx >> 28 & 1, u32::from(count > 1));
            assert_eq!(
                (leaf(&e, 4, 0).eax >> 26, leaf(&e, 4, 0).eax >> 14 & 0xfff),
                ((1 << bits) - 1, 0)
            );
            let cores = leaf(&e, 0xb, 1);
            assert_eq!((cores.eax, cores.ebx, cores.edx), (bits, count, index));
            assert_eq!(leaf(&e, 0xb, 0).ecx, 0x100);
            assert_eq!(leaf(&e, 0xb, 2).ecx, 2, "the end");
            assert!(
                !e.iter().any(|e| e.function == 0x1f),
                "what the host has not, the guest has not"
            );
            assert!(!e.iter().any(|e| e.function == AMD_LEVELS));
            assert_eq!(leaf(&e, AMD_FEATURES, 0).ecx, if count > 1 { 2 } else { 0 }, "no SVM");
            assert_eq!(leaf(&e, AMD_SIZES, 0).ecx, (count - 1) | bits << 12);
            assert_eq!(leaf(&e, AMD_TOPOLOGY, 0).eax, index);
        }
    }

    #[test]
    fn a_node_is_a_package_in_every_leaf() {
        let host = [
            entry(1, 0, 0, 0, 0),
            entry(4, 3 << 5 | 1, 0, 0, 0),
            entry(0xb, 0, 0, 0, 0),
            entry(AMD_SIZES, 0, 0, 0, 0),
            entry(AMD_TOPOLOGY, 0, 0, 0, 0),
        ];
        let node = |vcpus: &[u32]| Node {
            memory: 2 << 20,
            vcpus: vcpus.to_vec(),
            host_nodes: vec![],
            distances: vec![10, 20],
        };
        let seats = seats(4, &[node(&[0, 1, 2]), node(&[3])]);
        let (first, last) = (at(&host, seats[1]), at(&host, seats[3]));
        // Three cores need two bits, so that the second package starts at ID 4.
        for (e, id, core, package, cores) in [(first, 1, 1, 0, 3), (last, 4, 0, 1, 1)] {
            let one = leaf(&e, 1, 0);
            assert_eq!((one.ebx >> 24, one.ebx >> 16 & 0xff, one.edx >> 28 & 1), (id, 4, 1));
            let shared = leaf(&e, 4, 0).eax;
            assert_eq!((shared >> 26, shared >> 14 & 0xfff), (3, cores - 1), "the last cache");
            let level = leaf(&e, 0xb, 1);
            assert_eq!((level.eax, level.ebx, level.edx), (2, cores, id));
            assert_eq!(leaf(&e, AMD_SIZES, 0).ecx, (cores - 1) | 2 << 12);
            let amd = leaf(&e, AMD_TOPOLOGY, 0);
            assert_eq!((amd.eax, amd.ebx, amd.ecx), (id, core, package));
        }
    }

    #[test]
    fn another_hypervisors_leaves_replace_kvms() {
        let host =
            [entry(1, 0, 0, 0, 0), entry(0x4000_0000, 1, 1, 1, 1), entry(0x4000_0001, 9, 0, 0, 0)];
        let host = CpuId::from_entries(&host).unwrap();
        let other = entry(0x4000_0000, 5, 0, 0, 0);
        let seat = seats(1, &[])[0];
        let told = |others: &[kvm_cpuid_entry2]| {
            let e = adapt(&host, others, seat, true);
            let e = e.into_iter().filter(|e| hyperv::HYPERVISOR.contains(&e.function));
            e.map(|e| (e.function, e.eax)).collect::<Vec<_>>()
        };
        assert_eq!(told(&[]), [(0x4000_0000, 1), (0x4000_0001, 9)]);
        assert_eq!(told(&[other]), [(0x4000_0000, 5)]);
    }

    #[test]
    fn only_the_last_level_of_cache_is_shared() {
        let cache = |level: u32| entry(AMD_CACHES, level << 5 | 1 | 63 << 14, 0, 0, 0);
        for (level, sharing) in [(1, 0), (2, 0), (3, 3)] {
            let e = seen(&[cache(level)], 1, 4);
            assert_eq!(e[0].eax >> 14 & 0xfff, sharing, "level {level}");
        }
        assert_eq!(seen(&[entry(4, 0, 0, 0, 0)], 1, 4)[0].eax, 0, "the end of the list");
    }
}
