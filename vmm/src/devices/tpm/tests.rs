use super::registers::{
    BUFFER, CMD_READY, CTRL_REQ, CTRL_START, CTRL_STS, GO_IDLE, LOC_CTRL, REQUEST_ACCESS, START,
    TPM_STS,
};
use super::testing::{Fake, Real, good};
use super::*;
use crate::testing::{Asm, Recorder, guest, kvm_or_skip};
use crate::{ExitReason, Vm};
use std::io::{Read, Write};
use std::sync::mpsc::channel;
use std::time::Duration;

/// Far beyond what any of this takes on a busy machine.
const LONG: Duration = Duration::from_mins(1);

const STARTUP: [u8; 12] = [0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x44, 0, 0];
const GET_RANDOM: [u8; 12] = [0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x7b, 0, 16];

fn word(tpm: &Tpm, at: u64) -> u32 {
    let mut bytes = [0; 4];
    tpm.read(at, &mut bytes);
    u32::from_le_bytes(bytes)
}

fn set(tpm: &Tpm, at: u64, value: u32) {
    tpm.write(at, &value.to_le_bytes());
}

/// Starts a command as a driver does.
fn start(tpm: &Tpm, command: &[u8]) {
    set(tpm, LOC_CTRL, REQUEST_ACCESS);
    set(tpm, CTRL_REQ, CMD_READY);
    for (at, bytes) in (BUFFER..).step_by(8).zip(command.chunks(8)) {
        tpm.write(at, bytes);
    }
    set(tpm, CTRL_START, START);
}

/// The answer, when it is there.
fn answer(tpm: &Tpm) -> Vec<u8> {
    while word(tpm, CTRL_START) != 0 {
        std::thread::yield_now();
    }
    let mut header = [0; command::HEADER];
    tpm.read(BUFFER, &mut header);
    let mut answer = vec![0; command::answer_length(&header, BUFFER_SIZE).unwrap()];
    tpm.read(BUFFER, &mut answer);
    set(tpm, CTRL_REQ, GO_IDLE);
    answer
}

fn code(answer: &[u8]) -> u32 {
    u32::from_be_bytes(answer[6..10].try_into().unwrap())
}

fn run(tpm: &Tpm, command: &[u8]) -> Vec<u8> {
    start(tpm, command);
    answer(tpm)
}

#[test]
fn the_tpm_has_its_page() {
    let at = |at| offset(at);
    assert_eq!((at(0xfed4_0000), at(0xfed4_0fff)), (Some(0), Some(0xfff)));
    assert_eq!((at(0xfed3_ffff), at(0xfed4_1000), at(0), at(u64::MAX)), (None, None, None, None));
}

#[test]
fn a_command_that_takes_long_holds_nobody_up_and_can_be_cut_off() {
    let (arrived, arrives) = channel();
    let emulator = Fake::start(good, move |mut data| {
        let mut bytes = [0; 12];
        data.read_exact(&mut bytes).unwrap();
        arrived.send(bytes).unwrap();
        // It never answers; its connection ends by the other side.
        assert_eq!(data.read(&mut bytes).unwrap(), 0);
    });
    let tpm = Tpm::connect("vr", &emulator.path(), &mut || true).unwrap();
    start(&tpm, &GET_RANDOM);
    assert_eq!(arrives.recv().unwrap(), GET_RANDOM);
    assert_eq!((word(&tpm, CTRL_START), word(&tpm, CTRL_STS)), (START, 0));
    // A second one does not wait behind it.
    set(&tpm, CTRL_START, START);
    drop(tpm);
    emulator.join();
}

#[test]
fn an_emulator_that_ends_or_talks_nonsense_leaves_a_failed_tpm() {
    let endings: [fn(UnixStream); 4] = [
        drop,
        |mut data| data.read_exact(&mut [0; 12]).unwrap(),
        |mut data| data.write_all(&[0x80, 1, 0, 0]).unwrap(),
        |mut data| {
            data.read_exact(&mut [0; 12]).unwrap();
            data.write_all(&[0x80, 1, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]).unwrap();
            // Held until the other side lets go.
            let _ = data.read(&mut [0]);
        },
    ];
    for end in endings {
        let emulator = Fake::start(good, end);
        let tpm = Tpm::connect("vr", &emulator.path(), &mut || true).unwrap();
        for _ in 0..3 {
            assert_eq!(run(&tpm, &GET_RANDOM), command::refusal(command::RC_FAILURE));
            assert_eq!(word(&tpm, CTRL_STS) & TPM_STS, TPM_STS);
        }
        drop(tpm);
        emulator.join();
    }
}

/// A command for one handle, which an empty password authorises (TPM 2.0 Library, part 1, section 18).
fn authorised(code: u32, handle: u32, parameters: &[u8]) -> Vec<u8> {
    let session = [0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0];
    let body = [&code.to_be_bytes()[..], &handle.to_be_bytes(), &session, parameters].concat();
    [&[0x80, 2][..], &(6 + body.len() as u32).to_be_bytes(), &body].concat()
}

/// `TPM2_PCR_Extend` of PCR 16 with 32 bytes of `byte` (part 3, section 22.2).
fn extend(byte: u8) -> Vec<u8> {
    authorised(0x182, 16, &[&[0, 0, 0, 1, 0, 0x0b][..], &[byte; 32]].concat())
}

/// `TPM2_CreatePrimary` of an RSA key of 2048 bits in the owner's hierarchy (part 3, section 24.1): what takes long.
fn create() -> Vec<u8> {
    let sensitive = [0, 4, 0, 0, 0, 0];
    // RSA, SHA-256, attributes, no policy, no algorithms, bits, the usual exponent, no modulus.
    let public = [0, 1, 0, 0x0b, 0, 4, 0, 0x72, 0, 0, 0, 0x10, 0, 0x10, 8, 0, 0, 0, 0, 0, 0, 0];
    let rest = [0; 6];
    authorised(
        0x131,
        0x4000_0001,
        &[&sensitive[..], &[0, public.len() as u8], &public, &rest].concat(),
    )
}

