//! Judges the results of a random case by float64 arithmetic and bounds on the error of fp32.
//!
//! A selection is right if no unselected score exceeds a selected one by more than rounding errors.
//! So any of several equal scores may be selected. The numbers must then follow from the selection.
//! The bounds are proportional to the terms of the sums, so they hold for huge and tiny numbers.

use burn::tensor::FloatDType;
use sparq::methods::GroupScore;

use crate::float64::stages::{Approximation, Codes, HeadInput, softmax};

/// The unit roundoff of fp32.
const UNIT: f64 = 1.0 / (1u64 << 24) as f64;
/// The smallest normal number of fp32. A device may treat smaller ones as 0.
const NORMAL: f64 = f32::MIN_POSITIVE as f64;
/// The largest number of equivalent component selections to try.
const MAX_SELECTIONS: usize = 32;

/// The results of a device for one batch head.
pub(super) struct Found<'a> {
    /// 1 at selected positions, [S].
    pub(super) selected: &'a [u8],
    /// [g].
    pub(super) alpha: &'a [f32],
    /// [g, d].
    pub(super) output: &'a [f32],
    /// The type of the output.
    pub(super) dtype: FloatDType,
}

/// The largest differences so far, and the largest share of the allowed one.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Worst {
    pub(super) alpha: f64,
    pub(super) output: f64,
    /// The allowed difference of the output element with the largest share.
    pub(super) allowed: f64,
    /// The largest difference of the output as a share of the allowed one.
    pub(super) share: f64,
}

impl Worst {
    /// Returns the maxima of both.
    pub(super) fn and(self, other: Self) -> Self {
        let closest = if other.share > self.share {
            other
        } else {
            self
        };
        Self {
            alpha: self.alpha.max(other.alpha),
            output: self.output.max(other.output),
            ..closest
        }
    }
}

/// The expected value of a number.
#[derive(Clone, Copy, PartialEq)]
enum Expected {
    /// A number, up to an allowed difference.
    Number { value: f64, allowed: f64 },
    /// NaN or an infinity.
    NotFinite,
    /// Any value: a number that is not finite has a weight near 0, or a sum exceeds the type.
    Anything,
}

/// Judges a SparQ step.
pub(super) fn sparse(
    input: &HeadInput<'_>,
    codes: Option<Codes<'_>>,
    found: &Found<'_>,
) -> Result<Worst, String> {
    check_selection(input, found.selected)?;
    let mut worst = Worst::default();
    let complete = input.valid.len() <= input.config.top_k;
    if complete {
        if let Some(alpha) = found.alpha.iter().find(|&&alpha| alpha != 1.0) {
            return Err(format!(
                "alpha: expected 1, since all positions are selected, found {alpha}"
            ));
        }
    } else if let Some(selections) = component_selections(input) {
        let verdicts = selections
            .iter()
            .map(|components| judge_positions(input, components, codes, found));
        let mut first = None;
        for verdict in verdicts {
            match verdict {
                Ok(alpha) => {
                    worst.alpha = alpha;
                    first = None;
                    break;
                }
                Err(reason) => first = first.or(Some(reason)),
            }
        }
        if let Some(reason) = first {
            return Err(reason);
        }
    } else if let Some(alpha) = found.alpha.iter().find(|a| !(0.0..=1.0).contains(*a)) {
        return Err(format!("alpha: expected 0 to 1, found {alpha}"));
    }

    let group = input.queries().len();
    let reallocate = input.config.mean_value.applies(group);
    let mean = mean_value(input);
    let outputs = found.output.chunks_exact(input.head_dim);
    for (h, (q, output)) in input.queries().zip(outputs).enumerate() {
        let mut expected = attended(input, q, found.selected);
        if reallocate {
            let alpha = f64::from(found.alpha[h]);
            let parts = expected.iter_mut().zip(&mean);
            parts.for_each(|(y, mean)| *y = reallocated(*y, *mean, alpha, complete));
        }
        let here = compare(&expected, output, found.dtype);
        worst =
            worst.and(here.map_err(|reason| format!("output of head {h} of the group: {reason}"))?);
    }
    Ok(worst)
}

