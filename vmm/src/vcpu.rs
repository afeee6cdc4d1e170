//! The vCPU: its CPUID, its registers at entry, and the loop that serves what exits.

use crate::boot::pvh;
use crate::devices::exit;
use crate::devices::serial::{self, SerialPort};
use crate::kick::Kickable;
use crate::pci::{Bus, nothing};
use crate::platform::Platform;
use crate::probe::internal_error;
use crate::vm::ExitReason;
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm, VcpuExit, VcpuFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use vmm_sys_util::errno;

/// Keyboard controller command port, and the command that pulses the reset line.
const KEYBOARD: u16 = 0x64;
const KEYBOARD_RESET: u8 = 0xfe;
/// Reset control register, and its bit that resets.
const RESET_CONTROL: u16 = 0xcf9;
const RESET_CPU: u8 = 4;

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
        "the guest stopped by a triple fault at rip {rip:#x}: its exception handlers do not work"
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
    #[error("the vCPU thread cannot start: {0}")]
    Thread(String),
    /// The VMM has a bug.
    #[error("the vCPU thread panicked: this is a bug of the VMM")]
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

/// [`Exits`], as they are counted: one thread writes.
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

/// One more; only the vCPU thread writes, so that no locked instruction is needed.
fn count(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
}

/// Everything that a guest's exits reach. Owned by the vCPU's thread.
pub(crate) struct Machine {
    pub(crate) bus: Bus,
    pub(crate) serial: SerialPort,
    pub(crate) platform: Platform,
    pub(crate) exits: Arc<ExitCounters>,
}

/// Gives `vcpu` the host's CPUID and the registers of a PVH entry.
pub(crate) fn set_up(kvm: &Kvm, vcpu: &VcpuFd, entry: pvh::Entry) -> Result<(), VcpuError> {
    let refused = |what| move |source| VcpuError { what, source };
    let mut cpuid =
        kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(refused("to list the CPUID"))?;
    let deadline_timer = kvm.check_extension(Cap::TscDeadlineTimer);
    adapt_cpuid(&mut cpuid, deadline_timer);
    vcpu.set_cpuid2(&cpuid).map_err(refused("the CPUID"))?;
    let sregs = vcpu.get_sregs().map_err(refused("to read the registers"))?;
    let (regs, sregs) = pvh::registers(entry, sregs);
    vcpu.set_sregs(&sregs).map_err(refused("the special registers"))?;
    vcpu.set_regs(&regs).map_err(refused("the registers"))
}

/// One CPU with APIC ID 0, x2APIC and, where KVM has it, the TSC-deadline timer.
fn adapt_cpuid(cpuid: &mut CpuId, deadline_timer: bool) {
    const X2APIC: u32 = 1 << 21;
    const TSC_DEADLINE: u32 = 1 << 24;
    const HYPERVISOR: u32 = 1 << 31;
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            1 => {
                entry.ecx |= X2APIC | HYPERVISOR;
                if deadline_timer {
                    entry.ecx |= TSC_DEADLINE;
                }
                // APIC ID 0; one logical processor.
                entry.ebx = (entry.ebx & 0xffff) | 1 << 16;
            }
            // Topology: x2APIC ID 0.
            0xb | 0x1f => entry.edx = 0,
            _ => {}
        }
    }
}

/// Runs the guest until it ends or `stop` is set and the thread is kicked.
pub(crate) fn run(vcpu: &mut VcpuFd, machine: &mut Machine, stop: &AtomicBool) -> ExitReason {
    let mut kickable = Kickable::new(vcpu);
    let vcpu = kickable.vcpu();
    loop {
        if stop.load(Ordering::Acquire) {
            return ExitReason::Stopped;
        }
        let ended = match vcpu.run() {
            Ok(VcpuExit::MmioRead(at, data)) => {
                count(&machine.exits.mmio);
                machine.bus.mmio_read(at, data);
                None
            }
            Ok(VcpuExit::MmioWrite(at, data)) => {
                count(&machine.exits.mmio);
                machine.bus.mmio_write(&mut machine.platform, at, data);
                None
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                count(&machine.exits.io);
                machine.io_read(port, data);
                None
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                count(&machine.exits.io);
                machine.io_write(port, data)
            }
            Ok(VcpuExit::SystemEvent(..)) => Some(ExitReason::Shutdown),
            Ok(VcpuExit::Intr | VcpuExit::IoapicEoi(_)) => {
                count(&machine.exits.other);
                None
            }
            Err(e) if e.errno() == libc::EINTR => {
                count(&machine.exits.other);
                // Cleared before `stop` is looked at: a kick in between sets it again.
                vcpu.set_kvm_immediate_exit(0);
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

impl Machine {
    fn io_read(&mut self, port: u16, data: &mut [u8]) {
        match port {
            serial::PORT..=serial::PORT_END => self.serial.read(port, data),
            _ if self.bus.io_read(port, data) => {}
            // The keyboard controller is empty and idle: guests wait for that before they reset.
            KEYBOARD => data.fill(0),
            _ => nothing(data),
        }
    }

    fn io_write(&mut self, port: u16, data: &[u8]) -> Option<ExitReason> {
        match (port, data) {
            (exit::PORT, _) => Some(ExitReason::GuestExit(exit::code(data))),
            (KEYBOARD, [KEYBOARD_RESET, ..]) => Some(ExitReason::Shutdown),
            (RESET_CONTROL, [value]) if value & RESET_CPU != 0 => Some(ExitReason::Shutdown),
            (serial::PORT..=serial::PORT_END, _) => {
                self.serial.write(port, data);
                None
            }
            _ => {
                // Writes to ports where nothing is are dropped.
                let _ = self.bus.io_write(&mut self.platform, port, data);
                None
            }
        }
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
