//! What mediation costs a submission: from the kick to [`Gpu::submit`], as CPU time of the steps that the
//! worker's and the dispatcher's threads do: copy, decode, validate, stamp, hand over; take, place, decide, grant.
//! Waking the threads is not in it (see `doorbell`).
//!
//! One thread steps the real worker, dispatcher and poster of 1 slice and of 64, with stamps, on a clock that
//! is set; the real clock is read around the steps. A slice that is one of 64 finds caches that the others have
//! used, as one does on any machine that does something between two frames. So the single slice that it is
//! compared with submits between their turns; what one takes in a row, on warm caches, is told as well.

use super::allocations;
use super::guest::{self, Guest, MEMORY};
use anyhow::{Context, anyhow, ensure};
use beamline_abi::pacer::{control, reg, vector};
use beamline_abi::pci::{command, config as header};
use beamline_abi::{Generation, Nanos, SliceId};
use beamline_benches::report::{Gate, Row, table};
use beamline_benches::stats::Summary;
use beamline_latency::{Clock, Collector, FakeClock, SliceIndex};
use beamline_mdev::backend::model::{CostTable, ModelGpu, Service};
use beamline_mdev::backend::{Event, Gpu, GpuError, Label, SliceKey, SliceLimits};
use beamline_mdev::config::HostConfig;
use beamline_mdev::device::eventfd::EventFd;
use beamline_mdev::device::pacer::{Pacer, PacerConfig};
use beamline_mdev::device::signals::Signals;
use beamline_mdev::device::virtio::gpu::{GpuConfig, VirtioGpu};
use beamline_mdev::mediate::beat::Volley;
use beamline_mdev::mediate::dispatcher::Dispatcher;
use beamline_mdev::mediate::job::Grant;
use beamline_mdev::mediate::joint::{self, Joint, JointParts};
use beamline_mdev::mediate::poster::Poster;
use beamline_mdev::mediate::worker::{Turn, Worker};
use beamline_vfio_user::{Device, DmaFlags, DmaMap, IrqAction, IrqIndex, RegionIndex};
use std::convert::Infallible;
use std::fmt::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Slices of the larger host.
const MANY: usize = 64;
/// Rounds: in each one a submission of the single slice, and one of each of the many.
const ROUNDS: usize = 300;
/// Those before, which are not counted.
const WARM_UP: usize = 20;
/// Submissions of a slice that nobody comes between, in each round.
const ALONE: usize = 8;
/// Median of one submission at most, µs.
const MICROS: f64 = 5.0;
/// Median with many slices over that with one at most.
const GROWTH: f64 = 1.3;
/// When the hosts begin.
const BEGIN: Nanos = Nanos::from_secs(1);
const PERIOD: Nanos = Nanos::from_millis(10);
/// How long the model says that a job takes.
const JOB: Nanos = Nanos::from_micros(20);

/// Rows and gates.
pub(super) fn measure() -> anyhow::Result<(Vec<Row>, Vec<Gate>)> {
    let mut alone = Bench::start(1)?;
    let [mut one, mut many] = [Bench::start(1)?, Bench::start(MANY)?];
    let [mut of_alone, mut of_one, mut of_many] = [Vec::new(), Vec::new(), Vec::new()];
    let mut allocated = 0;
    for round in 0..WARM_UP + ROUNDS {
        if round == WARM_UP {
            (allocated, of_alone, of_one, of_many) = (0, Vec::new(), Vec::new(), Vec::new());
        }
        for _ in 0..ALONE {
            allocated += alone.period(&mut of_alone)?;
        }
        allocated += many.period(&mut of_many)?;
        allocated += one.period(&mut of_one)?;
    }
    let count = of_alone.len() + of_one.len() + of_many.len();
    let [alone, one, many] = [of_alone, of_one, of_many].map(|mut times| Summary::of(&mut times));
    let growth = many.ratio(&one);
    let rows = vec![
        Row { name: "1 slice, one after the other".into(), summary: alone, ratio: None },
        Row { name: "1 slice, between the others' work".into(), summary: one, ratio: None },
        Row { name: format!("{MANY} slices in turn"), summary: many, ratio: growth },
    ];
    print!(
        "{}",
        table("Mediation of a frame of four commands, from the kick to the backend", &rows)
    );
    let worst = [alone, one, many].map(|times| times.median_ns).into_iter().max().unwrap_or(0);
    let worst = worst as f64 / 1e3;
    let gates = vec![
        Gate::at_most("mediation of a submission, median, µs", MICROS, worst),
        Gate::at_most(
            format!("mediation with {MANY} slices over 1, medians"),
            GROWTH,
            growth.unwrap_or(f64::NAN),
        ),
        Gate::at_most(
            format!("allocations in {count} submissions, fences and vblanks included"),
            0.0,
            allocated as f64,
        ),
    ];
    Ok((rows, gates))
}

