//! One decode step in float64, in plain loops over the host's memory.
//!
//! The files hold results for fp32 input. In a shorter type the input is rounded first, which moves every result and may turn a close choice.
//! What is right is then computed here, from the rounded input and the choices that the device made, after asking whether those were the best
//! ones ([`regret`]). It shares no code with what it judges.

pub(crate) mod row;

use crate::case::{Expected, ExpectedSketch};
use crate::{Array, Case};
use row::{Codes, Row};

/// The discrete results of a step, from which the others follow.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Choices {
    /// The chosen components, ascending, [B, H_kv, r].
    pub(crate) components: Array<i64>,
    /// 1 at the kept valid positions, [B, H_kv, S].
    pub(crate) selected: Array<u8>,
    /// The codes of the key sketch, [B, H_kv, d, S].
    pub(crate) codes: Option<Array<u8>>,
}

/// How far choices are from the best ones: 0 for those, infinite for what breaks a rule, such as a window that is not kept.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Regret {
    /// The largest lead of a component left out over one that was taken.
    pub(crate) components: f64,
    /// The largest lead of a position left out over one that was taken, window apart.
    pub(crate) selected: f64,
    /// The largest distance from a key to its code, in codes and less the half that rounding is due.
    pub(crate) codes: f64,
}

/// Compares choices with the best ones, each step given the choices before it. The choices have the shapes of the case.
pub(crate) fn regret(case: &Case, choices: &Choices) -> Regret {
    let mut worst = Regret::default();
    for (at, row) in rows(case).enumerate() {
        let components = components(case, choices, at);
        let mut taken = vec![0; case.problem.head_dim];
        components.iter().for_each(|&c| taken[c] = 1);
        let lead = lead(&row.component_scores(), &taken, components.len(), 0..0);
        worst.components = worst.components.max(lead);

        let coded = Coded::of(case, choices, at, &row);
        if let Some(coded) = &coded {
            let distance = row.distance(coded.codes, &coded.ranges, coded.levels);
            worst.codes = worst.codes.max(distance);
        }

        let valid = row.valid.clone();
        let mut scores = row.scores(&components, coded.as_ref().map(Coded::codes));
        scores[..valid.start].fill(f64::NEG_INFINITY);
        let selected = part(&choices.selected, case, at);
        let lead = self::lead(&scores, selected, row.kept(), row.window());
        worst.selected = worst.selected.max(lead);
    }
    worst
}

/// The results that follow from the input and the choices.
pub(crate) fn expected(case: &Case, choices: &Choices) -> Expected {
    let problem = &case.problem;
    let reallocate = case.config.mean_value.applies(problem.group_size());
    let (mut logits, mut alpha, mut mean_value) = (Vec::new(), Vec::new(), Vec::new());
    let (mut output, mut lo, mut step) = (Vec::new(), Vec::new(), Vec::new());
    for (at, row) in rows(case).enumerate() {
        let coded = Coded::of(case, choices, at, &row);
        if let Some(coded) = &coded {
            lo.extend(coded.ranges.iter().map(|range| range.0));
            step.extend(&coded.step);
        }
        let selected = part(&choices.selected, case, at);
        let components = components(case, choices, at);
        let heads = row.approximate(&components, coded.as_ref().map(Coded::codes));
        let mean = row.mean_value();
        for (q, head) in row.queries().zip(&heads) {
            let probabilities = row.probabilities(&head.logits);
            let kept = probabilities
                .iter()
                .zip(selected)
                .filter(|kept| *kept.1 == 1);
            let share: f64 = kept.map(|(probability, _)| probability).sum();
            let attended = row.attend(q, selected);
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
        components: choices.components.clone(),
        logits: array(&problem.logits(), logits),
        selected: choices.selected.clone(),
        alpha: Some(array(&[problem.batch, problem.n_heads], alpha)),
        mean_value: array(&channels, mean_value),
        output: array(&problem.query(), output),
        sketch: choices.codes.as_ref().map(|codes| ExpectedSketch {
            codes: codes.clone(),
            lo: array(&channels, lo),
            step: array(&channels, step),
        }),
    }
}

/// Every row of a case, in the order of tensors that start with [B, H_kv].
fn rows(case: &Case) -> impl Iterator<Item = Row<'_>> {
    let problem = &case.problem;
    let inputs = &case.inputs;
    (0..problem.batch * problem.n_kv_heads).map(move |at| Row {
        config: &case.config,
        // The query heads of a group follow each other, so that [B, H, 1, d] is [B, H_kv, g, d].
        q: part(&inputs.q, case, at),
        k: part(&inputs.k, case, at),
        v: part(&inputs.v, case, at),
        head_dim: problem.head_dim,
        valid: case.left_padding[at / problem.n_kv_heads]..problem.seq,
    })
}

/// The elements of row `at` in a tensor [B, H_kv, ...].
fn part<'t, T>(tensor: &'t Array<T>, case: &Case, at: usize) -> &'t [T] {
    let len = tensor.values().len() / (case.problem.batch * case.problem.n_kv_heads);
    &tensor.values()[at * len..][..len]
}

/// The chosen components of row `at`.
fn components(case: &Case, choices: &Choices, at: usize) -> Vec<usize> {
    let row = part(&choices.components, case, at);
    row.iter().map(|&c| c as usize).collect()
}

/// The codes of a row with their ranges.
struct Coded<'c> {
    codes: &'c [u8],
    ranges: Vec<(f32, f32)>,
    step: Vec<f32>,
    /// The number of the highest code.
    levels: f32,
}

impl<'c> Coded<'c> {
    fn of(case: &Case, choices: &'c Choices, at: usize, row: &Row<'_>) -> Option<Self> {
        let bits = case.config.sketch.bits()?;
        let codes = part(choices.codes.as_ref()?, case, at);
        let levels = ((1u32 << bits) - 1) as f32;
        let ranges = row.ranges(levels);
        let step = ranges.iter().map(|range| range.1).collect();
        Some(Self {
            codes,
            ranges,
            step,
            levels,
        })
    }

    fn codes(&self) -> Codes<'_> {
        Codes {
            codes: self.codes,
            step: &self.step,
        }
    }
}

/// The largest lead of an element left out over one that was taken; infinite unless `count` are taken, those of `window` among them.
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
    // Where nothing was left out or all that was taken is the window, the difference is negative infinity.
    (most_out - least_in).max(0.0)
}

fn array<T>(shape: &[usize], values: Vec<T>) -> Array<T> {
    Array::new(shape.to_vec(), values).expect("the loops run over the whole shape")
}

#[cfg(test)]
mod tests;
