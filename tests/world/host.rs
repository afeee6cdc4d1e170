//! The host's threads as steps in a fixed order: workers, dispatcher, posters, until nothing moves.

use super::{WorldError, system, tsc};
use beamline_abi::{Generation, Nanos, SliceId};
use beamline_latency::recorder::DEFAULT_CAPACITY;
use beamline_latency::{Clock, Collector, FakeClock, SliceIndex, Stamp};
use beamline_mdev::backend::SliceLimits;
use beamline_mdev::backend::model::{CostModel, ModelGpu, Service};
use beamline_mdev::config::{HostConfig, SliceConfig};
use beamline_mdev::device::eventfd::EventFd;
use beamline_mdev::device::pacer::{Ask, AskTurn, PacerBeat, PacerHandle, PacerShared};
use beamline_mdev::device::signals::Signals;
use beamline_mdev::device::virtio::gpu::GpuHandle;
use beamline_mdev::host;
use beamline_mdev::host::admit::{Ledger, NotNow, Place};
use beamline_mdev::host::ask::{self, Decision, Terms};
use beamline_mdev::mediate::beat::Volley;
use beamline_mdev::mediate::dispatcher::{Change, Dispatcher, SliceCounters, SliceLink};
use beamline_mdev::mediate::joint::{self, Joint, JointParts};
use beamline_mdev::mediate::poster::Poster;
use beamline_mdev::mediate::worker::{Turn, Worker};
use beamline_sched::{Contract, PolicyKind};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Resource IDs of one context.
const MAX_RESOURCES: u32 = 256;
/// Rounds at one point in time after which the host is said to be running in circles.
const MAX_ROUNDS: u32 = 10_000;
/// Steps between two looks at the recorders' rings, which hold many times as many stamps.
const COLLECT_EVERY: u32 = 512;

/// What dispatcher and poster have of a pacer.
pub(super) type PacerSides = (PacerBeat, PacerHandle);

/// What the world keeps of one slice.
pub(super) struct Slice {
    worker: Worker,
    poster: Poster,
    pub(super) counters: Arc<SliceCounters>,
    pub(super) pacer: Arc<PacerShared>,
    /// Its worker has something to look at.
    pub(super) stirred: bool,
    /// When its worker goes on, where the guest has used up its allowance.
    resume: Nanos,
    /// What its guest asks for, and when that is decided on at the earliest.
    asked: Option<((AskTurn, Ask), Nanos)>,
}

/// One host and its GPU.
pub(super) struct Host {
    dispatcher: Dispatcher,
    ledger: Ledger,
    wake: EventFd,
    pub(super) slices: Vec<Slice>,
    collector: Collector,
    pub(super) stamps: Vec<Stamp>,
    steps: u32,
    /// When the dispatcher wants to be called again.
    pub(super) next: Nanos,
}

/// A slice ID that is the same in every run.
pub(super) fn slice_id(index: usize) -> SliceId {
    let mut id = *b"slice of a world";
    id[15] = index as u8;
    SliceId(id)
}

impl Host {
    /// A host for the slices of `config`, whose functions are `handles`.
    pub(super) fn new(
        config: &HostConfig,
        handles: Vec<(PacerSides, GpuHandle)>,
        costs: impl CostModel + 'static,
        clock: &FakeClock,
    ) -> Result<Self, WorldError> {
        let caps = config.caps();
        let refused = |e: host::HostError| WorldError::Refused(e.to_string());
        let ledger = Ledger::load(config, caps).map_err(refused)?;
        let collector = Collector::new();
        let wake = EventFd::new().map_err(system("make an eventfd"))?;
        let service = match config.policy {
            PolicyKind::None => Service::Shared,
            _ => Service::Fifo,
        };
        let gpu = Box::new(ModelGpu::new(service, costs));
        let most = config.max_slices;
        let policy = config.policy.build(caps, most, Dispatcher::max_jobs(most));
        let recorder = collector.registry().recorder(DEFAULT_CAPACITY);
        let signals = Signals::new().map_err(|e| WorldError::Refused(e.to_string()))?;
        let volley = Volley::new(Some(signals), Arc::new(clock.clone()));
        let dispatcher = Dispatcher::new(policy, gpu, most, config.kill_grace, volley, recorder);
        let (stamps, next) = (Vec::new(), clock.now());
        let slices = Vec::new();
        let mut host = Self { dispatcher, ledger, wake, slices, collector, stamps, steps: 0, next };
        for (index, (slice, handles)) in config.slices.iter().zip(handles).enumerate() {
            let place = host.ledger.place(index as u16);
            let place = place.ok_or(WorldError::Refused(format!("there is no slice {index}")))?;
            host.serve(slice, place, clock, clock.now(), handles)?;
        }
        Ok(host)
    }

    /// Joins a slice's functions to the host, at the next place.
    fn serve(
        &mut self,
        slice: &SliceConfig,
        place: Place,
        clock: &FakeClock,
        origin: Nanos,
        (pacer, gpu): (PacerSides, GpuHandle),
    ) -> Result<(), WorldError> {
        let index = self.slices.len();
        let wake = &self.wake;
        let parts = Parts { slice, index, phase: place.phase, origin, clock, wake, pacer, gpu };
        let (slice, link) = parts.wire(&self.collector)?;
        self.slices.push(slice);
        let taken = self.dispatcher.add(index as u16, link);
        taken.map_err(|_| WorldError::Refused(format!("place {index} is taken")))
    }

