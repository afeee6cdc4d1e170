//! A guest's life.
//!
//! ```text
//!  Vm::new        start                    guest ends, fails, or stop
//!  ───────► Built ─────► Starting ─► Running ───────────────────────► Ended(ExitReason)
//! ```
//!
//! `Built` is [`Vm`], the rest [`VmHandle`]. The vCPU's thread owns all devices; the handle shares with it
//! only the state, a flag and counters.

use crate::Gpa;
use crate::boot::pvh::{self, BootError};
use crate::clock;
use crate::config::{Config, Device, Vcpus};
use crate::devices::serial::{self, Console, LogConsole, SerialPort};
use crate::devices::virtio;
use crate::interrupt::Gsi;
use crate::kick::{self, Thread};
use crate::memory::{GuestRam, MemoryError};
use crate::passthrough::connect::{ConnectError, Cutter, connect};
use crate::passthrough::vfio_user::{AttachError, VfioUser};
use crate::pci::bus::BusError;
use crate::pci::{Bus, PciFunction};
use crate::platform::{Platform, PlatformError};
use crate::probe::{self, KvmKind};
use crate::turn;
use crate::vcpu::{self, ExitCounters, Exits, GuestError, Machine, VcpuError};
use kvm_ioctls::VcpuFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use vmm_sys_util::errno;

/// Three pages that Intel's KVM needs somewhere, outside RAM and the PCI window.
const TSS: usize = 0xfffb_d000;
/// How long a stopped guest's thread may take before its functions are cut off.
const PATIENCE: Duration = Duration::from_secs(1);

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
    /// KVM's slots and interrupts.
    #[error(transparent)]
    Platform(#[from] PlatformError),
    /// The vCPU.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
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
    /// It shut down or reset itself.
    Shutdown,
    /// It failed.
    Error(GuestError),
    /// [`VmHandle::stop`].
    Stopped,
}

impl std::fmt::Display for ExitReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::GuestExit(code) => write!(f, "the guest ended with code {code}"),
            Self::Shutdown => f.write_str("the guest shut down"),
            Self::Error(e) => e.fmt(f),
            Self::Stopped => f.write_str("the guest was stopped"),
        }
    }
}

/// A guest that is built and has not run.
pub struct Vm {
    name: String,
    vcpus: Vcpus,
    vcpu: VcpuFd,
    machine: Machine,
    cutters: Vec<Cutter>,
    controls: Vec<(usize, virtio::Control)>,
    /// RAM outlives everything that refers to it.
    ram: GuestRam,
}

impl Vm {
    /// Builds the guest: RAM, image, vCPU, functions. Its output is logged.
    pub fn new(config: Config) -> Result<Self, VmError> {
        Self::with_console(config, Box::new(LogConsole))
    }

    /// Builds the guest; its output goes to `console`.
    pub fn with_console(mut config: Config, console: Box<dyn Console>) -> Result<Self, VmError> {
        let devices = std::mem::take(&mut config.devices);
        let mut builder = Builder::new(config, console)?;
        for (index, device) in devices.iter().enumerate() {
            let Device::VfioUser(device) = device else {
                builder.attach_own(index, device)?;
                continue;
            };
            let (client, cutter) = connect(&device.socket, device.timeout)?;
            let label = device
                .socket
                .file_name()
                .map_or_else(|| "vfio-user".to_owned(), |n| n.to_string_lossy().into_owned());
            builder.attach(label, Box::new(client), cutter)?;
        }
        builder.finish()
    }

    /// Runs the guest on a thread of its own.
    pub fn start(self) -> Result<VmHandle, VmError> {
        kick::install().map_err(|source| VmError::Refused { what: "the vCPU's signal", source })?;
        let shared = Arc::new(Shared::default());
        let exits = Arc::clone(&self.machine.exits);
        let Self { name, vcpus, mut vcpu, mut machine, cutters, controls, ram } = self;
        let thread_shared = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name(format!("vcpu0/{name}"))
            .spawn(move || {
                let end = EndGuard(&thread_shared);
                let reason = match turn::place(&vcpus) {
                    Ok(()) => {
                        thread_shared.set(State::Running(Thread::current()));
                        vcpu::run(&mut vcpu, &mut machine, &thread_shared.stop)
                    }
                    Err(e) => ExitReason::Error(e),
                };
                drop((vcpu, machine, ram));
                end.with(reason);
            })
            .map_err(|source| VmError::Os { what: "the vCPU's thread", source })?;
        Ok(VmHandle { shared, exits, cutters, controls, thread: Some(thread) })
    }
}

/// A guest under construction.
struct Builder {
    name: String,
    vcpus: Vcpus,
    ram: GuestRam,
    vcpu: VcpuFd,
    machine: Machine,
    cutters: Vec<Cutter>,
    controls: Vec<(usize, virtio::Control)>,
    tsc: clock::TscOffset,
}

