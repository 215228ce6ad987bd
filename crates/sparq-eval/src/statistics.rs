//! Means with their standard errors.

use serde::{Deserialize, Serialize};

/// A mean and its standard error.
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
    /// The number of values.
    pub n: usize,
    /// The mean.
    pub mean: f64,
    /// The sample standard deviation (with n - 1) divided by the square root of n. `None` for one
    /// value.
    pub standard_error: Option<f64>,
}

impl Estimate {
    /// Returns the mean of independent values, or `None` if there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let values: Vec<f64> = values.into_iter().collect();
        let n = values.len();
        if n == 0 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / n as f64;
        // A difference of large sums of squares would lose all digits of a small spread.
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let standard_error = (n > 1).then(|| (squares / (n - 1) as f64 / n as f64).sqrt());
        Some(Self {
            n,
            mean,
            standard_error,
        })
    }

    /// Returns the mean of `score - reference` over pairs of the same example.
    ///
    /// The difficulty of an example cancels, so the standard error is smaller than those of the two
    /// means.
    pub fn of_differences(pairs: impl IntoIterator<Item = (f64, f64)>) -> Option<Self> {
        let difference = |(score, reference)| score - reference;
        Self::of(pairs.into_iter().map(difference))
    }

    /// Formats the mean and its standard error: `0.750 ± 0.250`. A signed mean has a plus if
    /// positive.
    pub fn text(&self, digits: usize, signed: bool) -> String {
        let mean = match signed {
            // No difference has no sign, also if it is -0.
            true if self.mean == 0.0 => format!("{:.digits$}", 0.0),
            true => format!("{:+.digits$}", self.mean),
            false => format!("{:.digits$}", self.mean),
        };
        match self.standard_error {
            Some(error) => format!("{mean} ± {error:.digits$}"),
            None => mean,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn error_of_a_sample_equals_the_textbook() {
        // Deviations of 2, 4, 4, 4, 5, 5, 7, 9 from 5: 9 + 1 + 1 + 1 + 0 + 0 + 4 + 16 = 32; 32 / 7
        // / 8 = 4/7.
        let estimate = Estimate::of([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]).unwrap();
        assert_eq!((estimate.n, estimate.mean), (8, 5.0));
        assert!((estimate.standard_error.unwrap() - (4.0f64 / 7.0).sqrt()).abs() < 1e-15);
    }

    #[test]
    fn error_needs_two_values() {
        let one = Estimate::of([3.0]).unwrap();
        assert_eq!((one.mean, one.standard_error), (3.0, None));
        assert_eq!(Estimate::of([]), None);
    }

    #[test]
    fn error_is_exact_for_a_small_spread() {
        let estimate = Estimate::of([1e9, 1e9 + 1.0]).unwrap();
        assert_eq!(estimate.standard_error, Some(0.5));
    }

    #[test]
    fn text_has_sign_and_error() {
        let estimate = |mean, standard_error| Estimate {
            n: 2,
            mean,
            standard_error,
        };
        assert_eq!(estimate(0.75, Some(0.25)).text(3, false), "0.750 ± 0.250");
        assert_eq!(estimate(0.75, None).text(3, true), "+0.750");
        assert_eq!(estimate(-0.0, Some(0.0)).text(1, true), "0.0 ± 0.0");
        assert_eq!(estimate(-12.25, None).text(1, true), "-12.2");
    }

    fn values() -> impl Strategy<Value = Vec<f64>> {
        proptest::collection::vec(-1e3..1e3, 2..40)
    }

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() <= 1e-9 * (1.0 + a.abs().max(b.abs()))
    }

    proptest! {
        #[test]
        fn mean_lies_between_the_values(values in values()) {
            let mean = Estimate::of(values.clone()).unwrap().mean;
            let (low, high) = values.iter().fold((f64::MAX, f64::MIN), |(low, high), &v| (low.min(v), high.max(v)));
            prop_assert!(low - 1e-9 <= mean && mean <= high + 1e-9);
        }

        #[test]
        fn order_does_not_count(values in values()) {
            let (a, b) = (Estimate::of(values.clone()).unwrap(), Estimate::of(values.into_iter().rev()).unwrap());
            prop_assert!(near(a.mean, b.mean) && near(a.standard_error.unwrap(), b.standard_error.unwrap()));
        }

        #[test]
        fn shift_moves_the_mean_only(values in values(), shift in -1e3..1e3) {
            let a = Estimate::of(values.clone()).unwrap();
            let b = Estimate::of(values.iter().map(|value| value + shift)).unwrap();
            prop_assert!(near(a.mean + shift, b.mean));
            prop_assert!((a.standard_error.unwrap() - b.standard_error.unwrap()).abs() < 1e-9);
        }

        #[test]
        fn factor_scales_mean_and_error(values in values(), factor in -9.0..9.0) {
            let a = Estimate::of(values.clone()).unwrap();
            let b = Estimate::of(values.iter().map(|value| value * factor)).unwrap();
            prop_assert!(near(a.mean * factor, b.mean));
            prop_assert!(near(a.standard_error.unwrap() * f64::abs(factor), b.standard_error.unwrap()));
        }

        #[test]
        fn constant_difference_has_no_error(values in values(), difference in -100i32..100) {
            // Differences of halves of integers are exact.
            let reference: Vec<f64> = values.iter().map(|value| value.round() / 2.0).collect();
            let pairs = reference.iter().map(|value| (value + f64::from(difference), *value));
            let estimate = Estimate::of_differences(pairs).unwrap();
            prop_assert_eq!((estimate.mean, estimate.standard_error), (f64::from(difference), Some(0.0)));
        }
    }
}
