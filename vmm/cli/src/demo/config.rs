//! The demo's configuration: read raw, then checked as a whole before anything is started.

use crate::failure::refused;
use crate::read;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The configuration that is used where none is named.
const BUILT_IN: &str = include_str!("../../../../assets/demo/demo.toml");

/// One demo.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Demo {
    /// The guest image; else the one beside the binary.
    pub(crate) image: Option<PathBuf>,
    #[serde(default)]
    pub(crate) gpu: Gpu,
    pub(crate) runs: Runs,
    pub(crate) noise: Noise,
    pub(crate) calibration: Calibration,
    pub(crate) promises: Promises,
    #[serde(rename = "guest")]
    pub(crate) guests: Vec<Guest>,
}

/// Which GPU.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Gpu {
    /// Part of the adapter's name; else the best one.
    pub(crate) adapter: Option<String>,
}

/// How long, and which policies.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Runs {
    /// Length of each guest's run alone.
    pub(crate) alone_s: f64,
    /// Length of each run with all guests.
    pub(crate) together_s: f64,
    /// The beginning of each run that is not judged.
    pub(crate) warm_up_s: f64,
    /// How often a run that the machine spoiled is tried again.
    pub(crate) repeats: u32,
    /// The policies of the runs with all guests, in order.
    pub(crate) policies: Vec<String>,
}

/// What counts as a spoiled run.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Noise {
    /// How long the machine is watched before the first run.
    pub(crate) seconds: f64,
    /// Most steal of a run that counts, in jiffies per 30 s.
    pub(crate) steal_per_30s: u64,
    /// Most that other programs may take in a run that counts, in percent of one CPU.
    pub(crate) others_percent: f64,
}

/// How the scenes' costs are found.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Calibration {
    /// How long each scene runs at each cost.
    pub(crate) seconds: f64,
    /// A contract's budget is this much times the measured GPU time.
    pub(crate) headroom: f64,
    /// A contract's longest job is this much times the longest measured one.
    pub(crate) job_headroom: f64,
    /// Most GPU time of one frame of every reserved guest together, in ms.
    pub(crate) load_limit_ms: f64,
}

/// What the reports are held against.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Promises {
    /// Frames in budget, as a fraction.
    pub(crate) in_budget: f64,
    /// Most that the first guest's p99 may grow beside the others, as a factor.
    pub(crate) interference: f64,
}

/// One guest.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Guest {
    /// Its name, and its slice's.
    pub(crate) name: String,
    /// What it renders.
    pub(crate) scene: Scene,
    /// Pixels; of one eye in VR.
    pub(crate) width: u32,
    /// Pixels.
    pub(crate) height: u32,
    /// GPU memory, such as `64M`.
    #[serde(default = "sixty_four_megabytes")]
    pub(crate) memory: String,
    /// Frames, or background jobs, that the guest keeps in flight.
    pub(crate) depth: u8,
    /// Nice value of its virtual CPU, -20 to 19; below 0 only where the demo may ask for it.
    #[serde(default)]
    pub(crate) vcpu_nice: i32,
    /// Its time slice in µs; else Linux's own.
    pub(crate) vcpu_slice_us: Option<u32>,
    /// One for each job of a frame, in order.
    pub(crate) jobs: Vec<Job>,
    /// What it is promised.
    pub(crate) contract: Contract,
}

/// What a guest renders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Scene {
    /// A stereo view and a late-latch reprojection.
    Vr,
    /// Three jobs per frame.
    Game,
    /// Background compute that never waits for a vblank.
    Flood,
}

impl Scene {
    /// The guest's word for it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Vr => "vr",
            Self::Game => "game",
            Self::Flood => "flood",
        }
    }

    /// What the jobs of a frame are, in order.
    pub(crate) fn jobs(self) -> &'static [&'static str] {
        match self {
            Self::Vr => &["both eyes", LATE_LATCH],
            Self::Game => &["geometry", "lighting", "post-processing"],
            Self::Flood => &["compute"],
        }
    }

    /// Pixels of a frame's image from those that the scene is asked to draw.
    pub(crate) fn image(self, width: u32, height: u32) -> (u32, u32) {
        match self {
            Self::Vr => (width.saturating_mul(2), height),
            Self::Game | Self::Flood => (width, height),
        }
    }

    /// Whether the job at a position is the frame's late latch.
    pub(crate) fn is_late_latch(self, position: usize) -> bool {
        self.jobs().get(position) == Some(&LATE_LATCH)
    }
}

const LATE_LATCH: &str = "late latch";

/// A job whose cost is found by calibration.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Job {
    /// GPU time to aim for, in ms.
    pub(crate) target_ms: f64,
    /// The two costs that calibration measures, in the scene's own unit.
    pub(crate) probe: [u32; 2],
}

