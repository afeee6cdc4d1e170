//! Stage 4, schedule: the frame contract, what a slice is promised.

use crate::mk::Pattern;
use beamline_abi::Nanos;

/// A refresh period in nanoseconds as a rational number, so that a grid built on it never drifts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Period {
    num: u64,
    den: u64,
}

impl Period {
    /// Shortest period: 1 ms.
    pub const MIN: Nanos = Nanos::from_millis(1);
    /// Longest period: 10 s.
    pub const MAX: Nanos = Nanos::from_secs(10);
    /// Largest denominator: 1,000,000 (59.94 Hz needs 60,000).
    pub const MAX_DEN: u64 = 1_000_000;

    /// `num / den` ns, in lowest terms; `None` outside [`Period::MIN`] to [`Period::MAX`] or with a
    /// denominator of 0 or above [`Period::MAX_DEN`] after reduction.
    pub const fn new(num: u64, den: u64) -> Option<Self> {
        if den == 0 || num == 0 {
            return None;
        }
        let g = gcd(num, den);
        let (num, den) = (num / g, den / g);
        if den > Self::MAX_DEN || num / den > Self::MAX.0 {
            return None;
        }
        // num >= MIN * den and num <= MAX * den; neither product overflows with den <= 1e6.
        if num < Self::MIN.0 * den || num > Self::MAX.0 * den {
            return None;
        }
        Some(Self { num, den })
    }

    /// The period of `num / den` Hz: 90/1, or 60000/1001 for 59.94 Hz.
    pub const fn from_hz(num: u64, den: u64) -> Option<Self> {
        match den.checked_mul(1_000_000_000) {
            Some(n) => Self::new(n, num),
            None => None,
        }
    }

    /// Numerator in ns.
    pub const fn num(self) -> u64 {
        self.num
    }
    /// Denominator.
    pub const fn den(self) -> u64 {
        self.den
    }
    /// The period rounded down to whole ns.
    pub const fn floor(self) -> Nanos {
        Nanos(self.num / self.den)
    }
    /// The period rounded up to whole ns.
    pub const fn ceil(self) -> Nanos {
        Nanos(self.num.div_ceil(self.den))
    }
    /// `k` periods in whole ns, rounded down once: no error builds up. Saturates at [`Nanos::MAX`].
    pub const fn times(self, k: u64) -> Nanos {
        let n = self.num as u128 * k as u128 / self.den as u128;
        if n > u64::MAX as u128 { Nanos::MAX } else { Nanos(n as u64) }
    }
    /// Frames per second, for display only.
    pub fn hz(self) -> f64 {
        1e9 * self.den as f64 / self.num as f64
    }
}

pub(crate) const fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// What kind of promise a contract is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Promised: admitted only where every frame can be in time.
    Reserved,
    /// The best frame rate from what is left, by weight.
    Elastic,
    /// Gaps, plus the declared budget per period as a minimum that admission charges.
    Background,
}

/// Who owns the display's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sink {
    /// A virtual display: the host chooses the phase of its vblanks.
    Virtual,
    /// A real panel, headset or client: its clock is its own.
    External,
}

/// A second job in a window before the frame is due: reprojection, or encode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LateLatch {
    /// How long before the deadline the job may start, in ns.
    pub window: Nanos,
    /// GPU ns of the job per period, beside the contract's budget.
    pub budget: Nanos,
}

/// `misses` allowed in any `frames` frames: what a reserved contract is promised is then only the frames that
/// [`Pattern`] makes mandatory. Zero misses for reserved VR. Means nothing in other classes, which are promised
/// no frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MissAllowance {
    /// m.
    pub misses: u32,
    /// k.
    pub frames: u32,
}

/// What a non-preemptible job of another tenant must leave untouched of this contract's frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Guard {
    /// The deadline: such a job may run into the release while this contract's jobs still end in time.
    Deadline,
    /// The release itself: the GPU is free when the frame comes. Costs background throughput.
    Release,
}

/// What a slice is promised. Validated by [`crate::admission`]; plain data here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Contract {
    /// Refresh period.
    pub period: Period,
    /// When a frame is due, in ns after its release (the vblank that starts it).
    pub deadline: Nanos,
    /// GPU ns per period for the frame's jobs without the late latch; for background the minimum.
    pub budget: Nanos,
    /// Longest non-preemptible job in ns. A longer one is killed with its renderer.
    pub max_job: Nanos,
    /// CPU time between a frame's jobs in ns, charged as demand.
    pub gap: Nanos,
    /// Latest arrival of a frame's first job after its vblank, in ns.
    pub jitter: Nanos,
    /// Who owns the display's clock.
    pub sink: Sink,
    /// What kind of promise this is.
    pub class: Class,
    /// Misses allowed.
    pub miss: MissAllowance,
    /// The second job, if there is one.
    pub late_latch: Option<LateLatch>,
    /// What others' jobs must leave untouched.
    pub guard: Guard,
    /// Frames that may be in flight, 1 to 4.
    pub depth: u8,
    /// Share among elastic contracts, 1 to 1,000.
    pub weight: u16,
}

impl Contract {
    /// When the frame's main jobs must be done, in ns after release: the deadline less the late-latch
    /// window.
    pub fn main_deadline(&self) -> Nanos {
        match self.late_latch {
            Some(l) => self.deadline.saturating_sub(l.window),
            None => self.deadline,
        }
    }

    /// Which frames are promised: of a reserved contract those that its allowance of misses makes mandatory.
    ///
    /// Where not every frame is ([`Pattern::is_all`]), whoever queues the jobs drops at each vblank what is
    /// still queued of earlier slots and tells the guest: it has missed, and a tenant's jobs keep their order,
    /// so it would hold up a mandatory frame behind it.
    pub fn pattern(&self) -> Pattern {
        match self.class {
            Class::Reserved => Pattern::new(self.miss),
            Class::Elastic | Class::Background => Pattern::ALL,
        }
    }
}
