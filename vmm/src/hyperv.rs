//! The interface of Microsoft's hypervisor, as far as KVM has it and a guest takes its time from it: a reference
//! counter, also as a page, synthetic timers, and the frequencies of TSC and local APIC.
//!
//! Source: Hypervisor Top-Level Functional Specification 6.0b, sections 2.4 (CPUID), 11 (interrupts) and 12 (timers).
//! KVM serves the registers behind it; what it says that it has is cut to what is listed here.
#![allow(unsafe_code)] // kvm-ioctls does not offer KVM_GET_SUPPORTED_HV_CPUID.

use crate::probe::{self, KvmKind};
use kvm_bindings::{
    CpuId, KVM_CAP_HYPERV_CPUID, KVM_CAP_HYPERV_ENFORCE_CPUID, KVM_CAP_HYPERV_SYNIC2,
    kvm_cpuid_entry2, kvm_enable_cap,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use vmm_sys_util::errno;
use vmm_sys_util::ioctl::ioctl_with_mut_ptr;

/// The ioctl's number (linux/kvm.h).
mod ioctl {
    use kvm_bindings::{KVMIO, kvm_cpuid2};

    vmm_sys_util::ioctl_iowr_nr!(KVM_GET_SUPPORTED_HV_CPUID, KVMIO, 0xc1, kvm_cpuid2);
}

/// Leaves of hypervisors: KVM's own are among them.
pub(crate) const HYPERVISOR: std::ops::RangeInclusive<u32> = 0x4000_0000..=0x4000_ffff;
/// Who the hypervisor is, and the last leaf; which interface; its version; features; hints; limits.
const VENDOR: u32 = 0x4000_0000;
const INTERFACE: u32 = 0x4000_0001;
const VERSION: u32 = 0x4000_0002;
const FEATURES: u32 = 0x4000_0003;
const HINTS: u32 = 0x4000_0004;
const LIMITS: u32 = 0x4000_0005;
/// Room for what KVM lists: about a dozen.
const MOST: usize = 64;

/// Features that a guest gets, with their bits in EAX of [`FEATURES`]: all are needed, since guests take some for
/// granted where they find others.
const RIGHTS: [(u32, &str); 8] = [
    (1 << 1, "the reference counter"),
    (1 << 2, "the synthetic interrupt controller"),
    (1 << 3, "synthetic timers"),
    (1 << 4, "the registers of the local APIC"),
    (1 << 5, "hypercalls"),
    (1 << 6, "numbers of virtual processors"),
    (1 << 9, "the reference page"),
    (1 << 11, "the right to read frequencies"),
];
/// The same in EDX.
const ABILITIES: [(u32, &str); 1] = [(1 << 8, "frequencies")];
/// In EDX, where KVM has it: timers that interrupt directly, without a message.
const DIRECT_TIMERS: u32 = 1 << 19;
/// Hints: watchdogs are to be patient, and automatic ends of interrupts, which would keep AVIC and APICv off, are
/// not to be used.
const RELAXED_TIMING: u32 = 1 << 5;
const NO_AUTO_EOI: u32 = 1 << 9;
/// A guest that spins for a lock need not say so.
const NEVER: u32 = u32::MAX;

/// Why a guest cannot have it.
#[derive(Debug, thiserror::Error)]
pub enum HypervError {
    /// KVM lacks something.
    #[error(
        "`vcpus.hyperv` takes what this machine's KVM has not: {missing}; leave the key out, or use a machine with \
         hardware virtualisation and a Linux from 5.0 on"
    )]
    Missing {
        /// What.
        missing: String,
    },
    /// KVM is not usable.
    #[error("{0}")]
    Kvm(KvmKind),
    /// KVM refused something.
    #[error("`vcpus.hyperv`: KVM refused {what}")]
    Refused {
        /// What.
        what: &'static str,
        /// Why.
        source: errno::Error,
    },
}