    /// Admits a slice while the others run, as the control socket does.
    pub(super) fn add(
        &mut self,
        slice: &SliceConfig,
        clock: &FakeClock,
        origin: Nanos,
        handles: (PacerSides, GpuHandle),
    ) -> Result<(), NotNow> {
        let place = self.ledger.admit(self.slices.len() as u16, &slice.contract, clock.now())?;
        self.next = clock.now();
        self.serve(slice, place, clock, origin, handles).expect("its place is free");
        Ok(())
    }

    /// Changes a contract while the others run.
    pub(super) fn change(
        &mut self,
        index: usize,
        contract: &Contract,
        now: Nanos,
    ) -> Result<Change, NotNow> {
        let change = self.ledger.change(index as u16, contract, now)?;
        self.slices[index].counters.changing.store(true, Ordering::Release);
        self.dispatcher.change(index as u16, change);
        self.next = now;
        Ok(change)
    }

    /// Decides on what the guest of a slice asks for, once changes before it are over; the change, if there is
    /// one.
    pub(super) fn answer_ask(&mut self, index: usize, terms: &Terms, now: Nanos) -> Option<Change> {
        let slice = &mut self.slices[index];
        if let Some(asked) = slice.pacer.take_ask() {
            slice.asked = Some((asked, now));
        }
        let ((turn, ask), from) = slice.asked?;
        if from > now || slice.counters.changing.load(Ordering::Acquire) {
            return None;
        }
        match ask::decide(&mut self.ledger, index as u16, terms, &ask, now) {
            Decision::Later(until) => {
                slice.asked = Some(((turn, ask), until));
                None
            }
            Decision::Answered(answer, change) => {
                slice.asked = None;
                if let Some(change) = change {
                    slice.counters.changing.store(true, Ordering::Release);
                    self.dispatcher.change(index as u16, change);
                }
                slice.pacer.answer(turn, answer);
                change
            }
        }
    }

    /// Ends a slice while the others run; whether there was one.
    pub(super) fn remove(&mut self, index: usize, now: Nanos) -> bool {
        self.ledger.remove(index as u16, now);
        self.next = now;
        self.dispatcher.remove(index as u16, now).is_some()
    }

    /// Does all that is to be done at `now`, until only time can bring more.
    pub(super) fn settle(&mut self, now: Nanos) -> Result<(), WorldError> {
        for _ in 0..MAX_ROUNDS {
            for slice in &mut self.slices {
                if std::mem::take(&mut slice.stirred) || slice.resume <= now {
                    slice.resume = loop {
                        match slice.worker.step(now) {
                            Turn::Again => {}
                            Turn::Wait => break Nanos::MAX,
                            Turn::Throttled(until) => break until,
                        }
                    };
                }
            }
            let stirred = self.wake.take();
            let resume = self.slices.iter().map(|s| s.resume).min().unwrap_or(Nanos::MAX);
            self.next = self.dispatcher.step(now, stirred).min(resume);
            for slice in &mut self.slices {
                slice.poster.step();
            }
            if self.next > now {
                self.collect_now_and_then();
                return Ok(());
            }
        }
        Err(WorldError::Circles { at: now, rounds: MAX_ROUNDS })
    }

    fn collect_now_and_then(&mut self) {
        self.steps += 1;
        if self.steps >= COLLECT_EVERY {
            self.collect();
        }
    }

    /// Takes the stamps off the recorders.
    pub(super) fn collect(&mut self) {
        self.steps = 0;
        let stamps = &mut self.stamps;
        let taken: Result<u64, Infallible> = self.collector.drain(|stamp| {
            stamps.push(*stamp);
            Ok(())
        });
        let Ok(_) = taken;
    }

    /// Stamps that found no room.
    pub(super) fn dropped(&self) -> u64 {
        self.collector.dropped()
    }

    /// Whether the slice has a renderer.
    pub(super) fn is_ready(&self, index: usize) -> bool {
        self.dispatcher.ready(index as u16).is_some()
    }
}

/// What a slice is made from.
struct Parts<'a> {
    slice: &'a SliceConfig,
    index: usize,
    phase: Nanos,
    origin: Nanos,
    clock: &'a FakeClock,
    wake: &'a EventFd,
    pacer: PacerSides,
    gpu: GpuHandle,
}

impl Parts<'_> {
    /// Joins worker, dispatcher and poster by rings, as a host does.
    fn wire(self, collector: &Collector) -> Result<(Slice, SliceLink), WorldError> {
        let registry = collector.registry();
        let slice = self.slice;
        let shared = Arc::clone(self.pacer.1.shared());
        let parts = JointParts {
            config: slice,
            index: SliceIndex(self.index as u16),
            slice: slice_id(self.index),
            generation: Generation(0),
            limits: SliceLimits { memory: slice.memory, max_resources: MAX_RESOURCES },
            phase: self.phase,
            origin: self.origin,
            pacer: self.pacer,
            gpu: self.gpu,
            tsc: Some(tsc::HOST),
            clock: Arc::new(self.clock.clone()),
            dispatcher: self.wake.clone(),
            recorders: [(); 2].map(|()| registry.recorder(DEFAULT_CAPACITY)),
        };
        let Joint { link, worker, poster } =
            joint::join(parts, joint::display(slice)).map_err(system("make an eventfd"))?;
        let counters = Arc::clone(&link.counters);
        Ok((
            Slice {
                worker,
                poster,
                counters,
                pacer: shared,
                stirred: false,
                resume: Nanos::MAX,
                asked: None,
            },
            link,
        ))
    }
}
