//! A doorbell's round trip: a client of vfio-user writes the eventfd that `GET_REGION_IO_FDS` gave it for the
//! control queue, the slice's worker wakes, takes a request that needs no GPU and wakes the slice's poster, which
//! writes the used ring and the client's interrupt eventfd: three wake-ups, from thread to thread.
//!
//! Beside it, three bare threads hand an eventfd's signal on in the same order, on the same CPUs and with the same
//! priorities, each in `poll`, `read`, `write`. Blocks of trips alternate, so that the machine's noise hits both.

use super::guest::{self, BAR, Guest, MEMORY, VECTOR};
use anyhow::{Context, ensure};
use beamline_abi::virtio_gpu::cmd;
use beamline_benches::report::{Gate, Row, table};
use beamline_benches::stats::Summary;
use beamline_mdev::config::HostConfig;
use beamline_mdev::device::eventfd::EventFd;
use beamline_mdev::host::threads::{KeepAwake, Placement, Role, pin};
use beamline_mdev::host::{Host, RendererProgram};
use beamline_vfio_user::client::Client;
use beamline_vfio_user::{DmaFlags, IrqIndex};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Blocks of each side.
const BLOCKS: usize = 40;
/// Trips of a block, and those before it that are not counted.
const TRIPS: usize = 100;
const WARM_UP: usize = 10;
/// Between two trips: a slice may make one request in 100 µs.
const PAUSE: Duration = Duration::from_micros(150);
/// At most this times what the bare threads take.
const LIMIT: f64 = 1.3;
/// How long a trip may take before the bench gives up. A bound, not a measure.
const PATIENCE: Timespec = Timespec { tv_sec: 20, tv_nsec: 0 };

