//! The guest's RAM, as it is made and shared.

use super::*;
use vm_memory::Bytes;

#[test]
fn ram_is_sealed_and_shared() {
    let ram = GuestRam::new(2 << 20).unwrap();
    let file = File::from(ram.fd().try_clone_to_owned().unwrap());
    assert!(file.set_len(4096).is_err(), "sealed against shrinking");
    assert!(file.set_len(4 << 20).is_err(), "sealed against growing");
    assert!(rustix::fs::fcntl_add_seals(&file, SealFlags::WRITE).is_err(), "sealed seals");
    ram.memory().write_obj(0x1234_5678u32, Gpa(0x1000)).unwrap();
    let mut back = [0; 4];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut back, 0x1000).unwrap();
    assert_eq!(u32::from_le_bytes(back), 0x1234_5678);
    assert!(ram.memory().write_obj(0u32, Gpa(2 << 20)).is_err());
}

#[test]
fn large_ram_leaves_the_pci_window_free() {
    // Pages that nobody touches cost nothing.
    let ram = GuestRam::new(5 << 30).unwrap();
    let low = Part { at: Gpa(0), size: layout::WINDOW, offset: 0 };
    let high = Part { at: Gpa(HIGH_START), size: 2 << 30, offset: 3 << 30 };
    assert_eq!(ram.parts().collect::<Vec<_>>(), [low, high]);
    assert_eq!((ram.low_end(), ram.end()), (layout::WINDOW, HIGH_START + (2 << 30)));
    ram.memory().write_obj(7u32, Gpa(HIGH_START)).unwrap();
    assert!(ram.memory().write_obj(7u32, Gpa(layout::WINDOW)).is_err());
    let mut back = [0; 4];
    let file = File::from(ram.fd().try_clone_to_owned().unwrap());
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut back, 3 << 30).unwrap();
    assert_eq!(u32::from_le_bytes(back), 7);
}

#[test]
fn a_range_has_what_is_ram_of_it() {
    let shared = GuestRam::new(5 << 30).unwrap().share();
    let within = |at, last| -> Vec<(u64, u64, u64)> {
        shared.within(Gpa(at), Gpa(last)).map(|p| (p.at.0, p.size, p.offset)).collect()
    };
    let high = HIGH_START;
    assert_eq!(within(0x1000, 0x1fff), [(0x1000, 0x1000, 0x1000)]);
    assert_eq!(within(high, high + 0xfff), [(high, 0x1000, 3 << 30)]);
    assert_eq!(within(0, u64::MAX), [(0, 3 << 30, 0), (high, 2 << 30, 3 << 30)]);
    let edge = layout::WINDOW - 0x1000;
    assert_eq!(within(edge, edge + 0x1fff), [(edge, 0x1000, edge)]);
    assert_eq!(within(layout::WINDOW, high - 1), []);
    assert_eq!(within(high + (2 << 30), u64::MAX), []);
}

fn memory(size: u64, hugepages: Option<HugePages>, prefault: bool) -> Memory {
    Memory { size, hugepages, transparent: false, prefault, host_nodes: Vec::new() }
}

/// Huge pages where the machine has them to spare, and the way to get them where it does not.
#[test]
fn huge_pages_are_used_or_asked_for() {
    for pages in [HugePages::TwoMib, HugePages::OneGib] {
        let size = pages.bytes();
        match GuestRam::build(&memory(size, Some(pages), true), &[], &mut |_| true) {
            Ok(ram) => {
                let file = File::from(ram.fd().try_clone_to_owned().unwrap());
                assert!(file.set_len(0).is_err(), "sealed against shrinking, as sharing needs");
                ram.memory().write_obj(7u32, Gpa(size - 4)).unwrap();
            }
            Err(error) => {
                println!("skip: huge_pages_are_used_or_asked_for: {error}");
                let text = error.to_string();
                assert!(text.contains("nr_hugepages") && text.contains("take 1 pages"), "{text}");
            }
        }
    }
}

