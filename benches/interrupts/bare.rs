//! The smallest KVM machine that takes an irqfd and rings an ioeventfd: what KVM itself costs.
#![allow(unsafe_code)] // A KVM memory slot is a raw address.

use crate::guest;
use crate::trip::{Side, Trip, readable, wait};
use crate::tsc;
use anyhow::{Context, bail};
use beamline_mdev::host::threads::pin;
use beamline_vmm::boot::pvh;
use beamline_vmm::interrupt::stats::{Counts, StatsError, VmStats};
use kvm_bindings::{
    KVM_IRQ_ROUTING_MSI, KVM_MAX_CPUID_ENTRIES, KvmIrqRouting, Msrs, kvm_irq_routing_entry,
    kvm_msr_entry, kvm_userspace_memory_region,
};
use kvm_ioctls::{IoEventAddress, Kvm, NoDatamatch, VcpuExit, VcpuFd, VmFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const RAM: usize = 4 << 20;
/// Where nothing is but the doorbell.
const DOORBELL: u32 = 0xd000_0000;
/// Interrupts of the guest by KVM's number, after the pins of the I/O APIC.
const PING_GSI: u32 = 24;
const END_GSI: u32 = 25;
/// Pages that Intel's KVM needs somewhere.
const TSS: usize = 0xfffb_d000;
/// IA32_TIME_STAMP_COUNTER.
const MSR_TSC: u32 = 0x10;
/// How long the guest may take to end. A bound, not a measure.
const PATIENCE: Duration = Duration::from_secs(10);

/// The machine, whose vCPU runs on a thread of its own.
pub(crate) struct Bare {
    ping: EventFd,
    end: EventFd,
    bell: EventFd,
    memory: Arc<GuestMemoryMmap>,
    /// Guest TSC minus host TSC, ticks.
    offset: u64,
    stats: Result<VmStats, StatsError>,
    ended: Receiver<Result<(), String>>,
    _vm: VmFd,
}

impl Bare {
    /// Starts the guest on host CPU `cpu`.
    pub(crate) fn start(cpu: usize) -> anyhow::Result<Self> {
        let kvm = Kvm::new().context("opening /dev/kvm")?;
        let vm = kvm.create_vm().context("KVM refused a VM")?;
        vm.set_tss_address(TSS).context("KVM refused the TSS address")?;
        vm.create_irq_chip().context("KVM refused interrupt controllers")?;
        let memory =
            GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).context("guest memory")?;
        memory
            .write_slice(&guest::bare(DOORBELL), GuestAddress(guest::BASE.into()))
            .context("the guest's image")?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: RAM as u64,
            userspace_addr: memory.get_host_address(GuestAddress(0)).context("guest memory")?
                as u64,
        };
        // SAFETY: the region is exactly the mapping behind `memory`, which the vCPU's thread keeps until it
        // has dropped the vCPU; guest and host share it as volatile memory only.
        unsafe { vm.set_user_memory_region(region) }.context("KVM refused guest memory")?;
        let eventfd = || EventFd::new(EFD_NONBLOCK).context("eventfd");
        let (ping, end, bell) = (eventfd()?, eventfd()?, eventfd()?);
        route(&vm, &[(PING_GSI, guest::PING), (END_GSI, guest::END)])?;
        vm.register_irqfd(&ping, PING_GSI).context("KVM refused an irqfd")?;
        vm.register_irqfd(&end, END_GSI).context("KVM refused an irqfd")?;
        vm.register_ioevent(&bell, &IoEventAddress::Mmio(DOORBELL.into()), NoDatamatch)
            .context("KVM refused an ioeventfd")?;
        let vcpu = vcpu(&kvm, &vm)?;
        let offset = tsc_offset(&vcpu);
        let stats = VmStats::new(&vm, [&vcpu]);
        let memory = Arc::new(memory);
        let (sender, ended) = channel();
        let kept = Arc::clone(&memory);
        std::thread::Builder::new()
            .name("bare vCPU".into())
            .spawn(move || {
                let mut vcpu = vcpu;
                let result = pin(&[cpu]).map_err(|e| e.to_string()).and_then(|()| run(&mut vcpu));
                drop((vcpu, kept));
                // Nobody listens where the benchmark has given up.
                let _ = sender.send(result);
            })
            .context("a thread for the vCPU")?;
        Ok(Self { ping, end, bell, memory, offset, stats, ended, _vm: vm })
    }

    /// Ends the guest.
    pub(crate) fn stop(self) -> anyhow::Result<()> {
        self.end.write(1).context("eventfd")?;
        let result = self.ended.recv_timeout(PATIENCE).context("the bare guest does not end")?;
        result.map_err(anyhow::Error::msg)
    }

    /// What KVM has counted so far.
    pub(crate) fn counts(&self) -> anyhow::Result<Counts> {
        let stats = self.stats.as_ref().map_err(|e| anyhow::anyhow!("{e}"))?;
        stats.read().context("the bare guest's counters")
    }

    fn answer(&self) -> anyhow::Result<()> {
        if let Ok(Err(why)) = self.ended.try_recv() {
            bail!("the bare guest ended: {why}");
        }
        wait(&mut [readable(&Fd(&self.bell))])
    }
}

