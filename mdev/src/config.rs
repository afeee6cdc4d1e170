//! The host's configuration: TOML read into raw sections, then validated into types.

pub mod slice;

use beamline_abi::Nanos;
use beamline_sched::{GpuCaps, PolicyKind, Preemption, UnknownPolicy, written};
use serde::Deserialize;
pub use slice::{GuestContract, Profile, SliceConfig};
use std::path::{Path, PathBuf};

/// Why a configuration is refused. Every message names the file and the key.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is not TOML, or has a key that is not known.
    #[error("{path}: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and what, as the TOML reader says it.
        message: String,
    },
    /// A value is out of range.
    #[error("{path}: {key}: {problem}")]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What is wrong and what would be right.
        problem: String,
    },
}

/// Which backend executes the GPU work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendKind {
    /// Real rendering through Vulkan.
    Wgpu,
    /// Service times without rendering: every result is *modelled*.
    Model,
}

/// A validated configuration of one host.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// Folder of the sockets.
    pub run_dir: PathBuf,
    /// Who executes the GPU work.
    pub backend: BackendKind,
    /// Part of the adapter's name; `None`: the best one.
    pub adapter: Option<String>,
    /// Who decides the order.
    pub policy: PolicyKind,
    /// Jobs on the GPU at once under a policy that bounds it.
    pub in_flight: u8,
    /// GPU time lost when the next job is another slice's, charged by admission.
    pub switch_cost: Nanos,
    /// Kept free before a guarded release for the host's own lateness.
    pub guard_margin: Nanos,
    /// How long beyond its `max_job` a job may run before its renderer is killed.
    pub kill_grace: Nanos,
    /// CPUs of the host's own threads; empty: any.
    pub host_cpus: Vec<usize>,
    /// CPUs of the GPU driver's threads; empty: any.
    pub render_cpus: Vec<usize>,
    /// Keep each of these CPUs awake with a `SCHED_IDLE` thread: an idle virtual CPU wakes late.
    pub keep_awake: bool,
    /// Ask for `SCHED_FIFO` for the dispatcher and the posters.
    pub realtime: bool,
    /// Where the stamps go.
    pub stamps: Option<PathBuf>,
    /// Folder for each slice's last image, written when the host drains.
    pub images: Option<PathBuf>,
    /// Most slices at a time, those that come later included.
    pub max_slices: usize,
    /// The slices that the host starts with.
    pub slices: Vec<SliceConfig>,
}

impl HostConfig {
    /// Longest socket path that `sockaddr_un` takes.
    pub const MAX_SOCKET_PATH: usize = 107;
    /// Most slices of one host.
    pub const MAX_SLICES: usize = 64;

    /// What the GPU can do, for admission and the policy. Every backend runs a job to its end.
    pub const fn caps(&self) -> GpuCaps {
        GpuCaps {
            in_flight: self.in_flight,
            // A model is told of a job's end at once; a renderer's answer and the next order take time.
            ahead: matches!(self.backend, BackendKind::Wgpu) as u8,
            switch_cost: self.switch_cost,
            guard_margin: self.guard_margin,
            preemption: Preemption::None,
        }
    }

    /// Validates `text` as the content of `path`, which is not read. Relative paths in it start at its folder.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let raw: raw::Host = toml::from_str(text).map_err(|e| ConfigError::Parse {
            path: path.into(),
            message: e.to_string().trim_end().to_owned(),
        })?;
        Checker { path, dir: path.parent().unwrap_or(Path::new(".")) }.host(raw)
    }

    /// The socket on which the host is looked at and changed.
    pub fn control_socket(&self) -> PathBuf {
        self.run_dir.join("control.sock")
    }

    /// The longest of these sockets' paths, where it is longer than the system takes, and how long it is.
    pub fn socket_too_long(&self, slice: &SliceConfig) -> Option<(PathBuf, usize)> {
        let sockets = [self.pacer_socket(slice), self.gpu_socket(slice)];
        let longest = sockets.into_iter().max_by_key(|socket| socket.as_os_str().len())?;
        let len = longest.as_os_str().len();
        (len > Self::MAX_SOCKET_PATH).then_some((longest, len))
    }

    /// The socket of a slice's pacer.
    pub fn pacer_socket(&self, slice: &SliceConfig) -> PathBuf {
        self.run_dir.join(format!("{}-pacer.sock", slice.name))
    }

    /// The socket of a slice's vGPU.
    pub fn gpu_socket(&self, slice: &SliceConfig) -> PathBuf {
        self.run_dir.join(format!("{}-gpu.sock", slice.name))
    }
}