/// A contract, but for the budgets that calibration finds.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Contract {
    pub(crate) refresh_hz: String,
    pub(crate) class: Class,
    #[serde(default)]
    pub(crate) jitter_ms: f64,
    #[serde(default)]
    pub(crate) gap_ms: f64,
    pub(crate) guard: Guard,
    pub(crate) depth: u8,
    /// How long before the vblank the late latch may start.
    pub(crate) late_latch_window_ms: Option<f64>,
    /// In place of the calibrated budget; a background contract's minimum.
    pub(crate) budget_ms: Option<f64>,
    /// In place of the calibrated longest job.
    pub(crate) max_job_ms: Option<f64>,
}

/// What kind of promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Class {
    Reserved,
    Elastic,
    Background,
}

/// What other tenants' jobs must leave untouched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Guard {
    Release,
    Deadline,
}

fn sixty_four_megabytes() -> String {
    "64M".into()
}

impl Demo {
    /// Reads `path`, or the built-in configuration.
    pub(crate) fn load(path: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = path else {
            return Self::parse(BUILT_IN, Path::new("assets/demo/demo.toml"));
        };
        Self::parse(&read::config(path)?, path)
    }

    /// Checks `text` as the content of `path`.
    pub(crate) fn parse(text: &str, path: &Path) -> anyhow::Result<Self> {
        let mut demo: Self = toml::from_str(text)
            .map_err(|e| refused(format!("{}: {}", path.display(), e.to_string().trim_end())))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        demo.image = demo.image.map(|image| folder.join(image));
        demo.check().map_err(|wrong| refused(format!("{}: {wrong}", path.display())))?;
        Ok(demo)
    }

    fn check(&self) -> Result<(), String> {
        let r = &self.runs;
        within("runs.alone_s", r.alone_s, 1.0, 600.0)?;
        within("runs.together_s", r.together_s, 1.0, 600.0)?;
        within("runs.warm_up_s", r.warm_up_s, 0.0, 60.0)?;
        within("runs.repeats", f64::from(r.repeats), 0.0, 10.0)?;
        if r.policies.is_empty() || r.policies.len() > 8 {
            return Err("runs.policies: name 1 to 8 of beamline, fifo and none".into());
        }
        for (i, policy) in r.policies.iter().enumerate() {
            if !["beamline", "fifo", "none"].contains(&policy.as_str()) {
                return Err(format!(
                    "runs.policies: `{policy}` is not known; use beamline, fifo or none"
                ));
            }
            if r.policies[..i].contains(policy) {
                return Err(format!("runs.policies: `{policy}` is there twice; name each once"));
            }
        }
        within("noise.seconds", self.noise.seconds, 0.1, 60.0)?;
        within("noise.others_percent", self.noise.others_percent, 0.0, 1e6)?;
        within("calibration.seconds", self.calibration.seconds, 0.5, 60.0)?;
        within("calibration.headroom", self.calibration.headroom, 1.0, 10.0)?;
        within("calibration.job_headroom", self.calibration.job_headroom, 1.0, 10.0)?;
        within("calibration.load_limit_ms", self.calibration.load_limit_ms, 0.1, 1000.0)?;
        within("promises.in_budget", self.promises.in_budget, 0.0, 1.0)?;
        within("promises.interference", self.promises.interference, 1.0, 100.0)?;
        if self.guests.is_empty() || self.guests.len() > 16 {
            return Err(format!(
                "guest: there are {}; a demo has 1 to 16 [[guest]] sections",
                self.guests.len()
            ));
        }
        for (i, guest) in self.guests.iter().enumerate() {
            guest.check().map_err(|wrong| format!("guest[{i}].{wrong}"))?;
            if self.guests[..i].iter().any(|other| other.name == guest.name) {
                return Err(format!(
                    "guest[{i}].name: `{}` is taken: two guests cannot share one slice; give each its own name",
                    guest.name
                ));
            }
        }
        Ok(())
    }
}

impl Guest {
    fn check(&self) -> Result<(), String> {
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if self.name.is_empty() || self.name.len() > 32 || !self.name.chars().all(fits) {
            return Err(format!(
                "name: `{}` does not fit; use 1 to 32 letters, digits, `-` or `_`",
                self.name
            ));
        }
        within("depth", f64::from(self.depth), 1.0, 8.0)?;
        within("vcpu_slice_us", f64::from(self.vcpu_slice_us.unwrap_or(100)), 100.0, 100_000.0)?;
        within("vcpu_nice", f64::from(self.vcpu_nice), -20.0, 19.0)?;
        if !(1.0..=10_000.0).contains(&self.contract.period_ms()) {
            let hz = &self.contract.refresh_hz;
            return Err(format!(
                "contract.refresh_hz: `{hz}` is no rate from 0.1 to 1000 Hz; write \"90\" or \"60000/1001\""
            ));
        }
        let count = self.scene.jobs().len();
        if self.jobs.len() != count {
            let (have, word, names) =
                (self.jobs.len(), self.scene.word(), self.scene.jobs().join(", "));
            return Err(format!("jobs: there are {have}; a frame of {word} has {count}: {names}"));
        }
        for (i, job) in self.jobs.iter().enumerate() {
            job.check().map_err(|wrong| format!("jobs[{i}].{wrong}"))?;
        }
        let has_late_latch = (0..count).any(|i| self.scene.is_late_latch(i));
        match self.contract.late_latch_window_ms {
            Some(window) if has_late_latch => {
                within("contract.late_latch_window_ms", window, 0.1, 100.0)
            }
            None if has_late_latch => Err(format!(
                "contract.late_latch_window_ms: is missing; the scene {} has a late latch",
                self.scene.word()
            )),
            Some(_) => Err(format!(
                "contract.late_latch_window_ms: the scene {} has no late latch; leave it out",
                self.scene.word()
            )),
            None => Ok(()),
        }
    }
}

