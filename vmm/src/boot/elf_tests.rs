use super::*;
use crate::boot::{BootError, Start, Told, load};
use crate::config::Image;
use crate::memory::GuestRam;
use crate::testing::elf;
use std::io::Write;
use tempfile::NamedTempFile;

const RAM: u64 = 4 << 20;

/// An image with these program headers more: type, place in the file, address, bytes there and in memory.
fn image(headers: &[[u64; 5]]) -> Vec<u8> {
    let mut image = elf(IMAGE_START, IMAGE_START, &[0xf4]);
    let table = image[64..64 + 2 * PROGRAM_HEADER].to_vec();
    let at = image.len() as u64;
    image[32..40].copy_from_slice(&at.to_le_bytes());
    image[56..58].copy_from_slice(&(headers.len() as u16 + 2).to_le_bytes());
    image.extend(table);
    for [kind, offset, address, bytes, size] in headers {
        image.extend((*kind as u32).to_le_bytes());
        image.extend(0u32.to_le_bytes());
        for long in [offset, address, address, bytes, size, &0] {
            image.extend(long.to_le_bytes());
        }
    }
    image
}

fn boot(image: &[u8], initrd: u64) -> Result<Start, BootError> {
    let (mut file, other) = (NamedTempFile::new().unwrap(), NamedTempFile::new().unwrap());
    file.write_all(image).unwrap();
    other.as_file().set_len(initrd).unwrap();
    let initrd = (initrd > 0).then(|| other.path().to_owned());
    let image = Image { path: file.path().to_owned(), initrd, cmdline: String::new() };
    load(&GuestRam::new(RAM).unwrap(), &image, Told::default())
}

fn headers(image: &[u8]) -> HeadersError {
    match boot(image, 0).unwrap_err() {
        BootError::ProgramHeaders { source, .. } => source,
        error => panic!("{error}"),
    }
}

/// The loader leaves out a segment of which the file has nothing.
#[test]
fn an_initrd_is_behind_a_segment_of_zeroes() {
    let zeroes = |size| image(&[[LOAD.into(), 0, IMAGE_START + 4096, 0, size]]);
    let rest = RAM - IMAGE_START - 4096;
    boot(&zeroes(rest - 4096), 4096).unwrap();
    let error = boot(&zeroes(rest - 4096), 4097).unwrap_err();
    assert!(matches!(error, BootError::LargeInitrd { .. }), "{error}");
    boot(&zeroes(rest), 0).unwrap();
    let error = boot(&zeroes(rest + 1), 0).unwrap_err();
    assert!(matches!(error, BootError::Small { .. }), "{error}");
}

/// A short file could have the loader read for hours.
#[test]
fn headers_that_take_long_to_read_are_refused() {
    let note = [NOTE.into(), 0, 0, MOST_NOTES + 1, 0];
    assert_eq!(headers(&image(&[note])), HeadersError::Notes { size: MOST_NOTES + 1 });
    let whole = [LOAD.into(), 0, IMAGE_START, RAM / 2, RAM / 2];
    assert_eq!(headers(&image(&[whole, whole, whole])), HeadersError::Bytes { ram: RAM });
    let nothing = [0; 5];
    assert_eq!(headers(&image(&[nothing; 63])), HeadersError::Count { count: 65 });
    boot(&image(&[nothing; 62]), 0).unwrap();
}

#[test]
fn a_segment_is_below_4_gib() {
    for (at, size) in [(u64::MAX, 2), ((1 << 32) - 1, 2), (1 << 40, 1)] {
        let error = headers(&image(&[[LOAD.into(), 0, at, 1, size]]));
        assert_eq!(error, HeadersError::Address { at, size });
    }
}
