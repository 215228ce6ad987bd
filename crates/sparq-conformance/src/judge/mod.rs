//! Judges the results of a reference case.

use burn::tensor::FloatDType;
use half::{bf16, f16};

use crate::case::Expected;
use crate::float64::{self, Selections};
use crate::observe::Observed;
use crate::{Array, Case, Outcome};

/// Ten times the difference that fp32 sums in another order make. Relative to the largest number if
/// that exceeds 1.
pub(crate) const TOLERANCE: f32 = 1e-4;

/// The lead by which a selection may miss the optimum for rounded inputs, which may have close
/// selections. In units of scores (of their logarithm for probabilities), components and codes.
const CLOSE: f64 = 1e-4;

/// The rounding of a type.
pub(crate) struct Precision {
    /// Rounds a number to the type.
    pub(crate) round: fn(f32) -> f32,
    /// The largest relative error of rounding, 0 if the type represents every fp32 number.
    pub(crate) error: f32,
}

impl Precision {
    /// Returns the rounding of `dtype`, or `None` for a type whose rounding depends on the device.
    pub(crate) fn of(dtype: FloatDType) -> Option<Self> {
        let (round, error): (fn(f32) -> f32, f32) = match dtype {
            FloatDType::F64 | FloatDType::F32 => (|x| x, 0.0),
            FloatDType::F16 => (|x| f16::from_f32(x).to_f32(), 2f32.powi(-11)),
            FloatDType::BF16 => (|x| bf16::from_f32(x).to_f32(), 2f32.powi(-8)),
            FloatDType::Flex32 => return None,
        };
        Some(Self { round, error })
    }

