//! How a guest is built: RAM and what it boots, vCPUs, functions, and the machine of all that.

use super::{Vm, VmError};
use crate::acpi::{self, Board, Domain, Translation};
use crate::boot::firmware::Firmware;
use crate::boot::{self, Start, Told};
use crate::clock;
use crate::config::{self, Boot, Config, Device, Node, Vcpus};
use crate::devices::serial::{self, Console, SerialPort};
use crate::devices::tpm::Tpm;
use crate::devices::virtio::iommu::{Iommu, Views};
use crate::devices::virtio::{self, Transport};
use crate::hotplug::{self, Ports};
use crate::hyperv;
use crate::interrupt::Gsi;
use crate::interrupt::posted::Source;
use crate::interrupt::stats::VmStats;
use crate::interrupt::watch::TimingView;
use crate::machine::{Machine, SharedMachine};
use crate::memory::{DirtyLog, Filled, GuestRam};
use crate::passthrough::connect::Cutter;
use crate::passthrough::vfio_user::VfioUser;
use crate::pci::chipset::Kind;
use crate::pci::layout::Windows;
use crate::pci::{Bus, PciFunction, Wiring};
use crate::platform::{self, Platform};
use crate::probe;
use crate::topology::{self, Seat};
use crate::turn;
use crate::vcpu;
use kvm_bindings::{KVM_CAP_HALT_POLL, KVM_PIT_SPEAKER_DUMMY, kvm_enable_cap, kvm_pit_config};
use kvm_ioctls::VcpuFd;
use std::sync::Arc;
use vmm_sys_util::errno;

/// A page and three pages that Intel's KVM needs somewhere, outside RAM, the PCI window and firmware's flash.
const IDENTITY_MAP: u64 = 0xfeff_c000;
const TSS: usize = IDENTITY_MAP as usize + 0x1000;

/// How a guest starts, and what its machine is like for that.
struct Loaded {
    start: Start,
    kind: Kind,
    board: Board,
    firmware: Option<Firmware>,
}

/// Loads what the guest boots; `board` makes its machine from where BARs may be.
fn load(
    ram: &GuestRam,
    boot: &Boot,
    ports: usize,
    board: impl FnOnce(Windows) -> Board,
) -> Result<Loaded, VmError> {
    match boot {
        Boot::Image(image) => {
            let windows = Windows::beside(ram.end()).with_ports(ports);
            let board = board(windows);
            let told = Told { rsdp: Some(acpi::write(ram, &board)?), windows };
            let start = boot::load(ram, image, told)?;
            Ok(Loaded { start, kind: Kind::Plain, board, firmware: None })
        }
        Boot::Firmware(files) => {
            let board = board(Windows::of_firmware(ram.low_end(), ram.end()));
            let firmware = Some(boot::firmware::load(ram, files, &board)?);
            Ok(Loaded { start: Start::Reset, kind: Kind::Q35, board, firmware })
        }
    }
}

/// The APIC ID at `seat`: the configuration has refused those beyond 8 bits.
fn apic_id(seat: &Seat) -> u8 {
    seat.apic_id as u8
}

/// What the guest is told of its nodes.
fn domains(nodes: &[Node], ram: &GuestRam, seats: &[Seat]) -> Vec<Domain> {
    let mut from = 0;
    let mut domain = |node: &Node| {
        let memory = ram.cut(from, node.memory).map(|(part, _)| part).collect();
        from += node.memory;
        let own = seats.iter().filter(|seat| node.vcpus.contains(&seat.index));
        let distances = node.distances.clone();
        Domain { apic_ids: own.map(apic_id).collect(), memory, distances }
    };
    nodes.iter().map(&mut domain).collect()
}

/// A guest under construction.
pub(super) struct Builder {
    name: String,
    placement: Vcpus,
    ram: GuestRam,
    firmware: Option<Firmware>,
    tpm: Option<Tpm>,
    vcpus: Vec<VcpuFd>,
    bus: Bus,
    serial: SerialPort,
    platform: Platform,
    log: DirtyLog,
    cutters: Vec<Cutter>,
    holds: Vec<(usize, virtio::Hold)>,
    ports: Ports,
    windows: Windows,
    tsc: clock::TscOffset,
    /// The IOMMU, where there is one, and what is behind it so far.
    iommu: Option<(Translation, Views)>,
    pages: Vec<TimingView>,
    sources: Vec<(String, Source)>,
}

