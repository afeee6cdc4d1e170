//! Stage 5, GPU, as a model: service times in the caller's clock, and no image.
//!
//! Completions happen at exact times that follow from the submissions alone, so a run can be repeated.

use super::{Event, Gpu, GpuError, Grant, Label, MAX_QUEUED_JOBS, SliceKey, SliceLimits, Ticket};
use beamline_abi::frame::{MAX_COMMANDS, MAX_SUBMIT_BYTES, SubmitHeader};
use beamline_abi::{Nanos, Reason};
use std::collections::{HashMap, VecDeque};
use std::os::fd::BorrowedFd;
use zerocopy::FromBytes;

#[cfg(test)]
mod tests;

/// How long a job takes on an idle GPU.
pub trait CostModel: Send {
    /// Service time of the job with this header, ns.
    fn cost(&mut self, slice: SliceKey, job: &SubmitHeader) -> Nanos;
}

impl<F: FnMut(SliceKey, &SubmitHeader) -> Nanos + Send> CostModel for F {
    fn cost(&mut self, slice: SliceKey, job: &SubmitHeader) -> Nanos {
        self(slice, job)
    }
}

/// A [`CostModel`] with a time per slice and place in the frame, and seeded jitter.
#[derive(Clone, Debug)]
pub struct CostTable {
    base: HashMap<(u16, u16), Nanos>,
    default: Nanos,
    jitter_permille: u32,
    state: u64,
}

impl CostTable {
    /// Every job takes `default`.
    pub fn new(default: Nanos) -> Self {
        Self { base: HashMap::new(), default, jitter_permille: 0, state: 0 }
    }

    /// Job number `job` of the frames of slice `index` takes `cost`.
    #[must_use]
    pub fn with(mut self, index: u16, job: u16, cost: Nanos) -> Self {
        self.base.insert((index, job), cost);
        self
    }

    /// Each time is lengthened by up to `permille` thousandths, evenly, the same for the same seed.
    #[must_use]
    pub fn jitter(mut self, permille: u32, seed: u64) -> Self {
        self.jitter_permille = permille;
        self.state = seed;
        self
    }

    /// SplitMix64 (Steele, Lea, Flood 2014): every seed gives a full period.
    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

impl CostModel for CostTable {
    fn cost(&mut self, slice: SliceKey, job: &SubmitHeader) -> Nanos {
        let key = (slice.index, job.job.0);
        let base = self.base.get(&key).copied().unwrap_or(self.default);
        if self.jitter_permille == 0 {
            return base;
        }
        let part = self.random() % (u64::from(self.jitter_permille) + 1);
        let more = u128::from(base.0) * u128::from(part) / 1000;
        base.saturating_add(Nanos(u64::try_from(more).unwrap_or(u64::MAX)))
    }
}

/// What the modelled GPU does with several jobs at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// One after the other, in the order of submission.
    Fifo,
    /// All at once, each at an equal share: what a software GPU does that nobody mediates.
    Shared,
}

/// Attained service is counted in parts of a nanosecond that divide evenly among up to 16 jobs.
const PARTS: u128 = 720_720;

#[derive(Debug)]
struct Job {
    slice: SliceKey,
    ticket: Ticket,
    cost: Nanos,
    /// When it began to be served; set when that happens.
    start: Option<Nanos>,
    /// Parts of its cost not yet served.
    left: u128,
}

/// The modelled GPU.
pub struct ModelGpu {
    service: Service,
    cost: Box<dyn CostModel>,
    /// Until when `jobs` are served.
    clock: Nanos,
    /// In the order of submission.
    jobs: VecDeque<Job>,
    /// What has happened and was not handed out, in order.
    events: VecDeque<Event>,
    attached: Vec<SliceKey>,
}

impl ModelGpu {
    /// A GPU that takes for a job what `cost` says.
    pub fn new(service: Service, cost: impl CostModel + 'static) -> Self {
        Self {
            service,
            cost: Box::new(cost),
            clock: Nanos::ZERO,
            jobs: VecDeque::with_capacity(MAX_QUEUED_JOBS),
            events: VecDeque::with_capacity(2 * MAX_QUEUED_JOBS),
            attached: Vec::new(),
        }
    }

    fn check(&self, slice: SliceKey) -> Result<(), GpuError> {
        if self.attached.contains(&slice) { Ok(()) } else { Err(GpuError::NotAttached(slice)) }
    }

    /// How many jobs are served at once.
    fn served(&self) -> usize {
        match self.service {
            Service::Fifo => self.jobs.len().min(1),
            Service::Shared => self.jobs.len(),
        }
    }