/// Judges dense attention.
pub(super) fn dense(
    input: &HeadInput<'_>,
    output: &[f32],
    dtype: FloatDType,
) -> Result<Worst, String> {
    let all: Vec<u8> = (0..input.seq())
        .map(|s| u8::from(input.valid.contains(&s)))
        .collect();
    let mut worst = Worst::default();
    let outputs = output.chunks_exact(input.head_dim);
    for (h, (q, output)) in input.queries().zip(outputs).enumerate() {
        let here = compare(&attended(input, q, &all), output, dtype);
        let here =
            here.map_err(|reason| format!("dense output of head {h} of the group: {reason}"));
        worst = worst.and(here?);
    }
    Ok(worst)
}

/// Judges the running sum of V, [d].
pub(super) fn sums(input: &HeadInput<'_>, found: &[f32]) -> Result<(), String> {
    let count = input.valid.len().max(1) as f64;
    let expected: Vec<Expected> = mean_value(input)
        .into_iter()
        .map(|mean| match mean {
            Expected::Number { value, allowed } => Expected::Number {
                value: value * count,
                allowed: allowed * count,
            },
            other => other,
        })
        .collect();
    let compared = compare(&expected, found, FloatDType::F32);
    compared
        .map(|_| ())
        .map_err(|reason| format!("sum of V: {reason}"))
}

/// Checks that the selected positions are valid, complete, and include the local window.
fn check_selection(input: &HeadInput<'_>, selected: &[u8]) -> Result<(), String> {
    let positions = || (0..selected.len()).filter(|&s| selected[s] == 1);
    if let Some(s) = positions().find(|s| !input.valid.contains(s)) {
        return Err(format!("positions: {s} is selected but not valid"));
    }
    let (expected, found) = (input.count(), positions().count());
    if expected != found {
        return Err(format!("positions: expected {expected}, found {found}"));
    }
    match input.window().find(|&s| selected[s] == 0) {
        Some(s) => Err(format!(
            "positions: {s} is in the local window but not selected"
        )),
        None => Ok(()),
    }
}

/// Returns the component selections that are right for stage 1. There are several if rounding
/// errors can change the order. Returns `None` if there are too many.
fn component_selections(input: &HeadInput<'_>) -> Option<Vec<Vec<usize>>> {
    let scores = input.component_scores();
    let (rank, group) = (input.config.rank, input.queries().len() as f64);
    let sums = |c: usize| -> f64 { input.queries().map(|q| f64::from(q[c]).abs()).sum() };
    let error = |c: usize| match input.queries().len() {
        1 => NORMAL,
        _ => group * UNIT * sums(c) + group * NORMAL,
    };
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    let border = order[rank - 1];
    let close = |c: usize| (scores[c] - scores[border]).abs() <= error(c) + error(border);
    let sure: Vec<usize> = order[..rank]
        .iter()
        .copied()
        .filter(|&c| !close(c))
        .collect();
    let open: Vec<usize> = order.into_iter().filter(|&c| close(c)).collect();
    let subsets = subsets(&open, rank - sure.len())?;
    Some(
        subsets
            .iter()
            .map(|some| [&sure[..], some].concat())
            .collect(),
    )
}

/// Returns all subsets of `count` elements, or `None` if there are too many.
fn subsets(all: &[usize], count: usize) -> Option<Vec<Vec<usize>>> {
    let mut ways = 1usize;
    for i in 0..count.min(all.len() - count) {
        ways = ways * (all.len() - i) / (i + 1);
        if ways > MAX_SELECTIONS {
            return None;
        }
    }
    if count == 0 {
        return Some(vec![Vec::new()]);
    }
    let mut found = Vec::with_capacity(ways);
    for first in 0..=all.len() - count {
        // These are fewer than the subsets counted above.
        for rest in subsets_of(&all[first + 1..], count - 1) {
            found.push([&all[first..=first], &rest[..]].concat());
        }
    }
    Some(found)
}

/// Returns all subsets of `count` elements.
fn subsets_of(all: &[usize], count: usize) -> Vec<Vec<usize>> {
    if count == 0 {
        return vec![Vec::new()];
    }
    if all.len() < count {
        return Vec::new();
    }
    let with = subsets_of(&all[1..], count - 1);
    let with = with.into_iter().map(|rest| [&all[..1], &rest[..]].concat());
    with.chain(subsets_of(&all[1..], count)).collect()
}

