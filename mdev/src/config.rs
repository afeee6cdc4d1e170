//! The host's configuration: TOML read into raw sections, then validated into types.

use beamline_abi::Nanos;
use beamline_sched::written::{self, Written};
use beamline_sched::{Contract, GpuCaps, MissAllowance, PolicyKind, Preemption, UnknownPolicy};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// How late after its vblank a guest may begin where its contract does not say, ms.
const JITTER_MS: f64 = 1.0;

/// Why a configuration is refused. Every message names the file and the key.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: cannot be read: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
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

/// What a slice's vGPU offers beside a display.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Blobs of guest memory and no contexts: an unmodified Linux guest is paced by its flushes.
    Display,
    /// Contexts, for guests with a driver of ours.
    #[default]
    Render,
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
    /// The slices, at least one.
    pub slices: Vec<SliceConfig>,
}

/// One slice.
#[derive(Clone, Debug)]
pub struct SliceConfig {
    /// Its name: letters, digits, `-` and `_`, unique.
    pub name: String,
    /// Scanout width in pixels.
    pub width: u32,
    /// Scanout height in pixels.
    pub height: u32,
    /// What its vGPU offers.
    pub profile: Profile,
    /// GPU memory in bytes.
    pub memory: u64,
    /// Bytes of the host's memory for its display: 2D resources and the front image.
    pub display_memory: u64,
    /// What it is promised.
    pub contract: Contract,
}

impl HostConfig {
    /// Longest socket path that `sockaddr_un` takes.
    const MAX_SOCKET_PATH: usize = 107;
    /// Most slices of one host.
    pub const MAX_SLICES: usize = 64;

    /// What the GPU can do, for admission and the policy. Every backend runs a job to its end.
    pub const fn caps(&self) -> GpuCaps {
        GpuCaps {
            in_flight: self.in_flight,
            switch_cost: self.switch_cost,
            guard_margin: self.guard_margin,
            preemption: Preemption::None,
        }
    }

