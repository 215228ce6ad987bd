//! What a device computed against what is right.

use burn::tensor::FloatDType;
use half::{bf16, f16};

use crate::case::Expected;
use crate::host::{self, Choices};
use crate::observe::Observed;
use crate::{Array, Case, Outcome};

/// The difference that fp32 accumulation in another order makes, with an order of magnitude to spare; relative to the largest number where
/// that exceeds 1.
const TOLERANCE: f32 = 1e-4;

/// The lead by which a choice may be wrong for input in a short type, of which nobody made sure that no choice is close. In units of the
/// scores (or their logarithm, for probabilities), of the components and of codes.
const CLOSE: f64 = 1e-4;

/// How a type rounds.
pub(crate) struct Precision {
    /// The type's value for a number.
    pub(crate) round: fn(f32) -> f32,
    /// The largest relative error of that.
    error: f32,
    /// Whether every fp32 number is a value of the type.
    exact: bool,
}

impl Precision {
    /// How `dtype` rounds, or `None` for a type whose rounding is the device's own affair.
    pub(crate) fn of(dtype: FloatDType) -> Option<Self> {
        let precision = |round, error, exact| {
            Some(Self {
                round,
                error,
                exact,
            })
        };
        match dtype {
            FloatDType::F64 | FloatDType::F32 => precision(|x| x, 0.0, true),
            FloatDType::F16 => precision(|x| f16::from_f32(x).to_f32(), 2f32.powi(-11), false),
            FloatDType::BF16 => precision(|x| bf16::from_f32(x).to_f32(), 2f32.powi(-8), false),
            FloatDType::Flex32 => None,
        }
    }

    /// The case with its input in the type's values, or `None` where they are beyond its range.
    pub(crate) fn rounded(&self, case: &Case) -> Option<Case> {
        let mut rounded = case.clone();
        let inputs = &mut rounded.inputs;
        for tensor in [&mut inputs.q, &mut inputs.k, &mut inputs.v] {
            *tensor = tensor.map(|&x| (self.round)(x));
            if !tensor.values().iter().all(|x| x.is_finite()) {
                return None;
            }
        }
        Some(rounded)
    }
}

/// Compares the results for a [rounded](Precision::rounded) case.
///
/// Where rounding changed nothing, the file tells what is right. Otherwise each step is held to what float64 gives for the choices of the
/// steps before it, and the choices are held to be the best ones but for leads below [`CLOSE`].
pub(crate) fn judge(case: &Case, found: &Observed, precision: &Precision) -> Outcome {
    let mut outcome = Outcome::of(case);
    let expected = if precision.exact {
        compare_choices(&mut outcome, case, &found.choices);
        case.expected.clone()
    } else {
        weigh_choices(&mut outcome, case, &found.choices);
        host::expected(case, &found.choices)
    };
    compare_results(&mut outcome, case, found, &expected, precision);
    outcome
}

/// The choices that come before the logits against those of the file.
fn compare_choices(outcome: &mut Outcome, case: &Case, found: &Choices) {
    let expected = &case.expected;
    if let (Some(sketch), Some(codes)) = (&expected.sketch, &found.codes) {
        let wrong = sketch.codes.values().iter().zip(codes.values());
        let wrong = wrong.filter(|(expected, found)| expected != found).count();
        outcome.codes_equal = Some(wrong == 0);
        if wrong > 0 {
            outcome.fail(|| format!("codes: {wrong} of {} differ", codes.values().len()));
        }
    }
    let rows = expected.components.rows().zip(found.components.rows());
    let wrong = rows
        .enumerate()
        .find(|(_, (expected, found))| expected != found);
    outcome.components_equal = Some(wrong.is_none());
    if let Some((row, (expected, found))) = wrong {
        let at = at_row(case, row);
        outcome.fail(|| format!("components at {at}: expected {expected:?}, found {found:?}"));
    }
}

/// The kept positions against the right ones.
fn compare_sets(outcome: &mut Outcome, case: &Case, expected: &Array<u8>, found: &Array<u8>) {
    let rows = expected.rows().zip(found.rows());
    let wrong = rows
        .enumerate()
        .find(|(_, (expected, found))| expected != found);
    outcome.sets_equal = Some(wrong.is_none() && outcome.sets_equal != Some(false));
    if let Some((row, (expected, found))) = wrong {
        let only = |a: &[u8], b: &[u8]| -> Vec<usize> {
            (0..a.len()).filter(|&s| a[s] > b[s]).take(8).collect()
        };
        let (missing, extra) = (only(expected, found), only(found, expected));
        let at = at_row(case, row);
        outcome.fail(|| format!("positions at {at}: {missing:?} are missing, {extra:?} are extra"));
    }
}

