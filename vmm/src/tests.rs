//! Tiny guests, run on KVM where there is one.

use crate::config::{Device, VfioUserDevice};
use crate::interrupt::stats::Counter;
use crate::testing::{Asm, Recorder, guest, kvm_or_skip};
use crate::{ExitReason, GuestError, GuestState, PauseError, Vm, VmError};
use std::time::Duration;
use vm_memory::Bytes;

/// Far beyond what any of these guests needs on a busy machine.
const LONG: Duration = Duration::from_mins(1);

fn run(code: &Asm) -> (ExitReason, Recorder) {
    let console = Recorder::default();
    let (config, _dir) = guest(code);
    let handle = Vm::with_console(config, Box::new(console.clone())).unwrap().start().unwrap();
    let reason = handle.wait_timeout(LONG).expect("the guest ends");
    (reason, console)
}

#[test]
fn a_guest_prints_and_exits() {
    if !kvm_or_skip("a_guest_prints_and_exits") {
        return;
    }
    let (reason, console) = run(&Asm::default().print("hello\nworld").exit(7));
    assert_eq!(reason, ExitReason::GuestExit(7));
    assert_eq!(console.lines(), ["vr: hello", "vr: world"]);
}

#[test]
fn kvms_own_counters_know_of_a_guests_exits() {
    if !kvm_or_skip("kvms_own_counters_know_of_a_guests_exits") {
        return;
    }
    let text = "a line of some length";
    let (config, _dir) = guest(&Asm::default().print(text).exit(7));
    let handle = Vm::new(config).unwrap().start().unwrap();
    assert_eq!(handle.wait_timeout(LONG), Some(ExitReason::GuestExit(7)));
    // Also of one that has ended.
    handle.sample_interrupts();
    let report = handle.interrupts();
    println!("{report:?}");
    assert_eq!(report.paced, None, "there is no pacer");
    let counts = report.all.counts;
    match (counts.get(Counter::Exits), &report.missing) {
        (None, why) => println!("skip: kvms_own_counters_know_of_a_guests_exits: {why:?}"),
        (Some(exits), why) => {
            assert_eq!(why, &None);
            // Each byte, and the end. Kinds of exits are not counted by every KVM.
            assert!(exits > text.len() as u64, "{exits}");
            assert!(exits >= handle.exits().io, "{exits}");
        }
    }
}

#[test]
fn a_triple_fault_is_explained() {
    if !kvm_or_skip("a_triple_fault_is_explained") {
        return;
    }
    // An empty IDT, then an undefined instruction.
    let code =
        Asm::default().raw(&[0x0f, 0x01, 0x1d]).raw(&0x8000u32.to_le_bytes()).raw(&[0x0f, 0x0b]);
    let (reason, _) = run(&code);
    let ExitReason::Error(e) = reason else { panic!("{reason:?}") };
    assert!(matches!(e, GuestError::TripleFault { .. } | GuestError::Internal { .. }), "{e}");
    assert!(e.to_string().contains("rip 0x1000"), "{e}");
}

#[test]
fn a_reset_ends_the_guest_as_one() {
    if !kvm_or_skip("a_reset_ends_the_guest_as_one") {
        return;
    }
    let (reason, _) = run(&Asm::default().raw(&[0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xfe]));
    assert_eq!(reason, ExitReason::Reset);
}

#[test]
fn stop_ends_spinning_and_halted_guests() {
    if !kvm_or_skip("stop_ends_spinning_and_halted_guests") {
        return;
    }
    for loops in [&[0xeb, 0xfe][..], &[0xf4, 0xeb, 0xfd]] {
        // The guest says when it has come to its loop; there is no other way on.
        let (config, _dir) = guest(&Asm::default().print("looping\n").raw(loops));
        let console = Recorder::default();
        let handle = Vm::with_console(config, Box::new(console.clone())).unwrap().start().unwrap();
        while console.lines().is_empty() {
            assert_eq!(handle.wait_timeout(Duration::from_millis(1)), None);
        }
        assert!(handle.exits().io >= 8);
        assert_eq!(handle.stop(), ExitReason::Stopped);
        assert_eq!(handle.wait(), ExitReason::Stopped);
    }
}

/// Starts vCPU 1 at 0x8000 with 16-bit `code`, and halts.
fn start_second(code: &[u8]) -> Asm {
    const APIC: u32 = 0xfee0_0000;
    let asm = Asm::default().put(0x8000, code);
    asm.store(APIC + 0xf0, 0x1ff) // enabled
        .store(APIC + 0x310, 1 << 24) // to APIC ID 1:
        .store(APIC + 0x300, 0x4500) // INIT
        .store(APIC + 0x300, 0x4608) // SIPI, page 8
        .raw(&[0xf4, 0xeb, 0xfd])
}

/// Runs `code` on `count` vCPUs, of which it starts the second.
fn run_on(count: u32, code: &Asm) -> (ExitReason, Recorder) {
    let console = Recorder::default();
    let (mut config, _dir) = guest(code);
    config.vcpus.count = count;
    let handle = Vm::with_console(config, Box::new(console.clone())).unwrap().start().unwrap();
    let reason = handle.wait_timeout(LONG).expect("the guest ends");
    (reason, console)
}

