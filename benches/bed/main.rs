//! What Beamline's VMM costs beside QEMU's, by counted instructions (`make bench-bed`): a start, a disk, a network.
//!
//! In the testbed's outer guest both boot the same kernel with KVM, one after the other, and do the same. The outer
//! guest's only processor is QEMU's in software, and `counter.rs` counts there what VMM, KVM,
//! both kernels and the guest's programs execute. So it makes no difference how fast or busy this machine is. An idle
//! processor executes nothing.

#[path = "../../tests/bed/archive.rs"]
mod archive;
#[path = "../../tests/bed/bed.rs"]
mod bed;
#[path = "../../tests/command.rs"]
mod command;
#[path = "../../tests/bed/guest.rs"]
#[expect(dead_code, reason = "tests use more of it")]
mod guest;
mod job;
#[path = "../../tests/bed/nested.rs"]
#[expect(dead_code, reason = "tests use more of it")]
mod nested;
#[path = "../../tests/bed/process.rs"]
#[expect(dead_code, reason = "tests use more of it")]
mod process;

use anyhow::Context;
use beamline_benches::report::{Gate, write_json};
use job::{Job, Said};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// How these results come about: counted in a processor in software, and the same on every machine.
const LABEL: &str = "measured";

/// A comparison of what both VMMs took between two events.
struct Compared {
    what: &'static str,
    job: Job,
    from: &'static str,
    to: &'static str,
    /// Bytes that were moved, where that is what counts.
    bytes: Option<u64>,
    /// At most this, of QEMU's.
    limit: f64,
}

const COMPARED: [Compared; 5] = [
    Compared {
        what: "start of the VMM to the guest's user space (QEMU: microvm)",
        job: Job::Boot,
        from: "start",
        to: "up",
        bytes: None,
        limit: 1.0,
    },
    Compared {
        what: "virtio-blk, read",
        job: Job::Disk,
        from: "read",
        to: "write",
        bytes: Some(job::DISK),
        limit: 1.1,
    },
    Compared {
        what: "virtio-blk, written",
        job: Job::Disk,
        from: "write",
        to: "done",
        bytes: Some(job::DISK),
        limit: 1.1,
    },
    Compared {
        what: "virtio-net, to the guest",
        job: Job::Network,
        from: "fetch",
        to: "serve",
        bytes: Some(job::FILE),
        limit: 1.1,
    },
    Compared {
        what: "virtio-net, from the guest",
        job: Job::Network,
        from: "serve",
        to: "served",
        bytes: Some(job::FILE),
        limit: 1.1,
    },
];

/// What came out of a comparison.
#[derive(Serialize)]
struct Row {
    what: &'static str,
    bytes: Option<u64>,
    instructions: u64,
    instructions_of_qemu: u64,
}

impl Row {
    fn of(compared: &Compared, said: &Said) -> anyhow::Result<Self> {
        let took = |vmm| said.between(vmm, compared.from, compared.to);
        let (instructions, instructions_of_qemu) = (took("ours")?, took("qemu")?);
        Ok(Self { what: compared.what, bytes: compared.bytes, instructions, instructions_of_qemu })
    }

    fn line(&self) -> String {
        let shown = |count: u64| match self.bytes {
            Some(bytes) => format!("{:.3} instructions per byte", count as f64 / bytes as f64),
            None => format!("{:.1} million instructions", count as f64 / 1e6),
        };
        let (ours, theirs) = (shown(self.instructions), shown(self.instructions_of_qemu));
        format!("{}: {ours}, QEMU's {theirs} ({LABEL})", self.what)
    }

    fn gate(&self, limit: f64) -> Gate {
        Gate::at_most(self.what, limit, self.instructions as f64 / self.instructions_of_qemu as f64)
    }
}

fn main() -> ExitCode {
    beamline_benches::run("bed", bench)
}

/// `libcounter.so`, which Cargo puts beside the benchmarks.
fn counter() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe().context("this program's own file")?;
    let profile = program.ancestors().nth(2).context("this program is not in a target folder")?;
    Ok(profile.join("examples/libcounter.so"))
}

fn bench() -> anyhow::Result<()> {
    let Some(mut bed) = bed::Bed::ready("bench-bed") else { return Ok(()) };
    // The one of this build, and not the newest.
    if let Some(beamline) = std::env::var_os("BEAMLINE") {
        bed.beamline = beamline.into();
    }
    let counter = counter()?;
    if !counter.is_file() {
        println!("skip: bench-bed: there is no {}; `make bench-bed` builds it", counter.display());
        return Ok(());
    }
    let asked = |job: &Job| {
        let part = std::env::var("PART").unwrap_or_default();
        part.is_empty() || part == job.name()
    };
    let (mut rows, mut gates) = (Vec::new(), Vec::new());
    for job in [Job::Boot, Job::Disk, Job::Network].into_iter().filter(asked) {
        let said = run(&bed, &counter, job)?;
        for compared in COMPARED.iter().filter(|c| c.job == job) {
            let row = Row::of(compared, &said)?;
            println!("{}", row.line());
            gates.push(row.gate(compared.limit));
            rows.push(row);
        }
    }
    for gate in &gates {
        println!("gate: instructions over QEMU's, {}", gate.line("×"));
    }
    let json = serde_json::json!({ "bench": "bed", "label": LABEL, "rows": rows, "gates": gates });
    println!("{}\n", write_json("bed", &json)?.display());
    Ok(())
}

fn run(bed: &bed::Bed, counter: &Path, job: Job) -> anyhow::Result<Said> {
    let folder = tempfile::tempdir().context("a folder")?;
    job::run(bed, folder.path(), counter, job)
}
