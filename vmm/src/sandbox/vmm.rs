//! What a VMM does while its guest runs. Everything that it opens is open by then; its connector makes connections.

use super::calls::{Calls, bits, is};
use super::common;
use kvm_bindings::{
    KVMIO, kvm_clock_data, kvm_debugregs, kvm_dirty_log, kvm_fpu, kvm_interrupt, kvm_ioeventfd,
    kvm_irq_level, kvm_irq_routing, kvm_irqfd, kvm_lapic_state, kvm_mp_state, kvm_msi, kvm_msrs,
    kvm_regs, kvm_sregs, kvm_userspace_memory_region, kvm_vcpu_events,
};

/// From the guest's memory of the kernel (`_IOW`), and to it (`_IOR`): include/uapi/asm-generic/ioctl.h.
const NONE: u32 = 0;
const WRITE: u32 = 1;
const READ: u32 = 2;

/// The number of one of KVM's requests.
const fn kvm(direction: u32, number: u32, size: usize) -> u32 {
    direction << 30 | (size as u32) << 16 | KVMIO << 8 | number
}

/// Requests to KVM on an open VM or vCPU (linux/kvm.h). None of them makes a VM, a vCPU or a device.
const KVM: [u32; 29] = [
    // First, because it is by far the most frequent.
    kvm(NONE, 0x80, 0), // KVM_RUN
    kvm(READ, 0x81, size_of::<kvm_regs>()),
    kvm(WRITE, 0x82, size_of::<kvm_regs>()),
    kvm(READ, 0x83, size_of::<kvm_sregs>()),
    kvm(WRITE, 0x84, size_of::<kvm_sregs>()),
    kvm(WRITE, 0x46, size_of::<kvm_userspace_memory_region>()),
    kvm(WRITE, 0x42, size_of::<kvm_dirty_log>()), // KVM_GET_DIRTY_LOG
    kvm(WRITE, 0x6a, size_of::<kvm_irq_routing>()), // KVM_SET_GSI_ROUTING
    kvm(WRITE, 0x76, size_of::<kvm_irqfd>()),
    kvm(WRITE, 0x79, size_of::<kvm_ioeventfd>()),
    kvm(WRITE, 0x61, size_of::<kvm_irq_level>()),
    kvm(READ | WRITE, 0x67, size_of::<kvm_irq_level>()), // KVM_IRQ_LINE_STATUS
    kvm(WRITE, 0xa5, size_of::<kvm_msi>()),
    kvm(WRITE, 0x86, size_of::<kvm_interrupt>()),
    kvm(NONE, 0x9a, 0), // KVM_NMI
    kvm(NONE, 0xad, 0), // KVM_KVMCLOCK_CTRL
    // The state of a vCPU, which a reset sets anew and a failure is explained with.
    kvm(READ | WRITE, 0x88, size_of::<kvm_msrs>()),
    kvm(WRITE, 0x89, size_of::<kvm_msrs>()),
    kvm(READ, 0x8c, size_of::<kvm_fpu>()),
    kvm(WRITE, 0x8d, size_of::<kvm_fpu>()),
    kvm(READ, 0x8e, size_of::<kvm_lapic_state>()),
    kvm(WRITE, 0x8f, size_of::<kvm_lapic_state>()),
    kvm(READ, 0x98, size_of::<kvm_mp_state>()),
    kvm(WRITE, 0x99, size_of::<kvm_mp_state>()),
    kvm(READ, 0x9f, size_of::<kvm_vcpu_events>()),
    kvm(WRITE, 0xa0, size_of::<kvm_vcpu_events>()),
    kvm(READ, 0xa1, size_of::<kvm_debugregs>()),
    kvm(READ, 0x7c, size_of::<kvm_clock_data>()),
    kvm(WRITE, 0x7b, size_of::<kvm_clock_data>()),
];

/// Requests to descriptors of other kinds: the terminal, which is restored at the end, and the offloads of a tap, which the guest's driver chooses.
const OTHERS: [u32; 9] = [
    libc::TCSETS as u32,
    libc::TCSETSW as u32,
    libc::TCSETSF as u32,
    libc::TCGETS2 as u32,
    libc::TCSETS2 as u32,
    libc::TCSETSW2 as u32,
    libc::TCSETSF2 as u32,
    libc::TIOCGWINSZ as u32,
    libc::TUNSETOFFLOAD as u32,
];

/// Type of vhost's requests (linux/vhost.h): a guest's driver starts its sockets in the kernel when it is ready.
const VHOST: u32 = 0xaf;

pub(super) fn calls() -> Calls {
    common::calls()
        .and(common::no_new_code())
        .allow_values(libc::SYS_ioctl, 1, &KVM)
        .allow_values(libc::SYS_ioctl, 1, &OTHERS)
        .allow_if(libc::SYS_ioctl, &[bits(1, 0xff00, VHOST << 8)])
        // A vCPU's nice value and time slice, or its real-time priority.
        .allow(&[libc::SYS_sched_setattr])
        // Whether a file that a plugged function's server shows is of huge pages.
        .allow(&[libc::SYS_fstatfs])
        // Disks and files that are open.
        .allow(&[
            libc::SYS_fallocate,
            libc::SYS_fdatasync,
            libc::SYS_fsync,
            libc::SYS_ftruncate,
            libc::SYS_preadv,
            libc::SYS_preadv2,
            libc::SYS_pwrite64,
            libc::SYS_pwritev,
            libc::SYS_pwritev2,
        ])
        // The sockets of a console and of the API, whose names go with the guest: no folders. Landlock says where.
        .allow(&[libc::SYS_accept4, libc::SYS_unlink])
        .allow_if(libc::SYS_unlinkat, &[is(2, 0)])
}
