//! What is said of vCPUs that cannot have the priority that they are to have.

use super::*;

/// CPUs that the command may use, as `vcpus.cpus` has them.
fn cpus() -> Vec<usize> {
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    (0..1024).filter(|cpu| allowed.is_set(*cpu)).collect()
}

#[test]
fn vcpus_that_would_take_every_cpu_are_found_before_anything_is_started() {
    let cpus = cpus();
    let keys = format!("count = {}\ncpus = {cpus:?}\nrealtime = 4", cpus.len());
    let reboots = GUEST.replace("[memory]", "on_reset = \"reboot\"\n[memory]");
    for guest in [GUEST, &reboots] {
        let folder = folder_with(&guest.replace("count = 2", &keys));
        for arguments in [&["run", "guest.toml", "--check"][..], &["run", "guest.toml"]] {
            let (code, text) = failure(arguments, folder.path());
            // Where even that is not permitted, it is said first.
            let fits = text.contains("name fewer in `vcpus.cpus`") || text.contains("CAP_SYS_NICE");
            assert!(code == Some(2) && fits, "{text}");
        }
        assert!(!folder.path().join("run").exists(), "nothing was started");
    }
}

#[test]
fn what_a_priority_lacks_is_said_with_the_ways_to_get_it() {
    let test = "what_a_priority_lacks_is_said_with_the_ways_to_get_it";
    let folder = folder_with(&GUEST.replace("count = 2", "cpus = [0]\nrealtime = 1"));
    // A root's program has no capability that is not in its bounding set.
    let without = |arguments: &[&str]| {
        let mut command = std::process::Command::new("setpriv");
        command.arg("--bounding-set=-sys_nice").arg(env!("CARGO_BIN_EXE_beamline"));
        command.args(arguments).current_dir(folder.path()).output()
    };
    match without(&["--version"]) {
        Ok(out) if out.status.success() => {}
        other => {
            println!("skip: {test}: setpriv cannot take CAP_SYS_NICE away here: {other:?}");
            return;
        }
    }
    if rustix::process::getrlimit(rustix::process::Resource::Rtprio).current != Some(0) {
        println!("skip: {test}: the rtprio limit permits it");
        return;
    }
    let out = without(&["run", "guest.toml", "--check"]).unwrap();
    let text = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(2), "{text}");
    for way in [
        "`vcpus.realtime` is 1",
        "run as root",
        "CAP_SYS_NICE",
        "LimitRTPRIO=",
        "leave `vcpus.realtime` out",
    ] {
        assert!(text.contains(way), "no {way} in {text}");
    }
}
