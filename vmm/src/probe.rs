//! What `/dev/kvm` is on this machine.
#![allow(unsafe_code)] // A throw-away VM's memory slot, and a union in the vCPU's shared page.

use kvm_bindings::{KVM_API_VERSION, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use std::fmt::Write;
use vm_memory::MmapRegion;
use vmm_sys_util::errno;

/// The device.
const DEVICE: &str = "/dev/kvm";
/// `KVM_INTERNAL_ERROR_EMULATION`.
const EMULATION: u32 = 1;

/// What `/dev/kvm` is on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KvmKind {
    /// There is none, or none that works.
    Missing {
        /// What is wrong.
        why: String,
        /// What to do about it.
        mend: String,
    },
    /// This process may not open it.
    NoPermission {
        /// What is wrong.
        why: String,
        /// What to do about it.
        mend: String,
    },
    /// KVM-PVM: virtualisation in software. Guests run, but privileged code is interpreted and knows no
    /// newer instructions, so that an ordinary Linux does not boot.
    Pvm,
    /// Hardware virtualisation.
    Hardware,
}

impl KvmKind {
    /// Whether guests can run.
    pub fn usable(&self) -> bool {
        matches!(self, Self::Pvm | Self::Hardware)
    }
}

impl std::fmt::Display for KvmKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing { why, mend } | Self::NoPermission { why, mend } => {
                write!(f, "{why}; {mend}")
            }
            Self::Pvm => f.write_str("KVM-PVM (software virtualisation)"),
            Self::Hardware => f.write_str("KVM with hardware virtualisation"),
        }
    }
}

/// Looks at `/dev/kvm`. Runs one instruction in a throw-away VM; takes about a millisecond.
pub fn kvm() -> KvmKind {
    match open() {
        Ok(kvm) => try_popcnt(&kvm).unwrap_or_else(|(what, e)| KvmKind::Missing {
            why: format!("{DEVICE} opens, but {what} fails: {e}"),
            mend: "look at the kernel's log for what KVM misses".into(),
        }),
        Err(kind) => kind,
    }
}

/// Whether `/dev/kvm` opens, and is of the version that guests need. Makes nothing.
///
/// # Errors
/// What it is instead, and how to mend that.
pub fn opens() -> Result<(), KvmKind> {
    open().map(drop)
}

/// Opens `/dev/kvm` and checks its version.
pub(crate) fn open() -> Result<Kvm, KvmKind> {
    let kvm = Kvm::new().map_err(refused)?;
    let version = kvm.get_api_version();
    if version != KVM_API_VERSION as i32 {
        return Err(KvmKind::Missing {
            why: format!("{DEVICE} has API version {version}, not {KVM_API_VERSION}"),
            mend: "run a Linux kernel of this century".into(),
        });
    }
    Ok(kvm)
}

fn refused(e: errno::Error) -> KvmKind {
    let why = format!("{DEVICE} cannot be opened: {e}");
    match e.errno() {
        libc::EACCES | libc::EPERM => KvmKind::NoPermission {
            why,
            mend:
                "add your user to group kvm (`sudo usermod -aG kvm $USER`) and log in again; in a \
                   container, pass the device on (`--device /dev/kvm`)"
                    .into(),
        },
        libc::ENOENT => KvmKind::Missing {
            why,
            mend: "load the module (`sudo modprobe kvm_intel` or `kvm_amd`) and enable \
                   virtualisation in the firmware; in a container, pass the device on"
                .into(),
        },
        _ => KvmKind::Missing {
            why,
            mend: "enable virtualisation in the firmware, and nested virtualisation if this is a \
                   virtual machine"
                .into(),
        },
    }
}

/// `popcnt eax, eax; hlt` at CPL 0. A CPU runs it; KVM-PVM interprets privileged code and does not know it.
fn try_popcnt(kvm: &Kvm) -> Result<KvmKind, (&'static str, errno::Error)> {
    const CODE: [u8; 5] = [0xf3, 0x0f, 0xb8, 0xc0, 0xf4];
    const PAGE: usize = 4096;
    const AT: u64 = 0x1000;
    let step = |what| move |e| (what, e);
    let vm = kvm.create_vm().map_err(step("making a VM"))?;
    let page = MmapRegion::<()>::new(PAGE)
        .map_err(|_| ("mapping a page", errno::Error::new(libc::ENOMEM)))?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: AT,
        memory_size: PAGE as u64,
        userspace_addr: page.as_ptr() as u64,
    };
    // SAFETY: the page is mapped writable and larger than the code; nothing else refers to it yet. It
    // outlives the VM and its vCPU, which are dropped first.
    unsafe {
        std::ptr::copy_nonoverlapping(CODE.as_ptr(), page.as_ptr(), CODE.len());
        vm.set_user_memory_region(region).map_err(step("giving it memory"))?;
    }
    let mut vcpu = vm.create_vcpu(0).map_err(step("making a vCPU"))?;
    let entry = crate::boot::pvh::Entry { entry: crate::Gpa(AT), start_info: crate::Gpa(AT) };
    let sregs = vcpu.get_sregs().map_err(step("reading registers"))?;
    let (regs, sregs) = crate::boot::pvh::registers(entry, sregs);
    vcpu.set_sregs(&sregs).map_err(step("setting registers"))?;
    vcpu.set_regs(&regs).map_err(step("setting registers"))?;
    // An interrupted run says nothing; a signal storm must not hold this up for ever.
    for _ in 0..1000 {
        match vcpu.run() {
            Ok(VcpuExit::Hlt) => return Ok(KvmKind::Hardware),
            Ok(VcpuExit::InternalError) => return Ok(KvmKind::Pvm),
            Err(e) if e.errno() != libc::EINTR => return Err(("running a vCPU", e)),
            _ => {}
        }
    }
    Err(("running a vCPU", errno::Error::new(libc::EINTR)))
}

/// What KVM says after an exit for an internal error.
pub(crate) fn internal_error(vcpu: &mut VcpuFd) -> String {
    let run = vcpu.get_kvm_run();
    // SAFETY: every variant of the union is plain integers, so that each reads as some value; KVM has
    // just filled this one.
    let (internal, failure) =
        unsafe { (run.__bindgen_anon_1.internal, run.__bindgen_anon_1.emulation_failure) };
    if internal.suberror != EMULATION {
        return format!("internal error {}", internal.suberror);
    }
    let mut text = "it cannot emulate the instruction there".to_owned();
    // SAFETY: as above; `insn_bytes` are plain bytes.
    let instruction = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
    let known = failure.ndata >= 1 && failure.flags & 1 != 0;
    let length = usize::from(instruction.insn_size).min(instruction.insn_bytes.len());
    if known && length > 0 {
        text.push_str(" (bytes");
        for byte in &instruction.insn_bytes[..length] {
            // Writing to a String cannot fail.
            let _ = write!(text, " {byte:02x}");
        }
        text.push(')');
    }
    text.push_str("; on KVM-PVM, privileged code may use only basic instructions");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_say_what_to_do() {
        let no = refused(errno::Error::new(libc::EACCES));
        assert!(matches!(no, KvmKind::NoPermission { .. }));
        assert!(no.to_string().contains("add your user to group kvm"));
        assert!(!no.usable());
        assert!(refused(errno::Error::new(libc::ENOENT)).to_string().contains("modprobe"));
    }

    #[test]
    fn this_machine_has_an_answer() {
        let kind = kvm();
        println!("{kind}");
        assert_eq!(kind.usable(), kvm().usable());
    }
}
