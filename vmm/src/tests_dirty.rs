//! Which pages a guest has written, by KVM's dirty log.

use crate::memory::{DirtyError, HIGH_START, MemoryError};
use crate::pci::layout;
use crate::testing::{Asm, Recorder, guest, kvm_or_skip};
use crate::{ExitReason, GuestControl, Vm, VmError};
use std::time::Duration;

/// Far beyond what any of these guests needs on a busy machine.
const LONG: Duration = Duration::from_mins(1);

/// A guest that does each of `rounds` once it is typed to, and says so.
fn in_rounds(start: Asm, rounds: &[&[u32]]) -> Asm {
    let asm = rounds.iter().fold(start.print("ready\n"), |asm, pages| {
        let asm = pages.iter().fold(asm.wait_for_key(), |asm, at| asm.store(*at, 0x5a5a_5a5a));
        asm.print("done\n")
    });
    asm.wait_for_key().exit(0)
}

/// Waits until the guest has said `lines` lines.
fn said(guest: &GuestControl, console: &Recorder, lines: usize) {
    while console.lines().len() < lines {
        assert_eq!(guest.wait_timeout(Duration::from_millis(1)), None);
    }
}

fn pages(guest: &GuestControl) -> Vec<u64> {
    let written = guest.written_pages().unwrap();
    let pages: Vec<u64> = written.iter().map(|at| at.0).collect();
    assert_eq!(written.count(), pages.len() as u64);
    pages
}

/// Whether the log was started; if KVM has none, prints that `test` is skipped.
fn logs_or_skip(test: &str, guest: &GuestControl) -> bool {
    match guest.start_dirty_log() {
        Ok(()) => true,
        Err(DirtyError::Refused { source, .. }) => {
            println!("skip: {test}: this KVM logs no writes: {source}");
            false
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn the_log_has_what_was_written_since_the_last_look() {
    const TEST: &str = "the_log_has_what_was_written_since_the_last_look";
    if !kvm_or_skip(TEST) {
        return;
    }
    let rounds: [&[u32]; 5] = [
        &[0x20_0000],
        &[0x20_1ffc, 0x20_1000, 0x3f_f000, 0x20_0004],
        &[0x20_1000],
        &[0x20_5000],
        &[0x20_6000],
    ];
    let (config, _dir) = guest(&in_rounds(Asm::default(), &rounds));
    let console = Recorder::default();
    let handle = Vm::with_console(config, Box::new(console.clone())).unwrap().start().unwrap();
    let mut lines = 1;
    let mut round = || {
        said(&handle, &console, lines);
        handle.type_in(b"x");
        lines += 1;
        said(&handle, &console, lines);
    };
    assert!(matches!(handle.written_pages(), Err(DirtyError::Off)));
    assert!(matches!(handle.stop_dirty_log(), Err(DirtyError::Off)));
    round();
    if !logs_or_skip(TEST, &handle) {
        return;
    }
    assert_eq!(pages(&handle), [0u64; 0], "what was written before is in no log");
    assert!(matches!(handle.start_dirty_log(), Err(DirtyError::Started)));
    round();
    assert_eq!(pages(&handle), [0x20_0000, 0x20_1000, 0x3f_f000]);
    assert_eq!(pages(&handle), [0u64; 0], "a look empties it");
    round();
    assert_eq!(pages(&handle), [0x20_1000], "a page that was written before is logged again");
    handle.stop_dirty_log().unwrap();
    round();
    assert!(matches!(handle.written_pages(), Err(DirtyError::Off)));
    handle.start_dirty_log().unwrap();
    assert_eq!(pages(&handle), [0u64; 0], "a new log begins empty");
    round();
    handle.pause(LONG).unwrap();
    assert_eq!(pages(&handle), [0x20_6000], "of a paused guest, too");
    handle.resume();
    handle.type_in(b"x");
    assert_eq!(handle.wait_timeout(LONG), Some(ExitReason::GuestExit(0)));
    assert!(matches!(handle.written_pages(), Err(DirtyError::Ended)));
}

/// Turns paging on as long mode has it, where 32-bit code runs on: the first 2 MiB are where they are, and those from
/// `window` on are RAM at 4 GiB.
fn with_high_window(window: u32) -> Asm {
    const TABLES: [u32; 3] = [0x1_0000, 0x1_1000, 0x1_2000];
    // Present, writable, accessed, dirty, 2 MiB: a CPU has nothing to note in these tables, which would be a write.
    const TABLE: u32 = 0x23;
    const LARGE: u32 = 0xe3;
    let entry = TABLES[2] + 8 * (window >> 21);
    Asm::default()
        .store(TABLES[0], TABLES[1] | TABLE)
        .store(TABLES[1], TABLES[2] | TABLE)
        .store(TABLES[2], LARGE)
        .store(entry, LARGE)
        .store(entry + 4, (HIGH_START >> 32) as u32)
        .raw(&[0x0f, 0x20, 0xe0, 0x83, 0xc8, 0x20, 0x0f, 0x22, 0xe0]) // cr4 |= PAE
        .raw(&[0xb8, 0x00, 0x00, 0x01, 0x00, 0x0f, 0x22, 0xd8]) // cr3 = TABLES[0]
        .raw(&[0xb9, 0x80, 0x00, 0x00, 0xc0, 0x0f, 0x32, 0x0d, 0x00, 0x01, 0x00, 0x00, 0x0f, 0x30]) // EFER |= LME
        .raw(&[0x0f, 0x20, 0xc0, 0x0d, 0x00, 0x00, 0x00, 0x80, 0x0f, 0x22, 0xc0]) // cr0 |= PG
}

#[test]
fn memory_above_4_gib_is_logged_too() {
    const TEST: &str = "memory_above_4_gib_is_logged_too";
    const AT: u32 = 0x20_0000;
    if !kvm_or_skip(TEST) {
        return;
    }
    let rounds: [&[u32]; 1] = [&[0x1f_f000, AT + 0x3000, AT + 0x1f_f000]];
    let (mut config, _dir) = guest(&in_rounds(with_high_window(AT), &rounds));
    config.memory.size = layout::WINDOW + (4 << 20);
    let console = Recorder::default();
    let vm = match Vm::with_console(config, Box::new(console.clone())) {
        Err(VmError::Memory(error @ MemoryError::Host { .. })) => {
            println!("skip: {TEST}: {error}");
            return;
        }
        vm => vm.unwrap(),
    };
    let handle = vm.start().unwrap();
    said(&handle, &console, 1);
    if !logs_or_skip(TEST, &handle) {
        return;
    }
    handle.type_in(b"x");
    said(&handle, &console, 2);
    assert_eq!(pages(&handle), [0x1f_f000, HIGH_START + 0x3000, HIGH_START + 0x1f_f000]);
}