/// Judges positions and alpha, given the selected components. Returns the largest difference of
/// alpha.
fn judge_positions(
    input: &HeadInput<'_>,
    components: &[usize],
    codes: Option<Codes<'_>>,
    found: &Found<'_>,
) -> Result<f64, String> {
    let heads = input.approximate(components, codes);
    let errors: Vec<Vec<f64>> = heads.iter().map(|head| logit_errors(input, head)).collect();
    let probabilities: Vec<Probabilities> = heads
        .iter()
        .zip(&errors)
        .map(|(head, errors)| Probabilities::of(input, &head.logits, errors))
        .collect();

    // The bounds of each score.
    let bounds: Vec<(f64, f64)> = match input.config.group_score {
        GroupScore::Logits => {
            let group = input.summed(components, codes);
            let errors = logit_errors(input, &group);
            let around = group.logits.iter().zip(&errors);
            around.map(|(x, error)| (x - error, x + error)).collect()
        }
        GroupScore::Probabilities => (0..input.seq())
            .map(|s| {
                let all = probabilities.iter().map(|head| head.bounds(s));
                let none = heads.len() as f64 * 2.0 * NORMAL;
                all.fold((-none, none), |sum, one| (sum.0 + one.0, sum.1 + one.1))
            })
            .collect(),
    };
    let window = input.window();
    let eligible = input.valid.start..window.start;
    let taken = eligible.clone().filter(|&s| found.selected[s] == 1);
    let left = eligible.filter(|&s| found.selected[s] == 0);
    let least = taken.min_by(|&a, &b| bounds[a].1.total_cmp(&bounds[b].1));
    let most = left.max_by(|&a, &b| bounds[a].0.total_cmp(&bounds[b].0));
    if let (Some(least), Some(most)) = (least, most)
        && bounds[most].0 > bounds[least].1
    {
        let score = |s: usize| (bounds[s].0 + bounds[s].1) / 2.0;
        return Err(format!(
            "positions: {least} with a score of {:e} is selected, and {most} with {:e} is not",
            score(least),
            score(most)
        ));
    }

    let mut worst = 0f64;
    for (h, (head, &found_alpha)) in probabilities.iter().zip(found.alpha).enumerate() {
        let (alpha, allowed) = head.share(input, found.selected);
        let difference = (f64::from(found_alpha) - alpha).abs();
        if !(0.0..=1.0).contains(&found_alpha) || difference.is_nan() || difference > allowed {
            return Err(format!(
                "alpha of head {h} of the group: expected {alpha:.7} within {allowed:.1e}, \
                 found {found_alpha:.7}"
            ));
        }
        worst = worst.max(difference);
    }
    Ok(worst)
}

/// Returns bounds on the errors of the approximate logits in fp32.
fn logit_errors(input: &HeadInput<'_>, head: &Approximation) -> Vec<f64> {
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
struct Probabilities {
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
    fn of(input: &HeadInput<'_>, logits: &[f64], errors: &[f64]) -> Self {
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
    fn bounds(&self, s: usize) -> (f64, f64) {
        let common = if self.several { self.common } else { 0.0 };
        let error = self.errors[s] + common;
        let logarithm = self.logarithms[s];
        ((logarithm - error).exp(), (logarithm + error).exp())
    }

    /// Returns the probability of the selected positions and a bound on its error.
    fn share(&self, input: &HeadInput<'_>, selected: &[u8]) -> (f64, f64) {
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
fn unsettled(errors: &[f64], weight: impl Fn(usize) -> f64) -> bool {
    errors.iter().enumerate().any(|(i, &error)| {
        let weight = weight(i);
        error > 0.1 && weight * (1.0 - weight) > 1e-9
    })
}

/// Returns the relative error of a sum of `count` numbers. If added one by one, all may be rounded
/// to the same side, but a kernel should not add more than a few thousand that way.
fn summation(count: usize) -> f64 {
    (64.0 + count.min(4096) as f64 / 2.0) * UNIT
}

/// Returns exact attention of one query head over the selected positions, [d].
fn attended(input: &HeadInput<'_>, q: &[f32], selected: &[u8]) -> Vec<Expected> {
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
fn mean_value(input: &HeadInput<'_>) -> Vec<Expected> {
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
fn reallocated(y: Expected, mean: Expected, alpha: f64, complete: bool) -> Expected {
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
fn compare(expected: &[Expected], found: &[f32], dtype: FloatDType) -> Result<Worst, String> {
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

#[cfg(test)]
mod tests;
