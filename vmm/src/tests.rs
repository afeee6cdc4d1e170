//! Tiny guests, run on KVM where there is one.

use crate::config::{Device, VfioUserDevice};
use crate::testing::{Asm, Recorder, guest, kvm_or_skip};
use crate::{ExitReason, GuestError, Vm, VmError};
use std::time::Duration;

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