/// Looks whether a guest could have it here, by a virtual machine that is thrown away.
pub fn check() -> Result<(), HypervError> {
    let refused = |what| move |source| HypervError::Refused { what, source };
    let kvm = probe::open().map_err(HypervError::Kvm)?;
    let vm = kvm.create_vm().map_err(refused("a virtual machine"))?;
    vm.create_irq_chip().map_err(refused("the interrupt controllers"))?;
    let vcpu = vm.create_vcpu(0).map_err(refused("a vCPU"))?;
    turn_on(&kvm, &vcpu).map(drop)
}

/// Turns it on for a vCPU; the leaves to put in the place of KVM's own.
pub(crate) fn turn_on(kvm: &Kvm, vcpu: &VcpuFd) -> Result<Vec<kvm_cpuid_entry2>, HypervError> {
    for (cap, name) in [
        (Cap::Hyperv, "KVM_CAP_HYPERV"),
        (Cap::HypervTime, "KVM_CAP_HYPERV_TIME"),
        (Cap::HypervSynic2, "KVM_CAP_HYPERV_SYNIC2"),
    ] {
        if !kvm.check_extension(cap) {
            return Err(HypervError::Missing { missing: name.into() });
        }
    }
    if kvm.check_extension_raw(KVM_CAP_HYPERV_CPUID.into()) <= 0 {
        return Err(HypervError::Missing { missing: "KVM_CAP_HYPERV_CPUID".into() });
    }
    let refused = |what| move |source| HypervError::Refused { what, source };
    let leaves = cut(supported(vcpu).map_err(refused("to list its leaves"))?.as_slice())?;
    let controller = kvm_enable_cap { cap: KVM_CAP_HYPERV_SYNIC2, ..Default::default() };
    vcpu.enable_cap(&controller).map_err(refused("the synthetic interrupt controller"))?;
    // Less of KVM within the guest's reach: nothing but what the leaves say.
    let mut enforce = kvm_enable_cap { cap: KVM_CAP_HYPERV_ENFORCE_CPUID, ..Default::default() };
    enforce.args[0] = 1;
    if let Err(e) = vcpu.enable_cap(&enforce) {
        tracing::debug!("KVM serves more of Hyper-V's interface than the guest is told of: {e}");
    }
    Ok(leaves)
}

/// What KVM could do.
fn supported(vcpu: &VcpuFd) -> Result<CpuId, errno::Error> {
    let mut list = CpuId::new(MOST).map_err(|_| errno::Error::new(libc::ENOMEM))?;
    // SAFETY: the list says how many entries it has room for; KVM writes no more, and how many it wrote. It is not
    // used by anybody else meanwhile.
    let done = unsafe {
        ioctl_with_mut_ptr(vcpu, ioctl::KVM_GET_SUPPORTED_HV_CPUID(), list.as_mut_fam_struct_ptr())
    };
    if done < 0 { Err(errno::Error::last()) } else { Ok(list) }
}

