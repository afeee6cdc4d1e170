//! The same round trip through Beamline: a vblank leaves through the pacer, the guest rings the vGPU's
//! doorbell, the worker's wait ends.
//!
//! The measuring thread stands in for the dispatcher's and the worker's thread: it calls what they call and
//! waits for what the worker waits for. The functions are served over vfio-user, and the guest is run by
//! the VMM; neither is on the path.

use crate::guest::{self, Functions};
use crate::trip::{Side, Trip, readable, wait};
use crate::tsc;
use anyhow::{Context, bail, ensure};
use beamline_abi::pci::{capability, config};
use beamline_abi::virtio_gpu::CONTROL_QUEUE;
use beamline_abi::virtio_pci::cap;
use beamline_abi::{FrameId, Generation, Nanos, SliceId};
use beamline_latency::clock::{Clock, MonotonicClock, TscMap};
use beamline_latency::recorder::{Collector, Recorder};
use beamline_latency::stamp::SliceIndex;
use beamline_mdev::backend::SliceLimits;
use beamline_mdev::device::eventfd::EventFd;
use beamline_mdev::device::pacer::{Pacer, PacerConfig, PacerShared};
use beamline_mdev::device::signals::Signals;
use beamline_mdev::device::virtio::gpu::{GpuConfig, GpuHandle, VirtioGpu};
use beamline_mdev::mediate::beat::{Beat, BeatParts, Shot, Volley};
use beamline_mdev::mediate::dispatcher::SliceCounters;
use beamline_mdev::mediate::display::{Display, DisplaySettings};
use beamline_mdev::mediate::message::{Answered, RING, Work};
use beamline_mdev::mediate::worker::{Worker, WorkerParts};
use beamline_mdev::memory::Gpa;
use beamline_sched::{Class, Contract, Guard, MissAllowance, Period, Sink, Vblank};
use beamline_vfio_user::server::{Listener, Stop};
use beamline_vfio_user::{Device, RegionIndex};
use beamline_vmm::interrupt::stats::Counts;
use beamline_vmm::{Vm, VmHandle};
use rtrb::{Consumer, Producer, RingBuffer};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// How often a wait for the guest's first register writes looks whether the guest has ended.
const LOOK: Duration = Duration::from_millis(1);
const LIMITS: SliceLimits = SliceLimits { memory: 1 << 20, max_resources: 16 };

/// A slice's functions and threads, and the guest on them.
pub(crate) struct Stack {
    beat: Beat,
    volley: Volley,
    recorder: Recorder,
    worker: Worker,
    shared: Arc<PacerShared>,
    /// Guest TSC minus host TSC, ticks, as the VMM told the pacer.
    offset: u64,
    /// Exits to the VMM until the guest was ready.
    exits: u64,
    seq: u64,
    period: Nanos,
    servers: Servers,
    handle: VmHandle,
    collector: Collector,
    /// The other ends of rings that nothing goes through here.
    _ends: Ends,
    _dir: tempfile::TempDir,
}

struct Ends {
    _worker_answers: Consumer<Answered>,
    _work: Consumer<Work>,
    _recycle: Producer<Vec<u8>>,
}

/// Threads that serve the functions' registers.
struct Servers {
    stop: Stop,
    threads: Vec<JoinHandle<()>>,
}

impl Servers {
    fn serve(&mut self, path: &Path, mut device: impl Device + 'static) -> anyhow::Result<()> {
        let listener = Listener::bind(path).context("a socket for a function")?;
        let stop = self.stop.clone();
        let thread = std::thread::Builder::new().spawn(move || {
            if let Err(error) = listener.serve(&mut device, &stop) {
                eprintln!("{}: {error}", listener.path().display());
            }
        });
        self.threads.push(thread.context("a thread for a function")?);
        Ok(())
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.stop.stop();
        for thread in self.threads.drain(..) {
            // A server that panicked has said so.
            let _ = thread.join();
        }
    }
}

impl Stack {
    /// Starts the functions and the guest, whose vCPU runs on host CPU `cpu`. `tsc` is this host's TSC on
    /// host time.
    pub(crate) fn start(cpu: usize, tsc: TscMap) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir().context("a folder for the sockets")?;
        let clock: Arc<dyn Clock> = Arc::new(MonotonicClock);
        let now = Arc::clone(&clock);
        let config = PacerConfig {
            slice: SliceId([1; 16]),
            generation: Generation(0),
            now: Arc::new(move || now.now()),
        };
        let (mut pacer, pacer_beat, pacer_handle) = Pacer::new(config).context("the pacer")?;
        let (mut gpu, gpu_handle) =
            VirtioGpu::new(GpuConfig { contexts: true }).context("the vGPU")?;
        let functions = find(&mut pacer, &mut gpu)?;
        let shared = Arc::clone(pacer_handle.shared());
        let contract = contract()?;
        // Stamps are taken and collected, as in a host that logs them.
        let collector = Collector::new();
        let recorder = || collector.registry().recorder(1024);