/// The choices against the best ones for the rounded input.
fn weigh_choices(outcome: &mut Outcome, case: &Case, found: &Choices) {
    let regret = host::regret(case, found);
    let mut weigh = |what: &str, lead: f64| {
        // A lead that is not a number is a wrong choice as well.
        let close = lead <= CLOSE;
        if !close {
            outcome.fail(|| format!("{what}: another choice is better by {lead:.1e}"));
        }
        Some(close)
    };
    let codes = found.codes.is_some().then(|| weigh("codes", regret.codes));
    let components = weigh("components", regret.components);
    let selected = weigh("positions", regret.selected);
    outcome.codes_equal = codes.flatten();
    outcome.components_equal = components;
    outcome.sets_equal = selected;
}

/// The numbers against the right ones, in the order in which they are computed.
fn compare_results(
    outcome: &mut Outcome,
    case: &Case,
    found: &Observed,
    expected: &Expected,
    precision: &Precision,
) {
    if let (Some(expected), Some(found)) = (&expected.sketch, &found.sketch) {
        let lo = compare(outcome, "lo", &expected.lo, &found.lo, 0.0);
        let step = compare(outcome, "step", &expected.step, &found.step, 0.0);
        outcome.differences.ranges = Some(lo.max(step));
    }
    let logits = valid_only(case, &expected.logits);
    let found_logits = valid_only(case, &found.logits);
    let logits = compare(outcome, "score", &logits, &found_logits, 0.0);
    outcome.differences.logits = Some(logits);

    // The operation is held to the same set as the reference; for rounded input, to the one that the reference chose.
    compare_sets(outcome, case, &expected.selected, &found.choices.selected);
    compare_sets(outcome, case, &expected.selected, &found.selected);
    if let Some(expected) = &expected.alpha {
        let alpha = compare(outcome, "alpha", expected, &found.alpha, 0.0);
        outcome.differences.alpha = Some(alpha);
    }
    let mean_value = compare(
        outcome,
        "mean value",
        &expected.mean_value,
        &found.mean_value,
        0.0,
    );
    outcome.differences.mean_value = Some(mean_value);

    // The output is rounded to the type of the query.
    outcome.tolerance = tolerance(&expected.output, precision.error);
    let differences = found
        .outputs
        .iter()
        .map(|found| compare(outcome, "output", &expected.output, found, precision.error));
    let worst = differences.fold(0.0, f32::max);
    outcome.differences.output = Some(worst);
}

/// The largest difference of two tensors, noted as a failure where it exceeds the tolerance.
fn compare(
    outcome: &mut Outcome,
    what: &str,
    expected: &Array<f32>,
    found: &Array<f32>,
    rounding: f32,
) -> f32 {
    if expected.shape() != found.shape() {
        let (expected, found) = (expected.shape(), found.shape());
        outcome.fail(|| format!("{what}: expected shape {expected:?}, found {found:?}"));
        return f32::INFINITY;
    }
    let pairs = expected.values().iter().zip(found.values());
    let differences = pairs.map(|(expected, found)| (expected - found).abs());
    // Not f32::max, which leaves out what is not a number.
    let difference = differences.fold(0.0, |worst: f32, difference| match difference.is_nan() {
        true => f32::INFINITY,
        false => worst.max(difference),
    });
    let allowed = tolerance(expected, rounding);
    // Where infinity is expected, any difference would be allowed.
    if difference > allowed || difference.is_infinite() {
        outcome.fail(|| format!("{what}: differs by {difference:.1e}, allowed are {allowed:.1e}"));
    }
    difference
}

/// The difference allowed from `expected`, of which the result is rounded with a relative error of `rounding`.
fn tolerance(expected: &Array<f32>, rounding: f32) -> f32 {
    let largest = expected
        .values()
        .iter()
        .fold(0.0, |most: f32, x| most.max(x.abs()));
    TOLERANCE * largest.max(1.0) + rounding * largest
}

/// Logits [B, H_kv, g, S] with 0 in the left padding, where they have no meaning.
fn valid_only(case: &Case, logits: &Array<f32>) -> Array<f32> {
    let (seq, heads) = (case.problem.seq, case.problem.n_heads);
    let mut at = 0..;
    logits.map(|&logit| {
        let at: usize = at.next().unwrap_or_default();
        let padding = case
            .left_padding
            .get(at / seq / heads)
            .copied()
            .unwrap_or(0);
        if at % seq < padding { 0.0 } else { logit }
    })
}

/// The sequence and key/value head of a row.
fn at_row(case: &Case, row: usize) -> String {
    let kv_heads = case.problem.n_kv_heads;
    format!("[{}, {}]", row / kv_heads, row % kv_heads)
}

#[cfg(test)]
mod tests;