/// A modelled GPU that notes when it was given a job.
struct Probe {
    model: ModelGpu,
    start: Instant,
    /// ns after `start`.
    given: Arc<AtomicU64>,
}

impl Gpu for Probe {
    fn label(&self) -> Label {
        self.model.label()
    }
    fn describe(&self) -> String {
        self.model.describe()
    }
    fn attach(&mut self, slice: SliceKey, limits: SliceLimits) -> Result<(), GpuError> {
        self.model.attach(slice, limits)
    }
    fn detach(&mut self, slice: SliceKey) {
        self.model.detach(slice);
    }
    fn configure(&mut self, slice: SliceKey, token: u64, setup: &[u8]) -> Result<(), GpuError> {
        self.model.configure(slice, token, setup)
    }
    fn submit(&mut self, now: Nanos, grant: Grant<'_>) -> Result<(), GpuError> {
        self.given.store(self.start.elapsed().as_nanos() as u64, Ordering::Relaxed);
        self.model.submit(now, grant)
    }
    fn poll(&mut self, now: Nanos, events: &mut dyn FnMut(Event)) {
        self.model.poll(now, events);
    }
    fn next_event(&self) -> Option<Nanos> {
        self.model.next_event()
    }
    fn register(&self, poller: &mut dyn FnMut(BorrowedFd<'_>)) {
        self.model.register(poller);
    }
    fn capture(&mut self, slice: SliceKey) -> Result<(), GpuError> {
        self.model.capture(slice)
    }
}

/// One slice: its threads' parts, and its guest.
struct Slice {
    worker: Worker,
    poster: Poster,
    guest: Guest,
    /// The interrupts of its vblanks, and of its fences.
    wires: [EventFd; 2],
    frame: u64,
    /// Its devices.
    _functions: (Pacer, VirtioGpu),
}

/// A host whose threads are steps.
struct Bench {
    dispatcher: Dispatcher,
    wake: EventFd,
    slices: Vec<Slice>,
    clock: FakeClock,
    start: Instant,
    given: Arc<AtomicU64>,
    collector: Collector,
}

impl Bench {
    /// A host whose guests have their contexts.
    fn start(slices: usize) -> anyhow::Result<Self> {
        let mut text = String::from("run_dir = \"run\"\n[gpu]\nbackend = \"model\"\n");
        for n in 0..slices {
            // Writing to a String cannot fail.
            let _ = write!(
                text,
                "[[slice]]\nname = \"s{n}\"\nwidth = 64\nheight = 64\n[slice.contract]\n\
                 refresh_hz = \"100\"\nclass = \"elastic\"\nbudget_ms = 0.1\nmax_job_ms = 0.1\n"
            );
        }
        let config = HostConfig::parse(&text, std::path::Path::new("host.toml"))?;
        let (start, given) = (Instant::now(), Arc::new(AtomicU64::new(0)));
        let model = ModelGpu::new(Service::Fifo, CostTable::new(JOB));
        let gpu = Box::new(Probe { model, start, given: Arc::clone(&given) });
        let most = config.max_slices;
        let policy = config.policy.build(config.caps(), most, Dispatcher::max_jobs(most));
        let collector = Collector::new();
        let recorder = collector.registry().recorder(1 << 14);
        let wake = EventFd::new().context("an eventfd")?;
        let clock = FakeClock::new(BEGIN);
        let signals = Signals::new().context("asynchronous I/O")?;
        let volley = Volley::new(Some(signals), Arc::new(clock.clone()));
        let dispatcher = Dispatcher::new(policy, gpu, most, config.kill_grace, volley, recorder);
        let empty = Vec::with_capacity(slices);
        let mut bench = Self { dispatcher, wake, slices: empty, clock, start, given, collector };
        for index in 0..slices {
            bench.add(index, &config)?;
        }
        for request in [guest::context(), guest::furniture()] {
            for index in 0..slices {
                bench.slices[index].guest.offer(&request)?;
                bench.settle()?;
                let answered = bench.slices[index].guest.is_answered()?;
                ensure!(answered, "a guest is not answered");
            }
        }
        Ok(bench)
    }