        let beat = Beat::new(BeatParts {
            contract,
            phase: Nanos::ZERO,
            pacer: pacer_beat,
            tsc: Some(tsc),
        });
        let volley = Volley::new(Some(Signals::new().context("asynchronous I/O")?), clock);
        let (worker, worker_answers, work, recycle) = worker(&gpu_handle, &shared, recorder())?;

        let mut servers = Servers { stop: Stop::new().context("eventfd")?, threads: Vec::new() };
        servers.serve(&dir.path().join("pacer.sock"), pacer)?;
        servers.serve(&dir.path().join("gpu.sock"), gpu)?;
        let handle = boot(dir.path(), cpu, functions)?;
        Ok(Self {
            beat,
            volley,
            recorder: recorder(),
            worker,
            shared,
            offset: 0,
            exits: 0,
            seq: 0,
            period: contract.period.floor(),
            servers,
            handle,
            collector,
            _ends: Ends { _worker_answers: worker_answers, _work: work, _recycle: recycle },
            _dir: dir,
        })
    }

    /// Ends the guest and then the functions; answers how often the guest exited to the VMM since it was
    /// ready.
    pub(crate) fn stop(self) -> u64 {
        let exits = exits(&self.handle) - self.exits;
        self.handle.stop();
        drop(self.servers);
        exits
    }

    /// What KVM has counted so far.
    pub(crate) fn counts(&self) -> anyhow::Result<Counts> {
        self.handle.sample_interrupts();
        let report = self.handle.interrupts();
        match report.missing {
            Some(why) => bail!("{why}"),
            None => Ok(report.all.counts),
        }
    }

    fn device(&self) -> &GpuHandle {
        self.worker.device()
    }

    /// Waits for what the worker waits for, until it is the doorbell.
    fn doorbell(&mut self) -> anyhow::Result<()> {
        loop {
            let device = self.device();
            let kick = device.kick(CONTROL_QUEUE).context("the vGPU has no control queue")?;
            let mut fds = [readable(kick), readable(device.wake()), readable(&self.servers.stop)];
            wait(&mut fds)?;
            let came = [!fds[0].revents().is_empty(), !fds[1].revents().is_empty()];
            if came[1] {
                device.wake().take();
            }
            if came[0] {
                kick.take();
                return Ok(());
            }
            let _ = self.worker.step(MonotonicClock.now());
        }
    }
}

impl Side for Stack {
    fn ready(&mut self) -> anyhow::Result<()> {
        // A guest that fails on its way says so at once, and not by silence.
        if let Some(reason) = self.handle.wait_timeout(LOOK) {
            bail!("Beamline's guest ended: {reason}");
        }
        self.doorbell()?;
        let _ = self.worker.step(MonotonicClock.now());
        if !self.shared.vblank_enabled() {
            bail!("the guest did not switch vblanks on");
        }
        self.offset =
            self.shared.guest_tsc().context("the VMM did not tell the pacer the TSC")?.offset;
        self.exits = exits(&self.handle);
        Ok(())
    }

    fn trip(&mut self) -> anyhow::Result<Trip> {
        self.seq += 1;
        let time = MonotonicClock.now();
        let vblank = Vblank { seq: self.seq, time, next: time.saturating_add(self.period) };
        let (slice, generation, frame) = (SliceIndex(0), Generation(0), FrameId::NONE);
        let posted = tsc::now();
        if self.beat.vblank(vblank, None, generation) {
            let shot = Shot { slice, generation, seq: self.seq, frame };
            ensure!(self.volley.add(&mut self.beat, shot).is_ok(), "there is no asynchronous I/O");
            self.volley.send(&mut self.recorder, |_, _| {});
        }
        self.doorbell()?;
        let woken = tsc::now();
        let _ = self.worker.step(MonotonicClock.now());
        let stamp =
            self.device().memory().read_u64(Gpa(guest::STAMP.into())).context("the stamp")?;
        // The host's collector does this off the path.
        self.collector.drain(|_| Ok::<_, std::convert::Infallible>(())).context("stamps")?;
        Ok(Trip { posted, handled: stamp.wrapping_sub(self.offset), woken })
    }
}

