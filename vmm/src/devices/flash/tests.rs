use super::*;
use proptest::prelude::*;
use std::io::Write;
use tempfile::NamedTempFile;

const VARIABLES_SIZE: usize = 4 * BLOCK;

fn file(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// A flash with two blocks of code; where its variables start.
fn flash(variables: &Path) -> (Flash, u64) {
    let code = file(&[0xc0; 2 * BLOCK]);
    let flash = Flash::open(code.path(), variables).unwrap();
    let start = flash.regions()[0].0.0;
    (flash, start)
}

/// What the guest reads of the variables at `offset`.
fn seen(flash: &Flash, offset: usize) -> u8 {
    let mut byte = [0];
    let view = flash.regions()[0].1.clone();
    view.as_volatile_slice().subslice(offset, 1).unwrap().copy_to(&mut byte);
    byte[0]
}

#[test]
fn it_ends_at_4_gib_and_shows_both_files() {
    let variables = file(&[0x5a; VARIABLES_SIZE]);
    let (flash, start) = flash(variables.path());
    let [(low, view), (high, code)] = flash.regions();
    assert_eq!(low.0 + view.size() as u64, high.0);
    assert_eq!(high.0 + code.size() as u64, END);
    assert_eq!(start, low.0);
    assert_eq!(seen(&flash, VARIABLES_SIZE - 1), 0x5a);
    let mut byte = [0u8];
    code.as_volatile_slice().subslice(2 * BLOCK - 1, 1).unwrap().copy_to(&mut byte);
    assert_eq!(byte, [0xc0]);
}

/// The very accesses by which edk2's QemuFlash.c decides that a flash is there and can be written.
#[test]
fn firmware_takes_it_for_a_flash() {
    let variables = file(&[0xff; VARIABLES_SIZE]);
    let (mut flash, start) = flash(variables.path());
    assert!(flash.write(start, &[0x50]));
    assert_eq!(seen(&flash, 0), 0xff, "no memory: the command was not stored");
    flash.write(start, &[0x70]);
    assert_eq!(seen(&flash, 0), 0, "no ROM: the status was cleared");
    for byte in [0x10, 0xff, 0x70] {
        flash.write(start, &[byte]);
    }
    assert_eq!(seen(&flash, 0) & 0x10, 0, "it can be written");
    flash.write(start, &[0xff]);
    assert_eq!(seen(&flash, 0), 0xff);
}

#[test]
fn what_is_programmed_is_in_the_file_at_once_and_in_the_next_flash() {
    let variables = file(&[0xff; VARIABLES_SIZE]);
    let (mut first, start) = flash(variables.path());
    for (at, value) in [(5, 0x12), (6, 0x34), (BLOCK as u64 * 3, 0x56)] {
        first.write(start + at, &[0x10]);
        first.write(start + at, &[value]);
        assert_eq!(seen(&first, 0), 0x80, "the status, everywhere: ready");
        // Nobody says farewell to the flash: this is all that a killed VMM leaves.
        assert_eq!(std::fs::read(variables.path()).unwrap()[at as usize], value);
    }
    first.write(start, &[0xff]);
    assert_eq!([4, 5, 6, 7].map(|at| seen(&first, at)), [0xff, 0x12, 0x34, 0xff]);
    // A wide write programs each byte.
    first.write(start + 8, &[0x40]);
    first.write(start + 8, &[1, 2, 3, 4]);
    drop(first);
    let (second, _) = flash(variables.path());
    assert_eq!([5, 6, 8, 11, 12].map(|at| seen(&second, at)), [0x12, 0x34, 1, 4, 0xff]);
}

#[test]
fn a_confirmed_erase_takes_one_block_and_an_unconfirmed_one_nothing() {
    let variables = file(&[0; VARIABLES_SIZE]);
    let (mut flash, start) = flash(variables.path());
    let middle = start + BLOCK as u64 + 7;
    flash.write(middle, &[0x20]);
    flash.write(middle, &[0x01]);
    assert_eq!(seen(&flash, 0), 0xb0, "ready, erase and program failed");
    flash.write(middle, &[0x50]);
    assert_eq!(seen(&flash, BLOCK), 0);
    flash.write(middle, &[0x20]);
    flash.write(middle, &[0xd0]);
    assert_eq!(seen(&flash, 0), 0x80);
    flash.write(middle, &[0xff]);
    let edges = [BLOCK - 1, BLOCK, 2 * BLOCK - 1, 2 * BLOCK];
    assert_eq!(edges.map(|at| seen(&flash, at)), [0, 0xff, 0xff, 0]);
    let kept = std::fs::read(variables.path()).unwrap();
    assert_eq!(edges.map(|at| kept[at]), [0, 0xff, 0xff, 0]);
}

#[test]
fn nothing_reaches_beyond_the_variables() {
    let variables = file(&[0xff; VARIABLES_SIZE]);
    let (mut flash, start) = flash(variables.path());
    let last = start + VARIABLES_SIZE as u64 - 1;
    flash.write(last, &[0x10]);
    flash.write(last, &[7; 8]);
    // Code is not written, and no command either.
    assert!(flash.write(last + 1, &[0x70]));
    assert!(flash.write(END - 1, &[0x70]));
    assert!(!flash.write(start - 1, &[0x70]), "below it");
    assert!(!flash.write(END, &[0x70]), "above it");
    assert!(!flash.write(u64::MAX, &[0x70]));
    flash.write(start, &[0xff]);
    flash.write(start, &[]);
    assert_eq!(seen(&flash, VARIABLES_SIZE - 1), 7);
    assert_eq!(std::fs::metadata(variables.path()).unwrap().len(), VARIABLES_SIZE as u64);
}

#[test]
fn a_file_that_cannot_be_written_is_a_failed_program() {
    let variables = file(&[0xff; BLOCK]);
    let readonly = File::open(variables.path()).unwrap();
    let mut chip = Chip::new(vec![0xff; BLOCK], readonly, region(BLOCK).unwrap());
    for byte in [0x10, 0x00, 0x70] {
        chip.write(0, &[byte]);
    }
    let mut status = [0u8];
    chip.view().as_volatile_slice().subslice(9, 1).unwrap().copy_to(&mut status);
    assert_eq!(status, [0x90], "ready, program failed");
    chip.write(0, &[0xff]);
    chip.view().as_volatile_slice().subslice(0, 1).unwrap().copy_to(&mut status);
    assert_eq!(status, [0xff], "it has kept what it had");
}

#[test]
fn files_that_make_no_flash_are_refused_with_the_remedy() {
    let (code, good) = (file(&[0; BLOCK]), file(&[0xff; BLOCK]));
    let message = |code: &Path, variables: &Path| {
        Flash::open(code, variables).expect_err("it is wrong").to_string()
    };
    let folder = std::env::temp_dir();
    let (odd, empty, nowhere) = (file(&[0; BLOCK + 1]), file(&[]), Path::new("/nonexistent/v.fd"));
    for (m, key, remedy) in [
        (message(nowhere, good.path()), "guest.firmware", "cannot be opened"),
        (message(&folder, good.path()), "guest.firmware", "no regular file"),
        (message(odd.path(), good.path()), "guest.firmware", "multiple of 4096"),
        (message(code.path(), empty.path()), "guest.variables", "multiple of 4096"),
        (message(code.path(), nowhere), "guest.variables", "OVMF_VARS_4M.fd"),
    ] {
        assert!(m.starts_with(key) && m.contains(remedy), "{m}");
    }
    let large = NamedTempFile::new().unwrap();
    large.as_file().set_len(MAX).unwrap();
    assert!(message(large.path(), good.path()).contains("guest.variables"), "no room is left");
    let _first = Flash::open(code.path(), good.path()).unwrap();
    assert!(message(code.path(), good.path()).contains("variables of its own"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is written: reading the array shows what is in the file, and the file keeps its size.
    #[test]
    fn array_and_file_are_always_the_same(
        writes in prop::collection::vec(
            (0..VARIABLES_SIZE as u64 + 16, prop_oneof![
                Just(vec![0x10]), Just(vec![0x20]), Just(vec![0xd0]), Just(vec![0x50]),
                prop::collection::vec(any::<u8>(), 0..9),
            ]),
            0..40,
        ),
    ) {
        let variables = file(&[0xff; VARIABLES_SIZE]);
        let (mut flash, start) = flash(variables.path());
        for (at, data) in writes {
            prop_assert!(flash.write(start + at, &data));
        }
        // Of two such commands one at least is none's data.
        flash.write(start, &[0xff]);
        flash.write(start, &[0xff]);
        let kept = std::fs::read(variables.path()).unwrap();
        let mut shown = vec![0u8; VARIABLES_SIZE];
        flash.regions()[0].1.as_volatile_slice().copy_to(&mut shown);
        prop_assert!(kept == shown);
    }
}
