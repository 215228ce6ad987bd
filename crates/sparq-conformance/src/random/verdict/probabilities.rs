//! The approximate probabilities with bounds on their errors.

use super::{NORMAL, UNIT};
use crate::float64::stages::{Approximation, HeadInput};

/// Returns bounds on the errors of the approximate logits in fp32.
pub(super) fn logit_errors(input: &HeadInput<'_>, head: &Approximation) -> Vec<f64> {
    let terms = input.config.rank as f64;
    let group = input.queries().len() as f64;
    let factor = (4.0 * terms.sqrt() + group + 16.0) * UNIT;
    // A subnormal factor of a term may be treated as 0.
    let largest = |values: &[f32]| {
        let finite = values.iter().map(|x| x.abs()).filter(|x| x.is_finite());
        f64::from(finite.fold(0.0, f32::max))
    };
    let lost = terms * NORMAL * (1.0 + largest(input.q) + largest(input.k));
    head.magnitudes
        .iter()
        .map(|&magnitude| match magnitude.is_finite() {
            true => factor * magnitude + lost,
            // Logits that are not finite were replaced by fixed numbers.
            false => 0.0,
        })
        .collect()
}

/// The approximate probabilities of one head.
pub(super) struct Probabilities {
    /// The logarithms, [S].
    logarithms: Vec<f64>,
    /// Bounds on the errors of the logarithms, without the common one, [S].
    errors: Vec<f64>,
    /// The common error of all logarithms: that of their sum.
    common: f64,
    /// True if several heads are added, so that the common error of one head matters.
    several: bool,
}

impl Probabilities {
    pub(super) fn of(input: &HeadInput<'_>, logits: &[f64], errors: &[f64]) -> Self {
        let valid = input.valid.clone();
        let max = logits[valid.clone()]
            .iter()
            .copied()
            .fold(f64::MIN, f64::max);
        let sum: f64 = logits[valid.clone()].iter().map(|x| (x - max).exp()).sum();
        let logarithms: Vec<f64> = logits.iter().map(|x| x - max - sum.ln()).collect();
        let errors: Vec<f64> = logits
            .iter()
            .zip(errors)
            .map(|(x, error)| error + (4.0 + (x - max).abs()) * 2.0 * UNIT)
            .collect();
        let common = valid
            .clone()
            .map(|s| logarithms[s].exp() * errors[s].min(1.0))
            .sum::<f64>();
        Self {
            logarithms,
            errors,
            common: common + summation(valid.len()),
            several: input.queries().len() > 1,
        }
    }

    /// Returns the bounds of the probability of position `s`.
    pub(super) fn bounds(&self, s: usize) -> (f64, f64) {
        let common = if self.several { self.common } else { 0.0 };
        let error = self.errors[s] + common;
        let logarithm = self.logarithms[s];
        ((logarithm - error).exp(), (logarithm + error).exp())
    }

    /// Returns the probability of the selected positions and a bound on its error.
    pub(super) fn share(&self, input: &HeadInput<'_>, selected: &[u8]) -> (f64, f64) {
        let sum = |term: &dyn Fn(usize) -> f64| input.valid.clone().map(term).sum::<f64>();
        let share = sum(&|s| self.logarithms[s].exp() * f64::from(selected[s]));
        let moved = sum(&|s| {
            let probability = self.logarithms[s].exp();
            probability * self.errors[s].min(1.0) * (f64::from(selected[s]) - share).abs()
        });
        let open = unsettled(&self.errors[input.valid.clone()], |i| {
            self.logarithms[input.valid.start + i].exp()
        });
        let allowed = if open {
            1.0
        } else {
            moved + summation(input.valid.len())
        };
        (share, allowed)
    }
}

/// Returns whether the errors of the logits are so large that the weights are unknown. This happens
/// with huge numbers that nearly cancel or nearly agree.
pub(super) fn unsettled(errors: &[f64], weight: impl Fn(usize) -> f64) -> bool {
    errors.iter().enumerate().any(|(i, &error)| {
        let weight = weight(i);
        error > 0.1 && weight * (1.0 - weight) > 1e-9
    })
}

/// Returns the relative error of a sum of `count` numbers. If added one by one, all may be rounded
/// to the same side, but a kernel should not add more than a few thousand that way.
pub(super) fn summation(count: usize) -> f64 {
    (64.0 + count.min(4096) as f64 / 2.0) * UNIT
}
