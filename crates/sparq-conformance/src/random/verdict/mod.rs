//! Judges the results of a random case by float64 arithmetic and bounds on the error of fp32.
//!
//! A selection is right if no unselected score exceeds a selected one by more than rounding errors.
//! So any of several equal scores may be selected. The numbers must then follow from the selection.
//! The bounds are proportional to the terms of the sums, so they hold for huge and tiny numbers.

mod components;
mod expected;
mod probabilities;

use burn::tensor::FloatDType;
use sparq::methods::GroupScore;

use crate::float64::stages::{Codes, HeadInput};
use components::component_selections;
use expected::{Expected, attended, compare, mean_value, reallocated};
use probabilities::{Probabilities, logit_errors};

/// The unit roundoff of fp32.
const UNIT: f64 = 1.0 / (1u64 << 24) as f64;
/// The smallest normal number of fp32. A device may treat smaller ones as 0.
const NORMAL: f64 = f32::MIN_POSITIVE as f64;

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
pub(crate) struct Worst {
    pub(crate) alpha: f64,
    pub(crate) output: f64,
    /// The allowed difference of the output element with the largest share.
    pub(crate) allowed: f64,
    /// The largest difference of the output as a share of the allowed one.
    pub(crate) share: f64,
}

impl Worst {
    /// The difference of one element of an output.
    pub(crate) fn of_output(difference: f64, allowed: f64) -> Self {
        Self {
            alpha: 0.0,
            output: difference,
            allowed,
            share: difference / allowed,
        }
    }

    /// Returns the maxima of both.
    pub(crate) fn and(self, other: Self) -> Self {
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

/// Judges a SparQ step.
pub(super) fn sparse(
    input: &HeadInput<'_>,
    codes: Option<Codes<'_>>,
    found: &Found<'_>,
) -> Result<Worst, String> {
    check_selection(input, found.selected)?;
    let alpha = judge_selection(input, codes, found)?;
    let complete = input.valid.len() <= input.config.top_k;
    let reallocate = input.config.mean_value.applies(input.queries().len());
    let mean = mean_value(input);
    let outputs = judge_outputs(input, "output", found.output, found.dtype, |h, q| {
        let mut expected = attended(input, q, found.selected);
        if reallocate {
            let alpha = f64::from(found.alpha[h]);
            let parts = expected.iter_mut().zip(&mean);
            parts.for_each(|(y, mean)| *y = reallocated(*y, *mean, alpha, complete));
        }
        expected
    })?;
    Ok(Worst { alpha, ..outputs })
}

/// Judges attention over given positions: 1 at those of `selected`, [S].
pub(super) fn given(
    input: &HeadInput<'_>,
    selected: &[u8],
    output: &[f32],
    dtype: FloatDType,
) -> Result<Worst, String> {
    judge_outputs(input, "output of given positions", output, dtype, |_, q| {
        attended(input, q, selected)
    })
}

/// Judges dense attention.
pub(super) fn dense(
    input: &HeadInput<'_>,
    output: &[f32],
    dtype: FloatDType,
) -> Result<Worst, String> {
    let valid = (0..input.seq()).map(|s| u8::from(input.valid.contains(&s)));
    let all: Vec<u8> = valid.collect();
    judge_outputs(input, "dense output", output, dtype, |_, q| {
        attended(input, q, &all)
    })
}

/// Judges the outputs of the heads of the group, [g, d]. `expected` gets the number of a head and
/// its query.
fn judge_outputs(
    input: &HeadInput<'_>,
    name: &str,
    outputs: &[f32],
    dtype: FloatDType,
    expected: impl Fn(usize, &[f32]) -> Vec<Expected>,
) -> Result<Worst, String> {
    let mut worst = Worst::default();
    let outputs = outputs.chunks_exact(input.head_dim);
    for (h, (q, output)) in input.queries().zip(outputs).enumerate() {
        let here = compare(&expected(h, q), output, dtype);
        let named = |reason| format!("{name} of head {h} of the group: {reason}");
        worst = worst.and(here.map_err(named)?);
    }
    Ok(worst)
}

/// Judges the running sum of V, [d].
pub(super) fn sums(input: &HeadInput<'_>, found: &[f32]) -> Result<(), String> {
    let count = input.valid.len().max(1) as f64;
    let mut expected = mean_value(input);
    for mean in &mut expected {
        if let Expected::Number { value, allowed } = mean {
            *value *= count;
            *allowed *= count;
        }
    }
    match compare(&expected, found, FloatDType::F32) {
        Ok(_) => Ok(()),
        Err(reason) => Err(format!("sum of V: {reason}")),
    }
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

/// Judges positions and alpha. Returns the largest difference of alpha.
fn judge_selection(
    input: &HeadInput<'_>,
    codes: Option<Codes<'_>>,
    found: &Found<'_>,
) -> Result<f64, String> {
    let within = |least: f32, expected: &str| {
        let wrong = |alpha: &&f32| !(least..=1.0).contains(*alpha);
        match found.alpha.iter().find(wrong) {
            Some(alpha) => Err(format!("alpha: expected {expected}, found {alpha}")),
            None => Ok(0.0),
        }
    };
    if input.valid.len() <= input.config.top_k {
        return within(1.0, "1, since all positions are selected");
    }
    let Some(selections) = component_selections(input, codes) else {
        return within(0.0, "0 to 1");
    };
    let mut verdict = Ok(0.0);
    for components in &selections {
        // Keeps the reason of the first selection.
        match judge_positions(input, components, codes, found) {
            Ok(alpha) => return Ok(alpha),
            Err(reason) => verdict = verdict.and(Err(reason)),
        }
    }
    verdict
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

#[cfg(test)]
mod tests;
