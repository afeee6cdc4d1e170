//! One slice as it is written, in the host's file (TOML) and in a request to a running host (JSON): the same
//! keys, the same checks.

use beamline_sched::written::{Written, hz as hz_of};
use beamline_sched::{Class, Contract, Guard, MissAllowance, Period, Sink};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// How late after its vblank a guest may begin where its contract does not say, ms.
const JITTER_MS: f64 = 1.0;

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

/// Whether a slice's guest may choose another contract than the operator's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GuestContract {
    /// It may not.
    #[default]
    Fixed,
    /// It may, at a rate between these, with no more of the GPU: see [`crate::host::ask`].
    Within {
        /// The shortest period.
        fastest: Period,
        /// The longest.
        slowest: Period,
    },
}

/// [`GuestContract`] as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum WrittenGuest {
    #[default]
    Fixed,
    Within,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenRates {
    min: String,
    max: String,
}

impl WrittenGuest {
    fn read(self, rates: Option<WrittenRates>) -> Result<GuestContract, SliceError> {
        let bad = |problem: String| SliceError { key: "guest_hz".into(), problem };
        match (self, rates) {
            (Self::Fixed, None) => Ok(GuestContract::Fixed),
            (Self::Fixed, Some(_)) => Err(bad(
                "a guest whose contract is fixed chooses no rate: set guest_contract to \"within\""
                    .into(),
            )),
            (Self::Within, None) => Err(bad(
                "state the rates that the guest may choose: { min = \"30\", max = \"120\" }".into(),
            )),
            (Self::Within, Some(WrittenRates { min, max })) => {
                let rate = |text: &str| {
                    hz_of(text)
                        .ok_or_else(|| bad(format!("`{text}` is no rate from 0.1 to 1000 Hz")))
                };
                let (slowest, fastest) = (rate(&min)?, rate(&max)?);
                if slowest.ceil() < fastest.ceil() {
                    return Err(bad(format!("min, `{min}`, is above max, `{max}`")));
                }
                Ok(GuestContract::Within { fastest, slowest })
            }
        }
    }
}

/// One slice.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// What its guest may ask for instead.
    pub guest_contract: GuestContract,
}

/// A value of a slice that is out of range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {problem}")]
pub struct SliceError {
    /// The key: `contract.budget_ms`.
    pub key: String,
    /// What is wrong and what would be right.
    pub problem: String,
}

/// A slice as it is written. Unknown keys are refused.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrittenSlice {
    name: String,
    width: u32,
    height: u32,
    #[serde(default)]
    profile: Profile,
    #[serde(default = "memory")]
    memory: String,
    #[serde(default = "display_memory")]
    display_memory: String,
    #[serde(default)]
    guest_contract: WrittenGuest,
    guest_hz: Option<WrittenRates>,
    contract: Written,
}

fn memory() -> String {
    "64M".into()
}

/// Three images of 3840 x 2160: two that a guest draws into, and what is shown.
fn display_memory() -> String {
    "128M".into()
}

impl WrittenSlice {
    /// What is meant.
    pub fn read(self) -> Result<SliceConfig, SliceError> {
        let bad = |key: &str, problem: String| SliceError { key: key.into(), problem };
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if self.name.is_empty() || self.name.len() > 32 || !self.name.chars().all(fits) {
            let problem =
                format!("`{}` does not fit; use 1 to 32 letters, digits, `-` or `_`", self.name);
            return Err(bad("name", problem));
        }
        let most = beamline_abi::frame::MAX_IMAGE_SIDE;
        for (key, side) in [("width", self.width), ("height", self.height)] {
            if !(16..=most).contains(&side) {
                let problem = format!("{side} is out of range; use 16 to {most} pixels");
                return Err(bad(key, problem));
            }
        }
        let memory = size("memory", &self.memory, (1 << 20, "1M"), (1 << 40, "1T"))?;
        let display_memory =
            size("display_memory", &self.display_memory, (1 << 20, "1M"), (4 << 30, "4G"))?;
        let front = u64::from(self.width) * u64::from(self.height) * 4;
        if display_memory < 2 * front {
            let problem = format!(
                "`{}` is too little: {} x {} pixels and what is shown of them take {}M",
                self.display_memory,
                self.width,
                self.height,
                (2 * front).div_ceil(1 << 20)
            );
            return Err(bad("display_memory", problem));
        }
        let guest_contract = self.guest_contract.read(self.guest_hz)?;
        let contract = contract(self.contract)?;
        Ok(SliceConfig {
            name: self.name,
            width: self.width,
            height: self.height,
            profile: self.profile,
            memory,
            display_memory,
            contract,
            guest_contract,
        })
    }
}

/// The contract that is meant.
pub fn contract(written: Written) -> Result<Contract, SliceError> {
    let contract = written.read(JITTER_MS).map_err(|wrong| SliceError {
        key: format!("contract.{}", wrong.key),
        problem: wrong.problem,
    })?;
    // The dispatcher keeps every queued frame, in order, and drops none that is overdue: one that may miss
    // would hold up one that may not. So every frame is promised, which is more than is asked for: of how many
    // none may be missed is then all the same.
    Ok(Contract { miss: MissAllowance { misses: 0, frames: 1 }, ..contract })
}

