//! vCPUs with real-time priority, as the kernel has them.

use super::*;
use crate::testing::{Asm, Recorder, guest, kvm_or_skip};
use crate::{Config, ExitReason, Vm, VmError};
use rustix::thread::{CapabilitySets, capabilities, set_capabilities};
use std::time::Duration;

/// CPUs that this process may use, from the lowest on.
fn cpus() -> Vec<usize> {
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).collect()
}

/// As in a file with `realtime` and so many vCPUs on `cpus`.
fn vcpus(count: u32, cpus: &[usize]) -> Vcpus {
    let text = format!(
        "[guest]\nname = \"vr\"\nimage = \"i\"\n[memory]\nsize = \"2M\"\n\
         [vcpus]\nrealtime = 3\ncount = {count}\ncpus = {cpus:?}\n"
    );
    Config::parse(&text, "vr.toml".as_ref()).unwrap().vcpus
}

/// Priority and policy of the thread of this process that has `name`, as the kernel tells (proc_pid_stat(5), fields 40
/// and 41).
fn turn_of(name: &str) -> Option<(u32, u32)> {
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    threads.filter_map(|t| std::fs::read_to_string(t.ok()?.path().join("stat")).ok()).find_map(
        |stat| {
            let (before, after) = stat.rsplit_once(") ")?;
            let field = |number: usize| after.split(' ').nth(number - 3)?.parse().ok();
            before.ends_with(&format!("({name}")).then(|| Some((field(40)?, field(41)?)))?
        },
    )
}

#[test]
fn a_vcpu_has_its_real_time_priority_and_can_be_stopped() {
    const TEST: &str = "a_vcpu_has_its_real_time_priority_and_can_be_stopped";
    if !kvm_or_skip(TEST) {
        return;
    }
    let all = cpus();
    if let Err(error) = check(&vcpus(1, &all[..1])) {
        println!("skip: {TEST}: {error}");
        return;
    }
    // It spins, and never gives its CPU up by itself.
    let (mut config, _dir) = guest(&Asm::default().print("up\n").raw(&[0xeb, 0xfe]));
    config.guest.name = "prompt".into();
    config.vcpus = vcpus(1, &all[..1]);
    let console = Recorder::default();
    let handle = Vm::with_console(config, Box::new(console.clone())).unwrap().start().unwrap();
    while console.lines().is_empty() {
        assert_eq!(handle.wait_timeout(Duration::from_millis(1)), None);
    }
    assert_eq!(turn_of("vcpu0/prompt"), Some((3, libc::SCHED_FIFO as u32)));
    assert_eq!(handle.stop(), ExitReason::Stopped);
}

#[test]
fn one_cpu_is_left_to_whoever_stops_them() {
    let all = cpus();
    assert_eq!(check(&Vcpus { realtime: None, ..vcpus(1, &all[..1]) }), Ok(()));
    if !permitted(3) {
        println!(
            "skip: one_cpu_is_left_to_whoever_stops_them: real-time priority is not permitted"
        );
        return;
    }
    let count = all.len() as u32;
    let error = check(&vcpus(count, &all)).unwrap_err();
    assert_eq!(error, TurnError::NoCpuLeft { count, allowed: count });
    assert!(error.to_string().contains("name fewer in `vcpus.cpus`"), "{error}");
    if count > 1 {
        check(&vcpus(count - 1, &all)).unwrap();
        check(&vcpus(count - 1, &all[1..])).unwrap();
    }
}

#[test]
fn what_permits_it_is_named_where_it_is_missing() {
    const TEST: &str = "what_permits_it_is_named_where_it_is_missing";
    // Capabilities are a thread's own.
    let tried = std::thread::spawn(|| {
        let now = capabilities(None).unwrap();
        let effective = now.effective.difference(CapabilitySet::SYS_NICE);
        set_capabilities(None, CapabilitySets { effective, ..now }).unwrap();
        if limit().is_none_or(|limit| limit >= 3) {
            println!("skip: {TEST}: the limit on real-time priority permits it");
            return;
        }
        let vcpus = vcpus(1, &cpus()[..1]);
        let error = check(&vcpus).unwrap_err();
        assert!(matches!(error, TurnError::NotPermitted { priority: 3, .. }), "{error}");
        let refused = place(&vcpus, 0).unwrap_err().to_string();
        for text in [error.to_string(), refused] {
            assert!(
                text.contains("CAP_SYS_NICE") && text.contains("leave `vcpus.realtime` out"),
                "{text}"
            );
        }
        if kvm_or_skip(TEST) {
            let (mut config, _dir) = guest(&Asm::default().exit(0));
            config.vcpus = vcpus;
            assert!(matches!(Vm::new(config), Err(VmError::Turn(_))));
        }
    });
    tried.join().unwrap();
}