/// How often the guest exited to the VMM so far.
fn exits(handle: &VmHandle) -> u64 {
    let exits = handle.exits();
    exits.io + exits.mmio + exits.other
}

type WorkerEnds = (Worker, Consumer<Answered>, Consumer<Work>, Producer<Vec<u8>>);

fn worker(
    device: &GpuHandle,
    pacer: &Arc<PacerShared>,
    recorder: Recorder,
) -> anyhow::Result<WorkerEnds> {
    let (work, work_out) = RingBuffer::new(RING);
    let (recycle_in, recycle) = RingBuffer::new(RING);
    let (answers, answers_out) = RingBuffer::new(RING);
    let eventfd = || EventFd::new().context("eventfd");
    let worker = Worker::new(WorkerParts {
        index: SliceIndex(0),
        device: device.clone(),
        pacer: Arc::clone(pacer),
        generation: Generation(0),
        limits: LIMITS,
        display: Display::new(DisplaySettings {
            width: 64,
            height: 64,
            period: Period::from_hz(90, 1).context("90 Hz")?,
            quota: 1 << 20,
        }),
        work,
        recycle,
        answers,
        dispatcher: eventfd()?,
        poster: eventfd()?,
        counters: Arc::new(SliceCounters::default()),
        recorder,
    });
    Ok((worker, answers_out, work_out, recycle_in))
}

fn contract() -> anyhow::Result<Contract> {
    let period = Period::from_hz(90, 1).context("90 Hz")?;
    Ok(Contract {
        period,
        deadline: period.floor(),
        budget: Nanos::from_millis(1),
        max_job: Nanos::from_millis(1),
        gap: Nanos::ZERO,
        jitter: Nanos::ZERO,
        sink: Sink::Virtual,
        class: Class::Reserved,
        miss: MissAllowance { misses: 0, frames: 1 },
        late_latch: None,
        guard: Guard::Deadline,
        depth: 1,
        weight: 100,
    })
}

/// Boots the guest with the pacer in slot 1 and the vGPU in slot 2.
fn boot(dir: &Path, cpu: usize, functions: Functions) -> anyhow::Result<VmHandle> {
    let path = dir.join("guest.elf");
    std::fs::write(&path, guest::elf(&guest::paced(functions))).context("the guest's image")?;
    let text = format!(
        "[guest]\nname = \"bench\"\nimage = \"guest.elf\"\n[memory]\nsize = \"4M\"\n[vcpus]\ncpus = [{cpu}]\n\
         [[device]]\ntype = \"vfio-user\"\nsocket = \"pacer.sock\"\n\
         [[device]]\ntype = \"vfio-user\"\nsocket = \"gpu.sock\"\n"
    );
    let config =
        beamline_vmm::Config::parse(&text, &dir.join("guest.toml")).context("the guest")?;
    Vm::new(config).and_then(Vm::start).context("Beamline's guest")
}

/// Where the guest finds what it needs, from the functions' own configuration space.
fn find(pacer: &mut Pacer, gpu: &mut VirtioGpu) -> anyhow::Result<Functions> {
    let (msix, _) = capabilities(pacer)?
        .into_iter()
        .find(|(_, body)| body[0] == capability::MSIX)
        .context("the pacer has no MSI-X")?;
    let (_, notify) = capabilities(gpu)?
        .into_iter()
        .find(|(_, body)| {
            body[0] == capability::VENDOR && body[usize::from(cap::CFG_TYPE)] == cap::NOTIFY
        })
        .context("the vGPU has no notifications")?;
    let at = usize::from(cap::OFFSET);
    let offset = notify[at..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
    Ok(Functions { pacer: (1, msix), gpu: (2, notify[usize::from(cap::BAR)].into(), offset) })
}

/// The capabilities of a function, each with its offset and its first bytes.
fn capabilities(device: &mut dyn Device) -> anyhow::Result<Vec<(u32, [u8; 16])>> {
    let mut space = [0; config::SIZE];
    device.region_read(RegionIndex::CONFIG, 0, &mut space).context("configuration space")?;
    let mut at = usize::from(space[usize::from(config::CAPABILITIES)]);
    let mut found = Vec::new();
    // A longer list than configuration space has room for is a loop.
    while at != 0 && found.len() < 48 {
        let body =
            space.get(at..).and_then(|s| s.first_chunk().copied()).context("a capability")?;
        found.push((at as u32, body));
        at = body[1].into();
    }
    Ok(found)
}
