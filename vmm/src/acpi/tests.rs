use super::*;
use crate::pci::layout;

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// A table by its own length, with a sum of 0.
fn table(ram: &GuestRam, at: u64) -> Vec<u8> {
    let mut head = [0; 36];
    ram.memory().read_slice(&mut head, Gpa(at)).unwrap();
    let mut bytes = vec![0; u32_at(&head, 4) as usize];
    ram.memory().read_slice(&mut bytes, Gpa(at)).unwrap();
    assert_eq!(bytes.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)), 0, "{:?}", &bytes[..4]);
    bytes
}

fn written(vcpus: u32) -> (GuestRam, Vec<Vec<u8>>) {
    written_with(vcpus, None)
}

fn written_with(vcpus: u32, iommu: Option<Translation>) -> (GuestRam, Vec<Vec<u8>>) {
    let ram = GuestRam::new(4 << 20).unwrap();
    let at = write(&ram, &Board { vcpus, windows: Windows::default(), iommu }).unwrap();
    let mut rsdp = [0; 36];
    ram.memory().read_slice(&mut rsdp, at).unwrap();
    assert_eq!((&rsdp[..8], rsdp[15]), (&b"RSD PTR "[..], 2));
    for part in [&rsdp[..20], &rsdp[..]] {
        assert_eq!(part.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)), 0);
    }
    let xsdt = table(&ram, u64_at(&rsdp, 24));
    assert_eq!(&xsdt[..4], b"XSDT");
    let listed = xsdt[36..].chunks_exact(8).map(|e| table(&ram, u64_at(e, 0))).collect();
    (ram, listed)
}

#[test]
fn every_table_is_found_and_sums_to_zero() {
    let (ram, listed) = written(2);
    let signatures: Vec<&[u8]> = listed.iter().map(|t| &t[..4]).collect();
    assert_eq!(signatures, [b"FACP", b"APIC", b"MCFG"]);
    let fadt = &listed[0];
    let facs = u64::from(u32_at(fadt, 36));
    assert!(facs.is_multiple_of(64));
    let mut signature = [0; 4];
    ram.memory().read_slice(&mut signature, Gpa(facs)).unwrap();
    assert_eq!(&signature, b"FACS");
    let dsdt = table(&ram, u64::from(u32_at(fadt, 40)));
    assert_eq!(&dsdt[..4], b"DSDT");
    for name in [b"_S5_", b"PCI0", b"COM1", b"RTC0", b"C000", b"C001"] {
        assert!(dsdt.windows(4).any(|w| w == name), "{}", String::from_utf8_lossy(name));
    }
    assert!(!dsdt.windows(4).any(|w| w == b"C002"));
    assert_eq!(u64_at(&listed[2], 44), layout::ECAM);
}

#[test]
fn each_vcpu_has_a_local_apic() {
    for vcpus in [1, 2, 64] {
        let (_, listed) = written(vcpus);
        let madt = &listed[1];
        let mut at = 44;
        let (mut ids, mut overrides) = (Vec::new(), Vec::new());
        while at < madt.len() {
            match madt[at] {
                0 => {
                    assert_eq!(u32_at(madt, at + 4), 1, "enabled");
                    ids.push(u32::from(madt[at + 3]));
                }
                2 => overrides.push((madt[at + 3], u32_at(madt, at + 4))),
                _ => {}
            }
            at += usize::from(madt[at + 1]);
        }
        assert_eq!(at, madt.len());
        assert_eq!(ids, (0..vcpus).collect::<Vec<_>>());
        assert_eq!(overrides, [(0, 2), (9, 9)]);
    }
}

#[test]
fn ram_above_four_gib_moves_the_high_window() {
    let window = |ram_end| {
        let windows = Windows::beside(ram_end);
        (
            windows.high().0,
            dsdt::table(&Board { vcpus: 1, windows, iommu: None }).as_slice().to_vec(),
        )
    };
    for ram_end in [3 << 30, 9 << 30] {
        let (high, dsdt) = window(ram_end);
        assert!(dsdt.windows(8).any(|w| w == high.to_le_bytes()), "{high:#x}");
    }
}

#[test]
fn an_iommu_is_told_with_what_is_behind_it() {
    let iommu = Translation { slot: 7, behind: vec![1, 2, 3, 6] };
    let (_ram, listed) = written_with(1, Some(iommu));
    assert_eq!(listed.len(), 4);
    let viot = &listed[3];
    let half = |at: usize| u16::from_le_bytes(viot[at..at + 2].try_into().unwrap());
    assert_eq!((&viot[..4], half(36), half(38)), (&b"VIOT"[..], 3, 48), "nodes and the first");
    // A virtio-pci IOMMU: type, length, segment, device and function.
    assert_eq!((viot[48], half(50), half(52), half(54)), (3, 16, 0, 7 << 3));
    let range = |at: usize| {
        assert_eq!((viot[at], half(at + 2)), (1, 24));
        assert_eq!((half(at + 8), half(at + 10)), (0, 0), "segments");
        assert_eq!(half(at + 16), 48, "which IOMMU");
        assert_eq!(u32_at(viot, at + 4), u32::from(half(at + 12)), "endpoints are functions");
        (half(at + 12), half(at + 14))
    };
    assert_eq!(range(64), (1 << 3, 3 << 3));
    assert_eq!(range(88), (6 << 3, 6 << 3));
    assert_eq!(viot.len(), 112);
}

#[test]
fn root_ports_are_told_with_their_buses() {
    let of = |ports| {
        let ram = GuestRam::new(4 << 20).unwrap();
        let windows = Windows::default().with_ports(ports);
        let at = write(&ram, &Board { vcpus: 1, windows, iommu: None }).unwrap();
        let xsdt = {
            let mut rsdp = [0; 36];
            ram.memory().read_slice(&mut rsdp, at).unwrap();
            table(&ram, u64_at(&rsdp, 24))
        };
        let fadt = table(&ram, u64_at(&xsdt, 36));
        (table(&ram, u64_at(&xsdt, 52)), table(&ram, u64::from(u32_at(&fadt, 40))))
    };
    let osc = |dsdt: &[u8]| dsdt.windows(4).any(|w| w == b"_OSC");
    let (mcfg, dsdt) = of(0);
    assert_eq!((&mcfg[..4], u64_at(&mcfg, 44), mcfg[55]), (&b"MCFG"[..], layout::ECAM, 0));
    assert!(!osc(&dsdt), "there is nothing to be let");
    let (mcfg, dsdt) = of(3);
    assert_eq!((u64_at(&mcfg, 44), mcfg[54], mcfg[55]), (layout::ECAM_WITH_PORTS, 0, 3));
    assert!(osc(&dsdt));
    // The buses, as a word address space, and configuration space of all four, which is reserved.
    assert!(dsdt.windows(10).any(|w| w == [0, 0, 0, 0, 3, 0, 0, 0, 4, 0]));
    let reserved = [(layout::ECAM_WITH_PORTS as u32).to_le_bytes(), (4u32 << 20).to_le_bytes()];
    assert!(dsdt.windows(8).any(|w| w == reserved.concat()));
}