    /// Reads and validates a file. Relative paths in it start at its folder.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.into(), source })?;
        Self::parse(&text, path)
    }

    /// Validates `text` as the content of `path`.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let raw: raw::Host = toml::from_str(text).map_err(|e| ConfigError::Parse {
            path: path.into(),
            message: e.to_string().trim_end().to_owned(),
        })?;
        Checker { path, dir: path.parent().unwrap_or(Path::new(".")) }.host(raw)
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
        let count = raw.slice.len();
        if count == 0 || count > HostConfig::MAX_SLICES {
            return Err(self.bad(
                "slice",
                format!(
                    "there are {count}; a host has 1 to {} [[slice]] sections",
                    HostConfig::MAX_SLICES
                ),
            ));
        }
        let mut slices: Vec<SliceConfig> = Vec::with_capacity(count);
        for (i, s) in raw.slice.into_iter().enumerate() {
            let slice = self.slice(i, s)?;
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
            slices,
        };
        for slice in &config.slices {
            let socket = config.pacer_socket(slice);
            let len = socket.as_os_str().len();
            if len > HostConfig::MAX_SOCKET_PATH {
                return Err(self.bad("run_dir", format!("the socket path {} has {len} bytes; the system takes {}: choose a shorter folder", socket.display(), HostConfig::MAX_SOCKET_PATH)));
            }
        }
        Ok(config)
    }

    fn slice(&self, i: usize, raw: raw::Slice) -> Result<SliceConfig, ConfigError> {
        let key = |k: &str| format!("slice[{i}].{k}");
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if raw.name.is_empty() || raw.name.len() > 32 || !raw.name.chars().all(fits) {
            return Err(self.bad(
                key("name"),
                format!("`{}` does not fit; use 1 to 32 letters, digits, `-` or `_`", raw.name),
            ));
        }
        for (k, v) in [("width", raw.width), ("height", raw.height)] {
            if !(16..=beamline_abi::frame::MAX_IMAGE_SIDE).contains(&v) {
                return Err(self.bad(
                    key(k),
                    format!(
                        "{v} is out of range; use 16 to {} pixels",
                        beamline_abi::frame::MAX_IMAGE_SIDE
                    ),
                ));
            }
        }
        let memory = self.size(key("memory"), &raw.memory, (1 << 20, "1M"), (1 << 40, "1T"))?;
        let display_memory = self.size(
            key("display_memory"),
            &raw.display_memory,
            (1 << 20, "1M"),
            (4 << 30, "4G"),
        )?;
        let front = u64::from(raw.width) * u64::from(raw.height) * 4;
        if display_memory < 2 * front {
            return Err(self.bad(
                key("display_memory"),
                format!(
                    "`{}` is too little: {} x {} pixels and what is shown of them take {}M",
                    raw.display_memory,
                    raw.width,
                    raw.height,
                    (2 * front).div_ceil(1 << 20)
                ),
            ));
        }
        let contract = self.contract(&key("contract"), raw.contract)?;
        let raw::Slice { name, width, height, profile, .. } = raw;
        Ok(SliceConfig { name, width, height, profile, memory, display_memory, contract })
    }

    /// A size between two bounds, which come with how they are written.
    fn size(
        &self,
        key: String,
        text: &str,
        (least, low): (u64, &str),
        (most, high): (u64, &str),
    ) -> Result<u64, ConfigError> {
        parse_size(text).filter(|m| (least..=most).contains(m)).ok_or_else(|| {
            self.bad(key, format!("`{text}` is no size from {low} to {high}, such as 64M"))
        })
    }

    fn contract(&self, at: &str, written: Written) -> Result<Contract, ConfigError> {
        let contract = written
            .read(JITTER_MS)
            .map_err(|wrong| self.bad(format!("{at}.{}", wrong.key), wrong.problem))?;
        // The dispatcher keeps every queued frame, in order, and drops none that is overdue: one that may miss
        // would hold up one that may not. So every frame is promised, which is more than is asked for.
        Ok(Contract { miss: MissAllowance { misses: 0, ..contract.miss }, ..contract })
    }

    fn millis(&self, key: impl Into<String>, ms: f64) -> Result<Nanos, ConfigError> {
        written::millis(ms).map_err(|problem| self.bad(key, problem))
    }
}

/// `64M`, `1G`, `4096`.
fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let (digits, shift) = match text.as_bytes().last()? {
        b'K' => (&text[..text.len() - 1], 10),
        b'M' => (&text[..text.len() - 1], 20),
        b'G' => (&text[..text.len() - 1], 30),
        b'T' => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// The file as it is written. Unknown keys are refused.
mod raw {
    use super::{BackendKind, Profile, Written};
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
        pub(super) slice: Vec<Slice>,
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

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct Slice {
        pub(super) name: String,
        pub(super) width: u32,
        pub(super) height: u32,
        #[serde(default)]
        pub(super) profile: Profile,
        #[serde(default = "memory")]
        pub(super) memory: String,
        #[serde(default = "display_memory")]
        pub(super) display_memory: String,
        pub(super) contract: Written,
    }

    fn beamline() -> String {
        "beamline".into()
    }
    fn memory() -> String {
        "64M".into()
    }
    /// Three images of 3840 x 2160: two that a guest draws into, and what is shown.
    fn display_memory() -> String {
        "128M".into()
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
        let display = "height = 288\nprofile = \"display\"\ndisplay_memory = \"16M\"";
        let c = parse(&GOOD.replace("height = 288", display)).unwrap();
        assert_eq!((c.slices[0].profile, c.slices[0].display_memory), (Profile::Display, 16 << 20));
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
        ];
        for (text, want) in cases {
            let message = parse(&text).unwrap_err().to_string();
            assert!(message.contains(want), "{message} does not name {want}");
            assert!(message.starts_with("conf/host.toml: "), "{message}");
        }
    }
}
