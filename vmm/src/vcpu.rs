//! A vCPU: its registers at entry, and the loop that serves what exits.
//!
//! The guest's `hlt` never exits: KVM's local APIC is in the kernel, and so is the wait for an interrupt.
//! A vCPU other than the first waits there, too, for the INIT and SIPI that start it.

use crate::boot::Start;
use crate::cpuid;
use crate::kick::Kickable;
use crate::life::{Life, Next};
use crate::machine::SharedMachine;
use crate::probe::internal_error;
use crate::topology::Seat;
use crate::vm::ExitReason;
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_msr_entry};
use kvm_ioctls::{Cap, Kvm, VcpuExit, VcpuFd};
use std::sync::atomic::{AtomicU64, Ordering};
use vmm_sys_util::errno;

/// Model-specific registers that a kernel expects firmware to have set up (Intel SDM, volume 4): fast string
/// operations on; memory is write-back where no range says otherwise, which keeps the PAT in use.
const MSRS: [(u32, u64); 2] = [(0x1a0, 1), (0x2ff, 1 << 11 | 6)];

/// Why a vCPU could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("KVM refused {what} of the vCPU")]
pub struct VcpuError {
    what: &'static str,
    source: errno::Error,
}

/// What ended a guest against its will.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GuestError {
    /// It faulted while it handled a fault's fault.
    #[error(
        "the guest stopped by a triple fault at rip {rip:#x}: its exception handlers do not work, which is the guest's own \
         mistake, or its image is not made for this machine (docs/vmm.md says how it is entered)"
    )]
    TripleFault {
        /// Where.
        rip: u64,
    },
    /// KVM could not go on.
    #[error("KVM stopped the guest at rip {rip:#x}: {what}")]
    Internal {
        /// Where.
        rip: u64,
        /// What KVM says.
        what: String,
    },
    /// The CPU refused the guest's state.
    #[error("the CPU refused to enter the guest at rip {rip:#x}: hardware reason {reason:#x}")]
    Entry {
        /// Where.
        rip: u64,
        /// The hardware's reason.
        reason: u64,
    },
    /// An exit that this VMM does not serve.
    #[error("the guest stopped at rip {rip:#x} with an exit that is not served: {exit}")]
    Exit {
        /// Where.
        rip: u64,
        /// Which.
        exit: String,
    },
    /// `KVM_RUN` failed.
    #[error("KVM_RUN failed at rip {rip:#x}: {why}")]
    Run {
        /// Where.
        rip: u64,
        /// Why.
        why: String,
    },
    /// The thread could not be set up.
    #[error("a vCPU's thread cannot start: {0}")]
    Thread(String),
    /// The VMM has a bug.
    #[error("a vCPU's thread panicked: this is a bug of the VMM")]
    Panicked,
}

/// How often the guest exited to this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exits {
    /// Port accesses.
    pub io: u64,
    /// Accesses to guest-physical memory that is not RAM.
    pub mmio: u64,
    /// Signals and all others.
    pub other: u64,
}

impl std::ops::Add for Exits {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            io: self.io.wrapping_add(other.io),
            mmio: self.mmio.wrapping_add(other.mmio),
            other: self.other.wrapping_add(other.other),
        }
    }
}

/// [`Exits`] of one vCPU, as they are counted: its thread writes.
#[derive(Debug, Default)]
pub(crate) struct ExitCounters {
    io: AtomicU64,
    mmio: AtomicU64,
    other: AtomicU64,
}

impl ExitCounters {
    pub(crate) fn read(&self) -> Exits {
        Exits {
            io: self.io.load(Ordering::Relaxed),
            mmio: self.mmio.load(Ordering::Relaxed),
            other: self.other.load(Ordering::Relaxed),
        }
    }
}

/// One more; only the vCPU's thread writes, so that no locked instruction is needed.
fn count(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
}

/// The host's CPUID, and whether KVM has the TSC-deadline timer.
pub(crate) fn host_cpuid(kvm: &Kvm) -> Result<(CpuId, bool), VcpuError> {
    let host = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(|source| VcpuError { what: "to list the CPUID", source })?;
    Ok((host, kvm.check_extension(Cap::TscDeadlineTimer)))
}

