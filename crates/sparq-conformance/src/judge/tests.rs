use super::*;
use crate::embedded_cases;

fn case(name: &str) -> Case {
    let mut cases = embedded_cases().unwrap().into_iter();
    cases.find(|case| case.name == name).unwrap()
}

/// What a device without rounding errors would compute.
fn perfect(case: &Case, expected: &Expected) -> Observed {
    let alpha = expected.alpha.clone();
    let heads = [case.problem.batch, case.problem.n_heads];
    let ones = Array::new(heads.to_vec(), vec![1.0; heads.iter().product()]);
    Observed {
        choices: Choices {
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

/// The tensor with `change` made to its elements.
fn changed<T: Clone>(array: &Array<T>, change: impl FnOnce(&mut Vec<T>)) -> Array<T> {
    let mut values = array.values().to_vec();
    change(&mut values);
    Array::new(array.shape().to_vec(), values).unwrap()
}

fn added(array: &Array<f32>, at: usize, by: f32) -> Array<f32> {
    changed(array, |values| values[at] += by)
}

/// The marks with the last kept position of the first row moved to the first one that is not kept.
fn moved(marks: &Array<u8>, row: usize) -> Array<u8> {
    changed(marks, |marks| {
        let left_out = marks[..row].iter().position(|&mark| mark == 0).unwrap();
        let taken = marks[..row].iter().position(|&mark| mark == 1).unwrap();
        marks.swap(left_out, taken);
    })
}

#[test]
fn what_equals_the_file_passes() {
    for case in embedded_cases().unwrap() {
        let outcome = judge_f32(&case, |_| {});
        assert!(outcome.passed && outcome.reason.is_none(), "{outcome:?}");
        assert_eq!(outcome.sets_equal, Some(true));
        assert_eq!(outcome.components_equal, Some(true));
        assert_eq!(
            outcome.codes_equal.is_some(),
            case.expected.sketch.is_some()
        );
        assert_eq!(outcome.differences.output, Some(0.0));
    }
}

#[test]
fn every_wrong_result_fails_and_is_named() {
    let case = case("b4_p_h4_kv4_d32_S200");
    let seq = case.problem.seq;
    type Change<'a> = Box<dyn FnOnce(&mut Observed) + 'a>;
    let changes: Vec<(&str, Change<'_>)> = vec![
        (
            "codes",
            Box::new(|found| {
                let codes = found.choices.codes.as_ref().unwrap();
                found.choices.codes = Some(changed(codes, |codes| codes[0] ^= 1));
            }),
        ),
        (
            "components at [0, 0]",
            Box::new(|found| {
                let components = &found.choices.components;
                let free = (0..32)
                    .find(|c| !components.values()[..8].contains(c))
                    .unwrap();
                found.choices.components = changed(components, |all| {
                    all[0] = free;
                    all[..8].sort_unstable();
                });
            }),
        ),
        (
            "positions at [0, 0]",
            Box::new(|found| {
                found.choices.selected = moved(&found.choices.selected, seq);
            }),
        ),
        (
            "positions at [0, 0]",
            Box::new(|found| {
                found.selected = moved(&found.selected, seq);
            }),
        ),
        (
            "lo",
            Box::new(|found| {
                let sketch = found.sketch.as_mut().unwrap();
                sketch.lo = added(&sketch.lo, 3, 1e-3);
            }),
        ),
        (
            "step",
            Box::new(|found| {
                let sketch = found.sketch.as_mut().unwrap();
                sketch.step = added(&sketch.step, 3, 1e-3);
            }),
        ),
        (
            "score",
            Box::new(|found| found.logits = added(&found.logits, 100, 1e-2)),
        ),
        (
            "alpha",
            Box::new(|found| found.alpha = added(&found.alpha, 3, 1e-3)),
        ),
        (
            "mean value",
            Box::new(|found| found.mean_value = added(&found.mean_value, 5, -1e-3)),
        ),
        (
            "output",
            Box::new(|found| found.outputs[0] = added(&found.outputs[0], 9, 1e-3)),
        ),
        (
            "output",
            Box::new(|found| found.outputs[0] = added(&found.outputs[0], 9, f32::NAN)),
        ),
        (
            "output",
            Box::new(|found| {
                let second = added(&found.outputs[0], 9, 1e-3);
                found.outputs.push(second);
            }),
        ),
    ];
    for (named, change) in changes {
        let outcome = judge_f32(&case, change);
        let reason = outcome.reason.unwrap_or_default();
        assert!(
            !outcome.passed && reason.starts_with(named),
            "{named}: {reason:?}"
        );
    }
}

#[test]
fn a_wrong_set_shows_which_positions() {
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
fn rounded_input_is_held_to_what_follows_from_it() {
    for dtype in [FloatDType::F16, FloatDType::BF16] {
        let precision = Precision::of(dtype).unwrap();
        for case in embedded_cases().unwrap() {
            let case = precision.rounded(&case).unwrap();
            let choices = perfect(&case, &case.expected).choices;
            let mut found = perfect(&case, &host::expected(&case, &choices));
            found.outputs[0] = found.outputs[0].map(|&x| (precision.round)(x));
            let mut outcome = judge(&case, &found, &precision);
            // The file's choices may not be the best ones for rounded input, but what follows from them is right.
            outcome.reason = outcome
                .reason
                .filter(|reason| !reason.contains("another choice"));
            assert_eq!(outcome.reason, None, "{}", case.name);
            assert!(outcome.differences.output <= Some(outcome.tolerance));

            found.outputs[0] = added(&found.outputs[0], 0, 2.0 * outcome.tolerance);
            let outcome = judge(&case, &found, &precision);
            assert!(!outcome.passed, "{}", case.name);
        }
    }
}

#[test]
fn a_wrong_choice_for_rounded_input_fails() {
    let precision = Precision::of(FloatDType::F16).unwrap();
    let case = precision.rounded(&case("mha_r8")).unwrap();
    let mut choices = perfect(&case, &case.expected).choices;
    let right = judge(
        &case,
        &perfect(&case, &host::expected(&case, &choices)),
        &precision,
    );
    assert!(right.passed, "{:?}", right.reason);

    choices.selected = moved(&choices.selected, case.problem.seq);
    let wrong = judge(
        &case,
        &perfect(&case, &host::expected(&case, &choices)),
        &precision,
    );
    assert_eq!((wrong.passed, wrong.sets_equal), (false, Some(false)));
}

#[test]
fn input_beyond_the_range_of_a_type_is_not_rounded_to_infinity() {
    let mut case = case("mha_r8");
    case.inputs.k = added(&case.inputs.k, 0, 1e6);
    assert!(
        Precision::of(FloatDType::F16)
            .unwrap()
            .rounded(&case)
            .is_none()
    );
    assert!(
        Precision::of(FloatDType::BF16)
            .unwrap()
            .rounded(&case)
            .is_some()
    );
}
