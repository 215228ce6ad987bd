//! The expected numbers with their allowed differences.

use burn::tensor::FloatDType;

use super::probabilities::{summation, unsettled};
use super::{NORMAL, UNIT, Worst};
use crate::float64::stages::{HeadInput, softmax};

/// The expected value of a number.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Expected {
    /// A number, up to an allowed difference.
    Number { value: f64, allowed: f64 },
    /// NaN or an infinity.
    NotFinite,
    /// Any value: a number that is not finite has a weight near 0, or a sum exceeds the type.
    Anything,
}

/// Returns exact attention of one query head over the selected positions, [d].
pub(super) fn attended(input: &HeadInput<'_>, q: &[f32], selected: &[u8]) -> Vec<Expected> {
    let positions: Vec<usize> = (0..selected.len()).filter(|&s| selected[s] == 1).collect();
    let none = Expected::Number {
        value: 0.0,
        allowed: 0.0,
    };
    if positions.is_empty() {
        return vec![none; input.head_dim];
    }
    let products: Vec<(f64, f64)> = positions.iter().map(|&s| input.exact_logit(q, s)).collect();
    let logits: Vec<f64> = products.iter().map(|product| product.0).collect();
    if logits.iter().any(|x| x.is_nan() || *x == f64::INFINITY) {
        return vec![Expected::NotFinite; input.head_dim];
    }
    if logits.iter().all(|x| *x == f64::NEG_INFINITY) {
        return vec![Expected::Anything; input.head_dim];
    }
    let weights = softmax(&logits, |_| true);
    let max = logits.iter().copied().fold(f64::MIN, f64::max);
    let factor = (4.0 * (input.head_dim as f64).sqrt() + 16.0) * UNIT;
    let lost = |s: usize| {
        let largest = q.iter().chain(input.key_at(s)).map(|x| x.abs());
        input.head_dim as f64 * NORMAL * (1.0 + f64::from(largest.fold(0.0, f32::max)))
    };
    let errors: Vec<f64> = products
        .iter()
        .zip(&positions)
        .map(|(&(logit, magnitude), &s)| match logit.is_finite() {
            true => factor * magnitude + (max - logit) * 4.0 * UNIT + lost(s),
            false => 0.0,
        })
        .collect();
    if unsettled(&errors, |i| weights[i]) {
        return vec![Expected::Anything; input.head_dim];
    }
    let d = input.head_dim;
    let (mut sums, mut sizes, mut largest) = (vec![0.0; d], vec![0.0; d], vec![0f64; d]);
    let (mut seen, mut unseen) = (vec![false; d], vec![false; d]);
    for (&s, &weight) in positions.iter().zip(&weights) {
        for (c, &value) in input.value_at(s).iter().enumerate() {
            let value = f64::from(value);
            if value.is_finite() {
                sums[c] += weight * value;
                sizes[c] += weight * value.abs();
                largest[c] = largest[c].max(value.abs());
            } else if weight > 1e-30 {
                seen[c] = true;
            } else {
                // On the device, a weight this small may be 0, and the value may be skipped.
                unseen[c] = true;
            }
        }
    }
    // To first order, the error of a weight moves the output towards its value or away from it.
    let mut moved = vec![0.0; d];
    for ((&s, weight), error) in positions.iter().zip(&weights).zip(&errors) {
        let weight = weight * error.min(1.0);
        for ((moved, &value), sum) in moved.iter_mut().zip(input.value_at(s)).zip(&sums) {
            *moved += weight * (f64::from(value) - sum).abs();
        }
    }
    (0..d)
        .map(|c| match (seen[c], unseen[c]) {
            (true, _) => Expected::NotFinite,
            (false, true) => Expected::Anything,
            (false, false) => Expected::Number {
                value: sums[c],
                allowed: moved[c]
                    + summation(positions.len()) * sizes[c]
                    + 2.0 * NORMAL * (1.0 + largest[c]),
            },
        })
        .collect()
}

/// Returns the mean of V over the valid positions, [d].
pub(super) fn mean_value(input: &HeadInput<'_>) -> Vec<Expected> {
    let count = input.valid.len();
    let mut sizes = vec![0.0; input.head_dim];
    for s in input.valid.clone() {
        let values = sizes.iter_mut().zip(input.value_at(s));
        values.for_each(|(size, &value)| *size += f64::from(value).abs());
    }
    let means = input.mean_value().into_iter().zip(sizes);
    means
        .map(|(value, size)| match size.is_finite() {
            false => Expected::NotFinite,
            true => Expected::Number {
                value,
                allowed: summation(count) * size / count.max(1) as f64 + NORMAL,
            },
        })
        .collect()
}

/// Adds the mean value, weighted by 1 - alpha.
pub(super) fn reallocated(y: Expected, mean: Expected, alpha: f64, complete: bool) -> Expected {
    match (y, mean) {
        (
            Expected::Number { value, allowed },
            Expected::Number {
                value: mean,
                allowed: mean_allowed,
            },
        ) => {
            let rounding = 4.0 * UNIT * (value.abs() + mean.abs());
            Expected::Number {
                value: alpha * value + (1.0 - alpha) * mean,
                allowed: alpha * allowed + (1.0 - alpha) * mean_allowed + rounding,
            }
        }
        // If all positions are selected, the mean has no weight.
        (_, Expected::NotFinite) if complete && y != Expected::NotFinite => Expected::Anything,
        (Expected::NotFinite, _) if alpha == 0.0 => Expected::Anything,
        (_, Expected::NotFinite) | (Expected::NotFinite, _) => Expected::NotFinite,
        _ => Expected::Anything,
    }
}

/// Compares numbers that are rounded to `dtype`.
pub(super) fn compare(
    expected: &[Expected],
    found: &[f32],
    dtype: FloatDType,
) -> Result<Worst, String> {
    let (relative, absolute, largest) = match dtype {
        FloatDType::F16 => (2f64.powi(-11), 2f64.powi(-24), 65504.0),
        FloatDType::BF16 => (2f64.powi(-8), NORMAL, f64::from(f32::MAX)),
        _ => (2.0 * UNIT, NORMAL, f64::from(f32::MAX)),
    };
    let mut worst = Worst::default();
    for (c, (expected, &found)) in expected.iter().zip(found).enumerate() {
        match *expected {
            Expected::Anything => {}
            Expected::NotFinite if found.is_finite() => {
                return Err(format!(
                    "component {c}: expected NaN or an infinity, found {found:e}"
                ));
            }
            Expected::NotFinite => {}
            Expected::Number { value, allowed } => {
                let allowed = allowed * (1.0 + relative) + relative * value.abs() + absolute;
                if value.abs() + allowed > largest {
                    continue;
                }
                let difference = (f64::from(found) - value).abs();
                if difference.is_nan() || difference > allowed {
                    return Err(format!(
                        "component {c}: expected {value:e} within {allowed:.1e}, found {found:e}"
                    ));
                }
                worst = worst.and(Worst {
                    alpha: 0.0,
                    output: difference,
                    allowed,
                    share: difference / allowed,
                });
            }
        }
    }
    Ok(worst)
}
