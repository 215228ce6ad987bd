//! Contents that contradict the metadata, each other or reason.

use super::parts::{PADDED, Parts, SKETCH};
use crate::Case;

#[test]
fn a_padding_that_the_mask_contradicts_is_refused() {
    let error = Parts::of(PADDED).entry("pad", "[0, 16, 60]").error();
    assert!(
        error.contains("logmask: expected 0 at [1, 16], as pad and mask say"),
        "{error}"
    );
    let error = Parts::of(PADDED).entry("mask", "neg_inf").error();
    assert!(
        error.contains("logmask: expected -inf at [1, 0], as pad and mask say"),
        "{error}"
    );
    let error = Parts::of(PADDED).entry("mask", "none").error();
    assert!(
        error.contains("logmask: expected no left padding at [1, 0]"),
        "{error}"
    );
}

#[test]
fn tensors_that_contradict_each_other_are_refused() {
    // The last position, the current token, is always kept.
    let error = Parts::of(PADDED).bytes_at("selected", 95, &[0]).error();
    assert_eq!(
        error,
        "a.safetensors: selected: expected 1 at [0, 0, 95], as indices say, found 0"
    );
    let error = Parts::of(SKETCH)
        .bytes_at("indices", 0, &199i64.to_le_bytes())
        .error();
    assert!(
        error.contains("indices: expected ascending indices, found 199 before"),
        "{error}"
    );
    let error = Parts::of(SKETCH)
        .bytes_at("indices", 0, &(-1i64).to_le_bytes())
        .error();
    assert!(
        error.contains("indices: expected indices from 0 to below 200, found -1"),
        "{error}"
    );
    let error = Parts::of(SKETCH)
        .bytes_at("top_r", 56, &32i64.to_le_bytes())
        .error();
    assert!(
        error.contains("top_r: expected indices from 0 to below 32, found 32"),
        "{error}"
    );
    let error = Parts::of(SKETCH).bytes_at("codes", 7, &[16]).error();
    assert!(
        error.contains("codes: expected numbers up to 15, found 16"),
        "{error}"
    );
    let error = Parts::of(SKETCH)
        .bytes_at("step", 0, &(-1f32).to_le_bytes())
        .error();
    assert!(
        error.contains("step: expected numbers from 0 on, found -1"),
        "{error}"
    );
    let case = Case::from_bytes("a.safetensors", PADDED).unwrap();
    let left_out = case
        .expected
        .selected
        .values()
        .iter()
        .position(|&mark| mark == 0)
        .unwrap();
    let error = Parts::of(PADDED)
        .bytes_at("weights", 4 * left_out, &1f32.to_le_bytes())
        .error();
    assert!(error.contains("weights: expected 0 at position"), "{error}");
}

#[test]
fn numbers_that_are_not_finite_are_refused() {
    for (tensor, value) in [("q", f32::NAN), ("v", f32::INFINITY), ("output", f32::NAN)] {
        let error = Parts::of(SKETCH)
            .bytes_at(tensor, 4, &value.to_le_bytes())
            .error();
        let message = format!("a.safetensors: {tensor}: expected finite numbers, found {value}");
        assert_eq!(error, message);
    }
    let error = Parts::of(PADDED)
        .bytes_at("logmask", 0, &f32::NAN.to_le_bytes())
        .error();
    assert_eq!(error, "a.safetensors: logmask: expected no NaN, found NaN");
}

#[test]
fn sizes_without_tensors_of_them_are_refused_before_anything_is_allocated() {
    for key in ["batch", "seq", "head_dim", "n_heads"] {
        for bytes in [PADDED, SKETCH] {
            let error = Parts::of(bytes).entry(key, "4611686018427387904").error();
            assert!(
                error.contains("a.safetensors: q: expected") || error.contains(": k: expected"),
                "{error}"
            );
        }
    }
}
