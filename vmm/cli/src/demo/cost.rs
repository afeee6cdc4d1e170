//! Calibration: what a scene costs on this machine, and which cost gives the time that is wanted.

use beamline_latency::{Stage, Stamp};

/// Fewest samples that a median is taken from.
const MIN_SAMPLES: usize = 20;

/// GPU time of each job of a slice's frames, by position in the frame: medians, in ms.
pub(crate) fn busy_by_position(
    stamps: &[Stamp],
    slice: u16,
    from: u64,
    positions: usize,
) -> Result<Vec<f64>, String> {
    let mut times = vec![Vec::new(); positions];
    for s in stamps {
        if s.stage() == Some(Stage::Gpu)
            && s.slice.0 == slice
            && s.time >= from
            && let Some(times) = times.get_mut(usize::from(s.job.0))
        {
            times.push(s.b);
        }
    }
    times
        .into_iter()
        .enumerate()
        .map(|(position, times)| {
            if times.len() < MIN_SAMPLES {
                let n = times.len();
                return Err(format!(
                    "{n} jobs at position {position} of a frame ran on the GPU; {MIN_SAMPLES} are \
                     needed to tell what one costs"
                ));
            }
            Ok(median(times) as f64 / 1e6)
        })
        .collect()
}

/// The lower median; 0 of nothing.
fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or(0)
}

/// GPU time as a function of cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Line {
    base_ms: f64,
    ms_per_cost: f64,
}

impl Line {
    /// Through two measured points, the second at the higher cost.
    pub(crate) fn through(low: (u32, f64), high: (u32, f64)) -> Result<Self, String> {
        let ms_per_cost = (high.1 - low.1) / (f64::from(high.0) - f64::from(low.0));
        if !ms_per_cost.is_finite() || ms_per_cost <= 0.0 {
            return Err(format!(
                "cost {} took {:.3} ms and cost {} took {:.3} ms: GPU time does not rise with cost, \
                 so the machine is too noisy to calibrate, or the probes are too close",
                low.0, low.1, high.0, high.1
            ));
        }
        // Noise can put the line below zero at cost 0; no job takes less than nothing.
        let base_ms = (low.1 - ms_per_cost * f64::from(low.0)).max(0.0);
        Ok(Self { base_ms, ms_per_cost })
    }

    /// The cost whose GPU time is nearest to `target_ms`, at least 1.
    pub(crate) fn cost_for(self, target_ms: f64) -> u32 {
        // The cast saturates.
        (((target_ms - self.base_ms) / self.ms_per_cost).round() as u32).max(1)
    }

    /// What a cost takes.
    pub(crate) fn ms_at(self, cost: u32) -> f64 {
        self.base_ms + self.ms_per_cost * f64::from(cost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use beamline_abi::{FrameId, Generation, JobIndex, Nanos};
    use beamline_latency::{JobKey, SliceIndex};

    fn job(slice: u16, frame: u64, job: u16, start: u64, busy: u64) -> Stamp {
        let key = JobKey {
            slice: SliceIndex(slice),
            generation: Generation(1),
            frame: FrameId(frame),
            job: JobIndex(job),
            jobs: 2,
            late_latch: false,
        };
        Stamp::gpu(key, Nanos(start), Nanos(start + busy), Nanos(busy), false)
    }

    #[test]
    fn medians_are_taken_by_position() {
        let mut stamps = Vec::new();
        for frame in 1..=41 {
            stamps.push(job(0, frame, 0, 100 + frame, 1_000_000 + frame));
            stamps.push(job(0, frame, 1, 100 + frame, 2_000_000));
            stamps.push(job(1, frame, 0, 100 + frame, 9_000_000));
        }
        // A job before the window, a hiccup, and a position that the scene does not have.
        stamps.push(job(0, 42, 1, 5, 90_000_000));
        stamps.push(job(0, 43, 1, 500, 90_000_000));
        stamps.push(job(0, 43, 60_000, 500, 90_000_000));
        assert_eq!(busy_by_position(&stamps, 0, 100, 2).unwrap(), [1.000_021, 2.0]);
    }

    #[test]
    fn too_few_jobs_say_so() {
        let text = busy_by_position(&[job(0, 1, 0, 1, 1)], 0, 0, 1).unwrap_err();
        assert!(text.starts_with("1 jobs at position 0"), "{text}");
        assert!(busy_by_position(&[], 0, 0, 1).unwrap_err().starts_with("0 jobs"));
    }

    #[test]
    fn a_line_gives_back_its_points_and_finds_a_cost() {
        let line = Line::through((10, 1.1), (40, 4.1)).unwrap();
        assert!((line.ms_at(10) - 1.1).abs() < 1e-9);
        assert_eq!(line.cost_for(2.1), 20);
        assert_eq!(line.cost_for(0.0), 1);
        assert_eq!(line.cost_for(f64::INFINITY), u32::MAX);
    }

    #[test]
    fn a_line_that_does_not_rise_is_refused() {
        assert!(Line::through((10, 2.0), (40, 1.0)).is_err());
        assert!(Line::through((10, 2.0), (10, 2.5)).is_err());
        assert!(Line::through((10, f64::NAN), (40, 1.0)).is_err());
    }

    #[test]
    fn noise_never_makes_a_base_below_zero() {
        let line = Line::through((10, 0.5), (20, 2.0)).unwrap();
        assert!(line.ms_at(1) > 0.0);
    }
}
