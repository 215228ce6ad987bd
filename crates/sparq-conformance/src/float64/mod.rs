//! One decode step in float64, in plain loops over host memory. Shares no code with the library.
//!
//! The files hold results for fp32 inputs. In a 16-bit type the inputs are rounded first, which
//! changes every number and may change a close selection. Then [`regret`] judges the selections of
//! the device, and [`expected`] computes the numbers that follow from the rounded inputs and these
//! selections.

pub(crate) mod stages;

use crate::case::{Expected, ExpectedSketch};
use crate::{Array, Case};
use stages::{Codes, HeadInput};

/// The discrete results of a step. The other results follow from them and the inputs.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Selections {
    /// The selected components, ascending, [B, H_kv, r].
    pub(crate) components: Array<i64>,
    /// 1 at selected valid positions, [B, H_kv, S].
    pub(crate) selected: Array<u8>,
    /// The codes of the key sketch, [B, H_kv, d, S].
    pub(crate) codes: Option<Array<u8>>,
}

/// The distance of selections from the optimum: 0 for an optimal one, infinite if it breaks a rule,
/// such as an unselected local window.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Regret {
    /// The largest lead of an unselected component over a selected one.
    pub(crate) components: f64,
    /// The largest lead of an unselected position over a selected one outside the local window.
    pub(crate) selected: f64,
    /// The largest distance of a scaled key from its code, minus the 0.5 of correct rounding.
    pub(crate) codes: f64,
}

/// Compares selections with the optimum. Each is judged given the selections before it. They must
/// have the shapes of the case.
pub(crate) fn regret(case: &Case, selections: &Selections) -> Regret {
    let mut worst = Regret::default();
    for (at, input) in batch_heads(case).enumerate() {
        let components = components(case, selections, at);
        let mut taken = vec![0; case.problem.head_dim];
        components.iter().for_each(|&c| taken[c] = 1);
        let coded = Coded::of(case, selections, at, &input);
        let codes = coded.as_ref().map(Coded::codes);
        let sizes = input.component_scores(codes);
        let ahead = lead(&sizes, &taken, components.len(), 0..0);
        worst.components = worst.components.max(ahead);

        if let Some(coded) = &coded {
            let distance = input.distance(coded.codes, &coded.ranges, coded.levels);
            worst.codes = worst.codes.max(distance);
        }

        let valid = input.valid.clone();
        let mut scores = input.scores(&components, codes);
        scores[..valid.start].fill(f64::NEG_INFINITY);
        let selected = part(&selections.selected, case, at);
        let lead = lead(&scores, selected, input.count(), input.window());
        worst.selected = worst.selected.max(lead);
    }
    worst
}

/// Returns the results that follow from the inputs and the selections.
pub(crate) fn expected(case: &Case, selections: &Selections) -> Expected {
    let problem = &case.problem;
    let reallocate = case.config.mean_value.applies(problem.group_size());
    let (mut logits, mut alpha, mut mean_value) = (Vec::new(), Vec::new(), Vec::new());
    let (mut output, mut zero_point, mut scale) = (Vec::new(), Vec::new(), Vec::new());
    for (at, input) in batch_heads(case).enumerate() {
        let coded = Coded::of(case, selections, at, &input);
        if let Some(coded) = &coded {
            zero_point.extend(coded.ranges.iter().map(|range| range.0));
            scale.extend(&coded.scales);
        }
        let selected = part(&selections.selected, case, at);
        let components = components(case, selections, at);
        let heads = input.approximate(&components, coded.as_ref().map(Coded::codes));
        let mean = input.mean_value();
        for (q, head) in input.queries().zip(&heads) {
            let probabilities = input.probabilities(&head.logits);
            let selected_only = probabilities.iter().zip(selected);
            let selected_only = selected_only.filter(|(_, selected)| **selected == 1);
            let share: f64 = selected_only.map(|(probability, _)| probability).sum();
            let attended = input.attend(q, selected);
            output.extend(
                attended
                    .iter()
                    .zip(&mean)
                    .map(|(y, mean)| match reallocate {
                        true => (share * y + (1.0 - share) * mean) as f32,
                        false => *y as f32,
                    }),
            );
            alpha.push(share as f32);
            logits.extend(head.logits.iter().map(|&x| x as f32));
        }
        mean_value.extend(mean.iter().map(|&x| x as f32));
    }
    let channels = problem.per_kv_head(problem.head_dim);
    Expected {
        components: selections.components.clone(),
        logits: array(&problem.logits(), logits),
        selected: selections.selected.clone(),
        alpha: Some(array(&[problem.batch, problem.n_heads], alpha)),
        mean_value: array(&channels, mean_value),
        output: array(&problem.query(), output),
        sketch: selections.codes.as_ref().map(|codes| ExpectedSketch {
            codes: codes.clone(),
            zero_point: array(&channels, zero_point),
            scale: array(&channels, scale),
        }),
    }
}

