//! A guest's life.
//!
//! ```text
//!  Vm::new        start                    guest ends, fails, or stop
//!  ───────► Built ─────► Running ───────────────────────► Ended(ExitReason)
//! ```
//!
//! `Built` is [`Vm`], the rest [`VmHandle`]. The vCPUs' threads own the machine; the handle shares with them
//! their state, a flag and counters, and reaches the machine only for as long as they run it.

mod build;

use crate::acpi::AcpiError;
use crate::boot::BootError;
use crate::config::{Config, Device, Vcpus};
use crate::control::GuestControl;
use crate::devices::flash::FlashError;
use crate::devices::serial::{Console, LogConsole};
use crate::devices::tpm::TpmError;
use crate::devices::virtio;
use crate::hotplug::{self, Ports};
use crate::hyperv::HypervError;
use crate::interrupt::posted::Source;
use crate::interrupt::stats::{StatsError, VmStats};
use crate::interrupt::watch::{Report, TimingView, Watch};
use crate::kick;
use crate::life::{Life, Seated};
#[cfg(test)]
use crate::machine::Machine;
use crate::machine::SharedMachine;
use crate::memory::{Filled, MemoryError};
use crate::passthrough::connect::{ConnectError, Cutter, connect};
use crate::passthrough::vfio_user::AttachError;
use crate::pci::bus::BusError;
use crate::platform::PlatformError;
use crate::probe::KvmKind;
use crate::turn::{self, TurnError};
use crate::vcpu::{self, ExitCounters, GuestError, VcpuError};
use build::Builder;
use kvm_ioctls::VcpuFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use vmm_sys_util::errno;

/// Why a guest cannot be built or started.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// KVM is not usable.
    #[error("{0}")]
    Kvm(KvmKind),
    /// KVM refused something.
    #[error("KVM refused {what}")]
    Refused {
        /// What.
        what: &'static str,
        /// Why.
        source: errno::Error,
    },
    /// RAM.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The image.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The firmware's flash.
    #[error(transparent)]
    Flash(#[from] FlashError),
    /// The ACPI tables.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// KVM's slots and interrupts.
    #[error(transparent)]
    Platform(#[from] PlatformError),
    /// The vCPU.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// How soon the vCPUs get their turn.
    #[error(transparent)]
    Turn(#[from] TurnError),
    /// The interface of Microsoft's hypervisor.
    #[error(transparent)]
    Hyperv(#[from] HypervError),
    /// A function's server.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A function.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// A device of our own.
    #[error(transparent)]
    Device(#[from] virtio::BuildError),
    /// The bus.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The TPM.
    #[error(transparent)]
    Tpm(#[from] TpmError),
    /// The tables tell of another IOMMU than the bus has.
    #[error(
        "the IOMMU in slot {slot}, with endpoints {behind:?} behind it, is not where the guest was told: \
         this is a mistake of the VMM's"
    )]
    Misplaced {
        /// Where it is.
        slot: usize,
        /// What is behind it.
        behind: Vec<u32>,
    },
    /// The operating system.
    #[error("cannot make {what}")]
    Os {
        /// What.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
}

/// How a guest ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExitReason {
    /// It wrote this code to the exit port.
    GuestExit(u32),
    /// It switched off.
    Shutdown,
    /// It reset itself.
    Reset,
    /// It failed.
    Error(GuestError),
    /// [`GuestControl::stop`].
    Stopped,
}

impl std::fmt::Display for ExitReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::GuestExit(code) => write!(f, "the guest ended with code {code}"),
            Self::Shutdown => f.write_str("the guest shut down"),
            Self::Reset => f.write_str("the guest reset itself"),
            Self::Error(e) => e.fmt(f),
            Self::Stopped => f.write_str("the guest was stopped"),
        }
    }
}

/// A guest that is built and has not run.
pub struct Vm {
    name: String,
    placement: Vcpus,
    vcpus: Vec<VcpuFd>,
    machine: SharedMachine,
    cutters: Vec<Cutter>,
    holds: Vec<(usize, virtio::Hold)>,
    stats: Result<VmStats, StatsError>,
    ports: Ports,
    pages: Vec<TimingView>,
    sources: Vec<(String, Source)>,
}

impl Vm {
    /// Builds the guest: RAM, image, vCPUs, functions. Its output is logged.
    pub fn new(config: Config) -> Result<Self, VmError> {
        Self::with_console(config, Box::new(LogConsole))
    }

    /// Builds the guest; its output goes to `console`.
    pub fn with_console(config: Config, console: Box<dyn Console>) -> Result<Self, VmError> {
        Self::with_progress(config, console, &mut |_| true)
    }

