//! Distributions of durations.

use serde::Serialize;

/// What is said of one distribution, ns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// How many values.
    pub count: usize,
    /// The smallest.
    pub min_ns: u64,
    /// Half of the values are at or below it.
    pub median_ns: u64,
    /// 99% of the values are at or below it.
    pub p99_ns: u64,
    /// The largest.
    pub max_ns: u64,
}

impl Summary {
    /// Of `values` in ns, which are sorted by this; all zeros for none.
    pub fn of(values: &mut [u64]) -> Self {
        values.sort_unstable();
        Self {
            count: values.len(),
            min_ns: quantile(values, 0, 1),
            median_ns: quantile(values, 1, 2),
            p99_ns: quantile(values, 99, 100),
            max_ns: quantile(values, 1, 1),
        }
    }

    /// This median over that of `base`; `None` where `base` has none.
    pub fn ratio(&self, base: &Self) -> Option<f64> {
        (base.median_ns > 0).then(|| self.median_ns as f64 / base.median_ns as f64)
    }
}

/// The smallest of the sorted `values` that `num / den` of them do not exceed; 0 of none.
fn quantile(values: &[u64], num: usize, den: usize) -> u64 {
    let rank = (values.len() * num).div_ceil(den);
    values.get(rank.saturating_sub(1)).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_by_rank() {
        let mut values: Vec<u64> = (1..=200).rev().collect();
        let s = Summary::of(&mut values);
        assert_eq!((s.count, s.min_ns, s.median_ns, s.p99_ns, s.max_ns), (200, 1, 100, 198, 200));
        assert_eq!(Summary::of(&mut [7]).p99_ns, 7);
        let none = Summary::of(&mut []);
        assert_eq!(none, Summary::default());
        assert_eq!(s.ratio(&none), None);
        assert_eq!(s.ratio(&s), Some(1.0));
    }
}
