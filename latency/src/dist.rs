//! Distributions: nearest-rank quantiles, correction for coordinated omission, bootstrap intervals.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// A quantile in millionths, so that the sample size it needs is an exact number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quantile(u32);

impl Quantile {
    /// The median.
    pub const P50: Self = Self(500_000);
    /// 95%.
    pub const P95: Self = Self(950_000);
    /// 99%.
    pub const P99: Self = Self(990_000);
    /// 99.9%.
    pub const P999: Self = Self(999_000);

    /// The quantile `p`, from 0 to 1; values outside are clamped.
    pub fn new(p: f64) -> Self {
        Self((p.clamp(0.0, 1.0) * 1e6).round() as u32)
    }

    /// How many samples it takes to say anything about it: 10 / (1 − p); `None` for the maximum.
    pub fn needed(self) -> Option<u64> {
        let beyond = 1_000_000_u64.saturating_sub(self.0.into());
        (beyond > 0).then(|| 10_000_000_u64.div_ceil(beyond))
    }

    /// Whether `n` samples are enough.
    pub fn is_supported_by(self, n: u64) -> bool {
        self.needed().is_some_and(|needed| n >= needed)
    }

    /// The nearest rank, from 1, among `n`.
    fn rank(self, n: usize) -> usize {
        let rank = (n as u128 * u128::from(self.0)).div_ceil(1_000_000) as usize;
        rank.clamp(1, n.max(1))
    }
}

/// Samples of one quantity, in the order they were taken, in ns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Samples {
    ordered: Vec<u64>,
    sorted: Vec<u64>,
}

impl FromIterator<u64> for Samples {
    fn from_iter<I: IntoIterator<Item = u64>>(samples: I) -> Self {
        let ordered: Vec<u64> = samples.into_iter().collect();
        let mut sorted = ordered.clone();
        sorted.sort_unstable();
        Self { ordered, sorted }
    }
}

impl Samples {
    /// How many.
    pub fn len(&self) -> u64 {
        self.sorted.len() as u64
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.sorted.is_empty()
    }

    /// The nearest-rank quantile; `None` where there are too few samples for it.
    pub fn quantile(&self, q: Quantile) -> Option<u64> {
        q.is_supported_by(self.len()).then(|| self.sorted[q.rank(self.sorted.len()) - 1])
    }

    /// The largest.
    pub fn max(&self) -> Option<u64> {
        self.sorted.last().copied()
    }

    /// The mean, rounded down.
    pub fn mean(&self) -> Option<u64> {
        let sum: u128 = self.sorted.iter().map(|&v| u128::from(v)).sum();
        // A mean of u64s is a u64.
        (!self.is_empty()).then(|| (sum / self.sorted.len() as u128) as u64)
    }

    /// The figures for a report.
    pub fn summary(&self) -> Summary {
        Summary {
            n: self.len(),
            mean_ns: self.mean(),
            p50_ns: self.quantile(Quantile::P50),
            p95_ns: self.quantile(Quantile::P95),
            p99_ns: self.quantile(Quantile::P99),
            p999_ns: self.quantile(Quantile::P999),
            max_ns: self.max(),
        }
    }

    /// As an HdrHistogram with three significant digits. With `expected` (ns), a sample longer than that
    /// stands for those that could not be taken meanwhile: the correction for coordinated omission.
    pub fn histogram(&self, expected: Option<u64>) -> Histogram<u64> {
        let mut histogram = new_histogram();
        for &value in &self.sorted {
            let value = value.min(HISTOGRAM_MAX);
            let recorded = match expected.filter(|&e| e >= MIN_EXPECTED) {
                Some(expected) => histogram.record_correct(value, expected),
                None => histogram.record(value),
            };
            debug_assert!(recorded.is_ok(), "the value was cut to the histogram's range");
        }
        histogram
    }

