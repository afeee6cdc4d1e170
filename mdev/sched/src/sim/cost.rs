//! How long a job or a pause takes: distributions by their quantile function.
//!
//! A value is drawn as the quantile of an even number between 0 and 1, so that one draw is one number of the
//! generator's, and means can be worked out by quadrature.

use super::scenario::ScenarioError;
use beamline_abi::Nanos;
use std::format;

/// The longest time a distribution may give: 10 s, as the longest job a contract may allow.
const MOST: Nanos = Nanos::from_secs(10);
/// Points of the quadrature behind [`Cost::mean`].
const POINTS: u32 = 4_096;

/// A distribution of times.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cost {
    /// Always the same.
    Fixed(Nanos),
    /// Evenly between two times.
    Uniform {
        /// The least.
        low: Nanos,
        /// The most.
        high: Nanos,
    },
    /// Lognormal: what frame times of games look like between scene changes.
    LogNormal {
        /// Half of all values are below.
        median: Nanos,
        /// Standard deviation of the logarithm, 0 to 3.
        sigma: f64,
        /// Where the tail is cut.
        at_most: Nanos,
    },
    /// Pareto: a heavy tail.
    Pareto {
        /// The least.
        scale: Nanos,
        /// The tail's exponent, 0.5 to 100; at 2 and below the variance is set by the cut.
        shape: f64,
        /// Where the tail is cut.
        at_most: Nanos,
    },
}

impl Cost {
    /// Checks the parameters. `field`: the name in a message; `least`: the shortest time that makes sense.
    pub fn check(&self, field: &str, least: Nanos) -> Result<(), ScenarioError> {
        let within = |name: &str, value: Nanos, least: Nanos| {
            if (least..=MOST).contains(&value) {
                return Ok(());
            }
            let problem = format!("is {value}; it must be {least} to {MOST}");
            Err(ScenarioError::new(format!("{field}{name}"), problem))
        };
        let ratio = |name: &str, value: f64, least: f64, most: f64| {
            if (least..=most).contains(&value) {
                return Ok(());
            }
            let problem = format!("is {value}; it must be {least} to {most}");
            Err(ScenarioError::new(format!("{field}{name}"), problem))
        };
        match *self {
            Self::Fixed(value) => within("", value, least),
            Self::Uniform { low, high } => {
                within(".low", low, least)?;
                within(".high", high, low)
            }
            Self::LogNormal { median, sigma, at_most } => {
                within(".median", median, least)?;
                ratio(".sigma", sigma, 0.0, 3.0)?;
                within(".at_most", at_most, median)
            }
            Self::Pareto { scale, shape, at_most } => {
                within(".scale", scale, least)?;
                ratio(".shape", shape, 0.5, 100.0)?;
                within(".at_most", at_most, scale)
            }
        }
    }

    /// The value below which a share `u` of all values lies, 0 < `u` < 1, ns.
    pub fn quantile(&self, u: f64) -> u64 {
        match *self {
            Self::Fixed(value) => value.0,
            Self::Uniform { low, high } => {
                low.0 + (u * (high.0.saturating_sub(low.0) + 1) as f64) as u64
            }
            Self::LogNormal { median, sigma, at_most } => {
                let value = median.0 as f64 * (sigma * normal_quantile(u)).exp();
                (value as u64).min(at_most.0)
            }
            Self::Pareto { scale, shape, at_most } => {
                let value = scale.0 as f64 * (1.0 - u).powf(-1.0 / shape);
                (value as u64).min(at_most.0)
            }
        }
    }

    /// The mean, ns, to about a thousandth.
    pub fn mean(&self) -> f64 {
        let sum: f64 = (0..POINTS)
            .map(|i| self.quantile((f64::from(i) + 0.5) / f64::from(POINTS)) as f64)
            .sum();
        sum / f64::from(POINTS)
    }

    /// The largest value.
    pub fn most(&self) -> Nanos {
        match *self {
            Self::Fixed(value) => value,
            Self::Uniform { high, .. } => high,
            Self::LogNormal { at_most, .. } | Self::Pareto { at_most, .. } => at_most,
        }
    }
}

