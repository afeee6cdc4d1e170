//! What the control API says, as JSON: the same types for the host and its clients.

use crate::config::GuestContract;
use crate::config::slice;
use crate::device::pacer::{Answer, Ask};
use crate::host::admit::Promise;
use crate::host::control::{ControlError, Facts, LastAsk, Quiesce, SliceView};
use crate::host::{HostError, SliceStats};
use crate::mediate::dispatcher::Stand;
use beamline_abi::Nanos;
use beamline_sched::{Nearest, Period, Proof, Refusal};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::PathBuf;

/// The version of this API. It rises when something that was there changes its meaning or goes.
pub const API_VERSION: u32 = 1;

/// `GET /`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct HostJson {
    /// What this is, in a sentence.
    pub about: String,
    /// Of what it speaks.
    pub versions: VersionsJson,
    /// How results come about: measured or modelled.
    pub label: String,
    /// The GPU, for people.
    pub gpu: String,
    /// Who decides the order.
    pub policy: String,
    /// Slices now.
    pub slices: usize,
    /// Slices that there is room for.
    pub max_slices: usize,
    /// GPU use that is promised.
    pub promised_percent: f64,
    /// What the promises rest on: `offset-free` or `phased`.
    pub proof: String,
}

/// Versions.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct VersionsJson {
    /// The host's program.
    pub beamline: String,
    /// [`API_VERSION`].
    pub api: u32,
    /// The pacer's layout: major and minor.
    pub pacer: String,
    /// The frame context.
    pub frame: u32,
}

/// `GET /slices`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct SlicesJson {
    /// Every slice.
    pub slices: Vec<SliceJson>,
}

/// `GET /slices/NAME`, and the answer to a slice that was created or changed.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct SliceJson {
    /// Its name.
    pub name: String,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// GPU memory, as it is written.
    pub memory: String,
    /// What it is promised, with the keys that it is written with.
    pub contract: Map<String, Value>,
    /// Offset of its vblanks from the host's grid, ms; where they are on their way to.
    pub phase_ms: f64,
    /// What the promises of this host rest on: `offset-free` or `phased`.
    pub proof: String,
    /// The pacer's socket.
    pub pacer: PathBuf,
    /// The vGPU's socket.
    pub gpu: PathBuf,
    /// `waiting` for a guest's context, `starting`, `rendering`, `lost`, or `leaving`.
    pub state: String,
    /// A change of its contract is on its way.
    pub changing: bool,
    /// `asked`: its guest is asked to stop submitting, and work of it is queued or running; `quiesced`: none is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quiesce: Option<String>,
    /// What its guest may ask for: `fixed` or `within`.
    #[serde(default)]
    pub guest_contract: String,
    /// The rates that it may ask for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_hz: Option<RatesJson>,
    /// The operator's contract, where its guest has chosen another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ceiling: Option<Map<String, Value>>,
    /// What its guest asked for last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<AskedJson>,
    /// What it has done.
    pub stats: StatsJson,
}

/// Rates, as they are written.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct RatesJson {
    /// The lowest.
    pub min: String,
    /// The highest.
    pub max: String,
}

/// What a guest asked for. What is not there was to stay, or is the default of its kind.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct AskedJson {
    /// A rate; where it is none, the period's numerator and denominator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refresh_hz: Option<String>,
    /// GPU time per period.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_ms: Option<f64>,
    /// When a frame is due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<f64>,
    /// Length of the late-latch window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_ms: Option<f64>,
    /// GPU time of the late latch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latch_budget_ms: Option<f64>,
    /// `pending`, `granted`, `reduced` or `refused`.
    pub answer: String,
    /// Why not all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The budget that it got, or that would fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fits_budget_ms: Option<f64>,
}

/// What a slice has done so far.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct StatsJson {
    /// Frames shown.
    pub frames: u64,
    /// Frames shown at a later vblank than the one they were due at.
    pub late: u64,
    /// Jobs that ran to their end.
    pub jobs: u64,
    /// Jobs that failed or were dropped.
    pub failed: u64,
    /// GPU time used, ms.
    pub busy_ms: f64,
    /// Vblanks passed over because the host came too late for them; 0 of a host that does not tell.
    #[serde(default)]
    pub skipped_vblanks: u64,
    /// How often the guest rang its queues' doorbells; 0 of a host that does not tell.
    #[serde(default)]
    pub doorbells: u64,
}

/// `GET /stats`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct AllStatsJson {
    /// How these numbers come about: measured or modelled.
    pub label: String,
    /// By the slice's name.
    pub slices: Vec<NamedStatsJson>,
}

/// One slice of [`AllStatsJson`].
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct NamedStatsJson {
    /// The slice.
    pub name: String,
    /// What it has done.
    #[serde(flatten)]
    pub stats: StatsJson,
}