/// What the guest sees of what is `supported`.
fn cut(supported: &[kvm_cpuid_entry2]) -> Result<Vec<kvm_cpuid_entry2>, HypervError> {
    let leaf = |function| {
        let entry = supported.iter().find(|e| e.function == function).copied();
        entry.ok_or_else(|| HypervError::Missing { missing: format!("CPUID leaf {function:#x}") })
    };
    let all = |word: u32, wanted: &[(u32, &str)]| {
        let missing = wanted.iter().find(|(bit, _)| word & bit == 0);
        missing.map_or(Ok(()), |(_, name)| Err(HypervError::Missing { missing: (*name).into() }))
    };
    let mask = |wanted: &[(u32, &str)]| wanted.iter().fold(0, |mask, (bit, _)| mask | bit);
    let has = leaf(FEATURES)?;
    all(has.eax, &RIGHTS)?;
    all(has.edx, &ABILITIES)?;
    let entry = |function, eax, [ebx, ecx, edx]: [u32; 3]| kvm_cpuid_entry2 {
        function,
        eax,
        ebx,
        ecx,
        edx,
        ..Default::default()
    };
    let name = [*b"Micr", *b"osof", *b"t Hv"].map(u32::from_le_bytes);
    let abilities = has.edx & (mask(&ABILITIES) | DIRECT_TIMERS);
    Ok(vec![
        entry(VENDOR, LIMITS, name),
        entry(INTERFACE, u32::from_le_bytes(*b"Hv#1"), [0; 3]),
        leaf(VERSION)?,
        entry(FEATURES, mask(&RIGHTS), [0, 0, abilities]),
        entry(HINTS, RELAXED_TIMING | NO_AUTO_EOI, [NEVER, 0, 0]),
        leaf(LIMITS)?,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, eax: u32, ebx: u32, edx: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, eax, ebx, edx, ..Default::default() }
    }

    /// A KVM that has all of it, and more.
    fn kvm() -> Vec<kvm_cpuid_entry2> {
        vec![
            entry(0x4000_0000, 0x4000_0082, 1, 1),
            entry(0x4000_0001, 7, 0, 0),
            entry(0x4000_0002, 0x3839, 0xa_0000, 0),
            entry(0x4000_0003, u32::MAX, u32::MAX, u32::MAX),
            entry(0x4000_0004, u32::MAX, 0, 0),
            entry(0x4000_0005, 1024, 64, 0),
            entry(0x4000_0080, 1, 1, 1),
        ]
    }

    #[test]
    fn a_guest_sees_what_is_listed_and_no_more() {
        let leaves = cut(&kvm()).unwrap();
        let functions: Vec<u32> = leaves.iter().map(|e| e.function).collect();
        assert_eq!(functions, (0x4000_0000..=0x4000_0005).collect::<Vec<_>>());
        let name: Vec<u8> =
            [leaves[0].ebx, leaves[0].ecx, leaves[0].edx].map(u32::to_le_bytes).concat();
        assert_eq!((&name[..], leaves[0].eax), (&b"Microsoft Hv"[..], 0x4000_0005));
        assert_eq!(leaves[1].eax.to_le_bytes(), *b"Hv#1");
        assert_eq!(leaves[2].eax, 0x3839, "the version is KVM's");
        assert_eq!((leaves[3].eax, leaves[3].ebx, leaves[3].edx), (0xa7e, 0, 0x8_0100));
        assert_eq!((leaves[4].eax, leaves[4].ebx), (0x220, u32::MAX));
        assert_eq!((leaves[5].eax, leaves[5].ebx), (1024, 64));
    }

    #[test]
    fn what_is_missing_is_named() {
        let message = |change: &dyn Fn(&mut Vec<kvm_cpuid_entry2>)| {
            let mut leaves = kvm();
            change(&mut leaves);
            cut(&leaves).map(|leaves| leaves[3].edx).map_err(|e| e.to_string())
        };
        let without = |eax: u32, edx: u32| {
            message(&|leaves| {
                leaves[3].eax &= !eax;
                leaves[3].edx &= !edx;
            })
        };
        assert!(without(1 << 9, 0).unwrap_err().contains("the reference page"));
        assert!(without(1 << 3, 0).unwrap_err().contains("synthetic timers"));
        assert!(without(0, 1 << 8).unwrap_err().contains("frequencies"));
        assert_eq!(without(0, 1 << 19), Ok(1 << 8), "direct timers are optional");
        let text = message(&|leaves| leaves.truncate(5)).unwrap_err();
        assert!(text.contains("0x40000005") && text.contains("leave the key out"), "{text}");
    }

    #[test]
    fn this_machine_has_it_or_says_what_is_missing() {
        match check() {
            Ok(()) => {}
            Err(e @ HypervError::Refused { .. }) => panic!("{e}"),
            Err(e) => println!("skip: this_machine_has_it_or_says_what_is_missing: {e}"),
        }
    }
}
