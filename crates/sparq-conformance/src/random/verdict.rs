//! Whether a device's results are right, by float64 arithmetic on the same input and bounds on what fp32 may lose.
//!
//! A choice is right if nothing that was left out is better than something that was taken, by more than rounding can turn: any of several equal
//! ones may be taken. The numbers are then held to what follows from the choices. As the bounds are in proportion to the terms that
//! were added up, they hold for huge and for tiny numbers alike.

use burn::tensor::FloatDType;
use sparq::methods::GroupScore;

use crate::host::row::{Approximation, Codes, Row, softmax};

/// The unit roundoff of fp32.
const UNIT: f64 = 1.0 / (1u64 << 24) as f64;
/// The smallest normal number of fp32; a device may take what is below as 0.
const NORMAL: f64 = f32::MIN_POSITIVE as f64;
/// How many choices of components are tried where several are equally good.
const CHOICES: usize = 32;

/// What a device gave for one sequence and key/value head.
pub(super) struct Found<'a> {
    /// 1 at the kept positions, S of them.
    pub(super) selected: &'a [u8],
    /// The approximate probability of what was kept, g of them.
    pub(super) alpha: &'a [f32],
    /// The output, g rows of d.
    pub(super) output: &'a [f32],
    /// The type that the output is rounded to.
    pub(super) dtype: FloatDType,
}

/// The largest differences so far, and the largest share of what was allowed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Worst {
    pub(super) alpha: f64,
    pub(super) output: f64,
    /// What was allowed where the output came closest to it.
    pub(super) allowed: f64,
    /// The largest output difference in units of what was allowed.
    pub(super) share: f64,
}

