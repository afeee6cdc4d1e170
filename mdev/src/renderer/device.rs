//! The Vulkan device of one renderer: which one, its errors, and its clock.

use super::RendererError;
use beamline_abi::{Nanos, Reason};
use rustix::time::{ClockId, clock_gettime};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll, Waker};
use wgpu::{
    Adapter, AdapterInfo, Backends, Buffer, BufferDescriptor, BufferUsages, CommandEncoder,
    ComputePassTimestampWrites, DeviceDescriptor, DeviceType, ErrorFilter, Features, Instance,
    InstanceDescriptor, InstanceFlags, MapMode, MemoryHints, PollType, QuerySet,
    QuerySetDescriptor, QueryType, Queue, SubmissionIndex,
};

/// Bytes of the two timestamps of a job.
const STAMP_BYTES: u64 = 16;

/// The time of the clock that all of Beamline uses.
pub(crate) fn now() -> Nanos {
    let time = clock_gettime(ClockId::Monotonic);
    // Monotonic time starts at 0 and its nanoseconds are below a second, so neither is negative.
    Nanos(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

/// The value of a future that does not wait: all of wgpu's are such on Vulkan.
fn at_once<F: Future>(future: F) -> Option<F::Output> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

/// Errors that wgpu reports beside its return values.
#[derive(Debug, Default)]
struct Faults {
    /// The last error outside a scope, as a [`Reason`]; 0 for none.
    uncaptured: AtomicU32,
    lost: AtomicBool,
}

/// The device.
pub(crate) struct Device {
    pub(crate) handle: wgpu::Device,
    pub(crate) queue: Queue,
    faults: Arc<Faults>,
    description: String,
}

impl Device {
    /// Opens the adapter whose name contains `filter`, the most capable kind first.
    pub(crate) fn open(filter: Option<&str>) -> Result<Self, RendererError> {
        let adapter = choose(&open_vulkan(), filter)?;
        let info = adapter.get_info();

        let wanted = Features::TIMESTAMP_QUERY | Features::CLEAR_TEXTURE;
        let (device, queue) = at_once(adapter.request_device(&DeviceDescriptor {
            label: None,
            required_features: adapter.features() & wanted,
            memory_hints: MemoryHints::MemoryUsage,
            ..DeviceDescriptor::default()
        }))
        .ok_or_else(|| RendererError::Device("it does not answer at once".into()))?
        .map_err(|error| RendererError::Device(error.to_string()))?;

        let faults = Arc::new(Faults::default());
        let seen = Arc::clone(&faults);
        device.on_uncaptured_error(Arc::new(move |error| {
            seen.uncaptured.store(reason(&error) as u32, Ordering::Relaxed);
        }));
        let seen = Arc::clone(&faults);
        device.set_device_lost_callback(move |_, _| seen.lost.store(true, Ordering::Relaxed));

        let timestamps = device.features().contains(Features::TIMESTAMP_QUERY);
        Ok(Self { description: describe(&info, timestamps), handle: device, queue, faults })
    }

    /// The GPU and its driver, for people.
    pub(crate) fn description(&self) -> &str {
        &self.description
    }

    /// What takes the times of one job at a time.
    pub(crate) fn timer(&self) -> Timer {
        let timestamps = self.handle.features().contains(Features::TIMESTAMP_QUERY);
        Timer(timestamps.then(|| Stamps::new(&self.handle, &self.queue)))
    }

    /// The error since the last call, where there was one.
    pub(crate) fn fault(&self) -> Result<(), Reason> {
        let raw = self.faults.uncaptured.swap(0, Ordering::Relaxed);
        match Reason::from_raw(raw) {
            Some(Reason::None) => Ok(()),
            reason => Err(reason.unwrap_or(Reason::DeviceLost)),
        }
    }

    /// The device is lost and this process is of no further use.
    pub(crate) fn is_lost(&self) -> bool {
        self.faults.lost.load(Ordering::Relaxed)
    }

    /// Runs `make` and answers the error it raised, if any, instead of its value.
    pub(crate) fn scoped<T>(&self, make: impl FnOnce() -> T) -> Result<T, Reason> {
        let scopes = [ErrorFilter::Internal, ErrorFilter::OutOfMemory, ErrorFilter::Validation]
            .map(|filter| self.handle.push_error_scope(filter));
        let value = make();
        let mut result = Ok(value);
        // Scopes end in the reverse of the order they began in.
        for scope in scopes.into_iter().rev() {
            if let Some(Some(error)) = at_once(scope.pop()) {
                result = Err(reason(&error));
            }
        }
        result
    }

    /// Waits until a submission has left the GPU.
    pub(crate) fn wait(&self, submission: SubmissionIndex) -> Result<(), Reason> {
        let wait = PollType::Wait { submission_index: Some(submission), timeout: None };
        match self.handle.poll(wait) {
            Ok(_) if !self.is_lost() => Ok(()),
            _ => Err(Reason::DeviceLost),
        }
    }
}

fn reason(error: &wgpu::Error) -> Reason {
    match error {
        wgpu::Error::OutOfMemory { .. } => Reason::Quota,
        wgpu::Error::Validation { .. } => Reason::Malformed,
        wgpu::Error::Internal { .. } => Reason::DeviceLost,
    }
}

/// The names of all Vulkan devices of this machine, the one that is taken without a filter first. Loads
/// their drivers into this process.
pub fn adapters() -> Vec<String> {
    ranked(&open_vulkan()).iter().map(|one| one.get_info().name).collect()
}

fn open_vulkan() -> Instance {
    let mut descriptor = InstanceDescriptor::new_without_display_handle();
    descriptor.backends = Backends::VULKAN;
    descriptor.flags = InstanceFlags::DISCARD_HAL_LABELS;
    Instance::new(descriptor)
}

/// All adapters, the most capable kind first.
fn ranked(instance: &Instance) -> Vec<Adapter> {
    let mut all = at_once(instance.enumerate_adapters(Backends::VULKAN)).unwrap_or_default();
    let rank = |adapter: &Adapter| match adapter.get_info().device_type {
        DeviceType::DiscreteGpu => 0,
        DeviceType::IntegratedGpu => 1,
        DeviceType::VirtualGpu => 2,
        DeviceType::Other => 3,
        DeviceType::Cpu => 4,
    };
    all.sort_by_key(rank);
    all
}

fn choose(instance: &Instance, filter: Option<&str>) -> Result<Adapter, RendererError> {
    let mut all = ranked(instance);
    if all.is_empty() {
        return Err(RendererError::NoVulkan);
    }
    let names: Vec<String> = all.iter().map(|one| one.get_info().name).collect();
    let wanted = filter.unwrap_or_default().to_lowercase();
    let found = names.iter().position(|name| name.to_lowercase().contains(&wanted));
    match found {
        Some(index) => Ok(all.swap_remove(index)),
        None => Err(RendererError::NoSuchAdapter {
            wanted: filter.unwrap_or_default().into(),
            there: names.join("; "),
        }),
    }
}

fn describe(info: &AdapterInfo, timestamps: bool) -> String {
    let clock = if timestamps { "GPU timestamps" } else { "no GPU timestamps" };
    format!("{} ({} {}, Vulkan, {clock})", info.name, info.driver, info.driver_info)
}

/// When a job ran, and for how long.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Span {
    pub(crate) start: Nanos,
    pub(crate) end: Nanos,
    pub(crate) busy: Nanos,
    pub(crate) estimated: bool,
}

impl Span {
    /// A job that never reached the GPU.
    pub(crate) fn none(at: Nanos) -> Self {
        Self { start: at, end: at, ..Self::default() }
    }
}

/// Takes the GPU's time at both ends of a job; where the GPU has no timestamps, the host's alone.
pub(crate) struct Timer(Option<Stamps>);

impl Timer {
    /// What the job's compute pass writes.
    pub(crate) fn writes(&self) -> Option<ComputePassTimestampWrites<'_>> {
        self.0.as_ref().map(|stamps| ComputePassTimestampWrites {
            query_set: &stamps.queries,
            beginning_of_pass_write_index: Some(0),
            end_of_pass_write_index: Some(1),
        })
    }

    /// After the pass: brings the times to where they can be read.
    pub(crate) fn resolve(&self, encoder: &mut CommandEncoder) {
        if let Some(stamps) = &self.0 {
            encoder.resolve_query_set(&stamps.queries, 0..2, &stamps.resolved, 0);
            encoder.copy_buffer_to_buffer(&stamps.resolved, 0, &stamps.readable, 0, STAMP_BYTES);
        }
    }

    /// After the submission, before the wait. A failure shows in [`Self::read`].
    pub(crate) fn map(&self) {
        if let Some(stamps) = &self.0 {
            stamps.readable.map_async(MapMode::Read, .., |_| {});
        }
    }

    /// After the wait: when the job ran, if it was submitted and notified at these host times, and the one
    /// before it was done at `free`.
    pub(crate) fn read(&self, submitted: Nanos, free: Nanos, notified: Nanos) -> Span {
        let ticks = self.0.as_ref().and_then(|stamps| {
            let ticks = stamps.ticks();
            stamps.readable.unmap();
            Some((ticks?, stamps.period))
        });
        place(ticks, submitted, free, notified)
    }
}