    /// As [`Self::with_console`]. Where the RAM is filled, `go_on` is told ten times a second how far that is, and ends
    /// it by `false`; it is told of nothing to fill while a TPM is waited for.
    pub fn with_progress(
        config: Config,
        console: Box<dyn Console>,
        go_on: &mut dyn FnMut(Filled) -> bool,
    ) -> Result<Self, VmError> {
        let (devices, ports) = (config.devices.clone(), config.ports.clone());
        let mut builder = Builder::new(config, console, go_on)?;
        for (index, device) in devices.iter().enumerate() {
            let Device::VfioUser(device) = device else {
                builder.attach_own(index, device)?;
                continue;
            };
            let (client, cutter) = connect(&device.socket, device.timeout)?;
            builder.attach(hotplug::label(&device.socket), Box::new(client), cutter)?;
        }
        builder.attach_ports(devices.len(), &ports)?;
        builder.finish()
    }

    /// The guest's functions, and who raises the interrupts of each.
    pub fn interrupt_sources(&self) -> &[(String, Source)] {
        &self.sources
    }

    /// Runs the guest, each vCPU on a thread of its own.
    pub fn start(self) -> Result<VmHandle, VmError> {
        kick::install().map_err(|source| VmError::Refused { what: "the vCPUs' signal", source })?;
        let Self { name, placement, vcpus, machine, cutters, holds, stats, .. } = self;
        let (ports, pages) = (self.ports, self.pages);
        let life = Arc::new(Life::new(vcpus.len()));
        let machine = Arc::new(machine);
        let exits: Vec<_> = vcpus.iter().map(|_| Arc::new(ExitCounters::default())).collect();
        let guest = GuestControl::new(
            Arc::clone(&life),
            Arc::downgrade(&machine),
            exits.clone(),
            cutters,
            holds,
            ports,
        );
        let mut handle = VmHandle {
            guest,
            threads: Vec::with_capacity(vcpus.len()),
            watch: Watch::start(stats, pages),
        };
        for (index, (vcpu, exits)) in vcpus.into_iter().zip(exits).enumerate() {
            let held = Held { vcpu, machine: Arc::clone(&machine), exits };
            let (own, placement) = (Arc::clone(&life), placement.clone());
            let thread = std::thread::Builder::new()
                .name(format!("vcpu{index}/{name}"))
                .spawn(move || run_vcpu(&own, &placement, index, held));
            match thread {
                Ok(thread) => handle.threads.push(thread),
                Err(source) => {
                    // Dropping the handle stops the others.
                    life.abandon(index);
                    return Err(VmError::Os { what: "a vCPU's thread", source });
                }
            }
        }
        Ok(handle)
    }
}

/// What a vCPU's thread holds.
struct Held {
    vcpu: VcpuFd,
    machine: Arc<SharedMachine>,
    exits: Arc<ExitCounters>,
}

/// A vCPU's thread.
fn run_vcpu(life: &Life, placement: &Vcpus, index: usize, held: Held) {
    let mut seated = Seated::new(life, index);
    // Dropped before the thread has left: the last one to leave drops the machine.
    let mut held = held;
    let reason = match turn::place(placement, index as u32) {
        Ok(()) => vcpu::run(&mut held.vcpu, &held.machine, &held.exits, life),
        Err(e) => ExitReason::Error(e),
    };
    seated.ends(reason);
}

/// A guest that was started. Dropping the handle stops the guest.
pub struct VmHandle {
    guest: GuestControl,
    threads: Vec<JoinHandle<()>>,
    watch: Watch,
}

impl VmHandle {
    /// A second hold on the guest, which any thread may have. It does not keep the guest alive.
    pub fn guest(&self) -> GuestControl {
        self.guest.clone()
    }

    /// Looks at KVM's counters and at the vblanks that came. Call it several times a second for as long as the
    /// guest runs: what came between two calls is told apart only by them.
    pub fn sample_interrupts(&self) {
        self.watch.sample();
    }

    /// What the guest's interrupts have cost, up to the latest [`Self::sample_interrupts`].
    pub fn interrupts(&self) -> Report {
        self.watch.report()
    }
}

impl std::ops::Deref for VmHandle {
    type Target = GuestControl;

    fn deref(&self) -> &GuestControl {
        &self.guest
    }
}

impl Drop for VmHandle {
    fn drop(&mut self) {
        self.stop();
        for thread in self.threads.drain(..) {
            // It has set its end; a panic was reported by that.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
impl Vm {
    /// Builds a guest with the function behind `link`.
    pub(crate) fn with_link(
        config: Config,
        console: Box<dyn Console>,
        link: Box<dyn crate::passthrough::link::Link>,
        cutter: Cutter,
    ) -> Result<Self, VmError> {
        let mut builder = Builder::new(config, console, &mut |_| true)?;
        builder.attach("test".into(), link, cutter)?;
        builder.finish()
    }

    /// The machine, to be used without running the guest.
    pub(crate) fn machine(&mut self) -> &mut Machine {
        self.machine.get_mut()
    }
}