impl Worst {
    /// The larger of each.
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

/// What one number of the output must be.
#[derive(Clone, Copy, PartialEq)]
enum Expected {
    /// This, but for a difference.
    Number { value: f64, allowed: f64 },
    /// NaN or an infinity.
    NotFinite,
    /// Anything: a kept number that is not finite has no weight, or what was added up exceeds the type.
    Anything,
}

/// Judges a step of SparQ.
pub(super) fn sparse(
    row: &Row<'_>,
    codes: Option<Codes<'_>>,
    found: &Found<'_>,
) -> Result<Worst, String> {
    check_set(row, found.selected)?;
    let mut worst = Worst::default();
    let complete = row.valid.len() <= row.config.top_k;
    if complete {
        if let Some(alpha) = found.alpha.iter().find(|&&alpha| alpha != 1.0) {
            return Err(format!(
                "alpha: expected 1 where everything is kept, found {alpha}"
            ));
        }
    } else if let Some(choices) = component_choices(row) {
        let verdicts = choices
            .iter()
            .map(|components| choice(row, components, codes, found));
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

    let group = row.queries().len();
    let reallocate = row.config.mean_value.applies(group);
    let mean = mean_value(row);
    let outputs = found.output.chunks_exact(row.head_dim);
    for (h, (q, output)) in row.queries().zip(outputs).enumerate() {
        let mut expected = attended(row, q, found.selected);
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
pub(super) fn dense(row: &Row<'_>, output: &[f32], dtype: FloatDType) -> Result<Worst, String> {
    let all: Vec<u8> = (0..row.seq())
        .map(|s| u8::from(row.valid.contains(&s)))
        .collect();
    let mut worst = Worst::default();
    let outputs = output.chunks_exact(row.head_dim);
    for (h, (q, output)) in row.queries().zip(outputs).enumerate() {
        let here = compare(&attended(row, q, &all), output, dtype);
        let here =
            here.map_err(|reason| format!("dense output of head {h} of the group: {reason}"));
        worst = worst.and(here?);
    }
    Ok(worst)
}

/// Judges the running sum of V, d numbers.
pub(super) fn sums(row: &Row<'_>, found: &[f32]) -> Result<(), String> {
    let count = row.valid.len().max(1) as f64;
    let expected: Vec<Expected> = mean_value(row)
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

/// The rules that every set of kept positions follows.
fn check_set(row: &Row<'_>, selected: &[u8]) -> Result<(), String> {
    let kept = || (0..selected.len()).filter(|&s| selected[s] == 1);
    if let Some(s) = kept().find(|s| !row.valid.contains(s)) {
        return Err(format!("positions: {s} is kept and holds no token"));
    }
    let (expected, found) = (row.kept(), kept().count());
    if expected != found {
        return Err(format!("positions: expected {expected}, found {found}"));
    }
    match row.window().find(|&s| selected[s] == 0) {
        Some(s) => Err(format!("positions: {s} is in the window and not kept")),
        None => Ok(()),
    }
}

/// The sets of components that step 1 may choose; more than one where rounding can turn the order. `None` where they are too many.
fn component_choices(row: &Row<'_>) -> Option<Vec<Vec<usize>>> {
    let scores = row.component_scores();
    let (rank, group) = (row.config.rank, row.queries().len() as f64);
    let sums = |c: usize| -> f64 { row.queries().map(|q| f64::from(q[c]).abs()).sum() };
    let error = |c: usize| match row.queries().len() {
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

/// All subsets of `count` elements, or `None` where they are too many.
fn subsets(all: &[usize], count: usize) -> Option<Vec<Vec<usize>>> {
    let mut ways = 1usize;
    for i in 0..count.min(all.len() - count) {
        ways = ways * (all.len() - i) / (i + 1);
        if ways > CHOICES {
            return None;
        }
    }
    if count == 0 {
        return Some(vec![Vec::new()]);
    }
    let mut found = Vec::with_capacity(ways);
    for first in 0..=all.len() - count {
        // Fewer than the whole has, so they are not too many.
        for rest in subsets_of(&all[first + 1..], count - 1) {
            found.push([&all[first..=first], &rest[..]].concat());
        }
    }
    Some(found)
}

/// [`subsets`] without the count beforehand.
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

/// Judges the set and alpha for a choice of components: the largest difference of alpha.
fn choice(
    row: &Row<'_>,
    components: &[usize],
    codes: Option<Codes<'_>>,
    found: &Found<'_>,
) -> Result<f64, String> {
    let heads = row.approximate(components, codes);
    let errors: Vec<Vec<f64>> = heads.iter().map(|head| logit_errors(row, head)).collect();
    let probabilities: Vec<Probabilities> = heads
        .iter()
        .zip(&errors)
        .map(|(head, errors)| Probabilities::of(row, &head.logits, errors))
        .collect();

    // Every score lies between these.
    let bounds: Vec<(f64, f64)> = match row.config.group_score {
        GroupScore::Logits => {
            let group = row.summed(components, codes);
            let errors = logit_errors(row, &group);
            let around = group.logits.iter().zip(&errors);
            around.map(|(x, error)| (x - error, x + error)).collect()
        }
        GroupScore::Probabilities => (0..row.seq())
            .map(|s| {
                let all = probabilities.iter().map(|head| head.bounds(s));
                let none = heads.len() as f64 * 2.0 * NORMAL;
                all.fold((-none, none), |sum, one| (sum.0 + one.0, sum.1 + one.1))
            })
            .collect(),
    };
    let window = row.window();
    let chosen = row.valid.start..window.start;
    let taken = chosen.clone().filter(|&s| found.selected[s] == 1);
    let left = chosen.filter(|&s| found.selected[s] == 0);
    let least = taken.min_by(|&a, &b| bounds[a].1.total_cmp(&bounds[b].1));
    let most = left.max_by(|&a, &b| bounds[a].0.total_cmp(&bounds[b].0));
    if let (Some(least), Some(most)) = (least, most)
        && bounds[most].0 > bounds[least].1
    {
        let score = |s: usize| (bounds[s].0 + bounds[s].1) / 2.0;
        return Err(format!(
            "positions: {least} with a score of {:e} is kept, and {most} with {:e} is not",
            score(least),
            score(most)
        ));
    }

    let mut worst = 0f64;
    for (h, (head, &found_alpha)) in probabilities.iter().zip(found.alpha).enumerate() {
        let (alpha, allowed) = head.share(row, found.selected);
        let difference = (f64::from(found_alpha) - alpha).abs();
        if !(0.0..=1.0).contains(&found_alpha) || difference.is_nan() || difference > allowed {
            return Err(format!(
                "alpha of head {h} of the group: expected {alpha:.7} within {allowed:.1e}, found {found_alpha:.7}"
            ));
        }
        worst = worst.max(difference);
    }
    Ok(worst)
}

/// How far each approximate logit may be off in fp32.
fn logit_errors(row: &Row<'_>, head: &Approximation) -> Vec<f64> {
    let terms = row.config.rank as f64;
    let group = row.queries().len() as f64;
    let factor = (4.0 * terms.sqrt() + group + 16.0) * UNIT;
    // A factor of a term that is below the normal numbers may count as 0.
    let largest = |values: &[f32]| {
        let finite = values.iter().map(|x| x.abs()).filter(|x| x.is_finite());
        f64::from(finite.fold(0.0, f32::max))
    };
    let lost = terms * NORMAL * (1.0 + largest(row.q) + largest(row.k));
    head.magnitudes
        .iter()
        .map(|&magnitude| match magnitude.is_finite() {
            true => factor * magnitude + lost,
            // What is not finite was set to a fixed number.
            false => 0.0,
        })
        .collect()
}

/// The approximate probabilities of one head.
struct Probabilities {
    /// Their logarithms, S of them.
    logarithms: Vec<f64>,
    /// How far those may be off, but for what all have in common.
    errors: Vec<f64>,
    /// What all have in common: the error of their sum.
    common: f64,
    /// Whether other heads are added, so that what is common to one head's matters.
    several: bool,
}

impl Probabilities {
    fn of(row: &Row<'_>, logits: &[f64], errors: &[f64]) -> Self {
        let valid = row.valid.clone();
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
            several: row.queries().len() > 1,
        }
    }

    /// The bounds of the probability of position `s`.
    fn bounds(&self, s: usize) -> (f64, f64) {
        let common = if self.several { self.common } else { 0.0 };
        let error = self.errors[s] + common;
        let logarithm = self.logarithms[s];
        ((logarithm - error).exp(), (logarithm + error).exp())
    }

    /// The probability of the selected positions and how far it may be off.
    fn share(&self, row: &Row<'_>, selected: &[u8]) -> (f64, f64) {
        let sum = |term: &dyn Fn(usize) -> f64| row.valid.clone().map(term).sum::<f64>();
        let share = sum(&|s| self.logarithms[s].exp() * f64::from(selected[s]));
        let moved = sum(&|s| {
            let probability = self.logarithms[s].exp();
            probability * self.errors[s].min(1.0) * (f64::from(selected[s]) - share).abs()
        });
        let open = unsettled(&self.errors[row.valid.clone()], |i| {
            self.logarithms[row.valid.start + i].exp()
        });
        let allowed = if open {
            1.0
        } else {
            moved + summation(row.valid.len())
        };
        (share, allowed)
    }
}

/// Whether logits may be off by so much that nothing can be said of the weights: among huge numbers that nearly cancel, or nearly agree.
fn unsettled(errors: &[f64], weight: impl Fn(usize) -> f64) -> bool {
    errors.iter().enumerate().any(|(i, &error)| {
        let weight = weight(i);
        error > 0.1 && weight * (1.0 - weight) > 1e-9
    })
}

/// The relative error of a sum of `count` numbers: added up one by one they may all be rounded to the same side, but nobody should do that with
/// more than a few thousand.
fn summation(count: usize) -> f64 {
    (64.0 + count.min(4096) as f64 / 2.0) * UNIT
}

/// Exact attention of one query head over the selected positions, d numbers.
fn attended(row: &Row<'_>, q: &[f32], selected: &[u8]) -> Vec<Expected> {
    let kept: Vec<usize> = (0..selected.len()).filter(|&s| selected[s] == 1).collect();
    let none = Expected::Number {
        value: 0.0,
        allowed: 0.0,
    };
    if kept.is_empty() {
        return vec![none; row.head_dim];
    }
    let products: Vec<(f64, f64)> = kept.iter().map(|&s| row.exact_logit(q, s)).collect();
    let logits: Vec<f64> = products.iter().map(|product| product.0).collect();
    if logits.iter().any(|x| x.is_nan() || *x == f64::INFINITY) {
        return vec![Expected::NotFinite; row.head_dim];
    }
    if logits.iter().all(|x| *x == f64::NEG_INFINITY) {
        return vec![Expected::Anything; row.head_dim];
    }
    let weights = softmax(&logits, |_| true);
    let max = logits.iter().copied().fold(f64::MIN, f64::max);
    let factor = (4.0 * (row.head_dim as f64).sqrt() + 16.0) * UNIT;
    let lost = |s: usize| {
        let largest = q.iter().chain(row.key_at(s)).map(|x| x.abs());
        row.head_dim as f64 * NORMAL * (1.0 + f64::from(largest.fold(0.0, f32::max)))
    };
    let errors: Vec<f64> = products
        .iter()
        .zip(&kept)
        .map(|(&(logit, magnitude), &s)| match logit.is_finite() {
            true => factor * magnitude + (max - logit) * 4.0 * UNIT + lost(s),
            false => 0.0,
        })
        .collect();
    if unsettled(&errors, |i| weights[i]) {
        return vec![Expected::Anything; row.head_dim];
    }
    let d = row.head_dim;
    let (mut sums, mut sizes, mut largest) = (vec![0.0; d], vec![0.0; d], vec![0f64; d]);
    let (mut seen, mut unseen) = (vec![false; d], vec![false; d]);
    for (&s, &weight) in kept.iter().zip(&weights) {
        for (c, &value) in row.value_at(s).iter().enumerate() {
            let value = f64::from(value);
            if value.is_finite() {
                sums[c] += weight * value;
                sizes[c] += weight * value.abs();
                largest[c] = largest[c].max(value.abs());
            } else if weight > 1e-30 {
                seen[c] = true;
            } else {
                // A weight this small may be 0 on the device, and what it belongs to may have been left out.
                unseen[c] = true;
            }
        }
    }
    // To first order: a weight that is off moves the output towards its value, or away from it.
    let mut moved = vec![0.0; d];
    for ((&s, weight), error) in kept.iter().zip(&weights).zip(&errors) {
        let weight = weight * error.min(1.0);
        for ((moved, &value), sum) in moved.iter_mut().zip(row.value_at(s)).zip(&sums) {
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
                    + summation(kept.len()) * sizes[c]
                    + 2.0 * NORMAL * (1.0 + largest[c]),
            },
        })
        .collect()
}

/// The mean of V over the valid positions, d numbers.
fn mean_value(row: &Row<'_>) -> Vec<Expected> {
    let count = row.valid.len();
    let mut sizes = vec![0.0; row.head_dim];
    for s in row.valid.clone() {
        let values = sizes.iter_mut().zip(row.value_at(s));
        values.for_each(|(size, &value)| *size += f64::from(value).abs());
    }
    let means = row.mean_value().into_iter().zip(sizes);
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

/// Step 7.
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
        // The mean has no weight where everything is kept.
        (_, Expected::NotFinite) if complete && y != Expected::NotFinite => Expected::Anything,
        (Expected::NotFinite, _) if alpha == 0.0 => Expected::Anything,
        (_, Expected::NotFinite) | (Expected::NotFinite, _) => Expected::NotFinite,
        _ => Expected::Anything,
    }
}

/// Compares numbers that were rounded to `dtype`.
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
