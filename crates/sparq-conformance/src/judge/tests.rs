use super::*;
use crate::embedded_cases;

fn case(name: &str) -> Case {
    let mut cases = embedded_cases().unwrap().into_iter();
    cases.find(|case| case.name == name).unwrap()
}

/// Returns the results of a device without rounding errors.
fn perfect(case: &Case, expected: &Expected) -> Observed {
    let alpha = expected.alpha.clone();
    let heads = [case.problem.batch, case.problem.n_heads];
    let ones = Array::new(heads.to_vec(), vec![1.0; heads.iter().product()]);
    Observed {
        selections: Selections {
            components: expected.components.clone(),
            selected: expected.selected.clone(),
            codes: expected.sketch.as_ref().map(|sketch| sketch.codes.clone()),
        },
        logits: expected.logits.clone(),
        mean_value: expected.mean_value.clone(),
        sketch: expected.sketch.clone(),
        selected: expected.selected.clone(),
        alpha: alpha.or(ones).unwrap(),
        outputs: vec![expected.output.clone()],
    }
}

fn judge_f32(case: &Case, change: impl FnOnce(&mut Observed)) -> Outcome {
    let mut found = perfect(case, &case.expected);
    change(&mut found);
    judge(case, &found, &Precision::of(FloatDType::F32).unwrap())
}

/// Returns the tensor with edited elements.
fn changed<T: Clone>(array: &Array<T>, change: impl FnOnce(&mut Vec<T>)) -> Array<T> {
    let mut values = array.values().to_vec();
    change(&mut values);
    Array::new(array.shape().to_vec(), values).unwrap()
}

fn added(array: &Array<f32>, at: usize, by: f32) -> Array<f32> {
    changed(array, |values| values[at] += by)
}

/// Returns the marks with the first selected position of the first batch head, of `seq` positions,
/// exchanged for the first unselected one.
fn moved(marks: &Array<u8>, seq: usize) -> Array<u8> {
    changed(marks, |marks| {
        let left_out = marks[..seq].iter().position(|&mark| mark == 0).unwrap();
        let taken = marks[..seq].iter().position(|&mark| mark == 1).unwrap();
        marks.swap(left_out, taken);
    })
}

#[test]
fn results_equal_to_the_file_pass() {
    for case in embedded_cases().unwrap() {
        let outcome = judge_f32(&case, |_| {});
        assert!(outcome.passed && outcome.reason.is_none(), "{outcome:?}");
        assert_eq!(outcome.sets_equal, Some(true));
        assert_eq!(outcome.components_equal, Some(true));
        let has_sketch = case.expected.sketch.is_some();
        assert_eq!(outcome.codes_equal.is_some(), has_sketch);
        assert_eq!(outcome.differences.output, Some(0.0));
    }
}

