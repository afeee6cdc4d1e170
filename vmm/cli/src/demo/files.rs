//! The configuration files that a run hands to `beamline host` and `beamline run`, written next to its
//! results so that any run can be repeated by hand.

use super::config::{Class, Contract, Demo, Guard, Guest};
use super::place::Placement;
use anyhow::Context;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Everything that one run reads and writes.
#[derive(Clone, Debug)]
pub(crate) struct RunFiles {
    /// The run's results and configuration.
    pub(crate) folder: PathBuf,
    /// The sockets: elsewhere, because their paths must be short.
    pub(crate) sockets: PathBuf,
}

impl RunFiles {
    pub(crate) fn host_toml(&self) -> PathBuf {
        self.folder.join("host.toml")
    }
    pub(crate) fn guest_toml(&self, guest: &Guest) -> PathBuf {
        self.folder.join(format!("{}.toml", guest.name))
    }
    pub(crate) fn log(&self, child: &str) -> PathBuf {
        self.folder.join(format!("{child}.log"))
    }
    pub(crate) fn stamps(&self) -> PathBuf {
        self.folder.join("stamps.bin")
    }
    pub(crate) fn image(&self, guest: &Guest) -> PathBuf {
        self.folder.join("images").join(format!("{}.png", guest.name))
    }
}

/// How long a job may overrun before its renderer is killed. Long, because a software GPU translates a
/// shader when it is first used, and because a hypervisor may stop the whole machine for a while: neither
/// is the guest's fault.
const KILL_GRACE_MS: u16 = 1000;

#[derive(Serialize)]
struct HostToml<'a> {
    run_dir: &'a Path,
    gpu: GpuToml<'a>,
    cpus: CpusToml<'a>,
    output: OutputToml,
    slice: Vec<SliceToml<'a>>,
}

#[derive(Serialize)]
struct GpuToml<'a> {
    backend: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    adapter: Option<&'a str>,
    policy: &'a str,
    in_flight: u8,
    kill_grace_ms: u16,
}

#[derive(Serialize)]
struct CpusToml<'a> {
    host: &'a [usize],
    render: &'a [usize],
    keep_awake: bool,
    realtime: bool,
}

#[derive(Serialize)]
struct OutputToml {
    stamps: PathBuf,
    images: PathBuf,
}

#[derive(Serialize)]
struct SliceToml<'a> {
    name: &'a str,
    width: u32,
    height: u32,
    memory: &'a str,
    contract: ContractToml<'a>,
}

#[derive(Serialize)]
struct ContractToml<'a> {
    refresh_hz: &'a str,
    class: Class,
    budget_ms: f64,
    max_job_ms: f64,
    jitter_ms: f64,
    gap_ms: f64,
    guard: Guard,
    depth: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    late_latch: Option<LateLatchToml>,
}

#[derive(Serialize)]
struct LateLatchToml {
    window_ms: f64,
    budget_ms: f64,
}

#[derive(Serialize)]
struct GuestToml<'a> {
    guest: GuestSection<'a>,
    memory: MemorySection,
    vcpus: VcpusSection<'a>,
    device: [DeviceSection; 2],
}

#[derive(Serialize)]
struct GuestSection<'a> {
    name: &'a str,
    image: &'a Path,
    cmdline: String,
}

#[derive(Serialize)]
struct MemorySection {
    size: &'static str,
}

#[derive(Serialize)]
struct VcpusSection<'a> {
    count: u8,
    cpus: &'a [usize],
    nice: i32,
    slice_us: Option<u32>,
}

#[derive(Serialize)]
struct DeviceSection {
    r#type: &'static str,
    socket: PathBuf,
}

/// What a slice may use of the GPU, in ms.
#[expect(clippy::struct_field_names, reason = "the unit belongs into the names")]
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Budget {
    /// The frame's own jobs.
    pub(crate) main_ms: f64,
    /// The longest job.
    pub(crate) max_job_ms: f64,
    /// The late latch.
    pub(crate) late_latch_ms: f64,
}

/// The host's configuration as TOML.
pub(crate) fn host_toml(
    files: &RunFiles,
    demo: &Demo,
    policy: &str,
    place: &Placement,
    slices: &[(&Guest, Budget)],
) -> anyhow::Result<String> {
    // Relative paths in a host's configuration start at its folder.
    let toml = HostToml {
        run_dir: &files.sockets,
        gpu: GpuToml {
            backend: "wgpu",
            adapter: demo.gpu.adapter.as_deref(),
            policy,
            in_flight: 1,
            kill_grace_ms: KILL_GRACE_MS,
        },
        cpus: CpusToml {
            host: &place.host,
            render: &place.render,
            keep_awake: true,
            realtime: place.realtime,
        },
        output: OutputToml { stamps: "stamps.bin".into(), images: "images".into() },
        slice: slices
            .iter()
            .map(|(guest, budget)| {
                let (width, height) = guest.scene.image(guest.width, guest.height);
                let contract = contract(&guest.contract, *budget);
                SliceToml { name: &guest.name, width, height, memory: &guest.memory, contract }
            })
            .collect(),
    };
    toml::to_string(&toml).context("cannot write the host's configuration as TOML")
}

