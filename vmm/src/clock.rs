//! How the guest's time stamp counter relates to the host's.
#![allow(unsafe_code)] // A KVM attribute is read through a raw address; `rdtsc` is an intrinsic.

use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, Msrs, kvm_device_attr, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::errno;
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};

/// Numbers of the ioctls that kvm-ioctls does not offer (linux/kvm.h).
mod ioctl {
    use kvm_bindings::kvm_device_attr;

    vmm_sys_util::ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, kvm_bindings::KVMIO, 0xe1, kvm_device_attr);
    vmm_sys_util::ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, kvm_bindings::KVMIO, 0xe2, kvm_device_attr);
    vmm_sys_util::ioctl_iow_nr!(KVM_HAS_DEVICE_ATTR, kvm_bindings::KVMIO, 0xe3, kvm_device_attr);
}

/// IA32_TIME_STAMP_COUNTER.
const MSR_TSC: u32 = 0x10;

/// Guest TSC minus host TSC, in ticks, modulo 2^64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TscOffset(pub u64);

/// Sets a vCPU's offset, before it runs: all of a guest's have the same.
pub(crate) fn set_tsc_offset(vcpu: &VcpuFd, offset: TscOffset) -> Result<(), errno::Error> {
    let attribute = offset_attribute(&raw const offset.0);
    // SAFETY: the attribute is 8 bytes, which KVM reads from `offset`; that outlives the call.
    let result = unsafe { ioctl_with_ref(vcpu, ioctl::KVM_SET_DEVICE_ATTR(), &attribute) };
    if result != 0 {
        return Err(errno::Error::last());
    }
    // KVM-PVM takes it, and the guest reads the host's counter all the same.
    let kept = tsc_offset(vcpu) == offset;
    kept.then_some(()).ok_or(errno::Error::new(libc::EOPNOTSUPP))
}

/// The attribute of a vCPU that is its offset, at this address.
fn offset_attribute(at: *const u64) -> kvm_device_attr {
    kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: u64::from(KVM_VCPU_TSC_OFFSET),
        addr: at as u64,
        flags: 0,
    }
}

/// Asks KVM for the offset; where it does not say, measures it.
pub(crate) fn tsc_offset(vcpu: &VcpuFd) -> TscOffset {
    TscOffset(from_kvm(vcpu).or_else(|| measured(vcpu)).unwrap_or(0))
}

fn from_kvm(vcpu: &VcpuFd) -> Option<u64> {
    let mut offset = 0u64;
    let mut attribute = offset_attribute(&raw mut offset);
    // SAFETY: asks only whether the attribute exists; the request matches the ioctl.
    if unsafe { ioctl_with_ref(vcpu, ioctl::KVM_HAS_DEVICE_ATTR(), &attribute) } != 0 {
        return None;
    }
    // SAFETY: the attribute is 8 bytes, which KVM writes to `offset`; that outlives the call.
    let result = unsafe { ioctl_with_mut_ref(vcpu, ioctl::KVM_GET_DEVICE_ATTR(), &mut attribute) };
    (result == 0).then_some(offset)
}

/// Reads the guest's counter between two reads of the host's. An offset smaller than the bracket is none.
fn measured(vcpu: &VcpuFd) -> Option<u64> {
    let entry = kvm_msr_entry { index: MSR_TSC, ..Default::default() };
    let mut best: Option<(u64, u64)> = None;
    for _ in 0..8 {
        let mut msrs = Msrs::from_entries(&[entry]).ok()?;
        let before = host_tsc();
        let read = vcpu.get_msrs(&mut msrs).ok()?;
        let bracket = host_tsc().wrapping_sub(before);
        let guest = msrs.as_slice().first().filter(|_| read == 1)?.data;
        let offset = guest.wrapping_sub(before.wrapping_add(bracket / 2));
        if best.is_none_or(|(narrowest, _)| bracket < narrowest) {
            best = Some((bracket, offset));
        }
    }
    let (bracket, offset) = best?;
    Some(if (offset as i64).unsigned_abs() <= bracket { 0 } else { offset })
}

fn host_tsc() -> u64 {
    // SAFETY: every x86-64 CPU that runs KVM has the counter, and reading it has no other effect.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe;
    use crate::testing::kvm_or_skip;

    #[test]
    fn a_vcpus_counter_is_ahead_or_behind_by_what_was_asked() {
        let name = "a_vcpus_counter_is_ahead_or_behind_by_what_was_asked";
        if !kvm_or_skip(name) {
            return;
        }
        let vm = probe::open().unwrap().create_vm().unwrap();
        for (id, wanted) in (0..).zip([1i64 << 40, -(1 << 40), 0]) {
            let vcpu = vm.create_vcpu(id).unwrap();
            let wanted = TscOffset(wanted as u64);
            if let Err(why) = set_tsc_offset(&vcpu, wanted) {
                return println!("skip: {name}: this KVM does not set the offset: {why}");
            }
            assert_eq!(tsc_offset(&vcpu), wanted);
            // By the counters themselves, within far more than reading them takes.
            let off = measured(&vcpu).unwrap().wrapping_sub(wanted.0) as i64;
            assert!(off.unsigned_abs() < 1 << 32, "{wanted:?} {off}");
        }
    }
}
