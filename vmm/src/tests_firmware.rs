//! A firmware of a few instructions, run on KVM where there is one.

use crate::config::Config;
use crate::testing::{Recorder, kvm_or_skip};
use crate::{ExitReason, Vm};
use std::time::Duration;

/// Far beyond what it needs on a busy machine.
const LONG: Duration = Duration::from_mins(1);
const BLOCK: usize = 4096;

/// How a guest ends whose firmware has `code` at the start of its one block, and what its variables, also of one
/// block, are in the end. The block is at 0xf000 in the code segment, and the variables are at 0xe000.
fn run(code: &[u8]) -> (ExitReason, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let mut flash = vec![0xf4; BLOCK];
    flash[..code.len()].copy_from_slice(code);
    // At the reset vector: jmp 0xf000.
    flash[0xff0..0xff3].copy_from_slice(&[0xe9, 0x0d, 0xf0]);
    std::fs::write(folder.path().join("code.fd"), flash).unwrap();
    std::fs::write(folder.path().join("vars.fd"), vec![0xff; BLOCK]).unwrap();
    let text = "[guest]\nname = \"vr\"\nfirmware = \"code.fd\"\nvariables = \"vars.fd\"\n[memory]\nsize = \"4M\"\n";
    let config = Config::parse(text, &folder.path().join("vr.toml")).unwrap();
    let handle = Vm::with_console(config, Box::new(Recorder::default())).unwrap().start().unwrap();
    let reason = handle.wait_timeout(LONG).expect("the guest ends");
    drop(handle);
    (reason, std::fs::read(folder.path().join("vars.fd")).unwrap())
}

#[test]
fn firmware_starts_at_the_reset_vector_and_writes_its_variables() {
    if !kvm_or_skip("firmware_starts_at_the_reset_vector_and_writes_its_variables") {
        return;
    }
    let (reason, variables) = run(&[
        0x2e, 0xc6, 0x06, 0x05, 0xe0, 0x10, // mov byte cs:[0xe005], 0x10: program
        0x2e, 0xc6, 0x06, 0x05, 0xe0, 0x5a, // mov byte cs:[0xe005], 0x5a
        0x2e, 0x8a, 0x1e, 0x05, 0xe0, // mov bl, cs:[0xe005]: the status
        0x2e, 0xc6, 0x06, 0x05, 0xe0, 0xff, // mov byte cs:[0xe005], 0xff: array
        0x2e, 0xa0, 0x05, 0xe0, // mov al, cs:[0xe005]
        0x88, 0xdc, // mov ah, bl
        0xe7, 0xf4, // out 0xf4, ax
    ]);
    assert_eq!(reason, ExitReason::GuestExit(0x805a));
    assert_eq!((variables[5], variables[4], variables[6]), (0x5a, 0xff, 0xff));
}

#[test]
fn firmware_is_told_of_its_machine_and_finds_its_bridge() {
    if !kvm_or_skip("firmware_is_told_of_its_machine_and_finds_its_bridge") {
        return;
    }
    let (reason, _) = run(&[
        0x31, 0xc0, // xor ax, ax: the signature
        0xba, 0x10, 0x05, // mov dx, 0x510
        0xef, // out dx, ax
        0x42, // inc dx
        0xec, // in al, dx
        0x88, 0xc3, // mov bl, al
        0xec, // in al, dx
        0x88, 0xc7, // mov bh, al
        0x89, 0xd8, // mov ax, bx
        0xe7, 0xf4, // out 0xf4, ax
    ]);
    assert_eq!(reason, ExitReason::GuestExit(u32::from(u16::from_le_bytes(*b"QE"))));
    let (reason, _) = run(&[
        0x66, 0xb8, 0x00, 0x00, 0x00, 0x80, // mov eax, 0x80000000
        0xba, 0xf8, 0x0c, // mov dx, 0xcf8
        0x66, 0xef, // out dx, eax
        0xb2, 0xfc, // mov dl, 0xfc
        0x66, 0xed, // in eax, dx
        0x66, 0xe7, 0xf4, // out 0xf4, eax
    ]);
    assert_eq!(reason, ExitReason::GuestExit(0x29c0_8086));
}