/// Rows and gates.
pub(super) fn measure() -> anyhow::Result<(Vec<Row>, Vec<Gate>)> {
    let set = rustix::thread::sched_getaffinity(None).context("this process's CPUs")?;
    let cpus: Vec<usize> =
        (0..rustix::thread::CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect();
    ensure!(!cpus.is_empty(), "this process may use no CPU");
    // As a VMM and its host are placed: on a CPU each, where there are two.
    let (client, host) = (cpus[0], cpus[1 % cpus.len()]);
    let _awake = KeepAwake::start(&[client, host]).context("keep-awake threads")?;
    // In a thread of its own: it is pinned.
    let measured = std::thread::spawn(move || {
        let mut ours = Ours::start(host)?;
        let mut bare = Bare::start(host)?;
        pin(&[client]).context("pinning")?;
        let (mut of_ours, mut of_bare) = (Vec::new(), Vec::new());
        for number in 0..BLOCKS {
            let ours_first = number.is_multiple_of(2);
            if ours_first {
                block(|| ours.trip(), &mut of_ours)?;
            }
            block(|| bare.trip(), &mut of_bare)?;
            if !ours_first {
                block(|| ours.trip(), &mut of_ours)?;
            }
        }
        anyhow::Ok((of_ours, of_bare))
    });
    let (mut ours, mut bare) =
        measured.join().map_err(|_| anyhow::anyhow!("the client's thread panicked"))??;
    let (ours, bare) = (Summary::of(&mut ours), Summary::of(&mut bare));
    let ratio = ours.ratio(&bare);
    let rows = vec![
        Row { name: "three bare threads".into(), summary: bare, ratio: None },
        Row { name: "client, worker, poster".into(), summary: ours, ratio },
    ];
    print!("{}", table("A doorbell's round trip by eventfds", &rows));
    let what = "a doorbell's round trip over that of bare threads, medians";
    Ok((rows, vec![Gate::at_most(what, LIMIT, ratio.unwrap_or(f64::NAN))]))
}

fn block(
    mut trip: impl FnMut() -> anyhow::Result<Duration>,
    into: &mut Vec<u64>,
) -> anyhow::Result<()> {
    for n in 0..WARM_UP + TRIPS {
        std::thread::sleep(PAUSE);
        let time = trip()?;
        if n >= WARM_UP {
            into.push(time.as_nanos() as u64);
        }
    }
    Ok(())
}

/// Writes a doorbell, and waits for what comes back.
fn ring(doorbell: impl AsFd, back: impl AsFd) -> anyhow::Result<Duration> {
    let start = Instant::now();
    rustix::io::write(doorbell, &1u64.to_ne_bytes()).context("the doorbell")?;
    let ready = poll(&mut [PollFd::new(&back, PollFlags::IN)], Some(&PATIENCE)).context("poll")?;
    ensure!(ready == 1, "nothing came back");
    rustix::io::read(&back, &mut [0; 8]).context("the interrupt")?;
    Ok(start.elapsed())
}

/// A host with one slice, and its client.
struct Ours {
    guest: Guest,
    doorbell: OwnedFd,
    interrupt: EventFd,
    /// The connection, and then the host and its folder, end in this order.
    _client: Client,
    _host: Host,
    _folder: tempfile::TempDir,
}

impl Ours {
    /// A host on CPU `cpu`.
    fn start(cpu: usize) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir().context("a folder for the sockets")?;
        let text = format!(
            "run_dir = \"run\"\n[gpu]\nbackend = \"model\"\n[cpus]\nhost = [{cpu}]\nrealtime = true\n\
             [[slice]]\nname = \"s\"\nwidth = 64\nheight = 64\n[slice.contract]\n\
             refresh_hz = \"60\"\nclass = \"elastic\"\nbudget_ms = 0.1\nmax_job_ms = 0.1\n"
        );
        let config = HostConfig::parse(&text, &folder.path().join("host.toml"))?;
        let renderer = RendererProgram { exe: PathBuf::new(), args: Vec::new() };
        let host = Host::start(config, renderer)?;
        let socket = &host.ready().slices.first().context("there is a slice")?.gpu;
        let mut client = Client::connect(socket, Duration::from_secs(10)).context("the vGPU")?;
        let guest = Guest::new()?;
        let flags = DmaFlags { read: true, write: true };
        client.dma_map(0, MEMORY, flags, guest.memory().as_fd(), 0)?;
        let interrupt = EventFd::new().context("an eventfd")?;
        client.set_irqs(IrqIndex::MSIX, VECTOR.into(), &[interrupt.as_fd()])?;
        Guest::start(&mut |region, at, bytes| Ok(client.region_write(region, at, bytes)?))?;
        // The control queue is the first one.
        let doorbells = client.region_io_fds(BAR)?;
        let doorbell = doorbells.into_iter().min_by_key(|io| io.offset);
        let doorbell = doorbell.context("the vGPU has no doorbell")?.fd;
        Ok(Self { guest, doorbell, interrupt, _client: client, _host: host, _folder: folder })
    }

    fn trip(&mut self) -> anyhow::Result<Duration> {
        self.guest.offer(&guest::trivial())?;
        let time = ring(&self.doorbell, self.interrupt.as_fd())?;
        ensure!(self.guest.is_answered()?, "the interrupt came before the answer");
        let answer = self.guest.answer()?;
        ensure!(answer == cmd::RESP_OK_DISPLAY_INFO, "the answer is {answer:#x}");
        Ok(time)
    }
}

/// Two threads that hand a signal on.
struct Bare {
    doorbell: EventFd,
    interrupt: EventFd,
    between: EventFd,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Bare {
    /// On CPU `cpu`, in the worker's and the poster's roles.
    fn start(cpu: usize) -> anyhow::Result<Self> {
        let eventfd = || EventFd::new().context("an eventfd");
        let (doorbell, between, interrupt) = (eventfd()?, eventfd()?, eventfd()?);
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for (role, from, to) in
            [(Role::Worker, &doorbell, &between), (Role::Poster, &between, &interrupt)]
        {
            let placement = Placement { cpus: vec![cpu], realtime: true };
            let (from, to, stop) = (from.clone(), to.clone(), Arc::clone(&stop));
            let body = move || {
                while poll(&mut [PollFd::new(&from, PollFlags::IN)], None).is_ok() {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    from.take();
                    to.signal();
                }
            };
            threads.push(placement.spawn("bare", role, body).context("a thread")?);
        }
        Ok(Self { doorbell, interrupt, between, stop, threads })
    }

    fn trip(&mut self) -> anyhow::Result<Duration> {
        ring(self.doorbell.as_fd(), self.interrupt.as_fd())
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.doorbell.signal();
        self.between.signal();
        for thread in self.threads.drain(..) {
            // They only wait and signal.
            let _ = thread.join();
        }
    }
}