    /// The figures of [`Samples::histogram`], to three significant digits.
    pub fn corrected(&self, expected: u64) -> Summary {
        let histogram = self.histogram(Some(expected));
        let n = histogram.len();
        let at = |q: Quantile| {
            let value = || histogram.value_at_quantile(f64::from(q.0) / 1e6);
            q.is_supported_by(n).then(value)
        };
        Summary {
            n,
            mean_ns: (n > 0).then(|| histogram.mean() as u64),
            p50_ns: at(Quantile::P50),
            p95_ns: at(Quantile::P95),
            p99_ns: at(Quantile::P99),
            p999_ns: at(Quantile::P999),
            max_ns: (n > 0).then(|| histogram.max()),
        }
    }

    /// A 95% interval for quantile `q` by block bootstrap; `None` where `q` itself is `None`.
    pub fn quantile_interval(&self, q: Quantile, seed: u64) -> Option<Interval> {
        self.quantile(q)?;
        let mut scratch = Vec::with_capacity(self.ordered.len());
        let estimates = bootstrap(self.ordered.len(), seed, |picks| {
            scratch.clear();
            scratch.extend(picks.iter().map(|&i| self.ordered[i]));
            let rank = q.rank(scratch.len()) - 1;
            *scratch.select_nth_unstable(rank).1 as f64
        });
        interval(estimates)
    }
}

/// An hour: beyond it a duration is cut.
const HISTOGRAM_MAX: u64 = 3_600_000_000_000;
/// Shorter expected intervals would make millions of samples out of one.
const MIN_EXPECTED: u64 = 100_000;

#[expect(clippy::expect_used, reason = "the bounds are constants that the constructor accepts")]
fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, HISTOGRAM_MAX, 3)
        .expect("1 < max/2 and 3 digits are valid bounds")
}

/// The figures of one distribution, in ns; `None` where there are too few samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// How many samples.
    pub n: u64,
    /// Mean.
    pub mean_ns: Option<u64>,
    /// Median.
    pub p50_ns: Option<u64>,
    /// 95%.
    pub p95_ns: Option<u64>,
    /// 99%.
    pub p99_ns: Option<u64>,
    /// 99.9%.
    pub p999_ns: Option<u64>,
    /// Largest.
    pub max_ns: Option<u64>,
}

/// A 95% confidence interval, in the unit of what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// Resamples taken for an interval.
const RESAMPLES: usize = 400;
/// Consecutive frames drawn together: misses come in runs, and single draws would hide that. Fewer of
/// them where there are not eight such blocks.
const BLOCK: usize = 32;

/// A 95% interval for the share, in percent, of `hits` that are true, by block bootstrap.
pub fn share_interval(hits: &[bool], seed: u64) -> Option<Interval> {
    if hits.is_empty() {
        return None;
    }
    let estimates = bootstrap(hits.len(), seed, |picks| {
        100.0 * picks.iter().filter(|&&i| hits[i]).count() as f64 / picks.len() as f64
    });
    interval(estimates)
}

/// `estimate` over [`RESAMPLES`] draws of `n` indices (`n` above 0), in circular blocks.
fn bootstrap(n: usize, seed: u64, mut estimate: impl FnMut(&[usize]) -> f64) -> Vec<f64> {
    let mut random = SplitMix(seed);
    let mut picks = Vec::with_capacity(n);
    let block = BLOCK.min(n / 8).max(1);
    (0..RESAMPLES)
        .map(|_| {
            picks.clear();
            while picks.len() < n {
                let first = random.below(n as u64) as usize;
                let take = block.min(n - picks.len());
                picks.extend((first..first + take).map(|i| i % n));
            }
            estimate(&picks)
        })
        .collect()
}

