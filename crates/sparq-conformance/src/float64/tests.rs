//! The files against the float64 stages, which share no code with the program that wrote the files.

use std::path::Path;

use super::{Selections, expected, regret};
use crate::{Array, Case, Kind, read_folder};

fn all_cases() -> Vec<Case> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    read_folder(&fixtures).unwrap()
}

fn selections(case: &Case) -> Selections {
    let expected = &case.expected;
    Selections {
        components: expected.components.clone(),
        selected: expected.selected.clone(),
        codes: expected.sketch.as_ref().map(|sketch| sketch.codes.clone()),
    }
}

fn largest_difference(a: &Array<f32>, b: &Array<f32>) -> f32 {
    assert_eq!(a.shape(), b.shape());
    let pairs = a.values().iter().zip(b.values());
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn all_fixtures_are_read() {
    let cases = all_cases();
    let count = |kind| cases.iter().filter(|case| case.kind == kind).count();
    assert_eq!((count(Kind::Authors), count(Kind::Sketch)), (23, 12));
}

#[test]
fn selections_of_every_file_are_optimal() {
    for case in all_cases() {
        let (name, regret) = (&case.name, regret(&case, &selections(&case)));
        let worst = regret.components.max(regret.selected);
        assert_eq!(worst, 0.0, "{name}: {regret:?}");
        assert!(regret.codes < 1e-6, "{name}: {regret:?}");
    }
}

#[test]
fn results_of_every_file_follow_from_its_inputs() {
    for case in all_cases() {
        let (file, host) = (&case.expected, expected(&case, &selections(&case)));
        let mut pairs = vec![
            ("logits", &file.logits, &host.logits),
            ("mean_value", &file.mean_value, &host.mean_value),
            ("output", &file.output, &host.output),
        ];
        if let (Some(file), Some(host)) = (&file.alpha, &host.alpha) {
            pairs.push(("alpha", file, host));
        }
        if let (Some(file), Some(host)) = (&file.sketch, &host.sketch) {
            pairs.extend([
                ("zero point", &file.zero_point, &host.zero_point),
                ("scale", &file.scale, &host.scale),
            ]);
        }
        for (name, file, host) in pairs {
            let (case, difference) = (&case.name, largest_difference(file, host));
            assert!(difference < 2e-5, "{case}: {name} differs by {difference}");
        }
    }
}

#[test]
fn worse_selections_have_regret() {
    let mut cases = all_cases().into_iter();
    let case = cases
        .find(|case| case.name == "b4_p_h4_kv4_d32_S200")
        .unwrap();
    let best = selections(&case);

    let mut worse = best.clone();
    let mut marks = best.selected.values().to_vec();
    let (taken, left) = (position(&marks, 1), position(&marks, 0));
    marks.swap(taken, left);
    worse.selected = Array::new(best.selected.shape().to_vec(), marks.clone()).unwrap();
    let regretted = regret(&case, &worse);
    assert!(regretted.selected > 0.0 && regretted.selected.is_finite());

    marks[case.problem.seq - 1] = 0;
    worse.selected = Array::new(best.selected.shape().to_vec(), marks).unwrap();
    // The current token must be selected.
    assert_eq!(regret(&case, &worse).selected, f64::INFINITY);

    let mut worse = best.clone();
    let mut components = best.components.values().to_vec();
    components[0] = (0..).find(|c| !components.contains(c)).unwrap();
    worse.components = Array::new(best.components.shape().to_vec(), components).unwrap();
    assert!(regret(&case, &worse).components > 0.0);

    let mut worse = best.clone();
    let codes = best.codes.as_ref().unwrap();
    worse.codes = Some(codes.map(|&code| code ^ 1));
    assert!(regret(&case, &worse).codes > 0.0);
}

fn position(marks: &[u8], wanted: u8) -> usize {
    marks.iter().position(|&mark| mark == wanted).unwrap()
}