impl Builder {
    fn new(config: Config, console: Box<dyn Console>) -> Result<Self, VmError> {
        let refused = |what| move |source| VmError::Refused { what, source };
        let kvm = probe::open().map_err(VmError::Kvm)?;
        let vm = kvm.create_vm().map_err(refused("a virtual machine"))?;
        vm.set_tss_address(TSS).map_err(refused("the TSS address"))?;
        vm.create_irq_chip().map_err(refused("the interrupt controllers"))?;
        let ram = GuestRam::new(config.memory.size)?;
        let entry = pvh::load(&ram, &config.guest.image, &config.guest.cmdline)?;
        let vcpu = vm.create_vcpu(0).map_err(refused("a vCPU"))?;
        vcpu::set_up(&kvm, &vcpu, entry)?;
        let mut platform = Platform::new(vm);
        // The slot stays for the VM's life.
        let _ = platform.add_memory(Gpa(0), ram.region(), false)?;
        let serial = SerialPort::new(&config.guest.name, console)
            .map_err(|source| VmError::Os { what: "the serial port", source })?;
        platform.attach_irqfd(serial.interrupt(), Gsi::pin(serial::IRQ))?;
        let tsc = clock::tsc_offset(&vcpu);
        let exits = Arc::new(ExitCounters::default());
        Ok(Self {
            name: config.guest.name,
            vcpus: config.vcpus,
            ram,
            vcpu,
            machine: Machine { bus: Bus::default(), serial, platform, exits },
            cutters: Vec::new(),
            controls: Vec::new(),
            tsc,
        })
    }

    fn attach(
        &mut self,
        label: String,
        link: Box<dyn crate::passthrough::link::Link>,
        cutter: Cutter,
    ) -> Result<(), VmError> {
        let function = VfioUser::attach(label, link, &self.ram, self.tsc)?;
        tracing::debug!("{}: attached", function.label());
        self.machine.bus.add(Box::new(function))?;
        self.cutters.push(cutter);
        Ok(())
    }

    /// A device that this process serves itself.
    fn attach_own(&mut self, index: usize, device: &Device) -> Result<(), VmError> {
        let memory = Arc::new(self.ram.memory().clone());
        if let Some(built) = virtio::build(&self.name, index, device, &memory)? {
            tracing::debug!("{}: attached", built.function.label());
            self.machine.bus.add(Box::new(built.function))?;
            self.controls.extend(built.control.map(|control| (index, control)));
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Vm, VmError> {
        self.machine.bus.place_bars()?;
        let Self { name, vcpus, ram, vcpu, machine, cutters, controls, .. } = self;
        Ok(Vm { name, vcpus, vcpu, machine, cutters, controls, ram })
    }
}

/// Where a started guest is.
#[derive(Debug, Default)]
enum State {
    #[default]
    Starting,
    /// The thread has not ended: it can be kicked.
    Running(Thread),
    Ended(ExitReason),
}

/// What handle and thread share.
#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    stop: AtomicBool,
}

impl Shared {
    /// The state is replaced whole: a panic elsewhere leaves it sound.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, state: State) {
        *self.state() = state;
        self.changed.notify_all();
    }

    /// Waits for the end, at most for `limit`.
    fn wait(&self, limit: Option<Duration>) -> Option<ExitReason> {
        let running = |s: &mut State| !matches!(s, State::Ended(_));
        let state = match limit {
            None => self
                .changed
                .wait_while(self.state(), running)
                .unwrap_or_else(PoisonError::into_inner),
            Some(limit) => {
                self.changed
                    .wait_timeout_while(self.state(), limit, running)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            }
        };
        match &*state {
            State::Ended(reason) => Some(reason.clone()),
            _ => None,
        }
    }
}

/// Whatever ends the thread, the state says so.
struct EndGuard<'a>(&'a Shared);

impl EndGuard<'_> {
    fn with(self, reason: ExitReason) {
        self.0.set(State::Ended(reason));
    }
}

impl Drop for EndGuard<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        if !matches!(*state, State::Ended(_)) {
            *state = State::Ended(ExitReason::Error(GuestError::Panicked));
            self.0.changed.notify_all();
        }
    }
}

/// A guest that was started. Dropping the handle stops the guest.
pub struct VmHandle {
    shared: Arc<Shared>,
    exits: Arc<ExitCounters>,
    cutters: Vec<Cutter>,
    controls: Vec<(usize, virtio::Control)>,
    thread: Option<JoinHandle<()>>,
}

impl VmHandle {
    /// Waits until the guest has ended.
    pub fn wait(&self) -> ExitReason {
        // Without a limit, only the end ends the wait.
        self.shared.wait(None).unwrap_or(ExitReason::Stopped)
    }

    /// Waits until the guest has ended, at most for `limit`; `None`: it has not.
    pub fn wait_timeout(&self, limit: Duration) -> Option<ExitReason> {
        self.shared.wait(Some(limit))
    }

    /// Asks the guest's thread to stop and returns at once. Any thread may call it, any number of times.
    pub fn request_stop(&self) {
        self.shared.stop.store(true, Ordering::Release);
        // While the lock is held the thread cannot end, so that its number is its own.
        if let State::Running(thread) = &*self.shared.state() {
            thread.kick();
        }
    }

    /// Stops the guest, if it has not ended, and waits for its thread.
    pub fn stop(&self) -> ExitReason {
        self.request_stop();
        self.shared.wait(Some(PATIENCE)).unwrap_or_else(|| {
            // The vCPU waits for a server that does not answer.
            self.cutters.iter().for_each(Cutter::cut);
            self.wait()
        })
    }

    /// What can be done with device number `index` of the configuration while the guest runs.
    pub fn control(&self, index: usize) -> Option<&virtio::Control> {
        self.controls.iter().find(|(i, _)| *i == index).map(|(_, control)| control)
    }

    /// How often the guest exited to this process so far.
    pub fn exits(&self) -> Exits {
        self.exits.read()
    }
}

impl Drop for VmHandle {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
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
        let mut builder = Builder::new(config, console)?;
        builder.attach("test".into(), link, cutter)?;
        builder.finish()
    }

    /// The machine, to be used without running the guest.
    pub(crate) fn machine(&mut self) -> &mut Machine {
        &mut self.machine
    }
}