/// The IOMMU that the configuration asks for: it comes behind all devices and root ports, of which those are behind it that
/// other processes serve. The others keep to guest-physical addresses.
fn translation(config: &Config) -> Option<Translation> {
    let slots = (1u8..).zip(&config.devices);
    config.iommu.enabled.then(|| Translation {
        slot: (config.devices.len() + config.ports.len()) as u8 + 1,
        behind: slots.filter(|(_, d)| matches!(d, Device::VfioUser(_))).map(|(s, _)| s).collect(),
    })
}

impl Builder {
    pub(super) fn new(
        config: Config,
        console: Box<dyn Console>,
        go_on: &mut dyn FnMut(Filled) -> bool,
    ) -> Result<Self, VmError> {
        let refused = |what| move |source| VmError::Refused { what, source };
        let iommu = translation(&config);
        let Config { guest, memory, vcpus: placement, nodes, ports, tpm, .. } = config;
        turn::check(&placement)?;
        let kvm = probe::open().map_err(VmError::Kvm)?;
        // There is no RAM to fill yet.
        let mut waits = || go_on(Filled { done: 0, all: 0 });
        let tpm = tpm.map(|tpm| Tpm::connect(&guest.name, &tpm.socket, &mut waits)).transpose()?;
        let vm = kvm.create_vm().map_err(refused("a virtual machine"))?;
        vm.set_identity_map_address(IDENTITY_MAP).map_err(refused("the identity map's address"))?;
        vm.set_tss_address(TSS).map_err(refused("the TSS address"))?;
        vm.create_irq_chip().map_err(refused("the interrupt controllers"))?;
        // Port 0x61 is KVM's, too: kernels measure time by it.
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        vm.create_pit2(pit).map_err(refused("the timer"))?;
        if let Err(e) = platform::drop_late_ticks(&vm) {
            tracing::debug!("KVM's timer raises late ticks, and AVIC stays off: {e}");
        }
        if let Some(limit) = placement.halt_poll_us {
            halt_poll(&vm, limit).map_err(refused("vcpus.halt_poll_us (KVM_CAP_HALT_POLL)"))?;
        }
        let ram = GuestRam::build(&memory, &nodes, go_on)?;
        let seats = topology::seats(placement.count, &nodes);
        let board = |windows| Board {
            apic_ids: seats.iter().map(apic_id).collect(),
            windows,
            iommu,
            tpm: tpm.is_some(),
            domains: domains(&nodes, &ram, &seats),
        };
        let Loaded { start, kind, board, firmware } = load(&ram, &guest.boot, ports.len(), board)?;
        let host = vcpu::host_cpuid(&kvm)?;
        let mut vcpus = Vec::new();
        for seat in seats {
            // What KVM calls a vCPU's number is its APIC ID.
            let vcpu = vm.create_vcpu(u64::from(seat.apic_id)).map_err(refused("a vCPU"))?;
            let others = if placement.hyperv { hyperv::turn_on(&kvm, &vcpu)? } else { Vec::new() };
            vcpu::set_up(&host, &others, &vcpu, seat, start)?;
            if let Some(offset) = placement.tsc_offset {
                clock::set_tsc_offset(&vcpu, clock::TscOffset(offset as u64)).map_err(refused(
                    "vcpus.tsc_offset (it takes hardware virtualisation and Linux 5.16; without them leave the key out)",
                ))?;
            }
            vcpus.push(vcpu);
        }
        let mut platform = Platform::new(vm);
        platform.wire_pins()?;
        // These slots stay for the VM's life.
        let mut slots = Vec::new();
        for (part, (at, region)) in ram.parts().zip(ram.regions()) {
            slots.push((part, platform.add_memory(at, region, false)?));
        }
        for (at, region) in firmware.iter().flat_map(|f| f.flash.regions()) {
            // So does this one, which the guest does not write itself.
            let _ = platform.add_memory(at, region, true)?;
        }
        let serial = SerialPort::new(&guest.name, console)
            .map_err(|source| VmError::Os { what: "the serial port", source })?;
        platform.attach_irqfd(serial.interrupt(), Gsi::pin(serial::IRQ))?;
        // KVM keeps the vCPUs' counters together.
        let tsc = vcpus.first().map_or_else(Default::default, clock::tsc_offset);
        let (label, clock::TscOffset(offset)) = (&guest.name, tsc);
        tracing::info!("{label}: the guest's TSC is the host's plus {}", offset as i64);
        let bus = Bus::new(kind, board.windows);
        let ports = Ports::new(ram.share(), tsc);
        let (name, cutters, holds) = (guest.name, Vec::new(), Vec::new());
        let (pages, sources) = (Vec::new(), Vec::new());
        Ok(Self {
            name,
            placement,
            ram,
            firmware,
            tpm,
            vcpus,
            bus,
            serial,
            platform,
            log: DirtyLog::new(slots),
            cutters,
            holds,
            ports,
            windows: board.windows,
            tsc,
            iommu: board.iommu.map(|told| (told, Vec::new())),
            pages,
            sources,
        })
    }