/// Every answer that is not what was asked for.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct ErrorJson {
    /// What is wrong.
    pub error: String,
    /// Where: a key of the body, the path, a slice.
    #[serde(rename = "where")]
    pub place: String,
    /// What would be right.
    pub mend: String,
    /// What admission found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<RefusedJson>,
    /// When to try again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

/// Why admission says no: what is short, by how much, and what would fit.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct RefusedJson {
    /// `demand`: in `interval_ms` up to `demand_ms` of GPU work may be due, `short_ms` too much.
    /// `minimum`: the reserved contracts leave `free_percent` for background minima, `asked_percent` are
    /// asked for. `full`: there is no place.
    pub kind: String,
    /// The interval that is overfull.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_ms: Option<f64>,
    /// The work that may be due in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub demand_ms: Option<f64>,
    /// What does not fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub short_ms: Option<f64>,
    /// What is left for minima.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_percent: Option<f64>,
    /// What the minima come to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_percent: Option<f64>,
    /// Places.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_slices: Option<usize>,
    /// The nearest contracts that fit: change one of these keys. Empty: none does.
    pub nearest: Map<String, Value>,
}

impl SliceJson {
    /// A slice of a host with this promise.
    pub fn new(view: &SliceView, promise: Promise) -> Self {
        let config = &view.config;
        Self {
            name: config.name.clone(),
            width: config.width,
            height: config.height,
            memory: size(config.memory),
            contract: slice::written(&config.contract),
            phase_ms: view.ready.phase.as_millis_f64(),
            proof: proof(promise.proof).into(),
            pacer: view.ready.pacer.clone(),
            gpu: view.ready.gpu.clone(),
            state: match view.stand {
                _ if view.leaving => "leaving",
                Stand::Waiting => "waiting",
                Stand::Starting => "starting",
                Stand::Rendering => "rendering",
                Stand::Lost => "lost",
            }
            .into(),
            changing: view.changing,
            quiesce: match view.quiesce {
                Quiesce::No => None,
                Quiesce::Asked => Some("asked".into()),
                Quiesce::Quiesced => Some("quiesced".into()),
            },
            guest_contract: match config.guest_contract {
                GuestContract::Fixed => "fixed",
                GuestContract::Within { .. } => "within",
            }
            .into(),
            guest_hz: match config.guest_contract {
                GuestContract::Fixed => None,
                GuestContract::Within { fastest, slowest } => {
                    Some(RatesJson { min: slice::hz(slowest), max: slice::hz(fastest) })
                }
            },
            ceiling: (view.ceiling != config.contract).then(|| slice::written(&view.ceiling)),
            asked: view.asked.as_ref().map(AskedJson::new),
            stats: StatsJson::new(&view.stats),
        }
    }
}

impl AskedJson {
    fn new(last: &LastAsk) -> Self {
        let Ask { period_num, period_den, .. } = last.ask;
        let rate = match Period::new(period_num, period_den) {
            Some(period) => slice::hz(period),
            None => format!("{period_num}/{period_den} ns"),
        };
        let ms = |time: Nanos| (time > Nanos::ZERO).then(|| time.as_millis_f64());
        let (answer, told) = match last.answer {
            None => ("pending", None),
            Some(Answer::Granted) => ("granted", None),
            Some(Answer::Reduced { reason, budget }) => ("reduced", Some((reason, budget))),
            Some(Answer::Refused { reason, budget }) => ("refused", Some((reason, budget))),
        };
        Self {
            refresh_hz: ((period_num, period_den) != (0, 0)).then_some(rate),
            budget_ms: ms(last.ask.budget),
            deadline_ms: ms(last.ask.deadline),
            window_ms: ms(last.ask.late_latch),
            latch_budget_ms: ms(last.ask.latch_budget),
            answer: answer.into(),
            reason: told.map(|(reason, _)| reason.name().into()),
            fits_budget_ms: told.and_then(|(_, budget)| ms(budget)),
        }
    }
}

impl StatsJson {
    /// These numbers.
    pub fn new(stats: &SliceStats) -> Self {
        Self {
            frames: stats.frames,
            late: stats.late,
            jobs: stats.jobs,
            failed: stats.failed,
            busy_ms: stats.busy.as_millis_f64(),
            skipped_vblanks: stats.skipped_vblanks,
            doorbells: stats.doorbells,
        }
    }
}

impl HostJson {
    /// What a host says of itself.
    pub fn new(facts: &Facts, slices: usize, promise: Promise) -> Self {
        Self {
            about: "A Beamline host: it schedules one GPU and serves its slices over vfio-user. \
                    See /slices and /stats."
                .into(),
            versions: VersionsJson {
                beamline: env!("CARGO_PKG_VERSION").into(),
                api: API_VERSION,
                pacer: format!("{}.{}", PACER >> 16, PACER & 0xffff),
                frame: beamline_abi::frame::VERSION.into(),
            },
            label: facts.label.to_string(),
            gpu: facts.gpu.clone(),
            policy: facts.policy.name().into(),
            slices,
            max_slices: facts.max_slices,
            promised_percent: promise.promised_ppm as f64 / 1e4,
            proof: proof(promise.proof).into(),
        }
    }
}