impl Contract {
    /// The refresh period in ms; checked to be within 1 ms and 10 s.
    pub(crate) fn period_ms(&self) -> f64 {
        let (num, den) = self.refresh_hz.split_once('/').unwrap_or((&self.refresh_hz, "1"));
        let number = |text: &str| text.trim().parse::<u32>().map_or(f64::NAN, f64::from);
        1e3 * number(den) / number(num)
    }
}

impl Job {
    fn check(&self) -> Result<(), String> {
        within("target_ms", self.target_ms, 0.05, 100.0)?;
        let [low, high] = self.probe;
        if low == 0 || high / 2 < low {
            return Err(format!(
                "probe: [{low}, {high}] cannot be fitted; the second must be at least twice the first, which is above 0"
            ));
        }
        Ok(())
    }
}

fn within(key: &str, value: f64, low: f64, high: f64) -> Result<(), String> {
    if (low..=high).contains(&value) {
        Ok(())
    } else {
        Err(format!("{key}: {value} is out of range; use {low} to {high}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> anyhow::Result<Demo> {
        Demo::parse(text, Path::new("conf/demo.toml"))
    }

    fn problem(from: &str, to: &str) -> String {
        assert!(BUILT_IN.contains(from), "the built-in demo has no `{from}`");
        let error = parse(&BUILT_IN.replacen(from, to, 1)).unwrap_err();
        assert_eq!(crate::failure::exit_code(&error), crate::failure::REFUSED);
        format!("{error:#}")
    }

    #[test]
    fn the_built_in_demo_is_right() {
        let demo = Demo::load(None).unwrap();
        assert_eq!(demo.guests.len(), 3);
        assert_eq!(demo.runs.policies.last().unwrap(), "beamline");
    }

    #[test]
    fn unknown_keys_are_refused_by_name() {
        assert!(problem("alone_s", "allone_s").contains("allone_s"));
        assert!(problem("[noise]", "[nois]").contains("nois"));
        assert!(problem("refresh_hz", "refresh").contains("refresh"));
    }

    #[test]
    fn values_out_of_range_name_their_key() {
        assert!(problem("warm_up_s = 1.5", "warm_up_s = nan").contains("runs.warm_up_s"));
        assert!(problem("\"none\"", "\"magic\"").contains("`magic` is not known"));
        assert!(problem("\"none\"", "\"fifo\"").contains("twice"));
    }

    #[test]
    fn rates_are_whole_or_fractions() {
        let rate = |hz: &str| {
            let text =
                BUILT_IN.replacen("refresh_hz = \"90\"", &format!("refresh_hz = \"{hz}\""), 1);
            parse(&text).map(|demo| demo.guests[0].contract.period_ms())
        };
        assert!((rate("60000/1001").unwrap() - 16.683).abs() < 1e-3);
        for bad in ["0", "90 Hz", "2000", "1/0", "", "-90", "nan"] {
            assert!(rate(bad).unwrap_err().to_string().contains("refresh_hz"), "{bad}");
        }
    }

    #[test]
    fn two_guests_on_one_slice_are_refused() {
        let text = problem("name = \"game\"", "name = \"vr\"");
        assert!(text.contains("guest[1].name") && text.contains("two guests"), "{text}");
    }

    #[test]
    fn a_late_latch_belongs_to_vr_alone() {
        assert!(problem("scene = \"vr\"", "scene = \"game\"").contains("jobs: there are 2"));
        assert!(problem("late_latch_window_ms = 2.2", "").contains("is missing"));
        assert!(problem("budget_ms = 1.5", "late_latch_window_ms = 1.0").contains("no late latch"));
    }

    #[test]
    fn probes_must_be_apart() {
        let demo = parse(BUILT_IN).unwrap();
        let [low, high] = demo.guests[0].jobs[0].probe;
        let text = problem(&format!("probe = [{low}, {high}]"), "probe = [4, 6]");
        assert!(text.contains("guest[0].jobs[0].probe"), "{text}");
    }

    #[test]
    fn a_missing_file_is_refused() {
        let error = Demo::load(Some(Path::new("/no/such/demo.toml"))).unwrap_err();
        assert_eq!(crate::failure::exit_code(&error), crate::failure::REFUSED);
    }
}