    pub(super) fn attach(
        &mut self,
        label: String,
        link: Box<dyn crate::passthrough::link::Link>,
        cutter: Cutter,
    ) -> Result<(), VmError> {
        let (function, view) = VfioUser::attach(label, link, &self.ram.share(), self.tsc)?;
        tracing::debug!("{}: attached", function.label());
        self.sources.push((function.label().to_owned(), Source::Irqfd));
        self.pages.extend(function.timing());
        let slot = self.bus.add(Box::new(function))?;
        self.cutters.push(cutter);
        if let Some((_, views)) = &mut self.iommu {
            // An endpoint has the number of its function: device and function of bus 0.
            views.push((acpi::endpoint(slot as u8), Box::new(view)));
        }
        Ok(())
    }

    /// The IOMMU, in front of what was attached before: as the guest was told.
    fn attach_iommu(&mut self) -> Result<(), VmError> {
        let Some((told, views)) = self.iommu.take() else { return Ok(()) };
        let behind: Vec<u32> = views.iter().map(|(endpoint, _)| *endpoint).collect();
        let memory = Arc::new(self.ram.memory().clone());
        let function = Transport::new("iommu".to_owned(), Box::new(Iommu::new(views)), memory)
            .map_err(virtio::BuildError::Device)?;
        let slot = self.bus.add(Box::new(function))?;
        let as_told = behind.iter().eq(&told.endpoints()) && slot == usize::from(told.slot);
        if as_told { Ok(()) } else { Err(VmError::Misplaced { slot, behind }) }
    }

    /// A device that this process serves itself.
    pub(super) fn attach_own(&mut self, index: usize, device: &Device) -> Result<(), VmError> {
        let memory = Arc::new(self.ram.memory().clone());
        if let Some(built) = virtio::build(&self.name, index, device, &memory)? {
            tracing::debug!("{}: attached", built.function.label());
            self.sources.push((built.function.label().to_owned(), Source::Irqfd));
            self.bus.add(Box::new(built.function))?;
            self.holds.push((index, built.hold));
        }
        Ok(())
    }

    /// The root ports, with their devices: the number of the first is `first`.
    pub(super) fn attach_ports(
        &mut self,
        first: usize,
        ports: &[config::Port],
    ) -> Result<(), VmError> {
        let memory = Arc::new(self.ram.memory().clone());
        let board = hotplug::Board { guest: &self.name, windows: self.windows, memory, first };
        let made = self.ports.build(&board, &mut self.bus, ports)?;
        self.holds.extend(made.holds);
        self.sources.extend(made.sources);
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<Vm, VmError> {
        self.attach_iommu()?;
        self.bus.place_bars()?;
        let Self { name, placement, ram, firmware, tpm, vcpus, bus, serial, platform, .. } = self;
        let stats = VmStats::new(platform.vm(), &vcpus);
        let (cutters, holds) = (self.cutters, self.holds);
        let (ports, pages, sources) = (self.ports, self.pages, self.sources);
        let machine = Machine::new(bus, serial, platform, ram, self.log, firmware, tpm);
        let machine = SharedMachine::new(machine);
        Ok(Vm { name, placement, vcpus, machine, cutters, holds, stats, ports, pages, sources })
    }
}

/// Has a halted vCPU's thread look for its next interrupt for so long before it sleeps: µs, 0 for not at all.
fn halt_poll(vm: &kvm_ioctls::VmFd, limit_us: u32) -> Result<(), errno::Error> {
    let mut cap = kvm_enable_cap { cap: KVM_CAP_HALT_POLL, ..Default::default() };
    // KVM takes ns.
    cap.args[0] = u64::from(limit_us) * 1000;
    vm.enable_cap(&cap)
}
