//! Getting a vCPU thread out of the guest: a signal whose handler sets `immediate_exit`.
//!
//! The handler runs on the vCPU's own thread. If the signal comes while `KVM_RUN` runs, that returns
//! `EINTR`; if it comes just before, `immediate_exit` makes the coming `KVM_RUN` return at once. No kick
//! is lost, and one is enough.
#![allow(unsafe_code)] // A signal handler, and a pointer into the vCPU's shared page.

use kvm_ioctls::VcpuFd;
use std::cell::Cell;
use std::marker::PhantomData;
use std::ptr::{addr_of_mut, null_mut};
use vmm_sys_util::errno;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

thread_local! {
    /// `immediate_exit` of the vCPU that this thread runs. A plain cell that needs no drop and no lazy
    /// set-up, so that a signal handler may read it.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(null_mut()) };
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: `Kickable` made the pointer from this thread's vCPU, and clears it before the vCPU's
        // page can be unmapped; the kernel reads the byte, nothing else in Rust does.
        unsafe { flag.write_volatile(1) };
    }
}

/// Has the kick signal handled in this process from now on.
pub(crate) fn install() -> Result<(), errno::Error> {
    register_signal_handler(SIGRTMIN(), on_kick)
}

/// A vCPU that this thread runs and that can be kicked.
pub(crate) struct Kickable<'a> {
    vcpu: &'a mut VcpuFd,
    /// Stays on its thread: the flag's address is in a thread-local.
    _thread: PhantomData<*mut ()>,
}

impl<'a> Kickable<'a> {
    /// Makes `vcpu` the one that a kick of this thread stops.
    pub(crate) fn new(vcpu: &'a mut VcpuFd) -> Self {
        let run: *mut kvm_bindings::kvm_run = vcpu.get_kvm_run();
        // SAFETY: `run` points at the live `kvm_run` page; only the field's address is taken.
        IMMEDIATE_EXIT.set(unsafe { addr_of_mut!((*run).immediate_exit) });
        Self { vcpu, _thread: PhantomData }
    }

    /// The vCPU.
    pub(crate) fn vcpu(&mut self) -> &mut VcpuFd {
        self.vcpu
    }
}

impl Drop for Kickable<'_> {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(null_mut());
    }
}

/// A thread of this process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Thread(i32);

impl Thread {
    /// The calling thread.
    pub(crate) fn current() -> Self {
        Self(rustix::thread::gettid().as_raw_nonzero().get())
    }

    /// Sends the kick signal. The caller knows that the thread has not ended.
    pub(crate) fn kick(self) {
        let process = rustix::process::getpid().as_raw_nonzero().get();
        // SAFETY: tgkill takes numbers only; the signal has a handler since `install`.
        unsafe { libc::syscall(libc::SYS_tgkill, process, self.0, SIGRTMIN()) };
    }
}