/// Gives the vCPU at `seat` the CPUID of [`host_cpuid`], with `others` in the place of KVM's own leaves where there are
/// any, and, where it is the first, the registers at entry.
pub(crate) fn set_up(
    (host, deadline_timer): &(CpuId, bool),
    others: &[kvm_cpuid_entry2],
    vcpu: &VcpuFd,
    seat: Seat,
    start: Start,
) -> Result<(), VcpuError> {
    let refused = |what| move |source| VcpuError { what, source };
    let entries = cpuid::adapt(host, others, seat, *deadline_timer);
    // The list is as long as KVM's own, and ten longer at most.
    let cpuid = CpuId::from_entries(&entries)
        .map_err(|_| refused("the CPUID")(errno::Error::new(libc::E2BIG)))?;
    vcpu.set_cpuid2(&cpuid).map_err(refused("the CPUID"))?;
    if start != Start::Reset {
        set_msrs(vcpu);
    }
    if seat.index > 0 {
        // It waits for its SIPI, as KVM made it.
        return Ok(());
    }
    let sregs = vcpu.get_sregs().map_err(refused("to read the registers"))?;
    let (regs, sregs) = start.registers(sregs);
    vcpu.set_sregs(&sregs).map_err(refused("the special registers"))?;
    vcpu.set_regs(&regs).map_err(refused("the registers"))
}

/// Where KVM does not know a register, the guest does without.
fn set_msrs(vcpu: &VcpuFd) {
    for (index, data) in MSRS {
        let entry = kvm_msr_entry { index, data, ..Default::default() };
        let set = Msrs::from_entries(&[entry]).is_ok_and(|m| matches!(vcpu.set_msrs(&m), Ok(1)));
        if !set {
            tracing::debug!("KVM does not set the guest's MSR {index:#x}");
        }
    }
}

/// Runs a vCPU until the guest ends, which `life` may ask for; waits while it is paused. The machine is locked
/// for as long as an exit is served.
pub(crate) fn run(
    vcpu: &mut VcpuFd,
    machine: &SharedMachine,
    exits: &ExitCounters,
    life: &Life,
) -> ExitReason {
    let mut kickable = Kickable::new(vcpu);
    let vcpu = kickable.vcpu();
    loop {
        match life.next() {
            Next::Run => {}
            Next::Resume => tell_of_pause(vcpu),
            Next::Stop => return ExitReason::Stopped,
        }
        let ended = match vcpu.run() {
            Ok(VcpuExit::MmioRead(at, data)) => {
                count(&exits.mmio);
                machine.lock().mmio_read(at, data);
                None
            }
            Ok(VcpuExit::MmioWrite(at, data)) => {
                count(&exits.mmio);
                machine.lock().mmio_write(at, data);
                None
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                count(&exits.io);
                machine.lock().io_read(port, data);
                None
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                count(&exits.io);
                machine.lock().io_write(port, data)
            }
            Ok(VcpuExit::SystemEvent(..)) => Some(ExitReason::Shutdown),
            // KVM tells of the guest's pages of synthetic interrupts, which it serves itself.
            Ok(VcpuExit::Intr | VcpuExit::IoapicEoi(_) | VcpuExit::Hyperv) => {
                count(&exits.other);
                None
            }
            Err(e) if e.errno() == libc::EINTR => {
                count(&exits.other);
                // Cleared before `life` is asked: a kick in between sets it again.
                vcpu.set_kvm_immediate_exit(0);
                None
            }
            // A vCPU that waited for its SIPI was woken.
            Err(e) if e.errno() == libc::EAGAIN => {
                count(&exits.other);
                None
            }
            other => {
                let end = End::of(other);
                return ExitReason::Error(end.explain(vcpu));
            }
        };
        if let Some(reason) = ended {
            return reason;
        }
    }
}

/// A guest that reads KVM's clock learns that it was paused, so that its watchdogs do not take the pause for a
/// hang (Linux, Documentation/virt/kvm/api.rst, 4.74). KVM refuses where the guest does not read that clock.
fn tell_of_pause(vcpu: &VcpuFd) {
    if let Err(e) = vcpu.kvmclock_ctrl() {
        tracing::debug!("the guest is not told that it was paused: {e}");
    }
}

/// An exit that ends the guest, copied out of the vCPU's page.
enum End {
    TripleFault,
    Internal,
    Entry(u64),
    Run(errno::Error),
    Other(String),
}

impl End {
    fn of(exit: Result<VcpuExit<'_>, errno::Error>) -> Self {
        match exit {
            Ok(VcpuExit::Shutdown) => Self::TripleFault,
            Ok(VcpuExit::InternalError) => Self::Internal,
            Ok(VcpuExit::FailEntry(reason, _)) => Self::Entry(reason),
            Ok(other) => Self::Other(format!("{other:?}")),
            Err(e) => Self::Run(e),
        }
    }

    fn explain(self, vcpu: &mut VcpuFd) -> GuestError {
        let rip = vcpu.get_regs().map_or(0, |r| r.rip);
        match self {
            Self::TripleFault => GuestError::TripleFault { rip },
            Self::Internal => GuestError::Internal { rip, what: internal_error(vcpu) },
            Self::Entry(reason) => GuestError::Entry { rip, reason },
            Self::Run(e) => GuestError::Run { rip, why: e.to_string() },
            Self::Other(exit) => GuestError::Exit { rip, exit },
        }
    }
}
