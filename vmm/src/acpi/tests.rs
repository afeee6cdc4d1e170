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
    let ram = GuestRam::new(4 << 20).unwrap();
    let at = write(&ram, &Board { vcpus, windows: Windows::default() }).unwrap();
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
        (windows.high().0, dsdt::table(&Board { vcpus: 1, windows }).as_slice().to_vec())
    };
    for ram_end in [3 << 30, 9 << 30] {
        let (high, dsdt) = window(ram_end);
        assert!(dsdt.windows(8).any(|w| w == high.to_le_bytes()), "{high:#x}");
    }
}