/// Knows where a value came from, for the messages.
struct Checker<'a> {
    path: &'a Path,
    dir: &'a Path,
}

impl Checker<'_> {
    fn bad(&self, key: impl Into<String>, problem: impl Into<String>) -> ConfigError {
        ConfigError::Value { path: self.path.into(), key: key.into(), problem: problem.into() }
    }

    fn host(&self, raw: raw::Host) -> Result<HostConfig, ConfigError> {
        let policy = raw.gpu.policy.parse().map_err(|unknown: UnknownPolicy| {
            self.bad("gpu.policy", format!("`{}`: {unknown}", raw.gpu.policy))
        })?;
        if !(1..=8).contains(&raw.gpu.in_flight) {
            return Err(self.bad(
                "gpu.in_flight",
                format!("{} is out of range; use 1 to 8", raw.gpu.in_flight),
            ));
        }
        let (count, most) = (raw.slice.len(), raw.max_slices);
        if !(1..=HostConfig::MAX_SLICES).contains(&most) {
            let problem = format!("{most} is out of range; use 1 to {}", HostConfig::MAX_SLICES);
            return Err(self.bad("max_slices", problem));
        }
        if count > most {
            let problem = format!("there are {count}; max_slices is {most}");
            return Err(self.bad("slice", problem));
        }
        let mut slices: Vec<SliceConfig> = Vec::with_capacity(count);
        for (i, s) in raw.slice.into_iter().enumerate() {
            let slice =
                s.read().map_err(|e| self.bad(format!("slice[{i}].{}", e.key), e.problem))?;
            if slices.iter().any(|other| other.name == slice.name) {
                return Err(self.bad(
                    format!("slice[{i}].name"),
                    format!("`{}` is taken; give each slice its own name", slice.name),
                ));
            }
            slices.push(slice);
        }
        let config = HostConfig {
            run_dir: self.dir.join(raw.run_dir),
            backend: raw.gpu.backend,
            adapter: raw.gpu.adapter,
            policy,
            in_flight: raw.gpu.in_flight,
            switch_cost: self.millis("gpu.switch_cost_ms", raw.gpu.switch_cost_ms)?,
            guard_margin: self.millis("gpu.guard_margin_ms", raw.gpu.guard_margin_ms)?,
            kill_grace: self.millis("gpu.kill_grace_ms", raw.gpu.kill_grace_ms)?,
            host_cpus: raw.cpus.host,
            render_cpus: raw.cpus.render,
            keep_awake: raw.cpus.keep_awake,
            realtime: raw.cpus.realtime,
            stamps: raw.output.stamps.map(|p| self.dir.join(p)),
            images: raw.output.images.map(|p| self.dir.join(p)),
            max_slices: most,
            slices,
        };
        let control = config.control_socket();
        let long = config.slices.iter().find_map(|slice| config.socket_too_long(slice));
        let len = control.as_os_str().len();
        let long = long.or((len > HostConfig::MAX_SOCKET_PATH).then_some((control, len)));
        if let Some((socket, len)) = long {
            return Err(self.bad("run_dir", format!("the socket path {} has {len} bytes; the system takes {}: choose a shorter folder", socket.display(), HostConfig::MAX_SOCKET_PATH)));
        }
        Ok(config)
    }

    fn millis(&self, key: impl Into<String>, ms: f64) -> Result<Nanos, ConfigError> {
        written::millis(ms).map_err(|problem| self.bad(key, problem))
    }
}