#[test]
fn the_kernel_makes_huge_pages_or_says_what_forbids_it() {
    let memory = Memory { transparent: true, ..memory(4 << 20, None, true) };
    match GuestRam::build(&memory, &[], &mut |_| true) {
        Ok(ram) => {
            assert!(!ram.share().is_of_huge_pages(), "a host takes them");
            ram.memory().write_obj(7u32, Gpa(0)).unwrap();
        }
        Err(error) => {
            println!("skip: the_kernel_makes_huge_pages_or_says_what_forbids_it: {error}");
            assert!(matches!(error, MemoryError::Transparent { .. }), "{error}");
        }
    }
}

#[test]
fn filling_can_be_stopped_and_leaves_nothing() {
    // Enough for a few ticks on any machine; refused where there is not so much.
    let mut told = 0;
    let result = GuestRam::build(&memory(2 << 30, None, true), &[], &mut |filled| {
        assert_eq!(filled.all, 2 << 30);
        told += 1;
        false
    });
    match result {
        // It was faster than the first tick.
        Ok(ram) => assert_eq!((told, ram.size()), (0, 2 << 30)),
        Err(MemoryError::Interrupted) => assert_eq!(told, 1),
        Err(error) => assert!(matches!(error, MemoryError::Available { .. }), "{error}"),
    }
}

#[test]
fn ram_comes_from_the_nodes_that_are_asked_for() {
    let mut memory = memory(4 << 20, None, true);
    memory.host_nodes = vec![0];
    match GuestRam::build(&memory, &[], &mut |_| true) {
        Ok(ram) => ram.memory().write_obj(7u32, Gpa(0)).unwrap(),
        Err(error) => println!("skip: ram_comes_from_the_nodes_that_are_asked_for: {error}"),
    }
    memory.host_nodes = vec![crate::config::MAX_NODE];
    let error = GuestRam::build(&memory, &[], &mut |_| true).unwrap_err();
    assert!(matches!(error, MemoryError::Node { .. }), "{error}");
}

#[test]
fn a_nodes_memory_lies_around_the_pci_window() {
    let ram = GuestRam::new(5 << 30).unwrap();
    let cut = |from, size| -> Vec<(u64, u64, usize)> {
        ram.cut(from, size).map(|(p, (_, at))| (p.at.0, p.size, at)).collect()
    };
    let (high, gib) = (HIGH_START, 1 << 30);
    assert_eq!(cut(0, gib), [(0, gib, 0)]);
    assert_eq!(cut(2 * gib, 2 * gib), [(2 * gib, gib, 2 << 30), (high, gib, 0)]);
    assert_eq!(cut(4 * gib, gib), [(high + gib, gib, 1 << 30)]);
    assert_eq!(cut(5 * gib, gib), []);
}

#[test]
fn a_guests_node_names_the_hosts_nodes_for_its_part() {
    let node = |host_nodes: &[u32]| Node {
        memory: 2 << 20,
        vcpus: vec![],
        host_nodes: host_nodes.to_vec(),
        distances: vec![10, 20],
    };
    let memory = memory(4 << 20, None, true);
    let build = |nodes: &[Node]| GuestRam::build(&memory, nodes, &mut |_| true);
    match build(&[node(&[]), node(&[0])]) {
        Ok(ram) => ram.memory().write_obj(7u32, Gpa(2 << 20)).unwrap(),
        Err(error) => {
            println!("skip: a_guests_node_names_the_hosts_nodes_for_its_part: {error}");
        }
    }
    let error = build(&[node(&[]), node(&[crate::config::MAX_NODE])]).unwrap_err();
    assert!(error.to_string().contains("correct `node[1].host_nodes`"), "{error}");
}

#[test]
fn huge_pages_are_blamed_for_nothing_else() {
    use rustix::io::Errno;
    for lack in [Errno::INVAL, Errno::NODEV, Errno::NOENT] {
        assert!(pages::are_unknown(lack), "{lack}");
    }
    for other in [Errno::MFILE, Errno::NFILE, Errno::NOMEM] {
        assert!(!pages::are_unknown(other), "{other}");
    }
}