fn interval(mut estimates: Vec<f64>) -> Option<Interval> {
    estimates.sort_by(f64::total_cmp);
    let at = |millionths| {
        let rank = Quantile(millionths).rank(estimates.len());
        estimates.get(rank - 1).copied()
    };
    Some(Interval { low: at(25_000)?, high: at(975_000)? })
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, seeded, and good enough to draw blocks.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_sample_size_rule_is_exact() {
        for (q, n) in [(Quantile::P50, 20), (Quantile::P95, 200), (Quantile::P99, 1000)] {
            assert!(!q.is_supported_by(n - 1) && q.is_supported_by(n), "{q:?}");
        }
        assert!(Quantile::P999.is_supported_by(10_000) && !Quantile::P999.is_supported_by(9_999));
        assert!(!Quantile::new(1.0).is_supported_by(u64::MAX));
        let few: Samples = (1..=999).collect();
        assert_eq!(few.quantile(Quantile::P99), None);
        assert_eq!(few.summary().max_ns, Some(999));
        assert_eq!(Samples::default().summary(), Summary::default());
    }

    #[test]
    fn nearest_rank_of_a_thousand() {
        let samples: Samples = (1..=1000).rev().collect();
        assert_eq!(samples.quantile(Quantile::P50), Some(500));
        assert_eq!(samples.quantile(Quantile::P99), Some(990));
        assert_eq!(samples.mean(), Some(500));
    }

    #[test]
    fn a_long_pause_weighs_what_it_kept_from_happening() {
        let ms = 1_000_000;
        let samples: Samples = std::iter::repeat_n(ms, 990).chain([1_000 * ms; 10]).collect();
        let raw = samples.summary();
        let corrected = samples.corrected(10 * ms);
        assert_eq!(raw.p99_ns, Some(ms));
        // Each pause of 1 s stands for 100 samples: 500 ms on average.
        assert_eq!(corrected.n, 990 + 10 * 100);
        assert!(corrected.p99_ns > Some(900 * ms), "{corrected:?}");
        assert_eq!(samples.corrected(0).n, 1000, "no interval, no correction");
    }

    #[test]
    fn intervals_hold_the_estimate_and_repeat() {
        let hits: Vec<bool> = (0..2000).map(|i| i % 40 != 0).collect();
        let a = share_interval(&hits, 7).unwrap();
        assert_eq!(Some(a), share_interval(&hits, 7));
        assert!(a.low <= 97.5 && 97.5 <= a.high && a.high - a.low < 3.0, "{a:?}");
        let all = share_interval(&[true; 50], 1).unwrap();
        assert_eq!((all.low, all.high), (100.0, 100.0));
        assert_eq!(share_interval(&[], 1), None);
        let few = share_interval(&[true, false, true, true, true], 1).unwrap();
        assert!(few.high - few.low > 20.0, "few frames say little: {few:?}");
        let samples: Samples = (0..5000u64).map(|i| i * 7919 % 5000).collect();
        let p99 = samples.quantile_interval(Quantile::P99, 3).unwrap();
        assert!(p99.low <= 4950.0 && 4949.0 <= p99.high, "{p99:?}");
    }

    #[test]
    fn runs_of_misses_widen_the_interval() {
        let scattered: Vec<bool> = (0..2000).map(|i| i % 20 != 0).collect();
        let in_a_run: Vec<bool> = (0..2000).map(|i| i >= 100).collect();
        let width = |hits| share_interval(hits, 1).map(|i| i.high - i.low);
        assert!(width(&in_a_run) > width(&scattered));
    }

    proptest! {
        #[test]
        fn quantiles_match_a_sorted_reference(
            values in proptest::collection::vec(any::<u64>(), 20..400),
            p in 0.0f64..0.95,
        ) {
            let samples: Samples = values.iter().copied().collect();
            let mut sorted = values.clone();
            sorted.sort_unstable();
            let q = Quantile::new(p);
            if let Some(value) = samples.quantile(q) {
                // Nearest rank: the smallest value with at least p of all at or below it.
                let enough = |v: u64| {
                    let below = sorted.iter().filter(|&&x| x <= v).count() as u128;
                    below * 1_000_000 >= sorted.len() as u128 * u128::from(q.0)
                };
                prop_assert!(enough(value));
                prop_assert!(sorted.iter().all(|&v| v >= value || !enough(v)));
            }
            let corrected = samples.corrected(1_000_000_000_000);
            prop_assert!(corrected.n >= samples.len());
        }
    }
}