/// `TPM2_PCR_Read` of PCR 16 in the bank of SHA-256; its 32 bytes come last.
const READ: [u8; 20] = [0x80, 1, 0, 0, 0, 20, 0, 0, 1, 0x7e, 0, 0, 0, 1, 0, 0x0b, 3, 0, 0, 1];

#[test]
fn the_real_emulator_works_for_one_guest_after_the_other() {
    let test = "the_real_emulator_works_for_one_guest_after_the_other";
    let Some(mut emulator) = Real::start(test) else { return };
    let mut random = Vec::new();
    for _ in 0..2 {
        let tpm = Tpm::connect("vr", &emulator.path(), &mut || true).unwrap();
        // It was switched on anew: commands wait for the first one.
        assert_eq!(code(&run(&tpm, &GET_RANDOM)), 0x100, "TPM_RC_INITIALIZE");
        assert_eq!(code(&run(&tpm, &STARTUP)), 0);
        random.push(run(&tpm, &GET_RANDOM));
        random.push(run(&tpm, &GET_RANDOM));
        let pcr = run(&tpm, &READ);
        assert_eq!((code(&pcr), &pcr[pcr.len() - 32..]), (0, &[0; 32][..]), "as after each start");
        assert_eq!(code(&run(&tpm, &extend(1))), 0);
        let extended = run(&tpm, &READ);
        assert_eq!(code(&extended), 0);
        assert_ne!(extended[extended.len() - 32..], [0; 32]);
    }
    assert!(random.iter().all(|r| code(r) == 0 && r.len() == 28), "{random:?}");
    random.sort();
    random.dedup();
    assert_eq!(random.len(), 4);
    // A guest that ends in the middle of a long command leaves it to the next one all the same.
    let tpm = Tpm::connect("vr", &emulator.path(), &mut || true).unwrap();
    assert_eq!(code(&run(&tpm, &STARTUP)), 0);
    start(&tpm, &create());
    drop(tpm);
    let tpm = Tpm::connect("vr", &emulator.path(), &mut || true).unwrap();
    assert_eq!(code(&run(&tpm, &STARTUP)), 0);
    assert_eq!(code(&run(&tpm, &create())), 0);
    drop(tpm);
    // One that dies under its guest.
    let tpm = Tpm::connect("vr", &emulator.path(), &mut || true).unwrap();
    assert_eq!(code(&run(&tpm, &STARTUP)), 0);
    emulator.kill();
    assert_eq!(run(&tpm, &GET_RANDOM), command::refusal(command::RC_FAILURE));
    assert_eq!(word(&tpm, CTRL_STS) & TPM_STS, TPM_STS);
}

/// A guest that finds the interface, has `TPM2_GetRandom` carried out, and ends with the response code.
fn user() -> Asm {
    let at = |offset: u64| (BASE + offset) as u32;
    let mut code = Asm::default()
        .load(at(0x30))
        .expect(registers::INTERFACE, 101)
        .store(at(LOC_CTRL), REQUEST_ACCESS)
        .load(at(registers::LOC_STS))
        .expect(registers::GRANTED, 102)
        .store(at(CTRL_REQ), CMD_READY);
    for (n, bytes) in (0..).zip(GET_RANDOM.chunks_exact(4)) {
        code = code.store(at(BUFFER + 4 * n), u32::from_le_bytes(bytes.try_into().unwrap()));
    }
    code = code.store(at(CTRL_START), START);
    // mov eax, [start]; test eax, eax; jnz back
    code = code.load(at(CTRL_START)).raw(&[0x85, 0xc0, 0x75, 0xf7]);
    // The code's last byte, at an odd place: mov al, [...]; out 0xf4, al
    code.raw(&[0xa0]).raw(&at(BUFFER + 9).to_le_bytes()).raw(&[0xe6, 0xf4])
}

#[test]
fn a_guest_reaches_its_tpm() {
    if !kvm_or_skip("a_guest_reaches_its_tpm") {
        return;
    }
    let emulator = Fake::start(good, |mut data| {
        let mut bytes = [0; 12];
        data.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, GET_RANDOM);
        data.write_all(&command::refusal(42)).unwrap();
    });
    let (mut config, _folder) = guest(&user());
    config.tpm = Some(crate::config::Tpm { socket: emulator.path() });
    let handle = Vm::with_console(config, Box::new(Recorder::default())).unwrap().start().unwrap();
    assert_eq!(handle.wait_timeout(LONG), Some(ExitReason::GuestExit(42)));
    drop(handle);
    emulator.join();
}

#[test]
fn a_guest_that_waits_for_its_tpm_is_stopped() {
    if !kvm_or_skip("a_guest_that_waits_for_its_tpm_is_stopped") {
        return;
    }
    let (arrived, arrives) = channel();
    let emulator = Fake::start(good, move |mut data| {
        data.read_exact(&mut [0; 12]).unwrap();
        arrived.send(()).unwrap();
        assert_eq!(data.read(&mut [0]).unwrap(), 0);
    });
    let (mut config, _folder) = guest(&user());
    config.tpm = Some(crate::config::Tpm { socket: emulator.path() });
    let handle = Vm::with_console(config, Box::new(Recorder::default())).unwrap().start().unwrap();
    arrives.recv().unwrap();
    assert_eq!(handle.stop(), ExitReason::Stopped);
    emulator.join();
}
