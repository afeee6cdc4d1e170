use super::*;
use crate::testing::elf;
use linux::{Header, HeaderError, field, zero};
use proptest::prelude::*;
use std::io::Write;
use tempfile::{NamedTempFile, TempDir};
use vm_memory::Bytes;

const RAM: u64 = 64 << 20;
/// Where the test's kernel wants to be, and how much it needs there.
const AT: u64 = 0x100_0000;
const NEEDS: u32 = 0x20_0000;

fn file(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn guest(image: &Path, initrd: Option<&Path>, cmdline: &str) -> Image {
    Image { path: image.into(), initrd: initrd.map(Into::into), cmdline: cmdline.into() }
}

fn boot(
    ram: &GuestRam,
    image: &[u8],
    initrd: Option<&[u8]>,
    cmdline: &str,
) -> Result<Start, BootError> {
    let image = file(image);
    let initrd = initrd.map(file);
    let guest = guest(image.path(), initrd.as_ref().map(NamedTempFile::path), cmdline);
    load(ram, &guest, Told { rsdp: Some(Gpa(0xe_0000)), ..Told::default() })
}

fn refused(image: &[u8]) -> BootError {
    boot(&GuestRam::new(2 << 20).unwrap(), image, None, "").unwrap_err()
}

/// A bzImage with one setup sector and a kernel of 1 KiB.
fn bzimage() -> Vec<u8> {
    let mut image = vec![0; 0x400];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(field::SETUP_SECTORS, &[1]);
    put(field::SYSTEM_SIZE, &64u32.to_le_bytes());
    put(field::BOOT_FLAG, &0xaa55u16.to_le_bytes());
    put(0x200, &[0xeb, 0x6a]);
    put(field::MAGIC, &linux::MAGIC.to_le_bytes());
    put(field::VERSION, &0x20fu16.to_le_bytes());
    put(field::LOAD_FLAGS, &[1]);
    put(field::INITRD_MAX, &0x7fff_ffffu32.to_le_bytes());
    put(field::XLOAD_FLAGS, &1u16.to_le_bytes());
    put(field::CMDLINE_SIZE, &255u32.to_le_bytes());
    put(field::PREFERRED, &AT.to_le_bytes());
    put(field::INIT_SIZE, &NEEDS.to_le_bytes());
    image.extend((0..1024).map(|i| i as u8));
    image
}

fn edited(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut image = bzimage();
    image[at..at + bytes.len()].copy_from_slice(bytes);
    image
}

#[test]
fn bad_elf_images_are_refused() {
    assert!(matches!(refused(b""), BootError::Kind { .. }));
    assert!(matches!(refused(&[0x7f; 4096]), BootError::Kind { .. }));
    assert!(matches!(refused(b"\x7fELF"), BootError::Load { .. }));
    let code = [0xf4];
    let good = elf(IMAGE_START, IMAGE_START, &code);
    assert!(matches!(refused(&good[..good.len() - 1]), BootError::Load { .. }));
    let low = elf(pvh::START_INFO - 8, IMAGE_START, &[0xcc; 64]);
    assert!(matches!(refused(&low), BootError::Overlap { .. }));
    let far = elf(IMAGE_START, 2 << 20, &code);
    assert!(matches!(refused(&far), BootError::Entry { .. }));
    let outside = elf(u64::MAX - 2, IMAGE_START, &code);
    assert!(matches!(refused(&outside), BootError::ProgramHeaders { .. }));
}

#[test]
fn a_missing_image_and_a_folder_are_named() {
    let dir = TempDir::new().unwrap();
    let ram = GuestRam::new(2 << 20).unwrap();
    let e = load(&ram, &guest(&dir.path().join("none"), None, ""), Told::default()).unwrap_err();
    assert!(matches!(e, BootError::Open { .. }) && e.to_string().contains("none"), "{e}");
    let e = load(&ram, &guest(dir.path(), None, ""), Told::default()).unwrap_err();
    assert!(matches!(e, BootError::Read { .. }), "{e}");
}

#[test]
fn a_pvh_guest_is_told_its_memory_command_line_and_initrd() {
    let ram = GuestRam::new(4 << 20).unwrap();
    let image = elf(IMAGE_START, IMAGE_START, &[0xf4]);
    let start = boot(&ram, &image, Some(b"initrd"), "a=1").unwrap();
    let Start::Pvh(entry) = start else { panic!("{start:?}") };
    assert_eq!(entry, pvh::Entry { entry: Gpa(IMAGE_START), start_info: Gpa(pvh::START_INFO) });
    let m = ram.memory();
    let word = |at| m.read_obj::<u32>(Gpa(at)).unwrap();
    let long = |at| m.read_obj::<u64>(Gpa(at)).unwrap();
    let info = entry.start_info.0;
    assert_eq!((word(info), word(info + 12)), (pvh::MAGIC, 1));
    assert_eq!(m.read_obj::<[u8; 4]>(Gpa(long(info + 24))).unwrap(), *b"a=1\0");
    assert_eq!(long(info + 32), 0xe_0000, "RSDP");
    let module = long(info + 16);
    assert_eq!((long(module), long(module + 8)), ((4 << 20) - 4096, 6));
    assert_eq!(m.read_obj::<[u8; 6]>(Gpa(long(module))).unwrap(), *b"initrd");
    let map = long(info + 40);
    assert_eq!(word(info + 48), 4);
    assert_eq!([long(map + 48), long(map + 56)], [IMAGE_START, 3 << 20]);
    assert_eq!(word(map + 24 * 3 + 16), 2, "configuration space is reserved");
}

#[test]
fn a_linux_guest_is_told_its_memory_command_line_and_initrd() {
    let ram = GuestRam::new(5 << 30).unwrap();
    let start = boot(&ram, &bzimage(), Some(&[7; 5000]), "console=ttyS0").unwrap();
    let Start::Linux(entry) = start else { panic!("{start:?}") };
    assert_eq!(entry.entry, Gpa(AT + 0x200));
    let m = ram.memory();
    assert_eq!(m.read_obj::<u32>(entry.entry).unwrap(), 0x0302_0100, "the kernel is there");
    let page = |at: usize| Gpa(entry.zero_page.0 + at as u64);
    let word = |at| u64::from(m.read_obj::<u32>(page(at)).unwrap());
    let long = |at| m.read_obj::<u64>(page(at)).unwrap();
    assert_eq!(word(field::MAGIC), u64::from(linux::MAGIC));
    assert_eq!(m.read_obj::<[u8; 14]>(Gpa(word(field::CMDLINE))).unwrap(), *b"console=ttyS0\0");
    assert_eq!(word(field::RAMDISK_SIZE), 5000);
    let initrd = word(field::RAMDISK);
    assert_eq!(initrd, 0x8000_0000 - 8192, "as high as the kernel takes it");
    assert_eq!(m.read_obj::<[u8; 2]>(Gpa(initrd + 4998)).unwrap(), [7, 7]);
    assert_eq!(long(zero::RSDP), 0xe_0000);
    assert_eq!(m.read_obj::<u8>(page(zero::E820_ENTRIES)).unwrap(), 5);
    let high = zero::E820 + 4 * 20;
    assert_eq!((long(high), long(high + 8), word(high + 16)), (1 << 32, 2 << 30, 1));
    // Every page that the entry relies on is mapped to itself.
    let (_, sregs) = start.registers(kvm_sregs::default());
    for at in [entry.entry.0, entry.zero_page.0, 0xffff_f000] {
        let step = |table: u64, shift: u32| {
            m.read_obj::<u64>(Gpa(table + 8 * (at >> shift & 511))).unwrap()
        };
        let two = step(step(sregs.cr3, 39) & !0xfff, 30) & !0xfff;
        let leaf = step(two, 21);
        assert_eq!((leaf & !0x1f_ffff, leaf & 0x83), (at & !0x1f_ffff, 0x83), "{at:#x}");
    }
}

/// A file may hold anything in the fields that are a loader's.
#[test]
fn a_linux_guest_is_told_of_no_initrd_that_is_not_there() {
    let ram = GuestRam::new(RAM).unwrap();
    let mut image = bzimage();
    image[field::RAMDISK..field::RAMDISK_SIZE + 4].fill(0x11);
    image[field::SETUP_DATA..field::SETUP_DATA + 8].fill(0x11);
    let Start::Linux(entry) = boot(&ram, &image, None, "").unwrap() else { panic!() };
    let page = |at: usize| Gpa(entry.zero_page.0 + at as u64);
    assert_eq!(ram.memory().read_obj::<u64>(page(field::RAMDISK)).unwrap(), 0);
    assert_eq!(ram.memory().read_obj::<u64>(page(field::SETUP_DATA)).unwrap(), 0);
}

#[test]
fn bad_kernels_are_refused_with_the_reason() {
    let header = |image: &[u8]| match refused_with(RAM, image, None, "") {
        BootError::Header { source, .. } => source,
        e => panic!("{e}"),
    };
    assert_eq!(
        header(&edited(field::VERSION, &[0x0b, 2])),
        HeaderError::Version { version: 0x20b }
    );
    assert_eq!(header(&edited(field::XLOAD_FLAGS, &[0])), HeaderError::NotWide);
    assert_eq!(header(&edited(field::LOAD_FLAGS, &[0])), HeaderError::Low);
    let image = bzimage();
    let cut = header(&image[..image.len() - 1]);
    assert_eq!(cut, HeaderError::Truncated { has: 0x7ff, wants: 0x800 });
    assert_eq!(header(&image[..0x240]), HeaderError::Short);
    for (at, bytes) in [
        (field::JUMP, &[0][..]),
        (field::JUMP, &[0xff]),
        (field::SYSTEM_SIZE, &[0; 4]),
        (field::PREFERRED, &[0; 8]),
        (field::PREFERRED, &[0xff; 8]),
        (field::PREFERRED + 1, &[1]),
    ] {
        let e = header(&edited(at, bytes));
        if (at, bytes.len()) == (field::PREFERRED + 1, 1) {
            // 0x100_0100 is no page's address.
            assert!(matches!(e, HeaderError::Value { what: "preferred address", .. }), "{e}");
        }
        assert!(matches!(e, HeaderError::Value { .. }), "{at:#x}: {e}");
    }
}

fn refused_with(ram: u64, image: &[u8], initrd: Option<&[u8]>, cmdline: &str) -> BootError {
    boot(&GuestRam::new(ram).unwrap(), image, initrd, cmdline).unwrap_err()
}

#[test]
fn what_does_not_fit_is_refused_with_a_remedy() {
    let e = refused_with(AT + u64::from(NEEDS) - (2 << 20), &bzimage(), None, "");
    assert!(matches!(e, BootError::Small { .. }) && e.to_string().contains("memory.size"), "{e}");
    let e = refused_with(RAM, &bzimage(), None, &"x".repeat(256));
    assert!(matches!(e, BootError::CommandLine { most: 255, .. }), "{e}");
    let e = refused_with(RAM, &bzimage(), Some(&[]), "");
    assert!(matches!(e, BootError::EmptyInitrd { .. }), "{e}");
    let room = RAM - AT - u64::from(NEEDS);
    let ram = GuestRam::new(RAM).unwrap();
    let image = file(&bzimage());
    let initrd = NamedTempFile::new().unwrap();
    let guest = guest(image.path(), Some(initrd.path()), "");
    initrd.as_file().set_len(room).unwrap();
    load(&ram, &guest, Told::default()).unwrap();
    initrd.as_file().set_len(room + 1).unwrap();
    let e = load(&ram, &guest, Told::default()).unwrap_err();
    assert!(
        matches!(e, BootError::LargeInitrd { .. }) && e.to_string().contains("memory.size"),
        "{e}"
    );
    let e = load(&ram, &Image { initrd: Some(std::env::temp_dir()), ..guest }, Told::default())
        .unwrap_err();
    assert!(matches!(e, BootError::EmptyInitrd { .. }), "{e}");
}

proptest! {
    /// Whatever the header says, it is refused or the kernel lies where it can.
    #[test]
    fn headers_are_parsed_or_refused(
        edits in prop::collection::vec((field::SETUP_SECTORS..0x290, any::<u8>()), 0..12),
        length in 0usize..0x900,
    ) {
        let mut image = bzimage();
        for (at, byte) in edits {
            image[at] = byte;
        }
        image.resize(length, 0);
        let head = &image[..length.min(HEAD)];
        let parsed = Header::parse(head, length as u64);
        let ram = GuestRam::new(RAM).unwrap();
        let booted = if linux::is_bzimage(head) { Some(boot(&ram, &image, None, "")) } else { None };
        match (parsed, booted) {
            (Ok(_), Some(Ok(Start::Linux(entry)))) => {
                prop_assert!(entry.entry.0 >= IMAGE_START && entry.entry.0 < ram.low_end());
            }
            (Err(_), Some(started)) => prop_assert!(started.is_err()),
            _ => {}
        }
    }

    /// Nor does any other file do harm.
    #[test]
    fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..2048), elf in any::<bool>()) {
        let mut bytes = bytes;
        if elf {
            bytes.splice(..bytes.len().min(7), *b"\x7fELF\x02\x01\x01");
        }
        let _ = boot(&GuestRam::new(2 << 20).unwrap(), &bytes, Some(&[1]), "");
    }
}
