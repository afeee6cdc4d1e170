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

fn board(vcpus: u32, iommu: Option<Translation>) -> Board {
    let apic_ids = (0..vcpus as u8).collect();
    Board { apic_ids, windows: Windows::default(), iommu, tpm: false, domains: vec![] }
}

fn written_with(vcpus: u32, iommu: Option<Translation>) -> (GuestRam, Vec<Vec<u8>>) {
    written_of(&board(vcpus, iommu))
}

fn written_of(board: &Board) -> (GuestRam, Vec<Vec<u8>>) {
    let ram = GuestRam::new(4 << 20).unwrap();
    let at = write(&ram, board).unwrap();
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
    assert!(!dsdt.windows(4).any(|w| w == b"C002" || w == b"TPM0"));
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
        (windows.high().0, dsdt::table(&Board { windows, ..board(1, None) }).as_slice().to_vec())
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
fn a_tpm_is_told_by_a_table_and_a_device() {
    let (ram, listed) = written_of(&Board { tpm: true, ..board(1, None) });
    assert_eq!(listed.len(), 4);
    let tpm2 = &listed[3];
    assert_eq!((&tpm2[..4], tpm2[8], tpm2.len()), (&b"TPM2"[..], 4, 64));
    assert_eq!((u32_at(tpm2, 36), u64_at(tpm2, 40)), (0, 0xfed4_0040), "a client's control area");
    assert_eq!((u32_at(tpm2, 48), &tpm2[52..]), (7, &[0; 12][..]), "a CRB without parameters");
    let dsdt = table(&ram, u64::from(u32_at(&listed[0], 40)));
    let at = dsdt.windows(8).position(|w| w == b"MSFT0101").expect("the device");
    // Memory32Fixed: read and write, address, bytes (ACPI 6.5, table 6.30).
    let page = [&[0x86, 9, 0, 1][..], &0xfed4_0000u32.to_le_bytes(), &0x1000u32.to_le_bytes()];
    assert!(dsdt[at..].windows(12).any(|w| w == page.concat()), "its page");
}

#[test]
fn nodes_are_told_with_their_cpus_memory_and_distances() {
    let part = |at, size| Part { at: Gpa(at), size, offset: 0 };
    let domains = vec![
        Domain {
            apic_ids: vec![0, 1, 2],
            memory: vec![part(0, layout::WINDOW), part(1 << 32, 1 << 30)],
            distances: vec![10, 21],
        },
        Domain { apic_ids: vec![4], memory: vec![part(5 << 30, 2 << 20)], distances: vec![31, 10] },
    ];
    let (_ram, listed) =
        written_of(&Board { apic_ids: vec![0, 1, 2, 4], domains, ..board(0, None) });
    let signatures: Vec<&[u8]> = listed.iter().map(|t| &t[..4]).collect();
    assert_eq!(signatures, [b"FACP", b"APIC", b"MCFG", b"SRAT", b"SLIT"]);
    // Processor UIDs count; APIC IDs have a gap between packages.
    assert_eq!(
        listed[1][44..76].chunks(8).map(|c| (c[2], c[3])).collect::<Vec<_>>(),
        [(0, 0), (1, 1), (2, 2), (3, 4)]
    );
    let srat = &listed[3];
    assert_eq!((srat[8], u32_at(srat, 36)), (3, 1), "revision and the reserved 1");
    let (mut at, mut cpus, mut memory) = (48, Vec::new(), Vec::new());
    while at < srat.len() {
        match (srat[at], srat[at + 1]) {
            (0, 16) => {
                assert_eq!((u32_at(srat, at + 4), u32_at(srat, at + 8)), (1, 0), "enabled");
                cpus.push((srat[at + 2], srat[at + 3]));
            }
            (1, 40) => {
                assert_eq!(u32_at(srat, at + 28), 1, "enabled");
                memory.push((u32_at(srat, at + 2), u64_at(srat, at + 8), u64_at(srat, at + 16)));
            }
            other => panic!("{other:?}"),
        }
        at += usize::from(srat[at + 1]);
    }
    assert_eq!(at, srat.len());
    assert_eq!(cpus, [(0, 0), (0, 1), (0, 2), (1, 4)]);
    assert_eq!(memory, [(0, 0, layout::WINDOW), (0, 1 << 32, 1 << 30), (1, 5 << 30, 2 << 20)]);
    assert_eq!((u64_at(&listed[4], 36), &listed[4][44..]), (2, &[10, 21, 31, 10][..]));
}

#[test]
fn tables_of_the_largest_machine_fit() {
    let iommu = Translation { slot: 31, behind: (1..31).step_by(2).collect() };
    let part = Part { at: Gpa(0), size: 1, offset: 0 };
    let domain = |n: u8| Domain {
        apic_ids: (n * 8..n * 8 + 8).collect(),
        memory: vec![part; 2],
        distances: vec![10; 8],
    };
    let domains = (0..8).map(domain).collect();
    written_of(&Board { domains, tpm: true, ..board(64, Some(iommu)) });
}

#[test]
fn root_ports_are_told_with_their_buses() {
    let of = |ports| {
        let ram = GuestRam::new(4 << 20).unwrap();
        let windows = Windows::default().with_ports(ports);
        let at = write(&ram, &Board { windows, ..board(1, None) }).unwrap();
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
