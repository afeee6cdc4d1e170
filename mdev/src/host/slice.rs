//! The threads of one slice: two servers, a worker and a poster, and what joins them.

use super::bells::{Bells, Heard};
use super::collect::RING as STAMPS;
use super::threads::{Placement, Role};
use super::{HostError, system};
use crate::backend::SliceLimits;
use crate::config::{HostConfig, Profile, SliceConfig};
use crate::device::eventfd::EventFd;
use crate::device::pacer::{Pacer, PacerConfig, PacerShared};
use crate::device::virtio::gpu::{GpuConfig, VirtioGpu};
use crate::mediate::dispatcher::SliceLink;
use crate::mediate::display::screen::Screen;
use crate::mediate::joint::{self, Joint, JointParts};
use crate::mediate::poster::Poster;
use crate::mediate::worker::{Turn, Worker};
use beamline_abi::virtio_gpu::{CONTROL_QUEUE, CURSOR_QUEUE};
use beamline_abi::{Generation, Nanos, SliceId};
use beamline_latency::clock::{Clock, GuestTsc, TscMap};
use beamline_latency::recorder::Recorder;
use beamline_latency::stamp::SliceIndex;
use beamline_vfio_user::Device;
use beamline_vfio_user::server::{Listener, Stop};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a slice's threads may take to end.
pub(super) const STOP_PATIENCE: Duration = Duration::from_secs(2);
/// Resource IDs of one context.
const MAX_RESOURCES: u32 = 1024;

/// What a slice is made from.
pub(super) struct Parts<'a> {
    pub(super) config: &'a HostConfig,
    pub(super) slice: &'a SliceConfig,
    pub(super) index: u16,
    /// Its first life.
    pub(super) generation: Generation,
    pub(super) phase: Nanos,
    /// Vblank 0 of the host's grid.
    pub(super) origin: Nanos,
    pub(super) clock: &'a Arc<dyn Clock>,
    pub(super) tsc: TscMap,
    pub(super) placement: &'a Placement,
    /// Wakes the dispatcher.
    pub(super) dispatcher: &'a EventFd,
    pub(super) recorder: &'a dyn Fn(usize) -> Recorder,
}

/// The threads of one slice. Dropping it ends them.
pub(super) struct SliceServer {
    stop: Stop,
    threads: Vec<JoinHandle<()>>,
    pacer: Arc<PacerShared>,
    screen: Arc<Screen>,
}

impl SliceServer {
    /// What the guest shows without a GPU.
    pub(super) fn screen(&self) -> &Arc<Screen> {
        &self.screen
    }

    /// What is said to its guest, and heard from it.
    pub(super) fn pacer(&self) -> &Arc<PacerShared> {
        &self.pacer
    }

    /// How the guest's TSC runs, as its VMM said.
    pub(super) fn guest_tsc(&self) -> Option<GuestTsc> {
        self.pacer.guest_tsc()
    }

    /// The slice's latest life.
    pub(super) fn generation(&self) -> Generation {
        self.pacer.generation()
    }

    /// Tells the threads to end.
    pub(super) fn ask_to_stop(&self) {
        self.stop.stop();
    }

    /// Waits for the threads, which remove the sockets; how many a peer still holds up at `deadline`. Those
    /// end with the process.
    pub(super) fn join(&mut self, deadline: Instant) -> usize {
        let mut stuck = 0;
        for thread in self.threads.drain(..) {
            // The end of a thread cannot be waited for with a limit.
            while !thread.is_finished() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
            if thread.is_finished() {
                // A thread that panicked has said so; the others still end.
                let _ = thread.join();
            } else {
                stuck += 1;
            }
        }
        stuck
    }
}

impl Drop for SliceServer {
    fn drop(&mut self) {
        self.ask_to_stop();
        self.join(Instant::now() + STOP_PATIENCE);
    }
}