    fn add(&mut self, index: usize, config: &HostConfig) -> anyhow::Result<()> {
        let slice = &config.slices[index];
        let id = SliceId([index as u8; 16]);
        let time = self.clock.clone();
        let pacer =
            PacerConfig { slice: id, generation: Generation(0), now: Arc::new(move || time.now()) };
        let (mut pacer, beat, pacer_handle) = Pacer::new(pacer).context("a pacer")?;
        let (mut gpu, device) = VirtioGpu::new(GpuConfig { contexts: true }).context("a vGPU")?;
        let guest = Guest::new()?;
        let flags = DmaFlags { read: true, write: true };
        let fd = Some(guest.memory().try_clone()?);
        gpu.dma_map(DmaMap { iova: 0, size: MEMORY, flags, fd, fd_offset: 0 })?;
        Guest::start(&mut |region, at, bytes| Ok(gpu.region_write(region, at, bytes)?))?;
        // The guest listens to its vblanks and its fences.
        let wires = [EventFd::new().context("an eventfd")?, EventFd::new().context("an eventfd")?];
        let wired = |wire: &EventFd| -> anyhow::Result<IrqAction> {
            Ok(IrqAction::SetEventFds(vec![wire.as_fd().try_clone_to_owned()?]))
        };
        pacer.set_irqs(IrqIndex::MSIX, vector::VBLANK.into(), 1, wired(&wires[0])?)?;
        gpu.set_irqs(IrqIndex::MSIX, guest::VECTOR.into(), 1, wired(&wires[1])?)?;
        let bits = command::MEMORY | command::BUS_MASTER;
        pacer.region_write(RegionIndex::CONFIG, header::COMMAND.into(), &bits.to_le_bytes())?;
        let on = control::VBLANK_ENABLE.to_le_bytes();
        pacer.region_write(RegionIndex::bar(0), reg::CONTROL.into(), &on)?;
        let registry = self.collector.registry();
        let parts = JointParts {
            config: slice,
            index: SliceIndex(index as u16),
            slice: id,
            generation: Generation(0),
            limits: SliceLimits { memory: slice.memory, max_resources: 1024 },
            phase: Nanos::ZERO,
            origin: BEGIN,
            pacer: (beat, pacer_handle),
            gpu: device,
            tsc: None,
            clock: Arc::new(self.clock.clone()),
            dispatcher: self.wake.clone(),
            recorders: [(); 2].map(|()| registry.recorder(1 << 12)),
        };
        let Joint { link, worker, poster } =
            joint::join(parts, joint::display(slice)).context("an eventfd")?;
        let taken = self.dispatcher.add(index as u16, link);
        taken.map_err(|_| anyhow!("place {index} is taken"))?;
        let functions = (pacer, gpu);
        self.slices.push(Slice { worker, poster, guest, wires, frame: 0, _functions: functions });
        Ok(())
    }

    /// Lets time pass until nothing is on its way.
    fn settle(&mut self) -> anyhow::Result<()> {
        for _ in 0..8 {
            let now = self.clock.advance(PERIOD);
            for slice in &mut self.slices {
                ensure!(slice.worker.step(now) == Turn::Wait, "a worker does not come to rest");
            }
            self.dispatcher.step(now, true);
            self.slices.iter_mut().for_each(|slice| slice.poster.step());
        }
        self.collect()
    }

    /// Empties the recorders.
    fn collect(&mut self) -> anyhow::Result<()> {
        let Ok(_) = self.collector.drain(|_| Ok::<(), Infallible>(()));
        ensure!(self.collector.dropped() == 0, "stamps were dropped");
        Ok(())
    }

    /// One submission of each slice; their times, ns. Answers how often the host's parts have allocated.
    fn period(&mut self, times: &mut Vec<u64>) -> anyhow::Result<u64> {
        self.clock.advance(PERIOD);
        let mut allocated = self.vblanks();
        ensure!(self.slices.iter().all(|slice| slice.wires[0].take()), "a vblank did not come");
        for index in 0..self.slices.len() {
            let slice = &mut self.slices[index];
            slice.frame += 1;
            slice.guest.offer(&guest::frame(slice.frame))?;
            let now = self.clock.now();
            let before = allocations::so_far();
            let kick = self.start.elapsed().as_nanos() as u64;
            let turn = slice.worker.step(now);
            self.dispatcher.step(now, true);
            allocated += allocations::so_far() - before;
            ensure!(turn == Turn::Wait, "the worker does not come to rest");
            let given = self.given.load(Ordering::Relaxed);
            times.push(given.checked_sub(kick).context("the job was not granted at once")?);
            self.clock.advance(JOB);
            allocated += self.fence(index);
            let slice = &mut self.slices[index];
            ensure!(slice.guest.is_answered()?, "the frame has no fence");
            ensure!(slice.wires[1].take(), "the fence has no interrupt");
        }
        self.collect()?;
        Ok(allocated)
    }

    /// The dispatcher's and one poster's share of a job that has ended; how often they have allocated.
    fn fence(&mut self, index: usize) -> u64 {
        let before = allocations::so_far();
        self.dispatcher.step(self.clock.now(), true);
        self.slices[index].poster.step();
        allocations::so_far() - before
    }

    /// The dispatcher's and the posters' share of the period's vblanks; how often they have allocated.
    fn vblanks(&mut self) -> u64 {
        let before = allocations::so_far();
        self.dispatcher.step(self.clock.now(), true);
        self.slices.iter_mut().for_each(|slice| slice.poster.step());
        allocations::so_far() - before
    }
}
