//! Images that are mostly right, so that the checks behind the first ones are reached.

use super::IMAGE_START;
use crate::input::Input;

/// Bytes of what is built: headers, notes, and a little of a kernel.
const SIZE: usize = 0x800;
/// Where an ELF image has its note, and its bytes.
const NOTE: u64 = 0x400;
const NOTE_SIZE: u64 = 20;
/// Most program headers, of 56 bytes each: they end before the note.
const MOST_HEADERS: usize = 12;
/// Most places that are changed afterwards.
const MOST_EDITS: usize = 16;

/// The image's first bytes, for a guest with RAM below `low_end`.
pub(super) fn image(input: &mut Input<'_>, low_end: u64) -> Vec<u8> {
    let mut image = match input.below(5) {
        0 | 1 => bzimage(input, low_end),
        2 | 3 => elf(input, low_end),
        _ => return input.rest().to_vec(),
    };
    for _ in 0..MOST_EDITS {
        if input.is_empty() {
            break;
        }
        let at = usize::from(input.u16()) % SIZE;
        image[at] = input.u8();
    }
    image
}

fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

/// An address near something.
fn address(input: &mut Input<'_>, low_end: u64) -> u64 {
    let base = [0, IMAGE_START, IMAGE_START, low_end, 1 << 32];
    base[input.below(base.len())].wrapping_add(input.number())
}

/// A setup header (linux: Documentation/arch/x86/boot.rst) with its numbers made up.
fn bzimage(input: &mut Input<'_>, low_end: u64) -> Vec<u8> {
    let mut image: Vec<u8> = (0..SIZE).map(|at| at as u8).collect();
    image[..0x280].fill(0);
    put(&mut image, 0x1f1, &[input.u8()]);
    put(&mut image, 0x1f4, &input.number32().to_le_bytes());
    put(&mut image, 0x1fe, &[0x55, 0xaa, 0xeb, 0x66 + input.u8() % 64]);
    put(&mut image, 0x202, b"HdrS\x0c\x02");
    put(&mut image, 0x211, &[1]);
    put(&mut image, 0x22c, &input.number32().to_le_bytes());
    put(&mut image, 0x236, &[1]);
    put(&mut image, 0x238, &input.number32().to_le_bytes());
    let at = if input.flag() { IMAGE_START } else { address(input, low_end) };
    put(&mut image, 0x258, &at.to_le_bytes());
    put(&mut image, 0x260, &input.number32().to_le_bytes());
    image
}

/// An ELF image with a PVH note, and program headers that are made up.
fn elf(input: &mut Input<'_>, low_end: u64) -> Vec<u8> {
    let mut image: Vec<u8> = (0..SIZE).map(|at| at as u8).collect();
    image[..NOTE as usize + 64].fill(0);
    put(&mut image, 0, b"\x7fELF\x02\x01\x01");
    put(&mut image, 32, &64u64.to_le_bytes());
    put(&mut image, 54, &56u16.to_le_bytes());
    let count = input.below(MOST_HEADERS + 1);
    put(&mut image, 56, &(count as u16).to_le_bytes());
    for header in image[64..].chunks_exact_mut(56).take(count) {
        let kind = input.u8();
        // A note's place is known; other things are somewhere.
        let (offset, size) =
            if kind % 8 == 4 { (NOTE, NOTE_SIZE) } else { (input.number(), input.number()) };
        let at = address(input, low_end);
        let kind: u32 = if kind % 8 == 4 { 4 } else { u32::from(kind % 8 != 7) };
        put(header, 0, &kind.to_le_bytes());
        put(header, 8, &offset.to_le_bytes());
        put(header, 24, &at.to_le_bytes());
        put(header, 32, &size.to_le_bytes());
        put(header, 40, &size.wrapping_add(input.number()).to_le_bytes());
    }
    let entry = if input.flag() { IMAGE_START } else { address(input, low_end) };
    put(&mut image, NOTE as usize, b"\x04\0\0\0\x04\0\0\0\x12\0\0\0Xen\0");
    put(&mut image, NOTE as usize + 16, &(entry as u32).to_le_bytes());
    image
}