    /// The job that ends first, and when.
    fn next_end(&self) -> Option<(usize, Nanos)> {
        let served = self.served();
        let (index, job) =
            self.jobs.iter().take(served).enumerate().min_by_key(|(_, job)| job.left)?;
        let wait = (job.left * served as u128).div_ceil(PARTS);
        let wait = Nanos(u64::try_from(wait).unwrap_or(u64::MAX));
        Some((index, self.clock.saturating_add(wait)))
    }

    /// Serves the jobs from the clock until `to`, during which none ends.
    fn serve(&mut self, to: Nanos) {
        let served = self.served();
        let span = u128::from(to.saturating_sub(self.clock).0) * PARTS;
        for job in self.jobs.iter_mut().take(served) {
            job.start.get_or_insert(self.clock);
            job.left = job.left.saturating_sub(span / served as u128);
        }
        self.clock = self.clock.max(to);
    }

    /// Everything that happens until `now`.
    fn advance(&mut self, now: Nanos) {
        while let Some((index, end)) = self.next_end() {
            if end > now {
                break;
            }
            self.serve(end);
            let Some(job) = self.jobs.remove(index) else {
                break;
            };
            self.events.push_back(Event::Done {
                slice: job.slice,
                ticket: job.ticket,
                gpu_start: job.start.unwrap_or(end),
                gpu_end: end,
                busy: job.cost,
                estimated: false,
                result: Ok(()),
            });
        }
        self.serve(now);
    }
}

impl Gpu for ModelGpu {
    fn label(&self) -> Label {
        Label::Modelled
    }

    fn describe(&self) -> String {
        match self.service {
            Service::Fifo => "model, one job at a time".into(),
            Service::Shared => "model, all jobs share".into(),
        }
    }

    fn attach(&mut self, slice: SliceKey, limits: SliceLimits) -> Result<(), GpuError> {
        if limits.max_resources > super::MAX_RESOURCES {
            return Err(GpuError::Limits(limits.max_resources));
        }
        if let Some(&old) = self.attached.iter().find(|old| old.index == slice.index) {
            return Err(GpuError::InUse { new: slice, old });
        }
        self.attached.push(slice);
        self.events.push_back(Event::Ready { slice, description: self.describe() });
        Ok(())
    }

    fn detach(&mut self, slice: SliceKey) {
        self.attached.retain(|&other| other != slice);
        self.jobs.retain(|job| job.slice != slice);
        self.events.retain(|event| event.slice() != slice);
    }

    fn configure(&mut self, slice: SliceKey, token: u64, setup: &[u8]) -> Result<(), GpuError> {
        self.check(slice)?;
        let result = match SubmitHeader::read_from_prefix(setup) {
            Ok(_) => Ok(()),
            Err(_) => Err(Reason::Malformed),
        };
        self.events.push_back(Event::Configured { slice, token, result });
        Ok(())
    }

    fn submit(&mut self, now: Nanos, grant: Grant<'_>) -> Result<(), GpuError> {
        let (slice, ticket) = (grant.slice(), grant.ticket());
        let (job, latched) = (grant.bytes(), grant.latched());
        self.check(slice)?;
        if job.len() > MAX_SUBMIT_BYTES || latched.len() > MAX_COMMANDS {
            return Err(GpuError::TooLong { len: job.len(), latched: latched.len() });
        }
        if self.jobs.iter().filter(|job| job.slice == slice).count() >= MAX_QUEUED_JOBS {
            return Err(GpuError::Busy(slice));
        }
        self.advance(now);
        let Ok((header, _)) = SubmitHeader::read_from_prefix(job) else {
            self.events.push_back(Event::Done {
                slice,
                ticket,
                gpu_start: now,
                gpu_end: now,
                busy: Nanos::ZERO,
                estimated: false,
                result: Err(Reason::Malformed),
            });
            return Ok(());
        };
        let cost = self.cost.cost(slice, &header);
        self.jobs.push_back(Job {
            slice,
            ticket,
            cost,
            start: None,
            left: u128::from(cost.0) * PARTS,
        });
        Ok(())
    }

    fn poll(&mut self, now: Nanos, events: &mut dyn FnMut(Event)) {
        self.advance(now);
        while let Some(event) = self.events.pop_front() {
            events(event);
        }
    }

    fn next_event(&self) -> Option<Nanos> {
        if !self.events.is_empty() {
            return Some(self.clock);
        }
        self.next_end().map(|(_, end)| end)
    }

    fn register(&self, _poller: &mut dyn FnMut(BorrowedFd<'_>)) {}

    fn capture(&mut self, slice: SliceKey) -> Result<(), GpuError> {
        self.check(slice)?;
        Err(GpuError::Unsupported("the model backend draws no images"))
    }
}
