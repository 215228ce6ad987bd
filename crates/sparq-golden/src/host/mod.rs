//! One decode step in float64, in plain loops over the host's memory.
//!
//! The files hold results for fp32 input. In a shorter type the input is rounded first, which moves every result and may turn a close choice.
//! What is right is then computed here, from the rounded input and the choices that the device made, after asking whether those were the best
//! ones ([`regret`]). It shares no code with what it judges.

mod row;

use crate::case::{Expected, ExpectedSketch};
use crate::{Array, Case};
use row::Row;

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
    for row in Row::all(case) {
        let components = row.part(&choices.components);
        let mut taken = vec![0; case.problem.head_dim];
        components.iter().for_each(|&c| taken[c as usize] = 1);
        let lead = lead(&row.magnitudes(), &taken, components.len(), 0..0);
        worst.components = worst.components.max(lead);

        let codes = row_codes(case, &row, choices);
        if let Some((codes, levels)) = codes {
            let distances = row.scaled_keys(levels).zip(codes);
            let distance = distances.map(|(key, &code)| (f64::from(key) - f64::from(code)).abs());
            let farthest = distance.fold(0.0, f64::max) - 0.5;
            worst.codes = worst.codes.max(farthest);
        }

        let valid = row.valid();
        let mut scores = row.scores(&row.logits(components, codes));
        scores[..valid.start].fill(f64::NEG_INFINITY);
        let selected = row.part(&choices.selected);
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
    for row in Row::all(case) {
        let codes = row_codes(case, &row, choices);
        if let Some((_, levels)) = codes {
            let ranges = row.ranges(levels);
            lo.extend(ranges.iter().map(|range| range.0));
            step.extend(ranges.iter().map(|range| range.1));
        }
        let selected = row.part(&choices.selected);
        let row_logits = row.logits(row.part(&choices.components), codes);
        let mean = row.mean_value();
        for (q, logits) in row.queries().zip(&row_logits) {
            let probabilities = row.probabilities(logits);
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
        }
        logits.extend(row_logits.concat().iter().map(|&x| x as f32));
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

/// The codes of a row, with the number of the highest code.
fn row_codes<'c>(case: &Case, row: &Row<'_>, choices: &'c Choices) -> Option<(&'c [u8], f32)> {
    let bits = case.config.sketch.bits()?;
    let codes = choices.codes.as_ref()?;
    Some((row.part(codes), ((1u32 << bits) - 1) as f32))
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