/// A contract by the keys that it is written with: reading them again gives the same contract.
pub fn written(c: &Contract) -> Map<String, Value> {
    #[derive(Serialize)]
    struct Keys {
        refresh_hz: String,
        class: &'static str,
        budget_ms: f64,
        max_job_ms: f64,
        #[serde(skip_serializing_if = "Option::is_none")]
        deadline_ms: Option<f64>,
        gap_ms: f64,
        jitter_ms: f64,
        sink: &'static str,
        guard: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        late_latch: Option<Latch>,
        depth: u8,
        weight: u16,
    }
    #[derive(Serialize)]
    struct Latch {
        window_ms: f64,
        budget_ms: f64,
    }
    let keys = Keys {
        refresh_hz: hz(c.period),
        class: class(c.class),
        budget_ms: c.budget.as_millis_f64(),
        max_job_ms: c.max_job.as_millis_f64(),
        // Where none is written, it follows the period: also that of a changed contract.
        deadline_ms: (c.deadline != c.period.floor()).then(|| c.deadline.as_millis_f64()),
        gap_ms: c.gap.as_millis_f64(),
        jitter_ms: c.jitter.as_millis_f64(),
        sink: match c.sink {
            Sink::Virtual => "virtual",
            Sink::External => "external",
        },
        guard: match c.guard {
            Guard::Deadline => "deadline",
            Guard::Release => "release",
        },
        late_latch: c.late_latch.map(|l| Latch {
            window_ms: l.window.as_millis_f64(),
            budget_ms: l.budget.as_millis_f64(),
        }),
        depth: c.depth,
        weight: c.weight,
    };
    match serde_json::to_value(keys) {
        Ok(Value::Object(map)) => map,
        // A struct of strings and finite numbers is an object.
        _ => Map::new(),
    }
}

/// A class by its name.
pub const fn class(class: Class) -> &'static str {
    match class {
        Class::Reserved => "reserved",
        Class::Elastic => "elastic",
        Class::Background => "background",
    }
}

/// `90`, or `60000/1001`.
pub fn hz(period: Period) -> String {
    // num / den ns are 1e9 × den / num Hz.
    let (up, down) = (u128::from(period.den()) * 1_000_000_000, u128::from(period.num()));
    let (mut a, mut b) = (up, down);
    while b != 0 {
        (a, b) = (b, a % b);
    }
    match down / a {
        1 => (up / a).to_string(),
        rest => format!("{}/{rest}", up / a),
    }
}

/// A size between two bounds, which come with how they are written.
fn size(
    key: &str,
    text: &str,
    (least, low): (u64, &str),
    (most, high): (u64, &str),
) -> Result<u64, SliceError> {
    parse_size(text).filter(|m| (least..=most).contains(m)).ok_or_else(|| SliceError {
        key: key.into(),
        problem: format!("`{text}` is no size from {low} to {high}, such as 64M"),
    })
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

#[cfg(test)]
mod tests {
    use super::*;
    use beamline_abi::Nanos;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn rates_are_written_as_they_are_read() {
        let hz = |n, d| super::hz(Period::from_hz(n, d).unwrap());
        assert_eq!(hz(90, 1), "90");
        assert_eq!(hz(60_000, 1_001), "60000/1001");
        assert_eq!(hz(1, 2), "1/2");
    }

    #[test]
    fn a_contract_with_misses_is_the_one_that_is_shown() {
        let keys = json!({
            "refresh_hz": "60", "class": "reserved", "budget_ms": 1, "max_job_ms": 1, "miss": "1/100",
        });
        let read = |keys| contract(serde_json::from_value(keys).unwrap()).unwrap();
        let meant = read(keys);
        assert_eq!(read(Value::Object(written(&meant))), meant);
    }

    proptest! {
        /// A contract that is written out and read again is the same to the nanosecond.
        #[test]
        fn contracts_come_back(
            hz in 1u64..1000, den in prop::sample::select(vec![1u64, 7, 1001]),
            times in prop::array::uniform6(0u64..10_000_000_000), class in 0usize..3, latch: bool,
            depth in 1u8..5, weight in 1u16..1001,
        ) {
            let [deadline, budget, max_job, gap, jitter, window] = times.map(Nanos);
            let period = Period::from_hz(hz * den, den).unwrap();
            let before = Contract {
                period, deadline, budget, max_job, gap, jitter,
                sink: if latch { Sink::External } else { Sink::Virtual },
                class: [Class::Reserved, Class::Elastic, Class::Background][class],
                miss: MissAllowance { misses: 0, frames: 1 },
                late_latch: latch.then_some(beamline_sched::LateLatch { window, budget: gap }),
                guard: if latch { Guard::Deadline } else { Guard::Release },
                depth, weight,
            };
            let read: Written = serde_json::from_value(Value::Object(written(&before))).unwrap();
            prop_assert_eq!(contract(read).unwrap(), before);
        }
    }
}