const PACER: u32 = beamline_abi::pacer::VERSION;

fn proof(proof: Proof) -> &'static str {
    match proof {
        Proof::OffsetFree => "offset-free",
        Proof::Phased => "phased",
    }
}

/// `64M` where that is exact.
fn size(bytes: u64) -> String {
    for (shift, unit) in [(30, 'G'), (20, 'M'), (10, 'K')] {
        if bytes.trailing_zeros() >= shift {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    bytes.to_string()
}

impl ErrorJson {
    /// An error in three parts.
    pub fn new(
        error: impl Into<String>,
        place: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        let (error, place, mend) = (error.into(), place.into(), mend.into());
        Self { error, place, mend, ..Self::default() }
    }
}

/// The HTTP status of an error, and what is said.
pub fn error(error: &ControlError) -> (u16, ErrorJson) {
    let text = error.to_string();
    let told = |place: &str, mend: &str| ErrorJson::new(text.clone(), place, mend);
    match error {
        ControlError::NoSlice(_) => (404, told("path", "GET /slices names those that there are")),
        ControlError::NoPicture(_) => {
            (404, told("scanout", "ask again once the guest has presented a frame"))
        }
        ControlError::Taken(_) => (409, told("name", "choose another name, or remove that slice")),
        ControlError::Leaving(_) => (409, told("path", "wait until the slice is gone")),
        ControlError::Busy { wait } => {
            let retry_after_ms = Some(wait.0.div_ceil(1_000_000));
            let said = told("slices", "nothing has changed; ask again in retry_after_ms");
            (409, ErrorJson { retry_after_ms, ..said })
        }
        ControlError::Refused(Refusal::Invalid(wrong)) => (
            422,
            ErrorJson::new(wrong.to_string(), "contract", "keep the bounds that the error names"),
        ),
        ControlError::Refused(refusal) => {
            let refused = RefusedJson::new(refusal);
            let mend = refused.mend();
            let said = ErrorJson::new(text, "contract", mend);
            (409, ErrorJson { refused: Some(refused), ..said })
        }
        ControlError::Slice(wrong) => {
            (422, ErrorJson::new(wrong.problem.clone(), wrong.key.clone(), "use a value that fits"))
        }
        ControlError::Host(HostError::Listen { .. }) => {
            (409, told("name", "remove what is at that path, or choose another name"))
        }
        ControlError::Host(_) => (500, told("host", "look at the host's log")),
        ControlError::Ended => (503, told("host", "start a new host")),
    }
}

impl RefusedJson {
    fn new(refusal: &Refusal) -> Self {
        let ms = |ns: u64| Some(Nanos(ns).as_millis_f64());
        let percent = |ppm: u64| Some(ppm as f64 / 1e4);
        match refusal {
            Refusal::Demand { shortage, nearest } => Self {
                kind: "demand".into(),
                interval_ms: ms(shortage.interval),
                demand_ms: ms(shortage.demand),
                short_ms: ms(shortage.demand.saturating_sub(shortage.interval)),
                nearest: keys(nearest),
                ..Self::default()
            },
            Refusal::Minimum { free_ppm, asked_ppm, nearest } => Self {
                kind: "minimum".into(),
                free_percent: percent(*free_ppm),
                asked_percent: percent(*asked_ppm),
                nearest: keys(nearest),
                ..Self::default()
            },
            Refusal::Full { max_tenants } => {
                Self { kind: "full".into(), max_slices: Some(*max_tenants), ..Self::default() }
            }
            Refusal::Invalid(_) => Self { kind: "invalid".into(), ..Self::default() },
        }
    }

    fn mend(&self) -> String {
        let fits: Vec<String> =
            self.nearest.iter().map(|(key, value)| format!("contract.{key} = {value}")).collect();
        match (self.kind.as_str(), fits.is_empty()) {
            ("full", _) => {
                "remove a slice first, or start the host with a higher max_slices".into()
            }
            (_, true) => "no smaller budget or common lower rate fits: remove a slice first".into(),
            (_, false) => format!("use {}", fits.join(", or ")),
        }
    }
}

/// What would fit, by the contract's keys.
fn keys(nearest: &Nearest) -> Map<String, Value> {
    let mut keys = Map::new();
    if let Some(budget) = nearest.budget {
        keys.insert("budget_ms".into(), budget.as_millis_f64().into());
    }
    if let Some(period) = nearest.hz.and_then(|hz| Period::from_hz(hz, 1)) {
        keys.insert("refresh_hz".into(), slice::hz(period).into());
    }
    keys
}