impl Side for Bare {
    fn ready(&mut self) -> anyhow::Result<()> {
        self.answer()?;
        self.bell.read().context("the doorbell")?;
        Ok(())
    }

    fn trip(&mut self) -> anyhow::Result<Trip> {
        let posted = tsc::now();
        self.ping.write(1).context("eventfd")?;
        wait(&mut [readable(&Fd(&self.bell))])?;
        let woken = tsc::now();
        self.bell.read().context("the doorbell")?;
        let stamp: u64 =
            self.memory.read_obj(GuestAddress(guest::STAMP.into())).context("the stamp")?;
        Ok(Trip { posted, handled: stamp.wrapping_sub(self.offset), woken })
    }
}

/// An eventfd of another library, as a descriptor.
struct Fd<'a>(&'a EventFd);

impl std::os::fd::AsFd for Fd<'_> {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        // SAFETY: the eventfd owns the descriptor and is borrowed for as long as the answer.
        unsafe { std::os::fd::BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(self.0)) }
    }
}

/// Has each GSI deliver its vector.
fn route(vm: &VmFd, vectors: &[(u32, u8)]) -> anyhow::Result<()> {
    let entries: Vec<_> = vectors
        .iter()
        .map(|&(gsi, vector)| {
            let mut entry =
                kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
            entry.u.msi.address_lo = guest::MSI_ADDRESS;
            entry.u.msi.data = vector.into();
            entry
        })
        .collect();
    let table = KvmIrqRouting::from_entries(&entries).ok().context("the routing table")?;
    vm.set_gsi_routing(&table).context("KVM refused the routing table")
}

/// A vCPU about to enter the image, as PVH would.
fn vcpu(kvm: &Kvm, vm: &VmFd) -> anyhow::Result<VcpuFd> {
    let vcpu = vm.create_vcpu(0).context("KVM refused a vCPU")?;
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).context("CPUID")?;
    vcpu.set_cpuid2(&cpuid).context("KVM refused the CPUID")?;
    let sregs = vcpu.get_sregs().context("KVM's registers")?;
    let at = beamline_vmm::Gpa(guest::BASE.into());
    let (regs, sregs) = pvh::registers(pvh::Entry { entry: at, start_info: at }, sregs);
    vcpu.set_sregs(&sregs).context("KVM refused the special registers")?;
    vcpu.set_regs(&regs).context("KVM refused the registers")?;
    Ok(vcpu)
}

/// Runs the guest until it writes the exit port.
fn run(vcpu: &mut VcpuFd) -> Result<(), String> {
    loop {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(guest::EXIT_PORT, _)) => return Ok(()),
            Ok(exit) => return Err(format!("an exit that nobody expected: {exit:?}")),
            Err(e) if e.errno() == rustix::io::Errno::INTR.raw_os_error() => {}
            Err(e) => return Err(format!("KVM_RUN: {e}")),
        }
    }
}

/// Guest TSC minus host TSC, from the narrowest of some bracketed readings. A difference smaller than the
/// bracket is none.
fn tsc_offset(vcpu: &VcpuFd) -> u64 {
    let entry = kvm_msr_entry { index: MSR_TSC, ..Default::default() };
    let mut best: Option<(u64, u64)> = None;
    for _ in 0..16 {
        let Ok(mut msrs) = Msrs::from_entries(&[entry]) else { continue };
        let before = tsc::now();
        let read = vcpu.get_msrs(&mut msrs);
        let width = tsc::now().wrapping_sub(before);
        let (Ok(1), Some(guest)) = (read, msrs.as_slice().first()) else { continue };
        if best.is_none_or(|(narrowest, _)| width < narrowest) {
            best = Some((width, guest.data.wrapping_sub(before + width / 2)));
        }
    }
    best.filter(|(width, offset)| (*offset as i64).unsigned_abs() > *width)
        .map_or(0, |(_, offset)| offset)
}
