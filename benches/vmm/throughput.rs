//! Frames per second of one guest alone through the whole stack, beside a host process that submits the same frames
//! straight to wgpu ([`direct`](super::direct)). Rounds of both take turns.

use super::direct;
use super::process::Process;
use anyhow::{Context, ensure};
use beamline_benches::report::Gate;
use beamline_mdev::host::threads::KeepAwake;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// The image.
pub(crate) const WIDTH: u32 = 256;
pub(crate) const HEIGHT: u32 = 144;
/// Frames that are submitted before the first of them has to be done.
pub(crate) const DEPTH: usize = 4;
/// Rounds of each side.
const ROUNDS: usize = 5;
/// How long each round counts.
const LENGTH: Duration = Duration::from_secs(4);
/// How long a guest draws before its round.
const SETTLE: Duration = Duration::from_secs(1);
/// What a frame is to take, s: that of a game which fills a GPU at 120 Hz.
const FRAME_S: f64 = 1.0 / 120.0;
/// Least of the stack's frames over the process's.
const LIMIT: f64 = 0.97;

pub(crate) fn measure(beamline: &Path, image: &Path) -> anyhow::Result<Option<Gate>> {
    if !direct::has_gpu(beamline) {
        println!("skip: throughput: no Vulkan device (`make setup` installs a software one)");
        return Ok(None);
    }
    let set = rustix::thread::sched_getaffinity(None).context("this process's CPUs")?;
    let all: Vec<usize> =
        (0..rustix::thread::CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect();
    let (Some(&host), Some(&render)) = (all.first(), all.last()) else { return Ok(None) };
    if host == render {
        println!("skip: throughput: a software GPU takes a CPU, and there is no other");
        return Ok(None);
    }
    let cpus = [host, render];
    // What the frame costs here. A probe is long enough that what is not drawing is nothing.
    let probe = 2000;
    let rate = alone(probe, Duration::from_secs(2), cpus)?;
    let cost = ((f64::from(probe) * rate * FRAME_S) as u32).max(1);
    let folder = tempfile::tempdir().context("a folder")?;
    write_files(folder.path(), image, cost, cpus)?;
    let (mut stack, mut process) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        process.push(alone(cost, LENGTH, cpus)?);
        stack.push(through_stack(beamline, folder.path())?);
    }
    let (of_stack, of_process) = (median(&mut stack), median(&mut process));
    println!(
        "frames per second, {WIDTH}x{HEIGHT} at cost {cost}, medians of {ROUNDS} rounds of {} s: {of_stack:.2} through \
         the whole stack, {of_process:.2} of a host process (measured)",
        LENGTH.as_secs()
    );
    let what = "frames of one guest through the stack over those of a host process";
    Ok(Some(Gate::at_least(what, LIMIT, of_stack / of_process)))
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The process's, with the CPUs kept awake as a host does.
fn alone(cost: u32, length: Duration, cpus: [usize; 2]) -> anyhow::Result<f64> {
    let _awake = KeepAwake::start(&cpus).context("keep-awake threads")?;
    direct::measure(cost, length, cpus)
}

fn write_files(folder: &Path, image: &Path, cost: u32, cpus: [usize; 2]) -> anyhow::Result<()> {
    let [host, render] = cpus;
    let host = format!(
        "run_dir = \"run\"\n[gpu]\nbackend = \"wgpu\"\nkill_grace_ms = 1000.0\n\
         [cpus]\nhost = [{host}]\nrender = [{render}]\nkeep_awake = true\n\
         [[slice]]\nname = \"one\"\nwidth = {WIDTH}\nheight = {HEIGHT}\n\
         [slice.contract]\nrefresh_hz = \"60\"\nclass = \"background\"\nbudget_ms = 10.0\nmax_job_ms = 40.0\ndepth = {DEPTH}\n"
    );
    let image = image.canonicalize().context("the guest's image")?;
    let guest = format!(
        "[guest]\nname = \"one\"\nimage = {:?}\n\
         cmdline = \"scene=flood cost={cost} width={WIDTH} height={HEIGHT} frames=0 depth={DEPTH}\"\n\
         [memory]\nsize = \"32M\"\n[vcpus]\ncpus = [{}]\n\
         [[device]]\ntype = \"vfio-user\"\nsocket = \"run/one-pacer.sock\"\n\
         [[device]]\ntype = \"vfio-user\"\nsocket = \"run/one-gpu.sock\"\n",
        image.display().to_string(),
        cpus[0],
    );
    std::fs::write(folder.join("host.toml"), host).context("the host's file")?;
    std::fs::write(folder.join("one.toml"), guest).context("the guest's file")
}

fn through_stack(beamline: &Path, folder: &Path) -> anyhow::Result<f64> {
    let mut host = Process::start(beamline, &["host", "host.toml"], folder)?;
    host.wait_for("\"ready\"")?;
    let mut vmm = Process::start(beamline, &["run", "one.toml"], folder)?;
    vmm.wait_for("READY")?;
    std::thread::sleep(SETTLE);
    let socket = folder.join("run/control.sock");
    let (began, before) = jobs(&socket)?;
    std::thread::sleep(LENGTH);
    let (ended, after) = jobs(&socket)?;
    drop((vmm, host));
    ensure!(after > before, "the guest drew nothing");
    Ok((after - before) as f64 / ended.duration_since(began).as_secs_f64())
}

/// How many jobs the one slice has done, and when that was said.
fn jobs(socket: &Path) -> anyhow::Result<(Instant, u64)> {
    let mut stream = UnixStream::connect(socket).context("the host's control socket")?;
    stream
        .write_all(b"GET /stats HTTP/1.1\r\nHost: beamline\r\nConnection: close\r\n\r\n")
        .context("the host's control socket")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("the host's statistics")?;
    let said = Instant::now();
    let body = answer.split_once("\r\n\r\n").context("an answer without a body")?.1;
    let json: serde_json::Value = serde_json::from_str(body).context("the host's statistics")?;
    let slice = json["slices"].get(0).context("the host's statistics have no slice")?;
    Ok((said, slice["jobs"].as_u64().context("the host's statistics have no jobs")?))
}