#[test]
fn the_second_vcpu_starts_and_ends_the_guest() {
    if !kvm_or_skip("the_second_vcpu_starts_and_ends_the_guest") {
        return;
    }
    // mov dx, 0x3f8; out 'B', '\n'; out 0xf4, 9
    let code = [0xba, 0xf8, 0x03, 0xb0, b'B', 0xee, 0xb0, b'\n', 0xee, 0xb0, 9, 0xe6, 0xf4];
    let (reason, console) = run_on(3, &start_second(&code));
    assert_eq!(reason, ExitReason::GuestExit(9), "while two others halt and wait");
    assert_eq!(console.lines(), ["vr: B"]);
}

#[test]
fn a_triple_fault_of_any_vcpu_ends_the_guest() {
    if !kvm_or_skip("a_triple_fault_of_any_vcpu_ends_the_guest") {
        return;
    }
    // lidt [0x7f00], which is empty; ud2
    let (reason, _) = run_on(2, &start_second(&[0x0f, 0x01, 0x1e, 0x00, 0x7f, 0x0f, 0x0b]));
    let ExitReason::Error(e) = reason else { panic!("{reason:?}") };
    assert!(matches!(e, GuestError::TripleFault { .. } | GuestError::Internal { .. }), "{e}");
}

#[test]
fn stop_ends_vcpus_that_were_never_started() {
    if !kvm_or_skip("stop_ends_vcpus_that_were_never_started") {
        return;
    }
    let (mut config, _dir) = guest(&Asm::default().print("up\n").raw(&[0xeb, 0xfe]));
    config.vcpus.count = 4;
    let console = Recorder::default();
    let handle = Vm::with_console(config, Box::new(console.clone())).unwrap().start().unwrap();
    while console.lines().is_empty() {
        assert_eq!(handle.wait_timeout(Duration::from_millis(1)), None);
    }
    assert_eq!(handle.stop(), ExitReason::Stopped);
    assert_eq!(handle.type_in(b"x"), 1, "a guest that has ended takes all");
    handle.press_power_button();
}

#[test]
fn s5_is_a_shutdown() {
    if !kvm_or_skip("s5_is_a_shutdown") {
        return;
    }
    // mov dx, 0x604; mov ax, SLP_EN | 0 << 10; out dx, ax
    let code = [0x66, 0xba, 0x04, 0x06, 0x66, 0xb8, 0x00, 0x20, 0x66, 0xef, 0xeb, 0xfe];
    assert_eq!(run(&Asm::default().raw(&code)).0, ExitReason::Shutdown);
}

#[test]
fn configuration_space_is_memory_too() {
    if !kvm_or_skip("configuration_space_is_memory_too") {
        return;
    }
    let code = Asm::default()
        .load(0xfeb0_0000)
        .expect(0x00ff_bea3, 1)
        .load(0xfeb0_0100)
        .expect(0, 2)
        .load(0xfeb0_8000)
        .expect(u32::MAX, 3)
        .store(0xfeb0_8004, 7)
        .exit(0);
    assert_eq!(run(&code).0, ExitReason::GuestExit(0));
}

#[test]
fn what_is_typed_reaches_the_guest() {
    if !kvm_or_skip("what_is_typed_reaches_the_guest") {
        return;
    }
    // out 0xf4, al
    let code = Asm::default().print("ready\n").wait_for_key().raw(&[0xe6, 0xf4]);
    let (config, _dir) = guest(&code);
    let handle = Vm::new(config).unwrap().start().unwrap();
    assert_eq!(handle.type_in(b"Q"), 1);
    assert_eq!(handle.wait_timeout(LONG), Some(ExitReason::GuestExit(u32::from(b'Q'))));
}

#[test]
fn stop_before_the_thread_runs_is_not_lost() {
    if !kvm_or_skip("stop_before_the_thread_runs_is_not_lost") {
        return;
    }
    for _ in 0..20 {
        let (config, _dir) = guest(&Asm::default().raw(&[0xeb, 0xfe]));
        let handle = Vm::new(config).unwrap().start().unwrap();
        assert_eq!(handle.stop(), ExitReason::Stopped);
    }
}

#[test]
fn the_vcpu_thread_is_named_and_pinned() {
    if !kvm_or_skip("the_vcpu_thread_is_named_and_pinned") {
        return;
    }
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    let cpu = (0..1024).find(|c| allowed.is_set(*c)).unwrap();
    let (mut config, _dir) = guest(&Asm::default().print("up\n").raw(&[0xf4, 0xeb, 0xfd]));
    config.guest.name = "pinned".into();
    config.vcpus.cpus = vec![cpu];
    let console = Recorder::default();
    let handle = Vm::with_console(config, Box::new(console.clone())).unwrap().start().unwrap();
    while console.lines().is_empty() {
        assert_eq!(handle.wait_timeout(Duration::from_millis(1)), None);
    }
    let thread = std::fs::read_dir("/proc/self/task")
        .unwrap()
        .map(|t| t.unwrap().path())
        .find(|t| std::fs::read_to_string(t.join("comm")).is_ok_and(|c| c == "vcpu0/pinned\n"))
        .expect("the thread has its name");
    let status = std::fs::read_to_string(thread.join("status")).unwrap();
    assert!(status.contains(&format!("Cpus_allowed_list:\t{cpu}\n")), "{status}");
}

