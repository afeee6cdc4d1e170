//! Many vCPUs, on whatever KVM there is.

use crate::config;
use crate::testing::{Asm, Recorder, guest, kvm_or_skip};
use crate::{ExitReason, Gpa, Vm};
use std::time::Duration;
use vm_memory::Bytes;

/// Far beyond what they need on a busy machine.
const LONG: Duration = Duration::from_mins(5);
const APIC: u32 = 0xfee0_0000;
/// A word for each APIC ID: how often a vCPU had it.
const IDS: u32 = 0x5_0000;
/// How many vCPUs came up, the first one apart.
const CAME: u32 = 0x5_1000;
/// How many have another APIC ID by CPUID than by their local APIC.
const TORN: u32 = 0x5_1004;

/// What each vCPU but the first runs from its SIPI on: 16-bit code at 0x8000, with a data segment that reaches its local
/// APIC. The last of `count` ends the guest.
fn second_code(count: u32) -> Vec<u8> {
    let word = |code: &[u8], word: u32| [code, &word.to_le_bytes()].concat();
    [
        vec![0x0f, 0x01, 0x16, 0x00, 0x7f], // lgdt [0x7f00]
        vec![0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0], // cr0 |= PE
        vec![0xbb, 0x08, 0x00, 0x8e, 0xdb], // mov bx, 8; mov ds, bx
        word(&[0x66, 0x67, 0xa1], APIC + 0x20), // mov eax, [ID]
        vec![0x66, 0xc1, 0xe8, 0x18, 0x66, 0x89, 0xc6], // shr eax, 24; mov esi, eax
        vec![0x66, 0xb8, 0x01, 0x00, 0x00, 0x00, 0x0f, 0xa2], // mov eax, 1; cpuid
        vec![0x66, 0xc1, 0xeb, 0x18, 0x66, 0x39, 0xf3], // shr ebx, 24; cmp ebx, esi
        vec![0x74, 0x09],                   // je past the next
        word(&[0xf0, 0x66, 0x67, 0xff, 0x05], TORN), // lock inc dword [TORN]
        word(&[0xf0, 0x66, 0x67, 0xff, 0x04, 0xb5], IDS), // lock inc dword [esi * 4 + IDS]
        vec![0x66, 0xb8, 0x01, 0x00, 0x00, 0x00], // mov eax, 1
        word(&[0xf0, 0x66, 0x67, 0x0f, 0xc1, 0x05], CAME), // lock xadd [CAME], eax
        word(&[0x66, 0x3d], count - 2),     // cmp eax, count - 2
        vec![0x75, 0x04, 0xb0, 0x00, 0xe6, 0xf4], // jne past the next; out 0xf4, 0
        vec![0xf4, 0xeb, 0xfd],             // hlt
    ]
    .concat()
}

/// The first vCPU notes its own ID, starts all others at once, and halts.
fn start_all(count: u32) -> Asm {
    Asm::default()
        .put(0x8000, &second_code(count))
        .store(0x7f00, 0x7f10 << 16 | 0x0f)
        .store(0x7f04, 0)
        .store(0x7f10, 0)
        .store(0x7f14, 0)
        .store(0x7f18, 0xffff)
        .store(0x7f1c, 0x00cf_9300) // data, flat
        .store(APIC + 0xf0, 0x1ff) // enabled
        .load(APIC + 0x20)
        .expect(0, 9)
        .store(IDS, 1)
        .store(APIC + 0x300, 0xc_4500) // INIT to all but itself
        .store(APIC + 0x300, 0xc_4608) // SIPI, page 8
        .raw(&[0xf4, 0xeb, 0xfd])
}

/// Starts a guest of `count` vCPUs, each of which comes up by INIT and SIPI with an APIC ID of its own.
fn all_come_up(count: u32) {
    let (mut config, _dir) = guest(&start_all(count));
    config.vcpus.count = count;
    let mut vm = Vm::with_console(config, Box::new(Recorder::default())).unwrap();
    let memory = vm.machine().memory();
    let word = |at: u32| memory.read_obj::<u32>(Gpa(at.into())).unwrap();
    let handle = vm.start().unwrap();
    let reason = handle.wait_timeout(LONG);
    assert_eq!(reason, Some(ExitReason::GuestExit(0)), "{} of {count} came", word(CAME) + 1);
    let ids: Vec<u32> = (0..256).map(|id| word(IDS + 4 * id)).collect();
    let once: Vec<u32> = (0..256).map(|id| u32::from(id < count)).collect();
    assert_eq!(ids, once, "each ID below {count} once");
    assert_eq!((word(CAME), word(TORN)), (count - 1, 0));
}

#[test]
fn as_many_vcpus_as_there_may_be_come_up_with_an_id_each() {
    if !kvm_or_skip("as_many_vcpus_as_there_may_be_come_up_with_an_id_each") {
        return;
    }
    all_come_up(2);
    all_come_up(config::MAX_VCPUS);
}
