//! Means with their standard errors.

use serde::{Deserialize, Serialize};

/// A mean and how well it is known.
///
/// ```
/// use sparq_eval::Estimate;
///
/// let scores = Estimate::of([1.0, 0.0, 1.0, 1.0]).unwrap();
/// assert_eq!((scores.n, scores.mean, scores.standard_error), (4, 0.75, Some(0.25)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Estimate {
    /// How many values there were.
    pub n: usize,
    /// Their mean.
    pub mean: f64,
    /// The standard deviation of the sample (with n - 1) over the square root of n; `None` for a single value.
    pub standard_error: Option<f64>,
}

impl Estimate {
    /// The mean of independent values; `None` if there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let values: Vec<f64> = values.into_iter().collect();
        let n = values.len();
        if n == 0 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / n as f64;
        // From the deviations, because a difference of large sums of squares would lose all digits of a small spread.
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let standard_error = (n > 1).then(|| (squares / (n - 1) as f64 / n as f64).sqrt());
        Some(Self {
            n,
            mean,
            standard_error,
        })
    }

    /// The mean of `score - reference` over pairs of the same example.
    ///
    /// What makes an example hard for both falls out, so that the standard error is smaller than that of the two means.
    pub fn of_differences(pairs: impl IntoIterator<Item = (f64, f64)>) -> Option<Self> {
        Self::of(
            pairs
                .into_iter()
                .map(|(score, reference)| score - reference),
        )
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_textbook_sample() {
        // Deviations of 2, 4, 4, 4, 5, 5, 7, 9 from 5: 9 + 1 + 1 + 1 + 0 + 0 + 4 + 16 = 32; 32 / 7 / 8 = 4/7.
        let estimate = Estimate::of([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]).unwrap();
        assert_eq!((estimate.n, estimate.mean), (8, 5.0));
        assert!((estimate.standard_error.unwrap() - (4.0f64 / 7.0).sqrt()).abs() < 1e-15);
    }

    #[test]
    fn a_single_value_has_no_error_and_no_value_has_no_mean() {
        let one = Estimate::of([3.0]).unwrap();
        assert_eq!((one.mean, one.standard_error), (3.0, None));
        assert_eq!(Estimate::of([]), None);
    }

    #[test]
    fn a_small_spread_on_a_large_mean_is_seen() {
        let estimate = Estimate::of([1e9, 1e9 + 1.0]).unwrap();
        assert_eq!(estimate.standard_error, Some(0.5));
    }

    fn values() -> impl Strategy<Value = Vec<f64>> {
        proptest::collection::vec(-1e3..1e3, 2..40)
    }

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() <= 1e-9 * (1.0 + a.abs().max(b.abs()))
    }

    proptest! {
        #[test]
        fn a_mean_lies_between_the_values(values in values()) {
            let mean = Estimate::of(values.clone()).unwrap().mean;
            let (low, high) = values.iter().fold((f64::MAX, f64::MIN), |(low, high), &v| (low.min(v), high.max(v)));
            prop_assert!(low - 1e-9 <= mean && mean <= high + 1e-9);
        }

        #[test]
        fn the_order_does_not_count(values in values()) {
            let (a, b) = (Estimate::of(values.clone()).unwrap(), Estimate::of(values.into_iter().rev()).unwrap());
            prop_assert!(near(a.mean, b.mean) && near(a.standard_error.unwrap(), b.standard_error.unwrap()));
        }

        #[test]
        fn a_shift_moves_the_mean_and_leaves_the_error(values in values(), shift in -1e3..1e3) {
            let a = Estimate::of(values.clone()).unwrap();
            let b = Estimate::of(values.iter().map(|value| value + shift)).unwrap();
            prop_assert!(near(a.mean + shift, b.mean));
            prop_assert!((a.standard_error.unwrap() - b.standard_error.unwrap()).abs() < 1e-9);
        }

        #[test]
        fn a_factor_scales_both(values in values(), factor in -9.0..9.0) {
            let a = Estimate::of(values.clone()).unwrap();
            let b = Estimate::of(values.iter().map(|value| value * factor)).unwrap();
            prop_assert!(near(a.mean * factor, b.mean));
            prop_assert!(near(a.standard_error.unwrap() * f64::abs(factor), b.standard_error.unwrap()));
        }

        #[test]
        fn a_constant_difference_is_known_exactly(values in values(), difference in -100i32..100) {
            // Halves of integers, whose differences are exact.
            let reference: Vec<f64> = values.iter().map(|value| value.round() / 2.0).collect();
            let pairs = reference.iter().map(|value| (value + f64::from(difference), *value));
            let estimate = Estimate::of_differences(pairs).unwrap();
            prop_assert_eq!((estimate.mean, estimate.standard_error), (f64::from(difference), Some(0.0)));
        }
    }
}