struct Stamps {
    queries: QuerySet,
    resolved: Buffer,
    readable: Buffer,
    /// Nanoseconds per tick.
    period: f64,
}

impl Stamps {
    fn new(device: &wgpu::Device, queue: &Queue) -> Self {
        let buffer = |usage| {
            device.create_buffer(&BufferDescriptor {
                label: None,
                size: STAMP_BYTES,
                usage,
                mapped_at_creation: false,
            })
        };
        Self {
            queries: device.create_query_set(&QuerySetDescriptor {
                label: None,
                ty: QueryType::Timestamp,
                count: 2,
            }),
            resolved: buffer(BufferUsages::QUERY_RESOLVE | BufferUsages::COPY_SRC),
            readable: buffer(BufferUsages::MAP_READ | BufferUsages::COPY_DST),
            period: f64::from(queue.get_timestamp_period()),
        }
    }

    fn ticks(&self) -> Option<[u64; 2]> {
        let view = self.readable.get_mapped_range(..).ok()?;
        let read = |from: usize| {
            let bytes = view.get(from..from + 8)?;
            Some(u64::from_le_bytes(bytes.try_into().ok()?))
        };
        Some([read(0)?, read(8)?])
    }
}

/// Places a job in host time by the GPU's ticks at its ends, of so many nanoseconds each. Where these times lie
/// between submission and notification, the GPU's clock is the host's (so it is on a software GPU) and they are
/// exact. Without ticks a job that stood in line ran from when the GPU was `free`.
fn place(ticks: Option<([u64; 2], f64)>, submitted: Nanos, free: Nanos, notified: Nanos) -> Span {
    let Some(([begin, end], period)) = ticks else {
        let start = submitted.max(free).min(notified);
        return Span { start, end: notified, busy: notified - start, estimated: true };
    };
    let whole = notified.saturating_sub(submitted);
    // One nanosecond per tick needs no rounding, and a host's monotonic time is too long for an f64.
    let exact = (period - 1.0).abs() < f64::EPSILON;
    let ns = |ticks: u64| {
        if exact { ticks } else { (ticks as f64 * period) as u64 }
    };
    let busy = Nanos(ns(end.saturating_sub(begin))).min(whole);
    if exact && begin >= submitted.0 && end <= notified.0 && begin <= end {
        return Span { start: Nanos(begin), end: Nanos(end), busy, estimated: false };
    }
    Span { start: notified.saturating_sub(busy), end: notified, busy, estimated: true }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUBMITTED: Nanos = Nanos(10_000);
    const FREE: Nanos = Nanos(8_000);
    const NOTIFIED: Nanos = Nanos(20_000);

    #[test]
    fn a_clock_like_the_hosts_is_exact() {
        // Also that of a job which began before the host was told of the end of the one before it.
        for free in [FREE, Nanos(11_500)] {
            let span = place(Some(([11_000, 19_000], 1.0)), SUBMITTED, free, NOTIFIED);
            assert_eq!((span.start, span.end), (Nanos(11_000), Nanos(19_000)));
            assert_eq!((span.busy, span.estimated), (Nanos(8_000), false));
        }
    }

    #[test]
    fn any_other_clock_gives_only_the_length() {
        for (ticks, period, busy) in [
            ([500, 2_500], 1.0, 2_000),
            ([500, 2_500], 2.0, 4_000),
            // Longer than the host saw: the host is right.
            ([0, u64::MAX], 1.0, 10_000),
            // Backwards.
            ([9, 3], 1.0, 0),
        ] {
            let span = place(Some((ticks, period)), SUBMITTED, FREE, NOTIFIED);
            assert_eq!((span.busy, span.end), (Nanos(busy), NOTIFIED));
            assert_eq!(span.start, NOTIFIED - Nanos(busy));
            assert!(span.estimated);
        }
    }

    #[test]
    fn without_timestamps_the_whole_wait_is_charged_but_for_the_job_before() {
        for (free, start) in [(FREE, SUBMITTED), (Nanos(15_000), Nanos(15_000))] {
            let span = place(None, SUBMITTED, free, NOTIFIED);
            assert_eq!((span.start, span.busy), (start, NOTIFIED - start));
            assert!(span.estimated);
        }
    }
}