/// Makes a slice's functions, starts its threads, and answers what the dispatcher needs of it.
pub(super) fn start(parts: &Parts<'_>) -> Result<(SliceServer, SliceLink), HostError> {
    let name = &parts.slice.name;
    let device = |problem: String| HostError::Device { slice: name.clone(), problem };
    let slice_id = new_slice_id().map_err(system("make a slice ID"))?;
    let clock = Arc::clone(parts.clock);
    let pacer_config = PacerConfig {
        slice: slice_id,
        generation: parts.generation,
        now: Arc::new(move || clock.now()),
    };
    let (pacer, pacer_beat, pacer_handle) =
        Pacer::new(pacer_config).map_err(|e| device(e.to_string()))?;
    let (gpu, gpu_handle) =
        VirtioGpu::new(gpu_config(parts.slice)).map_err(|e| device(e.to_string()))?;
    let display = joint::display(parts.slice);
    let screen = display.screen();
    let shared = Arc::clone(pacer_handle.shared());
    let joined = JointParts {
        config: parts.slice,
        index: SliceIndex(parts.index),
        slice: slice_id,
        generation: parts.generation,
        limits: SliceLimits { memory: parts.slice.memory, max_resources: MAX_RESOURCES },
        phase: parts.phase,
        origin: parts.origin,
        pacer: (pacer_beat, pacer_handle),
        gpu: gpu_handle,
        tsc: Some(parts.tsc),
        clock: Arc::clone(parts.clock),
        dispatcher: parts.dispatcher.clone(),
        recorders: [(); 2].map(|()| (parts.recorder)(STAMPS)),
    };
    let Joint { link, worker, poster } =
        joint::join(joined, display).map_err(|e| system("make an eventfd")(e.into()))?;
    let functions = Functions { pacer, gpu, shared, screen };
    let server = start_threads(parts, functions, worker, poster, &link.poster)?;
    Ok((server, link))
}

/// What a slice's vGPU offers.
fn gpu_config(slice: &SliceConfig) -> GpuConfig {
    GpuConfig { contexts: slice.profile == Profile::Render }
}

/// The functions of a slice, and what is read of them from outside.
struct Functions {
    pacer: Pacer,
    gpu: VirtioGpu,
    shared: Arc<PacerShared>,
    screen: Arc<Screen>,
}

fn start_threads(
    parts: &Parts<'_>,
    functions: Functions,
    worker: Worker,
    poster: Poster,
    poster_wake: &EventFd,
) -> Result<SliceServer, HostError> {
    let name = &parts.slice.name;
    let stop = Stop::new().map_err(system("make a stop handle"))?;
    let Functions { pacer, gpu, shared, screen } = functions;
    let (stop_all, threads) = (stop.clone(), Vec::new());
    let mut server = SliceServer { stop: stop_all, threads, pacer: shared, screen };
    let mut spawn = |kind: &str, role, body: Box<dyn FnOnce() + Send>| {
        let thread = parts.placement.spawn(&format!("{kind}-{name}"), role, body);
        thread.map(|t| server.threads.push(t)).map_err(system("start a slice's thread"))
    };
    let device = worker.device();
    let queues = [CONTROL_QUEUE, CURSOR_QUEUE].into_iter();
    let kicks: Vec<EventFd> = queues.filter_map(|queue| device.kick(queue)).cloned().collect();
    let heard: Vec<&EventFd> = kicks.iter().chain([device.wake()]).collect();
    let waits = |heard: &[&EventFd]| Bells::new(heard, &stop).map_err(system("make an epoll"));
    let worker_bells = waits(&heard)?;
    let poster_bells = waits(&[poster_wake, poster.pacer().wake()])?;
    let (clock, worker_stop) = (Arc::clone(parts.clock), stop.clone());
    let work = move || run_worker(worker, &kicks, &*clock, &worker_bells, &worker_stop);
    spawn("work", Role::Worker, Box::new(work))?;
    spawn("post", Role::Poster, Box::new(move || run_poster(poster, &poster_bells)))?;
    let listen = |path: &Path| {
        Listener::bind(path).map_err(|source| HostError::Listen { slice: name.clone(), source })
    };
    let pacer_listener = listen(&parts.config.pacer_socket(parts.slice))?;
    let gpu_listener = listen(&parts.config.gpu_socket(parts.slice))?;
    let pacer_stop = stop.clone();
    spawn(
        "pacer",
        Role::Server,
        Box::new(move || run_server(&pacer_listener, pacer, &pacer_stop)),
    )?;
    spawn("vgpu", Role::Server, Box::new(move || run_server(&gpu_listener, gpu, &stop)))?;
    Ok(server)
}