/// The file as it is written. Unknown keys are refused.
mod raw {
    use super::slice::WrittenSlice;
    use super::{BackendKind, HostConfig};
    use serde::Deserialize;
    use std::path::PathBuf;

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct Host {
        pub(super) run_dir: PathBuf,
        pub(super) gpu: Gpu,
        #[serde(default)]
        pub(super) cpus: Cpus,
        #[serde(default)]
        pub(super) output: Output,
        #[serde(default = "most")]
        pub(super) max_slices: usize,
        #[serde(default)]
        pub(super) slice: Vec<WrittenSlice>,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct Gpu {
        pub(super) backend: BackendKind,
        pub(super) adapter: Option<String>,
        #[serde(default = "beamline")]
        pub(super) policy: String,
        #[serde(default = "one")]
        pub(super) in_flight: u8,
        #[serde(default = "switch")]
        pub(super) switch_cost_ms: f64,
        #[serde(default = "margin")]
        pub(super) guard_margin_ms: f64,
        #[serde(default = "twenty")]
        pub(super) kill_grace_ms: f64,
    }

    #[derive(Default, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    pub(super) struct Cpus {
        pub(super) host: Vec<usize>,
        pub(super) render: Vec<usize>,
        pub(super) keep_awake: bool,
        pub(super) realtime: bool,
    }