    /// Returns the case with rounded inputs, or `None` if any is out of range.
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

/// Judges the results of a [rounded](Precision::rounded) case.
///
/// If rounding is exact, the results must equal those of the file. Otherwise selections must be
/// optimal up to [`CLOSE`], and numbers must equal those that float64 computes from the device's
/// selections.
pub(crate) fn judge(case: &Case, found: &Observed, precision: &Precision) -> Outcome {
    let mut outcome = Outcome::of(case);
    let expected = if precision.error == 0.0 {
        compare_selections(&mut outcome, case, &found.selections);
        case.expected.clone()
    } else {
        weigh_selections(&mut outcome, case, &found.selections);
        float64::expected(case, &found.selections)
    };
    compare_results(&mut outcome, case, found, &expected, precision);
    outcome
}

/// Compares codes and components with those of the file.
fn compare_selections(outcome: &mut Outcome, case: &Case, found: &Selections) {
    let expected = &case.expected;
    if let (Some(sketch), Some(codes)) = (&expected.sketch, &found.codes) {
        let pairs = sketch.codes.values().iter().zip(codes.values());
        let wrong = pairs.filter(|(expected, found)| expected != found).count();
        outcome.codes_equal = Some(wrong == 0);
        if wrong > 0 {
            outcome.fail(|| format!("codes: {wrong} of {} differ", codes.values().len()));
        }
    }
    let wrong = first_difference(&expected.components, &found.components);
    outcome.components_equal = Some(wrong.is_none());
    if let Some((head, [expected, found])) = wrong {
        let at = place(case, head);
        outcome.fail(|| format!("components at {at}: expected {expected:?}, found {found:?}"));
    }
}

/// Returns the first batch head whose elements differ, with its expected and its found ones.
fn first_difference<'a, T: PartialEq>(
    expected: &'a Array<T>,
    found: &'a Array<T>,
) -> Option<(usize, [&'a [T]; 2])> {
    let heads = expected.rows().zip(found.rows());
    let mut heads = heads.map(<[&'a [T]; 2]>::from).enumerate();
    heads.find(|(_, [expected, found])| expected != found)
}

/// Compares the selected positions with the expected ones.
fn compare_sets(outcome: &mut Outcome, case: &Case, expected: &Array<u8>, found: &Array<u8>) {
    let wrong = first_difference(expected, found);
    outcome.sets_equal = Some(wrong.is_none() && outcome.sets_equal != Some(false));
    if let Some((head, [expected, found])) = wrong {
        let only = |a: &[u8], b: &[u8]| -> Vec<usize> {
            (0..a.len()).filter(|&s| a[s] > b[s]).take(8).collect()
        };
        let (missing, extra) = (only(expected, found), only(found, expected));
        let at = place(case, head);
        outcome.fail(|| format!("positions at {at}: {missing:?} are missing, {extra:?} are extra"));
    }
}

/// Compares the selections with the optimum for the rounded inputs.
fn weigh_selections(outcome: &mut Outcome, case: &Case, found: &Selections) {
    let regret = float64::regret(case, found);
    let mut weigh = |name: &str, lead: f64| {
        // A NaN lead is wrong too.
        let close = lead <= CLOSE;
        if !close {
            outcome.fail(|| format!("{name}: another selection is better by {lead:.1e}"));
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

/// Compares the numbers with the expected ones, in the order of their computation.
fn compare_results(
    outcome: &mut Outcome,
    case: &Case,
    found: &Observed,
    expected: &Expected,
    precision: &Precision,
) {
    if let (Some(expected), Some(found)) = (&expected.sketch, &found.sketch) {
        let (zero_point, found_zero_point) = (&expected.zero_point, &found.zero_point);
        let zero_point = compare(outcome, "zero point", zero_point, found_zero_point, 0.0);
        let scale = compare(outcome, "scale", &expected.scale, &found.scale, 0.0);
        outcome.differences.ranges = Some(zero_point.max(scale));
    }
    let logits = valid_only(case, &expected.logits);
    let found_logits = valid_only(case, &found.logits);
    let logits = compare(outcome, "score", &logits, &found_logits, 0.0);
    outcome.differences.logits = Some(logits);

    // Reference and operation must select the same positions. For rounded inputs, those of the
    // reference are the expected ones.
    for selected in [&found.selections.selected, &found.selected] {
        compare_sets(outcome, case, &expected.selected, selected);
    }
    if let Some(expected) = &expected.alpha {
        let alpha = compare(outcome, "alpha", expected, &found.alpha, 0.0);
        outcome.differences.alpha = Some(alpha);
    }
    let (mean, found_mean) = (&expected.mean_value, &found.mean_value);
    let mean = compare(outcome, "mean value", mean, found_mean, 0.0);
    outcome.differences.mean_value = Some(mean);

    // The output is rounded to the type of the query.
    outcome.tolerance = tolerance(&expected.output, precision.error);
    let differences = found
        .outputs
        .iter()
        .map(|found| compare(outcome, "output", &expected.output, found, precision.error));
    let worst = differences.fold(0.0, f32::max);
    outcome.differences.output = Some(worst);
}

/// Returns the largest difference of two tensors. The case fails if it exceeds the tolerance.
fn compare(
    outcome: &mut Outcome,
    name: &str,
    expected: &Array<f32>,
    found: &Array<f32>,
    rounding: f32,
) -> f32 {
    if expected.shape() != found.shape() {
        let (expected, found) = (expected.shape(), found.shape());
        outcome.fail(|| format!("{name}: expected shape {expected:?}, found {found:?}"));
        return f32::INFINITY;
    }
    let pairs = expected.values().iter().zip(found.values());
    let differences = pairs.map(|(expected, found)| (expected - found).abs());
    // Not f32::max, which ignores NaN.
    let difference = differences.fold(0.0, |worst: f32, difference| match difference.is_nan() {
        true => f32::INFINITY,
        false => worst.max(difference),
    });
    let allowed = tolerance(expected, rounding);
    // An expected infinity would allow any difference.
    if difference > allowed || difference.is_infinite() {
        outcome.fail(|| {
            format!("{name}: differs by {difference:.1e}, expected at most {allowed:.1e}")
        });
    }
    difference
}

/// Returns the allowed difference from `expected` of a result that is rounded with a relative error
/// of `rounding`.
fn tolerance(expected: &Array<f32>, rounding: f32) -> f32 {
    let sizes = expected.values().iter().map(|x| x.abs());
    let largest = sizes.fold(0.0, f32::max);
    TOLERANCE * largest.max(1.0) + rounding * largest
}

/// Returns logits [B, H_kv, g, S] with 0 in the left padding, where they have no meaning.
fn valid_only(case: &Case, logits: &Array<f32>) -> Array<f32> {
    let (seq, heads) = (case.problem.seq, case.problem.n_heads);
    let mut at = 0..;
    logits.map(|&logit| {
        let at: usize = at.next().unwrap_or_default();
        let padding = case.left_padding.get(at / seq / heads);
        let padding = padding.copied().unwrap_or(0);
        if at % seq < padding { 0.0 } else { logit }
    })
}

/// Returns the sequence and KV head of a batch head, for messages.
fn place(case: &Case, head: usize) -> String {
    let kv_heads = case.problem.n_kv_heads;
    format!("[{}, {}]", head / kv_heads, head % kv_heads)
}

#[cfg(test)]
mod tests;
