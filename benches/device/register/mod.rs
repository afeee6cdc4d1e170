//! A register's round trip over vfio-user, through our client and server and through those of the crate
//! `vfio_user`, on this machine, in one run.
//!
//! Both serve the same registers over a Unix socket, from one thread to another, pinned alike; blocks of
//! accesses alternate, and so does who begins, so that the machine's noise hits both.

mod ours;
mod theirs;

use anyhow::{Context, ensure};
use beamline_benches::report::{Gate, Row, table};
use beamline_benches::stats::Summary;
use beamline_mdev::host::threads::{KeepAwake, pin};
use std::time::Instant;

/// Blocks of each side.
const BLOCKS: usize = 40;
/// Reads of a block, and writes.
const ACCESSES: usize = 500;
/// Accesses before a block that are not counted.
const WARM_UP: usize = 50;
/// At most this times what the crate takes.
const LIMIT: f64 = 1.0;
/// The register that is used.
const REGISTER: u64 = 0x28;
/// Bytes of region 0, the only one.
const REGION: u64 = 4096;

/// One of the two, connected.
trait Side {
    /// Reads the register.
    fn read(&mut self) -> anyhow::Result<u32>;
    /// Writes it.
    fn write(&mut self, value: u32) -> anyhow::Result<()>;
}

/// Rows and gates.
pub(super) fn bench() -> anyhow::Result<(Vec<Row>, Vec<Gate>)> {
    Ok(report(measure()?))
}

/// Durations of one side, ns.
#[derive(Default)]
struct Durations {
    read: Vec<u64>,
    write: Vec<u64>,
}

/// Ours, theirs.
fn measure() -> anyhow::Result<(Durations, Durations)> {
    let set = rustix::thread::sched_getaffinity(None).context("this process's CPUs")?;
    let cpus: Vec<usize> =
        (0..rustix::thread::CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect();
    ensure!(!cpus.is_empty(), "this process may use no CPU");
    let (client_cpu, server_cpu) = (cpus[0], cpus[1 % cpus.len()]);
    // As a host does: an idle virtual CPU wakes late, on both sides alike.
    let _awake = KeepAwake::start(&[client_cpu, server_cpu]).context("keep-awake threads")?;
    let folder = tempfile::tempdir().context("a folder for the sockets")?;
    let mut ours = ours::Ours::start(&folder.path().join("ours"), server_cpu)?;
    let mut theirs = theirs::Theirs::start(&folder.path().join("theirs"), server_cpu)?;
    // Only now: the servers' threads have another place.
    pin(&[client_cpu]).context("pinning")?;
    let (mut of_ours, mut of_theirs) = (Durations::default(), Durations::default());
    for number in 0..BLOCKS {
        let ours_first = number.is_multiple_of(2);
        if ours_first {
            block(&mut ours, &mut of_ours).context("our side")?;
        }
        block(&mut theirs, &mut of_theirs).context("the crate's side")?;
        if !ours_first {
            block(&mut ours, &mut of_ours).context("our side")?;
        }
    }
    ours.stop()?;
    theirs.stop()?;
    Ok((of_ours, of_theirs))
}

/// Each write is read back: both sides do the work that they say.
fn block(side: &mut impl Side, into: &mut Durations) -> anyhow::Result<()> {
    for n in 0..WARM_UP + ACCESSES {
        let value = n as u32;
        let start = Instant::now();
        side.write(value)?;
        let written = Instant::now();
        let read = side.read()?;
        let end = Instant::now();
        ensure!(read == value, "the register holds {read}, {value} was written");
        if n >= WARM_UP {
            into.write.push((written - start).as_nanos() as u64);
            into.read.push((end - written).as_nanos() as u64);
        }
    }
    Ok(())
}

fn report((mut ours, mut theirs): (Durations, Durations)) -> (Vec<Row>, Vec<Gate>) {
    let (mut rows, mut gates) = (Vec::new(), Vec::new());
    for (what, ours, theirs) in [
        ("register read", &mut ours.read, &mut theirs.read),
        ("register write", &mut ours.write, &mut theirs.write),
    ] {
        let (ours, theirs) = (Summary::of(ours), Summary::of(theirs));
        let ratio = ours.ratio(&theirs);
        rows.push(Row { name: format!("{what}, vfio_user"), summary: theirs, ratio: None });
        rows.push(Row { name: format!("{what}, Beamline"), summary: ours, ratio });
        gates.push(Gate::at_most(format!("{what}, medians"), LIMIT, ratio.unwrap_or(f64::NAN)));
    }
    print!("{}", table("Register accesses over vfio-user, process-local sockets", &rows));
    (rows, gates)
}