fn run_server(listener: &Listener, mut device: impl Device, stop: &Stop) {
    if let Err(error) = listener.serve(&mut device, stop) {
        tracing::warn!(socket = %listener.path().display(), %error, "the socket is not served any more");
    }
    device.disconnected();
}

fn run_worker(
    mut worker: Worker,
    kicks: &[EventFd],
    clock: &dyn Clock,
    bells: &Bells,
    stop: &Stop,
) {
    let wake = worker.device().wake().clone();
    let mut heard = Heard::default();
    loop {
        let ended = match worker.step(clock) {
            Turn::Again => wait(&mut [readable(stop)], Some(Nanos::ZERO)),
            // The doorbells are left alone: the guest cannot make its time come sooner.
            Turn::Throttled(until) => {
                let left = until.saturating_sub(clock.now()).max(Nanos(1));
                let ended = wait(&mut [readable(&wake), readable(stop)], Some(left));
                // Who waits for readiness has to take it.
                wake.take();
                ended
            }
            // Doorbells are counted when the work is done. One that came meanwhile is counted with them: look again.
            Turn::Wait if worker.count_doorbells(rung(kicks, std::mem::take(&mut heard))) => false,
            Turn::Wait => {
                heard = bells.wait();
                heard.stop()
            }
        };
        if ended {
            return;
        }
    }
}

/// How often those of the doorbells rang that were heard.
fn rung(kicks: &[EventFd], heard: Heard) -> u64 {
    let heard = kicks.iter().enumerate().filter(|(number, _)| heard.has(*number));
    heard.map(|(_, kick)| kick.take_all()).fold(0, u64::saturating_add)
}

fn run_poster(mut poster: Poster, bells: &Bells) {
    loop {
        poster.step();
        if bells.wait().stop() {
            return;
        }
    }
}

pub(super) fn readable<T: std::os::fd::AsFd>(fd: &T) -> PollFd<'_> {
    PollFd::new(fd, PollFlags::IN)
}

/// Waits for any of `fds`, at most for `time`; `true` where the last one, the stop handle, is readable.
pub(super) fn wait(fds: &mut [PollFd<'_>], time: Option<Nanos>) -> bool {
    let time = time.map(|t| Timespec {
        tv_sec: (t.0 / 1_000_000_000) as i64,
        tv_nsec: (t.0 % 1_000_000_000) as i64,
    });
    match poll(fds, time.as_ref()) {
        Ok(_) => fds.last().is_none_or(|stop| !stop.revents().is_empty()),
        Err(rustix::io::Errno::INTR) => false,
        Err(error) => {
            tracing::error!(%error, "a slice's thread cannot wait");
            true
        }
    }
}

/// Random, so that a slice of one host is never taken for one of another.
fn new_slice_id() -> io::Result<SliceId> {
    let mut id = [0; 16];
    let n = rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())?;
    if n == id.len() { Ok(SliceId(id)) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doorbells_that_were_heard_count_once_each() {
        let stop = Stop::new().unwrap();
        let kicks = [EventFd::new().unwrap(), EventFd::new().unwrap()];
        let bells = Bells::new(&[&kicks[0], &kicks[1]], &stop).unwrap();
        assert_eq!(rung(&kicks, Heard::default()), 0);
        for (kick, times) in kicks.iter().zip([3, 2]) {
            (0..times).for_each(|_| kick.signal());
        }
        let heard = bells.wait();
        assert_eq!((rung(&kicks, heard), rung(&kicks, heard)), (5, 0));
        kicks[1].signal();
        assert_eq!(rung(&kicks, Heard::default()), 0);
        assert_eq!(rung(&kicks, bells.wait()), 1);
    }
}
