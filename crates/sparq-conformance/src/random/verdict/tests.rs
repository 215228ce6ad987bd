//! A hand-made batch head with right and wrong results.

use burn::tensor::FloatDType;
use sparq::SparqConfig;

use super::components::{component_selections, subsets};
use super::{Found, dense, sparse};
use crate::float64::stages::HeadInput;

const D: usize = 4;
const SEQ: usize = 12;

/// A batch head whose scores fall with the position, and the results of a device without rounding
/// errors.
struct Step {
    config: SparqConfig,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    selected: Vec<u8>,
    alpha: Vec<f32>,
    output: Vec<f32>,
}

impl Step {
    fn new() -> Self {
        let keys = (0..SEQ).flat_map(|s| [1.0 - s as f32 * 0.2, 0.3, 0.1, 0.0]);
        let values = (0..SEQ * D).map(|i| (i as f32 * 0.7).sin());
        let mut step = Self {
            config: SparqConfig::new(2, 4).with_local_window(1),
            q: vec![2.0, 1.0, 0.5, 0.25],
            k: keys.collect(),
            v: values.collect(),
            selected: (0..SEQ).map(|s| u8::from(s < 3 || s == SEQ - 1)).collect(),
            alpha: Vec::new(),
            output: Vec::new(),
        };
        step.recompute();
        step
    }

    fn input(&self) -> HeadInput<'_> {
        HeadInput {
            config: &self.config,
            q: &self.q,
            k: &self.k,
            v: &self.v,
            head_dim: D,
            valid: 0..SEQ,
        }
    }

    /// Computes the results that follow from the selected positions.
    fn recompute(&mut self) {
        let input = self.input();
        let head = &input.approximate(&[0, 1], None)[0];
        let probabilities = input.probabilities(&head.logits);
        let selected = probabilities.iter().zip(&self.selected);
        let alpha: f64 = selected.map(|(p, &taken)| p * f64::from(taken)).sum();
        let output = input.attend(&self.q, &self.selected);
        let output = output.iter().zip(input.mean_value());
        let output = output.map(|(y, mean)| (alpha * y + (1.0 - alpha) * mean) as f32);
        let output = output.collect();
        self.alpha = vec![alpha as f32];
        self.output = output;
    }

    fn judge(&self) -> Result<(), String> {
        let found = Found {
            selected: &self.selected,
            alpha: &self.alpha,
            output: &self.output,
            dtype: FloatDType::F32,
        };
        sparse(&self.input(), None, &found).map(|_| ())
    }

    fn swap(&mut self, taken: usize, left: usize) {
        assert_eq!((self.selected[taken], self.selected[left]), (1, 0));
        self.selected.swap(taken, left);
    }
}

#[test]
fn every_wrong_result_is_named() {
    assert_eq!(Step::new().judge(), Ok(()));
    let fails = |change: &dyn Fn(&mut Step)| {
        let mut step = Step::new();
        change(&mut step);
        step.judge().unwrap_err()
    };
    let reason = fails(&|step| {
        step.swap(2, 3);
        step.recompute();
    });
    assert!(reason.contains("3 with a score of"), "{reason}");
    assert!(reason.contains("and 2 with"), "{reason}");
    let reason = fails(&|step| step.swap(SEQ - 1, 3));
    let expected = "is in the local window but not selected";
    assert!(reason.contains(expected), "{reason}");
    let reason = fails(&|step| step.selected[3] = 1);
    assert!(reason.contains("expected 4, found 5"), "{reason}");
    let reason = fails(&|step| step.alpha[0] += 1e-4);
    assert!(reason.starts_with("alpha of head 0"), "{reason}");
    for wrong in [f32::NAN, f32::INFINITY] {
        assert!(fails(&|step| step.alpha[0] = wrong).starts_with("alpha"));
        assert!(fails(&|step| step.output[1] = wrong).starts_with("output"));
    }
    let reason = fails(&|step| step.output[1] += 1e-4);
    assert!(reason.contains("component 1: expected"), "{reason}");
}

#[test]
fn any_of_equal_scores_may_be_selected() {
    let mut step = Step::new();
    let (one, other) = (2 * D..3 * D, 3 * D);
    step.k.copy_within(one, other);
    step.recompute();
    assert_eq!(step.judge(), Ok(()));
    step.swap(2, 3);
    step.recompute();
    assert_eq!(step.judge(), Ok(()));
    // Leads below and above the rounding error.
    for (lead, right) in [(1.0 + 1e-7, true), (1.0 + 1e-4, false)] {
        step.k[2 * D] = step.k[3 * D] * lead;
        step.recompute();
        assert_eq!(step.judge().is_ok(), right, "{lead}");
    }
}

#[test]
fn the_mean_value_is_judged() {
    let mut step = Step::new();
    assert!(step.alpha[0] < 0.99);
    let exact = step.input().attend(&step.q, &step.selected);
    step.output = exact.iter().map(|&y| y as f32).collect();
    let reason = step.judge().unwrap_err();
    assert!(reason.starts_with("output of head 0"), "{reason}");
}

#[test]
fn selected_nan_and_infinities_must_show() {
    let mut step = Step::new();
    step.config.mean_value = sparq::methods::MeanValue::Never;
    step.v[5 * D] = f32::NAN;
    step.k[6 * D] = f32::NAN;
    let finite = step.input().attend(&step.q, &step.selected);
    step.recompute();
    step.output = finite.iter().map(|&y| y as f32).collect();
    // Position 6 ranks last, and 5 is not selected.
    assert_eq!(step.judge(), Ok(()));

    step.v[D] = f32::NEG_INFINITY;
    let reason = step.judge().unwrap_err();
    assert!(reason.contains("expected NaN or an infinity"), "{reason}");
    step.output[0] = f32::NEG_INFINITY;
    assert_eq!(step.judge(), Ok(()));

    let all: Vec<f32> = vec![f32::NAN; D];
    assert!(dense(&step.input(), &all, FloatDType::F32).is_ok());
    step.k[6 * D] = 0.0;
    let reason = dense(&step.input(), &all, FloatDType::F32).unwrap_err();
    assert!(reason.contains("component 1"), "{reason}");
}

#[test]
fn rounded_outputs_may_differ_by_half_a_unit() {
    let step = Step::new();
    let dense_output = step.input().attend(&step.q, &[1; SEQ]);
    let round = |x: &f64| half::f16::from_f64(*x).to_f32();
    let mut output: Vec<f32> = dense_output.iter().map(round).collect();
    assert!(dense(&step.input(), &output, FloatDType::F16).is_ok());
    assert!(dense(&step.input(), &output, FloatDType::F32).is_err());
    output[0] *= 1.0 + 1.0 / 512.0;
    assert!(dense(&step.input(), &output, FloatDType::F16).is_err());
}

#[test]
fn components_of_equal_size_give_several_selections() {
    let mut step = Step::new();
    assert_eq!(
        component_selections(&step.input(), None),
        Some(vec![vec![0, 1]])
    );
    step.q = vec![2.0, 1.0, -1.0, 1.0];
    let selections = component_selections(&step.input(), None).unwrap();
    assert_eq!(selections, [[0, 1], [0, 2], [0, 3]]);
    assert_eq!(subsets(&[1, 2, 3, 4], 2).unwrap().len(), 6);
    let many: Vec<usize> = (0..64).collect();
    assert_eq!(subsets(&many, 32), None);
    assert_eq!(subsets(&many, 64).map(|all| all.len()), Some(1));
}