/// Rounded to whole µs, which is what the text shows.
fn micros(ms: f64) -> f64 {
    (ms * 1e3).round() / 1e3
}

fn contract(contract: &Contract, budget: Budget) -> ContractToml<'_> {
    ContractToml {
        refresh_hz: &contract.refresh_hz,
        class: contract.class,
        budget_ms: micros(budget.main_ms),
        max_job_ms: micros(budget.max_job_ms),
        jitter_ms: contract.jitter_ms,
        gap_ms: contract.gap_ms,
        guard: contract.guard,
        depth: contract.depth,
        late_latch: contract
            .late_latch_window_ms
            .map(|window_ms| LateLatchToml { window_ms, budget_ms: micros(budget.late_latch_ms) }),
    }
}

/// A guest's configuration as TOML.
pub(crate) fn guest_toml(
    files: &RunFiles,
    image: &Path,
    place: &Placement,
    guest: &Guest,
    costs: &[u32],
) -> anyhow::Result<String> {
    let socket = |function: &str| DeviceSection {
        r#type: "vfio-user",
        socket: files.sockets.join(format!("{}-{function}.sock", guest.name)),
    };
    let toml = GuestToml {
        guest: GuestSection { name: &guest.name, image, cmdline: cmdline(guest, costs) },
        memory: MemorySection { size: "32M" },
        vcpus: VcpusSection {
            count: 1,
            cpus: &place.host,
            // Takes the same permission as real-time scheduling.
            nice: if place.realtime { guest.vcpu_nice } else { guest.vcpu_nice.max(0) },
            slice_us: guest.vcpu_slice_us,
        },
        device: [socket("pacer"), socket("gpu")],
    };
    toml::to_string(&toml).context("cannot write a guest's configuration as TOML")
}

fn cmdline(guest: &Guest, costs: &[u32]) -> String {
    let Guest { scene, width, height, depth, .. } = guest;
    let mut line = format!("scene={}", scene.word());
    for (word, cost) in ["cost", "cost2", "cost3"].iter().zip(costs) {
        line += &format!(" {word}={cost}");
    }
    line += &format!(" width={width} height={height} frames=0 depth={depth}");
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_by_host_and_vmm() {
        let demo = Demo::load(None).unwrap();
        let files = RunFiles { folder: "/out/fifo".into(), sockets: "/tmp/x".into() };
        let place = Placement::of(&[0, 1], true);
        let budget = Budget { main_ms: 2.000_049, max_job_ms: 3.0, late_latch_ms: 0.5 };
        let slices: Vec<_> = demo.guests.iter().map(|g| (g, budget)).collect();
        let text = host_toml(&files, &demo, "fifo", &place, &slices).unwrap();
        let host =
            beamline_mdev::config::HostConfig::parse(&text, &files.host_toml()).expect(&text);
        assert_eq!(host.slices.len(), demo.guests.len());
        assert_eq!(host.stamps, Some(files.stamps()));
        assert_eq!(host.slices[0].contract.budget.0, 2_000_000);
        assert_eq!(host.slices[0].contract.late_latch.map(|l| l.budget.0), Some(500_000));

        for (guest, slice) in demo.guests.iter().zip(&host.slices) {
            let text = guest_toml(&files, Path::new("/img"), &place, guest, &[7, 9]).unwrap();
            let vm =
                beamline_vmm::config::Config::parse(&text, &files.guest_toml(guest)).expect(&text);
            let beamline_vmm::config::Boot::Image(image) = &vm.guest.boot else {
                panic!("{text}");
            };
            assert!(image.cmdline.contains(" cost=7 cost2=9 width="), "{}", image.cmdline);
            let beamline_vmm::config::Device::VfioUser(pacer) = &vm.devices[0] else {
                panic!("{text}");
            };
            assert_eq!(pacer.socket, host.pacer_socket(slice));
            let beamline_vmm::config::Device::VfioUser(gpu) = &vm.devices[1] else {
                panic!("{text}");
            };
            assert_eq!(gpu.socket, host.gpu_socket(slice));
        }
    }
}
