//! A host whose slices are attached, with their vblanks on, and do nothing else.

use anyhow::{Context, anyhow, ensure};
use beamline_abi::Nanos;
use beamline_abi::pacer::{TimingPage, control, reg, vector};
use beamline_abi::pci::{command, config};
use beamline_latency::log::Log;
use beamline_latency::stamp::Stage;
use beamline_mdev::config::HostConfig;
use beamline_mdev::host::{Host, RendererProgram};
use beamline_vfio_user::client::Client;
use beamline_vfio_user::{IrqIndex, RegionIndex};
use rustix::event::{EventfdFlags, eventfd};
use std::fmt::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;
use zerocopy::FromBytes;

const PATIENCE: Duration = Duration::from_secs(20);

/// How a host is run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setup {
    pub(super) slices: usize,
    pub(super) hz: u64,
    /// Keep the CPUs awake and take real-time priority, as a host that serves guests does.
    pub(super) prompt: bool,
    /// Log what happens when, as a host does where its configuration says so.
    pub(super) stamps: bool,
}

/// One guest's VMM, as far as the pacer needs it.
struct Attached {
    client: Client,
    /// Counts the vblanks; nobody waits for it.
    _vblanks: OwnedFd,
}

pub(super) struct Pacers {
    host: Host,
    attached: Vec<Attached>,
    stamps: PathBuf,
    /// Its sockets and its log.
    _folder: tempfile::TempDir,
}

impl Pacers {
    pub(super) fn start(setup: Setup) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir().context("a folder for the sockets")?;
        let Setup { slices, hz, prompt, stamps } = setup;
        let mut text = format!(
            "run_dir = \"run\"\n[gpu]\nbackend = \"model\"\n\
             [cpus]\nkeep_awake = {prompt}\nrealtime = {prompt}\n"
        );
        if stamps {
            text.push_str("[output]\nstamps = \"stamps.bin\"\n");
        }
        for n in 0..slices {
            // Writing to a String cannot fail.
            let _ = write!(
                text,
                "[[slice]]\nname = \"s{n}\"\nwidth = 640\nheight = 480\n\
                 [slice.contract]\nrefresh_hz = \"{hz}\"\nclass = \"elastic\"\n\
                 budget_ms = 0.1\nmax_job_ms = 0.1\n"
            );
        }
        let config = HostConfig::parse(&text, &folder.path().join("host.toml"))?;
        let stamps = folder.path().join("stamps.bin");
        let renderer = RendererProgram { exe: PathBuf::new(), args: Vec::new() };
        let host = Host::start(config, renderer)?;
        let attached =
            host.ready().slices.iter().map(|slice| Attached::new(&slice.pacer)).collect();
        let attached: Result<_, _> = attached;
        Ok(Self { host, attached: attached?, stamps, _folder: folder })
    }

    /// The first slice, for who misuses it: its pacer's client, and its vGPU's socket.
    pub(super) fn first(&mut self) -> anyhow::Result<(&mut Client, PathBuf)> {
        let gpu = self.host.ready().slices.first().context("there is no slice")?.gpu.clone();
        let attached = self.attached.first_mut().context("nobody is attached")?;
        Ok((&mut attached.client, gpu))
    }

    /// Ends the host: by slice, the errors of its vblanks against its grid, in their order, ns.
    pub(super) fn end(mut self, setup: Setup) -> anyhow::Result<Vec<Vec<u64>>> {
        let pages: Vec<TimingPage> =
            self.attached.iter_mut().map(Attached::page).collect::<Result<_, _>>()?;
        drop(self.attached);
        let drained = self.host.drain();
        ensure!(drained.problems.is_empty(), "{}", drained.problems.join("; "));
        if !setup.stamps {
            return Ok(Vec::new());
        }
        let log = Log::read(&self.stamps).context("the host's stamps")?;
        ensure!(log.dropped == 0, "{} stamps were dropped", log.dropped);
        let mut errors = vec![Vec::new(); setup.slices];
        for stamp in log.stamps.iter().filter(|s| s.stage() == Some(Stage::Posted)) {
            let of = usize::from(stamp.slice.0);
            let (page, errors) =
                pages.get(of).zip(errors.get_mut(of)).context("a strange slice")?;
            let at = grid(page, setup.hz, stamp.a);
            // Its interrupt has been sent by the end of the call, and not before.
            let error = stamp.b.checked_sub(at);
            errors.push(error.ok_or_else(|| anyhow!("vblank {} came before its time", stamp.a))?);
        }
        Ok(errors)
    }
}

/// The time of vblank `seq`, from that of another. At most a nanosecond early, where the period is no whole number.
fn grid(page: &TimingPage, hz: u64, seq: u64) -> u64 {
    let since = |n: u64| (u128::from(n) * 1_000_000_000 / u128::from(hz)) as u64;
    let Nanos(known) = page.vblank_time;
    match seq.checked_sub(page.vblank_seq) {
        Some(after) => known + since(after),
        None => known - since(page.vblank_seq - seq) - 1,
    }
}

impl Attached {
    fn new(socket: &std::path::Path) -> anyhow::Result<Self> {
        let mut client = Client::connect(socket, PATIENCE).context("a pacer's socket")?;
        let vblanks = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        client.set_irqs(IrqIndex::MSIX, vector::VBLANK.into(), &[vblanks.as_fd()])?;
        let bits = command::MEMORY | command::BUS_MASTER;
        client.region_write(RegionIndex::CONFIG, config::COMMAND.into(), &bits.to_le_bytes())?;
        let on = control::VBLANK_ENABLE.to_le_bytes();
        client.region_write(RegionIndex::bar(0), reg::CONTROL.into(), &on)?;
        Ok(Self { client, _vblanks: vblanks })
    }

    fn page(&mut self) -> anyhow::Result<TimingPage> {
        let mut bytes = [0; size_of::<TimingPage>()];
        loop {
            self.client.region_read(RegionIndex::bar(2), 0, &mut bytes)?;
            let page = TimingPage::read_from_bytes(&bytes).map_err(|_| anyhow!("a short page"))?;
            ensure!(page.vblank_seq > 0, "no vblank was published");
            if page.lock.is_multiple_of(2) {
                return Ok(page);
            }
        }
    }
}
