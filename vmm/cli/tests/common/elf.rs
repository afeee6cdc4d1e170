//! Images of tiny guests.

/// A PVH ELF image: `code`, at `load` and entered there.
pub(crate) fn elf(load: u64, code: &[u8]) -> Vec<u8> {
    const HEADERS: u64 = 64 + 2 * 56;
    let note = HEADERS + code.len() as u64;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]); // an executable for x86-64
    for value in [load, 64, 0] {
        file.extend(value.to_le_bytes()); // entry, program headers, sections
    }
    file.extend([0, 0, 0, 0, 64, 0, 56, 0, 2, 0, 64, 0, 0, 0, 0, 0]);
    for (kind, offset, address, size) in
        [(1u32, HEADERS, load, code.len() as u64), (4, note, 0, 20)]
    {
        file.extend(kind.to_le_bytes());
        file.extend(7u32.to_le_bytes());
        for value in [offset, address, address, size, size, 4] {
            file.extend(value.to_le_bytes());
        }
    }
    file.extend(code);
    for word in [4u32, 4, 18] {
        file.extend(word.to_le_bytes()); // name, value, XEN_ELFNOTE_PHYS32_ENTRY
    }
    file.extend(b"Xen\0");
    file.extend((load as u32).to_le_bytes());
    file
}
