//! What the confined processes of the tests do.
#![allow(unsafe_code)] // System calls that are made to be refused have no safe wrapper.

use crate::sandbox::{Files, Keep, restrict};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::ptr::null;

/// Makes a call as an intruder would. Where the sandbox lets it, it fails or does no harm.
pub(super) fn call(name: &str) {
    let page = 4096usize;
    let no = null::<u8>();
    let path = c"/nonexistent/beamline".as_ptr();
    // SAFETY: each call takes numbers, a string that ends in NUL, or null pointers, which the kernel checks; none
    // maps, unmaps or changes memory that is used.
    let result = unsafe {
        match name {
            "ptrace" => libc::syscall(libc::SYS_ptrace, libc::PTRACE_TRACEME, 0, no, no),
            "execve" => libc::syscall(libc::SYS_execve, path, no, no),
            "socket" => libc::syscall(libc::SYS_socket, libc::AF_INET, libc::SOCK_STREAM, 0),
            "connect" => libc::syscall(libc::SYS_connect, -1, no, 0),
            "mprotect" => {
                libc::syscall(libc::SYS_mprotect, no, page, libc::PROT_READ | libc::PROT_EXEC)
            }
            "mmap" => libc::syscall(
                libc::SYS_mmap,
                no,
                page,
                libc::PROT_READ | libc::PROT_EXEC,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            ),
            // KVM_CREATE_VM for the VMM, nothing that a driver has for the others.
            "ioctl" => libc::syscall(libc::SYS_ioctl, -1, 0xae01, 0),
            "openat" => libc::syscall(
                libc::SYS_openat,
                libc::AT_FDCWD,
                path,
                libc::O_WRONLY | libc::O_CREAT,
                0o600,
            ),
            // In a user namespace of its own.
            "clone" => libc::syscall(
                libc::SYS_clone,
                libc::CLONE_NEWUSER | libc::CLONE_VM | libc::CLONE_SIGHAND | libc::CLONE_THREAD,
                no,
                no,
                no,
                0,
            ),
            // Asks whether the process's own group is there.
            "kill" => libc::syscall(libc::SYS_kill, 0, 0),
            "unlink" => libc::syscall(libc::SYS_unlink, path),
            "mount" => libc::syscall(libc::SYS_mount, no, path, no, 0, no),
            "io_uring_setup" => libc::syscall(libc::SYS_io_uring_setup, 0, no),
            other => panic!("no act `{other}`"),
        }
    };
    println!("it answered {result}");
}

/// What any of our processes may come to do at any moment.
pub(super) fn live() {
    let threads: Vec<_> = (0..4)
        .map(|i| {
            std::thread::Builder::new()
                .name(format!("worker-{i}"))
                .spawn(move || {
                    let mut much = vec![i as u8; 8 << 20];
                    much.resize(32 << 20, 1);
                    much.shrink_to(1);
                    std::thread::sleep(std::time::Duration::from_millis(1));
                    std::hint::black_box(much).len()
                })
                .unwrap()
        })
        .collect();
    for thread in threads {
        assert!(thread.join().unwrap() > 0);
    }
    let panicked = std::thread::spawn(|| panic!("on purpose")).join();
    assert!(panicked.is_err());
    println!("{}", std::backtrace::Backtrace::force_capture().to_string().len());
    let mut random = [0; 8];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).unwrap();
    assert!(fs::read_to_string("/proc/self/status").unwrap().contains("NoNewPrivs:\t1"));
    let cpus = std::thread::available_parallelism().unwrap();
    println!("{cpus} {:?}", std::time::SystemTime::now());
}

/// Restricts this process to some of what is in `folder` and looks what is left.
pub(super) fn files(folder: &Path) {
    let at = |name: &str| folder.join(name);
    for name in ["read", "write", "hidden", "program"] {
        fs::write(at(name), "text").unwrap();
    }
    fs::create_dir(at("folder")).unwrap();
    let files = Files {
        read: vec![at("read"), at("missing")],
        write: vec![at("write"), at("folder")],
        ..Files::default()
    };
    restrict(&files, Keep::urgency()).unwrap();
    let refused = |result: std::io::Result<()>| {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::PermissionDenied);
    };
    assert_eq!(fs::read_to_string(at("read")).unwrap(), "text");
    refused(fs::write(at("read"), "other"));
    refused(fs::read(at("hidden")).map(drop));
    refused(fs::read("/etc/passwd").map(drop));
    refused(fs::write(at("new"), "file"));
    refused(fs::remove_file(at("hidden")));
    refused(std::process::Command::new("/bin/true").status().map(drop));
    fs::write(at("write"), "other").unwrap();
    fs::write(at("folder").join("new"), "file").unwrap();
    drop(std::os::unix::net::UnixListener::bind(at("folder").join("socket")).unwrap());
    fs::remove_file(at("folder").join("socket")).unwrap();
    refused(fs::create_dir(at("folder").join("below")));
}
