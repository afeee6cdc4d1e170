//! Several seeds of one scenario under one policy: sums, and 95% intervals by Student's t over the seeds, since
//! one seed's frames depend on each other and those of different seeds do not.

use super::outcome::{GpuUse, Outcome, TenantOutcome};
use beamline_abi::Nanos;
use std::vec::Vec;

/// A mean and its 95% interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// Over the seeds.
    pub mean: f64,
    /// Half the interval's width; `None` with a single seed, which says nothing about others.
    pub half: Option<f64>,
}

impl Interval {
    /// The mean of `values` and its interval; `None` where there are none.
    pub fn of(values: &[f64]) -> Option<Self> {
        let n = values.len();
        if n == 0 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / n as f64;
        let half = (n > 1).then(|| {
            let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1) as f64;
            student_t(n - 1) * (variance / n as f64).sqrt()
        });
        Some(Self { mean, half })
    }
}

/// The 97.5% quantile of Student's t distribution; beyond 30 degrees of freedom by its expansion around the
/// normal one (Abramowitz and Stegun, 26.7.5).
fn student_t(degrees: usize) -> f64 {
    const T: [f64; 30] = [
        12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
        2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
        2.052, 2.048, 2.045, 2.042,
    ];
    let z: f64 = 1.959_964;
    T.get(degrees.saturating_sub(1))
        .copied()
        .unwrap_or_else(|| z + (z.powi(3) + z) / (4.0 * degrees as f64))
}

/// Of the completion times that are reported.
pub const QUANTILES: [f64; 3] = [0.5, 0.99, 0.999];

/// One seed's figures of one tenant.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figures {
    /// Frames that kept the contract and were in time, or allowed to be missed, as a share.
    pub kept: Option<f64>,
    /// All frames in time, as a share.
    pub frames: Option<f64>,
    /// Late-latch jobs in time, as a share.
    pub late_latch: Option<f64>,
    /// Completion times at the [`QUANTILES`], ns; `None` where there are too few frames.
    pub completion: [Option<f64>; 3],
    /// The longest.
    pub worst: f64,
    /// Share of the GPU's time.
    pub gpu: f64,
}

impl Figures {
    fn of(t: &TenantOutcome, span: Nanos) -> Self {
        let at = |p: f64| t.quantile(p).map(|n| n.0 as f64);
        Self {
            kept: t.promised().share(),
            frames: t.frames.share(),
            late_latch: t.late_latch.share(),
            completion: QUANTILES.map(at),
            worst: t.worst.0 as f64,
            gpu: t.gpu.0 as f64 / span.0 as f64,
        }
    }
}

/// One seed's figures of the whole.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Totals {
    /// Reserved frames that kept their contract and were in time, as a share.
    pub kept: Option<f64>,
    /// The same for the tenant that fared worst.
    pub least_kept: Option<f64>,
    /// Share of the time in which the GPU ran jobs.
    pub utilisation: f64,
    /// Share of the time in which it ran background jobs.
    pub background: f64,
    /// Tenants refused.
    pub refused: f64,
}

/// The outcomes of several seeds.
#[derive(Clone, Debug)]
pub struct Runs {
    /// All seeds' counts together, with the first seed's timeline and options.
    pub sum: Outcome,
    /// The seeds, in order.
    pub seeds: Vec<u64>,
    /// By seed, then by tenant.
    pub figures: Vec<Vec<Figures>>,
    /// By seed.
    pub totals: Vec<Totals>,
}

impl Runs {
    /// The first seed's outcome.
    pub fn new(first: Outcome) -> Self {
        Self {
            seeds: std::vec![first.options.seed],
            figures: std::vec![figures(&first)],
            totals: std::vec![totals(&first)],
            sum: first,
        }
    }

    /// Adds another seed's outcome, of the same scenario and options.
    pub fn add(&mut self, outcome: &Outcome) {
        self.seeds.push(outcome.options.seed);
        self.figures.push(figures(outcome));
        self.totals.push(totals(outcome));
        self.sum.span += outcome.span;
        let GpuUse { busy, switching, preempting } = outcome.gpu;
        self.sum.gpu.busy += busy;
        self.sum.gpu.switching += switching;
        self.sum.gpu.preempting += preempting;
        for (sum, more) in self.sum.tenants.iter_mut().zip(&outcome.tenants) {
            sum.add(more);
        }
    }

    /// The interval of a tenant's figure; `None` where no seed has it.
    pub fn tenant(&self, tenant: usize, of: impl Fn(&Figures) -> Option<f64>) -> Option<Interval> {
        let values: Vec<f64> =
            self.figures.iter().filter_map(|f| f.get(tenant).and_then(&of)).collect();
        Interval::of(&values)
    }

    /// A tenant's completion times at the [`QUANTILES`], ns. Where no seed alone has frames enough, that of all
    /// seeds' frames together, without an interval; `None` where these are too few as well.
    pub fn completion(&self, tenant: usize) -> [Option<Interval>; 3] {
        core::array::from_fn(|q| {
            let together = || {
                let at = self.sum.tenants.get(tenant)?.quantile(QUANTILES[q])?;
                Some(Interval { mean: at.0 as f64, half: None })
            };
            self.tenant(tenant, |f| f.completion[q]).or_else(together)
        })
    }

    /// The interval of a figure of the whole; `None` where no seed has it.
    pub fn total(&self, of: impl Fn(&Totals) -> Option<f64>) -> Option<Interval> {
        let values: Vec<f64> = self.totals.iter().filter_map(of).collect();
        Interval::of(&values)
    }
}

fn figures(outcome: &Outcome) -> Vec<Figures> {
    outcome.tenants.iter().map(|t| Figures::of(t, outcome.span)).collect()
}

fn totals(outcome: &Outcome) -> Totals {
    let shares = outcome.reserved().filter_map(|t| t.promised().share());
    Totals {
        kept: outcome.kept().share(),
        least_kept: shares.reduce(f64::min),
        utilisation: outcome.utilisation(),
        background: outcome.background(),
        refused: outcome.refused() as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_those_of_student() {
        assert_eq!(Interval::of(&[]), None);
        assert_eq!(Interval::of(&[3.0]), Some(Interval { mean: 3.0, half: None }));
        // Mean 2, standard deviation 1, n = 3: 4.303 / sqrt(3).
        let got = Interval::of(&[1.0, 2.0, 3.0]).and_then(|i| i.half).unwrap();
        assert!((got - 2.484).abs() < 1e-3, "{got}");
        assert!((student_t(40) - 2.021).abs() < 2e-3 && student_t(30) > student_t(31));
    }
}
