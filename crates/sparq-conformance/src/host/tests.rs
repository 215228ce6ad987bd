//! The files against the steps on the host: an implementation that shares nothing with the one that wrote the files.

use std::path::Path;

use super::{Choices, expected, regret};
use crate::{Array, Case, Kind, read_folder};

fn all_cases() -> Vec<Case> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    read_folder(&fixtures).unwrap()
}

fn choices(case: &Case) -> Choices {
    Choices {
        components: case.expected.components.clone(),
        selected: case.expected.selected.clone(),
        codes: case
            .expected
            .sketch
            .as_ref()
            .map(|sketch| sketch.codes.clone()),
    }
}

fn largest_difference(a: &Array<f32>, b: &Array<f32>) -> f32 {
    assert_eq!(a.shape(), b.shape());
    let pairs = a.values().iter().zip(b.values());
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn the_folder_holds_all_cases_of_both_kinds() {
    let cases = all_cases();
    let count = |kind| cases.iter().filter(|case| case.kind == kind).count();
    assert_eq!((count(Kind::Authors), count(Kind::Sketch)), (23, 12));
}

#[test]
fn the_choices_of_every_file_are_the_best_ones() {
    for case in all_cases() {
        let regret = regret(&case, &choices(&case));
        assert!(
            regret.components == 0.0 && regret.selected == 0.0,
            "{}: {regret:?}",
            case.name
        );
        assert!(regret.codes < 1e-6, "{}: {regret:?}", case.name);
    }
}

#[test]
fn the_results_of_every_file_follow_from_its_input() {
    for case in all_cases() {
        let (file, host) = (&case.expected, expected(&case, &choices(&case)));
        let mut pairs = vec![
            ("logits", &file.logits, &host.logits),
            ("mean_value", &file.mean_value, &host.mean_value),
            ("output", &file.output, &host.output),
        ];
        if let (Some(file), Some(host)) = (&file.alpha, &host.alpha) {
            pairs.push(("alpha", file, host));
        }
        if let (Some(file), Some(host)) = (&file.sketch, &host.sketch) {
            pairs.extend([("lo", &file.lo, &host.lo), ("step", &file.step, &host.step)]);
        }
        for (what, file, host) in pairs {
            let difference = largest_difference(file, host);
            assert!(
                difference < 2e-5,
                "{}: {what} differs by {difference}",
                case.name
            );
        }
    }
}

#[test]
fn a_worse_choice_is_regretted() {
    let case = all_cases()
        .into_iter()
        .find(|case| case.name == "b4_p_h4_kv4_d32_S200")
        .unwrap();
    let best = choices(&case);

    let mut worse = best.clone();
    let mut marks = best.selected.values().to_vec();
    let (taken, left) = (position(&marks, 1), position(&marks, 0));
    marks.swap(taken, left);
    worse.selected = Array::new(best.selected.shape().to_vec(), marks.clone()).unwrap();
    let regretted = regret(&case, &worse);
    assert!(regretted.selected > 0.0 && regretted.selected.is_finite());

    marks[case.problem.seq - 1] = 0;
    worse.selected = Array::new(best.selected.shape().to_vec(), marks).unwrap();
    assert_eq!(
        regret(&case, &worse).selected,
        f64::INFINITY,
        "the current token is always kept"
    );

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