/// Quantiles of the standard normal distribution, by Acklam's rational approximation (2003), to 1.2e-9
/// relative.
fn normal_quantile(u: f64) -> f64 {
    const A: [f64; 6] = [
        -3.969_683_028_665_376e1,
        2.209_460_984_245_205e2,
        -2.759_285_104_469_687e2,
        1.383_577_518_672_69e2,
        -3.066_479_806_614_716e1,
        2.506_628_277_459_239,
    ];
    const B: [f64; 5] = [
        -5.447_609_879_822_406e1,
        1.615_858_368_580_409e2,
        -1.556_989_798_598_866e2,
        6.680_131_188_771_972e1,
        -1.328_068_155_288_572e1,
    ];
    const C: [f64; 6] = [
        -7.784_894_002_430_293e-3,
        -3.223_964_580_411_365e-1,
        -2.400_758_277_161_838,
        -2.549_732_539_343_734,
        4.374_664_141_464_968,
        2.938_163_982_698_783,
    ];
    const D: [f64; 4] = [
        7.784_695_709_041_462e-3,
        3.224_671_290_700_398e-1,
        2.445_134_137_142_996,
        3.754_408_661_907_416,
    ];
    const LOW: f64 = 0.024_25;
    let horner = |c: &[f64], x: f64| c.iter().fold(0.0, |sum, c| sum * x + c);
    let tail = |u: f64| {
        let q = (-2.0 * u.ln()).sqrt();
        horner(&C, q) / (horner(&D, q) * q + 1.0)
    };
    if u < LOW {
        tail(u)
    } else if u > 1.0 - LOW {
        -tail(1.0 - u)
    } else {
        let q = u - 0.5;
        let r = q * q;
        horner(&A, r) * q / (horner(&B, r) * r + 1.0)
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): every seed gives a full period.
#[derive(Clone, Copy, Debug)]
pub struct Numbers(u64);

impl Numbers {
    /// The stream of numbers named by `keys`: different keys, different streams.
    pub fn of<const N: usize>(keys: [u64; N]) -> Self {
        let mut numbers = Self(0);
        for key in keys {
            numbers.0 ^= key;
            numbers.0 = numbers.next_number();
        }
        numbers
    }

    /// The next number.
    pub fn next_number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Evenly between 0 and 1, neither included.
    pub fn unit(&mut self) -> f64 {
        ((self.next_number() >> 12) as f64 + 0.5) / (1u64 << 52) as f64
    }

    /// A value of this distribution, ns.
    pub fn draw(&mut self, cost: &Cost) -> u64 {
        match cost {
            Cost::Fixed(value) => value.0,
            other => other.quantile(self.unit()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn normal_quantiles_are_those_of_the_tables() {
        for (u, z) in
            [(0.5, 0.0), (0.841_344_746, 1.0), (0.975, 1.959_963_985), (0.001, -3.090_232_306)]
        {
            assert!((normal_quantile(u) - z).abs() < 1e-7, "{u}: {}", normal_quantile(u));
        }
    }

    #[test]
    fn draws_have_the_quantiles_and_the_mean_of_their_distribution() {
        let (ms, s) = (Nanos::from_millis, Nanos::from_secs(1));
        for cost in [
            Cost::Uniform { low: ms(1), high: ms(3) },
            Cost::LogNormal { median: ms(2), sigma: 0.4, at_most: s },
            Cost::Pareto { scale: ms(1), shape: 2.5, at_most: s },
        ] {
            let mut numbers = Numbers::of([7]);
            let mut drawn: Vec<u64> = (0..100_000).map(|_| numbers.draw(&cost)).collect();
            drawn.sort_unstable();
            let mean = drawn.iter().sum::<u64>() as f64 / drawn.len() as f64;
            assert!((mean / cost.mean() - 1.0).abs() < 0.01, "{cost:?}: {mean}");
            for u in [0.1, 0.5, 0.99] {
                let (got, want) = (drawn[(u * 1e5) as usize] as f64, cost.quantile(u) as f64);
                assert!((got / want - 1.0).abs() < 0.02, "{cost:?} at {u}: {got}, {want}");
            }
        }
    }

    #[test]
    fn parameters_out_of_range_are_named() {
        let bad = Cost::LogNormal {
            median: Nanos::from_millis(2),
            sigma: f64::NAN,
            at_most: Nanos::from_millis(9),
        };
        let error = bad.check("work.jobs[0]", Nanos(1)).unwrap_err();
        assert_eq!(
            std::string::ToString::to_string(&error),
            "work.jobs[0].sigma is NaN; it must be 0 to 3"
        );
        let bad = Cost::Uniform { low: Nanos(9), high: Nanos(8) };
        assert!(bad.check("x", Nanos(1)).is_err());
        assert!(Cost::Fixed(Nanos::ZERO).check("x", Nanos(1)).is_err());
    }
}