    #[derive(Default, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    pub(super) struct Output {
        pub(super) stamps: Option<PathBuf>,
        pub(super) images: Option<PathBuf>,
    }

    fn beamline() -> String {
        "beamline".into()
    }
    const fn most() -> usize {
        HostConfig::MAX_SLICES
    }
    const fn one() -> u8 {
        1
    }
    const fn switch() -> f64 {
        0.1
    }
    const fn margin() -> f64 {
        0.15
    }
    const fn twenty() -> f64 {
        20.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
run_dir = "run"
[gpu]
backend = "model"
[[slice]]
name = "vr"
width = 512
height = 288
[slice.contract]
refresh_hz = "90"
class = "reserved"
budget_ms = 2.2
max_job_ms = 3.0
late_latch = { window_ms = 1.2, budget_ms = 0.6 }
"#;

    fn parse(text: &str) -> Result<HostConfig, ConfigError> {
        HostConfig::parse(text, Path::new("conf/host.toml"))
    }

    #[test]
    fn reads_a_good_file() {
        let c = parse(GOOD).unwrap();
        assert_eq!(c.run_dir, Path::new("conf/run"));
        assert_eq!(c.slices[0].contract.budget, Nanos(2_200_000));
        assert_eq!(c.slices[0].contract.deadline, Nanos(11_111_111));
        assert_eq!(c.slices[0].memory, 64 << 20);
        assert_eq!((c.slices[0].profile, c.slices[0].display_memory), (Profile::Render, 128 << 20));
        assert_eq!(c.slices[0].guest_contract, GuestContract::Fixed);
        let within =
            "height = 288\nguest_contract = \"within\"\nguest_hz = { min = \"30\", max = \"120\" }";
        let c = parse(&GOOD.replace("height = 288", within)).unwrap();
        let bound = |hz| beamline_sched::Period::from_hz(hz, 1).unwrap();
        let bounds = GuestContract::Within { fastest: bound(120), slowest: bound(30) };
        assert_eq!(c.slices[0].guest_contract, bounds);
        let display = "height = 288\nprofile = \"display\"\ndisplay_memory = \"16M\"";
        let c = parse(&GOOD.replace("height = 288", display)).unwrap();
        assert_eq!((c.slices[0].profile, c.slices[0].display_memory), (Profile::Display, 16 << 20));
    }

    #[test]
    fn the_example_is_right_and_can_be_promised() {
        let text = include_str!("../../assets/host.example.toml");
        let config = HostConfig::parse(text, Path::new("assets/host.example.toml")).unwrap();
        assert_eq!(config.slices.len(), 3);
        crate::host::admit(&config, config.caps()).unwrap();
        // What it shows as a default is one.
        let key = |line: &str| {
            let key = line.strip_prefix("# ")?.split_once(" = ")?.0;
            (!key.contains(' ')).then(|| line.trim_start_matches("# ").to_owned())
        };
        let shown: String =
            text.lines().map(|l| key(l).unwrap_or_else(|| l.to_owned()) + "\n").collect();
        let shown = HostConfig::parse(&shown, Path::new("assets/host.example.toml")).unwrap();
        assert_eq!(shown.caps(), config.caps());
        assert_eq!((shown.max_slices, shown.policy), (config.max_slices, config.policy));
        assert_eq!(shown.kill_grace, config.kill_grace);
    }

    #[test]
    fn a_host_may_start_without_slices() {
        let config = parse(&GOOD[..GOOD.find("[[slice]]").unwrap()]).unwrap();
        assert!(config.slices.is_empty());
    }

    #[test]
    fn says_what_is_wrong_and_where() {
        let cases = [
            (
                GOOD.replace("refresh_hz = \"90\"", "refresh_hz = \"fast\""),
                "slice[0].contract.refresh_hz",
            ),
            (GOOD.replace("width = 512", "width = 1"), "slice[0].width"),
            (GOOD.replace("budget_ms = 2.2", "budget_ms = -1.0"), "slice[0].contract.budget_ms"),
            (GOOD.replace("budget_ms = 2.2", "budget_ms = nan"), "slice[0].contract.budget_ms"),
            (GOOD.replace("budget_ms = 2.2", "bugdet_ms = 2.2"), "bugdet_ms"),
            (GOOD.replace("name = \"vr\"", "name = \"../vr\""), "slice[0].name"),
            (
                GOOD.replace("backend = \"model\"", "backend = \"model\"\npolicy = \"magic\""),
                "gpu.policy",
            ),
            (format!("{GOOD}{}", &GOOD[GOOD.find("[[slice]]").unwrap()..]), "slice[1].name"),
            (GOOD.replace("backend = \"model\"", "backend = \"cuda\""), "cuda"),
            (
                GOOD.replace("height = 288", "height = 288\nguest_contract = \"free\""),
                "expected `fixed` or `within`",
            ),
            (
                GOOD.replace("height = 288", "height = 288\nguest_contract = \"within\""),
                "slice[0].guest_hz: state the rates",
            ),
            (
                GOOD.replace(
                    "height = 288",
                    "height = 288\nguest_hz = { min = \"30\", max = \"60\" }",
                ),
                "slice[0].guest_hz: a guest whose contract is fixed",
            ),
            (
                GOOD.replace(
                    "height = 288",
                    "height = 288\nguest_contract = \"within\"\nguest_hz = { min = \"90\", max = \"60\" }",
                ),
                "slice[0].guest_hz: min",
            ),
            (
                GOOD.replace("height = 288", "height = 288\nprofile = \"desktop\""),
                "expected `display` or `render`",
            ),
            (
                GOOD.replace("height = 288", "height = 288\ndisplay_memory = \"lots\""),
                "slice[0].display_memory",
            ),
            (
                GOOD.replace("height = 288", "height = 2880\ndisplay_memory = \"8M\""),
                "slice[0].display_memory: `8M` is too little: 512 x 2880 pixels",
            ),
            (GOOD.replace("run_dir", "max_slices = 0\nrun_dir"), "max_slices"),
            (GOOD.replace("run_dir", "max_slices = 65\nrun_dir"), "max_slices"),
        ];
        for (text, want) in cases {
            let message = parse(&text).unwrap_err().to_string();
            assert!(message.contains(want), "{message} does not name {want}");
            assert!(message.starts_with("conf/host.toml: "), "{message}");
        }
    }
}