#[test]
fn every_wrong_result_is_named() {
    let case = case("b4_p_h4_kv4_d32_S200");
    const SEQ: usize = 200;
    assert_eq!(case.problem.seq, SEQ);
    type Change = (&'static str, fn(&mut Observed));
    let changes: [Change; 12] = [
        ("codes", |found| {
            let codes = found.selections.codes.as_ref().unwrap();
            found.selections.codes = Some(changed(codes, |codes| codes[0] ^= 1));
        }),
        ("components at [0, 0]", |found| {
            let components = &found.selections.components;
            let taken = &components.values()[..8];
            let free = (0..32).find(|c| !taken.contains(c)).unwrap();
            found.selections.components = changed(components, |all| {
                all[0] = free;
                all[..8].sort_unstable();
            });
        }),
        ("positions at [0, 0]", |found| {
            found.selections.selected = moved(&found.selections.selected, SEQ);
        }),
        ("positions at [0, 0]", |found| {
            found.selected = moved(&found.selected, SEQ)
        }),
        ("zero point", |found| {
            let sketch = found.sketch.as_mut().unwrap();
            sketch.zero_point = added(&sketch.zero_point, 3, 1e-3);
        }),
        ("scale", |found| {
            let sketch = found.sketch.as_mut().unwrap();
            sketch.scale = added(&sketch.scale, 3, 1e-3);
        }),
        ("score", |found| {
            found.logits = added(&found.logits, 100, 1e-2)
        }),
        ("alpha", |found| found.alpha = added(&found.alpha, 3, 1e-3)),
        ("mean value", |found| {
            found.mean_value = added(&found.mean_value, 5, -1e-3)
        }),
        ("output", |found| {
            found.outputs[0] = added(&found.outputs[0], 9, 1e-3)
        }),
        ("output", |found| {
            found.outputs[0] = added(&found.outputs[0], 9, f32::NAN)
        }),
        ("output", |found| {
            found.outputs.push(added(&found.outputs[0], 9, 1e-3))
        }),
    ];
    for (named, change) in changes {
        let outcome = judge_f32(&case, change);
        let reason = outcome.reason.unwrap_or_default();
        assert!(!outcome.passed, "{named}");
        assert!(reason.starts_with(named), "{named}: {reason:?}");
    }
}

#[test]
fn wrong_positions_are_listed() {
    let case = case("b4_p_h4_kv4_d32_S200");
    let seq = case.problem.seq;
    let marks = &case.expected.selected.values()[..seq];
    let extra = marks.iter().position(|&mark| mark == 0).unwrap();
    let missing = marks.iter().position(|&mark| mark == 1).unwrap();
    let outcome = judge_f32(&case, |found| found.selected = moved(&found.selected, seq));
    let reason = format!("positions at [0, 0]: [{missing}] are missing, [{extra}] are extra");
    assert_eq!(outcome.reason, Some(reason));
    assert_eq!(outcome.sets_equal, Some(false));
}

#[test]
fn logits_in_the_padding_are_not_compared() {
    let case = case("gqa_pad_neg_inf");
    assert_eq!(case.left_padding, [100, 0, 31]);
    let seq = case.problem.seq;
    let at = |b: usize, head: usize, s: usize| (b * case.problem.n_heads + head) * seq + s;
    let passes = |at: usize| {
        let wrong = |found: &mut Observed| {
            found.logits = changed(&found.logits, |logits| logits[at] = f32::NAN);
        };
        judge_f32(&case, wrong).passed
    };
    assert!(passes(at(0, 8, 99)) && passes(at(2, 0, 30)));
    assert!(!passes(at(0, 8, 100)) && !passes(at(1, 0, 0)) && !passes(at(2, 0, 31)));
}

#[test]
fn rounded_inputs_are_judged_by_their_own_results() {
    for dtype in [FloatDType::F16, FloatDType::BF16] {
        let precision = Precision::of(dtype).unwrap();
        for case in embedded_cases().unwrap() {
            let case = precision.rounded(&case).unwrap();
            let selections = perfect(&case, &case.expected).selections;
            let mut found = perfect(&case, &float64::expected(&case, &selections));
            found.outputs[0] = found.outputs[0].map(|&x| (precision.round)(x));
            let mut outcome = judge(&case, &found, &precision);
            // The file's selections may not be optimal for rounded inputs, but the numbers are
            // right.
            outcome.reason = outcome
                .reason
                .filter(|reason| !reason.contains("another selection"));
            assert_eq!(outcome.reason, None, "{}", case.name);
            assert!(outcome.differences.output <= Some(outcome.tolerance));

            found.outputs[0] = added(&found.outputs[0], 0, 2.0 * outcome.tolerance);
            let outcome = judge(&case, &found, &precision);
            assert!(!outcome.passed, "{}", case.name);
        }
    }
}

#[test]
fn wrong_selections_of_rounded_inputs_fail() {
    let precision = Precision::of(FloatDType::F16).unwrap();
    let case = precision.rounded(&case("mha_r8")).unwrap();
    let mut selections = perfect(&case, &case.expected).selections;
    let judged = |selections: &Selections| {
        let expected = float64::expected(&case, selections);
        judge(&case, &perfect(&case, &expected), &precision)
    };
    let right = judged(&selections);
    assert!(right.passed, "{:?}", right.reason);

    selections.selected = moved(&selections.selected, case.problem.seq);
    let wrong = judged(&selections);
    assert_eq!((wrong.passed, wrong.sets_equal), (false, Some(false)));
}

#[test]
fn inputs_out_of_range_are_not_rounded() {
    let mut case = case("mha_r8");
    case.inputs.k = added(&case.inputs.k, 0, 1e6);
    for (dtype, fits) in [(FloatDType::F16, false), (FloatDType::BF16, true)] {
        let rounded = Precision::of(dtype).unwrap().rounded(&case);
        assert_eq!(rounded.is_some(), fits, "{dtype:?}");
    }
}