#[test]
fn cpus_that_do_not_exist_are_explained() {
    if !kvm_or_skip("cpus_that_do_not_exist_are_explained") {
        return;
    }
    let (mut config, _dir) = guest(&Asm::default().exit(0));
    config.vcpus.cpus = vec![1023];
    let reason = Vm::new(config).unwrap().start().unwrap().wait();
    assert!(reason.to_string().contains("vcpus.cpus"), "{reason}");
}

#[test]
fn a_missing_server_stops_the_build() {
    if !kvm_or_skip("a_missing_server_stops_the_build") {
        return;
    }
    let (mut config, dir) = guest(&Asm::default().exit(0));
    let socket = dir.path().join("gpu.sock");
    config.devices = vec![Device::VfioUser(VfioUserDevice { socket, timeout: Duration::ZERO })];
    assert!(matches!(Vm::new(config), Err(VmError::Connect(_))));
}

#[test]
fn the_guest_finds_the_host_bridge_and_empty_slots() {
    if !kvm_or_skip("the_guest_finds_the_host_bridge_and_empty_slots") {
        return;
    }
    let code = Asm::default()
        .config_read(0, 0)
        .expect(0x00ff_bea3, 1)
        .config_read(0, 8)
        .expect(0x0600_0000, 2)
        .config_read(1, 0)
        .expect(u32::MAX, 3)
        .load(0xd000_0000)
        .expect(u32::MAX, 4)
        .store(0xd000_0000, 1)
        .exit(0);
    assert_eq!(run(&code).0, ExitReason::GuestExit(0));
}

/// Two vCPUs that count in the words at 0x7000 and 0x7004 for ever.
fn counters() -> (crate::Config, tempfile::TempDir) {
    // inc dword [0x7004]; jmp to it, in 16-bit code
    let second = [0x66, 0xff, 0x06, 0x04, 0x70, 0xeb, 0xf9];
    let mut asm = start_second(&second);
    // In place of the halt at its end: inc dword [0x7000]; out 0x80, al; jmp to it
    asm.0.truncate(asm.0.len() - 3);
    let asm = asm.raw(&[0xff, 0x05, 0x00, 0x70, 0x00, 0x00, 0xe6, 0x80, 0xeb, 0xf6]);
    let (mut config, dir) = guest(&asm);
    config.vcpus.count = 2;
    (config, dir)
}

#[test]
fn a_paused_guest_makes_no_progress_and_goes_on_afterwards() {
    if !kvm_or_skip("a_paused_guest_makes_no_progress_and_goes_on_afterwards") {
        return;
    }
    let (config, _dir) = counters();
    let mut vm = Vm::new(config).unwrap();
    let memory = vm.machine().memory();
    let count = || [0x7000, 0x7004].map(|at| memory.read_obj::<u32>(crate::Gpa(at)).unwrap());
    let handle = vm.start().unwrap();
    let both_count = |than: [u32; 2]| {
        while count().iter().zip(than).any(|(now, then)| *now == then) {
            assert_eq!(handle.wait_timeout(Duration::from_millis(1)), None);
        }
    };
    both_count([0, 0]);
    for _ in 0..5 {
        handle.pause(LONG).unwrap();
        assert_eq!(handle.state(), GuestState::Paused);
        let (counted, exits) = (count(), handle.exits_of_each());
        // Long enough for either to have counted on thousands of times, were it in the guest.
        assert_eq!(handle.wait_timeout(Duration::from_millis(20)), None);
        assert_eq!((count(), handle.exits_of_each()), (counted, exits));
        assert!(handle.resume());
        assert_eq!(handle.state(), GuestState::Running);
        both_count(counted);
    }
    handle.pause(LONG).unwrap();
    assert_eq!(handle.stop(), ExitReason::Stopped);
    assert_eq!(handle.state(), GuestState::Ended);
    assert_eq!(handle.pause(LONG), Err(PauseError::Ended));
}

#[test]
fn vcpus_that_halt_or_were_never_started_are_paused_too() {
    if !kvm_or_skip("vcpus_that_halt_or_were_never_started_are_paused_too") {
        return;
    }
    let (mut config, _dir) = guest(&Asm::default().print("up\n").raw(&[0xf4, 0xeb, 0xfd]));
    config.vcpus.count = 3;
    let handle = Vm::new(config).unwrap().start().unwrap();
    for _ in 0..20 {
        handle.pause(LONG).unwrap();
        assert!(handle.resume());
    }
    assert_eq!(handle.reset(), ExitReason::Reset);
    assert!(!handle.resume());
}
