//! Order statistics of samples.

use serde::{Deserialize, Serialize};

/// The median and the spread of the times of one call, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Median.
    pub median_us: f64,
    /// The shortest time.
    pub min_us: f64,
    /// 10th percentile.
    pub p10_us: f64,
    /// 90th percentile.
    pub p90_us: f64,
    /// Number of samples.
    pub samples: usize,
    /// The number of calls whose mean one sample is.
    pub calls_per_sample: usize,
}

impl Summary {
    /// Summarises samples in seconds per call. `None` without samples.
    pub fn of(mut seconds: Vec<f64>, calls_per_sample: usize) -> Option<Self> {
        seconds.sort_by(f64::total_cmp);
        let at = |share: f64| Some(1e6 * percentile(&seconds, share)?);
        Some(Self {
            median_us: at(0.5)?,
            min_us: at(0.0)?,
            p10_us: at(0.1)?,
            p90_us: at(0.9)?,
            samples: seconds.len(),
            calls_per_sample,
        })
    }

    /// Returns the times of one of the `layers` that each call computes, on average.
    pub fn per_layer(self, layers: usize) -> Self {
        let us = |time: f64| time / layers as f64;
        Self {
            median_us: us(self.median_us),
            min_us: us(self.min_us),
            p10_us: us(self.p10_us),
            p90_us: us(self.p90_us),
            ..self
        }
    }
}

#[cfg(test)]
impl Summary {
    /// A summary of one sample.
    pub(crate) fn single(us: f64) -> Self {
        Self {
            median_us: us,
            min_us: us,
            p10_us: us,
            p90_us: us,
            samples: 1,
            calls_per_sample: 1,
        }
    }
}

/// The value below which `share` of the sorted values lie, interpolated linearly. `None` if empty.
pub fn percentile(sorted: &[f64], share: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let at = share.clamp(0.0, 1.0) * last as f64;
    let (below, above) = (at.floor() as usize, at.ceil() as usize);
    Some(sorted[below] + (sorted[above] - sorted[below]) * (at - below as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stats_median_of_an_even_count_interpolates() {
        assert_eq!(percentile(&[1.0, 2.0, 4.0, 9.0], 0.5), Some(3.0));
        assert_eq!(percentile(&[1.0, 2.0, 9.0], 0.5), Some(2.0));
        assert_eq!(percentile(&[], 0.5), None);
    }

    #[test]
    fn stats_summary_sorts_and_converts_to_us() {
        let seconds = (0..=10).rev().map(|i| f64::from(i) * 1e-3).collect();
        let summary = Summary::of(seconds, 7).unwrap();
        let close = |a: f64, b: f64| (a - b).abs() < 1e-6;
        assert!(close(summary.median_us, 5000.0) && close(summary.min_us, 0.0));
        assert!(close(summary.p10_us, 1000.0) && close(summary.p90_us, 9000.0));
        assert_eq!((summary.samples, summary.calls_per_sample), (11, 7));
        assert_eq!(Summary::of(vec![], 1), None);
    }
}
