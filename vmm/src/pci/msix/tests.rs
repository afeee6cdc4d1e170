use super::*;

const SIZES: [u64; 6] = [0x4000, 0, 0x1000, 0, 0, 0];

fn raw(vectors: u16, table: u32, pba: u32) -> [u8; 12] {
    let mut raw = [0; 12];
    raw[0] = 0x11;
    raw[2..4].copy_from_slice(&(vectors - 1).to_le_bytes());
    raw[4..8].copy_from_slice(&table.to_le_bytes());
    raw[8..12].copy_from_slice(&pba.to_le_bytes());
    raw
}

#[test]
fn sound_capabilities_are_taken() {
    let c = Capability::check(0x40, raw(3, 0x1000, 0x2000), &SIZES, 3).unwrap();
    assert_eq!(c.table, Place { bar: 0, range: 0x1000..0x1030 });
    assert_eq!(c.pba, Place { bar: 0, range: 0x2000..0x2008 });
    let c = Capability::check(0x40, raw(65, 0x2, 0x2000), &SIZES, 65).unwrap();
    assert_eq!(c.table.bar, 2);
    assert_eq!(c.pba.range, 0x2000..0x2010);
}

#[test]
fn nonsense_is_refused() {
    let check = |vectors, table, pba, server| {
        Capability::check(0x40, raw(vectors, table, pba), &SIZES, server).unwrap_err()
    };
    assert_eq!(check(257, 0, 0x3000, 257), MsixError::Vectors(257));
    assert_eq!(check(2048, 0, 0x3000, 2048), MsixError::Vectors(2048));
    assert_eq!(check(3, 0, 0x3000, 4), MsixError::Count { table: 3, server: 4 });
    assert!(matches!(check(3, 0x3fe0, 0, 3), MsixError::Place { what: "table", .. }));
    assert!(matches!(check(3, 0x1001, 0, 3), MsixError::Place { bar: 1, .. }));
    assert!(matches!(check(3, 0x1007, 0, 3), MsixError::Place { bar: 7, .. }));
    assert!(matches!(check(3, 0, 0xffff_fff8, 3), MsixError::Place { .. }));
    assert_eq!(check(3, 0x1000, 0x1028, 3), MsixError::Overlap);
}