/// Returns the inputs of every batch head, in the order of [B, H_kv].
fn batch_heads(case: &Case) -> impl Iterator<Item = HeadInput<'_>> {
    let problem = &case.problem;
    let inputs = &case.inputs;
    (0..problem.batch * problem.n_kv_heads).map(move |at| HeadInput {
        config: &case.config,
        // The query heads of a group are consecutive, so [B, H, 1, d] equals [B, H_kv, g, d].
        q: part(&inputs.q, case, at),
        k: part(&inputs.k, case, at),
        v: part(&inputs.v, case, at),
        head_dim: problem.head_dim,
        valid: case.left_padding[at / problem.n_kv_heads]..problem.seq,
    })
}

/// Returns the elements of batch head `at` in a tensor [B, H_kv, ...].
fn part<'t, T>(tensor: &'t Array<T>, case: &Case, at: usize) -> &'t [T] {
    let len = tensor.values().len() / (case.problem.batch * case.problem.n_kv_heads);
    &tensor.values()[at * len..][..len]
}

/// Returns the selected components of batch head `at`.
fn components(case: &Case, selections: &Selections, at: usize) -> Vec<usize> {
    let components = part(&selections.components, case, at);
    components.iter().map(|&c| c as usize).collect()
}

/// The codes of a batch head with their ranges.
struct Coded<'c> {
    codes: &'c [u8],
    /// (zero point, scale), [d].
    ranges: Vec<(f32, f32)>,
    /// [d].
    scales: Vec<f32>,
    /// The highest code.
    levels: f32,
}

impl<'c> Coded<'c> {
    fn of(
        case: &Case,
        selections: &'c Selections,
        at: usize,
        input: &HeadInput<'_>,
    ) -> Option<Self> {
        let bits = case.config.sketch.bits()?;
        let codes = part(selections.codes.as_ref()?, case, at);
        let levels = ((1u32 << bits) - 1) as f32;
        let ranges = input.ranges(levels);
        let scales = ranges.iter().map(|range| range.1).collect();
        Some(Self {
            codes,
            ranges,
            scales,
            levels,
        })
    }

    fn codes(&self) -> Codes<'_> {
        Codes {
            codes: self.codes,
            scales: &self.scales,
        }
    }
}

/// Returns the largest lead of an untaken element over a taken one outside `window`. Infinite
/// unless `count` elements are taken, including all of `window`.
fn lead(values: &[f64], taken: &[u8], count: usize, window: std::ops::Range<usize>) -> f64 {
    let in_window = taken[window.clone()].iter().all(|&taken| taken == 1);
    if !in_window || taken.iter().filter(|&&taken| taken == 1).count() != count {
        return f64::INFINITY;
    }
    let (mut least_in, mut most_out) = (f64::INFINITY, f64::NEG_INFINITY);
    for (i, (&value, &taken)) in values.iter().zip(taken).enumerate() {
        if taken == 0 {
            most_out = most_out.max(value);
        } else if !window.contains(&i) {
            least_in = least_in.min(value);
        }
    }
    // If everything or only the window is taken, the difference is negative infinity.
    (most_out - least_in).max(0.0)
}

fn array<T>(shape: &[usize], values: Vec<T>) -> Array<T> {
    Array::new(shape.to_vec(), values).expect("the loops run over the whole shape")
}

#[cfg(test)]
mod tests;
