//! Guests' images of a few instructions: 32-bit code, flat, as PVH enters it.

/// Where an image is loaded and entered.
pub const BASE: u32 = 0x10_0000;

/// A PVH ELF image that loads `image` at [`BASE`] and enters it there.
pub fn elf(image: &[u8]) -> Vec<u8> {
    /// `XEN_ELFNOTE_PHYS32_ENTRY`.
    const NOTE_TYPE: u32 = 18;
    const HEADERS: u64 = 64 + 2 * 56;
    const NOTE_BYTES: u64 = 20;
    let size = image.len() as u64;
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    file.extend([2, 0, 62, 0]); // executable, x86-64
    file.extend(1u32.to_le_bytes());
    for long in [u64::from(BASE), 64, 0] {
        file.extend(long.to_le_bytes()); // entry, program headers, no sections
    }
    file.extend([0; 4]);
    for half in [64u16, 56, 2, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    // A loadable segment and a note.
    for (kind, offset, address, size) in
        [(1u32, HEADERS, u64::from(BASE), size), (4, HEADERS + size, 0, NOTE_BYTES)]
    {
        file.extend(kind.to_le_bytes());
        file.extend(7u32.to_le_bytes());
        for long in [offset, address, address, size, size, 4] {
            file.extend(long.to_le_bytes());
        }
    }
    file.extend(image);
    for word in [4, 4, NOTE_TYPE] {
        file.extend(word.to_le_bytes());
    }
    file.extend(b"Xen\0");
    file.extend(BASE.to_le_bytes());
    file
}
